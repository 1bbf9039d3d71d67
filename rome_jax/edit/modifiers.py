"""What NAS, RECT and PRUNE do to targets and changes of weights; see `rome_jax.edit.spread_config.Modifier`.

Axes: F MLP width, D width.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.edit.delta import Update, dense, weight_of
from rome_jax.models.forward import Params
from rome_jax.models.interventions import Delta, DenseUpdate, Leaf, LowRankUpdate, Part

# RECT: share of the weights that keep their change, and what keeps the relative change of a weight of 0 finite.
KEPT_SHARE = 0.4
_EPSILON = 1e-8
# NAS: share of the largest norms that the mean leaves out, and the multiple of the mean beyond which δ is dropped.
_DROPPED_SHARE = 0.05
_FARTHEST = 2.0


def anchor_norm(outputs: np.ndarray) -> float:
    """Returns the mean norm of MLP outputs [N, D] without the largest 5 % (NAS).

    Example:
      >>> anchor_norm(np.array([[3.0, 4.0], [0.0, 7.0]]))
      6.0
    """
    norms = np.sort(np.linalg.norm(outputs, axis=1))
    return float(norms[: max(len(norms) - int(_DROPPED_SHARE * len(norms)), 1)].mean())


def anchored(outputs: np.ndarray, delta: np.ndarray, anchor: np.ndarray | float) -> np.ndarray:
    """Returns δ [N, D] with which the MLP outputs [N, D] have the anchor's norm; 0 if v + δ is beyond twice that (NAS).

    Example:
      >>> anchored(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 1.0], [0.0, 9.0]]), 2**0.5 / 2).tolist()
      [[-0.5, 0.5], [0.0, 0.0]]
    """
    moved = outputs + delta
    norm = np.linalg.norm(moved, axis=1, keepdims=True)
    anchor = np.reshape(anchor, (-1, 1))
    rescaled = anchor * moved / np.maximum(norm, np.finfo(np.float32).tiny) - outputs
    return np.where(norm > _FARTHEST * anchor, 0.0, rescaled)


def keep_largest(params: Params, update: Update) -> DenseUpdate:
    """Keeps the 40 % of a change that are largest relative to their weights (RECT, Gu et al., 2024, section 5).

    Args:
      params: Weights before the change.
      update: Change of one layer's kernel.

    Returns:
      The change, 0 elsewhere. Changes that tie with the smallest kept one are kept, too.

    Example:
      >>> update = LowRankUpdate(Leaf.MLP_DOWN, jnp.int32(1), jnp.ones((512, 1)), jnp.ones((128, 1)))
      >>> round(float((keep_largest(model.params, update).change != 0).mean()), 3)
      0.4
    """
    layer = int(update.layer)
    change = dense(update)
    relative = jnp.abs(change / (weight_of(params, layer, update.leaf) + _EPSILON))
    # As in the authors' code, the bound is the k-th smallest number, counted from 1.
    rank = max(int((1 - KEPT_SHARE) * relative.size), 1)
    bound = jnp.sort(relative, axis=None)[rank - 1]
    kept = jnp.where(relative >= bound, change, 0)
    return DenseUpdate(update.leaf, Part.KERNEL, update.layer, kept)


def keep_largest_of_each(params: Params, update: LowRankUpdate) -> DenseUpdate:
    """Applies `keep_largest` to each of N edits of one layer, whose update has a case axis."""
    (layer,) = set(np.asarray(update.layer).tolist())
    one = LowRankUpdate(update.leaf, jnp.int32(layer), update.left, update.right)
    kept = [
        keep_largest(params, dataclasses.replace(one, left=left, right=right)).change
        for left, right in zip(update.left, update.right, strict=True)
    ]
    return DenseUpdate(update.leaf, Part.KERNEL, update.layer, jnp.stack(kept))


def compress_rank_one(params: Params, update: LowRankUpdate) -> LowRankUpdate:
    """Applies `compress` to each of N edits of one layer and rank one, whose update has a case axis."""
    (layer,) = set(np.asarray(update.layer).tolist())
    largest = jnp.linalg.norm(weight_of(params, layer, update.leaf), 2)
    value = jnp.linalg.norm(update.left, axis=1) * jnp.linalg.norm(update.right, axis=1)  # [N, 1]
    wanted = jnp.where(value > largest, largest + jnp.log(value / largest), value)
    scale = jnp.where(value > 0, wanted / value, 1.0)
    return dataclasses.replace(update, right=update.right * scale[:, None])


def pruned(params: Params, written: Delta) -> Delta:
    """Compresses the singular values of a whole change (PRUNE, Ma et al., 2024, section 4).

    A singular value s above m, the largest one of the unedited weight, becomes m + ln(s / m).

    Args:
      params: Weights that hold the change.
      written: All updates so far, without a case axis.

    Returns:
      The difference between the compressed change and the change, one dense update per changed layer. The authors'
      code instead adds the compressed change to weights that already hold the change.

    Example:
      >>> pruned(model.params, Delta(())).updates
      ()
    """
    changes: dict[int, jax.Array] = {}
    for update in written.updates:
        layer = int(update.layer)
        changes[layer] = changes.get(layer, 0) + dense(update)
    updates = []
    for layer, change in sorted(changes.items()):
        weight = weight_of(params, layer, Leaf.MLP_DOWN) - change
        difference = compress(np.asarray(change), np.asarray(weight)) - np.asarray(change)
        change = jnp.asarray(difference, jnp.float32)
        updates.append(DenseUpdate(Leaf.MLP_DOWN, Part.KERNEL, jnp.int32(layer), change))
    return Delta(tuple(updates))


def compress(change: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Compresses the singular values of a change [F, D] that exceed the largest one of a weight [F, D].

    Example:
      >>> compress(np.diag([np.e**2, 0.5]), np.eye(2)).round(6).tolist()
      [[3.0, 0.0], [0.0, 0.5]]
    """
    left, values, right = np.linalg.svd(np.asarray(change, np.float64), full_matrices=False)
    largest = np.linalg.norm(np.asarray(weight, np.float64), 2)
    values = np.where(values > largest, largest + np.log(values / largest), values)
    return (left * values) @ right
