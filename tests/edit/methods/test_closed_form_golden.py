"""MEMIT, AlphaEdit, EMMET, PMET, RECT and PRUNE against the numbers of their authors' code.

The tests start from the texts of requests and end at weights and logits.

Tolerances of max |a - b| / max |b| are those of tests/golden/README.md, from reruns of the authors' code in float64.
"""

import dataclasses
import functools

import numpy as np
import pytest

from rome_jax.data.tokens import pad
from rome_jax.edit.config import MethodName
from rome_jax.edit.delta import apply_delta, dense, weight_of
from rome_jax.edit.methods import emmet, memit, pmet
from rome_jax.edit.modifiers import compress
from rome_jax.edit.resources import Resources, read_second_moments
from rome_jax.edit.sequential import make_editor
from rome_jax.edit.solver import associate
from rome_jax.edit.spread_config import Modifier
from rome_jax.edit.stages import inputs as inputs_stage
from rome_jax.edit.stages.inputs import tokenize_requests
from rome_jax.edit.stages.states import optimize_states
from rome_jax.models import forward
from rome_jax.models.interventions import Leaf
from tests.golden_cases import (
    GOLDEN,
    editor_batches,
    editor_config,
    editor_method,
    editor_templates,
    editor_tolerance,
    read_case,
    rome_moments,
)

CASES = sorted(
    path.stem
    for kind in ("memit", "alphaedit", "emmet", "pmet")
    for path in GOLDEN.glob(f"{kind}_gpt*.npz")
)
FORMS = {
    MethodName.MEMIT: memit.MEMIT,
    MethodName.EMMET: emmet.EMMET,
    MethodName.PMET: pmet.PMET,
}
TARGETS, LOGITS = 5e-4, 5e-5
# All cases share shapes, and so programs: these numbers of columns hold each of them.
PREFIX, SUFFIX = 40, 24


@pytest.fixture(autouse=True)
def shared_shapes(monkeypatch):
    monkeypatch.setattr(inputs_stage, "prefix_size", lambda first: PREFIX)
    monkeypatch.setattr(inputs_stage, "suffix_size", lambda first, last: SUFFIX)


def assert_close(actual, expected, tolerance, what):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, what
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"{what}: {error:.2e}"


def check_course(case, own, found, index):
    terms = (found.loss, found.nll, found.kl, found.weight_decay)
    for name, actual in zip(("loss", "nll", "kl", "wd"), terms, strict=True):
        values = case.arrays[f"{own}step_{name}"]
        count, actual = len(values), np.asarray(actual[index])
        assert np.isnan(actual[count:]).all(), "it stopped at the same evaluation"
        # KL and weight decay are small against the other terms, so the size of their own values bounds them.
        small = name in ("kl", "wd")
        tolerance = np.maximum(1e-5, 5e-4 * np.abs(values)) if small else 1e-4
        assert (np.abs(actual[:count] - values) <= tolerance).all(), name


@functools.cache
def written(name, golden_model):
    """Runs a case batch by batch: models before each batch, what was written, and the final model and state."""
    case = read_case(name)
    model = golden_model(case.info["model"])
    config = editor_config(case)
    return run(case, model, config, rome_moments(model, config.layers))


def run(case, model, config, moments):
    """As `written`, with these hyperparameters and second moments."""
    editor = make_editor(editor_method(case), config)
    state = editor.init(model, Resources(moments), templates=editor_templates(case))
    steps = []
    for _, requests in editor_batches(case):
        before = model
        delta, state = editor.update(state, model, requests)
        model = model.replace(params=apply_delta(model.params, delta))
        steps.append((before, delta))
    return steps, model, state


@pytest.mark.parametrize("name", CASES)
def test_an_editor_repeats_the_authors_code(name, golden_model):
    """ΔW of every batch and layer, and the logits in the end; earlier batches are in the weights."""
    case = read_case(name)
    steps, model, _ = written(name, golden_model)
    for (prefix, _), (_, delta) in zip(editor_batches(case), steps, strict=True):
        for update in delta.updates:
            what = f"{prefix}l{int(update.layer)}_upd"
            assert_close(dense(update), case.arrays[what], editor_tolerance(case), what)
    requests = [request for _, batch in editor_batches(case) for request in batch]
    for logits, request in zip(case.arrays["post_logits"], requests, strict=True):
        ids = model.tokenizer(request.text)["input_ids"]
        out = forward.logits(model.params, model.config, pad([ids], multiple=32))
        assert_close(out[0, len(ids) - 1], logits, LOGITS, "post_logits")


@pytest.mark.parametrize("name", [case for case in CASES if not case.startswith("pmet")])
def test_z_and_its_course_repeat_the_authors_code(name, golden_model):
    case = read_case(name)
    config = editor_config(case)
    steps, *_ = written(name, golden_model)
    for (prefix, requests), (model, _) in zip(editor_batches(case), steps, strict=True):
        inputs = tokenize_requests(
            model.tokenizer, requests, editor_templates(case), config.fact_token, 256
        )
        z, found = optimize_states(model.params, model.config, inputs, config)
        for index in range(len(requests)):
            own = f"{prefix}z{index}_"
            check_course(case, own, found, index)
            assert_close(found.delta[index], case.arrays[own + "delta_final"], TARGETS, "delta")
            assert_close(z[index], case.arrays[own + "z"], 1e-4, "z")


@pytest.mark.parametrize("name", [case for case in CASES if not case.startswith("alphaedit")])
def test_the_solve_repeats_the_authors_code_to_float32(name, golden_model):
    """From the recorded keys and residuals, so that only the closed form can differ."""
    case = read_case(name)
    config, model = editor_config(case), golden_model(case.info["model"])
    form = FORMS[editor_method(case)]
    for prefix, requests in editor_batches(case):
        # The authors' code rounds the second moments to float32.
        rounded = {
            layer: dataclasses.replace(moment, mean=moment.mean.astype(np.float32))
            for layer, moment in rome_moments(model, config.layers).items()
        }
        penalties = form.penalties(config, rounded)
        for index, layer in enumerate(config.layers):
            keys = case.arrays[f"{prefix}l{layer}_K"].T
            if form is pmet.PMET:  # its file holds the whole residual, not the share of the layer
                whole = case.arrays[f"{prefix}l{layer}_targets"].T
                residual = whole / form.divisor(len(config.layers) - index)
            else:
                residual = case.arrays[f"{prefix}l{layer}_resid"].T
            left = associate(keys, penalties[layer], form.slack(config, len(requests))).left
            assert_close(left.T @ residual, case.arrays[f"{prefix}l{layer}_upd"], 1e-6, layer)


def upper(matrix):
    return matrix[np.triu_indices(len(matrix))]


@pytest.mark.parametrize("name", [case for case in CASES if case.startswith("alphaedit")])
def test_the_null_space_and_the_protected_keys_are_those_of_alphaedit(name, golden_model):
    case = read_case(name)
    config, (steps, _, state) = editor_config(case), written(name, golden_model)
    for layer, rank in zip(config.layers, case.info["P_rank"], strict=True):
        penalty = state.penalties[layer]
        assert penalty.basis.shape[1] == rank
        projection = upper(penalty.basis @ penalty.basis.T)
        assert_close(projection, case.arrays[f"l{layer}_P_triu"], 2e-4, "P")
        prefixes = [prefix for prefix, _ in editor_batches(case)]
        keys = np.concatenate([case.arrays[f"{p}l{layer}_K_post"] for p in prefixes], axis=1)
        expected = penalty.whiten(keys.T)
        past = state.past[layer]
        gram = past.gram if past.gram is not None else past.keys.T.astype(float) @ past.keys
        assert_close(gram, expected.T @ expected, 5e-5, "K_p")
    if len(steps) > 1:
        cache = case.arrays["l2_cache_c_final_triu"]
        keys = np.concatenate([case.arrays[f"{p}l2_K_post"] for p in prefixes], axis=1)
        assert_close(upper(keys @ keys.T), cache, 5e-5, "the stored keys are those of the cache")


@pytest.mark.needs("torch")
@pytest.mark.parametrize("name", [case for case in CASES if case.startswith("alphaedit")])
def test_the_authors_projections_take_the_place_of_second_moments(name, golden_model, tmp_path):
    import torch

    case = read_case(name)
    model = golden_model(case.info["model"])
    config = dataclasses.replace(editor_config(case), nullspace_threshold=1e-9)  # not used
    projections = []
    for layer in config.layers:
        projection = np.zeros((model.config.mlp_width,) * 2, np.float32)
        projection[np.triu_indices(len(projection))] = case.arrays[f"l{layer}_P_triu"]
        projections.append(projection + np.triu(projection, 1).T)
    path = tmp_path / "null_space_project.pt"
    torch.save(torch.from_numpy(np.stack(projections)), path)
    spaces = read_second_moments(str(path), model, config)
    steps, _, _ = run(case, model, config, spaces)
    for (prefix, _), (_, delta) in zip(editor_batches(case), steps, strict=True):
        for update in delta.updates:
            what = f"{prefix}l{int(update.layer)}_upd"
            assert_close(dense(update), case.arrays[what], editor_tolerance(case), what)


def test_both_targets_of_pmet_repeat_the_authors_code(golden_model):
    case = read_case("pmet_gpt2_batch2")
    config, model = editor_config(case), golden_model("gpt2")
    ((_, requests),) = editor_batches(case)
    inputs = tokenize_requests(
        model.tokenizer, requests, editor_templates(case), config.fact_token, 256
    )
    target, found = pmet.PMET.optimize(model.params, model.config, inputs, config)
    for index in range(len(requests)):
        check_course(case, f"z{index}_", found, index)
        for part, name in enumerate(("attn", "mlp")):
            delta = found.delta[index, part]
            assert_close(delta, case.arrays[f"z{index}_delta_{name}"], TARGETS, name)
        assert_close(target[index], case.arrays[f"z{index}_z_mlp"], 1e-4, "z")


def test_rect_keeps_the_changes_that_the_authors_code_keeps(golden_model):
    case = read_case("rect_gpt2_batch2")
    config, model = editor_config(case, modifiers=(Modifier.RECT,)), golden_model("gpt2")
    ((_, requests),) = editor_batches(case)
    delta = memit.compute_joint_delta(
        model,
        requests,
        config,
        second_moments=rome_moments(model, config.layers),
        templates=editor_templates(case),
        check_answers=False,
    )
    (update,) = delta.updates
    weight = "transformer.h.2.mlp.c_proj.weight"
    change, expected = dense(update), case.arrays[f"wdelta.{weight}"]
    mask = np.unpackbits(case.arrays[f"mask_packed.{weight}"])[: change.size].reshape(change.shape)
    different = (np.asarray(change) != 0) != mask
    assert different.sum() <= 5
    assert np.abs(np.asarray(change) - expected)[~different].max() <= 2e-4 * np.abs(expected).max()


def test_prune_compresses_as_the_authors_code(golden_model):
    case = read_case("prune_gpt2_seq")
    weight = "transformer.h.2.mlp.c_proj.weight"
    model = golden_model("gpt2")
    kernel = np.asarray(weight_of(model.params, 2, Leaf.MLP_DOWN))
    change, expected = (
        case.arrays[f"{name}.{weight}"] for name in ("delta_before_prune", "pruned_delta")
    )
    assert_close(compress(change, kernel), expected, 2e-4, "from the recorded change")

    config = editor_config(case, modifiers=(Modifier.PRUNE,))
    editor = memit.make_editor(config)
    moments = rome_moments(model, config.layers)
    state = editor.init(model, Resources(moments), templates=editor_templates(case))
    for _, requests in editor_batches(case):
        delta, state = editor.update(state, model, requests)
        model = model.replace(params=apply_delta(model.params, delta))
    last = editor.finish(state, model)
    finished = apply_delta(model.params, last)
    # The authors' code adds the compressed change to the change itself; the edited model holds it alone.
    whole = weight_of(finished, 2, Leaf.MLP_DOWN) - kernel
    assert_close(whole, expected, 2e-4, "from the requests")
