"""Edits as data: the rank-one update, merging edits into weights, and subtracting them again.

Axes: N requests, F MLP width, D width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rome_jax.models.forward import Params
from rome_jax.models.interventions import (
    Delta,
    DenseUpdate,
    Leaf,
    LowRankUpdate,
    Part,
    check_factors,
)
from rome_jax.models.placement import DATA_AXIS, mesh_of, put

Update = LowRankUpdate | DenseUpdate


def rank_one_update(
    layer: int, u: jax.Array, key: jax.Array, value: jax.Array, target: jax.Array
) -> tuple[LowRankUpdate, jax.Array]:
    """Builds ΔW = u Λᵀ with Λ = (v* − v) / (k · u), so that the down-projection maps k to v*.

    Args:
      layer: Edited layer.
      u: [N, F] whitened direction.
      key: [N, F] k.
      value: [N, D] v = W k + b, the present value of k.
      target: [N, D] v*.

    Returns:
      The update with case axis N, and the division factors k · u, [N].

    Example:
      >>> u, k = jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 5.0]])
      >>> update, factor = rank_one_update(3, u, k, value=jnp.zeros((1, 1)), target=jnp.ones((1, 1)))
      >>> dense(update).tolist(), factor.tolist()
      ([[[0.5], [0.0]]], [2.0])

    Source: Meng et al., 2022, "Locating and Editing Factual Associations in GPT", equation 2. Kernels are stored
    [in, out], so ΔW is the transpose of the paper's.
    """
    factor = jnp.einsum("nf,nf->n", key, u, precision=jax.lax.Precision.HIGHEST)
    right = (target - value) / factor[:, None]
    layers = jnp.full(u.shape[:1], layer, jnp.int32)
    return LowRankUpdate(Leaf.MLP_DOWN, layers, u[..., None], right[..., None]), factor


def dense(update: Update) -> jax.Array:
    """Returns ΔW as an array, [*N, in, out]: Σ_r left_r ⊗ right_r, or the change of a dense update.

    Raises:
      ValueError: If the factors of a low-rank update differ in rank.
    """
    if isinstance(update, DenseUpdate):
        return update.change
    check_factors(update)
    return jnp.einsum(
        "...ir,...or->...io", update.left, update.right, precision=jax.lax.Precision.HIGHEST
    )


def apply_delta(params: Params, delta: Delta, *, donate: bool = False) -> Params:
    """Merges one edit into the weights.

    The updates are added one after another. Each sum is computed in float32 and rounded once, so that a merged delta
    gives bit-identical weights to its parts applied in order.

    Args:
      params: Weights of the model. They stay valid and unchanged, unless they are donated.
      delta: One edit, without a case axis.
      donate: Whether to write into the memory of the changed weights instead of copying them. This saves 2 GB per edit
        for GPT-2 XL in float32. Afterwards the changed leaves of `params` are invalid, in every tree that contains
        them; the other leaves stay valid.

    Returns:
      New params. Leaves that the edit does not change are shared with the old ones.

    Raises:
      ValueError: If the delta has a case axis, or changes a weight, layer or shape that the model does not have.

    Example:
      >>> deltas = rome_jax.edit.rome.compute_deltas(
      ...     model, [request], config, second_moments=moments, templates=["{}"])
      >>> edited = apply_delta(model.params, deltas[0])
      >>> restored = revert_delta(edited, deltas[0])
      >>> bool(jnp.allclose(restored["blocks"]["mlp"]["down"]["kernel"],
      ...                   model.params["blocks"]["mlp"]["down"]["kernel"], atol=1e-5))
      True
    """
    check_single(delta)
    for update in delta.updates:
        _check_fits(params, update)
    blocks, copied = params["blocks"], set[tuple[str, str, str]]()
    for update in delta.updates:
        path = module, name, part = _path(update)
        # Only this function holds the copy that an earlier update made.
        replace = _replace_layer_in_place if donate or path in copied else _replace_layer
        copied.add(path)
        projection = blocks[module][name]
        weight = projection[part]
        layer = _edited_layer(weight, update)
        projection = projection | {part: replace(weight, layer, update.layer, axis=0)}
        blocks = blocks | {module: blocks[module] | {name: projection}}
    return params | {"blocks": blocks}


def revert_delta(params: Params, delta: Delta, *, donate: bool = False) -> Params:
    """Subtracts one edit from the weights.

    The result equals the weights before the edit up to rounding: each element is off by at most about one unit in the
    last place of the edited or the old element, whichever is larger. For bit-identical weights keep the old params,
    which `apply_delta` does not change. The function cannot check whether `params` contain the edit.

    Args:
      params: Weights of the edited model.
      delta: The edit, without a case axis.
      donate: As in `apply_delta`.

    Returns:
      New params.

    Raises:
      ValueError: As in `apply_delta`.

    Example: See `apply_delta`.
    """
    return apply_delta(params, negate_delta(delta), donate=donate)


def merge_deltas(deltas: Sequence[Delta]) -> Delta:
    """Joins several edits, in their order. Applying the result gives the same bits as applying them one by one.

    Raises:
      ValueError: If a delta has a case axis.

    Example:
      >>> update = LowRankUpdate(Leaf.MLP_DOWN, jnp.int32(5), jnp.ones((8, 1)), jnp.ones((4, 1)))
      >>> len(merge_deltas([Delta((update,)), Delta((update,))]).updates)
      2
    """
    for delta in deltas:
        check_single(delta)
    return Delta(tuple(update for delta in deltas for update in delta.updates))


def negate_delta(delta: Delta) -> Delta:
    """Returns the edit that undoes `delta`: −ΔW, with the updates in reverse order."""
    return Delta(tuple(map(_negated, reversed(delta.updates))))


@dataclasses.dataclass(frozen=True)
class WeightChange:
    """The change that an edit makes to one array of weights.

    Attributes:
      layer: Index of the layer.
      weight: Name of the weight, such as "mlp/down" or "mlp/down bias".
      rank: Upper bound of the rank of ΔW, or None if the change is dense.
      norm_ratio: ‖ΔW‖ / ‖W‖ (Frobenius).
    """

    layer: int
    weight: str
    rank: int | None
    norm_ratio: float


def weight_changes(params: Params, delta: Delta) -> tuple[WeightChange, ...]:
    """Describes the change of each weight that an edit changes, in the order of its updates.

    Args:
      params: Weights of the model before the edit.
      delta: The edit, without a case axis.

    Raises:
      ValueError: As in `apply_delta`.

    Example:
      >>> update = LowRankUpdate(Leaf.MLP_DOWN, jnp.int32(1), jnp.ones((512, 1)), jnp.ones((128, 1)))
      >>> weight_changes(model.params, Delta((update,)))
      (WeightChange(layer=1, weight='mlp/down', rank=1, norm_ratio=...),)
    """
    check_single(delta)
    updates: dict[tuple[int, str], list[Update]] = {}
    for update in delta.updates:
        _check_fits(params, update)
        updates.setdefault((int(update.layer), weight_name(update)), []).append(update)
    changes = []
    for (layer, name), own in updates.items():
        weight = weight_of(params, layer, own[0].leaf, _part(own[0]))
        norm = jnp.linalg.norm(sum(map(dense, own), start=jnp.zeros(())))
        ratio = jnp.where(norm == 0, 0.0, norm / jnp.linalg.norm(weight))  # NaN stays NaN
        factors = [update for update in own if isinstance(update, LowRankUpdate)]
        rank = sum(update.left.shape[-1] for update in factors)
        changes.append(
            WeightChange(layer, name, rank if len(factors) == len(own) else None, float(ratio))
        )
    return tuple(changes)


def weight_of(params: Params, layer: int, leaf: Leaf, part: Part = Part.KERNEL) -> jax.Array:
    """Returns one layer's kernel, float32 [in, out], or bias, float32 [out], as the updates of a delta see it.

    Example:
      >>> weight_of(model.params, 0, Leaf.ATTN_QKV).shape  # queries, keys and values one after another
      (128, 384)
    """
    module, name = leaf.value
    weight = params["blocks"][module][name][part.value][layer].astype(jnp.float32)
    return weight.reshape(_update_shape(weight.shape, part))


def _update_shape(shape: tuple[int, ...], part: Part) -> tuple[int, ...]:
    """Joins the axes of the outputs of one layer's weight, of which fused queries, keys and values have two."""
    inputs = shape[:1] if part is Part.KERNEL else ()
    return (*inputs, math.prod(shape[len(inputs) :]))


def place_delta(delta: Delta, params: Params) -> Delta:
    """Splits the factors of independent edits over a mesh: cases over "data", and the rest like the weights.

    Args:
      delta: Edits with case axis N.
      params: Weights of the model. If they are on one device, `delta` is returned unchanged.

    Example:
      >>> update = LowRankUpdate(Leaf.MLP_DOWN, jnp.array([0]), jnp.ones((1, 512, 1)), jnp.ones((1, 128, 1)))
      >>> place_delta(Delta((update,)), model.params)
      Delta(1 edits: MLP_DOWN [512, 128] rank 1 at layer 0)
    """
    if mesh_of(params) is None:
        return delta

    def place(update: Update) -> Update:
        module, name, part = _path(update)
        inputs, *outputs = params["blocks"][module][name][part].sharding.spec[1:]
        if isinstance(update, DenseUpdate) or len(outputs) != 1:
            return update
        return dataclasses.replace(
            update,
            left=put(update.left, params, DATA_AXIS, inputs),
            right=put(update.right, params, DATA_AXIS, *outputs),
        )

    return Delta(tuple(map(place, delta.updates)))


def weight_name(update: Update) -> str:
    """Returns a readable name of the weight that an update changes: "mlp/down", or "mlp/down bias"."""
    module, projection, part = _path(update)
    return f"{module}/{projection}" + (" bias" if part == Part.BIAS.value else "")


def _negated(update: Update) -> Update:
    """Returns the update by −ΔW."""
    if isinstance(update, DenseUpdate):
        return dataclasses.replace(update, change=-update.change)
    return dataclasses.replace(update, right=-update.right)


def _path(update: Update) -> tuple[str, str, str]:
    """Returns the path below `params["blocks"]` of the weight that an update changes."""
    module, name = update.leaf.value
    return module, name, _part(update).value


def _part(update: Update) -> Part:
    """Returns whether an update changes the kernel or the bias."""
    return update.part if isinstance(update, DenseUpdate) else Part.KERNEL


def check_single(delta: Delta) -> None:
    """Checks that a delta is one edit: independent edits cannot be merged into one model."""
    if delta.batched:
        raise ValueError(
            f"the delta holds {len(delta)} independent edits: merge one of them, delta[i], or score them all with "
            "forward.logits."
        )


def _check_fits(params: Params, update: Update) -> None:
    """Checks that the model has the weight and layer of an update, in its shape."""
    module, name, part = _path(update)
    weight = params["blocks"].get(module, {}).get(name, {}).get(part)
    what = weight_name(update)
    if weight is None:
        raise ValueError(f"the delta changes {what}, which this model does not have.")
    layers = weight.shape[0]
    expected = _update_shape(weight.shape[1:], _part(update))
    shape = jax.eval_shape(dense, update).shape
    if shape != expected:
        raise ValueError(
            f"the delta changes a {what} of {' × '.join(map(str, shape))}, but the model's is "
            f"{' × '.join(map(str, expected))}: the delta was made for another model."
        )
    if not isinstance(update.layer, jax.core.Tracer) and not 0 <= int(update.layer) < layers:
        raise ValueError(
            f"the delta changes layer {int(update.layer)}, but the model has layers 0 to {layers - 1}."
        )


@jax.jit
def _edited_layer(weight: jax.Array, update: Update) -> jax.Array:
    """Adds an update to one layer of a weight [L, in, out] or [L, out], where `out` may be several axes."""
    # The sum is computed in float32, so that a half-precision weight is rounded only once.
    layer = jax.lax.dynamic_index_in_dim(weight, update.layer, keepdims=False)
    change = dense(update).reshape(layer.shape)
    return (layer.astype(jnp.float32) + change).astype(weight.dtype)


# In a program of its own: together with the sum, XLA's CPU backend would convert the whole half-precision stack.
_replace_layer = jax.jit(jax.lax.dynamic_update_index_in_dim, static_argnames="axis")
_replace_layer_in_place = jax.jit(
    jax.lax.dynamic_update_index_in_dim, static_argnames="axis", donate_argnums=0
)
