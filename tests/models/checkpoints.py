"""Small random models and their Hugging Face directories, for the tests of this folder."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from safetensors.numpy import load_file, save_file
from tokenizers import processors

from rome_jax.data.tokens import TokenBatch
from rome_jax.models import families
from rome_jax.models.config import Family, ModelConfig, Rotary, RotaryPairs
from rome_jax.models.families import from_hf
from rome_jax.models.forward import Params
from rome_jax.models.huggingface import load_params, save_params
from rome_jax.models.registry import LanguageModel
from rome_jax.models.transformer import param_shapes

# Shared by the tests of this folder, so that they share compiled programs too.
SEQUENCES = [[4, 17, 31, 2, 8, 49, 1], [9, 9, 3], [20, 6, 0, 44, 13, 0, 6]]

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
# The families of the original. tests/models/test_families.py has the others.
FAMILIES = ["gpt2", "gptj"]


def tiny_config(family: Family | str, **changes) -> ModelConfig:
    """Builds a config of three layers, 3 heads of width 6, and an MLP that is not four times as wide.

    Four dimensions of each head are rotated; queries share keys and values in the families that can.
    """
    family = Family(family)
    shared = family not in (Family.GPT2, Family.GPTJ, Family.NEOX)
    pairs = RotaryPairs.INTERLEAVED if family is Family.GPTJ else RotaryPairs.HALVES
    sizes = {
        "num_layers": 3,
        "width": 18,
        "num_heads": 3,
        "mlp_width": 40,
        "vocab_size": 50,
        "context_length": 32,
        "rotary": None if family is Family.GPT2 else Rotary(6 if shared else 4, pairs),
        "num_kv_heads": 1 if shared else 0,  # 0 is one per head
    }
    return ModelConfig(family, **(dict(families.FAMILIES[family].options) | sizes | changes))


def random_params(config: ModelConfig, seed: int = 0) -> Params:
    """Draws params in which no two leaves, layers, rows or columns are equal: biases and scales are random too."""
    generator = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(
            (path[-1].key == "scale") + 0.2 * generator.standard_normal(leaf.shape), jnp.float32
        ),
        param_shapes(config),
    )


def tensors_of(directory: Path) -> dict:
    """Reads the arrays of a directory's single file with the safetensors package, by name."""
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


@functools.cache
def tiny_model(family: str) -> tuple[Params, ModelConfig]:
    """Builds the random model of `tiny_config(family)`, once per process."""
    config = tiny_config(family)
    return random_params(config), config


def close(got: ArrayLike, want: ArrayLike, tolerance: float = 1e-5) -> bool:
    """Returns whether arrays agree to a tolerance relative to the largest value."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return got.shape == want.shape and np.abs(got - want).max() <= tolerance * np.abs(want).max()


def rows(batch: TokenBatch, values: ArrayLike) -> np.ndarray:
    """Selects the real positions of values [..., B, T, X] as one array [..., N, X]."""
    return np.asarray(values)[..., np.asarray(batch.mask), :]


@functools.cache
def golden_model(family: str) -> tuple[Params, ModelConfig]:
    """Loads the random checkpoint that the golden numbers were computed with."""
    directory = GOLDEN / "ckpt" / family
    config = from_hf(json.loads((directory / "config.json").read_text()))
    return load_params(directory, config), config


def copy_golden(family: str, directory: Path) -> Path:
    """Copies a golden directory so that a test may damage it."""
    shutil.copytree(GOLDEN / "ckpt" / family, directory)
    return directory


def assert_same_params(got: Params, want: Params) -> None:
    """Asserts that two trees have the same structure, dtypes and bits."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for path, leaf in jax.tree_util.tree_leaves_with_path(got):
        other = want
        for key in path:
            other = other[key.key]
        assert leaf.dtype == other.dtype, path
        assert np.array_equal(np.asarray(leaf), np.asarray(other)), path


def with_begin_token(model: LanguageModel) -> LanguageModel:
    """Returns a model with a copy of its tokenizer that puts <|endoftext|> before each text."""
    tokenizer, token = copy.deepcopy(model.tokenizer), "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, tokenizer.convert_tokens_to_ids(token))]
    )
    return model.replace(tokenizer=tokenizer)
