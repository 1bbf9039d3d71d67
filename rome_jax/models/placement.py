"""Where values of a forward pass are placed on a mesh of devices.

Params carry their mesh: inside a program, the type of each leaf names it. XLA propagates the placement of weights to
everything that is computed from them, so a program needs no mesh as an argument. It is only told what it cannot infer
from the weights: the rows of a batch are split over the axis "data".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"  # requests and rows
MODEL_AXIS = "model"  # weights


def mesh_of(params: Any) -> AbstractMesh | None:
    """Returns the mesh that params are placed on, or None if they are on one device.

    Args:
      params: Params of a model or some of their leaves, as arrays or inside a program.

    Example:
      >>> mesh_of(model.params) is None
      True
    """
    mesh = jax.typeof(jax.tree.leaves(params)[0]).sharding.mesh
    return None if mesh.empty or mesh.size == 1 else mesh


def constrain(values: jax.Array, params: Any, *axes: str | None) -> jax.Array:
    """Tells XLA over which axes of the mesh to split an array, where it could guess badly.

    An axis that does not divide its dimension evenly, or that the mesh does not have, is ignored.

    Args:
      values: The array to split.
      params: As in `mesh_of`. If they are on one device, `values` are returned unchanged.
      *axes: The axis of the mesh for each of the leading dimensions; None leaves the choice to XLA.

    Example:
      >>> constrain(jnp.ones((4, 2)), model.params, DATA_AXIS).shape
      (4, 2)
    """
    mesh = mesh_of(params)
    if mesh is None:
        return values
    spec = _spec(mesh, values.shape, axes, PartitionSpec.UNCONSTRAINED)
    return jax.lax.with_sharding_constraint(values, NamedSharding(mesh, spec))


def put(values: jax.Array, params: Any, *axes: str | None) -> jax.Array:
    """Moves an array to the mesh of params, outside of programs; arguments are as in `constrain`.

    Dimensions without an axis are not split.

    Example:
      >>> put(jnp.ones((4, 2)), model.params, DATA_AXIS).shape
      (4, 2)
    """
    if mesh_of(params) is None:
        return values
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    return jax.device_put(values, NamedSharding(mesh, _spec(mesh, values.shape, axes, None)))


def _spec(
    mesh: Mesh | AbstractMesh, shape: Sequence[int], axes: Sequence[str | None], other: Any
) -> PartitionSpec:
    """Builds the spec of an array; dimensions that cannot be split evenly over their axis get `other`."""
    parts = [mesh.shape.get(axis, 0) if axis else 0 for axis in axes]
    spec = [
        axis if count and size % count == 0 else other
        for axis, count, size in zip(axes, parts, shape, strict=False)
    ]
    return PartitionSpec(*spec, *[other] * (len(shape) - len(spec)))
