"""Products with bfloat16 weights on a CPU, without float32 copies of the weights.

XLA's CPU backend multiplies two bfloat16 arrays without float32 copies of them only if it is asked for a float32
result. All products of a projection and its gradient do so. A float32 input is the sum of three bfloat16 arrays, and
each of them is multiplied by the weights.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision

_BITS = 8, 7  # exponent and mantissa of bfloat16


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def project_bfloat16(x: jax.Array, kernel: jax.Array, dtype: Any) -> jax.Array:
    """Multiplies bfloat16 or float32 x [..., in] by a bfloat16 kernel [in, ...]; the result is rounded to `dtype`.

    Example:
      >>> project_bfloat16(jnp.array([1 + 2**-20]), jnp.ones((1, 1), jnp.bfloat16), jnp.float32).item() - 1
      9.5367431640625e-07
    """
    terms = [_product(part, kernel, ((x.ndim - 1,), (0,))) for part in _parts(x, 3)]
    return sum(terms[1:], terms[0]).astype(dtype)


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
    x: jax.Array, kernel: jax.Array, dtype: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return project_bfloat16(x, kernel, dtype), (x, kernel)


def _project_backward(
    dtype: Any, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, ...]:
    del dtype
    x, kernel = saved
    rows, outputs = range(x.ndim - 1), range(x.ndim - 1, gradient.ndim)
    # Two parts of a float32 gradient are more precise than a result in bfloat16.
    of_x = [
        jnp.moveaxis(_product(kernel, part, (range(1, kernel.ndim), outputs)), 0, -1)
        for part in _parts(gradient, 2 if x.dtype == jnp.bfloat16 else 3)
    ]
    of_kernel = [
        _product(inputs, part, (rows, rows))
        for inputs in _parts(x, 2)
        for part in _parts(gradient, 2)
    ]
    return (
        sum(of_x[1:], of_x[0]).astype(x.dtype),
        sum(of_kernel[1:], of_kernel[0]).astype(kernel.dtype),
    )


project_bfloat16.defvjp(_project_forward, _project_backward)
