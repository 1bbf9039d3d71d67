"""Products with bfloat16 weights on a CPU, without float32 copies of the weights.

XLA's CPU backend multiplies two bfloat16 arrays without float32 copies of them only under three conditions, which all
products of a projection and its gradient meet:

- The result is float32. A float32 input is the sum of three bfloat16 arrays, and each of them is multiplied by the
  weights.
- Neither factor is a transposed array; the product itself may sum over the last axis of both. If it sums over two axes
  of the weights, they must be its first factor.
- Both factors have more than one row.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision

_BITS = 8, 7  # exponent and mantissa of bfloat16


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def project_bfloat16(
    x: jax.Array, kernel: jax.Array, dtype: Any, transposed: bool = False
) -> jax.Array:
    """Multiplies an input by a bfloat16 kernel.

    Args:
      x: bfloat16 or float32 [..., in].
      kernel: bfloat16 [in, ...], or [out, in] if it is transposed.
      dtype: dtype of the result, which is computed in float32.
      transposed: Whether the kernel is transposed, as the embedding of a tied head is.

    Returns:
      [..., out].

    Example:
      >>> project_bfloat16(jnp.array([1 + 2**-20]), jnp.ones((1, 1), jnp.bfloat16), jnp.float32).item() - 1
      9.5367431640625e-07
    """
    return _multiply(x, kernel, (1,) if transposed else (0,), 3).astype(dtype)


def _multiply(x: jax.Array, kernel: jax.Array, axes: Sequence[int], count: int) -> jax.Array:
    """Sums over axes of a kernel, which are its first or all others, and over as many last axes of an input.

    Args:
      x: bfloat16 or float32 [..., in].
      kernel: bfloat16 [in, out] or [out, in], where `in` may be several axes, or else `out`.
      axes: Axes of the kernel.
      count: Number of parts of a float32 input.

    Returns:
      float32 [..., out].
    """
    rows = x.ndim - len(axes)
    if math.prod(x.shape[:rows]) == 1:
        return _multiply(jnp.stack([x, x]), kernel, axes, count)[0]
    inputs, parts = range(rows, x.ndim), _parts(x, count)
    if len(axes) == 1:
        terms = [_product(part, kernel, (inputs, axes)) for part in parts]
    else:
        terms = [jnp.moveaxis(_product(kernel, part, (axes, inputs)), 0, -1) for part in parts]
    return sum(terms[1:], terms[0])


def _parts(x: jax.Array, count: int) -> list[jax.Array]:
    """Writes an array as a sum of bfloat16 arrays, up to a relative error of 2⁻⁸ per array, or 2⁻²⁴ for three."""
    if x.dtype == jnp.bfloat16:
        return [x]
    parts = []
    for _ in range(count):
        # Not `astype`: XLA may drop a conversion to bfloat16 and back, and the next part would be zero.
        high = jax.lax.reduce_precision(x, *_BITS)
        parts.append(high.astype(jnp.bfloat16))
        x = x - high
    return parts


def _product(
    lhs: jax.Array, rhs: jax.Array, contracted: tuple[Sequence[int], Sequence[int]]
) -> jax.Array:
    """Multiplies two bfloat16 arrays; the result is float32."""
    return jax.lax.dot_general(
        lhs,
        rhs,
        (contracted, ((), ())),
        precision=Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def _project_forward(
    x: jax.Array, kernel: jax.Array, dtype: Any, transposed: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return project_bfloat16(x, kernel, dtype, transposed), (x, kernel)


def _project_backward(
    dtype: Any, transposed: bool, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, ...]:
    del dtype
    x, kernel = saved
    # Two parts of a float32 gradient are more precise than a result in bfloat16.
    count = 2 if x.dtype == jnp.bfloat16 else 3
    of_x = _multiply(gradient, kernel, (0,) if transposed else range(1, kernel.ndim), count)
    rows = range(x.ndim - 1)
    first, second = (gradient, x) if transposed else (x, gradient)
    of_kernel = [
        _product(lhs, rhs, (rows, rows)) for lhs in _parts(first, 2) for rhs in _parts(second, 2)
    ]
    return (
        of_x.astype(x.dtype),
        sum(of_kernel[1:], of_kernel[0]).astype(kernel.dtype),
    )


project_bfloat16.defvjp(_project_forward, _project_backward)
