"""Checks of values from outside: files, flags, metadata and arguments.

One mechanism, pydantic, converts what is unambiguous ("5e-1" to 0.5, 20.0 to 20, 17 to a tuple of one layer) and
refuses everything else in one sentence. No NaN, infinity or text that is not valid Unicode passes.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import operator
import re
import reprlib
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pydantic
import typing_extensions  # its TypedDict is the one that pydantic can read on every Python

INT_BITS = 63
# Ranges of numbers that many functions and configurations take. NaN and infinities are in none of them.
_LARGEST = float(np.finfo(np.float32).max)  # what models compute in
PositiveFloat = Annotated[float, pydantic.Field(gt=0, le=_LARGEST)]
NonNegativeFloat = Annotated[float, pydantic.Field(ge=0, le=_LARGEST)]
PositiveInt = Annotated[int, pydantic.Field(ge=1)]
Count = Annotated[int, pydantic.Field(ge=1, lt=2**31)]
NonNegativeInt = Annotated[int, pydantic.Field(ge=0, lt=2**31)]
Seed = Annotated[int, pydantic.Field(ge=0, lt=2**32)]  # a PRNG key ignores all further bits

_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*", re.IGNORECASE)
_SHOWN = 60  # characters of a refused value in a message

# What to give, by the start of pydantic's error type; the first match counts.
_WANTED = {
    "finite_number": "a finite number",
    "float": "a finite number",
    "int": "an integer",
    "bool": "true or false",
    "string_unicode": "valid Unicode, which this text is not",
    "string_too_short": "a text that is not empty",
    "string": "a text",
    "dict": "a mapping of names to values",
    "mapping": "a mapping of names to values",
    "model": "a mapping of names to values",
    "dataclass": "a mapping of names to values",
    "list": "a list",
    "tuple": "a list",
    "too_short": "more items",
    "none": "null",
}


def check(kind: Any, value: Any, name: str, *, error: type[Exception] = ValueError) -> Any:
    """Converts a value to a type, or refuses it in one sentence.

    Args:
      kind: The type: int, float, bool, str, an enum, a tuple, list, dict, optional or union of these, Annotated with
        bounds such as `pydantic.Field(gt=0)`, a TypedDict, or a dataclass. Numbers are finite and texts valid Unicode.
      value: The value from outside.
      name: Name of the value in the message, such as "v_lr" or "cases.json: case 3".
      error: Exception to raise.

    Returns:
      The converted value. A tuple may be given as a list or, if all of its items have one type, as a lone item. An enum
      may be given by name or by value.

    Raises:
      error: If the value is not of the type; one sentence with the path of the field, its value and what to give.

    Example:
      >>> check(tuple[int, ...], 17, "layers"), check(float, "5e-1", "v_lr")
      ((17,), 0.5)
      >>> check(dict[str, float], {"loss": float("nan")}, "case_3.json")
      Traceback (most recent call last):
      ValueError: case_3.json: loss=nan: give a finite number.
    """
    try:
        return _adapter(kind).validate_python(value)
    except pydantic.ValidationError as refused:
        raise error(_sentence(name, value, refused.errors(include_url=False))) from None
    except RecursionError:
        raise error(f"{name} is nested too deeply: give fewer levels.") from None


def check_fields(
    record: Any, names: Collection[str] | None = None, *, error: type[Exception] = ValueError
) -> None:
    """Converts the fields of a frozen dataclass to the types of their hints; called as it is made.

    Args:
      record: The dataclass. Hints may be Annotated with bounds, as for `check`.
      names: Fields to convert; all by default.
      error: Exception to raise.

    Raises:
      error: If a value cannot be converted, or is out of the range in the hint.
    """
    kind: Any = type(record)
    hints = _hints(kind)
    for name in hints if names is None else names:
        value = check(hints[name], getattr(record, name), name, error=error)
        object.__setattr__(record, name, value)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """Returns the types of the fields of a dataclass."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


@functools.cache
def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    """Returns the compiled checks of a type."""
    return pydantic.TypeAdapter(_strict(kind))


def _strict(kind: Any) -> Any:
    """Adds this module's rules to a type hint: no bool as a number, finite numbers, lone items, enums by name."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return Annotated[(_strict(arguments[0]), *arguments[1:])]
    if origin in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, map(_strict, arguments))
    if origin in (typing.Required, typing.NotRequired):
        return origin[_strict(arguments[0])]
    if origin is tuple:
        items = tuple(item if item is ... else _strict(item) for item in arguments)
        strict: Any = types.GenericAlias(tuple, items)
        lone = pydantic.BeforeValidator(_as_items if ... in arguments else _not_text)
        return Annotated[strict, lone]
    if origin is typing.Literal:
        return kind
    if origin is not None:
        return origin[tuple(map(_strict, arguments))]
    if kind in _SCALARS:
        return _SCALARS[kind]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return Annotated[kind, pydantic.BeforeValidator(functools.partial(_member, kind))]
    if typing_extensions.is_typeddict(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        fields = {name: _strict(hint) for name, hint in hints.items()}
        checked: Any = typing_extensions.TypedDict(kind.__name__, fields, total=kind.__total__)  # type: ignore[misc]
        config: pydantic.ConfigDict = getattr(kind, "__pydantic_config__", pydantic.ConfigDict())
        return pydantic.with_config(config)(checked)
    return kind


def _plain(value: Any) -> Any:
    """Converts a number of numpy to Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _number(wanted: str, value: Any) -> Any:
    """Refuses true and false where a number belongs, and texts of which pydantic would read only a part ("0-3")."""
    value = _plain(value)
    if isinstance(value, bool) or (isinstance(value, str) and not _NUMBER.fullmatch(value)):
        raise ValueError(wanted)
    return value


def _text(value: Any) -> Any:
    """Refuses bytes, which pydantic would decode."""
    if isinstance(value, bytes | bytearray):
        raise ValueError(_WANTED["string"])
    return value


def _unicode(value: str) -> str:
    """Refuses lone surrogates, which cannot be written to a file."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(_WANTED["string_unicode"]) from None
    return value


_SCALARS: Mapping[type, Any] = {
    int: Annotated[
        int,
        pydantic.Field(ge=-(2**INT_BITS), lt=2**INT_BITS),
        pydantic.BeforeValidator(functools.partial(_number, "an integer")),
    ],
    float: Annotated[
        float,
        pydantic.Field(allow_inf_nan=False),
        pydantic.BeforeValidator(functools.partial(_number, "a finite number")),
    ],
    bool: Annotated[bool, pydantic.BeforeValidator(_plain)],
    str: Annotated[str, pydantic.BeforeValidator(_text), pydantic.AfterValidator(_unicode)],
}


def _not_text(value: Any) -> Any:
    """Refuses a text where a list belongs; its characters are not items."""
    if isinstance(value, str | bytes):
        raise ValueError("a list")
    return value


def _as_items(value: Any) -> Any:
    """Makes a lone number, text or enum a tuple of one."""
    return (value,) if isinstance(value, int | float | str | enum.Enum | np.generic) else value


def _member(kind: type[enum.Enum], value: Any) -> Any:
    """Finds the member with this value or name."""
    for member in kind:
        if isinstance(value, str | int | float) and value in (member.value, member.name):
            return member
    if isinstance(value, kind):
        return value
    known = ", ".join(str(m.value) if isinstance(m.value, str) else m.name for m in kind)
    raise ValueError(f"one of {known}")


def _sentence(name: str, value: Any, errors: Sequence[Mapping[str, Any]]) -> str:
    """Words the first error; those of a union are joined."""
    first = errors[0]
    path = _place(value, first)
    field = f"{name}{path}" if path.startswith("[") else f"{name}: {path}" if path else name
    if first["type"] in ("missing", "missing_argument"):
        return f"{field} is missing: give it."
    if first["type"] == "extra_forbidden":
        return f"{field} is not a field that is read: remove it."
    same_place = [other for other in errors if _place(value, other) == path]
    wanted = " or ".join(dict.fromkeys(_wanted(other) for other in same_place))
    return f"{field}={shown(first['input'])}: give {wanted}."


def _place(value: Any, error: Mapping[str, Any]) -> str:
    """Returns the path of an error inside the value, without the names that pydantic gives the members of a union."""
    path = ""
    for number, part in enumerate(error["loc"], 1):
        last = number == len(error["loc"])
        if isinstance(value, Mapping) and (part in value or (last and "missing" in error["type"])):
            path += f".{plain(part)}" if path else plain(part)
            value = value.get(part)
        elif isinstance(part, int) and isinstance(value, Sequence | np.ndarray):
            path += f"[{part}]"
            value = value[part] if part < len(value) else None
        elif isinstance(part, int):  # an item of a lone value
            path += f"[{part}]"
    return path


def _wanted(error: Mapping[str, Any]) -> str:
    """Says what to give instead of a refused value."""
    kind, context = error["type"], error.get("ctx", {})
    bounds = {
        "greater_than": "a number above {gt}",
        "greater_than_equal": "a number of {ge} or more",
        "less_than": "a number below {lt}",
        "less_than_equal": "a number of {le} or less",
    }
    if kind in bounds:
        return bounds[kind].format(**context)
    if kind == "value_error":
        return error["msg"].removeprefix("Value error, ")
    if kind == "too_long":
        return f"at most {context['max_length']} items"
    if kind == "literal_error":
        return f"one of {context['expected']}"
    for start, words in _WANTED.items():
        if kind.startswith(start):
            return words
    return error["msg"][:1].lower() + error["msg"][1:]


def shown(value: Any) -> str:
    """Returns a value as messages show it: shortened, on one line, and in characters that every terminal can print.

    Example:
      >>> shown("a" * 500)
      "'aaaaaaaaaaaaaaaaaaaaaaaaaa...aaaaaaaaaaaaaaaaaaaaaaaaaaa'"
    """
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    short = reprlib.Repr()
    short.maxstring = short.maxother = _SHOWN
    short.maxlong, short.maxlevel, short.maxlist, short.maxdict = 24, 2, 4, 3
    text = short.repr(value)
    if len(text) > 2 * _SHOWN:
        text = f"{text[:_SHOWN]}...{text[-_SHOWN:]}"
    return text.encode("utf-8", "backslashreplace").decode()


def plain(name: Any) -> str:
    """Returns the name of a field or tensor as messages show it: without quotes, and otherwise as `shown` does.

    Example:
      >>> plain("subject"), plain("two\\nlines")
      ('subject', 'two lines')
    """
    text = " ".join(str(name).split()).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]}...{text[-_SHOWN:]}"


def listed(names: Iterable[Any], limit: int = 8) -> str:
    """Lists names in their order, up to a limit: in a file of another layout, all names are wrong.

    Example:
      >>> listed(["a", "b", "c"], 2)
      'a, b and 1 more'
    """
    ordered = list(names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(map(plain, ordered[:limit])) + more
