"""Edits as data: the rank-one update, merging it into params, files.

Axes: N requests, F MLP width, D width.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rome_jax.models.forward import Params
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate

DELTA_FILE = "delta.safetensors"


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


def dense(update: LowRankUpdate) -> jax.Array:
    """ΔW = Σ_r left_r ⊗ right_r, [*N, in, out]."""
    return jnp.einsum(
        "...ir,...or->...io", update.left, update.right, precision=jax.lax.Precision.HIGHEST
    )


def apply_delta(params: Params, delta: Delta) -> Params:
    """Merges one edit into the weights.

    Args:
      params: of the model; they stay valid and unchanged.
      delta: one edit, without a case axis.

    Returns:
      New params. Untouched leaves are shared with the old ones where the runtime allows it.

    Raises:
      ValueError: a delta with a case axis (independent edits do not belong into one model), or of a weight, layer or
        shape that this model does not have.

    Example:
      >>> edited = apply_delta(model.params, deltas[0])  # doctest: +SKIP
    """
    if delta.batched:
        raise ValueError(
            f"{len(delta)} independent edits: merge one, delta[i], or score them all with forward.logits."
        )
    for update in delta.updates:
        _check_fits(params, update)
    return _merge(params, delta)


def _check_fits(params: Params, update: LowRankUpdate) -> None:
    module, name = update.leaf.value
    kernel = params["blocks"].get(module, {}).get(name, {}).get("kernel")
    if kernel is None:
        raise ValueError(f"the delta changes {module}/{name}, which this model does not have.")
    layers, *shape = kernel.shape
    if [update.left.shape[0], update.right.shape[0]] != shape:
        raise ValueError(
            f"the delta changes a {module}/{name} of {update.left.shape[0]} × {update.right.shape[0]}; this model's "
            f"is {shape[0]} × {shape[1]}: it was made for another model."
        )
    if not isinstance(update.layer, jax.core.Tracer) and not 0 <= int(update.layer) < layers:
        raise ValueError(
            f"the delta changes layer {int(update.layer)}; the model has layers 0 to {layers - 1}."
        )


@jax.jit
def _merge(params: Params, delta: Delta) -> Params:
    blocks = params["blocks"]
    for update in delta.updates:
        module, name = update.leaf.value
        kernel = blocks[module][name]["kernel"]
        # In float32: a half-precision weight is rounded once, after the sum.
        layer = jax.lax.dynamic_index_in_dim(kernel, update.layer, keepdims=False)
        layer = (layer.astype(jnp.float32) + dense(update)).astype(kernel.dtype)
        kernel = jax.lax.dynamic_update_index_in_dim(kernel, layer, update.layer, 0)
        projection = blocks[module][name] | {"kernel": kernel}
        blocks = blocks | {module: blocks[module] | {name: projection}}
    return params | {"blocks": blocks}


def save_delta(
    directory: str | pathlib.Path, delta: Delta, metadata: Mapping[str, Any]
) -> pathlib.Path:
    """Writes factors and provenance to `directory`/delta.safetensors, whole or not at all.

    Args:
      directory: made if absent.
      delta: one edit or many.
      metadata: JSON-able facts about where the edit comes from: model, fingerprint, requests, configuration.

    Returns:
      The file's path.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for index, update in enumerate(delta.updates):
        for field in ("layer", "left", "right"):
            # Not np.ascontiguousarray: it would give the layer of a single edit a case axis.
            arrays[f"{index}.{update.leaf.name}.{field}"] = np.asarray(
                getattr(update, field), order="C"
            )
    path = directory / DELTA_FILE
    temporary = path.with_suffix(".tmp")
    save_file(arrays, temporary, metadata={"rome_jax": json.dumps(dict(metadata), sort_keys=True)})
    temporary.replace(path)
    return path


def load_delta(directory: str | pathlib.Path) -> tuple[Delta, dict[str, Any]]:
    """Reads what `save_delta` wrote: (delta, metadata).

    Raises:
      FileNotFoundError: no delta there.
      ValueError: a damaged file, or a safetensors file that is not a delta.
    """
    path = pathlib.Path(directory) / DELTA_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: name a directory that save_delta wrote.")
    try:
        file = safe_open(path, framework="np")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): copy or save it again.") from error
    with file:
        metadata = (file.metadata() or {}).get("rome_jax")
        if metadata is None:
            raise ValueError(f"{path} is not an edit of rome_jax.")
        fields: dict[tuple[int, str], dict[str, jax.Array]] = {}
        for name in file.keys():  # noqa: SIM118  (safe_open is not a dict)
            index, leaf, field = name.split(".")
            fields.setdefault((int(index), leaf), {})[field] = jnp.asarray(file.get_tensor(name))
    updates = tuple(
        LowRankUpdate(Leaf[leaf], **fields[index, leaf]) for index, leaf in sorted(fields)
    )
    return Delta(updates), json.loads(metadata)
