"""The one sentence with which a program ends after an error.

Bad input raises an error whose message is that sentence. For every other error the sentence names a file that holds the
traceback, or the flags to lower if memory ran out.
"""

from __future__ import annotations

import contextlib
import errno
import linecache
import os
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from rome_jax.files.artifacts import cache_directory, trim_directory
from rome_jax.version import __version__

_PACKAGES = {"rome_jax", "eval", "configs", "__main__"}
_LONGEST = 1500  # characters of a message
_TRACEBACKS = 1 << 20  # bytes that are kept
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# The flags that bound memory, those with the largest effect first.
_MEMORY = (
    *("batch_tokens", "max_tokens", "chunk_size", "batch_size", "chunk_columns", "samples"),
    *("sequence_length", "window"),
)
# The flags among them that bound the memory of a part of the library.
_MEMORY_OF = {
    "rome_jax.edit": ("chunk_size",),
    "rome_jax.evaluation": ("max_tokens", "batch_size"),
    "rome_jax.moments": ("batch_tokens", "sequence_length"),
    "rome_jax.trace": ("chunk_columns", "samples"),
}


def describe(
    error: Exception, takes: Sequence[str] = (), places: Mapping[str, str] | None = None
) -> str:
    """Returns the sentence about an error, without "Error: ", and writes a traceback if the error was not foreseen.

    Args:
      error: The error.
      takes: Names of the flags that the program accepts.
      places: Folders and files that the program writes to, by flag.

    Example:
      >>> describe(MemoryError("Unable to allocate 373. GiB"), ["seed", "batch_size"])
      'out of memory (Unable to allocate 373. GiB): lower --batch_size.'
    """
    message = _one_line(str(error))
    if isinstance(error, BrokenPipeError):
        return "the output was closed before everything was written."
    if _is_out_of_memory(error):
        return f"out of memory ({message[:200] or type(error).__name__}): {_lower(error, takes)}."
    if isinstance(error, OSError):
        return _file_sentence(error, message, places or {})
    if isinstance(error, ValueError) and _is_deliberate(error):
        return message
    if isinstance(error, SyntaxError):
        return f"{message}: correct the file."
    path = write_traceback(error)
    where = f"the traceback is in {path}" if path else "its traceback could not be written"
    name = type(error).__name__
    return f"{name}{': ' if message else ''}{message[:300]}; this is a bug or a damaged file, and {where}."


def write_traceback(error: BaseException) -> Path | None:
    """Writes the traceback of an error to a new file, in the cache folder or else in the temporary folder.

    Returns:
      The path, or None if neither can be written to.
    """
    text = "".join(traceback.format_exception(error))
    command = " ".join(sys.argv)
    content = f"rome_jax {__version__}\n{command}\n\n{text}".encode("utf-8", "backslashreplace")
    for find in (lambda: cache_directory() / "errors", lambda: Path(tempfile.gettempdir())):
        try:
            folder = find()
            folder.mkdir(parents=True, exist_ok=True)
            if folder.name == "errors":
                trim_directory(folder, _TRACEBACKS)
            number, path = tempfile.mkstemp(".txt", "traceback-", folder)
            with os.fdopen(number, "wb") as file:
                file.write(content)
            return Path(path)
        except OSError:
            continue
    return None


def _one_line(text: str) -> str:
    """Returns a message on one line, in characters that can be printed, and shortened if it is very long."""
    line = " ".join(text.split()).encode("utf-8", "backslashreplace").decode()
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _is_out_of_memory(error: Exception) -> bool:
    """Returns whether memory ran out, on the host or on a device."""
    if isinstance(error, MemoryError):
        return True
    text = str(error)
    return type(error).__name__.endswith("RuntimeError") and (
        "RESOURCE_EXHAUSTED" in text or "Out of memory" in text
    )


def _lower(error: Exception, takes: Sequence[str]) -> str:
    """Says how to use less memory: which flags to lower, by the innermost part of the library that ran."""
    names = [name for name in _MEMORY if name in takes]
    step = error.__traceback__
    while step is not None:
        module = str(step.tb_frame.f_globals.get("__name__"))
        package = ".".join(module.split(".")[:2])
        names = [name for name in _MEMORY_OF.get(package, ()) if name in takes] or names
        step = step.tb_next
    remedies = [f"lower {' or '.join(f'--{name}' for name in names)}"] * bool(names)
    if "dtype" in takes:
        remedies.append("give --dtype=bfloat16")
    if "mesh" in takes:
        remedies.append("split the model over several devices with --mesh")
    if not remedies:
        return "use a smaller model or a larger machine"
    plan = "; python -m eval.plan says what fits" if "model_name" in takes else ""
    return f"{', or '.join(remedies)}{plan}"


def _is_deliberate(error: ValueError) -> bool:
    """Returns whether a statement of this project raised the error, so that its message is for users.

    A ValueError may also escape from Python or from another library, such as int(nan).
    """
    if type(error).__module__.partition(".")[0] in _PACKAGES:
        return True
    step = error.__traceback__
    if step is None:
        return True
    while step.tb_next is not None:
        step = step.tb_next
    line = linecache.getline(step.tb_frame.f_code.co_filename, step.tb_lineno).strip()
    package = str(step.tb_frame.f_globals.get("__name__")).partition(".")[0]
    return package in _PACKAGES and (not line or line.startswith("raise"))


def _file_sentence(error: OSError, message: str, places: Mapping[str, str]) -> str:
    """Returns the sentence about an error of the file system."""
    if error.errno is None or error.strerror is None:  # raised with a sentence of its own
        return message
    reason = os.strerror(error.errno)
    if error.filename is not None:
        remedy = (
            "free some space, or write to another folder"
            if error.errno in _FULL
            else "check the path"
        )
        return f"{_one_line(os.fsdecode(error.filename))}: {reason}; {remedy}."
    named = [*(f"--{name}={value}" for name, value in places.items()), "the standard output"]
    with contextlib.suppress(OSError):  # this user has no home folder
        named.append(f"the cache {cache_directory()}")
    listed = ", ".join(named)
    remedy = "free some space there" if error.errno in _FULL else "check them"
    return f"{reason} (error {error.errno}) in one of {listed}: {remedy}, or write to other places."
