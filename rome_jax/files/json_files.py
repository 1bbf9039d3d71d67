"""Reading of JSON files: one function that accepts a byte order mark and refuses everything else in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rome_jax.files.checked import check
from rome_jax.files.checksums import METADATA_KEY, has_damage
from rome_jax.files.records import decode, parse_json
from rome_jax.files.system_errors import explaining


def read_object(
    path: str | Path,
    kind: Any = dict[str, Any],
    *,
    remedy: str = "download or copy it again",
    error: type[ValueError] = ValueError,
) -> Any:
    """Reads a file that holds one JSON object.

    Args:
      path: The file, in UTF-8 with or without a byte order mark.
      kind: Type to convert the object to; see `rome_jax.files.checked.check`.
      remedy: What to do about a damaged file, as an imperative.
      error: Exception to raise.

    Returns:
      The converted object, without its checksum.

    Raises:
      error: If the file is not UTF-8 or not JSON, its values are of other types, or it has a checksum and was changed.
      OSError: If the file cannot be read.

    Example:
      >>> _ = Path("config.json").write_bytes(b'\\xef\\xbb\\xbf{"n_layer": 6}')
      >>> read_object("config.json")
      {'n_layer': 6}
    """
    with explaining(path, reading=True):
        content = Path(path).read_bytes()
    return parse_object(content, str(path), kind, remedy=remedy, error=error)


def parse_object(
    content: str | bytes,
    name: str,
    kind: Any = dict[str, Any],
    *,
    remedy: str,
    error: type[ValueError] = ValueError,
) -> Any:
    """Reads a JSON object from text, such as the metadata of another file; see `read_object`.

    Args:
      content: The text, or its bytes in UTF-8.
      name: Name of the text in messages.
      kind, remedy, error: As in `read_object`.
    """
    text = content if isinstance(content, str) else decode(content, name, error=error)
    value = parse_json(text, name, remedy=remedy, error=error)
    if not isinstance(value, dict):
        raise error(f"{name} is not a JSON object: {remedy}.")
    if has_damage(value):
        raise error(f"{name} has changed since it was written ({METADATA_KEY}): {remedy}.")
    value.pop(METADATA_KEY, None)
    return check(kind, value, name, error=error)
