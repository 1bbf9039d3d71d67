"""The error bar of C: how far the directions that edits take from it may be off, because its corpus is finite.

An edit takes one thing from C, the direction of u = C⁻¹ k. A collection sums two halves of its corpus separately, and
the directions that the halves give for a few keys are compared. Let θ be the angle between u and the direction that an
infinite corpus would give, for C of N tokens. It shrinks as 1/√N. Halves of N₁ and N₂ tokens, N = N₁ + N₂, err
independently, so the squared angle between their directions is the sum of their squared errors:

    θ₁² = θ² N / N₁,   θ₂² = θ² N / N₂,   ∠(u₁, u₂)² = θ₁² + θ₂²,   hence   θ = ∠(u₁, u₂) √(N₁ N₂) / N

For equal halves, θ is half of the angle between them. The error is 1 - cos θ, averaged over the keys.

The keys are spread over the first batch, which is also summed. This does not flatter the error: without its own term
k kᵀ, a sum S gives (S - k kᵀ)⁻¹ k = S⁻¹ k / (1 - kᵀ S⁻¹ k), which is the same direction.

Axes: B rows, T tokens, N keys, F MLP width.
"""

from __future__ import annotations

import math

import numpy as np

from rome_jax.data.tokens import TokenBatch
from rome_jax.moments.key_sums import KeySums, mean_of
from rome_jax.moments.second_moment import MomentProvenance

NUM_KEYS = 16
_GROWTH = 1.25  # Factor of the number of tokens between two checks of a collection.


def draw_keys(sums: KeySums, batch: TokenBatch, count: int = NUM_KEYS) -> dict[int, np.ndarray]:
    """Computes the keys that the error is measured with: those of tokens that are spread evenly over a batch.

    Args:
      sums: The model and the layers; nothing is added to it.
      batch: A batch of the corpus.
      count: Number of keys.

    Returns:
      The keys of each layer, float32 [N, F].

    Example:
      >>> from rome_jax.data.tokens import encode
      >>> batch = encode(model.tokenizer, ["Gothulf Punby plays the sport of tennis."], multiple=32)
      >>> sums = rome_jax.moments.KeySums(model.params, model.config, [0])
      >>> draw_keys(sums, batch, 2)[0].shape
      (2, 512)
    """
    tokens = np.flatnonzero(np.asarray(batch.mask))
    places = (np.arange(count) + 0.5) * len(tokens) / count
    return sums.read_keys(batch, tokens[places.astype(int)])


def direction_error(
    first: np.ndarray, second: np.ndarray, tokens: tuple[int, int], keys: np.ndarray
) -> float | None:
    """Estimates the error of the directions u = C⁻¹ k of a second moment from those of its two halves.

    Args:
      first, second: Σ k kᵀ of the halves, [F, F]; only their upper triangles are read.
      tokens: Number of tokens N₁, N₂ of the halves.
      keys: [N, F] keys k.

    Returns:
      The mean over the keys of 1 - cos θ, with θ = ∠(u₁, u₂) √(N₁ N₂) / (N₁ + N₂); None if a half is not positive
      definite, so that it has no directions.

    Example:
      >>> keys = np.random.default_rng(0).standard_normal((2, 4000, 8))
      >>> sums = [half.T @ half for half in keys]
      >>> direction_error(*sums, (4000, 4000), keys[0, :4]) < 0.001
      True
    """
    directions = []
    for total, count in zip((first, second), tokens, strict=True):
        if count < total.shape[0]:
            return None
        half = mean_of(total, count, MomentProvenance())
        if not half.is_definite:
            return None
        whitened = half.solve(keys).astype(np.float64)
        directions.append(whitened / np.linalg.norm(whitened, axis=-1, keepdims=True))
    one, other = directions
    # The arcsine of the chord is accurate for small angles, where the arccosine is not.
    chord = np.linalg.norm(one - other, axis=-1)
    angle = 2 * np.arcsin(np.minimum(chord / 2, 1.0))
    return float(np.mean(1 - np.cos(angle * math.sqrt(math.prod(tokens)) / sum(tokens))))


def is_due(before: int, after: int) -> bool:
    """Returns whether a collection checks its error now: each time its number of tokens has grown by a quarter.

    The numbers of tokens alone decide, so a resumed collection checks at the same places.

    Args:
      before: Number of tokens before the newest batch.
      after: Number of tokens after it.

    Example:
      >>> is_due(1020, 1100), is_due(1000, 1250)
      (False, True)
    """
    steps = [math.floor(math.log(max(tokens, 1), _GROWTH)) for tokens in (before, after)]
    return steps[0] < steps[1]
