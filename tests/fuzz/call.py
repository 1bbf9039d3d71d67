"""Bad arguments of functions: for each argument, the values that its type excludes."""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.fuzz.cases import Attempt, Case, Expect, attempt_call
from tests.fuzz.examples import tiny
from tests.fuzz.work import stopping

# Values that no argument of a type may have, by the names of the cases.
_NUMBERS: dict[str, Any] = {"nan": math.nan, "inf": math.inf, "minus-inf": -math.inf}
_OBJECTS: dict[str, Any] = {"list": [[]], "object": {"a": 1}, "bytes": b"\xff", "complex": 1j}
_BAD: dict[type, dict[str, Any]] = {
    bool: {"text": "maybe", "two": 2, **_NUMBERS, **_OBJECTS},
    int: {
        "text": "abc",
        "half": 1.5,
        "huge": 2**70,
        "true": True,
        "empty": "",
        **_NUMBERS,
        **_OBJECTS,
    },
    float: {"text": "abc", "1e400": "1e400", "digits": 10**400, "true": True, "empty": ""}
    | {**_NUMBERS, **_OBJECTS},
    str: {"surrogate": "\ud800", "number": 17, "nan": math.nan, "true": True, **_OBJECTS},
    tuple: {
        "text": "abc",
        "half": 1.5,
        "nan": [math.nan],
        "texts": ["a"],
        "huge": [2**70],
        "true": [True],
    }
    | {"nested": [[[0]]], "nulls": [None], "object": {"a": 1}, "inf": math.inf, "bytes": b"\xff"},
    enum.Enum: {
        "text": "nonsense",
        "surrogate": "\ud800",
        "number": 1.5,
        "nan": math.nan,
        **_OBJECTS,
    },
}
# Further bad values of many arguments.
BELOW_ONE = {"zero": 0, "minus": -1}
TEXTS: dict[str, Any] = {"surrogate": "\ud800", "empty": "", "null": None, "number": 3}
WORDS = {
    "nonsense": "nonsense",
    "empty": "",
    "nan": "nan",
    "inf": "inf",
    "1e400": "1e400",
    "minus": "-1",
}
# Of the first, the ones of the right Python type, for arguments that never come from a file.
_PLAUSIBLE: dict[type, set[str]] = {
    str: {"surrogate"},
    int: {"nan", "inf", "minus-inf", "half", "huge"},
    float: {"nan", "inf", "minus-inf"},
}


@dataclasses.dataclass(frozen=True)
class Call:
    """A function whose arguments are damaged one at a time.

    Attributes:
      name: Name of the function.
      area: The part of the library that it belongs to.
      function: The function.
      valid: Valid arguments, or a function that returns them; called without damage, they must not be refused.
        None if only bad values are tried.
      bad: Further bad values by argument and name. For an argument that is in here but has no valid value, only these
        are tried.
      loose: Whether only values of a plausible Python type are tried; for arguments that never come from a file.
      typed: Valid arguments whose types choose the bad values, if they differ from those of `valid`.
      names: Further words of which a message may contain one in place of the argument's name.
      prepare: Called first. Its work, such as to load a model, is not that of the function.
    """

    name: str
    area: str
    function: Callable[..., Any]
    valid: Callable[[], Mapping[str, Any]] | Mapping[str, Any] | None
    bad: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    loose: bool = False
    typed: Callable[[], Mapping[str, Any]] | None = None
    names: tuple[str, ...] = ()
    prepare: Callable[[], object] = tiny

    def cases(self) -> Iterator[Case]:
        """Yields a case without damage, and one per argument and bad value."""
        if self.valid is not None:
            yield self._case("undamaged", "undamaged", Expect.ACCEPT, {})
        for argument, value in _made(self.typed or self.valid).items():
            for label, bad in _bad_values(value).items():
                plausible = not self.loose or label in _PLAUSIBLE.get(type(value), ())
                if plausible and label not in self.bad.get(argument, ()):
                    harmless = self.loose and label == "huge"  # more than there is
                    expect = Expect.EITHER if harmless else Expect.REFUSE
                    yield self._case(f"{argument}={label}", _kind(label), expect, {argument: bad})
            if not self.loose and "null" not in self.bad.get(argument, ()):
                yield self._case(f"{argument}=null", "null", Expect.EITHER, {argument: None})
        for argument, values in self.bad.items():
            for label, bad in values.items():
                yield self._case(
                    f"{argument}={label}", _kind(label), Expect.REFUSE, {argument: bad}
                )

    def _case(self, label: str, kind: str, expect: Expect, changes: Mapping[str, Any]) -> Case:
        run = functools.partial(self._try, changes)
        return Case(f"input/{self.name}/{label}", f"input: {kind}", self.area, expect, run)

    def _try(self, changes: Mapping[str, Any], folder: Path) -> Attempt:
        self.prepare()
        arguments = {**_made(self.valid), **changes}

        def call() -> None:
            with stopping():
                self.function(**arguments)

        return attempt_call(call, *changes, *self.names, *map(_shown, changes.values()))


def _made(valid: Callable[[], Mapping[str, Any]] | Mapping[str, Any] | None) -> Mapping[str, Any]:
    return valid() if callable(valid) else valid or {}


def _shown(value: Any) -> str:
    """Returns the text by which a message may show a value; of a list, that of its first item."""
    if isinstance(value, list | tuple) and value:
        return _shown(value[0])
    return str(value)[:20].encode(errors="backslashreplace").decode()


def _kind(label: str) -> str:
    if label in _NUMBERS or label == "1e400":
        return "not finite"
    if label in ("huge", "digits"):
        return "huge number"
    return {"surrogate": "encoding", "undamaged": "undamaged"}.get(label, "wrong value or type")


def _bad_values(value: Any) -> Mapping[str, Any]:
    """Returns the values that an argument must not have if `value` is valid."""
    if isinstance(value, enum.Enum):
        return _BAD[enum.Enum]
    if isinstance(value, tuple) and any(isinstance(item, enum.Enum | str) for item in value):
        return {"text": "nonsense", "texts": ["nonsense"], "nulls": [None], "object": {"a": 1}}
    return _BAD.get(type(value), {})
