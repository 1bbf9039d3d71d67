"""Random numbers by counting: the same ones in jax and in torch, without a file between them. Imports neither.

A number is a hash of its index and a seed ("lowbias32", a mixer of Chris Wellons' hash-prospector with its published
constants). Indices are 32-bit numbers in any integer type whose products keep their low 32 bits.
"""

from __future__ import annotations

import zlib

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9
# Half the width of a uniform distribution with GPT-2's standard deviation of 0.02.
HALF_WIDTH = 0.02 * 3**0.5


def scramble(index, number=int):
    """Hashes of an array of indices below 2³², in its type; `number` makes a constant that goes with it.

    Example:
      >>> scramble(1) != scramble(2)
      True
    """
    mask = number(_MASK)
    index = ((index ^ (index >> 16)) * number(0x7FEB352D)) & mask
    index = ((index ^ (index >> 15)) * number(0x846CA68B)) & mask
    return index ^ (index >> 16)


def seed_of(path: str, layer: int = 0) -> int:
    """Where the counting of one weight's layer begins.

    Args:
      path: of the leaf, such as "blocks/mlp/up/kernel".
      layer: of the stack.

    Example:
      >>> seed_of("wte/embedding") != seed_of("wpe/embedding")
      True
    """
    return (zlib.crc32(path.encode()) + layer * _GOLDEN) & _MASK
