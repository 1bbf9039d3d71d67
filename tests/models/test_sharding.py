"""Logical axes and their placement; models that are saved and restored on different numbers of devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import orbax.checkpoint
import pytest
from jax.sharding import Mesh, PartitionSpec

from rome_jax.edit.delta import apply_delta
from rome_jax.models import huggingface, registry
from rome_jax.models.config import Family
from rome_jax.models.families import PRESETS
from rome_jax.models.huggingface import load_params
from rome_jax.models.orbax import load_orbax, save_orbax
from rome_jax.models.registry import load_model
from rome_jax.models.sharding import (
    LOGICAL_AXES,
    model_mesh,
    param_shardings,
    parse_mesh,
    split_axes,
)
from rome_jax.models.transformer import param_shapes
from tests.models.checkpoints import FAMILIES, assert_same_params, save_checkpoint, tiny_config
from tests.saved import random_delta

ROOT = Path(__file__).resolve().parents[2]


# The rules


@pytest.mark.parametrize(
    ("name", "devices", "split"),
    [
        ("gpt2", 4, {"mlp", "heads"}),
        ("gpt2", 8, {"mlp"}),
        ("gpt2-medium", 8, {"mlp", "heads"}),
        ("gpt2-xl", 8, {"mlp"}),
        ("gpt2-xl", 5, {"mlp", "heads"}),
        ("gpt2-xl", 1, {"mlp", "heads", "vocabulary"}),
        ("EleutherAI/gpt-j-6B", 8, {"mlp", "heads", "vocabulary"}),
        ("EleutherAI/gpt-j-6B", 32, {"mlp", "vocabulary"}),
    ],
)
def test_heads_and_vocabulary_are_split_where_divisible(name, devices, split):
    assert split_axes(PRESETS[name], devices) == split


def test_an_mlp_that_cannot_be_split_is_an_error():
    with pytest.raises(ValueError, match="mlp_width=6400 cannot be split over 3 devices"):
        split_axes(PRESETS["gpt2-xl"], 3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_every_leaf_has_axes_that_fit_it(family, tied):
    config = tiny_config(family, tie_embeddings=tied)
    sizes = {
        "layers": config.num_layers,
        "width": config.width,
        "positions": config.context_length,
        "vocabulary": config.vocab_size,
        "mlp": config.mlp_width,
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(config)):
        axes = LOGICAL_AXES["/".join(key.key for key in path)]
        assert (
            tuple((sizes | {"heads": config.width, "qkv": 3})[axis] for axis in axes) == leaf.shape
        )


def test_no_axes_are_named_for_leaves_that_do_not_exist():
    leaves = set()
    biases = {"qkv_bias": True, "out_bias": True, "mlp_bias": True, "head_bias": True}
    for family in Family:
        for tied in (True, False):
            config = tiny_config(family, tie_embeddings=tied, **biases)
            tree = param_shapes(config)
            for path, _ in jax.tree_util.tree_leaves_with_path(tree):
                leaves.add("/".join(key.key for key in path))
    assert leaves == set(LOGICAL_AXES)


def test_shardings_are_a_tree_like_params():
    config = PRESETS["gpt2-xl"]
    shardings = param_shardings(config, model_mesh(jax.devices()[:1]))
    assert jax.tree.structure(shardings) == jax.tree.structure(param_shapes(config))
    assert shardings["blocks"]["mlp"]["up"]["kernel"].spec == PartitionSpec(None, None, "model")
    assert shardings["blocks"]["mlp"]["down"]["kernel"].spec == PartitionSpec(None, "model", None)
    assert shardings["blocks"]["ln_1"]["scale"].spec == PartitionSpec(None, None)


def test_meshes_that_do_not_fit_are_refused():
    config = tiny_config("gpt2")
    device = jax.devices()[:1]
    with pytest.raises(ValueError, match=r"axes \('data',\) but none named 'model'"):
        param_shardings(config, Mesh(device, ("data",)))
    explicit = jax.make_mesh((1,), ("model",), (jax.sharding.AxisType.Explicit,), devices=device)
    with pytest.raises(ValueError, match=r"axis_types=.*use model_mesh"):
        param_shardings(config, explicit)


def test_queries_are_split_only_with_their_keys_and_values():
    config = tiny_config("llama", num_heads=4, num_kv_heads=2, width=24)
    assert "heads" in split_axes(config, 2)
    assert "heads" not in split_axes(config, 4)


def test_axes_of_a_mesh_default_to_one_and_are_filled():
    device = jax.devices()[:1]
    for text in ("data:1", "model:1", "model:-1", " data:-1 , model:1 "):
        mesh = parse_mesh(text, device)
        assert dict(mesh.shape) == {"data": 1, "model": 1}
        assert mesh.axis_names == ("data", "model")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "give each of the axes"),
        ("model", "give each of the axes"),
        ("heads:2", "give each of the axes"),
        ("data:1,data:1", "at most once"),
        ("data:-1,model:-1", "-1 for one axis at most"),
        ("model:0", "model='0': give a number of 1 or more"),
        ("model:two", "model='two': give an integer"),
        ("data:-2", "data='-2': give a number of 1 or more"),
        ("data:2", "needs 2 devices, but this process has 1"),
        (f"data:{10**30}", "data='1000"),
        (3, "mesh=3: give a text"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(text, message):
    with pytest.raises(ValueError, match=message) as refusal:
        parse_mesh(text, jax.devices()[:1])
    assert str(refusal.value).count("\n") == 0


# Loading


@pytest.mark.parametrize("limit", [huggingface._SMALL, 0], ids=["small leaves", "large leaves"])
@pytest.mark.parametrize("family", [Family.GPT2, Family.NEOX])
def test_each_byte_is_read_once(family, limit, tmp_path, monkeypatch):
    """One device has the whole model; tests/eight_devices.py counts the bytes of each of eight."""
    monkeypatch.setattr(huggingface, "_SMALL", limit)
    config = tiny_config(family)
    params = save_checkpoint(tmp_path, config)
    read: list[int] = []
    for mesh in (None, model_mesh(jax.devices()[:1])):
        read.clear()
        loaded = load_params(
            tmp_path, config, mesh=mesh, on_read=lambda device, size: read.append(size)
        )
        assert_same_params(loaded, params)
        assert sum(read) == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert {leaf.sharding.mesh.shape["model"] for leaf in jax.tree.leaves(loaded)} == {1}


def test_a_mesh_that_does_not_fit_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(registry, "load_tokenizer", lambda *_: pytest.fail("reads the tokenizer"))
    with pytest.raises(ValueError, match=r"none named 'model'"):
        load_model(
            ROOT / "tests" / "golden" / "ckpt" / "gpt2", mesh=Mesh(jax.devices()[:1], ("data",))
        )


def test_checkpoints_of_the_first_format_are_still_read(tmp_path):
    """In the first format, queries, keys and values of GPT-2 shared one axis."""
    model = load_model(ROOT / "tests" / "golden" / "ckpt" / "gpt2")
    save_orbax(tmp_path / "old", model)
    flat = jax.tree.map(lambda leaf: leaf, model.params)  # a copy of the dicts
    qkv = flat["blocks"]["attn"]["qkv"]
    for name, leaf in qkv.items():
        qkv[name] = leaf.reshape(*leaf.shape[:-2], -1)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "old" / "params", flat, force=True)
    about = json.loads((tmp_path / "old" / "model.json").read_text())
    (tmp_path / "old" / "model.json").write_text(json.dumps(about | {"format": 1}))
    for mesh in (None, model_mesh(jax.devices()[:1])):
        assert_same_params(load_orbax(tmp_path / "old", mesh=mesh).params, model.params)


# Eight devices, simulated in a separate process

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """Runs tests/eight_devices.py; returns its results and the folder that it saved to."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for family in FAMILIES:
        save_orbax(folder / family / "one", load_model(ROOT / "tests" / "golden" / "ckpt" / family))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "tests.eight_devices", str(folder)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), folder


@slow
@pytest.mark.parametrize("family", FAMILIES)
def test_what_one_device_saved_eight_restore(eight, family):
    found = eight[0][family]
    assert found["devices"] == 8
    assert found["restored"] == found["restored in half precision"] == []
    assert found["placed elsewhere"] == []
    # 6 layers, an MLP of 256 and 2,000 tokens, in eight parts.
    assert found["shapes of the shards"] == {"down": [6, 32, 64], "wte": [250, 64]}
    assert found["fingerprint"]


@slow
@pytest.mark.parametrize("family", FAMILIES)
def test_what_eight_devices_saved_one_restores(eight, family):
    directory = eight[1] / family
    model = load_model(ROOT / "tests" / "golden" / "ckpt" / family)
    wanted = apply_delta(model.params, random_delta(model))
    restored = load_orbax(directory / "eight")
    assert_same_params(restored.params, wanted)
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(restored.params)} == {1}
    assert_same_params(load_model(directory / "hf").params, wanted)
    half = load_orbax(directory / "eight", dtype="bfloat16").params
    assert_same_params(half, jax.tree.map(lambda leaf: leaf.astype("bfloat16"), wanted))


@slow
def test_sharded_models_have_the_same_logits(eight):
    errors = eight[0]["forward"]
    assert len(errors) == 6
    for model, by_mesh in errors.items():
        assert len(by_mesh) == 4
        assert max(by_mesh.values()) < 1e-5, (model, by_mesh)


@slow
def test_devices_read_what_they_hold(eight):
    """Four parts of the model, each on two devices."""
    assert len(eight[0]["loading"]) == 8
    for case, found in eight[0]["loading"].items():
        assert found["different"] == found["placed elsewhere"] == [], case
        part = found["split"] // 4
        assert found["split"] > 5 * found["replicated"] > 0
        # What all devices hold is read once, for the first of them, and what two hold, for one of the two.
        assert sorted(found["read"].values()) == [part, part, part, part + found["replicated"]], (
            case
        )


@slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sharded_model_is_edited_on_its_devices(eight, family):
    found = eight[0][family]
    assert found["edited"] == []
    assert found["edited stays in place"]
    assert found["reverted"] < 1e-6
