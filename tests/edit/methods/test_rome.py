"""ROME as a whole on a small random model: what it refuses, and what its edits satisfy."""

import dataclasses
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.positions import FactToken
from rome_jax.data.request import EditRequest, EditWarning
from rome_jax.data.tokens import pad, token_span
from rome_jax.edit.config import KeyMode, ROMEConfig
from rome_jax.edit.delta import apply_delta, dense
from rome_jax.edit.edit_warnings import collected
from rome_jax.edit.methods import rome
from rome_jax.edit.stages import contexts
from rome_jax.edit.stages.inputs import tokenize_requests
from rome_jax.edit.stages.key import layer_states
from rome_jax.edit.stages.value import _optimize
from rome_jax.models import forward
from rome_jax.models.interventions import Delta, Site
from tests.models.checkpoints import assert_same_params

LAYER = 1
CONFIG = ROMEConfig((LAYER,), v_num_grad_steps=4, v_weight_decay=0.01, loss_threshold=0.0)
MODES = {mode: dataclasses.replace(CONFIG, key_mode=mode) for mode in KeyMode}

# The edits of a random model are far from sound; the tests of the warning look for it themselves.
pytestmark = pytest.mark.filterwarnings("ignore:the edit of")


@pytest.fixture(scope="module")
def results(model, requests, templates, moments):
    """One result for each KeyMode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            mode: rome.compute(model, requests, config, second_moments=moments, templates=templates)
            for mode, config in MODES.items()
        }


@pytest.fixture(scope="module")
def keys(model, requests, templates):
    """[N, K, F] in float64: MLP_KEY at the last subject token, each text run without padding to others' targets."""
    rows, columns = [], []
    for request in requests:
        for template in templates:
            before = template.removesuffix("{}") + request.prompt.split("{}")[0]
            text = before + request.subject + request.prompt.split("{}")[1]
            encoded = model.tokenizer(text, return_offsets_mapping=True)
            span = token_span(
                encoded["offset_mapping"], len(before), len(before) + len(request.subject)
            )
            rows.append(encoded["input_ids"])
            columns.append(span[1] - 1)
    batch = pad(rows)
    states = forward.capture(model.params, model.config, batch, (Site.MLP_KEY,), stop=LAYER + 1)
    found = np.asarray(states[Site.MLP_KEY], np.float64)[LAYER, np.arange(len(rows)), columns]
    return found.reshape(len(requests), len(templates), -1)


def mapped(model, deltas, vectors):
    """(W + ΔW) k + b of each edit [N, D], in float64 from the merged weights."""
    bias = np.asarray(model.params["blocks"]["mlp"]["down"]["bias"][LAYER], np.float64)
    kernels = [
        apply_delta(model.params, deltas[n])["blocks"]["mlp"]["down"]["kernel"][LAYER]
        for n in range(len(deltas))
    ]
    return np.einsum("nf,nfd->nd", vectors, np.asarray(kernels, np.float64)) + bias


def relative_error(actual, expected):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return np.abs(actual - expected).max() / np.abs(expected).max()


# What an edit satisfies


@pytest.mark.parametrize("mode", KeyMode)
def test_the_new_weights_map_the_key_to_the_value(mode, results, keys, model):
    result = results[mode]
    (edit,) = result.layers
    key, other = keys[:, 0], keys.mean(axis=1)
    if mode is KeyMode.CONSISTENT:
        key, other = other, key
    factor = np.einsum("nf,nf->n", key, np.asarray(edit.u, np.float64))
    assert relative_error(edit.division_factor, factor) <= 1e-5
    assert relative_error(mapped(model, result.deltas, key), edit.value) <= 1e-5
    assert relative_error(mapped(model, result.deltas, other), edit.value) > 1e-2, (
        "the modes differ"
    )


def test_the_direction_is_the_whitened_mean_key(results, keys, moments):
    u = np.linalg.solve(moments[LAYER].mean, keys.mean(axis=1).T).T
    u /= np.linalg.norm(u, axis=-1, keepdims=True)
    for result in results.values():
        assert relative_error(result.layers[0].u, u) <= 1e-5
        np.testing.assert_array_equal(result.deltas.updates[0].left[..., 0], result.layers[0].u)


def test_without_second_moment_the_direction_is_the_key(model, requests, templates, keys):
    config = dataclasses.replace(CONFIG, mom2_adjustment=False, v_num_grad_steps=1)
    (edit,) = rome.compute(model, requests, config, templates=templates).layers
    mean = keys.mean(axis=1)
    assert relative_error(edit.u, mean / np.linalg.norm(mean, axis=-1, keepdims=True)) <= 1e-5


def test_the_value_starts_from_the_bare_prompt(results, keys, model):
    down = model.params["blocks"]["mlp"]["down"]
    kernel, bias = (np.asarray(down[name][LAYER], np.float64) for name in ("kernel", "bias"))
    for result in results.values():
        (edit,) = result.layers
        start = keys[:, 0] @ kernel + bias
        assert relative_error(edit.value - edit.optimization.delta, start) <= 1e-5


def test_the_norm_ratio_is_that_of_the_weights(results, model):
    kernel = np.asarray(model.params["blocks"]["mlp"]["down"]["kernel"][LAYER], np.float64)
    for result in results.values():
        changes = np.asarray(dense(result.deltas.updates[0]), np.float64)
        norm = np.linalg.norm(changes, axis=(1, 2))
        assert relative_error(result.layers[0].norm, norm) <= 1e-5
        ratio = norm / np.linalg.norm(kernel)
        assert relative_error(result.layers[0].norm_ratio, ratio) <= 1e-5


def test_the_edited_mlp_answers_the_prompt_with_the_value(results, model, requests):
    """All edits in one forward pass, at the last subject token of each bare prompt."""
    inputs = tokenize_requests(model.tokenizer, requests, ["{}"], FactToken.SUBJECT_LAST, 64)
    batch = jax.tree.map(lambda rows: rows[:3], inputs.batch)  # without the essence rows

    def outputs(deltas):
        values = forward.capture(
            model.params, model.config, batch, (Site.MLP_OUT,), stop=LAYER + 1, deltas=deltas
        )
        return values[Site.MLP_OUT][LAYER, np.arange(3), inputs.targets.fact[0]]

    result = results[KeyMode.REFERENCE]
    assert relative_error(outputs(result.deltas), result.layers[0].value) <= 1e-5
    assert relative_error(outputs(None), result.layers[0].value) > 0.1


def test_the_model_is_not_changed(model, requests, templates, moments):
    before = jax.tree.map(np.array, model.params)
    deltas = rome.compute(
        model, requests, MODES[KeyMode.REFERENCE], second_moments=moments, templates=templates
    ).deltas
    apply_delta(model.params, deltas[0])
    assert_same_params(model.params, before)


def test_compute_deltas_are_those_of_compute(model, requests, templates, moments, results):
    deltas = rome.compute_deltas(
        model, requests, MODES[KeyMode.REFERENCE], second_moments=moments, templates=templates
    )
    jax.tree.map(np.testing.assert_array_equal, deltas, results[KeyMode.REFERENCE].deltas)


# Chunks, programs, templates


def test_chunks_do_not_change_the_result(model, requests, templates, moments, results):
    """Two requests and one: the second chunk is filled up, and what fills it is dropped."""
    chunked = rome.compute(
        model,
        requests,
        MODES[KeyMode.REFERENCE],
        second_moments=moments,
        templates=templates,
        chunk_size=2,
    )
    whole = results[KeyMode.REFERENCE]
    assert len(chunked.deltas) == 3
    assert jax.tree.structure(chunked) == jax.tree.structure(whole)
    for n in range(3):
        for name in ("left", "right"):
            actual, expected = (getattr(r.deltas.updates[0], name)[n] for r in (chunked, whole))
            assert relative_error(actual, expected) <= 1e-4
        actual, expected = (r.layers[0] for r in (chunked, whole))
        assert relative_error(actual.value[n], expected.value[n]) <= 1e-4
        np.testing.assert_allclose(
            actual.optimization.loss[n], expected.optimization.loss[n], rtol=1e-5
        )
    assert chunked.layers[0].optimization.steps.tolist() == [4, 4, 4]


@pytest.mark.parametrize("mode", KeyMode)
def test_a_batch_is_its_requests_one_at_a_time(mode, model, requests, templates, moments, results):
    whole = results[mode]
    for n, request in enumerate(requests):
        alone = rome.compute(
            model,
            [request],
            MODES[mode],
            second_moments=moments,
            templates=templates,
            check_answers=False,
        )
        for actual, expected in (
            (alone.layers[0].u[0], whole.layers[0].u[n]),
            (alone.layers[0].value[0], whole.layers[0].value[n]),
            (dense(alone.deltas[0].updates[0]), dense(whole.deltas[n].updates[0])),
        ):
            assert relative_error(actual, expected) <= 1e-4, request


def test_other_requests_of_the_same_sizes_compile_nothing(
    model, requests, templates, moments, results
):
    others = [
        EditRequest("{} is in the home of", "The Space Needles", "Rome"),
        EditRequest("The native tongue of {} is", "Slavoj Žižek", "Chinese"),
        EditRequest("{} is made in", "Linux XP", "a"),
    ]
    old, new = (
        tokenize_requests(model.tokenizer, r, templates, FactToken.SUBJECT_LAST, 64)
        for r in (requests, others)
    )
    assert jax.tree.map(np.shape, old) == jax.tree.map(np.shape, new)
    assert (old.batch.mask.sum(1) != new.batch.mask.sum(1)).any()
    sizes = [f._cache_size() for f in (_optimize, layer_states)]
    assert min(sizes) > 0
    again = rome.compute(
        model, others, MODES[KeyMode.REFERENCE], second_moments=moments, templates=templates
    )
    assert [f._cache_size() for f in (_optimize, layer_states)] == sizes
    assert relative_error(again.layers[0].value, results[KeyMode.REFERENCE].layers[0].value) > 0.01
    swept = dataclasses.replace(
        MODES[KeyMode.CONSISTENT], v_lr=0.1, kl_factor=0.2, clamp_norm_factor=2.0
    )
    other = rome.compute(model, others, swept, second_moments=moments, templates=templates)
    assert [f._cache_size() for f in (_optimize, layer_states)] == sizes, "a sweep compiles once"
    assert relative_error(other.layers[0].value, again.layers[0].value) > 1e-3


def test_templates_are_sampled_with_the_key(
    model, requests, templates, moments, results, monkeypatch
):
    asked = []

    def sample(*arguments):
        asked.append(arguments)
        return templates

    monkeypatch.setattr(contexts, "sample_templates", sample)
    config, key = MODES[KeyMode.REFERENCE], jax.random.key(3)
    deltas = rome.compute_deltas(model, requests, config, second_moments=moments, key=key)
    assert asked == [(model, key, ((5, 10), (10, 10)))]
    jax.tree.map(np.testing.assert_array_equal, deltas, results[KeyMode.REFERENCE].deltas)


# From params to params


def test_edit_is_pure_and_goes_into_a_jit_of_ones_own(model, requests, templates, moments, results):
    config = MODES[KeyMode.REFERENCE]
    inputs = tokenize_requests(model.tokenizer, requests[:1], templates, config.fact_token, 64)
    factors = {LAYER: moments[LAYER].factor}
    edit = jax.jit(lambda params, factors: rome.edit(params, model.config, inputs, config, factors))
    before = jax.tree.map(np.array, model.params)
    assert "callback" not in str(edit.trace(model.params, factors).jaxpr)
    edited = edit(model.params, factors)
    assert_same_params(model.params, before)
    kernel, old, new = (
        np.asarray(params["blocks"]["mlp"]["down"]["kernel"], np.float64)
        for params in (
            model.params,
            edited,
            apply_delta(model.params, results[KeyMode.REFERENCE].deltas[0]),
        )
    )
    assert relative_error(old - kernel, new - kernel) <= 1e-4
    assert (old[LAYER] != kernel[LAYER]).any()


def test_a_jit_asks_for_the_factor(model, requests, templates, moments):
    config = MODES[KeyMode.REFERENCE]
    inputs = tokenize_requests(model.tokenizer, requests[:1], templates, config.fact_token, 64)
    with pytest.raises(TypeError, match="SecondMoment"):
        jax.eval_shape(lambda p: rome.edit(p, model.config, inputs, config, moments), model.params)


def test_edit_takes_one_request(model, requests, templates, moments):
    config = MODES[KeyMode.REFERENCE]
    inputs = tokenize_requests(model.tokenizer, requests, templates, config.fact_token, 64)
    with pytest.raises(ValueError, match="inputs hold 3 requests"):
        rome.edit(model.params, model.config, inputs, config, moments)


# In sequence


def test_a_sequence_computes_each_edit_on_the_model_so_far(model, requests, templates, moments):
    options = {"second_moments": moments, "templates": templates}
    before = jax.tree.map(np.array, model.params)
    params = model.params
    for count, (edited, result) in enumerate(
        rome.compute_sequence(model, requests, CONFIG, **options)
    ):
        by_hand = rome.compute(
            model.replace(params=params), requests[count : count + 1], CONFIG, **options
        )
        for actual, expected in zip(jax.tree.leaves(result), jax.tree.leaves(by_hand), strict=True):
            np.testing.assert_array_equal(actual, expected)
        params = apply_delta(params, by_hand.deltas[0])
        assert_same_params(edited.params, params)
    assert count == 2
    assert_same_params(model.params, before)
    independent = rome.compute(model, requests[2:], CONFIG, **options)
    assert relative_error(result.deltas.updates[0].right, independent.deltas.updates[0].right) > 0.1


def test_models_of_a_sequence_stay_valid(model, requests, templates, moments):
    options = {"second_moments": moments, "templates": templates, "check_answers": False}
    steps = list(rome.compute_sequence(model, requests, CONFIG, **options))
    params = model.params
    for edited, result in steps:
        params = apply_delta(params, result.deltas[0])
        assert_same_params(edited.params, params)
    donated = list(rome.compute_sequence(model, requests, CONFIG, **options, donate=True))
    kernels = [edited.params["blocks"]["mlp"]["down"]["kernel"] for edited, _ in donated]
    assert [kernel.is_deleted() for kernel in kernels] == [True, True, False]
    assert_same_params(donated[-1][0].params, params)


def test_a_sequence_samples_templates_once_from_the_unedited_model(
    model, requests, templates, moments, monkeypatch
):
    asked = []

    def sample(*arguments):
        asked.append(arguments)
        return templates

    monkeypatch.setattr(contexts, "sample_templates", sample)
    for _ in rome.compute_sequence(
        model, requests[:2], CONFIG, second_moments=moments, key=jax.random.key(3)
    ):
        pass
    assert [arguments[0] for arguments in asked] == [model]


# Several layers


def test_a_second_layer_sees_the_edit_of_the_first(model, requests, templates, moments):
    options = {"second_moments": moments, "templates": templates}
    config = dataclasses.replace(CONFIG, layers=(1, 0))
    result = rome.compute(model, requests, config, **options)
    assert [edit.layer for edit in result.layers] == [0, 1]
    first, second = result.deltas.updates
    assert [first.layer.tolist(), second.layer.tolist()] == [[0] * 3, [1] * 3]

    for n, request in enumerate(requests):
        changed = model.replace(params=apply_delta(model.params, Delta((first,))[n]))
        # All three, so that it is one program; this model has only the n-th one's edit.
        by_hand = rome.compute(changed, requests, CONFIG, **options).deltas.updates[0]
        for name in ("left", "right"):
            actual, expected = (getattr(update, name)[n] for update in (second, by_hand))
            assert relative_error(actual, expected) <= 1e-4, request
    unaware = rome.compute(model, requests, CONFIG, **options).deltas.updates[0]
    assert relative_error(second.left, unaware.left) > 0.01
    assert relative_error(second.right, unaware.right) > 0.01


# Explosions


def compute_again(model, requests, templates, moments, check_answers=False):
    return rome.compute(
        model,
        requests,
        MODES[KeyMode.REFERENCE],
        second_moments=moments,
        templates=templates,
        check_answers=check_answers,
    )


def test_edits_that_fail_are_said_in_one_warning(model, requests, templates, moments):
    with pytest.warns(EditWarning) as caught:
        result = compute_again(model, requests, templates, moments, check_answers=True)
    assert result.is_answer.tolist() == [False] * 3
    (message,) = (str(warning.message) for warning in caught)
    assert message.startswith("3 of 3 edits failed: target_new=")
    assert "is not the model's answer to" in message and "(probability " in message
    assert caught[0].filename == __file__, "the warning points at the caller"


@pytest.mark.filterwarnings("default:the edit of")
def test_an_exploding_edit_is_named(model, requests, templates, moments, results, monkeypatch):
    ratios = np.asarray(results[KeyMode.REFERENCE].layers[0].norm_ratio)
    worst = int(ratios.argmax())
    monkeypatch.setattr(rome, "EXPLOSION_RATIO", float(np.sort(ratios)[-2:].mean()))
    with pytest.warns(UserWarning, match="KeyMode.CONSISTENT") as caught:
        compute_again(model, requests, templates, moments)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 1
    assert repr(requests[worst].subject) in messages[0]
    assert "layer 1" in messages[0]
    assert caught[0].filename == __file__, "the warning points at the caller"


def test_a_sound_edit_warns_of_nothing(model, requests, templates, moments, monkeypatch):
    monkeypatch.setattr(rome, "EXPLOSION_RATIO", float("inf"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compute_again(model, requests, templates, moments)


def altered(results, **changes):
    """A result that warns of nothing, with changes to its one layer."""
    result = results[KeyMode.REFERENCE]
    edit = result.layers[0].replace(**({"norm_ratio": jnp.full(3, 0.1)} | changes))
    return result.replace(layers=(edit,))


def test_an_edit_that_is_not_a_number_is_named(requests, results):
    result = altered(results, norm_ratio=jnp.array([0.1, jnp.nan, 0.2]))
    with collected() as found:
        rome._warn(result, requests, CONFIG, 2)
    (warning,) = found
    assert str(warning).startswith("1 of 3 edits are too large: the edit of 'Slavoj Žižek'")
    assert str(warning).endswith("; try key_mode=KeyMode.CONSISTENT or another layer.")
    consistent = dataclasses.replace(CONFIG, key_mode=KeyMode.CONSISTENT)
    with collected() as found:
        rome._warn(result, requests, consistent, 2)
    assert str(found[0]).endswith("; try another layer.")


def test_all_edits_that_explode_are_named_in_one_warning(requests, results):
    result = altered(results, norm_ratio=jnp.array([20.0, 0.1, 50.0]))
    result = result.replace(layers=(*result.layers, result.layers[0].replace(layer=2)))
    with collected() as found:
        rome._warn(result, requests, CONFIG, 2)
    (warning,) = found
    assert str(warning).startswith("2 of 3 edits are too large: the edit of ")
    assert repr(requests[2].subject) in str(warning) and "changes layer 1 by 50 " in str(warning)


def test_a_target_that_is_the_present_answer_is_named(requests, results):
    present = jnp.array([False, True, False])
    with collected() as found:
        rome._warn(altered(results).replace(was_answer=present), requests, CONFIG, 2)
    (warning,) = found
    assert re.search("'English' is already the model's answer.*Slavoj Žižek", str(warning))
