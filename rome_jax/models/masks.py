"""Masks of attention and positions of tokens, from what a batch says about padding, documents, and branches.

Axes: B rows, T tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def causal_mask(mask: jax.Array) -> jax.Array:
    """Computes which columns each token sees: the real ones up to itself.

    Args:
      mask: bool [B, T], True for real tokens.

    Returns:
      bool [B, T, T].

    Example:
      >>> causal_mask(jnp.array([[False, True, True]])).astype(int).tolist()
      [[[0, 0, 0], [0, 1, 0], [0, 1, 1]]]
    """
    length = mask.shape[-1]
    return jnp.tril(jnp.ones((length, length), bool)) & mask[:, None, :]


def position_ids(mask: jax.Array) -> jax.Array:
    """Counts each row's positions from its first real token.

    Args:
      mask: bool [B, T], True for real tokens, which are contiguous in each row.

    Returns:
      int32 [B, T]; padding on the left gets 0.

    Example:
      >>> position_ids(jnp.array([[False, False, True, True]])).tolist()
      [[0, 0, 0, 1]]
    """
    first = jnp.argmax(mask, axis=-1)
    return jnp.maximum(jnp.arange(mask.shape[-1]) - first[:, None], 0).astype(jnp.int32)


def segment_mask(segments: jax.Array) -> jax.Array:
    """Computes which tokens of a row belong to the same document: int32 [B, T] -> bool [B, T, T]."""
    return segments[:, :, None] == segments[:, None, :]


def branch_mask(branches: jax.Array) -> jax.Array:
    """Computes which tokens may see each other when a document branches after a common beginning.

    Args:
      branches: int32 [B, T], 0 in the common beginning and the branch's number, from 1, after it.

    Returns:
      bool [B, T, T], True if the second token is in the common beginning or in the first token's branch.
    """
    return (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
