"""Formats of files by their first bytes, and what to do about those that no reader takes."""

from __future__ import annotations

HEAD = 4096  # bytes to look at

PARQUET = b"PAR1"
ARROW_FILE = b"ARROW1"
ARROW_STREAM = b"\xff\xff\xff\xff"  # how `datasets` writes .arrow files

# First bytes -> what the file is, and the remedy. Longer marks come before those that they begin with.
_MARKS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "compressed by gzip", "unpack it with gunzip"),
    (b"BZh", "compressed by bzip2", "unpack it with bunzip2"),
    (b"\xfd7zXZ\x00", "compressed by xz", "unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it with unzstd"),
    (b"PK\x03\x04", "a zip archive, as .npz and PyTorch files are", "unpack it and give a file in it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it and give a file in it"),
    (b"Rar!", "a RAR archive", "unpack it and give a file in it"),
    (b"\x93NUMPY", "an array of NumPy", "give a text file"),
    (b"\x89HDF", "an HDF5 file", "convert it to JSON or parquet"),
    (b"SQLite format 3", "an SQLite database", "export it as JSON"),
    (b"%PDF", "a PDF", "convert it to text"),
    (PARQUET, "a parquet file", "give a text file"),
    (ARROW_FILE, "an arrow file", "give a text file"),
    (ARROW_STREAM, "an arrow file", "give a text file"),
    (b"version https://git-lfs", "a Git LFS pointer and not the file itself", "run git lfs pull"),
    (b"\xff\xfe\x00\x00", "text in UTF-32", "convert it to UTF-8 with iconv -f UTF-32 -t UTF-8"),
    (b"\x00\x00\xfe\xff", "text in UTF-32", "convert it to UTF-8 with iconv -f UTF-32 -t UTF-8"),
    (b"\xff\xfe", "text in UTF-16", "convert it to UTF-8 with iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "text in UTF-16", "convert it to UTF-8 with iconv -f UTF-16 -t UTF-8"),
    *(
        (b"\x80" + bytes([protocol]), "a pickle, which is not read because it can run code", "export it as JSON")
        for protocol in range(2, 6)
    ),
)  # fmt: skip


def foreign(head: bytes) -> str | None:
    """Names the format of a file that is not UTF-8 text, or is a page or pointer in place of the file.

    Args:
      head: The first bytes of the file.

    Returns:
      What the file is and what to do about it, as the end of a sentence; None if it may be UTF-8 text.

    Example:
      >>> foreign(b"\\x1f\\x8b\\x08")
      'is compressed by gzip: unpack it with gunzip.'
    """
    for mark, what, remedy in _MARKS:
        if head.startswith(mark):
            return f"is {what}: {remedy}."
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "is an HTML page, such as a site shows for a file: download the file itself."
    if b"\0" in head:
        even, odd = head[::2].count(0), head[1::2].count(0)
        if max(even, odd) > len(head) // 8 and min(even, odd) == 0:
            order = "LE" if odd else "BE"
            return f"is text in UTF-16: convert it to UTF-8 with iconv -f UTF-16{order} -t UTF-8."
        return "is not a text: it has NUL bytes; give a text file in UTF-8."
    return None


def not_utf8(problem: UnicodeDecodeError, line: int) -> str:
    """Names the encoding of a text that is not UTF-8.

    Args:
      problem: Why it is not.
      line: Number of the line with the first wrong byte.

    Returns:
      The end of a sentence.
    """
    where = f"is not UTF-8 (byte 0x{problem.object[problem.start]:02x} in line {line})"
    if problem.reason == "unexpected end of data":
        return f"{where}: it ends within a character, so it was cut short; copy it again."
    return (
        f"{where} but in another encoding, such as Latin-1: convert it with "
        "iconv -f LATIN1 -t UTF-8."
    )
