"""The one reader of texts, JSON documents and records from outside.

Records are read by content and not by extension: a JSON list, JSON Lines (which `Dataset.to_json` and
`DataFrame.to_json(lines=True)` write), parquet, arrow, or a folder of `Dataset.save_to_disk`. Texts are UTF-8, with or
without a byte order mark. A file in another encoding or format is named as what it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import pydantic

from rome_jax.files import columnar, formats
from rome_jax.files.checked import shown
from rome_jax.files.memory import check_memory
from rome_jax.files.places import check_path
from rome_jax.files.system_errors import explaining

_PARSED = 8  # parsed JSON takes about this many times the memory of its text
BOM = b"\xef\xbb\xbf"  # byte order mark of UTF-8


def _not_blank(text: str) -> str:
    """Refuses a text of white space."""
    if not text.strip():
        raise ValueError("a text that is not empty")
    return text


# A text with more than white space, as a type for `rome_jax.files.checked.check`.
Text: TypeAlias = Annotated[str, pydantic.AfterValidator(_not_blank)]


class DataError(ValueError):
    """A data file cannot be read, or one of its records is malformed."""


def find(path: str | Path, *, error: type[ValueError] = DataError) -> Path:
    """Finds a file or folder; `~` is the home folder.

    Args:
      path: The path.
      error: Exception to raise.

    Raises:
      error: If nothing is there, or it is neither a file, a pipe nor a folder.

    Example:
      >>> find("absent.json")
      Traceback (most recent call last):
      ...
      rome_jax.files.records.DataError: there is no file absent.json: give the path of a file.
    """
    found = Path(os.path.expanduser(check_path(path, error=error)))
    if not found.exists():
        raise error(f"there is no file {found}: give the path of a file.")
    mode = found.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISDIR(mode)):
        raise error(f"{found} is a device: give the path of a file.")
    return found


def read_bytes(path: str | Path, *, error: type[ValueError] = DataError) -> bytes:
    """Reads a file that fits in memory also after it is parsed.

    Args:
      path: The file.
      error: Exception to raise.

    Raises:
      error: If there is no such file, it is a folder, empty, or too large for the memory of this machine.
      OSError: If the file cannot be read.
    """
    found = find(path, error=error)
    if found.is_dir():
        raise error(f"{found} is a folder: give the path of a file.")
    check_memory(_PARSED * found.stat().st_size, f"{found}, parsed,", error=error)
    with explaining(found, reading=True):
        content = found.read_bytes()
    if not content.strip():
        raise error(f"{found} is empty: copy it again.")
    return content


def decode(content: bytes, path: str | Path, *, error: type[ValueError] = DataError) -> str:
    """Decodes the content of a text file, without its byte order mark.

    Args:
      content: The bytes of the file.
      path: The file, for messages.
      error: Exception to raise.

    Raises:
      error: If the content is not UTF-8; the message names the format or the likely encoding.

    Example:
      >>> decode("Léon".encode("latin-1"), "names.txt")
      Traceback (most recent call last):
      ...
      rome_jax.files.records.DataError: names.txt is not UTF-8 (byte 0xe9 in line 1) but in another ...
    """
    if what := formats.foreign(content[: formats.HEAD]):
        raise error(f"{path} {what}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = problem.object.count(b"\n", 0, problem.start) + 1
        raise error(f"{path} {formats.not_utf8(problem, line)}") from None


def read_text(path: str | Path, *, error: type[ValueError] = DataError) -> str:
    """Reads a text file as a whole; see `read_bytes` and `decode`.

    Example:
      >>> _ = Path("one.txt").write_bytes(b"\\xef\\xbb\\xbfone")
      >>> read_text("one.txt")
      'one'
    """
    return decode(read_bytes(path, error=error), Path(os.path.expanduser(path)), error=error)


def read_lines(path: Path, *, error: type[ValueError] = DataError) -> Iterator[str]:
    """Yields the lines of a text file, without line ends, so that the file need not fit in memory.

    Args:
      path: The file.
      error: Exception to raise.

    Raises:
      error: If the file is not UTF-8.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as problem:
                what = formats.foreign(line) or formats.not_utf8(problem, number)
                raise error(f"{path} {what}") from None
            yield text.rstrip("\r\n")


def parse_json(
    text: str | bytes, name: str, *, remedy: str = "", error: type[ValueError] = DataError
) -> Any:
    """Parses a JSON document.

    Args:
      text: The document.
      name: Its name in messages, such as its path.
      remedy: What to do about a damaged document, as an imperative; by default what fits the damage.
      error: Exception to raise.

    Raises:
      error: If the text is not JSON, is nested too deeply, has a field twice with different values, or holds an
        integer of thousands of digits.

    Example:
      >>> parse_json('{"a": ', "a.json")
      Traceback (most recent call last):
      ...
      rome_jax.files.records.DataError: a.json ends within a value (column 7): it was cut short; copy it again.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except _TwiceError as problem:
        what = remedy or "leave one of them out"
        raise error(f"{name} has the field {shown(str(problem))} twice: {what}.") from None
    except RecursionError:
        what = remedy or "give fewer levels"
        raise error(f"{name} is nested too deeply: {what}.") from None
    except json.JSONDecodeError as problem:
        raise error(f"{name} {_not_json(problem, remedy)}.") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{name} {formats.not_utf8(problem, 1)}") from None
    except ValueError:  # from int()
        what = remedy or "give a smaller one"
        raise error(f"{name} holds an integer of too many digits: {what}.") from None


class _TwiceError(ValueError):
    """A JSON object has a field twice, with different values; the text is its name."""


def _unique(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the fields of an object; json would keep the last of several with the same name."""
    found = dict(fields)
    if len(found) < len(fields):
        for name, value in fields:
            if found[name] != value:
                raise _TwiceError(name)
    return found


def _not_json(problem: json.JSONDecodeError, remedy: str) -> str:
    """Says as the end of a sentence why a text is not JSON, and what to do."""
    if not problem.doc.strip():
        return f"is empty: {remedy or 'copy it again'}"
    where = f"column {problem.colno}"
    if "\n" in problem.doc.strip():
        where = f"line {problem.lineno}, {where}"
    if problem.pos >= len(problem.doc.rstrip()) or "Unterminated" in problem.msg:
        return f"ends within a value ({where}): {remedy or 'it was cut short; copy it again'}"
    return f"is not JSON ({problem.msg}, {where}): {remedy or 'correct it'}"


def read_json(path: str | Path, *, error: type[ValueError] = DataError) -> tuple[Any, str]:
    """Reads a file that holds one JSON document.

    Args:
      path: The file.
      error: Exception to raise.

    Returns:
      The content, and the SHA-256 of the bytes of the file.

    Raises:
      error: If there is no such file, or it is not JSON.

    Example:
      >>> _ = Path("facts.json").write_text('{"subject": "Rome"}')
      >>> content, sha256 = read_json("facts.json")
      >>> content, len(sha256)
      ({'subject': 'Rome'}, 64)
    """
    content = read_bytes(path, error=error)
    found = Path(os.path.expanduser(path))
    text = decode(content, found, error=error)
    return parse_json(text, str(found), error=error), hashlib.sha256(content).hexdigest()


def read_document(path: str | Path, *, error: type[ValueError] = DataError) -> Any:
    """Reads a file that holds one document, in YAML if it ends in .yaml or .yml, else in JSON.

    Args:
      path: The file.
      error: Exception to raise.

    Raises:
      error: If there is no such file, or it is not in its format.

    Example:
      >>> _ = Path("rome.yaml").write_text("layers: [17]")
      >>> read_document("rome.yaml")
      {'layers': [17]}
    """
    if Path(path).suffix.lower() not in (".yaml", ".yml"):
        return read_json(path, error=error)[0]
    from rome_jax.files.yaml_files import parse_yaml  # imports yaml, which few programs need

    return parse_yaml(read_text(path, error=error), str(path), error=error)


def read_records(path: str | Path, *, error: type[ValueError] = DataError) -> tuple[list[Any], str]:
    """Reads records, in whichever of the formats they are stored.

    Args:
      path: A file with a JSON list, JSON Lines, parquet or arrow, or a folder of `Dataset.save_to_disk`.
      error: Exception to raise.

    Returns:
      The records in their order, which are not checked, and a SHA-256 of the content. A lone object is one record.

    Raises:
      error: If there is no such file, it is in none of these formats, or it is damaged.
      MissingPackageError: If pyarrow is needed and not installed.

    Example:
      >>> _ = Path("records.json").write_text('{"case_id": 3}\\n{"case_id": 5}\\n')
      >>> read_records("records.json")[0]
      [{'case_id': 3}, {'case_id': 5}]
    """
    found = find(path, error=error)
    files = [found]
    if found.is_dir():
        saved = columnar.saved_files(found, error)
        if saved is None:
            raise error(
                f"{found} is a folder: give a file of records, or a folder of save_to_disk."
            )
        files = saved
    elif not columnar.is_columnar(_head(found)):
        content = read_bytes(found, error=error)
        records = _json_records(decode(content, found, error=error), str(found), error)
        return records, hashlib.sha256(content).hexdigest()
    rows: list[Any] = []
    sha = hashlib.sha256()
    for file in files:
        table = columnar.open_table(file, error)
        table.check_memory()
        with open(file, "rb") as opened:
            sha.update(hashlib.file_digest(opened, "sha256").digest())
        rows += table.rows()
    return rows, sha.hexdigest()


def _head(path: Path) -> bytes:
    """Returns the first bytes of a file; of a pipe none, since they could not be read again."""
    if not path.is_file():
        return b""
    with open(path, "rb") as file:
        return file.read(formats.HEAD)


def _json_records(text: str, name: str, error: type[ValueError]) -> list[Any]:
    """Parses a JSON list, one object, or one object per line."""
    try:
        records = parse_json(text, name, error=error)
    except error as problem:
        if not _is_lines(problem, text):
            raise
        return [record for _, record in parse_lines(text.split("\n"), name, error=error)]
    return records if isinstance(records, list) else [records]


def _is_lines(problem: ValueError, text: str) -> bool:
    """Returns whether a text that is not a JSON document has a second document after its first."""
    cause = problem.__cause__
    return isinstance(cause, json.JSONDecodeError) and cause.msg == "Extra data" and "\n" in text


def parse_lines(
    lines: Iterable[str], name: str, *, error: type[ValueError] = DataError
) -> Iterator[tuple[int, Any]]:
    """Yields number and record of each line of JSON Lines; blank lines are skipped.

    Args:
      lines: The lines.
      name: Name of the file in messages.
      error: Exception to raise.

    Raises:
      error: If a line is not JSON; the message gives its number.
    """
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, parse_json(line, f"{name}, line {number},", error=error)
