"""Damage to tensors and tables: lies about shapes, arrays of other types, members that are there twice."""

from __future__ import annotations

import datetime
import decimal
import functools
import io
import json
import math
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np

from tests.fuzz.cases import Expect
from tests.fuzz.damage import Damage, bomb, npz_of
from tests.fuzz.trees import drop, of_json, written


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

            yield written(f"metadata.{name}", kind, expect, wrapped)
        yield written(
            "no-metadata", "missing field", Expect.REFUSE, rebuilt(drop(header, ("__metadata__",)))
        )
    gap = {
        name: {**entry, "data_offsets": [at + 8 for at in entry["data_offsets"]]}
        for name, entry in header.items()
        if name != "__metadata__"
    }
    yield written(
        "gap", "lie about a tensor", Expect.REFUSE, rebuilt({**header, **gap}, bytes(8) + body)
    )
    yield written("trailing", "lie about a tensor", Expect.REFUSE, lambda: content + bytes(8))
    names = reversed(header)
    unsorted = {name: header[name] for name in names}
    yield written("unsorted", "lie about a tensor", Expect.ACCEPT, rebuilt(unsorted))
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
            "offsets-minus": {
                **entry,
                "data_offsets": [at - entry["data_offsets"][1] for at in entry["data_offsets"]],
            },
        }
        for lie, said in lies.items():
            harmless = lie == "shape-flat" and len(entry["shape"]) == 1
            expect = Expect.EITHER if harmless or lie == "dtype-int" else Expect.REFUSE
            yield written(
                f"{name}:{lie}", "lie about a tensor", expect, rebuilt({**header, name: said})
            )
        others = [one for one in tensors if one != name and header[one]["shape"] == entry["shape"]]
        for other in others[:1]:
            shared = {**header, name: {**entry, "data_offsets": header[other]["data_offsets"]}}
            yield written(f"{name}:overlaps", "lie about a tensor", Expect.REFUSE, rebuilt(shared))
        dropped = rebuilt(drop(header, (name,)))
        yield written(f"{name}:missing", "missing tensor", Expect.REFUSE, dropped)
        renamed = {("fuzz" if key == name else key): value for key, value in header.items()}
        yield written(f"{name}:renamed", "missing tensor", Expect.REFUSE, rebuilt(renamed))
        begin, end = entry["data_offsets"]
        for label, value in (("nan", math.nan), ("inf", math.inf)):
            if entry["dtype"] == "F32" and end - begin >= 4:
                poisoned = body[:begin] + np.float32(value).tobytes() + body[begin + 4 :]
                yield written(
                    f"{name}:{label}", "not finite", Expect.REFUSE, rebuilt(header, poisoned)
                )


def npz_damage(content: bytes, required: Collection[str]) -> Iterator[Damage]:
    """Yields damage to the arrays of a .npz file."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
    for name in members:
        refuse = Expect.REFUSE if name in required else Expect.EITHER
        others = {key: value for key, value in members.items() if key != name}
        yield written(
            f"{name}:missing", "missing field", refuse, lambda others=others: npz_of(others)
        )
        array = np.load(io.BytesIO(members[name]), allow_pickle=False)
        for label, kind, changed in _arrays(array):
            swapped = functools.partial(_swapped, others, name, changed)
            yield written(f"{name}:{label}", kind, refuse, swapped)
        for label, data in (
            ("bomb", bomb((1 << 20, 1 << 20))),
            ("zeros-bomb", bomb((1 << 28,), 1 << 24)),
            ("no-array", b"text"),
            ("empty", b""),
        ):
            swapped = functools.partial(_swapped, others, name, data)
            yield written(f"{name}:{label}", "lie about a tensor", refuse, swapped)
        twice = functools.partial(_twice, members, name, members[name][:-1] + b"\1")
        yield written(f"{name}:twice", "repeated field", Expect.REFUSE, twice)
    yield written("encrypted", "other format", Expect.REFUSE, lambda: _encrypted(npz_of(members)))
    escaped = functools.partial(_swapped, members, "../../escaped", np.zeros(2))
    yield written("escape", "additional field", Expect.EITHER, escaped)
    more = functools.partial(_swapped, members, "fuzz", np.zeros(2))
    yield written("more", "additional field", Expect.EITHER, more)


def npy_damage(content: bytes) -> Iterator[Damage]:
    """Yields damage to a .npy file."""
    for label, kind, changed in _arrays(np.load(io.BytesIO(content), allow_pickle=False)):
        yield written(label, kind, Expect.REFUSE, functools.partial(_save, changed))
    yield written("bomb", "lie about a tensor", Expect.REFUSE, lambda: bomb((1 << 20, 1 << 20)))


def parquet_damage(write: Callable[..., object]) -> Iterator[Damage]:
    """Yields parquet files whose column of texts has another type; `write` writes a file with such a column."""
    import pyarrow as pa

    columns = {
        "lists": [["a"], ["b"]],
        "structs": [{"a": "b"}, {"a": "c"}],
        "ints": [1, 2],
        "floats": [1.5, math.nan],
        "bools": [True, False],
        "bytes": [b"\xff\xfe", b"a"],
        "dates": [datetime.date(2020, 1, 1)],
        "decimals": [decimal.Decimal("1.5")],
        "nested-structs": [{"a": [{"b": "c"}]}],
        "numbers-by-index": pa.array([1, 2, 1]).dictionary_encode(),
    }
    for name, values in columns.items():
        yield Damage(
            f"column-of-{name}",
            "wrong type",
            Expect.REFUSE,
            lambda path, values=values: write(path, values),
        )
    for name, values in {
        "texts-by-index": pa.array(["a", "b", "a"]).dictionary_encode(),
        "large-texts": pa.array(["a", "b"], pa.large_string()),
        "chunks": pa.chunked_array([["a"], ["b", "c"]]),
    }.items():
        yield Damage(
            f"column-of-{name}",
            "wrong type",
            Expect.ACCEPT,
            lambda path, values=values: write(path, values),
        )
    yield Damage(
        "no-column",
        "missing field",
        Expect.REFUSE,
        lambda path: write(path, ["a"], "other"),
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


def _twice(members: dict[str, bytes], name: str, data: bytes) -> bytes:
    """Returns a .npz file that has a member twice."""
    file = io.BytesIO(npz_of(members))
    with warnings.catch_warnings(), zipfile.ZipFile(file, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(f"{name}.npy", data)
    return file.getvalue()


def _encrypted(archive: bytes) -> bytes:
    """Sets the flag of encryption of every member of a zip archive."""
    changed = bytearray(archive)
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = archive.find(mark)
        while place >= 0:
            changed[place + offset] |= 1
            place = archive.find(mark, place + 1)
    return bytes(changed)
