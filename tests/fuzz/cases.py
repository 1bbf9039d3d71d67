"""A case of deliberate damage: what is tried, what may happen, and the verdict on what did happen."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import os
import re
import resource
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

SECONDS = 20  # the longest that a case may take
MEMORY = 3 << 30  # bytes that a case may map in addition to what the process has
LONGEST = 1000  # characters in the message of an error

# Names of exceptions and fragments of tracebacks that a user should not see.
_INTERNAL = re.compile(
    r"Traceback|\b(?:Key|Type|Attribute|Index|Recursion|Overflow|Zero|Assertion|Memory|NotImplemented|UnicodeEncode"
    r"|UnicodeDecode|JSONDecode|XlaRuntime|JaxRuntime|Safetensor|Arrow\w*|Validation)Error\b|^\[Errno|<class '"
    r"|<(?:function|built-in|object) |errors\.pydantic"
)
_TEMPORARY = re.compile(
    r"\.(?:partial|part|tmp|temp)\b|orbax-checkpoint-tmp|(?:^|/)(?:tmp|\.saving)"
)


class Expect(enum.Enum):
    """What may happen to a case.

    Attributes:
      REFUSE: The input has no meaning, so one sentence must say so.
      ACCEPT: The input is unambiguous and must be read.
      EITHER: The input may be read or refused; only how it is refused matters.
    """

    REFUSE = "refuse"
    ACCEPT = "accept"
    EITHER = "either"


class Verdict(enum.Enum):
    """What happened to a case; the first two are right."""

    REFUSED = "refused in one sentence"
    ACCEPTED = "read, or work began"
    SILENT = "accepted, but has no meaning"
    UNREAD = "refused, but is unambiguous"
    TRACEBACK = "traceback or undocumented exception"
    MESSAGE = "message is not one sentence that names the place"
    LITTER = "files left behind or overwritten"
    HANG = "took too long"
    CRASH = "ended the process"
    SKIPPED = "skipped"

    @property
    def right(self) -> bool:
        """Whether the outcome is as it should be."""
        return self in (Verdict.REFUSED, Verdict.ACCEPTED, Verdict.SKIPPED)


class Stopped(BaseException):
    """A case that was stopped because it took too long; no library catches it."""


class WorkBegan(BaseException):
    """A command that passed all its checks and began to compute."""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What a damaged input led to.

    Attributes:
      message: The error as the user sees it; None if there was none.
      problem: A verdict that does not depend on what was expected, or None.
      detail: Text that helps to find the cause.
    """

    message: str | None = None
    problem: Verdict | None = None
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Case:
    """One damaged input.

    Attributes:
      name: Identifies the case, as in `python -m tests.fuzz --only=NAME`.
      kind: The kind of damage, for the counts.
      area: The part of the library that has to notice it.
      expect: What may happen.
      run: Tries the input in an empty folder.
    """

    name: str
    kind: str
    area: str
    expect: Expect
    run: Callable[[Path], Attempt] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Result:
    """The verdict on a case, with an explanation and the time it took, in seconds."""

    case: Case
    verdict: Verdict
    detail: str
    seconds: float


def judge(case: Case, seconds: float = SECONDS) -> Result:
    """Tries a case in a folder of its own and returns the verdict."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rome-jax-fuzz-") as folder:
        try:
            with limited(seconds), contextlib.chdir(folder):
                attempt = case.run(Path(folder))
        except Stopped:
            attempt = Attempt(problem=Verdict.HANG, detail=f"more than {seconds} s")
    verdict = _verdict(case.expect, attempt)
    detail = attempt.detail if attempt.message is None else f"{attempt.message} {attempt.detail}"
    return Result(case, verdict, detail, time.monotonic() - began)


def _verdict(expect: Expect, attempt: Attempt) -> Verdict:
    if attempt.problem is not None:
        return attempt.problem
    if attempt.message is None:
        return Verdict.SILENT if expect is Expect.REFUSE else Verdict.ACCEPTED
    return Verdict.UNREAD if expect is Expect.ACCEPT else Verdict.REFUSED


def attempt_call(call: Callable[[], object], *names: str) -> Attempt:
    """Calls a function that should succeed or raise a documented exception.

    Args:
      call: The function.
      *names: Words of which the message must contain one, such as the name of the file; none of them if empty.
    """
    try:
        call()
    except Exception as error:
        if wrong := _undocumented(error):
            return Attempt(None, Verdict.TRACEBACK, f"{wrong} at {_place(error)}")
        message = str(error).encode(errors="backslashreplace").decode()  # as a terminal shows it
        if wrong := what_is_wrong(message, *names):
            detail = f"{type(error).__name__}: {message[:300]!r} ({wrong}) at {_place(error)}"
            return Attempt(None, Verdict.MESSAGE, detail)
        return Attempt(message)
    return Attempt()


def what_is_wrong(message: str, *names: str) -> str:
    """Returns why a message is not one sentence that contains one of the names; empty if it is."""
    if "\n" in message.strip():
        return "several lines"
    if not message.rstrip().endswith((".", "?")):
        return "does not end in a period"
    if len(message) > LONGEST:
        return f"{len(message)} characters"
    if found := _INTERNAL.search(message):
        return f"shows {found[0]!r}"
    if names and not any(name in message for name in names):
        return f"names none of {', '.join(names)}"
    return ""


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns size and time of each file below a folder; links are not followed."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            about = path.lstat()
            found[os.fspath(path.relative_to(folder))] = (about.st_size, about.st_mtime_ns)
    return found


def litter(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> list[str]:
    """Returns temporary files that are new."""
    return sorted(name for name in after.keys() - before.keys() if _TEMPORARY.search(name))


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises `Stopped` after some seconds, and lets allocations fail that the machine could not serve."""

    def stop(*_):
        raise Stopped

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _undocumented(error: Exception) -> str:
    """Names an exception that is not one of the library and not plainly a ValueError or OSError; else empty."""
    kind = type(error)
    own = kind.__module__.startswith("rome_jax") and isinstance(error, ValueError | OSError)
    plain = kind.__module__ == "builtins" and (kind is ValueError or isinstance(error, OSError))
    return "" if own or plain else f"{kind.__module__}.{kind.__name__}: {str(error)[:200]!r}"


def _place(error: Exception) -> str:
    """Returns the innermost line of the library in a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if re.search(r"/(?:rome_jax|eval|configs)/", frame.filename)]
    if not own:
        return "no line of the library"
    path = re.sub(r".*/((?:rome_jax|eval|configs)/.*)", r"\1", own[-1].filename)
    return f"{path}:{own[-1].lineno}"
