"""Edited models as Hugging Face directories and Orbax checkpoints, written completely or not at all."""

import json
import shutil

import jax
import jax.numpy as jnp
import pytest

from rome_jax.edit.saved_edits import apply_edits
from rome_jax.files.folders import STAGING
from rome_jax.files.safetensors_io import CheckpointError
from rome_jax.models.export import save_hf
from rome_jax.models.orbax import load_orbax, save_orbax
from rome_jax.models.registry import load_model
from tests.models.checkpoints import FAMILIES, assert_same_params
from tests.saved import one_sentence, random_edit


@pytest.fixture(scope="module")
def model(golden_model):
    return golden_model("gpt2")


@pytest.fixture(scope="module")
def edits(model):
    return tuple(random_edit(model, seed, layers) for seed, layers in enumerate(((1,), (0, 2))))


# Hugging Face directories; transformers itself reads one in test_parity_export.py


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edited_model_comes_back_from_a_directory(golden_model, family, tmp_path):
    model = golden_model(family)
    edited = apply_edits(model, [random_edit(model)])
    save_hf(tmp_path, edited)
    again = load_model(tmp_path)
    assert_same_params(again.params, edited.params)
    assert again.fingerprint() == edited.fingerprint() != model.fingerprint()


# Orbax; other numbers of devices are in test_sharding.py


@pytest.fixture(scope="module")
def checkpoint(edits, model, tmp_path_factory):
    """An edited model and its checkpoint."""
    directory = tmp_path_factory.mktemp("orbax") / "new" / "checkpoint"
    edited = apply_edits(model, edits)
    save_orbax(directory, edited)
    return edited, directory


def test_a_checkpoint_is_the_model(checkpoint):
    edited, directory = checkpoint
    assert [path.name for path in directory.parent.iterdir()] == ["checkpoint"]
    again = load_orbax(str(directory))
    assert_same_params(again.params, edited.params)
    assert again.fingerprint() == edited.fingerprint()
    assert (again.config, again.name) == (edited.config, edited.name)
    assert again.source == f"directory {directory}"
    text = "The mother tongue of Danielle Darrieux is"
    assert again.tokenizer(text)["input_ids"] == edited.tokenizer(text)["input_ids"]
    content = json.loads((directory / "model.json").read_text())
    assert content["fingerprint"] == edited.fingerprint()
    assert content["source"] == f"{edited.source}" and content["source"].endswith(" + 2 edits")


def test_the_params_of_a_checkpoint_are_plain_orbax(checkpoint):
    import orbax.checkpoint as ocp

    edited, directory = checkpoint
    with ocp.StandardCheckpointer() as checkpointer:
        assert_same_params(checkpointer.restore(directory / "params"), edited.params)


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.float16, "float32"])
def test_a_checkpoint_is_restored_in_another_dtype(checkpoint, dtype):
    edited, directory = checkpoint
    again = load_orbax(directory, dtype=dtype, precision="default")
    assert_same_params(again.params, jax.tree.map(lambda leaf: leaf.astype(dtype), edited.params))
    assert again.config.precision is jax.lax.Precision.DEFAULT


def test_half_precision_is_kept_and_widened_exactly(model, tmp_path):
    half = model.replace(params=jax.tree.map(lambda leaf: leaf.astype("bfloat16"), model.params))
    save_orbax(tmp_path / "half", half)
    assert_same_params(load_orbax(tmp_path / "half").params, half.params)
    wide = load_orbax(tmp_path / "half", dtype="float32").params
    assert_same_params(wide, jax.tree.map(lambda leaf: leaf.astype("float32"), half.params))


def test_a_directory_that_holds_something_is_refused(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(
            FileExistsError, match=r"give a new directory|give another path"
        ) as error:
            save_orbax(place, model)
        one_sentence(error)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_directory_will_do_and_a_checkpoint_is_replaced_when_asked(model, edits, tmp_path):
    edited = apply_edits(model, edits)
    save_orbax(tmp_path, model)
    assert load_orbax(tmp_path).fingerprint() == model.fingerprint()
    with pytest.raises(FileExistsError, match=r"earlier checkpoint: set overwrite=True") as error:
        save_orbax(tmp_path, edited)
    one_sentence(error)
    save_orbax(tmp_path, edited, overwrite=True)
    assert load_orbax(tmp_path).fingerprint() == edited.fingerprint()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="nothing else is ever replaced"):
        save_orbax(tmp_path, model, overwrite=True)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", 3, "has format 3, but rome_jax .* reads formats up to 2"),
        ("format", "new", r"model\.json: format='new': give an integer"),
        ("format", None, r"model\.json: format is missing|format=None"),
        ("fingerprint", 7, r"model\.json: fingerprint=7: give a text"),
        ("dtypes", {}, "is damaged"),
        ("config", {"model_type": "gpt2", "n_layer": 1e9}, r"model\.json: config lacks n_embd"),
    ],
)
def test_the_parts_of_a_checkpoint_are_checked(model, tmp_path, field, value, message):
    save_orbax(tmp_path / "checkpoint", model)
    path = tmp_path / "checkpoint" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ValueError, match=message) as error:
        load_orbax(tmp_path / "checkpoint")
    one_sentence(error)


def test_an_interrupted_checkpoint_leaves_nothing(model, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(type(model.tokenizer), "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        save_orbax(tmp_path / "checkpoint", model)
    assert not list(tmp_path.iterdir())


def test_a_kill_while_a_checkpoint_is_replaced_loses_nothing(model, tmp_path, monkeypatch):
    """The old checkpoint has been moved away, and the new one is not in its place yet."""
    save_orbax(tmp_path / "checkpoint", model)
    folder = tmp_path / f"{STAGING}killed"
    folder.mkdir()
    (tmp_path / "checkpoint").rename(folder / "old-checkpoint")
    assert load_orbax(tmp_path / "checkpoint").fingerprint() == model.fingerprint()
    (tmp_path / "checkpoint").rename(folder / "old-checkpoint")
    with pytest.raises(FileExistsError, match="holds an earlier checkpoint"):
        save_orbax(tmp_path / "checkpoint", model)


def test_params_of_another_config_are_not_saved(model, golden_model, tmp_path):
    other = model.replace(config=golden_model("gptj").config)
    with pytest.raises(CheckpointError, match="do not fit the config"):
        save_orbax(tmp_path / "checkpoint", other)
    assert not list(tmp_path.iterdir())


def change_a_bit(directory):
    data = max((directory / "params").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0x10
    data.write_bytes(content)


def drop_the_params(directory):
    shutil.rmtree(directory / "params")


def halve_the_record(directory):
    text = (directory / "model.json").read_text()
    (directory / "model.json").write_text(text[: len(text) // 2])


def forget_a_leaf(directory):
    content = json.loads((directory / "model.json").read_text())
    del content["dtypes"]["ln_f"]
    (directory / "model.json").write_text(json.dumps(content))


def drop_the_tokenizer(directory):
    shutil.rmtree(directory / "tokenizer")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (change_a_bit, "do not have the fingerprint in model.json"),
        (drop_the_params, "lacks the folder params"),
        (halve_the_record, r"model\.json ends within a value"),
        (forget_a_leaf, r"model\.json is damaged \(dtypes\.ln_f=None"),
        (drop_the_tokenizer, "lacks the folder tokenizer"),
    ],
)
def test_a_damaged_checkpoint_is_refused(checkpoint, tmp_path, damage, words):
    directory = tmp_path / "copy"
    shutil.copytree(checkpoint[1], directory)
    damage(directory)
    with pytest.raises(ValueError, match=words) as error:
        load_orbax(directory)
    assert str(directory) in one_sentence(error)


def test_a_directory_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no model\.json: give a directory") as error:
        load_orbax(tmp_path)
    assert str(tmp_path) in one_sentence(error)


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"precision": "best"}])
def test_options_that_mean_nothing_are_refused(checkpoint, options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))}='"):
        load_orbax(checkpoint[1], **options)
