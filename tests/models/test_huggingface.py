"""Checkpoints on disk and stacked params: both layouts of the hub, strictness, damage, and saving."""

import json
import math
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from rome_jax.files.extras import MissingPackageError
from rome_jax.files.safetensors_io import CheckpointError, CheckpointWarning
from rome_jax.models import families, huggingface
from rome_jax.models.config import Family
from rome_jax.models.families import PRESETS
from rome_jax.models.huggingface import (
    checkpoint_shapes,
    layer_name,
    load_params,
    save_params,
)
from rome_jax.models.interventions import Leaf
from rome_jax.models.transformer import param_shapes
from tests.models.checkpoints import (
    FAMILIES,
    GOLDEN,
    assert_same_params,
    golden_model,
    random_params,
    save_checkpoint,
    tensors_of,
    tiny_config,
    write_tensors,
)


@pytest.fixture(params=["small leaves", "large leaves"])
def either_path(request, monkeypatch):
    """Small leaves are assembled on the host, large ones on the device; both must give the same."""
    if request.param == "large leaves":
        monkeypatch.setattr(huggingface, "_SMALL", 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tie", [True, False])
def test_save_and_load_give_the_same_bits(family, tie, tmp_path, either_path):
    config = tiny_config(family, tie_embeddings=tie)
    params = save_checkpoint(tmp_path, config)
    assert_same_params(load_params(tmp_path, config), params)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_checkpoints_load_in_the_right_orientation(family, either_path):
    _, config = golden_model(family)
    params = load_params(GOLDEN / "ckpt" / family, config)
    tensors = tensors_of(GOLDEN / "ckpt" / family)
    up, down, transpose = {
        "gpt2": ("mlp.c_fc.weight", "mlp.c_proj.weight", lambda x: x),
        "gptj": ("mlp.fc_in.weight", "mlp.fc_out.weight", np.transpose),
    }[family]
    for layer in range(config.num_layers):
        mlp = jax.tree.map(
            lambda leaf, layer=layer: np.asarray(leaf[layer]), params["blocks"]["mlp"]
        )
        assert np.array_equal(
            mlp["up"]["kernel"], transpose(tensors[f"transformer.h.{layer}.{up}"])
        )
        assert np.array_equal(
            mlp["down"]["kernel"], transpose(tensors[f"transformer.h.{layer}.{down}"])
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_saving_a_golden_checkpoint_gives_its_file_back(family, tmp_path):
    params, config = golden_model(family)
    save_params(tmp_path, params, config)
    want, got = tensors_of(GOLDEN / "ckpt" / family), tensors_of(tmp_path)
    assert want.keys() == got.keys()
    assert all(np.array_equal(want[name], got[name]) for name in want)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert file.metadata()["format"] == "pt"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tie", [True, False])
def test_tables_cover_the_params_exactly(family, tie):
    config = tiny_config(family, tie_embeddings=tie)
    tree = param_shapes(config)
    paths = {"/".join(k.key for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
    rows = [weight.path for weight in families.FAMILIES[config.family].weights]
    assert len(rows) == len(set(rows))
    assert paths <= set(rows)
    # Other rows are for options of the family that this config does not have.
    assert all(row == "lm_head/kernel" or row.endswith("/bias") for row in set(rows) - paths)
    assert ("lm_head/kernel" in paths) is not tie


@pytest.mark.parametrize(
    "name, size", [("gpt2-xl", 1_557_611_200), ("EleutherAI/gpt-j-6B", 6_050_882_784)]
)
def test_published_models_have_their_published_size(name, size):
    assert sum(math.prod(shape) for shape in checkpoint_shapes(PRESETS[name]).values()) == size


# The two layouts of the hub.


def test_gpt2_without_prefix_and_with_masks_as_on_the_hub(tmp_path):
    config = tiny_config(Family.GPT2)
    params = save_checkpoint(tmp_path, config)
    mask = np.tril(np.ones((1, 1, 32, 32), np.float32))
    tensors = {name.removeprefix("transformer."): x for name, x in tensors_of(tmp_path).items()}
    write_tensors(tmp_path, tensors | {f"h.{i}.attn.bias": mask for i in range(3)})
    assert_same_params(load_params(tmp_path, config), params)


def test_gptj_with_masks_and_more_rows_than_tokens_as_on_the_hub(tmp_path):
    config = tiny_config(Family.GPTJ, vocab_size=64)
    params = save_checkpoint(tmp_path, config)
    tensors = tensors_of(tmp_path)
    for i in range(3):
        tensors[f"transformer.h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 32, 32), np.bool_))
        tensors[f"transformer.h.{i}.attn.masked_bias"] = np.array(-1e9, np.float32)
    write_tensors(tmp_path, tensors)
    loaded = load_params(tmp_path, config)
    assert_same_params(loaded, params)
    assert loaded["wte"]["embedding"].shape == (64, 18)
    assert loaded["lm_head"]["kernel"].shape == (18, 64)


def test_a_redundant_head_is_ignored(tmp_path):
    config = tiny_config(Family.GPT2)
    params = save_checkpoint(tmp_path, config)
    tensors = tensors_of(tmp_path)
    write_tensors(tmp_path, tensors | {"lm_head.weight": tensors["transformer.wte.weight"].copy()})
    assert_same_params(load_params(tmp_path, config), params)


def test_a_head_that_is_not_the_tied_embedding_is_an_error(tmp_path):
    config = tiny_config(Family.GPT2)
    save_checkpoint(tmp_path, config)
    tensors = tensors_of(tmp_path)
    write_tensors(tmp_path, tensors | {"lm_head.weight": tensors["transformer.wte.weight"] + 1})
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        load_params(tmp_path, config)


def split_into_shards(directory, count=3):
    """Replaces model.safetensors by shards and an index; returns the shards' names."""
    tensors = tensors_of(directory)
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    weight_map = {}
    for i, file in enumerate(names):
        part = {name: tensors[name] for name in sorted(tensors)[i::count]}
        write_tensors(directory, part, file)
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return names


@pytest.mark.parametrize("family", FAMILIES)
def test_shards_load_like_one_file(family, tmp_path):
    config = tiny_config(family)
    params = save_checkpoint(tmp_path, config)
    split_into_shards(tmp_path)
    assert_same_params(load_params(tmp_path, config), params)


# dtypes


DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


@pytest.mark.parametrize("stored", DTYPES)
def test_dtype_is_kept_unless_another_is_requested(stored, tmp_path):
    config = tiny_config(Family.GPTJ)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf).astype(DTYPES[stored]), random_params(config)
    )
    save_params(tmp_path, params, config)
    assert_same_params(load_params(tmp_path, config), params)
    for requested, dtype in DTYPES.items():
        want = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), params)
        assert_same_params(load_params(tmp_path, config, requested), want)


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("requested", [None, *DTYPES])
def test_large_leaves_change_their_dtype_on_the_device(stored, requested, tmp_path, monkeypatch):
    """Only the MLP's kernels are large here, so that few programs are compiled."""
    config = tiny_config(Family.GPTJ)
    kernels = config.num_layers * config.width * config.mlp_width
    monkeypatch.setattr(huggingface, "_SMALL", 2 * kernels - 1)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf).astype(DTYPES[stored]), random_params(config)
    )
    save_params(tmp_path, params, config)
    want = jax.tree.map(lambda leaf: leaf.astype(DTYPES[requested or stored]), params)
    assert_same_params(load_params(tmp_path, config, requested), want)


def test_layers_of_different_dtypes_take_the_one_that_holds_both(tmp_path):
    config = tiny_config(Family.GPT2)
    params = save_checkpoint(tmp_path, config)
    tensors = tensors_of(tmp_path)
    name = "transformer.h.1.mlp.c_fc.weight"
    write_tensors(tmp_path, tensors | {name: tensors[name].astype(np.float16)})
    kernel = load_params(tmp_path, config)["blocks"]["mlp"]["up"]["kernel"]
    want = params["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.dtype == jnp.float32
    want = np.array(want)
    want[1] = want[1].astype(np.float16)
    assert np.array_equal(kernel, want)


@pytest.mark.parametrize("dtype", [np.int8, np.float64])
def test_a_dtype_that_params_cannot_have_is_an_error(dtype, tmp_path):
    config = tiny_config(Family.GPT2)
    save_checkpoint(tmp_path, config)
    tensors = tensors_of(tmp_path)
    name = "transformer.h.1.mlp.c_fc.weight"
    write_tensors(tmp_path, tensors | {name: tensors[name].astype(dtype)})
    with pytest.raises(CheckpointError, match=rf"{name} is {np.dtype(dtype)}"):
        load_params(tmp_path, config)


def test_params_own_their_memory(tmp_path, either_path):
    """A file that is changed after loading changes no weights, though it was mapped."""
    config = tiny_config(Family.GPT2)
    params = save_checkpoint(tmp_path, config)
    loaded = load_params(tmp_path, config)
    path = tmp_path / "model.safetensors"
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.write(b"\xff" * size)
    assert_same_params(loaded, params)


# What is wrong is all listed.


def test_everything_that_is_wrong_is_listed_at_once(tmp_path):
    config = tiny_config(Family.GPT2)
    save_checkpoint(tmp_path, config)
    tensors = tensors_of(tmp_path)
    missing = ["transformer.h.2.mlp.c_fc.bias", "transformer.ln_f.weight"]
    extra = ["transformer.h.3.mlp.c_fc.bias", "adapter.weight", "transformer.h.3.attn.c.bias"]
    for name in missing:
        del tensors[name]
    write_tensors(tmp_path, tensors | {name: np.zeros(3, np.float32) for name in extra})
    with pytest.raises(CheckpointError) as error:
        load_params(tmp_path, config)
    message = str(error.value)
    before, after = message.split("; unexpected ")
    assert all(name in before for name in missing)
    assert all(name in after for name in extra)
    assert str(tmp_path) in message and "\n" not in message


def test_a_tensor_with_and_without_prefix_is_unexpected(tmp_path):
    config = tiny_config(Family.GPT2)
    save_checkpoint(tmp_path, config)
    tensors = tensors_of(tmp_path)
    write_tensors(tmp_path, tensors | {"wte.weight": tensors["transformer.wte.weight"].copy()})
    with pytest.raises(CheckpointError, match=r"unexpected transformer\.wte\.weight"):
        load_params(tmp_path, config)


def test_a_tied_model_may_hold_only_its_head(tmp_path):
    config = tiny_config(Family.GPT2)
    params = save_checkpoint(tmp_path, config)
    tensors = tensors_of(tmp_path)
    tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")
    write_tensors(tmp_path, tensors)
    assert_same_params(load_params(tmp_path, config), params)


def test_heads_of_other_tasks_are_ignored_with_one_line(tmp_path):
    config = tiny_config(Family.GPT2)
    params = save_checkpoint(tmp_path, config)
    heads = ["v_head.summary.weight", "multiple_choice_head.summary.bias", "score.weight"]
    extra = {name: np.zeros((2, 18), np.float64) for name in heads}
    write_tensors(tmp_path, tensors_of(tmp_path) | extra)
    with pytest.warns(CheckpointWarning) as warned:
        loaded = load_params(tmp_path, config)
    assert_same_params(loaded, params)
    (message,) = [str(warning.message) for warning in warned]
    assert all(name in message for name in heads) and "\n" not in message


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_a_prefix_of_all_names_is_named_with_its_remedy(prefix, tmp_path):
    config = tiny_config(Family.GPT2)
    save_checkpoint(tmp_path, config)
    tensors = {prefix + name: tensor for name, tensor in tensors_of(tmp_path).items()}
    write_tensors(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=rf"begin with '{prefix}'.*name\.removeprefix"):
        load_params(tmp_path, config)


def test_float64_is_refused_in_a_short_sentence(tmp_path):
    config = tiny_config(Family.GPT2)
    save_checkpoint(tmp_path, config)
    tensors = {name: tensor.astype(np.float64) for name, tensor in tensors_of(tmp_path).items()}
    write_tensors(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=r"are float64, not float32.*model\.float") as error:
        load_params(tmp_path, config)
    assert len(str(error.value)) < 600 + len(str(tmp_path))


def test_an_adapter_is_not_a_model(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="merge_and_unload"):
        load_params(tmp_path, tiny_config(Family.GPT2))


def test_wrong_shapes_are_named(tmp_path):
    config = tiny_config(Family.GPTJ)
    save_checkpoint(tmp_path, config)
    tensors = tensors_of(tmp_path)
    name = "transformer.h.1.mlp.fc_in.weight"
    write_tensors(tmp_path, tensors | {name: np.ascontiguousarray(tensors[name].T)})
    with pytest.raises(
        CheckpointError,
        match=r"h\.1\.mlp\.fc_in\.weight has shape \(18, 40\) instead of \(40, 18\)",
    ):
        load_params(tmp_path, config)


@pytest.mark.parametrize(
    "other, change", [("gptj", {}), ("gpt2", {"num_layers": 2}), ("gpt2", {"vocab_size": 49})]
)
def test_the_weights_of_another_model_do_not_load(other, change, tmp_path):
    save_checkpoint(tmp_path, tiny_config(Family.GPT2))
    with pytest.raises(CheckpointError):
        load_params(tmp_path, tiny_config(other, **change))


# Damage


def test_a_missing_shard_is_named(tmp_path):
    config = tiny_config(Family.GPT2)
    save_checkpoint(tmp_path, config)
    shards = split_into_shards(tmp_path)
    (tmp_path / shards[1]).unlink()
    with pytest.raises(CheckpointError, match=rf"lacks {shards[1]}"):
        load_params(tmp_path, config)


def test_a_tensor_in_two_shards_is_an_error(tmp_path):
    config = tiny_config(Family.GPT2)
    save_checkpoint(tmp_path, config)
    tensors = tensors_of(tmp_path)
    shards = split_into_shards(tmp_path)
    write_tensors(tmp_path, tensors, shards[1])
    with pytest.raises(CheckpointError, match=shards[1]):
        load_params(tmp_path, config)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_a_damaged_index_is_named(content, tmp_path):
    config = tiny_config(Family.GPT2)
    save_checkpoint(tmp_path, config)
    split_into_shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        load_params(tmp_path, config)


@pytest.mark.parametrize("keep", [0, 5, 8, 100, -1])
def test_a_truncated_file_is_named(keep, tmp_path):
    config = tiny_config(Family.GPT2)
    save_checkpoint(tmp_path, config)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or damaged"):
        load_params(tmp_path, config)


def test_a_git_lfs_pointer_is_recognized(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 548105171\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        load_params(tmp_path, tiny_config(Family.GPT2))


def test_a_directory_without_weights_says_what_is_expected(tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*pytorch_model\.bin"):
        load_params(tmp_path, tiny_config(Family.GPT2))


# Writing


def test_params_of_another_config_are_not_saved(tmp_path):
    config = tiny_config(Family.GPT2)
    params = random_params(config)
    del params["ln_f"]["bias"]
    params["extra"] = jnp.zeros(2)
    with pytest.raises(CheckpointError, match="extra, ln_f/bias"):
        save_params(tmp_path / "new", params, config)
    assert not (tmp_path / "new").exists()


# Names


@pytest.mark.parametrize(
    "family, leaf, name",
    [
        ("gpt2", Leaf.MLP_DOWN, "transformer.h.2.mlp.c_proj"),
        ("gpt2", Leaf.MLP_UP, "transformer.h.2.mlp.c_fc"),
        ("gpt2", Leaf.ATTN_OUT, "transformer.h.2.attn.c_proj"),
        ("gpt2", Leaf.ATTN_QKV, "transformer.h.2.attn.c_attn"),
        ("gptj", Leaf.MLP_DOWN, "transformer.h.2.mlp.fc_out"),
        ("gptj", Leaf.ATTN_QUERY, "transformer.h.2.attn.q_proj"),
    ],
)
def test_layers_have_hugging_faces_names(family, leaf, name):
    assert layer_name(tiny_config(family), leaf, 2) == name


def test_names_of_layers_and_leaves_that_do_not_exist_are_errors():
    with pytest.raises(ValueError, match="layer=3"):
        layer_name(tiny_config("gpt2"), Leaf.MLP_DOWN, 3)
    with pytest.raises(ValueError, match="ATTN_QKV"):
        layer_name(tiny_config("gptj"), Leaf.ATTN_QKV, 0)


# pytorch_model.bin; conversions themselves are tested where torch is, in test_parity_hf.py


def test_a_pickle_without_torch_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setenv("ROME_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "pytorch_model.bin").write_bytes(b"some pickle")
    with pytest.raises(MissingPackageError, match=r"pip install 'rome_jax\[convert\]'\.$") as error:
        load_params(tmp_path, tiny_config(Family.GPT2))
    assert "pytorch_model.bin" in str(error.value)
