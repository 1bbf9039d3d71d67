"""Products of bfloat16 arrays on a CPU, without float32 copies of the arrays.

XLA's CPU backend multiplies two bfloat16 arrays without float32 copies of them only if it is asked for a float32
result. All three products of a projection and its gradient do so, and are rounded once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def project_bfloat16(x: jax.Array, kernel: jax.Array, dtype: Any) -> jax.Array:
    """Multiplies bfloat16 x [..., in] by a bfloat16 kernel [in, ...]; the result is bfloat16 or float32."""
    return _float32_product(x, kernel, ((x.ndim - 1,), (0,))).astype(dtype)


def _float32_product(
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
    x, kernel = saved
    high = gradient.astype(jnp.bfloat16)
    # A float32 gradient is the sum of two bfloat16 arrays up to a relative error of 2⁻¹⁷.
    parts = [high] if dtype == jnp.bfloat16 else [high, (gradient - high).astype(jnp.bfloat16)]
    rows, outputs = range(x.ndim - 1), range(x.ndim - 1, gradient.ndim)
    of_x = [_float32_product(part, kernel, (outputs, range(1, kernel.ndim))) for part in parts]
    of_kernel = [_float32_product(x, part, (rows, rows)) for part in parts]
    return tuple(sum(terms[1:], terms[0]).astype(jnp.bfloat16) for terms in (of_x, of_kernel))


project_bfloat16.defvjp(_project_forward, _project_backward)
