"""Damage to any file: cut short, bytes flipped, another encoding or format, another kind of path."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tests.fuzz.cases import Expect

TEXT = ("json", "jsonl", "text", "yaml")
_FLIPS = 12


@dataclasses.dataclass(frozen=True)
class Damage:
    """A way to damage a file.

    Attributes:
      name: What is done, unique for a file.
      kind: The kind of damage, for the counts.
      expect: What a reader may do with the damaged file.
      apply: Damages the file at a path.
    """

    name: str
    kind: str
    expect: Expect
    apply: Callable[[Path], object] = dataclasses.field(repr=False)


def of_bytes(content: bytes, form: str, checksum: bool) -> Iterator[Damage]:
    """Yields damage to the bytes of a file.

    Args:
      content: The valid file.
      form: Its format: "json", "jsonl", "text", "yaml", "npz", "npy", "safetensors" or "parquet".
      checksum: Whether a reader has to notice every changed byte of a tensor.
    """
    loose = form in ("text", "jsonl", "yaml")
    cut = Expect.EITHER if loose else Expect.REFUSE
    yield _write("empty", "truncation", Expect.EITHER if loose else Expect.REFUSE, b"")
    size = len(content.rstrip()) if form in TEXT else len(content)
    for part in sorted({1, 7, size // 4, size // 2, 3 * size // 4, size - 1}):
        if 0 < part < size:
            yield _write(f"first-{part}-bytes", "truncation", cut, content[:part])
    yield _write("twice", "truncation", Expect.EITHER, content + content)
    generator = np.random.default_rng(0)
    # Checksums are those of the tensors; a header can read as before or differently.
    header = 8 + int.from_bytes(content[:8], "little") if form == "safetensors" else 0
    for place in sorted(set(generator.integers(size, size=_FLIPS).tolist())):
        changed = bytearray(content)
        changed[place] ^= 1 << int(generator.integers(8))
        flipped = Expect.REFUSE if checksum and place >= header else Expect.EITHER
        yield _write(f"flip-{place}", "flipped byte", flipped, bytes(changed))
    zeros = bytearray(content)
    zeros[size // 3 : size // 2] = bytes(size // 2 - size // 3)
    yield _write("zeros", "flipped byte", Expect.EITHER if loose else Expect.REFUSE, bytes(zeros))
    if form in TEXT:
        yield from _encodings(content.decode(), form)


def _encodings(text: str, form: str) -> Iterator[Damage]:
    """Yields other encodings of a text file, which has to contain letters beyond ASCII."""
    accented = text if not text.isascii() else text.replace("e", "é")
    strict = Expect.REFUSE if accented != text or not text.isascii() else Expect.EITHER
    yield _write("latin-1", "encoding", strict, accented.encode("latin-1", "replace"))
    yield _write("utf-16", "encoding", Expect.EITHER, text.encode("utf-16"))
    yield _write("utf-16-be", "encoding", Expect.EITHER, text.encode("utf-16-be"))
    yield _write("bom", "encoding", Expect.ACCEPT, b"\xef\xbb\xbf" + text.encode())
    yield _write("utf-32", "encoding", Expect.EITHER, text.encode("utf-32"))
    yield _write("utf-16-twice", "encoding", Expect.EITHER, 2 * text.encode("utf-16"))
    yield _write("bom-twice", "encoding", Expect.EITHER, 2 * b"\xef\xbb\xbf" + text.encode())
    yield _write("nul-bytes", "encoding", Expect.EITHER, text.encode().replace(b" ", b"\0"))
    crlf = text.replace("\n", "\r\n").encode()
    yield _write("crlf", "encoding", Expect.ACCEPT, crlf)
    if form == "json":
        yield _write("surrogates", "encoding", Expect.EITHER, accented.encode("utf-8", "replace"))


def other_formats(form: str) -> Iterator[Damage]:
    """Yields files of other formats under the name of a file."""
    for name, content in _CONTENTS.items():
        text = name in _TEXTS
        same = form == name or (form == "text" and text) or (form == "json" and name == "jsonl")
        same = same or (form == "yaml" and name == "toml")
        yield _write(
            f"is-{name}", "other format", Expect.EITHER if same else Expect.REFUSE, content
        )
    if form in ("json", "jsonl"):
        yield _write("deep-lists", "deep nesting", Expect.REFUSE, b"[" * 200_000 + b"]" * 200_000)
        deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
        yield _write("deep-objects", "deep nesting", Expect.REFUSE, deep)
        yield _write("digits", "huge number", Expect.REFUSE, b"[" + b"9" * 6000 + b"]")


def other_paths() -> Iterator[Damage]:
    """Yields other things than a file at its path."""
    refuse, kind = Expect.REFUSE, "other path"
    yield Damage("directory", kind, refuse, lambda path: (path.unlink(), path.mkdir()))
    yield Damage("missing", kind, refuse, Path.unlink)
    yield Damage(
        "broken-link", kind, refuse, lambda path: (path.unlink(), path.symlink_to("nowhere"))
    )
    yield Damage("link-loop", kind, refuse, lambda path: (path.unlink(), path.symlink_to(path)))
    if os.geteuid() != 0:  # root may read every file
        yield Damage("no-permission", kind, refuse, lambda path: path.chmod(0))


def _write(name: str, kind: str, expect: Expect, content: bytes) -> Damage:
    return Damage(name, kind, expect, lambda path: path.write_bytes(content))


def _npy(**options: object) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": (4,), **options}
    )
    return file.getvalue()


def npz_of(members: dict[str, bytes]) -> bytes:
    """Returns a .npz file with the given members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def bomb(shape: tuple[int, ...], stored: int = 0) -> bytes:
    """Returns a .npy file that announces an array of float32 and holds some bytes of zeros."""
    return _npy(shape=shape) + bytes(stored)


class _Other:
    """A class that no reader may build."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch escaped",)


def _tar(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


# Contents that may be read as a text file.
_TEXTS = (
    "html",
    "yaml",
    "lfs-pointer",
    "csv",
    "jsonl",
    "json-number",
    "comments",
    "trailing-comma",
)
_TEXTS += ("python", "pickle-of-text", "toml")
_CONTENTS = {
    "comments": b'// settings\n{"a": 1} // one\n',
    "trailing-comma": b'[{"a": 1},]\n',
    "python": b"{'a': True, 'b': None}\n",
    "toml": b"[model]\nlayers = [17]\n",
    "bz2": bz2.compress(b'[{"case_id": 0}]'),
    "xz": lzma.compress(b'[{"case_id": 0}]'),
    "zstd": b"\x28\xb5\x2f\xfd" + bytes(range(64)),
    "tar": _tar("../../escaped", b"[]"),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(64),
    "sqlite": b"SQLite format 3\0" + bytes(64),
    "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "arrow-file": b"ARROW1\0\0" + bytes(64) + b"ARROW1",
    "pickle-of-text": pickle.dumps({"mean": [1.0]}, protocol=0),
    "pickle-of-a-call": pickle.dumps(_Other()),
    "jsonl": b'{"a": 1, "text": "one"}\n{"a": 2, "text": "two"}\n',
    "json-number": b"17",
    "yaml": b"layers: [17]\nv_lr: 5e-1\nname: two words\n",
    "csv": b"prompt,subject,target\n{} is in,Rome,Italy\n",
    "html": b"<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not found</body></html>\n",
    "lfs-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "gzip": gzip.compress(b'[{"case_id": 0}]', mtime=0),
    "zip": npz_of({}),
    "pickle": pickle.dumps({"mean": [1.0, 2.0]}),
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(64),
    "npy": _npy() + bytes(16),
    "npz": npz_of({"wrong": _npy() + bytes(16)}),
    "npz-of-text": npz_of({"mom2.mom2": b"not an array"}),
    "npy-bomb": bomb((1 << 20, 1 << 20)),
    "parquet": b"PAR1" + bytes(40) + b"\x10\0\0\0PAR1",
    "safetensors": (64).to_bytes(8, "little")
    + json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(64).encode()
    + bytes(4),
}
