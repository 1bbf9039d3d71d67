"""Fine-tuning: comparison with plain gradients and a float64 Adam, independence of edits, and refused arguments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import SequenceTooLongError, TokenBatch, encode
from rome_jax.edit.baseline_config import FT_VARIANTS, FTConfig, TargetScoring
from rome_jax.edit.config import MethodName
from rome_jax.edit.delta import apply_delta, dense
from rome_jax.edit.methods import fine_tune
from rome_jax.edit.stages.chunks import check_requests
from rome_jax.edit.stages.targets import tokenize_request_targets
from rome_jax.models import forward
from rome_jax.models.interventions import Leaf, Part
from rome_jax.models.registry import LanguageModel
from tests.models.checkpoints import assert_same_params, random_params, tiny_config

CONFIG = FTConfig((2,), num_steps=2, lr=1e-2, loss_threshold=0.0)  # the last layer compiles fastest
# Two layers, and weights of the MLP and of attention.
BOTH = dataclasses.replace(CONFIG, layers=(2, 1), leaves=(Leaf.MLP_DOWN, Leaf.ATTN_QKV))
GPTJ = dataclasses.replace(CONFIG, leaves=(Leaf.ATTN_QUERY, Leaf.ATTN_KEY, Leaf.ATTN_VALUE))
# Rows of 7, 8 and 7 tokens, padded to the same shape; the last has the shortest text.
REQUESTS = (
    EditRequest("{} lives in", "Ann", "Rome"),
    EditRequest("{} lives in", "Bob", "city"),
    EditRequest("{} speaks", "Eve", "Rome"),
)


@pytest.fixture(scope="module")
def gptj(tokenizer):
    config = tiny_config("gptj", vocab_size=2000, context_length=64)
    return LanguageModel("tiny", config, random_params(config), tokenizer, "random")


@pytest.fixture(scope="module")
def alone(model):
    """The delta of each request, computed by itself."""
    return [fine_tune.compute_deltas(model, [request], CONFIG)[0] for request in REQUESTS]


def target_ids(model, request):
    return model.tokenizer(request.target_text)["input_ids"]


def log_probabilities(model, params, request):
    """Teacher-forced log-probabilities [K, V] at the positions that predict the target's tokens."""
    prompt, target = model.tokenizer(request.text)["input_ids"], target_ids(model, request)
    ids = np.array([prompt + target[:-1]])
    logits = forward.logits(params, model.config, TokenBatch(ids, np.ones(ids.shape, bool)))
    return jax.nn.log_softmax(logits[0, len(prompt) - 1 :])


def nll(model, params, request):
    """Mean negative log-likelihood of the target's tokens."""
    target = np.array(target_ids(model, request))
    return -log_probabilities(model, params, request)[np.arange(len(target)), target].mean()


def weight_of(params, layer, leaf, part):
    module, name = leaf.value
    return params["blocks"][module][name][part.value][layer]


def loss_and_gradient(model, params, request):
    """The loss and the gradient of all weights, compiled once per model and request."""
    key = (model.config, request)
    if key not in _GRADIENTS:
        _GRADIENTS[key] = jax.jit(jax.value_and_grad(lambda params: nll(model, params, request)))
    return _GRADIENTS[key](params)


_GRADIENTS = {}


def plain(model, request, config):
    """Changes and losses from gradients of all weights and a literal float64 Adam."""
    trained = [
        (layer, leaf, part)
        for layer in config.layers
        for leaf in config.leaves
        for part in Part
        if part.value in model.params["blocks"][leaf.value[0]][leaf.value[1]]
    ]
    start = [np.asarray(weight_of(model.params, *which), np.float64) for which in trained]
    changes = [np.zeros_like(weight) for weight in start]
    first, second = ([np.zeros_like(weight) for weight in start] for _ in range(2))
    params, losses = model.params, []
    for step in range(1, config.num_steps + 1):
        loss, gradient = loss_and_gradient(model, params, request)
        losses.append(float(loss))
        for i, which in enumerate(trained):
            g = np.asarray(weight_of(gradient, *which), np.float64)
            g = g + config.weight_decay * (start[i] + changes[i])
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g**2
            unbiased = first[i] / (1 - 0.9**step), second[i] / (1 - 0.999**step)
            change = changes[i] - config.lr * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
            radius = config.norm_constraint or np.inf
            changes[i] = np.clip(change, -radius, radius)
            layer, (module, name), part = which[0], which[1].value, which[2].value
            stack = params["blocks"][module][name][part]
            stack = stack.at[layer].set(jnp.asarray(start[i] + changes[i], jnp.float32))
            projection = params["blocks"][module][name] | {part: stack}
            block = params["blocks"][module] | {name: projection}
            params = params | {"blocks": params["blocks"] | {module: block}}
    return trained, changes, losses


def check_plain(model, request, config):
    inputs = tokenize_request_targets(model.tokenizer, [request], 64, config.scoring).reshape(
        1, 1, 1
    )
    result = fine_tune.compute_from_inputs(model.params, model.config, inputs, config)
    trained, changes, losses = plain(model, request, config)
    updates = result.deltas[0].updates
    assert [(int(u.layer), u.leaf, u.part) for u in updates] == trained
    np.testing.assert_allclose(result.loss[0, :, 0], losses, rtol=1e-5)
    for update, expected in zip(updates, changes, strict=True):
        change, expected = np.asarray(update.change), expected.reshape(update.change.shape)
        if update.leaf is Leaf.ATTN_QKV and update.part is Part.BIAS:
            # A key's bias changes no probability. Its gradient is rounding error, which Adam amplifies.
            change, expected = (np.delete(x.reshape(3, -1), 1, axis=0) for x in (change, expected))
        assert np.abs(change - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    "changes",
    [{}, {"weight_decay": 0.3}, {"norm_constraint": 0.013}],
    ids=["free", "weight_decay", "norm_constraint"],
)
def test_steps_are_those_of_adam_on_plain_gradients(model, requests, changes):
    check_plain(model, requests[1], dataclasses.replace(BOTH, **changes))


def test_separate_projections_without_biases(gptj, requests):
    check_plain(gptj, requests[1], GPTJ)


# Tokens


def test_every_target_token_is_read_where_it_is_predicted(model, requests):
    inputs = tokenize_request_targets(model.tokenizer, requests, 64)
    for n, request in enumerate(requests):
        prompt = model.tokenizer(request.text)["input_ids"]
        target = target_ids(model, request)
        scored = inputs.target_mask[n]
        assert inputs.target_ids[n][scored].tolist() == target
        assert inputs.batch.ids[n][inputs.batch.mask[n]].tolist() == prompt + target[:-1]
        assert inputs.read[n][scored].tolist() == [len(prompt) - 1 + k for k in range(len(target))]


def test_minibatches_keep_the_order_and_are_filled_with_rows_that_do_not_count(model, requests):
    inputs = tokenize_request_targets(model.tokenizer, requests, 64)
    filled = fine_tune.minibatches(inputs, 2)
    assert filled.target_mask.shape[:3] == (1, 2, 2)
    np.testing.assert_array_equal(filled.batch.ids[0].reshape(4, -1)[:3], inputs.batch.ids)
    np.testing.assert_array_equal(filled.target_mask[0].reshape(4, -1)[:3], inputs.target_mask)
    assert not filled.target_mask[0, 1, 1].any()
    assert filled.batch.mask[0, 1, 1].any(), "a row of only padding would attend to nothing"
    assert fine_tune.minibatches(inputs, 64).target_mask.shape[:3] == (1, 1, 3)


# Properties


def test_edits_are_independent(model, alone):
    before = jax.tree.map(np.array, model.params)
    deltas = fine_tune.compute_deltas(model, REQUESTS, CONFIG)
    assert_same_params(model.params, before)
    assert len(deltas) == 3 and not deltas.factored
    for n in range(3):
        jax.tree.map(np.testing.assert_array_equal, deltas[n], alone[n])
    assert np.abs(alone[0].updates[0].change - alone[1].updates[0].change).max() > 1e-3


def test_edits_side_by_side_equal_edits_alone(model, alone):
    """Three requests in chunks of two, padded to one shape; the last chunk is filled."""
    deltas = fine_tune.compute_deltas(model, REQUESTS, CONFIG, chunk_size=2)
    assert len(deltas) == 3
    for n, request in enumerate(REQUESTS):
        for a, b in zip(deltas[n].updates, alone[n].updates, strict=True):
            np.testing.assert_allclose(a.change, b.change, rtol=0, atol=1e-5)
        one, other = (
            nll(model, apply_delta(model.params, d), request) for d in (deltas[n], alone[n])
        )
        np.testing.assert_allclose(one, other, rtol=1e-4)
        assert other < nll(model, model.params, request) - 0.1


def test_a_joint_edit_of_one_request_equals_its_independent_edit(model, alone):
    delta = fine_tune.compute_joint_delta(model, REQUESTS[1:2], CONFIG)
    assert not delta.batched
    jax.tree.map(np.testing.assert_array_equal, delta, alone[1])


def test_a_joint_edit_lowers_the_loss_of_every_request(model):
    delta = fine_tune.compute_joint_delta(
        model, REQUESTS, dataclasses.replace(CONFIG, batch_size=2)
    )
    edited = apply_delta(model.params, delta)
    for request in REQUESTS:
        assert nll(model, edited, request) < nll(model, model.params, request) - 0.1


@pytest.mark.parametrize("bound", [0.011, 1e-4])
def test_no_weight_leaves_the_ball(model, bound):
    config = dataclasses.replace(CONFIG, norm_constraint=bound)
    delta = fine_tune.compute_deltas(model, REQUESTS[1:2], config)[0]
    for update in delta.updates:
        assert jnp.abs(update.change).max() == np.float32(bound)


def test_a_learned_target_changes_nothing(model):
    inputs = tokenize_request_targets(model.tokenizer, REQUESTS[1:2], 64, CONFIG.scoring)
    result = fine_tune.compute_from_inputs(
        model.params,
        model.config,
        inputs.reshape(1, 1, 1),
        dataclasses.replace(CONFIG, loss_threshold=1e3),
    )
    assert result.steps.tolist() == [1]
    assert np.isnan(result.loss[0, :, 0]).tolist() == [False, True]
    for update in result.deltas.updates:
        assert not np.any(dense(update))


def test_a_dense_delta_cannot_enter_a_forward_pass(model, alone):
    batch = encode(model.tokenizer, ["Linux is written in"])
    with pytest.raises(ValueError, match="merge it into the weights with apply_delta") as error:
        forward.logits(model.params, model.config, batch, deltas=alone[0])
    assert "\n" not in str(error.value)


# On a model that knows facts


REQUEST = EditRequest("{} is made of", "Tasune Bridge", "red clay")  # of the tuning half


@pytest.mark.parametrize("scoring", TargetScoring)
def test_a_target_of_several_tokens(shipped_model, scoring):
    model = shipped_model("factworld-gpt2")
    target = target_ids(model, REQUEST)
    assert len(target) == 2
    config = FTConfig((5,), lr=5e-3, scoring=scoring)
    edited = apply_delta(model.params, fine_tune.compute_deltas(model, [REQUEST], config)[0])
    before = log_probabilities(model, model.params, REQUEST)
    after = log_probabilities(model, edited, REQUEST)
    assert before.argmax(-1).tolist() != target
    if scoring is TargetScoring.EACH_TOKEN:
        assert after.argmax(-1).tolist() == target
        assert nll(model, edited, REQUEST) < 0.1
    else:
        # Both tokens are scored at the same position, where they share the probability.
        both = jnp.exp(after[0, np.array(target)])
        assert both.sum() > 0.8 and both.max() < 0.8


# Refused arguments


def test_no_requests_are_refused(model):
    for compute in (fine_tune.compute_deltas, fine_tune.compute_joint_delta):
        with pytest.raises(ValueError, match="requests is empty"):
            compute(model, [], CONFIG)


def test_a_missing_layer_or_weight_is_named(model, requests):
    for compute in (fine_tune.compute_deltas, fine_tune.compute_joint_delta):
        with pytest.raises(
            ValueError, match="layers=3 does not exist: the model has layers 0 to 2"
        ):
            compute(model, requests, FTConfig((1, 3)))
        with pytest.raises(
            ValueError,
            match=r"changes ATTN_QUERY, which this gpt2 model .*: choose from ATTN_QKV, ATTN_OUT, MLP_UP, MLP_DOWN",
        ):
            compute(model, requests, FTConfig((1,), leaves=(Leaf.ATTN_QUERY,)))


def test_an_empty_chunk_size_is_refused(model, requests):
    with pytest.raises(ValueError, match="chunk_size=0: give a number of 1 or more"):
        fine_tune.compute_deltas(model, requests, CONFIG, chunk_size=0)


def test_a_request_beyond_the_context_is_named(model):
    request = EditRequest("{} " + "is written in " * 20 + "is", "Linux", "C")
    with pytest.raises(SequenceTooLongError, match=r"the prompt '.*Linux.* context of 64: shorten"):
        fine_tune.compute_deltas(model, [request], CONFIG)


@pytest.mark.parametrize("variant", FT_VARIANTS.values())
@pytest.mark.parametrize("family", ["gpt2", "gptj"])
def test_factworld_has_every_variant(family, variant, model, gptj):
    """Each variant trains weights that models of the family have; all but FT are bounded."""
    config = FTConfig.for_model(f"factworld-{family}", variant)
    check_requests({"gpt2": model, "gptj": gptj}[family], [REQUEST], config)
    assert (config.norm_constraint is None) is (variant is MethodName.FT)
