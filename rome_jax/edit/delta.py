"""Edits as data: the rank-one update, several edits as one, merging into params and taking out again.

Axes: N requests, F MLP width, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rome_jax.models.forward import Params
from rome_jax.models.interventions import Delta, DenseUpdate, Leaf, LowRankUpdate, Part

Update = LowRankUpdate | DenseUpdate


def rank_one_update(
    layer: int, u: jax.Array, key: jax.Array, value: jax.Array, target: jax.Array
) -> tuple[LowRankUpdate, jax.Array]:
    """ΔW = u ⊗ (v* − v) / (k · u), which makes the down-projection map k to v* (paper, equation 2).

    Args:
      layer: the edited layer.
      u: [N, F], the whitened direction.
      key: [N, F], k.
      value: [N, D], v = W k + b, what it maps to now.
      target: [N, D], v*.

    Returns:
      The update with case axis N, and the division factors k · u, [N].
    """
    factor = jnp.einsum("nf,nf->n", key, u, precision=jax.lax.Precision.HIGHEST)
    right = (target - value) / factor[:, None]
    layers = jnp.full(u.shape[:1], layer, jnp.int32)
    return LowRankUpdate(Leaf.MLP_DOWN, layers, u[..., None], right[..., None]), factor


def dense(update: Update) -> jax.Array:
    """ΔW = Σ_r left_r ⊗ right_r, [*N, in, out], or what a dense update holds."""
    if isinstance(update, DenseUpdate):
        return update.change
    return jnp.einsum(
        "...ir,...or->...io", update.left, update.right, precision=jax.lax.Precision.HIGHEST
    )


def apply_delta(params: Params, delta: Delta, *, donate: bool = False) -> Params:
    """Merges one edit into the weights.

    The updates are added one after the other, each in float32 and rounded once: a merged delta gives the same bits as
    its parts, applied in their order.

    Args:
      params: of the model; they stay valid and unchanged, unless they are donated.
      delta: one edit, without a case axis.
      donate: write into the memory of the changed weights instead of copying them, for sequences of edits (GPT-2 XL
        in float32: 2 GB less). These leaves of `params` are dead afterwards, in every tree that holds them; the
        others stay alive.

    Returns:
      New params. Leaves that the edit does not change are the old ones.

    Raises:
      ValueError: a delta with a case axis (independent edits do not belong into one model), or of a weight, layer or
        shape that this model does not have.

    Example:
      >>> edited = apply_delta(model.params, deltas[0])  # doctest: +SKIP
      >>> edited = apply_delta(edited, deltas[1], donate=True)  # doctest: +SKIP
    """
    _check_single(delta)
    for update in delta.updates:
        _check_fits(params, update)
    blocks, copied = params["blocks"], set()
    for update in delta.updates:
        path = module, name, part = _path(update)
        # The copy that an earlier update made is nobody else's.
        add = _add_in_place if donate or path in copied else _add
        copied.add(path)
        projection = blocks[module][name]
        projection = projection | {part: add(projection[part], update)}
        blocks = blocks | {module: blocks[module] | {name: projection}}
    return params | {"blocks": blocks}


def revert_delta(params: Params, delta: Delta, *, donate: bool = False) -> Params:
    """Takes one edit out of the weights again, by subtraction.

    Equal to the weights before the edit up to rounding: each element is off by at most about one unit in the last
    place of the edited or the old one, whichever is larger. For the very bits keep the old params, which
    `apply_delta` leaves as they are. Nothing tells whether `params` hold the edit.

    Args:
      params: of the edited model.
      delta: the edit, without a case axis.
      donate: as in `apply_delta`.

    Returns:
      New params.

    Raises:
      ValueError: as `apply_delta`.

    Example:
      >>> params = revert_delta(edited, deltas[0])  # doctest: +SKIP
    """
    return apply_delta(params, negate_delta(delta), donate=donate)


def merge_deltas(deltas: Sequence[Delta]) -> Delta:
    """Several edits as one, in their order; applying it gives the same bits as applying them in turn.

    Raises:
      ValueError: a delta with a case axis.

    Example:
      >>> both = merge_deltas([deltas[0], deltas[1]])  # doctest: +SKIP
    """
    for delta in deltas:
        _check_single(delta)
    return Delta(tuple(update for delta in deltas for update in delta.updates))


def negate_delta(delta: Delta) -> Delta:
    """The edit that takes `delta` back: −ΔW, the last update first."""
    return Delta(tuple(map(_negated, reversed(delta.updates))))


@dataclasses.dataclass(frozen=True)
class WeightChange:
    """What an edit does to one array of weights.

    Attributes:
      layer: its index.
      weight: its name, such as "mlp/down" or "mlp/down bias".
      rank: of ΔW at most; None if the change is dense.
      norm_ratio: ‖ΔW‖ / ‖W‖ (Frobenius).
    """

    layer: int
    weight: str
    rank: int | None
    norm_ratio: float


def weight_changes(params: Params, delta: Delta) -> tuple[WeightChange, ...]:
    """What one edit does to each of the weights that it changes, in the order of its updates.

    Args:
      params: of the model before the edit.
      delta: the edit, without a case axis.

    Raises:
      ValueError: as `apply_delta`.

    Example:
      >>> weight_changes(model.params, deltas[0])  # doctest: +SKIP
      (WeightChange(layer=1, weight='mlp/down', rank=1, norm_ratio=0.23),)
    """
    _check_single(delta)
    updates: dict[tuple[int, str], list[Update]] = {}
    for update in delta.updates:
        _check_fits(params, update)
        updates.setdefault((int(update.layer), weight_name(update)), []).append(update)
    changes = []
    for (layer, name), own in updates.items():
        module, projection, part = _path(own[0])
        weight = params["blocks"][module][projection][part][layer].astype(jnp.float32)
        norm = jnp.linalg.norm(sum(map(dense, own)))
        ratio = jnp.where(norm > 0, norm / jnp.linalg.norm(weight), 0.0)
        factored = Delta(tuple(own)).factored
        rank = sum(update.left.shape[-1] for update in own) if factored else None
        changes.append(WeightChange(layer, name, rank, float(ratio)))
    return tuple(changes)


def weight_name(update: Update) -> str:
    """The weight that an update changes, for people: "mlp/down", or "mlp/down bias"."""
    module, projection, part = _path(update)
    return f"{module}/{projection}" + (" bias" if part == Part.BIAS.value else "")


def _negated(update: Update) -> Update:
    if isinstance(update, DenseUpdate):
        return update.replace(change=-update.change)
    return update.replace(right=-update.right)


def _path(update: Update) -> tuple[str, str, str]:
    """Where the weight that it changes stands below `params["blocks"]`."""
    part = update.part if isinstance(update, DenseUpdate) else Part.KERNEL
    return (*update.leaf.value, part.value)


def _check_single(delta: Delta) -> None:
    if delta.batched:
        raise ValueError(
            f"{len(delta)} independent edits: merge one, delta[i], or score them all with forward.logits."
        )


def _check_fits(params: Params, update: Update) -> None:
    module, name, part = _path(update)
    weight = params["blocks"].get(module, {}).get(name, {}).get(part)
    what = weight_name(update)
    if weight is None:
        raise ValueError(f"the delta changes {what}, which this model does not have.")
    layers, *wanted = weight.shape
    shape = list(jax.eval_shape(dense, update).shape)
    if shape != wanted:
        raise ValueError(
            f"the delta changes a {what} of {' × '.join(map(str, shape))}; this model's "
            f"is {' × '.join(map(str, wanted))}: it was made for another model."
        )
    if not isinstance(update.layer, jax.core.Tracer) and not 0 <= int(update.layer) < layers:
        raise ValueError(
            f"the delta changes layer {int(update.layer)}; the model has layers 0 to {layers - 1}."
        )


def _sum(weight: jax.Array, update: Update) -> jax.Array:
    """weight [L, in, out] or [L, out] with the change added at the update's layer."""
    # In float32: a half-precision weight is rounded once, after the sum.
    layer = jax.lax.dynamic_index_in_dim(weight, update.layer, keepdims=False)
    layer = (layer.astype(jnp.float32) + dense(update)).astype(weight.dtype)
    return jax.lax.dynamic_update_index_in_dim(weight, layer, update.layer, 0)


_add = jax.jit(_sum)
_add_in_place = jax.jit(_sum, donate_argnames="weight")
