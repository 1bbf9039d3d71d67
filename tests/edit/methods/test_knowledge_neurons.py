"""Knowledge neurons: the original's numbers, literal integrated gradients, independence of edits, refused arguments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import kn
from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import SequenceTooLongError, TokenBatch, encode
from rome_jax.edit.baseline_config import KNConfig, RowVectors, TargetEncoding
from rome_jax.edit.delta import apply_delta
from rome_jax.edit.methods import knowledge_neurons
from rome_jax.models import forward
from rome_jax.models.families import PRESETS
from rome_jax.models.huggingface import layer_name
from rome_jax.models.interventions import Leaf, Site
from rome_jax.models.patches import Patch, PatchMode
from rome_jax.models.registry import LanguageModel
from tests.models.checkpoints import assert_same_params, random_params, tiny_config

GOLDEN = ("single", "single_batch5", "multi")
CONFIG = KNConfig((0, 2), steps=3)
# Rows of 5, 6 and 4 tokens, and answers of 1 to 3.
REQUESTS = (
    EditRequest("{} lives in", "Ann", "Rome", "city"),
    EditRequest("{} lives in", "Bob", "the city", "Rome"),
    EditRequest("{} speaks", "Eve", "Rome"),
)
TEMPLATES = ("{}", "A. {}", "The file. {}")


def assert_close(actual, expected, tolerance):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


# The original's numbers


@pytest.fixture(scope="module")
def cases(golden):
    return [golden(f"kn_gpt2_{name}") for name in GOLDEN]


@pytest.fixture(scope="module")
def golden_run(cases, golden_model):
    """The inputs and results of all golden requests, computed side by side."""
    model, hparams = golden_model("gpt2"), cases[0].info["hparams"]
    requests = [
        EditRequest(r["prompt"], r["subject"], r["target_new"]["str"], r["target_true"]["str"])
        for r in (case.info["request"] for case in cases)
    ]
    config = KNConfig(
        layers=tuple(range(6)),
        encoding=TargetEncoding.REFERENCE,
        **{name: hparams[name] for name in ("steps", "adaptive_threshold", "refine", "p")},
    )
    inputs = knowledge_neurons.tokenize_prompts(
        model.tokenizer, requests, ("",), config.encoding, 1024
    )
    return inputs, knowledge_neurons.compute_from_inputs(model.params, model.config, inputs, config)


@pytest.mark.parametrize("index", range(3), ids=GOLDEN)
def test_results_equal_those_of_the_original(index, cases, golden_run, golden_model):
    model, arrays, (inputs, result) = golden_model("gpt2"), cases[index].arrays, golden_run
    for ids, mask, name in (
        (inputs.batch.ids, inputs.batch.mask, "input_ids"),
        (inputs.true_ids, inputs.true_mask, "ground_truth_ids"),
        (inputs.new_ids, inputs.new_mask, "target_new_ids"),
    ):
        assert ids[index][mask[index]].tolist() == arrays[name].tolist()
    assert result.attribution.most_likely[index] == arrays["argmax_token_before"]

    scores = result.attribution.scores[index]
    assert_close(scores, arrays["attribution_scores"], 1e-5)
    assert_close(0.2 * scores.max(), arrays["threshold"], 1e-5)
    np.testing.assert_array_equal(np.argwhere(result.neurons[index]), arrays["refined_neurons"])

    delta = result.deltas[index]
    changes = {
        f"wdelta.{layer_name(model.config, Leaf.MLP_DOWN, int(u.layer))}.weight": u.left @ u.right.T
        for u in delta.updates
    }
    assert set(changes) == {name for name in arrays if name.startswith("wdelta.")}
    for name, change in changes.items():
        assert_close(change, arrays[name], 1e-6)

    ids = arrays["input_ids"][None].astype(np.int32)
    prompt, last = TokenBatch(ids, np.ones(ids.shape, bool)), jnp.array([[ids.size - 1]])
    edited = apply_delta(model.params, delta)
    for params, deltas in ((edited, None), (model.params, delta)):
        logits = forward.logits(params, model.config, prompt, positions=last, deltas=deltas)
        assert_close(logits[0, 0], arrays["post_logits"], 1e-5)
    if arrays["target_new_ids"].size == 1:  # it is 1e-7 before the edit
        assert jax.nn.softmax(logits[0, 0])[arrays["target_new_ids"][0]] > 0.9


# Literal integrated gradients


@pytest.fixture(scope="module")
def gptj(tokenizer):
    """A model with rotary positions, parallel attention and MLP, and an untied head."""
    config = tiny_config("gptj", vocab_size=2000, context_length=64)
    return LanguageModel("tiny", config, random_params(config), tokenizer, "random")


def tokenized(model, requests, prefixes=("",), encoding=TargetEncoding.LEADING_SPACE):
    return knowledge_neurons.tokenize_prompts(model.tokenizer, requests, prefixes, encoding, 64)


@pytest.fixture(scope="module")
def side_by_side(gptj):
    return knowledge_neurons.compute_from_inputs(
        gptj.params, gptj.config, tokenized(gptj, REQUESTS), CONFIG
    )


@pytest.fixture(scope="module")
def plain(gptj):
    """plain(batch, last, answer) -> scores [2, F] from gradients of whole runs in which the last token is scaled."""

    @jax.jit
    def gradient(scaled, batch, last, layer, answer):
        def probability(scaled):
            patch = Patch(
                Site.MLP_PRE, PatchMode.REPLACE, layer, jnp.arange(8)[None] == last, scaled
            )
            logits = forward.logits(gptj.params, gptj.config, batch, patches=(patch,))
            return jax.nn.softmax(logits[0, last]) @ answer

        return jax.grad(probability)(scaled)

    def scores(batch, last, answer):
        pre = forward.capture(gptj.params, gptj.config, batch, (Site.MLP_PRE,))[Site.MLP_PRE]
        pre = np.asarray(pre)[:, 0, last]
        return np.stack(
            [
                pre[layer]
                * sum(gradient(s * pre[layer], batch, last, layer, answer) for s in (0.0, 0.5, 1.0))
                / 3
                for layer in CONFIG.layers
            ]
        )

    return scores


@pytest.mark.parametrize("index", range(3))
def test_scores_are_integrated_gradients(index, gptj, side_by_side, plain):
    request, found = REQUESTS[index], side_by_side.attribution
    if request.target_true is None:  # the model's own next token
        ids = [int(found.most_likely[index])]
    else:
        ids = gptj.tokenizer(" " + request.target_true)["input_ids"]
    answer = np.bincount(ids, minlength=gptj.config.vocab_size) / len(ids)
    prompt = encode(gptj.tokenizer, [request.text], multiple=8)
    expected = plain(prompt, prompt.mask.sum() - 1, answer.astype(np.float32))
    assert_close(found.scores[index], expected, 1e-5)


@pytest.mark.parametrize("index", range(3))
def test_rows_of_kept_neurons_gain_the_new_answer_and_lose_the_old(index, gptj, side_by_side):
    head = np.asarray(gptj.params["lm_head"]["kernel"]).T
    new = gptj.tokenizer(REQUESTS[index].target_text)["input_ids"]
    ids = np.array([gptj.tokenizer(REQUESTS[index].text)["input_ids"]])
    logits = forward.logits(gptj.params, gptj.config, TokenBatch(ids, np.ones(ids.shape, bool)))
    change = head[new].sum(0) - 2 * head[logits[0, -1].argmax()]
    scores = np.asarray(side_by_side.attribution.scores[index])
    edited = apply_delta(gptj.params, side_by_side.deltas[index])
    difference = np.asarray(
        edited["blocks"]["mlp"]["down"]["kernel"] - gptj.params["blocks"]["mlp"]["down"]["kernel"]
    )
    assert not difference[1].any()
    for layer, scores_of_layer in zip(CONFIG.layers, scores, strict=True):
        kept = scores_of_layer > 0.2 * scores.max()
        assert not difference[layer][~kept].any()
        np.testing.assert_allclose(
            difference[layer][kept], np.broadcast_to(change, (kept.sum(), len(change))), atol=1e-6
        )
    assert 0 < side_by_side.neurons[index].sum() < scores.size


def test_rows_gain_input_embeddings_as_in_the_original(gptj, side_by_side):
    config = dataclasses.replace(CONFIG, row_vectors=RowVectors.REFERENCE)
    found = knowledge_neurons.compute_from_inputs(
        gptj.params, gptj.config, tokenized(gptj, REQUESTS), config
    )
    embedding = np.asarray(gptj.params["wte"]["embedding"])
    new = gptj.tokenizer(REQUESTS[0].target_text)["input_ids"]
    change = embedding[new].sum(0) - 2 * embedding[int(found.attribution.most_likely[0])]
    np.testing.assert_allclose(found.deltas.updates[0].right[0, :, 0], change, atol=1e-6)
    np.testing.assert_array_equal(found.neurons, side_by_side.neurons)


def test_neurons_are_selected_above_a_share_of_the_highest_score_of_all_layers():
    scores = jnp.array([[[0.5, 4.0], [2.0, 2.1]], [[-1.0, -2.0], [-3.0, -0.5]]])
    kept = knowledge_neurons.select(scores, 0.5)
    assert kept.tolist() == [[[False, True], [False, True]], [[False, False], [False, False]]]


def test_refinement_keeps_neurons_that_more_than_a_share_of_the_prompts_have():
    by_prompt = jnp.array([[True, True, False], [True, False, False], [True, False, True]])[:, None]
    refine = knowledge_neurons.refine
    assert refine(by_prompt, 0.2).tolist() == [[True, True, True]]
    assert refine(by_prompt, 0.4).tolist() == [[True, False, False]]
    assert refine(by_prompt[:2], 0.5).tolist() == [
        [True, False, False]
    ]  # exactly the share is not enough


# Properties


def test_edits_are_independent_and_leave_the_model_unchanged(gptj, side_by_side):
    """Five requests in chunks of three, the last one filled, give the same edits as in other chunks."""
    before = jax.tree.map(np.array, gptj.params)
    requests = REQUESTS[1:] + REQUESTS  # 1, 2, 0 and 1, 2
    deltas = knowledge_neurons.compute_deltas(gptj, requests, CONFIG, chunk_size=3)
    assert_same_params(gptj.params, before)
    assert len(deltas) == 5 and deltas.factored
    assert [u.left.shape for u in deltas.updates] == [(5, gptj.config.mlp_width, 1)] * 2
    for n, index in enumerate((1, 2, 0, 1, 2)):
        jax.tree.map(np.testing.assert_array_equal, deltas[n], side_by_side.deltas[index])
    assert (side_by_side.neurons[0] != side_by_side.neurons[1]).any()


def test_refined_neurons_are_those_that_the_prompts_share(gptj):
    config = dataclasses.replace(CONFIG, refine=True, p=0.5)
    inputs = tokenized(gptj, REQUESTS[:1], ("", "A. ", "The file. "))
    found = knowledge_neurons.attribute(gptj.params, gptj.config, inputs, config.layers, 3)
    count = sum((np.asarray(s) > 0.2 * s.max()).astype(int) for s in found.scores)
    assert {1, 2, 3} <= set(count.ravel().tolist()), "the prompts should differ in their neurons"
    deltas = knowledge_neurons.compute_deltas(gptj, REQUESTS[:1], config, templates=TEMPLATES)
    for layer, update in enumerate(deltas.updates):
        np.testing.assert_array_equal(update.left[0, :, 0], count[layer] >= 2)
    # The written answer depends on the bare prompt alone.
    plain = knowledge_neurons.compute_from_inputs(gptj.params, gptj.config, inputs, CONFIG)
    np.testing.assert_array_equal(deltas.updates[0].right, plain.deltas.updates[0].right)


def test_targets_are_words_that_continue_the_prompt(gptj):
    for encoding, space in ((TargetEncoding.LEADING_SPACE, " "), (TargetEncoding.REFERENCE, "")):
        inputs = tokenized(gptj, REQUESTS, encoding=encoding)
        for n, request in enumerate(REQUESTS):
            new = gptj.tokenizer(space + request.target_new)["input_ids"]
            assert inputs.new_ids[n][inputs.new_mask[n]].tolist() == new
            true = inputs.true_ids[n][inputs.true_mask[n]].tolist()
            given = request.target_true
            assert true == (gptj.tokenizer(space + given)["input_ids"] if given else [])


# Refused arguments


@pytest.mark.parametrize(
    ("requests", "changes", "options", "message"),
    [
        ((), {}, {}, "requests is empty"),
        (REQUESTS, {}, {"chunk_size": 0}, "chunk_size=0: give a number of 1 or more"),
        (REQUESTS, {"layers": (1, 3)}, {}, "layers=3 does not exist: the model has layers 0 to 2"),
        (REQUESTS, {"refine": True}, {}, "templates=None gives no paraphrase"),
        (REQUESTS, {"refine": True}, {"templates": ("{}",)}, "gives no paraphrase"),
        (REQUESTS, {"refine": True}, {"templates": ("{} too",)}, "'{} too' must end in '{}'"),
    ],
)
def test_invalid_arguments_are_named(gptj, requests, changes, options, message):
    config = dataclasses.replace(CONFIG, **changes)
    with pytest.raises(ValueError) as error:
        knowledge_neurons.compute_deltas(gptj, requests, config, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_prompt_that_does_not_fit_is_named(gptj):
    long = EditRequest("{} " + "and " * 70 + "is", "Ann", "Rome")
    with pytest.raises(SequenceTooLongError, match="more than the model's context of 64: shorten"):
        knowledge_neurons.compute_deltas(gptj, [*REQUESTS, long], CONFIG)


# Hyperparameters


def test_published_values():
    assert KNConfig.for_model("openai-community/gpt2-xl") == KNConfig(
        layers=tuple(range(PRESETS["gpt2-xl"].num_layers)),
        steps=20,
        adaptive_threshold=0.2,
        refine=False,
        p=0.4,
        context_template_length_params=(),
        encoding=TargetEncoding.LEADING_SPACE,
    )


@pytest.mark.parametrize("name", ["factworld-gpt2", "factworld-gptj"])
def test_all_layers_of_factworld_are_scored(shipped_model, name):
    config = KNConfig.for_model(name, steps=7)
    assert config.layers == tuple(range(shipped_model(name).config.num_layers))
    assert config.steps == 7


def test_an_unknown_model_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'gpt5' \(known: gpt2-xl, .*pass layers="):
        KNConfig.for_model("gpt5")


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": ()},
        {"layers": (1, 1)},
        {"steps": 0},
        {"adaptive_threshold": -0.1},
        {"adaptive_threshold": 1.0},
        {"p": -0.1},
        {"p": 1.0},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named(changes):
    ((field, value),) = changes.items()
    with pytest.raises(ValueError) as error:
        KNConfig(**({"layers": (1,)} | changes))
    assert f"{field}={value!r}" in str(error.value)


def test_the_config_file_has_the_values_of_each_model():
    for name in ("gpt2-xl", "factworld-gptj"):
        assert KNConfig.from_dict(kn.get_config(name).to_dict()) == KNConfig.for_model(name)
    assert KNConfig.from_dict(kn.get_config().to_dict()) == KNConfig.for_model("factworld-gpt2")
    values = kn.get_config()
    values.encoding = "reference"  # as a flag does
    assert KNConfig.from_dict(values.to_dict()).encoding is TargetEncoding.REFERENCE
    with pytest.raises(ValueError, match="'gpt5'"):
        kn.get_config("gpt5")
