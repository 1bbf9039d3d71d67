"""Editors that begin at the δ of earlier edits: which ones, and what does not matter."""

import dataclasses

import numpy as np
import pytest

from rome_jax.data.request import EditRequest
from rome_jax.edit import warm_start
from rome_jax.edit.config import MethodName, ROMEConfig
from rome_jax.edit.delta import apply_delta, merge_deltas
from rome_jax.edit.editor_files import load_state, save_state
from rome_jax.edit.method import METHODS
from rome_jax.edit.resources import Resources
from rome_jax.edit.sequential import make_editor
from rome_jax.edit.stages import value as value_stage
from rome_jax.edit.warm_start import EarlierEdits, add_batch, find_starts
from tests.edit.methods.test_editors import FAMILY, assert_equal_changes, config_of

ALL = (*FAMILY, MethodName.ROME)
# Requests that share the padded shape of the others.
LATER = (
    EditRequest("{} is in the home of", "The Space Needles", "Rome"),
    EditRequest("The native tongue of {} is", "Slavoj Žižek", "Chinese"),
    EditRequest("{} is made in", "Linux XP", "the"),
)


def warm_config(name, **changes):
    changes = {"v_warm_start": True, **changes}
    if name is MethodName.ROME:
        return ROMEConfig((1,), v_num_grad_steps=4, loss_threshold=0.0, **changes)
    return config_of(name, **changes)


def start(name, model, moments, templates, chunk_size=8, **changes):
    editor = make_editor(name, warm_config(name, **changes), chunk_size=chunk_size)
    return editor, editor.init(model, Resources(moments), templates=templates)


def after_one_batch(name, model, requests, moments, templates, **options):
    """The editor, its state, and the model after a batch."""
    editor, state = start(name, model, moments, templates, **options)
    delta, state = editor.update(state, model, requests)
    return editor, state, model.replace(params=apply_delta(model.params, delta))


def rows(starts):
    """The starts [N, P, D] of a batch, which the chunks reorder, as sorted lists."""
    return sorted(np.ravel(one).tolist() for one in starts)


@pytest.fixture
def starts(monkeypatch):
    """The starts of all optimizations, in their order."""
    found, inner = [], value_stage._prepare_and_optimize

    def record(params, model_config, config, inputs, hidden, value, layer, shared, start, **rest):
        found.append(start)
        arguments = (params, model_config, config, inputs, hidden, value, layer, shared, start)
        return inner(*arguments, **rest)

    monkeypatch.setattr(value_stage, "_prepare_and_optimize", record)
    return found


@pytest.mark.parametrize("name", ALL)
def test_a_later_batch_begins_at_the_delta_of_the_same_target(
    name, model, requests, templates, moments, starts
):
    editor, state, edited = after_one_batch(name, model, requests, moments, templates)
    (earlier,) = state.earlier.values()
    parts = 2 if name is MethodName.PMET else 1
    width = model.config.width
    assert earlier.deltas.shape == (3, parts, width) and earlier.states.shape == (3, width)
    assert all(one is not None and not one.any() for one in starts)
    starts.clear()
    editor.update(state, edited, LATER)
    of_target = dict(zip(earlier.targets, earlier.deltas, strict=True))
    nothing = np.zeros((parts, width))
    assert rows(np.concatenate(starts)) == rows([of_target[" Rome"], of_target[" the"], nothing])


@pytest.mark.parametrize("name", ALL)
def test_a_batch_does_not_begin_at_its_own_edits(name, model, requests, templates, moments, starts):
    twice = [requests[0], LATER[0]]
    _, state, _ = after_one_batch(name, model, twice, moments, templates)
    assert not any(one.any() for one in starts)
    (earlier,) = state.earlier.values()
    assert earlier.targets == (" Rome", " Rome") and state.num_edits == 2


@pytest.mark.parametrize("name", FAMILY)
def test_neither_order_nor_chunks_change_a_later_update(name, model, requests, templates, moments):
    updates = []
    for chunk_size, step in ((8, 1), (8, -1), (2, 1)):
        editor, state, edited = after_one_batch(
            name, model, requests[::step], moments, templates, chunk_size=chunk_size
        )
        delta, state = editor.update(state, edited, LATER[::step])
        updates.append((delta, next(iter(state.earlier.values())).targets))
    for delta, targets in updates[1:]:
        assert_equal_changes(delta, updates[0][0], 1e-3)
        assert targets == updates[0][1]


@pytest.mark.parametrize("name", ALL)
def test_independent_edits_never_begin_at_another(name, model, requests, templates, moments):
    options = {"second_moments": moments, "templates": templates}
    results = [
        METHODS[name].compute_deltas(
            model, requests, warm_config(name, v_warm_start=warm), **options
        )
        for warm in (True, False)
    ]
    for one, other in zip(*(deltas.updates for deltas in results), strict=True):
        np.testing.assert_array_equal(one.right, other.right)


@pytest.mark.parametrize("name", ALL)
def test_an_editor_without_the_option_keeps_nothing(name, model, requests, templates, moments):
    _, state, _ = after_one_batch(name, model, requests, moments, templates, v_warm_start=False)
    assert state.earlier == {}


@pytest.mark.parametrize("name", [MethodName.ALPHAEDIT, MethodName.PMET, MethodName.ROME])
def test_a_state_that_was_saved_gives_the_same_next_update(
    name, model, requests, templates, moments, tmp_path
):
    editor, state, edited = after_one_batch(name, model, requests, moments, templates)
    fresh = editor.init(model, Resources(moments), templates=templates)
    read = load_state(save_state(tmp_path / "state.safetensors", state), fresh)
    expected, after = editor.update(state, edited, LATER)
    found, again = editor.update(read, edited, LATER)
    for one, other in zip(found.updates, expected.updates, strict=True):
        np.testing.assert_array_equal(one.left, other.left)
        np.testing.assert_array_equal(one.right, other.right)
    (one,), (other,) = again.earlier.values(), after.earlier.values()
    assert one.targets == other.targets
    np.testing.assert_array_equal(one.deltas, other.deltas)


def test_blue_keeps_the_deltas_of_each_layer(model, requests, templates, moments, starts):
    editor, state, edited = after_one_batch(
        MethodName.MEMIT, model, requests, moments, templates, modifiers=("BLUE",)
    )
    assert sorted(state.earlier) == [0, 1]
    starts.clear()
    editor.update(state, edited, LATER)
    for layer, found in enumerate(starts):
        deltas = state.earlier[layer].deltas
        assert state.earlier[layer].targets == (" English", " Rome", " the")
        assert rows(found) == rows([deltas[1], deltas[2], np.zeros_like(deltas[0])])


@pytest.mark.parametrize("name", [MethodName.MEMIT, MethodName.ROME])
def test_batches_of_the_same_shapes_compile_once(name, model, requests, templates, moments):
    """With longer steps, stops and starts together; whether an earlier edit has the target does not matter."""
    changes = {"v_first_step": 4.0, "argmax_evaluations": 2}
    editor, state, edited = after_one_batch(name, model, requests, moments, templates, **changes)
    fresh = editor.init(model, Resources(moments), templates=templates)
    editor.update(fresh, model, LATER)
    size = value_stage._optimize._cache_size()
    for batch in (LATER, requests):
        delta, state = editor.update(state, edited, batch)
        edited = edited.replace(params=apply_delta(edited.params, delta))
    other = make_editor(name, warm_config(name, **{**changes, "v_first_step": 8.0}))
    other.update(state, edited, requests)
    assert value_stage._optimize._cache_size() == size


def test_rome_writes_a_batch_one_after_another(model, requests, templates, moments):
    """As without the option, and from the δ of earlier batches alone."""
    editor, state, edited = after_one_batch(MethodName.ROME, model, requests, moments, templates)
    both, _ = editor.update(state, edited, LATER[:2])
    deltas, params = [], edited.params
    for request in LATER[:2]:
        delta, _ = editor.update(state, edited.replace(params=params), [request])
        deltas.append(delta)
        params = apply_delta(params, delta)
    assert_equal_changes(both, merge_deltas(deltas), 1e-5)


# The edits that are kept


def earlier_of(targets, states):
    requests = [EditRequest("{} is", f"S{n}", target) for n, target in enumerate(targets)]
    deltas = np.arange(1, len(targets) + 1, dtype=np.float32)[:, None, None] * np.ones((1, 1, 2))
    return add_batch({}, requests, {0: (np.asarray(states, np.float32), deltas)})


def test_the_nearest_state_decides_among_edits_of_a_target():
    earlier = earlier_of("abab", [[9, 1], [0, 1], [1, 3], [5, 1]])
    requests = [EditRequest("{} is", "T", target) for target in "abac"]
    states = np.array([[1, 0.2], [0, 3], [-1, 9], [1, 1]])
    found = find_starts(earlier, requests, 0, states, 1)
    assert found[:, 0, 0].tolist() == [1, 2, 3, 0]
    assert not find_starts(earlier, requests, 1, states, 1).any()
    assert not find_starts({}, requests, 0, states, 2).any()


def test_only_the_latest_edits_are_kept(monkeypatch):
    monkeypatch.setattr(warm_start, "MOST", 3)
    earlier = earlier_of("ab", [[1, 0], [0, 1]])
    requests = [EditRequest("{} is", "U", target) for target in "dc"]
    grown = add_batch(earlier, requests, {0: (np.eye(2), np.full((2, 1, 2), 7))})
    assert grown[0].targets == (" b", " c", " d") and earlier[0].targets == (" a", " b")
    assert grown[0].states.tolist() == [[0, 1], [0, 1], [1, 0]]
    assert grown[0].deltas.shape == (3, 1, 2) and grown[0].deltas.dtype == np.float32


def test_edits_of_another_method_are_refused():
    earlier = earlier_of("a", [[1, 0]])
    with pytest.raises(
        ValueError, match=r"has the shape \[1, 2\], and that of this editor \[2, 2\]"
    ):
        find_starts(earlier, [EditRequest("{} is", "T", "a")], 0, np.eye(2)[:1], 2)


@pytest.mark.parametrize("changes", [{"targets": ()}, {"states": np.zeros((1, 3))}])
def test_parts_that_do_not_belong_together_are_refused(changes):
    earlier = earlier_of("a", [[1, 0]])[0]
    assert isinstance(earlier, EarlierEdits)
    with pytest.raises(ValueError, match="do not belong together: give one of each per edit"):
        dataclasses.replace(earlier, **changes)
