"""Precision of matrix products: the words for it, and the one place that multiplies at it.

A precision is one of jax's own. `jax.lax.Precision.HIGHEST` is true float32 on every device; `HIGH` and `DEFAULT` leave
the choice to XLA. Two of `jax.lax.DotAlgorithmPreset` name the arithmetic exactly: `TF32_TF32_F32` rounds the inputs of
each product to 10 mantissa bits and `BF16_BF16_F32` to 7 bits, and both sum in float32.

Tensor cores of NVIDIA GPUs (compute capability 8.0 or later) have both, and TPUs have the second. Without such
hardware, as on CPUs, the inputs are rounded before a float32 product. That emulates the arithmetic, in the backward
pass too, and is slower than `HIGHEST`. Inputs that have no more bits than that, such as half-precision weights and
activations, are not rounded, and their products run at `HIGHEST`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.lax import DotAlgorithmPreset, Precision

from rome_jax.models.cpu_products import project_bfloat16

__all__ = (
    "BFLOAT16",
    "TF32",
    "WORDS",
    "MatmulPrecision",
    "as_precision",
    "dot_general",
    "einsum",
    "is_emulated",
    "multiplies_bfloat16",
    "product",
    "promote_inputs",
)

MatmulPrecision = Precision | DotAlgorithmPreset
TF32 = DotAlgorithmPreset.TF32_TF32_F32
BFLOAT16 = DotAlgorithmPreset.BF16_BF16_F32
# The last two are words of the original code, which computes in float32 in both cases.
WORDS: Mapping[str, MatmulPrecision] = {
    "highest": Precision.HIGHEST,
    "tf32": TF32,
    "bfloat16": BFLOAT16,
    "high": Precision.HIGH,
    "default": Precision.DEFAULT,
    "float32": Precision.HIGHEST,
    "float64": Precision.HIGHEST,
}

_EXPONENT_BITS = 8  # of float32, TF32, and bfloat16
_MANTISSA_BITS: Mapping[MatmulPrecision, int] = {TF32: 10, BFLOAT16: 7}
# jax raises an error for TF32 on a CPU, but computes BF16_BF16_F32 of float32 inputs there without rounding them.
_NATIVE: Mapping[str, tuple[MatmulPrecision, ...]] = {"gpu": (TF32, BFLOAT16), "tpu": (BFLOAT16,)}


def as_precision(precision: MatmulPrecision | str) -> MatmulPrecision:
    """Converts an argument to a precision of matrix products.

    Args:
      precision: One of `WORDS`, a `jax.lax.Precision` or another of its names, or one of the two algorithms above.

    Raises:
      ValueError: If there is no such precision.

    Example:
      >>> as_precision("highest").name, as_precision("tf32").name
      ('HIGHEST', 'TF32_TF32_F32')
    """
    try:
        if isinstance(precision, str) and precision in WORDS:
            return WORDS[precision]
        if isinstance(precision, DotAlgorithmPreset) and precision in _MANTISSA_BITS:
            return precision
        return Precision(precision)
    except (ValueError, KeyError, TypeError):
        words = ", ".join(map(repr, WORDS))
        raise ValueError(
            f"precision={precision!r}: give one of {words}, or a jax.lax.Precision."
        ) from None


def is_emulated(precision: MatmulPrecision) -> bool:
    """Returns whether the default device lacks an arithmetic, so that inputs are rounded before float32 products.

    Example:
      >>> is_emulated(as_precision("highest"))
      False
    """
    return precision in _MANTISSA_BITS and precision not in _NATIVE.get(jax.default_backend(), ())


def product(
    multiply: Callable[..., jax.Array],
    lhs: jax.Array,
    rhs: jax.Array,
    precision: MatmulPrecision,
    **options: Any,
) -> jax.Array:
    """Multiplies two arrays at a precision.

    Args:
      multiply: A product that is linear in both arrays and takes `precision`, such as `jnp.matmul`.
      lhs, rhs: Its first two arguments.
      precision: Precision of the product, and of the products of its gradient.
      **options: Further arguments of `multiply`.

    Returns:
      The product.

    Example:
      >>> x = jnp.array([1 + 2**-11])
      >>> [product(jnp.dot, x, x, precision).item() for precision in (TF32, Precision.HIGHEST)]
      [1.0, 1.000976800918579]
    """
    bits = _MANTISSA_BITS.get(precision)
    if bits is None:
        return multiply(lhs, rhs, precision=precision, **options)
    if all(jnp.finfo(x.dtype).nmant <= bits for x in (lhs, rhs)):
        # The products are exact already. The algorithm would convert half-precision weights to float32 first.
        return multiply(lhs, rhs, precision=Precision.HIGHEST, **options)
    if not is_emulated(precision):
        return multiply(lhs, rhs, precision=precision, **options)
    lhs, rhs = _round_input(lhs, bits), _round_input(rhs, bits)
    return _round_gradient(multiply(lhs, rhs, precision=Precision.HIGHEST, **options), bits)


def einsum(
    equation: str, lhs: jax.Array, rhs: jax.Array, precision: MatmulPrecision, **options: Any
) -> jax.Array:
    """Multiplies as `jnp.einsum` does.

    Example:
      >>> einsum("i,i->", jnp.ones(2), jnp.array([3.0, 4.0]), TF32).item()
      7.0
    """
    return product(functools.partial(jnp.einsum, equation), lhs, rhs, precision, **options)


def dot_general(
    lhs: jax.Array,
    rhs: jax.Array,
    dimension_numbers: Any,
    precision: MatmulPrecision = Precision.HIGHEST,
    **options: Any,
) -> jax.Array:
    """Multiplies as `jax.lax.dot_general` does, for the modules of linen that take such a function.

    Example:
      >>> dot_general(jnp.eye(2), jnp.array([3.0, 4.0]), (((1,), (0,)), ((), ()))).tolist()
      [3.0, 4.0]
    """
    multiply: Callable[..., jax.Array] = functools.partial(
        jax.lax.dot_general, dimension_numbers=dimension_numbers
    )
    last = lhs.ndim - 1
    projection = dimension_numbers == (((last,), (0,)), ((), ()))
    transposed = rhs.ndim == 2 and dimension_numbers == (((last,), (1,)), ((), ()))
    if (projection or transposed) and multiplies_bfloat16(lhs, rhs):
        multiply = functools.partial(_multiply_bfloat16, transposed=transposed)
    return product(multiply, lhs, rhs, precision, **options)


def multiplies_bfloat16(x: jax.Array, kernel: jax.Array) -> bool:
    """Returns whether a projection by a bfloat16 kernel runs without a float32 copy of it; see `cpu_products`."""
    if kernel.dtype != jnp.bfloat16 or jax.default_backend() != "cpu":
        return False
    return x.dtype in (jnp.bfloat16, jnp.float32)


def promote_inputs(*arrays: Any, dtype: Any = None, inexact: bool = True) -> list[Any]:
    """Promotes the arrays of a linen module to one dtype, except for kernels that are multiplied without a copy.

    The arguments and the result are those of `flax.linen.dtypes.promote_dtype`.

    Example:
      >>> [x.dtype.name for x in promote_inputs(jnp.ones(2), jnp.ones(2, jnp.float16), None)[:2]]
      ['float32', 'float32']
    """
    if dtype is None and multiplies_bfloat16(*arrays[:2]):
        return list(arrays)
    return promote_dtype(*arrays, dtype=dtype, inexact=inexact)


def _multiply_bfloat16(
    x: jax.Array,
    kernel: jax.Array,
    *,
    transposed: bool,
    precision: MatmulPrecision,
    preferred_element_type: Any = None,
) -> jax.Array:
    """Has the signature that `product` calls, which rounds float32 inputs if the precision asks for it."""
    del precision
    return project_bfloat16(x, kernel, jnp.dtype(preferred_element_type or x.dtype), transposed)


# The gradient of a product is two products: of the cotangent and each input. All three must be rounded, as the hardware
# does, and the results must not be. The derivative of `jax.lax.reduce_precision` alone would do the opposite.


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _round_input(x: jax.Array, bits: int) -> jax.Array:
    """Rounds to nearest even at a number of mantissa bits. The gradient passes unchanged."""
    return jax.lax.reduce_precision(x, _EXPONENT_BITS, bits)


@_round_input.defjvp
def _round_input_jvp(bits, primals, tangents):
    return _round_input(*primals, bits), *tangents


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _round_gradient(y: jax.Array, bits: int) -> jax.Array:
    """Returns its argument, and rounds the gradient that comes back."""
    del bits
    return y


@_round_gradient.defjvp
def _round_gradient_jvp(bits, primals, tangents):
    (y,), (tangent,) = primals, tangents
    return y, jax.lax.reduce_precision(tangent, _EXPONENT_BITS, bits)
