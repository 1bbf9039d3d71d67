"""Sizes in bytes as users write and read them."""

from __future__ import annotations

import re

from rome_jax.files.checked import check, shown

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(
    r"(?P<number>\d+\.?\d*(e\+?\d+)?)\s*(?P<unit>[kmgt]i?)?b?", re.IGNORECASE | re.ASCII
)
_LARGEST = 10**18  # bytes, more than any machine has


def parse_bytes(text: str, name: str = "size") -> int:
    """Parses a size in bytes.

    Args:
      text: A number with an optional unit: B, kB, MB, GB, and TB are powers of 1,000; KiB, MiB, GiB, and TiB are powers
        of 1,024. The B may be left out.
      name: Name of the argument in the message.

    Returns:
      Number of bytes, at least 1.

    Raises:
      ValueError: If the text is not such a size.

    Example:
      >>> parse_bytes("80GB"), parse_bytes("24 GiB"), parse_bytes("16e9")
      (80000000000, 25769803776, 16000000000)
    """
    found = _SIZE.fullmatch(text.strip())
    if found:
        number = check(float, found["number"], name)
        size = number * (_UNITS | _BINARY_UNITS)[(found["unit"] or "").lower()]
        if 1 <= size <= _LARGEST:
            return int(size)
    raise ValueError(f"{name}={shown(text)}: give a size in bytes, such as 80GB, 24GiB, or 16e9.")


def shown_bytes(size: float) -> str:
    """Returns a size in terabytes, gigabytes, or megabytes.

    Example:
      >>> shown_bytes(6_230_444_800), shown_bytes(61_440_000)
      ('6.23 GB', '61.4 MB')
    """
    if size >= 1e12:
        return f"{size / 1e12:.2f} TB"
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
