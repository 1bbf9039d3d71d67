"""Reading of JSON files: one function that accepts a byte order mark and refuses everything else in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rome_jax.files.checked import check


def read_object(
    path: str | Path,
    kind: Any = dict[str, Any],
    *,
    remedy: str = "download or copy it again",
    error: type[Exception] = ValueError,
) -> Any:
    """Reads a file that holds one JSON object.

    Args:
      path: The file, in UTF-8 with or without a byte order mark.
      kind: Type to convert the object to; see `rome_jax.files.checked.check`.
      remedy: What to do about a damaged file, as an imperative.
      error: Exception to raise.

    Returns:
      The converted object.

    Raises:
      error: If the file is not UTF-8 or not JSON, or its values are of other types.
      OSError: If the file cannot be read.

    Example:
      >>> _ = Path("config.json").write_bytes(b'\\xef\\xbb\\xbf{"n_layer": 6}')
      >>> read_object("config.json")
      {'n_layer': 6}
    """
    return parse_object(Path(path).read_bytes(), str(path), kind, remedy=remedy, error=error)


def parse_object(
    content: str | bytes,
    name: str,
    kind: Any = dict[str, Any],
    *,
    remedy: str,
    error: type[Exception] = ValueError,
) -> Any:
    """Reads a JSON object from text, such as the metadata of another file; see `read_object`.

    Args:
      content: The text, or its bytes in UTF-8.
      name: Name of the text in messages.
      kind, remedy, error: As in `read_object`.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        value = json.loads(text)
    except UnicodeDecodeError:
        raise error(f"{name} is not text in UTF-8: {remedy}.") from None
    except (ValueError, RecursionError) as damage:
        why = "it is nested too deeply" if isinstance(damage, RecursionError) else damage
        raise error(f"{name} is not valid JSON ({why}): {remedy}.") from None
    if not isinstance(value, dict):
        raise error(f"{name} is not a JSON object: {remedy}.")
    return check(kind, value, name, error=error)
