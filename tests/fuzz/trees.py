"""Damage to what a file says: values of other types, missing, additional and repeated fields."""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tests.fuzz.cases import Expect
from tests.fuzz.damage import Damage

Step = str | int
_PATHS = 24  # fields of a file that are damaged
_DEEP = "DEEP"
_TWICE = "TWICE"  # becomes the name of another field
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
            dropped = functools.partial(_dump, functools.partial(drop, content, path))
            yield f"{name}-missing{suffix}", "missing field", expect, dropped
        if isinstance(old, dict) and old:
            twice = functools.partial(replaced, content, path, {**old, _TWICE: [0.125]})
            yield (
                f"{name}-twice{suffix}",
                "repeated field",
                Expect.REFUSE,
                functools.partial(_dump_twice, twice, next(iter(old))),
            )
        if isinstance(old, dict):
            more = {**old, "fuzz": [1], "": None, "__class__": "x"}
            added = functools.partial(_dump, functools.partial(replaced, content, path, more))
            yield f"{name}-more{suffix}", "additional field", Expect.EITHER, added


def json_damage(content: Any, required: Sequence[str], typed: Sequence[str]) -> Iterator[Damage]:
    """Yields damage to the fields of a JSON file."""
    for name, kind, expect, text in of_json(content, required, typed):
        yield written(name, kind, expect, lambda text=text: text().encode())


def yaml_damage(
    content: dict[str, Any], required: Sequence[str], typed: Sequence[str]
) -> Iterator[Damage]:
    """Yields damage to the fields of a YAML file, most of it in JSON, which is YAML too."""
    for damaged in json_damage(content, required, typed):
        harmless = damaged.name.endswith(("=nan", "=inf", "=surrogate"))  # JSON's words for them
        yield dataclasses.replace(damaged, expect=Expect.EITHER) if harmless else damaged
    text = "".join(f"{name}: {json.dumps(value)}\n" for name, value in content.items())
    first = next(iter(content))
    lines = {
        "valid": ("", Expect.ACCEPT),
        "comment": ("# a comment\n", Expect.ACCEPT),
        "document-end": ("...\n", Expect.ACCEPT),
        "twice": (f"{first}: [0.125]\n", Expect.REFUSE),
        "two-documents": (f"---\n{first}: 1\n", Expect.REFUSE),
        "tab": (f"fuzz:\n\t{first}: 1\n", Expect.REFUSE),
        "expanding": (
            "a: &a [x, x]\n"
            + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in itertools.pairwise("abcdefghij"))
            + f"{first}: *j\n",
            Expect.REFUSE,
        ),
        "call": (
            '!!python/object/apply:os.system ["touch escaped"]: 1\n',
            Expect.REFUSE,
        ),
        "key-of-list": ("? [a]\n: 1\n", Expect.REFUSE),
        "key-of-number": ("17: 1\n", Expect.REFUSE),
        "open": (f'{first}2: "no end\n', Expect.REFUSE),
        "alone": ("*missing\n", Expect.REFUSE),
    }
    for name, (more, expect) in lines.items():
        yield written(f"yaml-{name}", "YAML", expect, lambda more=more: (text + more).encode())
    for name, value in (
        *(("binary", "!!binary aGVsbG8="), ("set", "!!set {a, b}"), ("date", "2020-01-01")),
        *(("nan", ".nan"), ("inf", "-.inf"), ("word", "yes"), ("none", "~"), ("time", "1:30")),
    ):
        for field in content:
            changed = "".join(
                f"{one}: {value if one == field else json.dumps(old)}\n"
                for one, old in content.items()
            )
            wrong = _matches(field, (*required, *typed)) and name in (
                "binary",
                "date",
                "nan",
                "inf",
            )
            yield written(
                f"yaml-{field}={name}",
                "YAML",
                Expect.REFUSE if wrong else Expect.EITHER,
                lambda changed=changed: changed.encode(),
            )


def jsonl_damage(lines: Sequence[Any], required: Sequence[str]) -> Iterator[Damage]:
    """Yields damage to one line of a JSON Lines file."""
    before, after = (json.dumps(line) + "\n" for line in (lines[0], lines[-1]))
    for name, kind, expect, text in of_json(lines[0], required, ()):
        yield written(
            name, kind, expect, lambda text=text: (before + text() + "\n" + after).encode()
        )


def written(name: str, kind: str, expect: Expect, content: Callable[[], bytes]) -> Damage:
    """Returns the damage that replaces a file by other content."""
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


def _dump_twice(content: Callable[[], Any], name: str) -> str:
    """Writes JSON in which an object has a field twice."""
    return _dump(content).replace(json.dumps(_TWICE), json.dumps(name))


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


def drop(content: Any, path: tuple[Step, ...]) -> Any:
    """Returns a copy of a tree without the field at a path."""
    changed = copy.deepcopy(content)
    del _get(changed, path[:-1])[path[-1]]
    return changed
