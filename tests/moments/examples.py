"""A small model, rows of tokens, and second moments, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rome_jax.models.config import ModelConfig
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.second_moment import MomentProvenance, SecondMoment
from tests.models.checkpoints import random_params, tiny_config

LENGTHS = (12, 1, 7, 9, 3, 12, 5, 8)


def small_config(family: str = "gpt2") -> ModelConfig:
    """Returns the config of all tests of this folder, which share the programs of 4 rows of 48 tokens."""
    return tiny_config(family, vocab_size=2000, context_length=64)


def tiny_model(name: str = "tiny") -> LanguageModel:
    """Returns a model of random weights, without a tokenizer; its MLP is 40 wide."""
    config = small_config()
    return LanguageModel(name, config, random_params(config), None, "random")


def random_rows() -> list[list[int]]:
    """Returns random ids, in rows of the lengths LENGTHS."""
    generator = np.random.default_rng(0)
    return [generator.integers(0, 50, length).tolist() for length in LENGTHS]


def relative_error(actual: np.ndarray, wanted: np.ndarray) -> float:
    """Computes ‖actual - wanted‖ / ‖wanted‖ in the Frobenius norm."""
    return np.linalg.norm(actual - wanted) / np.linalg.norm(wanted)


def positive_definite(width: int, seed: int = 0) -> np.ndarray:
    """Returns a random well-conditioned matrix."""
    root = np.random.default_rng(seed).standard_normal((width, width))
    return root @ root.T / width + np.eye(width)


def moments_for(model: LanguageModel, layers=(0, 2), **fields) -> dict[int, SecondMoment]:
    """Returns second moments whose provenance names `model`."""
    fields = {"model": model.name, "fingerprint": model.fingerprint(), "dtype": "float32"} | fields
    return {
        layer: SecondMoment(positive_definite(40, layer), 90 + layer, MomentProvenance(**fields))
        for layer in layers
    }


def original_file(directory: Path, layer: int, width: int = 40, articles: int = 500) -> Path:
    """Writes a statistics file as the original does."""
    path = directory / f"transformer.h.{layer}.mlp.c_proj_float32_mom2_{articles}.npz"
    total = positive_definite(width, layer).astype(np.float32) * 70
    np.savez(path, **{"mom2.mom2": total, "mom2.count": 70, "sample_size": articles})
    return path
