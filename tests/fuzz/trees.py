"""Damage to what a file says: values of other types, missing and additional fields, lies about shapes."""

from __future__ import annotations

import copy
import fnmatch
import functools
import io
import itertools
import json
import math
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.cases import Expect
from tests.fuzz.damage import Damage, bomb, npz_of

Step = str | int
_PATHS = 24  # fields of a file that are damaged
_DEEP = "DEEP"
# The values that replace a field, by name. Python's JSON writes NaN and Infinity, as other programs do.
VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "zero": 0,
    "minus": -1,
    "half": 1.5,
    "nan": math.nan,
    "inf": math.inf,
    "1e400": "1E400",
    "huge": 10**30,
    "2**63": 2**63,
    "empty-text": "",
    "text": "text",
    "digits": "17",
    "surrogate": "\ud800",
    "empty-list": [],
    "list": [[]],
    "empty-object": {},
    "object": {"a": 1},
    "deep": _DEEP,
}
_NUMBERS = {"zero", "minus", "half", "nan", "inf", "1e400", "huge", "2**63"}
# Values without a meaning for a field whose valid value has this type. All others may have one.
WRONG: dict[type, set[str]] = {
    bool: {"null", "half", "nan", "inf", "1e400", "huge", "text", "empty-list", "list", "object"},
    int: {"null", "true", "half", "nan", "inf", "1e400", "huge", "empty-text", "text", "surrogate"}
    | {"empty-list", "list", "empty-object", "object", "deep"},
    float: {"null", "true", "nan", "inf", "1e400", "empty-text", "text", "surrogate"}
    | {"empty-list", "list", "empty-object", "object", "deep"},
    str: {"null", "true", "nan", "inf", "1e400", "surrogate"}
    | {"empty-list", "list", "empty-object", "object", "deep"},
    list: {"null", "true", "half", "nan", "inf", "1e400", "object", "deep", "surrogate"},
    dict: {"null", "true", "text", "digits", "empty-list", "list", "deep"} | _NUMBERS,
}


def of_json(
    content: Any, required: Sequence[str], typed: Sequence[str], suffix: str = ""
) -> Iterator[tuple[str, str, Expect, Callable[[], str]]]:
    """Yields damaged JSON texts.

    Args:
      content: The valid content.
      required: Patterns of fields that must be present and of the right type, such as "0.prompt" or "*.prompt".
      typed: Patterns of fields that may be missing but not of another type.
      suffix: Text for the names of all damages.

    Yields:
      Name, kind, expectation and a function that makes the text.
    """
    for path in paths(content):
        name = ".".join(map(str, path)) or "root"
        needed, checked = _matches(name, required), _matches(name, (*required, *typed))
        old = _get(content, path)
        for label, value in VALUES.items():
            wrong = checked and label in WRONG.get(type(old), ())
            expect = Expect.REFUSE if wrong else Expect.EITHER
            kind = _kind(label)
            changed = functools.partial(replaced, content, path, value)
            yield f"{name}={label}{suffix}", kind, expect, functools.partial(_dump, changed)
        if path and isinstance(path[-1], str):
            expect = Expect.REFUSE if needed else Expect.EITHER
            dropped = functools.partial(_dump, functools.partial(_drop, content, path))
            yield f"{name}-missing{suffix}", "missing field", expect, dropped
        if isinstance(old, dict):
            more = {**old, "fuzz": [1], "": None, "__class__": "x"}
            added = functools.partial(_dump, functools.partial(replaced, content, path, more))
            yield f"{name}-more{suffix}", "additional field", Expect.EITHER, added


def json_damage(content: Any, required: Sequence[str], typed: Sequence[str]) -> Iterator[Damage]:
    """Yields damage to the fields of a JSON file."""
    for name, kind, expect, text in of_json(content, required, typed):
        yield _written(name, kind, expect, lambda text=text: text().encode())


def jsonl_damage(lines: Sequence[Any], required: Sequence[str]) -> Iterator[Damage]:
    """Yields damage to one line of a JSON Lines file."""
    before, after = (json.dumps(line) + "\n" for line in (lines[0], lines[-1]))
    for name, kind, expect, text in of_json(lines[0], required, ()):
        yield _written(
            name, kind, expect, lambda text=text: (before + text() + "\n" + after).encode()
        )


def safetensors_damage(
    content: bytes, required: Sequence[str], typed: Sequence[str]
) -> Iterator[Damage]:
    """Yields damage to the header, the metadata and the tensors of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = json.loads(header.get("__metadata__", {}).get("rome_jax", "null"))
    tensors = [name for name in header if name != "__metadata__"]

    def rebuilt(changed: dict[str, Any], data: bytes = body) -> Callable[[], bytes]:
        return functools.partial(join, changed, data)

    def join(changed: dict[str, Any], data: bytes) -> bytes:
        encoded = json.dumps(changed).encode()
        encoded += b" " * (-len(encoded) % 8)
        return len(encoded).to_bytes(8, "little") + encoded + data

    if metadata is not None:
        for name, kind, expect, text in of_json(metadata, required, typed):

            def wrapped(text: Callable[[], str] = text) -> bytes:
                changed = {**header["__metadata__"], "rome_jax": text()}
                return join({**header, "__metadata__": changed}, body)

            yield _written(f"metadata.{name}", kind, expect, wrapped)
        yield _written(
            "no-metadata", "missing field", Expect.REFUSE, rebuilt(_drop(header, ("__metadata__",)))
        )
    for name in tensors[:3]:
        entry = header[name]
        lies: dict[str, Any] = {
            "shape-flat": {**entry, "shape": [math.prod(entry["shape"])]},
            "shape-more": {**entry, "shape": [*entry["shape"], 1]},
            "shape-huge": {**entry, "shape": [1 << 40, 1 << 40]},
            "shape-minus": {**entry, "shape": [-1, -4]},
            "shape-nan": {**entry, "shape": [math.nan]},
            "shape-text": {**entry, "shape": "text"},
            "offsets-swapped": {**entry, "data_offsets": entry["data_offsets"][::-1]},
            "offsets-huge": {**entry, "data_offsets": [0, 1 << 70]},
            "offsets-null": {**entry, "data_offsets": None},
            "dtype-int": {**entry, "dtype": "I32"},
            "dtype-unknown": {**entry, "dtype": "F7"},
            "dtype-null": {**entry, "dtype": None},
            "entry-list": [entry],
        }
        for lie, said in lies.items():
            harmless = lie == "shape-flat" and len(entry["shape"]) == 1
            expect = Expect.EITHER if harmless or lie == "dtype-int" else Expect.REFUSE
            yield _written(
                f"{name}:{lie}", "lie about a tensor", expect, rebuilt({**header, name: said})
            )
        dropped = rebuilt(_drop(header, (name,)))
        yield _written(f"{name}:missing", "missing tensor", Expect.REFUSE, dropped)
        renamed = {("fuzz" if key == name else key): value for key, value in header.items()}
        yield _written(f"{name}:renamed", "missing tensor", Expect.REFUSE, rebuilt(renamed))
        begin, end = entry["data_offsets"]
        for label, value in (("nan", math.nan), ("inf", math.inf)):
            if entry["dtype"] == "F32" and end - begin >= 4:
                poisoned = body[:begin] + np.float32(value).tobytes() + body[begin + 4 :]
                yield _written(
                    f"{name}:{label}", "not finite", Expect.REFUSE, rebuilt(header, poisoned)
                )


def npz_damage(content: bytes, required: Collection[str]) -> Iterator[Damage]:
    """Yields damage to the arrays of a .npz file."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
    for name in members:
        refuse = Expect.REFUSE if name in required else Expect.EITHER
        others = {key: value for key, value in members.items() if key != name}
        yield _written(
            f"{name}:missing", "missing field", refuse, lambda others=others: npz_of(others)
        )
        array = np.load(io.BytesIO(members[name]), allow_pickle=False)
        for label, kind, changed in _arrays(array):
            swapped = functools.partial(_swapped, others, name, changed)
            yield _written(f"{name}:{label}", kind, refuse, swapped)
        for label, data in (
            ("bomb", bomb((1 << 20, 1 << 20))),
            ("zeros-bomb", bomb((1 << 28,), 1 << 24)),
            ("no-array", b"text"),
            ("empty", b""),
        ):
            swapped = functools.partial(_swapped, others, name, data)
            yield _written(f"{name}:{label}", "lie about a tensor", refuse, swapped)
    more = functools.partial(_swapped, members, "fuzz", np.zeros(2))
    yield _written("more", "additional field", Expect.EITHER, more)


def npy_damage(content: bytes) -> Iterator[Damage]:
    """Yields damage to a .npy file."""
    for label, kind, changed in _arrays(np.load(io.BytesIO(content), allow_pickle=False)):
        yield _written(label, kind, Expect.REFUSE, functools.partial(_save, changed))
    yield _written("bomb", "lie about a tensor", Expect.REFUSE, lambda: bomb((1 << 20, 1 << 20)))


def parquet_damage(write: Callable[[Path, Any], object]) -> Iterator[Damage]:
    """Yields parquet files whose column of texts has another type; `write` writes a file with such a column."""
    columns = {
        "lists": [["a"], ["b"]],
        "structs": [{"a": "b"}, {"a": "c"}],
        "ints": [1, 2],
        "floats": [1.5, math.nan],
        "bools": [True, False],
        "bytes": [b"\xff\xfe", b"a"],
    }
    for name, values in columns.items():
        yield Damage(
            f"column-of-{name}",
            "wrong type",
            Expect.REFUSE,
            lambda path, values=values: write(path, values),
        )
    for name, values in {"nulls": ["a", None], "empty": ["", "  "], "none": []}.items():
        yield Damage(
            f"column-{name}",
            "wrong type",
            Expect.EITHER,
            lambda path, values=values: write(path, values),
        )


def _arrays(array: np.ndarray) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yields the kinds of arrays that cannot stand for an array."""
    yield "objects", "wrong type", np.array([{"a": 1}, None], dtype=object)
    if array.dtype.kind != "U":
        yield "texts", "wrong type", np.full(array.shape, "text")
    yield "dates", "wrong type", np.zeros(array.shape, "datetime64[s]")
    yield "more-axes", "wrong shape", np.stack([np.stack([array] * 2)] * 3)
    yield "nothing", "wrong shape", np.zeros((0, *array.shape), array.dtype)
    if array.dtype.kind == "f":
        yield "nan", "not finite", np.full_like(array, math.nan)
        yield "inf", "not finite", np.full_like(array, math.inf)
        yield "complex", "wrong type", array.astype(np.complex64)
    if array.ndim and len(array) > 1:
        yield "shorter", "wrong shape", array[:-1]


def _save(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def _swapped(others: dict[str, bytes], name: str, array: np.ndarray | bytes) -> bytes:
    """Returns a .npz file in which one member is replaced or added."""
    return npz_of({**others, name: array if isinstance(array, bytes) else _save(array)})


def _written(name: str, kind: str, expect: Expect, content: Callable[[], bytes]) -> Damage:
    return Damage(name, kind, expect, lambda path: path.write_bytes(content()))


def _kind(label: str) -> str:
    """Returns the kind of damage that a value of `VALUES` is."""
    if label in ("nan", "inf", "1e400"):
        return "not finite"
    if label in ("huge", "2**63"):
        return "huge number"
    return {"deep": "deep nesting", "surrogate": "encoding"}.get(label, "wrong type")


def _dump(content: Callable[[], Any]) -> str:
    """Writes JSON; a deeply nested list and a number beyond float64 are put in as text."""
    return (
        json.dumps(content())
        .replace('"1E400"', "1e400")
        .replace(f'"{_DEEP}"', "[" * 50_000 + "]" * 50_000)
    )


def paths(content: Any) -> list[tuple[Step, ...]]:
    """Returns the paths to the fields of a tree, outermost first; of a list, its first element."""

    def walk(node: Any, path: tuple[Step, ...]) -> Iterator[tuple[Step, ...]]:
        yield path
        items = (
            node.items()
            if isinstance(node, dict)
            else enumerate(node[:1])
            if isinstance(node, list)
            else ()
        )
        for key, value in items:
            yield from walk(value, (*path, key))

    found = sorted(walk(content, ()), key=len)
    return list(itertools.islice(found, _PATHS))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _get(content: Any, path: tuple[Step, ...]) -> Any:
    for step in path:
        content = content[step]
    return content


def replaced(content: Any, path: tuple[Step, ...], value: Any) -> Any:
    """Returns a copy of a tree with another value at a path."""
    if not path:
        return value
    changed = copy.deepcopy(content)
    _get(changed, path[:-1])[path[-1]] = value
    return changed


def _drop(content: Any, path: tuple[Step, ...]) -> Any:
    changed = copy.deepcopy(content)
    del _get(changed, path[:-1])[path[-1]]
    return changed
