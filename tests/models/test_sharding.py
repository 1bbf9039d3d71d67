"""Logical axes and their placement; models that are saved and restored on different numbers of devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import Mesh, PartitionSpec

from rome_jax.edit.delta import apply_delta
from rome_jax.models.config import Family
from rome_jax.models.families import PRESETS
from rome_jax.models.forward import param_shapes
from rome_jax.models.orbax import load_orbax, save_orbax
from rome_jax.models.registry import load_model
from rome_jax.models.sharding import LOGICAL_AXES, model_mesh, param_shardings, split_axes
from tests.models.checkpoints import FAMILIES, assert_same_params, tiny_config
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
        heads = 3 * config.width if "qkv" in str(path) else config.width
        assert tuple((sizes | {"heads": heads})[axis] for axis in axes) == leaf.shape, path


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
@pytest.mark.parametrize(
    ("family", "case"), [("gpt2", "even"), ("gpt2", "uneven"), ("gptj", "even")]
)
def test_a_sharded_model_has_the_same_logits(eight, family, case):
    assert eight[0][family]["logits"][case] < 1e-5


@slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sharded_model_is_edited_on_its_devices(eight, family):
    found = eight[0][family]
    assert found["edited"] == []
    assert found["edited stays in place"]
    assert found["reverted"] < 1e-6
