"""Small random models and their Hugging Face directories, for the tests of this folder."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from rome_jax.models.config import Family, ModelConfig, from_hf
from rome_jax.models.forward import Params, init_params
from rome_jax.models.huggingface import load_params, save_params

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FAMILIES = [family.value for family in Family]


def tiny_config(family: Family | str, **changes) -> ModelConfig:
    """Three layers, 3 heads of 6, an MLP that is not four times as wide."""
    family = Family(family)
    sizes = {
        "num_layers": 3,
        "width": 18,
        "num_heads": 3,
        "mlp_width": 40,
        "vocab_size": 50,
        "context_length": 32,
        "rotary_dim": 4 if family is Family.GPTJ else 0,
        "tie_embeddings": family is Family.GPT2,
    }
    return ModelConfig(family, **(sizes | changes))


def random_params(config: ModelConfig, seed: int = 0) -> Params:
    """Params in which no two leaves, layers, rows or columns are alike: biases and scales are random too."""
    shapes = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    generator = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(
            (path[-1].key == "scale") + 0.2 * generator.standard_normal(leaf.shape), jnp.float32
        ),
        shapes,
    )


def tensors_of(directory: Path) -> dict:
    """name -> array of a directory's single file, read by the safetensors package."""
    return load_file(directory / "model.safetensors")


def write_tensors(directory: Path, tensors: dict, name: str = "model.safetensors") -> None:
    """Writes a file with the safetensors package."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / name, {"format": "pt"})


def save_checkpoint(directory: Path, config: ModelConfig, seed: int = 0) -> Params:
    """Writes a random model and returns its params."""
    params = random_params(config, seed)
    save_params(directory, params, config)
    return params


def golden_model(family: str) -> tuple[Params, ModelConfig]:
    """The random checkpoint behind the golden numbers."""
    directory = GOLDEN / "ckpt" / family
    config = from_hf(json.loads((directory / "config.json").read_text()))
    return load_params(directory, config), config


def copy_golden(family: str, directory: Path) -> Path:
    """A copy of a golden directory that a test may damage."""
    shutil.copytree(GOLDEN / "ckpt" / family, directory)
    return directory


def assert_same_params(got: Params, want: Params) -> None:
    """Same tree, dtypes and bits."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for path, leaf in jax.tree_util.tree_leaves_with_path(got):
        other = want
        for key in path:
            other = other[key.key]
        assert leaf.dtype == other.dtype, path
        assert jnp.array_equal(leaf, other), path
