"""The sentence with which a program ends."""

import errno
import math
import os
import tempfile

import pytest

from rome_jax.edit.config import sorted_layers
from rome_jax.files.checked import check
from rome_jax.terminal.failures import describe


class XlaRuntimeError(RuntimeError):
    """Stands for jax's error, which has this name."""


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ROME_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def caught(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return error
    raise AssertionError("no error")


def raising(error):
    raise error


@pytest.mark.parametrize("function", [lambda: check(int, "x", "n"), lambda: sorted_layers((1, 1))])
def test_a_message_of_the_library_is_the_sentence(function, cache):
    error = caught(function)
    assert describe(error) == str(error)
    assert not cache.exists()


@pytest.mark.parametrize(
    "function",
    [
        lambda: int(math.nan),
        lambda: {}["key"],
        lambda: [].index(3),
        lambda: math.factorial(10**400),
        lambda: raising(RecursionError("maximum recursion depth exceeded")),
        lambda: raising(TypeError("two\n\nlines")),
        lambda: "\ud800".encode(),
    ],
)
def test_an_error_that_was_not_foreseen_names_a_file_with_its_traceback(function, cache):
    error = caught(function)
    sentence = describe(error)
    (path,) = cache.glob("errors/*.txt")
    assert sentence.startswith(type(error).__name__) and sentence.endswith(f" is in {path}.")
    assert "\n" not in sentence
    assert "Traceback" in path.read_text() and type(error).__name__ in path.read_text()


def test_a_cache_that_cannot_be_written_to_does_not_hide_the_error(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ROME_JAX_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert describe(KeyError("a")).endswith(f"is in {next(tmp_path.glob('traceback-*.txt'))}.")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    assert describe(KeyError("a")).endswith("its traceback could not be written.")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 373. GiB"),
        XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
    ],
)
def test_too_little_memory_names_the_flags_to_lower(error):
    takes = ["seed", "batch_size", "max_tokens"]
    assert describe(error, takes) == f"out of memory ({error}): lower --max_tokens or --batch_size."
    assert describe(error).endswith("use a smaller model or a larger machine.")


def test_an_error_of_the_file_system_has_a_place_and_a_remedy(cache):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    places = {"results_dir": "out"}
    assert describe(full, [], places) == (
        f"No space left on device (error 28) in one of --results_dir=out, the standard output, the cache {cache}: free "
        "some space there, or write to other places."
    )
    named = OSError(errno.EACCES, os.strerror(errno.EACCES), "out/run.json")
    assert describe(named) == "out/run.json: Permission denied; check the path."
    assert describe(OSError("the disk is full: free some space.")).startswith("the disk is full")
    assert describe(BrokenPipeError(32, "Broken pipe")).startswith("the output was closed")


def library_frame(module, error):
    """Raises an error in a function that belongs to a module of the library."""
    scope = {"__name__": module, "raising": raising, "error": error}
    exec("def run():\n    raising(error)", scope)
    return caught(scope["run"])


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        ("rome_jax.edit.stages.value", "--chunk_size"),
        ("rome_jax.evaluation.scoring", "--max_tokens or --batch_size"),
        ("rome_jax.trace.restore", "--chunk_columns"),
        ("rome_jax.moments.key_sums", "--batch_tokens"),
        (
            "rome_jax.models.forward",
            "--batch_tokens or --max_tokens or --chunk_size or --batch_size",
        ),
    ],
)
def test_out_of_memory_names_the_flag_of_what_ran(module, flags, cache):
    takes = "model_name dtype batch_size chunk_size max_tokens chunk_columns batch_tokens".split()
    error = XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")
    sentence = describe(library_frame(module, error), takes)
    assert sentence.startswith("out of memory (RESOURCE_EXHAUSTED: Out of memory while")
    assert f": lower {flags}" in sentence
    assert sentence.endswith(", or give --dtype=bfloat16; python -m eval.plan says what fits.")
    assert sentence.count("\n") == 0 and not cache.exists()


def test_out_of_memory_without_flags_still_has_a_remedy():
    error = MemoryError()
    assert (
        describe(error) == "out of memory (MemoryError): use a smaller model or a larger machine."
    )
    assert "split the model over several devices with --mesh." in describe(error, ["mesh"])
