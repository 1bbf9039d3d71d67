"""The optimization of v*: its parts, where it stops, and that requests do not affect each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rome_jax.data.positions import FactToken
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.stages import value as value_stage
from rome_jax.edit.stages.chunks import RequestChunks, length_from_subject
from rome_jax.edit.stages.inputs import EditInputs, tokenize_requests
from rome_jax.edit.stages.key import layer_states
from rome_jax.edit.stages.value import optimize_value, project_to_ball, safe_norm
from rome_jax.evaluation.datasets import DatasetName, load_dataset
from rome_jax.models import forward
from rome_jax.models.interventions import Site
from rome_jax.models.patches import Patch, PatchMode

LAYER = 1
# Neither the ball nor the threshold is reached, so every step is taken. The likelihoods of a random model barely depend
# on one vector, so the weight decay is small.
FREE = ROMEConfig(
    (LAYER,), v_num_grad_steps=6, clamp_norm_factor=1e3, loss_threshold=0.0, v_weight_decay=0.01
)


def prepare(model, requests, templates):
    """(inputs, hidden, v₀) at LAYER."""
    fact_token = FactToken.SUBJECT_LAST
    return at_layer(model, tokenize_requests(model.tokenizer, requests, templates, fact_token, 64))


def at_layer(model, inputs):
    states = layer_states(model.params, model.config, inputs.batch, inputs.fact, LAYER)
    return inputs, states.hidden, states.value[: inputs.num_requests]


def widen(inputs, num_prefix, num_suffix):
    """The same rows with other numbers of columns, and room for four target tokens."""
    targets = inputs.targets
    more = ((0, 0), (0, 4 - targets.ids.shape[1]))
    targets = targets.replace(
        read=np.pad(targets.read, ((0, 0), *more), mode="edge"),
        ids=np.pad(targets.ids, more),
        mask=np.pad(targets.mask, more),
    )
    return EditInputs.of(inputs.batch, targets, inputs.essence, num_prefix, num_suffix)


def optimize(model, prepared, config, start=None):
    return optimize_value(model.params, model.config, config, *prepared, LAYER, start=start)


@pytest.fixture(scope="module")
def prepared(model, requests, templates):
    return prepare(model, requests, templates)


@pytest.fixture(scope="module")
def free(model, prepared):
    return optimize(model, prepared, FREE)


@pytest.fixture(scope="module")
def terms(model, requests, templates, prepared):
    """terms(δ) -> NLL [N] and KL [N] in float64, from whole forward passes with a patch."""
    inputs = prepared[0]
    batch, fact = inputs.batch, np.asarray(inputs.fact)
    at_fact = np.arange(batch.ids.shape[1]) == fact[:, None]

    def log_probs(delta):
        values = jnp.tile(jnp.asarray(delta), (len(templates) + 1, 1))[:, None]
        patch = Patch(Site.MLP_OUT, PatchMode.ADD, jnp.int32(LAYER), at_fact, values)
        logits = forward.logits(model.params, model.config, batch, patches=(patch,))
        logits = np.asarray(logits, np.float64)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def terms(delta):
        rows, clean = log_probs(delta), log_probs(np.zeros_like(delta))
        nll, kl = [], []
        for n, request in enumerate(requests):
            target = model.tokenizer(" " + request.target_new)["input_ids"]
            each = []
            for k in range(len(templates)):
                row = k * len(requests) + n
                last = np.flatnonzero(batch.mask[row])[-len(target)]  # the prompt's last token
                each.append(np.mean([-rows[row, last + m, t] for m, t in enumerate(target)]))
            nll.append(np.mean(each))
            row = len(templates) * len(requests) + n
            essence = row, fact[row]
            kl.append(np.sum(np.exp(rows[essence]) * (rows[essence] - clean[essence])))
        return np.array(nll), np.array(kl)

    return terms


# Norm and ball


def test_safe_norm_at_zero_has_gradient_zero():
    assert safe_norm(jnp.zeros(3)) == 0
    gradient = jax.grad(lambda v: safe_norm(v).sum())(jnp.array([[0.0, 0.0], [3.0, 4.0]]))
    np.testing.assert_allclose(gradient, [[0, 0], [0.6, 0.8]], rtol=2e-7)


floats = st.floats(-100, 100, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)
vectors = hnp.arrays(np.float32, (4, 3), elements=floats)


@settings(deadline=None, max_examples=25)
@given(vectors)
def test_safe_norm_is_the_norm(values):
    expected = np.linalg.norm(values.astype(np.float64), axis=-1)
    np.testing.assert_allclose(safe_norm(jnp.asarray(values)), expected, rtol=5e-7)


@settings(deadline=None, max_examples=25)
@given(vectors, hnp.arrays(np.float32, 4, elements=st.floats(0.125, 64, width=32)))
def test_projection_to_the_ball(values, radius):
    projected = np.asarray(project_to_ball(jnp.asarray(values), jnp.asarray(radius)), np.float64)
    exact = values.astype(np.float64)
    norm = np.linalg.norm(exact, axis=-1)
    inside = norm < radius * (1 - 1e-6)
    outside = norm > radius * (1 + 1e-6)
    np.testing.assert_array_equal(projected[inside], exact[inside])
    expected = exact * (radius / np.where(norm == 0, 1, norm))[:, None]
    np.testing.assert_allclose(projected[outside], expected[outside], rtol=1e-6)
    again = project_to_ball(jnp.asarray(projected, jnp.float32), jnp.asarray(radius))
    np.testing.assert_allclose(again, projected, rtol=5e-7)


# The loss


def test_a_first_evaluation_is_of_the_unedited_model(free, terms):
    nll, _ = terms(np.zeros_like(free.delta))
    np.testing.assert_allclose(free.nll[:, 0], nll, rtol=1e-5)
    # KL of a distribution with itself, up to the rounding of its float32 logarithms.
    np.testing.assert_allclose(free.kl[:, 0], 0, atol=1e-6)
    np.testing.assert_array_equal(free.weight_decay[:, 0], 0)


def test_the_value_that_is_returned_is_the_one_last_evaluated(free, terms, prepared):
    nll, kl = terms(np.asarray(free.delta))
    np.testing.assert_allclose(free.nll[:, -1], nll, rtol=1e-5)
    # Float32 logarithms near 8 are right to 1e-6, and KL is a mean of their differences.
    np.testing.assert_allclose(free.kl[:, -1], 0.0625 * kl, rtol=1e-5, atol=0.0625e-6)
    assert (kl > 0.1).all()
    norms = [np.linalg.norm(np.asarray(x, np.float64), axis=-1) for x in (free.delta, prepared[2])]
    np.testing.assert_allclose(free.weight_decay[:, -1], 0.01 * norms[0] / norms[1] ** 2, rtol=1e-5)
    total = free.nll + free.kl + free.weight_decay
    np.testing.assert_allclose(free.loss, total, rtol=1e-6)


def test_every_step_lowers_the_loss(free):
    assert (np.diff(free.loss) < 0).all()
    assert (free.nll[:, -1] < free.nll[:, 0] - 0.03).all()
    assert free.steps.tolist() == [6, 6, 6]


def test_the_first_steps_are_those_of_adam(model, prepared, free):
    """Adam's first step is the learning rate in every coordinate, whatever the gradient's size."""
    two = optimize(model, prepared, dataclasses.replace(FREE, v_num_grad_steps=2))
    np.testing.assert_allclose(np.abs(two.delta), 0.5, rtol=1e-3)
    assert two.steps.tolist() == [2, 2, 2]
    np.testing.assert_allclose(two.loss, free.loss[:, :2], rtol=1e-5)


# Where it ends


def test_a_loss_below_the_threshold_ends_it_at_once(model, prepared):
    config = dataclasses.replace(FREE, loss_threshold=1e9)
    result = optimize(model, prepared, config)
    assert result.steps.tolist() == [1, 1, 1]
    np.testing.assert_array_equal(result.delta, 0)
    assert np.isfinite(result.loss[:, 0]).all()
    assert np.isnan(result.loss[:, 1:]).all()


def test_a_request_that_is_done_keeps_its_value_while_others_continue(model, prepared, free, terms):
    loss = np.asarray(free.loss)
    threshold = float(loss[2, 2:4].mean())  # the last request passes it at its fourth evaluation
    assert loss[:2].min() > threshold, "the others never do"
    steps = [6, 6, 4]
    result = optimize(model, prepared, dataclasses.replace(FREE, loss_threshold=threshold))
    assert result.steps.tolist() == steps
    for n, count in enumerate(steps):
        np.testing.assert_allclose(result.loss[n, :count], loss[n, :count], rtol=1e-5)
        assert np.isnan(result.loss[n, count:]).all()
    recorded = [result.nll[n, count - 1] for n, count in enumerate(steps)]
    np.testing.assert_allclose(recorded, terms(np.asarray(result.delta))[0], rtol=1e-5)


def test_an_active_clamp_keeps_the_value_on_the_sphere(model, prepared, free):
    config = dataclasses.replace(FREE, clamp_norm_factor=0.25)
    radius = 0.25 * np.linalg.norm(np.asarray(prepared[2], np.float64), axis=-1)
    assert (np.linalg.norm(free.delta, axis=-1) > radius).all()
    result = optimize(model, prepared, config)
    np.testing.assert_allclose(np.linalg.norm(result.delta, axis=-1), radius, rtol=1e-6)


# Longer steps, and starts at an earlier δ


@pytest.mark.parametrize("factor", [4.0, 4000.0])
def test_longer_steps_that_raise_the_loss_are_taken_back(model, prepared, terms, factor):
    """With the larger factor, hardly any step is accepted."""
    config = dataclasses.replace(FREE, v_first_step=factor)
    result = optimize(model, prepared, config)
    loss = np.asarray(result.loss)
    assert (np.diff(loss) <= 0).all() and (loss[:, -1] < loss[:, 0]).all() == (factor == 4.0)
    assert result.steps.tolist() == [6, 6, 6]
    np.testing.assert_allclose(result.nll[:, -1], terms(np.asarray(result.delta))[0], rtol=1e-5)
    if factor == 4.0:
        two = optimize(model, prepared, dataclasses.replace(config, v_num_grad_steps=2))
        np.testing.assert_allclose(np.abs(two.delta), 2.0, rtol=1e-3)
    else:
        assert (np.diff(loss)[:, 0] == 0).all()


def test_a_start_of_zeros_is_no_start(model, prepared, free):
    result = optimize(model, prepared, FREE, np.zeros((3, 1, free.delta.shape[1]), np.float32))
    np.testing.assert_allclose(result.loss, free.loss, rtol=1e-6)
    np.testing.assert_allclose(result.delta, free.delta, rtol=1e-5, atol=1e-6)


def test_an_earlier_delta_is_tried_first(model, prepared, free):
    """The first request begins at what it had found, the second at nothing, and the third far away."""
    start = np.asarray(free.delta) * np.array([[1], [0], [-100]], np.float32)
    loss = np.asarray(optimize(model, prepared, FREE, start[:, None]).loss)
    np.testing.assert_allclose(loss[:, 0], free.loss[:, 0], rtol=1e-6)
    np.testing.assert_allclose(loss[0, 1], free.loss[0, -1], rtol=1e-5)
    assert loss[0, -1] < free.loss[0, -1]
    np.testing.assert_allclose(loss[1], free.loss[1], rtol=1e-5)
    assert loss[2, 1] == loss[2, 0]
    np.testing.assert_allclose(loss[2, 2:], free.loss[2, 1:-1], rtol=1e-5)


def test_an_earlier_delta_is_projected_onto_the_ball_of_the_request(model, prepared, free):
    config = dataclasses.replace(FREE, clamp_norm_factor=0.25, v_num_grad_steps=2)
    radius = 0.25 * np.linalg.norm(np.asarray(prepared[2], np.float64), axis=-1)
    result = optimize(model, prepared, config, np.asarray(free.delta)[:, None])
    direction = free.delta / np.linalg.norm(free.delta, axis=-1, keepdims=True)
    np.testing.assert_allclose(result.delta, direction * radius[:, None], rtol=1e-5, atol=1e-7)


def test_a_search_does_not_depend_on_the_rest_of_the_batch(model, prepared, free):
    config = dataclasses.replace(FREE, v_first_step=64.0)
    start = np.asarray(free.delta)[:, None] * np.array([0, 0.5, -100], np.float32)[:, None, None]
    result = optimize(model, prepared, config, start)
    inputs, hidden, value = prepared
    others = inputs.replace(targets=inputs.targets.replace(ids=inputs.targets.ids[[1, 1, 2]]))
    masks = others.targets.replace(mask=inputs.targets.mask[[1, 1, 2]])
    others = others.replace(targets=masks)
    changed = optimize(model, (others, hidden, value), config, start * [[[5]], [[1]], [[1]]])
    np.testing.assert_allclose(changed.loss[1:], result.loss[1:], rtol=1e-5)
    assert not np.allclose(changed.loss[0], result.loss[0], rtol=1e-3)


# What is recomputed


def test_the_sizes_of_prefix_and_suffix_do_not_matter(model, prepared, free):
    """More columns than needed on both sides: masks decide, not shapes."""
    inputs = prepared[0]
    wide = widen(inputs, 28, 20)
    assert wide.num_prefix > inputs.num_prefix
    assert wide.batch.ids.shape[1] - 28 > inputs.batch.ids.shape[1] - inputs.num_prefix
    result = optimize(model, at_layer(model, wide), FREE)
    np.testing.assert_allclose(result.loss, free.loss, rtol=1e-5)
    error = np.linalg.norm(result.delta - free.delta) / np.linalg.norm(free.delta)
    assert error <= 1e-4


# Batches


def test_a_batch_is_its_requests_one_at_a_time(model, requests, templates, prepared, free):
    """Alone, in other shapes: neither the other requests nor the padding matter."""
    num_prefix = prepared[0].num_prefix + 8
    for n, request in enumerate(requests):
        alone = widen(prepare(model, [request], templates)[0], num_prefix, 20)
        result = optimize(model, at_layer(model, alone), FREE)
        error = np.linalg.norm(result.delta[0] - free.delta[n]) / np.linalg.norm(free.delta[n])
        assert error <= 1e-4
        np.testing.assert_allclose(result.loss[0], free.loss[n], rtol=1e-4)


def test_requests_have_deltas_of_their_own(free):
    for i, j in ((0, 1), (1, 2), (0, 2)):
        difference = np.linalg.norm(free.delta[i] - free.delta[j])
        assert difference > 0.1 * np.linalg.norm(free.delta[i])


def test_a_target_is_present_if_greedy_decoding_gives_all_of_it(model, prepared):
    """The first request asks for what the model says, the second for another token at its end, the third likewise."""
    inputs, hidden, value = prepared
    targets = inputs.targets
    logits = np.asarray(forward.logits(model.params, model.config, inputs.batch))
    bare = np.arange(len(targets.ids))  # the rows of the bare prompts
    greedy = logits[bare[:, None], targets.read[0]].argmax(-1)
    last = targets.mask.sum(1) - 1
    wrong = greedy.copy()
    wrong[[1, 2], last[[1, 2]]] += 1
    inputs = inputs.replace(targets=targets.replace(ids=wrong.astype(np.int32)))
    once = dataclasses.replace(FREE, v_num_grad_steps=1)
    assert optimize(model, (inputs, hidden, value), once).present.tolist() == [True, False, False]


def test_two_hundred_requests_take_few_programs(shipped_model, monkeypatch):
    """Chunks also differ in the shapes of their packed rows, which the optimization does not read."""
    model, layer = shipped_model("factworld-gpt2"), 0
    templates = ("{}", *["The truth is what it is. {}", "I know that. {}"] * 10)
    records = load_dataset(DatasetName.CF, model_name=model.name, limit=200).records
    requests = [record.request for record in records]
    freeze = value_stage.freeze_prefix

    def shapes_alone(params, config, batch, num_prefix, hidden, layer, shared):
        found = jax.eval_shape(
            lambda: freeze(params, config, batch, num_prefix, hidden, layer, shared)
        )
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), found)

    nothing = value_stage.ValueResult(*[np.zeros((1, 1, 1))] * 7)
    programs = jax.jit(lambda *arguments: nothing, static_argnums=(1, 7, 8, 12))
    monkeypatch.setattr(value_stage, "freeze_prefix", shapes_alone)
    monkeypatch.setattr(value_stage, "_optimize", programs)
    chunks, shapes = RequestChunks.of(list(map(length_from_subject, requests)), 8), set()
    for chunk in chunks.split(requests):
        inputs = tokenize_requests(
            model.tokenizer, chunk, templates, FactToken.SUBJECT_LAST, model.config.context_length
        )
        shapes.add((inputs.batch.ids.shape, inputs.shared.rows.batch.ids.shape))
        hidden = np.zeros((*inputs.batch.ids.shape, model.config.width), np.float32)
        start = np.zeros((len(chunk), model.config.width), np.float32)
        value_stage.optimize_value(
            model.params, model.config, FREE, inputs, hidden, start, layer, inputs.shared
        )
    assert len(shapes) > 2
    assert programs._cache_size() <= 8
