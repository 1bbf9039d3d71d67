"""Counter-based random numbers, identical in jax and torch without exchanging a file.

A number is a hash of its index and a seed. The hash is "lowbias32", a mixer from Chris Wellons' hash-prospector with
its published constants. Indices are 32-bit numbers in any integer type that keeps the low 32 bits of products. This
module imports neither jax nor torch.
"""

from __future__ import annotations

import zlib

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9
# Half the width of a uniform distribution with the standard deviation of GPT-2's initial weights, 0.02.
HALF_WIDTH = 0.02 * 3**0.5


def scramble(index, number=int):
    """Hashes indices below 2³².

    Args:
      index: Integer or integer array.
      number: Function that converts a constant to a type that can be combined with `index`.

    Returns:
      Hashes below 2³², in the type of `index`.

    Example:
      >>> scramble(1) != scramble(2)
      True
    """
    mask = number(_MASK)
    index = ((index ^ (index >> 16)) * number(0x7FEB352D)) & mask
    index = ((index ^ (index >> 15)) * number(0x846CA68B)) & mask
    return index ^ (index >> 16)


def seed_of(path: str, layer: int = 0) -> int:
    """Returns the first index of the random numbers of one weight.

    Args:
      path: Path of the params leaf, such as "blocks/mlp/up/kernel".
      layer: Layer within a stacked leaf.

    Example:
      >>> seed_of("wte/embedding") != seed_of("wpe/embedding")
      True
    """
    return (zlib.crc32(path.encode()) + layer * _GOLDEN) & _MASK
