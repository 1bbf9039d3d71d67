"""Grids of hyperparameters: the points of a sweep, as the command line gives them."""

from __future__ import annotations

import ast
import dataclasses
import enum
import itertools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from rome_jax.edit.config import Hyperparameters


@dataclasses.dataclass(frozen=True)
class Axis:
    """A hyperparameter and the values that it takes, as `Hyperparameters.to_dict` gives them."""

    key: str
    values: tuple[Any, ...]

    @property
    def numbers(self) -> tuple[float, ...] | None:
        """The values as numbers, a single layer as its index; None if one of them is no number."""
        plain = [v[0] if isinstance(v, tuple) and len(v) == 1 else v for v in self.values]
        return tuple(plain) if all(type(value) in (int, float) for value in plain) else None


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a grid.

    Attributes:
      labels: of its values, by key.
      config: the hyperparameters there.
    """

    labels: Mapping[str, str]
    config: Hyperparameters

    @property
    def name(self) -> str:
        """Of its folder and its row, such as layers=0,v_lr=0.5."""
        return ",".join(f"{key}={label}" for key, label in self.labels.items())


@dataclasses.dataclass(frozen=True)
class Grid:
    """All combinations of the values of some hyperparameters.

    Attributes:
      base: the hyperparameters that are not varied.
      axes: those that are, one or more.
    """

    base: Hyperparameters
    axes: tuple[Axis, ...]

    @classmethod
    def parse(cls, texts: Sequence[str], base: Hyperparameters) -> Grid:
        """Reads KEY=VALUE,VALUE,... of each key.

        Values are Python literals, and enums and weights go by their names. Where a tuple is wanted, one item is a
        tuple of one: `layers=0,1` are two values, `layers=(0,1)` is one.

        Args:
          texts: one a key.
          base: the hyperparameters that are not varied.

        Raises:
          ValueError: no text, or one that is malformed, names no hyperparameter or one twice, or gives a value of
            another type, out of range, or twice.

        Example:
          >>> [p.name for p in Grid.parse(["v_lr=0.1,1"], ROMEConfig(layers=(5,))).points]  # doctest: +SKIP
          ['v_lr=0.1', 'v_lr=1']
        """
        if not texts:
            raise ValueError(
                "--sweep is missing: name a hyperparameter and its values, such as --sweep=layers=0,1,2; "
                f"there are {', '.join(base.to_dict())}."
            )
        axes = tuple(_parse_axis(text, base) for text in texts)
        if len({axis.key for axis in axes}) < len(axes):
            raise ValueError(
                f"--sweep names {', '.join(axis.key for axis in axes)}: give each hyperparameter once."
            )
        return cls(base, axes)

    @property
    def keys(self) -> tuple[str, ...]:
        """The hyperparameters that are varied."""
        return tuple(axis.key for axis in self.axes)

    @property
    def points(self) -> list[Point]:
        """All combinations; the last key varies fastest."""
        base = self.base.to_dict()
        return [
            Point(
                dict(zip(self.keys, map(label, values), strict=True)),
                self.base.from_dict(base | dict(zip(self.keys, values, strict=True))),
            )
            for values in itertools.product(*(axis.values for axis in self.axes))
        ]


def label(value: Any) -> str:
    """A value in the name of a file, a table or a figure.

    Example:
      >>> label(0.5), label((0, 1)), label(((5, 10), (10, 10)))
      ('0.5', '0+1', '5x10+10x10')
    """
    if isinstance(value, tuple):
        items = ("x".join(map(label, v)) if isinstance(v, tuple) else label(v) for v in value)
        return "+".join(items) or "none"
    return f"{value:.12g}" if isinstance(value, float) else str(value)


class _Names(ast.NodeTransformer):
    """Names of enum members need no quotes."""

    def visit_Name(self, node: ast.Name) -> ast.Constant:
        return ast.Constant(node.id)


def _parse_axis(text: str, base: Hyperparameters) -> Axis:
    key, _, listed = (part.strip() for part in text.partition("="))
    hints = typing.get_type_hints(type(base))
    kinds = {field.name: hints[field.name] for field in dataclasses.fields(base)}
    if key not in kinds:
        raise ValueError(
            f"--sweep={text}: there is no hyperparameter {key!r}; there are {', '.join(kinds)}."
        )
    try:
        items = ast.literal_eval(_Names().visit(ast.parse(f"[{listed}]", mode="eval")))
    except (SyntaxError, ValueError):
        items = []
    if not items:
        raise ValueError(
            f"--sweep={text}: give values with commas between, such as "
            f'{key}={label(base.to_dict()[key])}, and tuples in brackets and quotes, "(0,),(1,)".'
        )
    values = []
    for item in items:
        if typing.get_origin(kinds[key]) is tuple and not isinstance(item, tuple):
            item = (item,)
        if not _fits(item, kinds[key]):
            kind = kinds[key].__name__ if isinstance(kinds[key], type) else kinds[key]
            raise ValueError(f"--sweep={text}: {item!r} is of another type, {key} is of {kind}.")
        try:
            values.append(base.from_dict(base.to_dict() | {key: item}).to_dict()[key])
        except ValueError as error:
            raise ValueError(f"--sweep={text}: {error}") from error
    if len(set(map(label, values))) < len(values):
        raise ValueError(f"--sweep={text}: give each value once.")
    return Axis(key, tuple(values))


def _fits(value: Any, kind: Any) -> bool:
    """Whether a plain value is of a field's type; `from_dict` looks at enums."""
    inner = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            return False
        wanted = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return len(value) == len(wanted) and all(map(_fits, value, wanted))
    if isinstance(kind, enum.EnumType):
        return isinstance(value, str)
    return type(value) in ((int, float) if kind is float else (kind,))
