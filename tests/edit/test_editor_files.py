"""Files of editor states: the same bits after reading, and refusal of what does not belong or is damaged."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.edit import editor_files
from rome_jax.edit.delta import apply_delta, merge_deltas
from rome_jax.edit.editor import EditorState
from rome_jax.edit.editor_files import (
    ChangedWeight,
    changed_weights,
    load_state,
    load_weights,
    read_about,
    save_state,
)
from rome_jax.edit.normalizer import Normalizer
from rome_jax.edit.penalty import PastKeys, Penalty
from rome_jax.edit.resources import Resources
from rome_jax.edit.warm_start import EarlierEdits
from rome_jax.files.safetensors_io import open_file, write
from rome_jax.models.interventions import Leaf, Part
from tests.saved import dense_edit, random_delta


@pytest.fixture(scope="module")
def model(shipped_model):
    return shipped_model("factworld-gpt2")


@pytest.fixture(scope="module")
def fresh():
    return EditorState(("{}", "The end. {}"), Resources(), {2: Penalty(1.0), 0: Penalty(2.0)})


@pytest.fixture(scope="module")
def state(model, fresh):
    """A state with everything that one can hold."""
    draw = np.random.default_rng(0).standard_normal
    normalizers = {"8x2": Normalizer(4, draw(10), draw(10) ** 2)}
    past = {
        0: PastKeys(keys=draw((3, 8)).astype(np.float32)),
        2: PastKeys(gram=draw((5, 5)), rank=5),
    }
    deltas = draw((2, 1, 4)).astype(np.float32)
    earlier = {2: EarlierEdits((" Rome", " été"), deltas[:, 0] + 1, deltas)}
    written = merge_deltas([random_delta(model), dense_edit(model).delta])
    residuals = {0: 1e-9, 2: 2.5e-13}
    return dataclasses.replace(
        fresh,
        past=past,
        num_edits=7,
        residuals=residuals,
        written=written,
        anchors={2: 0.7},
        normalizers=normalizers,
        earlier=earlier,
    )


@pytest.fixture
def path(tmp_path, model, state):
    """The file of the state, with the weights that its updates have changed."""
    params = apply_delta(model.params, state.written)
    changed = changed_weights(state.written)
    about = {"seconds": 0.1 + 0.2}
    return save_state(
        tmp_path / "new" / "state.safetensors", state, params=params, changed=changed, about=about
    )


def same(one, other):
    """Whether two arrays have the same type and bits, or are both None."""
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and np.array_equal(one, other)


def test_a_state_is_read_back_bit_for_bit(path, state, fresh):
    found = load_state(path, fresh)
    assert found.num_edits == 7 and found.residuals == state.residuals
    assert found.penalties is fresh.penalties and found.templates == fresh.templates
    assert list(found.past) == [0, 2]
    for layer, past in state.past.items():
        assert same(found.past[layer].keys, past.keys)
        assert same(found.past[layer].gram, past.gram)
        assert same(found.past[layer].factor, past.factor)
        assert found.past[layer].rank == past.rank
    assert found.anchors == {2: 0.7}
    (seen,), (expected,) = (one.normalizers.values() for one in (found, state))
    assert seen.count == 4 and same(seen.mean, expected.mean)
    assert same(seen.squares, expected.squares)
    (kept,), (expected,) = (one.earlier.values() for one in (found, state))
    assert kept.targets == expected.targets
    assert same(kept.states, expected.states) and same(kept.deltas, expected.deltas)
    assert len(found.written.updates) == 3
    for one, other in zip(found.written.updates, state.written.updates, strict=True):
        assert type(one) is type(other)
        for name in ("left", "right", "change"):
            assert same(getattr(one, name, None), getattr(other, name, None))
    assert read_about(path) == {"seconds": 0.1 + 0.2}


def test_changed_weights_are_restored_bit_for_bit(path, model, state):
    found, changed = load_weights(path, model.params)
    assert changed == {
        ChangedWeight(Leaf.MLP_DOWN, Part.KERNEL, 1),
        ChangedWeight(Leaf.MLP_DOWN, Part.KERNEL, 0),
        ChangedWeight(Leaf.MLP_DOWN, Part.BIAS, 0),
    }
    edited = apply_delta(model.params, state.written)
    for part in ("kernel", "bias"):
        here, there = (p["blocks"]["mlp"]["down"][part] for p in (found, edited))
        assert same(np.asarray(here), np.asarray(there))
    assert found["blocks"]["mlp"]["up"] is model.params["blocks"]["mlp"]["up"]


def test_half_precision_weights_keep_their_type(tmp_path, fresh):
    weight = ChangedWeight(Leaf.MLP_DOWN, Part.KERNEL, 1)
    params = {"blocks": {"mlp": {"down": {"kernel": jnp.ones((2, 3, 4), jnp.bfloat16) / 3}}}}
    path = save_state(tmp_path / "s.safetensors", fresh, params=params, changed=[weight])
    found, _ = load_weights(path, params)
    assert same(*(np.asarray(p["blocks"]["mlp"]["down"]["kernel"]) for p in (found, params)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"templates": ("{}",)}, "belongs to 2 other context templates than the 1 of this editor"),
        (
            {"penalties": {1: Penalty(1.0)}},
            r"of the layers \[0, 2\], and this one edits \[1\]: give",
        ),
    ],
)
def test_a_state_of_another_editor_is_refused(path, fresh, changes, said):
    with pytest.raises(ValueError, match=said):
        load_state(path, dataclasses.replace(fresh, **changes))


def test_weights_of_another_model_are_refused(path, shipped_model):
    params = {"blocks": {"mlp": {"down": {"kernel": jnp.zeros((6, 4, 4))}}}}
    with pytest.raises(ValueError, match=r"MLP_DOWN\..* does not fit this model: give the model"):
        load_weights(path, params)


def test_damage_is_refused(path, fresh, monkeypatch):
    file = open_file(path)
    header = json.loads(file.metadata["rome_jax.editor"])
    arrays = {name: tensor.read().copy() for name, tensor in file.tensors.items()}

    def rewrite(changes, without=""):
        own = {name: array for name, array in arrays.items() if name != without}
        specs = {name: (array.dtype, array.shape) for name, array in own.items()}
        content = {k: v for k, v in header.items() if k != "rome_jax.crc32"} | changes
        write(path, specs, own.values(), {"rome_jax.editor": json.dumps(content)})

    rewrite({"format": 2})
    with pytest.raises(ValueError, match=r"has format 2, but rome_jax .* reads formats up to 1"):
        load_state(path, fresh)
    rewrite({}, without="state.past.0.keys")
    with pytest.raises(ValueError, match=r"is damaged \(its header does not describe a state"):
        load_state(path, fresh)
    rewrite({}, without="state.written.0.MLP_DOWN.left")
    with pytest.raises(ValueError, match="is damaged"):
        load_state(path, fresh)
    deltas = arrays["state.earlier.2.deltas"]
    arrays["state.earlier.2.deltas"] = deltas[:1]
    rewrite({})
    with pytest.raises(
        ValueError, match=r"damaged \(state\.earlier\.2 does not fit together, 2 tar"
    ):
        load_state(path, fresh)
    arrays["state.earlier.2.deltas"] = deltas
    arrays["state.past.0.keys"][1, 2] = np.nan
    rewrite({})
    with pytest.raises(ValueError, match=r"state\.past\.0\.keys holds numbers that are not finite"):
        load_state(path, fresh)
    rewrite({"fields": {"num_edits": 3}})
    with pytest.raises(ValueError, match="holds the fields num_edits of a state"):
        load_state(path, fresh)
    write(path, {}, [], {"rome_jax.editor": json.dumps(header | {"layers": [1]})})
    with pytest.raises(ValueError, match="has changed since it was written"):
        load_state(path, fresh)
    write(path, {}, [])
    with pytest.raises(ValueError, match="is no state of an editor: give a file that save_state"):
        read_about(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged"):
        load_state(path, fresh)
    with pytest.raises(FileNotFoundError, match="is not a file: give one that save_state wrote"):
        load_state(path.with_name("nothing.safetensors"), fresh)


def test_a_state_that_files_cannot_hold_is_named(tmp_path, fresh):
    odd = dataclasses.replace(fresh, residuals={0: Penalty(1.0)})
    with pytest.raises(TypeError, match=r"state\.residuals\.0 is a Penalty, which files of states"):
        save_state(tmp_path / "s.safetensors", odd)
    assert set(editor_files.KINDS) == {kind.__name__ for kind in editor_files.KINDS.values()}
