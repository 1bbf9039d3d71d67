"""Noise for the corrupted run: the subject's token embeddings are disturbed until the model loses the fact."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from rome_jax.models.registry import LanguageModel


def subject_embedding_std(model: LanguageModel, subjects: Sequence[str]) -> float:
    """Standard deviation (n - 1) over all elements of the subjects' token embeddings, subjects without a leading space.

    Three times this is the noise level of the paper (section 2.1, footnote 1).

    Raises:
      ValueError: no subjects.

    Example:
      >>> 3 * subject_embedding_std(model, ["Space Needle"])  # doctest: +SKIP
    """
    if not subjects:
        raise ValueError("subjects is empty: give at least one.")
    ids = model.tokenizer(list(subjects), add_special_tokens=False)["input_ids"]
    embedding = np.asarray(model.params["wte"]["embedding"], np.float64)
    return float(embedding[np.concatenate(ids)].std(ddof=1))


def gaussian_noise(key: jax.Array, samples: int, width: int, tokens: int, std: float) -> jax.Array:
    """Independent normal noise [samples, tokens, width] with standard deviation `std`."""
    return std * jax.random.normal(key, (samples, tokens, width))
