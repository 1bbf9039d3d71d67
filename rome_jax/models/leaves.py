"""Leaves of params, built from the tensors of a checkpoint directly on the devices that hold them.

Each device of a mesh holds a window of every leaf, which is a window of each layer's tensor. Only these windows are
copied from the memory-mapped files, and devices that hold the same window share one copy. A leaf that is on one device
has one window, the whole.

Windows are cut as the checkpoint stores a tensor, [out, in] in most families. Transposing and converting to another
dtype is left to the devices, except for small leaves.

Axes: L layers, H heads, K head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rome_jax.models.checkpoint import Tensor
from rome_jax.models.config import ModelConfig
from rome_jax.models.families.base import Weight
from rome_jax.models.weights import Slot

Tensors = Sequence[tuple[Slot, Tensor]]  # all tensors of one leaf
OnRead = Callable[[jax.Device, int], object]  # called with a device and a number of bytes
_Window = tuple[range, ...]  # unlike slices, ranges can be keys


def assemble(
    tensors: Tensors,
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: NamedSharding | None,
    config: ModelConfig,
    on_read: OnRead | None = None,
) -> jax.Array:
    """Builds a small leaf: its windows are assembled on the host, which costs less than compiling a program.

    Args:
      tensors: The tensors of the leaf.
      shape: Shape of the leaf.
      dtype: Type of the leaf.
      sharding: Where the leaf is placed; None means the default device.
      config: The model's config.
      on_read: Called for each window that is copied, with the first device that holds it and the window's size in
        bytes, in the tensor's dtype.
    """
    weight, layers = tensors[0][0].weight, shape[:1] if tensors[0][0].layer is not None else ()
    stored = _as_stored(weight, shape[len(layers) :])
    windows = _windows(_stored_sharding(weight, sharding, bool(layers)), stored)
    parts = {
        window: np.empty((*layers, *_as_ours(weight, _sizes(window))), dtype) for window in windows
    }
    for slot, tensor in tensors:
        view = _view(weight, tensor.read(), stored, config)
        for window, devices in windows.items():
            part = _cut(view, window, config)
            _report(on_read, devices[0], part)
            part = np.moveaxis(part, -1, 0) if weight.transposed else part
            parts[window][... if slot.layer is None else slot.layer] = part
    return _place(parts, windows, shape, sharding)


def fill(
    tensors: Tensors,
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: NamedSharding | None,
    config: ModelConfig,
    on_read: OnRead | None = None,
) -> jax.Array:
    """Builds a large leaf: the devices receive one tensor after the other and write it into place.

    Arguments are those of `assemble`.
    """
    weight, stacked = tensors[0][0].weight, tensors[0][0].layer is not None
    stored = _as_stored(weight, shape[1:] if stacked else shape)
    stored_sharding = _stored_sharding(weight, sharding, stacked)
    windows = _windows(stored_sharding, stored)
    leaf = jnp.zeros(shape, dtype, device=sharding)
    for slot, tensor in tensors:
        view = _view(weight, tensor.read(), stored, config)
        parts = {window: _cut(view, window, config) for window in windows}
        for window, devices in windows.items():
            _report(on_read, devices[0], parts[window])
        source = _place(parts, windows, stored, stored_sharding)
        part = _convert(source, leaf.dtype, transposed=weight.transposed)
        leaf = _put(leaf, part, slot.layer, sharding=sharding)
        leaf.block_until_ready()  # otherwise copies of the sources pile up in memory
    return leaf


@functools.partial(jax.jit, static_argnames=("dtype", "transposed"))
def _convert(tensor: jax.Array, dtype: Any, *, transposed: bool) -> jax.Array:
    """Brings a stored tensor into our order and dtype."""
    return (jnp.moveaxis(tensor, -1, 0) if transposed else tensor).astype(dtype)


# In a program of its own: together with a conversion, XLA's CPU backend would convert the whole half-precision leaf.
@functools.partial(jax.jit, donate_argnums=0, static_argnames="sharding")
def _put(
    leaf: jax.Array, tensor: jax.Array, layer: jax.Array | None, *, sharding: NamedSharding | None
) -> jax.Array:
    """Writes one tensor into its donated leaf in place."""
    if layer is None:
        leaf = jax.lax.dynamic_update_slice(leaf, tensor, (0,) * leaf.ndim)
    else:
        leaf = jax.lax.dynamic_update_index_in_dim(leaf, tensor, layer, 0)
    return leaf if sharding is None else jax.lax.with_sharding_constraint(leaf, sharding)


def _as_stored(weight: Weight, ours: Sequence[Any]) -> tuple[Any, ...]:
    """Brings what belongs to the axes of a layer into the order of the checkpoint, [in, ...] -> [..., in]."""
    return (*ours[1:], ours[0]) if weight.transposed else tuple(ours)


def _as_ours(weight: Weight, stored: Sequence[Any]) -> tuple[Any, ...]:
    """Brings what belongs to the axes of a stored tensor into our order, [..., in] -> [in, ...]."""
    return (stored[-1], *stored[:-1]) if weight.transposed else tuple(stored)


def _stored_sharding(
    weight: Weight, sharding: NamedSharding | None, stacked: bool
) -> NamedSharding | None:
    """Returns the sharding of one stored tensor that matches the sharding of its leaf."""
    if sharding is None:
        return None
    spec = tuple(sharding.spec)[1:] if stacked else tuple(sharding.spec)
    return NamedSharding(sharding.mesh, PartitionSpec(*_as_stored(weight, spec)))


def _windows(
    sharding: NamedSharding | None, shape: tuple[int, ...]
) -> dict[_Window, list[jax.Device]]:
    """Returns the different windows of an array, each with the devices of this process that hold it."""
    if sharding is None:
        return {tuple(range(size) for size in shape): jax.local_devices()[:1]}
    windows: dict[_Window, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        window = tuple(range(size)[one] for one, size in zip(index or (), shape, strict=True))
        windows.setdefault(window, []).append(device)
    return windows


def _sizes(window: _Window) -> tuple[int, ...]:
    """Returns the shape of a window."""
    return tuple(map(len, window))


def _view(
    weight: Weight, tensor: np.ndarray, stored: tuple[int, ...], config: ModelConfig
) -> np.ndarray:
    """Views a tensor as `_cut` expects it, without copying it.

    A fused projection gets an axis for its three parts. If it is stored by head, [H, 3, K, ...], its view is
    [3, H, K, ...]: joining H and K would copy the tensor.
    """
    if weight.by_head:
        heads = tensor.reshape(config.num_heads, 3, config.head_dim, *tensor.shape[1:])
        return heads.swapaxes(0, 1)
    return tensor.reshape(stored)


def _cut(view: np.ndarray, window: _Window, config: ModelConfig) -> np.ndarray:
    """Copies a window of a view, unless it is contiguous in the file. Heads are never divided."""
    index = [slice(axis.start, axis.stop) for axis in window]
    if view.ndim > len(window):  # [3, H, K, ...] instead of [3, H K, ...]
        width = config.head_dim
        index[1:2] = slice(window[1].start // width, window[1].stop // width), slice(None)
    return np.ascontiguousarray(view[tuple(index)]).reshape(_sizes(window))


def _place(
    parts: dict[_Window, np.ndarray],
    windows: dict[_Window, list[jax.Device]],
    shape: tuple[int, ...],
    sharding: NamedSharding | None,
) -> jax.Array:
    """Moves windows to their devices and joins them to one array; without a sharding there is one window."""
    if sharding is None:
        (part,) = parts.values()
        return jnp.asarray(part)
    arrays = [
        jax.device_put(part, device) for window, part in parts.items() for device in windows[window]
    ]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _report(on_read: OnRead | None, device: jax.Device, part: np.ndarray) -> None:
    """Tells the caller how much was read for a device."""
    if on_read is not None:
        on_read(device, part.nbytes)
