"""Editors with state: pure, independent of order and chunks, and protecting what earlier batches wrote."""

import dataclasses

import jax
import numpy as np
import pytest

from rome_jax.edit.config import MethodName, SolverDevice
from rome_jax.edit.delta import apply_delta, dense, weight_of
from rome_jax.edit.method import METHODS
from rome_jax.edit.methods import alphaedit, encore, memit
from rome_jax.edit.modifiers import anchor_norm, keep_largest
from rome_jax.edit.penalty import PastKeys
from rome_jax.edit.resources import Resources
from rome_jax.edit.sequential import make_editor
from rome_jax.edit.solver import associate
from rome_jax.edit.spread_config import Modifier, SpreadConfig
from rome_jax.edit.stages.chunks import check_moments
from rome_jax.edit.stages.inputs import tokenize_requests
from rome_jax.edit.stages.states import optimize_states, read_outputs, read_states
from rome_jax.models.interventions import Delta, Leaf
from tests.models.checkpoints import assert_same_params

FAMILY = tuple(
    name for name, method in METHODS.items() if issubclass(method.config_type, SpreadConfig)
)
REMEMBERING = tuple(name for name in FAMILY if METHODS[name].module.compute.__self__.remembers)


def config_of(name, **changes):
    """As many steps as in the tests of MEMIT, which then share their programs, and weights that leave an effect."""
    own = {
        MethodName.ALPHAEDIT: {"nullspace_threshold": 1.0, "L2": 0.5},
        MethodName.ENCORE: {"mom2_update_weight": 2.0, "update_norm_lambda": 0.5},
        MethodName.EMMET: {"mom2_update_weight": 2.0, "emmet_lambda": 0.3},
    }.get(name, {"mom2_update_weight": 2.0})
    common = {"layers": (0, 1), "v_num_grad_steps": 4, "loss_threshold": 0.0}
    return METHODS[name].config_type(**{**common, **own, **changes})


def started(name, model, moments, templates, chunk_size=8, **changes):
    editor = make_editor(name, config_of(name, **changes), chunk_size=chunk_size)
    return editor, editor.init(model, Resources(moments), templates=templates)


def changes_of(delta):
    return {int(update.layer): np.asarray(dense(update), np.float64) for update in delta.updates}


def assert_equal_changes(actual, expected, tolerance):
    actual, expected = changes_of(actual), changes_of(expected)
    assert actual.keys() == expected.keys()
    for layer, change in expected.items():
        scale = np.abs(change).max()
        assert np.abs(actual[layer] - change).max() <= tolerance * scale, layer


# Purity


@pytest.mark.parametrize("name", FAMILY)
def test_an_update_changes_neither_state_nor_model(name, model, requests, templates, moments):
    editor, state = started(name, model, moments, templates)
    before = jax.tree.map(np.array, model.params)
    first, after = editor.update(state, model, requests[:2])
    again, _ = editor.update(state, model, requests[:2])
    assert_equal_changes(again, first, 0)
    assert state.num_edits == 0 and not state.past
    assert after.num_edits == 2 and max(after.residuals.values()) <= 1e-6
    assert bool(after.past) == (name in REMEMBERING)
    assert_same_params(model.params, before)
    assert editor.finish(after, model) is None


@pytest.mark.parametrize("name", FAMILY)
def test_the_first_update_is_the_joint_edit(name, model, requests, templates, moments):
    editor, state = started(name, model, moments, templates)
    delta, _ = editor.update(state, model, requests)
    joint = METHODS[name].module.compute_joint_delta(
        model,
        requests,
        config_of(name),
        second_moments=moments,
        templates=templates,
        check_answers=False,
    )
    assert_equal_changes(delta, joint, 0)


@pytest.mark.parametrize("name", FAMILY)
def test_neither_order_nor_chunks_change_an_update(name, model, requests, templates, moments):
    editor, state = started(name, model, moments, templates)
    delta, _ = editor.update(state, model, requests)
    permuted, _ = editor.update(state, model, requests[::-1])
    assert_equal_changes(permuted, delta, 1e-4)
    editor, state = started(name, model, moments, templates, chunk_size=2)
    chunked, _ = editor.update(state, model, requests)
    assert_equal_changes(chunked, delta, 1e-4)


@pytest.mark.parametrize(
    ("name", "modifier"),
    [(name, None) for name in FAMILY] + [(MethodName.MEMIT, modifier) for modifier in Modifier],
)
def test_independent_edits_are_first_updates_of_one_request(
    name, modifier, model, requests, templates, moments
):
    modifiers = () if modifier is None else (modifier,)
    deltas = METHODS[name].compute_deltas(
        model,
        requests,
        config_of(name, modifiers=modifiers),
        second_moments=moments,
        templates=templates,
    )
    editor, state = started(name, model, moments, templates, modifiers=modifiers)
    for index in (0, 2):
        delta, after = editor.update(state, model, requests[index : index + 1])
        last = editor.finish(after, model.replace(params=apply_delta(model.params, delta)))
        whole = changes_of(delta)
        for layer, change in ({} if last is None else changes_of(last)).items():
            whole[layer] = whole[layer] + change
        for layer, change in changes_of(deltas[index]).items():
            # Between the changes that RECT keeps and those that it drops, rounding decides.
            off = np.abs(change - whole[layer]) > 1e-4 * np.abs(whole[layer]).max()
            assert off.sum() <= (5 if modifier is Modifier.RECT else 0)


@pytest.mark.parametrize("name", FAMILY)
def test_longer_steps_do_not_depend_on_chunks(name, model, requests, templates, moments):
    """Requests whose steps are taken back do not hold up the others."""
    config = config_of(name, v_first_step=64.0, v_num_grad_steps=6)
    options = {"second_moments": moments, "templates": templates, "check_answers": False}
    whole = METHODS[name].module.compute(model, requests, config, **options)
    losses = np.asarray(whole.losses)
    rejected = (np.diff(losses) == 0).any(1)
    assert rejected.any() and np.isfinite(losses).all()
    if (
        name is not MethodName.PMET
    ):  # which weighs the likelihood less once the target is the answer
        assert (np.diff(losses) <= 0).all()
    parts = METHODS[name].module.compute(model, requests[::-1], config, chunk_size=2, **options)
    np.testing.assert_allclose(parts.losses[::-1], losses, rtol=1e-4)


# Complaints about shared state in EasyEdit (github.com/zjunlp/EasyEdit/issues)


def test_easyedit_613_independent_edits_leave_no_keys_behind(model, requests, templates, moments):
    """There, a global cache_c grows with each edit, and so edits depend on earlier calls."""
    config = config_of(MethodName.ALPHAEDIT)
    options = {"second_moments": moments, "templates": templates, "check_answers": False}
    first = alphaedit.compute_deltas(model, requests[:1], config, **options)
    editor, state = started(MethodName.ALPHAEDIT, model, moments, templates)
    editor.update(state, model, requests[1:])
    again = alphaedit.compute_deltas(model, requests[:1], config, **options)
    assert_equal_changes(again[0], first[0], 0)


def test_easyedit_643_the_unedited_model_stays_for_comparisons(model, requests, templates, moments):
    """There, edits in sequence overwrite the model that locality is measured against."""
    before = jax.tree.map(np.array, model.params)
    editor, state = started(MethodName.ALPHAEDIT, model, moments, templates)
    edited = model
    for request in requests:
        delta, state = editor.update(state, edited, [request])
        edited = edited.replace(params=apply_delta(edited.params, delta))
    assert_same_params(model.params, before)
    changed = weight_of(edited.params, 0, Leaf.MLP_DOWN) - weight_of(model.params, 0, Leaf.MLP_DOWN)
    assert np.abs(changed).max() > 0


@pytest.mark.parametrize("name", FAMILY)
def test_easyedit_465_the_edited_model_holds_the_whole_batch(
    name, model, requests, templates, moments
):
    """There, batch_edit returns a model from which the edits of the batch have been removed."""
    editor, state = started(name, model, moments, templates)
    delta, state = editor.update(state, model, requests)
    edited = model.replace(params=apply_delta(model.params, delta))
    assert state.num_edits == len(requests)
    for layer, change in changes_of(delta).items():
        before, after = (weight_of(m.params, layer, Leaf.MLP_DOWN) for m in (model, edited))
        assert np.abs(change).max() > 0
        assert np.abs(after - before - change).max() <= 1e-6 * np.abs(after).max()


@pytest.mark.parametrize("name", FAMILY)
def test_easyedit_640_sequences_that_alternate_do_not_meet(
    name, model, requests, templates, moments
):
    """Anything that a batch leaves for another sequence would show; there, templates and past keys are globals."""
    other_moments = {
        layer: dataclasses.replace(moment, mean=np.flip(moment.mean).copy())
        for layer, moment in moments.items()
    }
    other_model = model.replace(params=jax.tree.map(lambda leaf: leaf * 1.1, model.params))
    sequences = [(model, moments, templates), (other_model, other_moments, templates[:2])]
    batches = [requests[:2], requests[2:], requests[:1]]

    def steps(model, moments, templates):
        editor, state = started(name, model, moments, templates)
        for batch in batches:
            delta, state = editor.update(state, model, batch)
            model = model.replace(params=apply_delta(model.params, delta))
            yield delta, state

    alone = [list(steps(*sequence)) for sequence in sequences]
    together = zip(*(steps(*sequence) for sequence in sequences), strict=True)
    for index, pair in enumerate(together):
        for sequence, (delta, state) in enumerate(pair):
            expected, expected_state = alone[sequence][index]
            assert_equal_changes(delta, expected, 0)
            assert state.templates == expected_state.templates == tuple(sequences[sequence][2])
    assert np.abs(changes_of(pair[0][0])[0] - changes_of(pair[1][0])[0]).max() > 0


# What the methods promise


@pytest.mark.parametrize("name", REMEMBERING)
def test_the_penalty_of_a_later_batch_holds_earlier_keys(name, model, requests, templates, moments):
    """The second update is the equation with K_p, from keys that are read here on the weights of each layer."""
    editor, state = started(name, model, moments, templates)
    first, state = editor.update(state, model, requests[:2])
    edited = model.replace(params=apply_delta(model.params, first))
    second, _ = editor.update(state, edited, requests[2:])
    config = config_of(name)
    inputs = [
        tokenize_requests(model.tokenizer, part, templates, config.fact_token, 64)
        for part in (requests[:2], requests[2:])
    ]
    z, _ = optimize_states(edited.params, model.config, inputs[1], config)
    params = edited.params
    for index, layer in enumerate(config.layers):
        past = np.asarray(read_states(edited.params, model.config, inputs[0], layer, 1)[0])
        keys, h = map(np.asarray, read_states(params, model.config, inputs[1], layer, 1))
        if name is MethodName.ALPHAEDIT:
            basis = moments[layer].null_space(config.nullspace_threshold)
            matrix = past.T @ past + config.L2 * np.eye(len(basis))
            inverse = basis @ np.linalg.inv(basis.T @ matrix @ basis) @ basis.T
        else:
            old = config.mom2_update_weight * moments[layer].mean
            inverse = np.linalg.inv(
                old + past.T @ past + config.update_norm_lambda * np.eye(len(old))
            )
        solved = keys @ inverse
        left = np.linalg.solve(solved @ keys.T + np.eye(len(keys)), solved)
        change = left.T @ ((np.asarray(z) - h) / (2 - index))
        found = changes_of(second)[layer]
        assert np.abs(found - change).max() <= 1e-4 * np.abs(change).max()
        params = apply_delta(params, Delta((second.updates[index],)))


@pytest.mark.parametrize("name", REMEMBERING)
def test_the_accelerator_solves_as_the_host_does(
    name, model, requests, templates, moments, monkeypatch
):
    used = []

    def recorded(*arguments):
        used.append(associate(*arguments))
        return used[-1]

    monkeypatch.setattr("rome_jax.edit.methods.spread.associate", recorded)
    second = {}
    for device in SolverDevice:
        editor, state = started(name, model, moments, templates, solver_device=device)
        first, state = editor.update(state, model, requests[:2])
        edited = model.replace(params=apply_delta(model.params, first))
        used.clear()
        second[device], _ = editor.update(state, edited, requests[2:])
        assert [solution.device for solution in used] == [device, device]
    assert_equal_changes(second[SolverDevice.ACCELERATOR], second[SolverDevice.HOST], 1e-5)


def test_encore_stops_at_the_fourth_right_answer(golden_model, requests):
    """The model says "the" for the second request from the start, and never "Rome" for the first."""
    model = golden_model("gpt2")
    config = encore.ENCOREConfig((1,), v_num_grad_steps=6, loss_threshold=0.0)
    chosen = [requests[0], requests[2]]
    inputs = tokenize_requests(model.tokenizer, chosen, ["{}", "A. {}"], config.fact_token, 64)
    _, found = optimize_states(model.params, model.config, inputs, config)
    assert found.steps.tolist() == [6, 4]
    endless = dataclasses.replace(config, argmax_evaluations=0)
    _, whole = optimize_states(model.params, model.config, inputs, endless)
    assert whole.steps.tolist() == [6, 6]
    np.testing.assert_array_equal(found.loss[1, :4], whole.loss[1, :4])


def test_rect_reads_the_keys_of_alphaedit_again_when_the_past_ones_are_summed_up(
    model, requests, templates, moments
):
    """As many past keys as sum up, and then the keys of the weights after the batch, in the basis of the null space."""
    name = MethodName.ALPHAEDIT
    editor, state = started(name, model, moments, templates, modifiers=("RECT",))
    config = config_of(name)
    generator = np.random.default_rng(0)
    earlier = {}
    for layer, penalty in state.penalties.items():
        width = len(penalty.basis)
        keys = penalty.whiten(generator.standard_normal((width + 1, width)))
        earlier[layer] = PastKeys.none(penalty, width).add(keys, basis=penalty.basis)
    state = dataclasses.replace(state, past=earlier)
    delta, after = editor.update(state, model, requests)
    edited = apply_delta(model.params, delta)
    inputs = tokenize_requests(model.tokenizer, requests, templates, config.fact_token, 64)
    for layer, past in after.past.items():
        basis = state.penalties[layer].basis
        keys = np.asarray(read_states(edited, model.config, inputs, layer, 1)[0], np.float64)
        reduced = keys @ basis / np.sqrt(config.L2)
        expected = earlier[layer].gram + reduced.T @ reduced
        assert np.abs(past.gram - expected).max() <= 1e-5 * np.abs(reduced.T @ reduced).max()


def test_blue_needs_second_moments_of_the_layers_that_it_edits(model, moments):
    config = config_of(MethodName.MEMIT, layers=(0, 1, 2), modifiers=("BLUE",))
    check_moments(model, config, {layer: moments[layer] for layer in (0, 2)})
    with pytest.raises(ValueError, match="no second moment of layer 2"):
        check_moments(model, config, {layer: moments[layer] for layer in (0, 1)})


def test_nas_gives_outputs_the_norm_of_the_unedited_model(model, requests, templates, moments):
    """With one layer and hardly any penalty, the MLP's output becomes what z asks for."""
    config = config_of(
        MethodName.MEMIT,
        layers=(1,),
        modifiers=("NAS",),
        mom2_adjustment=False,
        mom2_update_weight=1e-8,
        clamp_norm_factor=0.05,
    )
    editor = memit.make_editor(config)
    state = editor.init(model, Resources(), templates=["{}"])
    inputs = tokenize_requests(model.tokenizer, requests, ["{}"], config.fact_token, 64)
    outputs = np.asarray(read_outputs(model.params, model.config, inputs, 1, 1)[1])
    delta, state = editor.update(state, model, requests)
    assert state.anchors == {1: pytest.approx(anchor_norm(outputs), rel=1e-6)}
    edited = apply_delta(model.params, delta)
    norms = np.linalg.norm(read_outputs(edited, model.config, inputs, 1, 1)[1], axis=1)
    np.testing.assert_allclose(norms, state.anchors[1], rtol=1e-3)


def test_rect_keeps_the_largest_relative_changes(model, requests, templates, moments):
    config = config_of(MethodName.MEMIT)
    options = {"second_moments": moments, "templates": templates, "check_answers": False}
    whole = memit.compute_joint_delta(model, requests, config, **options)
    kept = memit.compute_joint_delta(
        model, requests, dataclasses.replace(config, modifiers=("RECT",)), **options
    )
    for update, masked in zip(whole.updates, kept.updates, strict=True):
        weight = np.asarray(weight_of(model.params, int(update.layer), Leaf.MLP_DOWN))
        relative = np.abs(np.asarray(dense(update)) / weight)
        mask = np.asarray(masked.change) != 0
        assert mask.mean() == pytest.approx(0.4, abs=0.01)
        assert relative[mask].min() >= relative[~mask].max() * (1 - 1e-5)
        np.testing.assert_array_equal(masked.change, keep_largest(model.params, update).change)


def test_prune_bounds_the_singular_values_of_the_whole_change(model, requests, templates, moments):
    editor, state = started(
        *(MethodName.MEMIT, model, moments, templates),
        mom2_update_weight=1e-3,
        v_lr=20.0,
        clamp_norm_factor=1e3,
        modifiers=("PRUNE",),
    )
    edited = model
    for request in requests:
        delta, state = editor.update(state, edited, [request])
        edited = edited.replace(params=apply_delta(edited.params, delta))
    last = editor.finish(state, edited)
    finished = apply_delta(edited.params, last)
    for layer in (0, 1):
        unedited, before, after = (
            np.asarray(weight_of(params, layer, Leaf.MLP_DOWN))
            for params in (model.params, edited.params, finished)
        )
        largest = np.linalg.norm(unedited, 2)
        values = np.linalg.svd(before - unedited, compute_uv=False)
        expected = np.where(values > largest, largest + np.log(values / largest), values)
        assert values[0] > largest
        found = np.linalg.svd(after - unedited, compute_uv=False)
        np.testing.assert_allclose(found, expected, atol=1e-4 * values[0])


def test_requests_with_equal_keys_are_named_where_they_cannot_be_told_apart(
    model, requests, templates, moments
):
    twice = [requests[0], dataclasses.replace(requests[0], target_new="Paris")]
    config = config_of(MethodName.EMMET, emmet_lambda=0.0)
    with pytest.raises(ValueError, match=r"requests\[0\] and requests\[1\].*have equal keys"):
        METHODS[MethodName.EMMET].module.compute_joint_delta(
            model, twice, config, second_moments=moments, templates=templates
        )
