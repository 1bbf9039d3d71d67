"""Files of edits, written completely or not at all, and read back bit by bit."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from rome_jax.edit.edit_files import load_edits, save_edits
from rome_jax.edit.saved_edits import apply_edits
from tests.models.checkpoints import assert_same_params
from tests.saved import assert_same_edits, dense_edit, one_sentence, random_edit


@pytest.fixture(scope="module")
def model(golden_model):
    return golden_model("gpt2")


@pytest.fixture(scope="module")
def edits(model):
    return tuple(random_edit(model, seed, layers) for seed, layers in enumerate(((1,), (0, 2))))


# Delta files


@pytest.mark.parametrize("count", [1, 2])
def test_edits_come_back_as_they_were(edits, tmp_path, count):
    path = tmp_path / "new" / "sport.safetensors"
    assert save_edits(str(path), edits[:count]) == path
    assert [file.name for file in path.parent.iterdir()] == ["sport.safetensors"]
    assert_same_edits(load_edits(path), edits[:count])


def test_half_precision_factors_come_back(edits, tmp_path):
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16") if leaf.ndim else leaf, edits[0].delta)
    edit = dataclasses.replace(edits[0], delta=half)
    assert_same_edits(load_edits(save_edits(tmp_path / "half.safetensors", [edit])), [edit])


def test_dense_edits_come_back_beside_low_rank_ones(model, edits, tmp_path):
    mixed = [edits[1], dense_edit(model), edits[0]]
    path = save_edits(tmp_path / "mixed.safetensors", mixed)
    assert_same_edits(load_edits(path), mixed)
    dense = [f"{i}.MLP_DOWN.{part}" for i, part in ((2, "KERNEL"), (3, "BIAS"))]
    names = {name for name in load_file(path) if name[0] in "23"}
    assert names == {f"{weight}.{field}" for weight in dense for field in ("layer", "change")}


def test_a_file_from_before_edits_named_their_weights_is_read(edits, tmp_path):
    def forget_the_weights(tensors, header):
        for part in header["edits"]:
            for layer in part["provenance"]["layers"]:
                del layer["weight"]

    path = rewritten(save_edits(tmp_path / "old.safetensors", edits), forget_the_weights)
    assert_same_edits(load_edits(path), edits)


@pytest.mark.parametrize(
    "name", ["0.MLP_DOWN.BIAS.change", "0.MLP_DOWN.WEIGHT.change", "0.MLP_DOWN.KERNEL.left"]
)
def test_a_dense_update_that_contradicts_itself_is_an_error(model, tmp_path, name):
    def rename(tensors, header):
        tensors[name] = tensors.pop("0.MLP_DOWN.KERNEL.change")

    path = rewritten(save_edits(tmp_path / "edit.safetensors", [dense_edit(model)]), rename)
    with pytest.raises(ValueError, match=r"edit\.safetensors is damaged \(") as error:
        load_edits(path)
    one_sentence(error)


def test_more_than_ten_updates_keep_their_order(model, tmp_path):
    edit = random_edit(model, layers=(3, 1, 0, 2, 5, 4) * 2)
    assert_same_edits(load_edits(save_edits(tmp_path / "many.safetensors", [edit])), [edit])


def test_a_file_is_small_and_any_reader_of_safetensors_opens_it(model, edits, tmp_path):
    path = save_edits(tmp_path / "one.safetensors", edits[:1])
    assert path.stat().st_size < 10_000
    tensors = load_file(path)
    assert sorted(tensors) == ["0.MLP_DOWN.layer", "0.MLP_DOWN.left", "0.MLP_DOWN.right"]
    with safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()["rome_jax"])
    about = header["edits"][0]["provenance"]
    assert about["requests"][0]["subject"] == "Žižek 0"
    assert about["model"]["fingerprint"] == model.fingerprint()


def test_merged_files_keep_the_provenance_of_each_part(model, edits, tmp_path):
    parts = [save_edits(tmp_path / f"{i}.safetensors", [edit]) for i, edit in enumerate(edits)]
    merged = save_edits(
        tmp_path / "merged.safetensors", [edit for part in parts for edit in load_edits(part)]
    )
    assert_same_edits(load_edits(merged), edits)
    in_turn = apply_edits(apply_edits(model, edits[:1]), edits[1:], force=True)
    assert_same_params(apply_edits(model, load_edits(merged)).params, in_turn.params)


def test_a_second_save_replaces_the_first(edits, tmp_path):
    path = tmp_path / "edit.safetensors"
    for saved in (edits, edits[1:]):
        save_edits(path, saved)
        assert_same_edits(load_edits(path), saved)


def test_an_interrupted_save_leaves_the_old_file(edits, tmp_path, monkeypatch):
    path = save_edits(tmp_path / "edit.safetensors", edits[:1])

    def fail(*names):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        save_edits(path, edits)
    with pytest.raises(KeyboardInterrupt):
        save_edits(tmp_path / "other.safetensors", edits)
    assert list(tmp_path.iterdir()) == [path]
    assert_same_edits(load_edits(path), edits[:1])


@pytest.mark.parametrize("name", ["sport", "sport.npz", "edits/"])
def test_a_name_without_the_suffix_is_refused(edits, tmp_path, name):
    with pytest.raises(ValueError, match=r"must end in \.safetensors, such as") as error:
        save_edits(tmp_path / name, edits)
    one_sentence(error)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_leaves_no_file(edits, tmp_path):
    path = tmp_path / "edit.safetensors"
    with pytest.raises(ValueError, match="edits is empty"):
        save_edits(path, [])
    batched = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), edits[0].delta)
    with pytest.raises(ValueError, match=r"2 independent edits: merge one of them, delta\[i\]"):
        save_edits(path, [dataclasses.replace(edits[0], delta=batched)])
    about = dataclasses.replace(edits[0].provenance, config={"layers": object()})
    with pytest.raises(TypeError):
        save_edits(path, [dataclasses.replace(edits[0], provenance=about)])
    assert not list(tmp_path.iterdir())


def test_no_file_is_an_error(tmp_path):
    for path in (tmp_path, tmp_path / "edit.safetensors"):
        with pytest.raises(FileNotFoundError, match="is not a file: give one") as error:
            load_edits(path)
        assert str(path) in one_sentence(error)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_file_of_another_kind_is_an_error(tmp_path, metadata):
    path = tmp_path / "model.safetensors"
    save_file({"h.0.weight": np.ones(3, np.float32)}, path, metadata=metadata)
    with pytest.raises(ValueError, match="is not an edit of rome_jax") as error:
        load_edits(path)
    assert str(path) in one_sentence(error)


def test_damaged_bytes_are_an_error(edits, tmp_path):
    path = save_edits(tmp_path / "edit.safetensors", edits)
    content = path.read_bytes()
    for damaged in (b"", b"garbage that is long enough to hold a header", content[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="truncated or damaged") as error:
            load_edits(path)
        assert str(path) in one_sentence(error)


def drop_a_tensor(tensors, header):
    del tensors["1.MLP_DOWN.left"]


def drop_an_update(tensors, header):
    for name in [name for name in tensors if name.startswith("2.")]:
        del tensors[name]


def add_a_case_axis(tensors, header):
    tensors["0.MLP_DOWN.layer"] = tensors["0.MLP_DOWN.layer"][None]


def rename_a_leaf(tensors, header):
    for field in ("layer", "left", "right"):
        tensors[f"0.MLP_GATE.{field}"] = tensors.pop(f"0.MLP_DOWN.{field}")


def rename_a_tensor(tensors, header):
    tensors["weight"] = tensors.pop("0.MLP_DOWN.left")


def forge_a_layer(tensors, header):
    tensors["0.MLP_DOWN.layer"] = np.array(5, np.int32)


def make_a_layer_negative(tensors, header):
    tensors["0.MLP_DOWN.layer"] = np.array(-1, np.int32)


def make_a_layer_a_fraction(tensors, header):
    tensors["0.MLP_DOWN.layer"] = np.array(1.0, np.float32)


def make_a_rank_differ(tensors, header):
    tensors["0.MLP_DOWN.left"] = np.concatenate([tensors["0.MLP_DOWN.left"]] * 2, axis=1)


def make_a_factor_nan(tensors, header):
    tensors["0.MLP_DOWN.left"][3] = np.nan


def make_a_factor_infinite(tensors, header):
    tensors["1.MLP_DOWN.right"][0] = np.inf


def make_a_factor_an_integer(tensors, header):
    tensors["0.MLP_DOWN.left"] = tensors["0.MLP_DOWN.left"].astype(np.int32)


def number_from_one(tensors, header):
    for name in sorted(tensors, reverse=True):
        tensors[f"{int(name[0]) + 1}{name[1:]}"] = tensors.pop(name)


def make_a_count_negative(tensors, header):
    header["edits"][0]["updates"] = -1


def make_a_norm_nan(tensors, header):
    header["edits"][0]["provenance"]["layers"][0]["norm_ratio"] = float("nan")


def make_the_model_a_text(tensors, header):
    header["edits"][0]["provenance"]["model"] = "gpt2"


def make_the_layers_a_number(tensors, header):
    header["edits"][0]["provenance"]["layers"] = 17


def make_the_edits_a_mapping(tensors, header):
    header["edits"] = {"0": header["edits"][0]}


def make_the_format_a_text(tensors, header):
    header["format"] = "new"


def nest_the_config(tensors, header):
    header["edits"][0]["provenance"]["config"] = json.loads("[" * 500 + "]" * 500)


def forget_the_requests(tensors, header):
    del header["edits"][0]["provenance"]["requests"]


def add_an_attribute(tensors, header):
    header["edits"][0]["provenance"]["mood"] = "good"


def empty_a_subject(tensors, header):
    header["edits"][1]["provenance"]["requests"][0]["subject"] = ""


def forget_the_format(tensors, header):
    del header["format"]


@pytest.mark.parametrize(
    "spoil",
    [
        drop_a_tensor,
        drop_an_update,
        add_a_case_axis,
        rename_a_leaf,
        rename_a_tensor,
        forge_a_layer,
        make_a_layer_negative,
        make_a_layer_a_fraction,
        make_a_rank_differ,
        make_a_factor_nan,
        make_a_factor_infinite,
        make_a_factor_an_integer,
        number_from_one,
        make_a_count_negative,
        make_a_norm_nan,
        make_the_model_a_text,
        make_the_layers_a_number,
        make_the_edits_a_mapping,
        make_the_format_a_text,
        nest_the_config,
        forget_the_requests,
        add_an_attribute,
        empty_a_subject,
        forget_the_format,
    ],
)
def test_a_file_that_contradicts_itself_is_an_error(edits, tmp_path, spoil):
    path = rewritten(save_edits(tmp_path / "edit.safetensors", edits), spoil)
    with pytest.raises(ValueError, match=r"edit\.safetensors") as error:
        load_edits(path)
    assert str(path) in one_sentence(error)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "null", "[]", '"text"', "\udc80", ""])
def test_metadata_that_is_no_object_is_an_error(edits, tmp_path, text):
    path = save_edits(tmp_path / "edit.safetensors", edits)
    save_file(
        load_file(path), path, metadata={"rome_jax": text.encode("utf-8", "replace").decode()}
    )
    with pytest.raises(ValueError, match=r"edit\.safetensors, metadata (is|ends|holds) ") as error:
        load_edits(path)
    one_sentence(error)


def test_a_flipped_bit_in_a_factor_is_an_error(edits, tmp_path):
    path = save_edits(tmp_path / "edit.safetensors", edits)
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checksums") as error:
        load_edits(path)
    assert str(path) in one_sentence(error)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_edit_that_is_not_finite_is_not_written(edits, tmp_path, value):
    delta = jax.tree.map(lambda x: x if x.ndim == 0 else x.at[0].set(value), edits[0].delta)
    with pytest.raises(ValueError, match="holds numbers that are not finite") as error:
        save_edits(tmp_path / "edit.safetensors", [dataclasses.replace(edits[0], delta=delta)])
    one_sentence(error)
    assert not list(tmp_path.iterdir())


def test_a_later_format_asks_for_a_later_version(edits, tmp_path):
    def raise_the_format(tensors, header):
        header["format"] = 2
        header["edits"] = "something else"

    path = rewritten(save_edits(tmp_path / "edit.safetensors", edits), raise_the_format)
    with pytest.raises(
        ValueError, match=r"has format 2, .* reads formats up to 1: update rome_jax"
    ) as error:
        load_edits(path)
    one_sentence(error)


def rewritten(path, change):
    """The same file after `change(tensors, header)`."""
    tensors = load_file(path)
    with safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()["rome_jax"])
    change(tensors, header)
    save_file(tensors, path, metadata={"rome_jax": json.dumps(header)})
    return path
