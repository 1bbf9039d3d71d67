"""Grids of hyperparameters: the points of a sweep, as given on the command line."""

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
    """A hyperparameter and its values.

    Attributes:
      key: Name of the hyperparameter.
      values: Its values, as `Hyperparameters.to_dict` returns them.
    """

    key: str
    values: tuple[Any, ...]

    @property
    def numbers(self) -> tuple[float, ...] | None:
        """The values as numbers, with a single layer as its index; None if one of them is not a number.

        Example:
          >>> Axis("layers", ((0,), (3,))).numbers
          (0, 3)
        """
        plain = [v[0] if isinstance(v, tuple) and len(v) == 1 else v for v in self.values]
        return tuple(plain) if all(type(value) in (int, float) for value in plain) else None


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a grid.

    Attributes:
      labels: The text of each varied value, by key.
      config: The hyperparameters of the point.
    """

    labels: Mapping[str, str]
    config: Hyperparameters

    @property
    def name(self) -> str:
        """Name of the point's folder and table row, such as layers=0,v_lr=0.5."""
        return ",".join(f"{key}={label}" for key, label in self.labels.items())


@dataclasses.dataclass(frozen=True)
class Grid:
    """All combinations of the values of some hyperparameters.

    Attributes:
      base: The hyperparameters that are not varied.
      axes: The hyperparameters that are varied, at least one.
    """

    base: Hyperparameters
    axes: tuple[Axis, ...]

    @classmethod
    def parse(cls, texts: Sequence[str], base: Hyperparameters) -> Grid:
        """Parses texts of the form KEY=VALUE,VALUE,...

        Values are Python literals; enums and weights are given by name. For a hyperparameter that is a tuple, a single
        item means a tuple of one: `layers=0,1` gives two values, and `layers=(0,1)` gives one value with two layers.

        Args:
          texts: One text per hyperparameter.
          base: The hyperparameters that are not varied.

        Raises:
          ValueError: If there is no text, a text is malformed, a hyperparameter is unknown or named twice, or a value
            has the wrong type, is out of range, or is given twice.

        Example:
          >>> [point.name for point in Grid.parse(["v_lr=0.1,1"], config).points]
          ['v_lr=0.1', 'v_lr=1']
        """
        if not texts:
            raise ValueError(
                "--sweep is missing: name a hyperparameter and its values, such as --sweep=layers=0,1,2; "
                f"the hyperparameters are {', '.join(base.to_dict())}."
            )
        axes = tuple(_parse_axis(text, base) for text in texts)
        if len({axis.key for axis in axes}) < len(axes):
            raise ValueError(
                f"--sweep names {', '.join(axis.key for axis in axes)}: give each hyperparameter once."
            )
        return cls(base, axes)

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the hyperparameters that are varied."""
        return tuple(axis.key for axis in self.axes)

    @property
    def points(self) -> list[Point]:
        """All combinations of values; the last key varies fastest."""
        base = self.base.to_dict()
        return [
            Point(
                dict(zip(self.keys, map(label, values), strict=True)),
                self.base.from_dict(base | dict(zip(self.keys, values, strict=True))),
            )
            for values in itertools.product(*(axis.values for axis in self.axes))
        ]


def label(value: Any) -> str:
    """Returns the text of a value, for names of files and for tables and figures.

    Example:
      >>> label(0.5), label((0, 1)), label(((5, 10), (10, 10)))
      ('0.5', '0+1', '5x10+10x10')
    """
    if isinstance(value, tuple):
        items = ("x".join(map(label, v)) if isinstance(v, tuple) else label(v) for v in value)
        return "+".join(items) or "none"
    return f"{value:.12g}" if isinstance(value, float) else str(value)


class _Names(ast.NodeTransformer):
    """A transformer that turns names into strings, so that names of enum members need no quotes."""

    def visit_Name(self, node: ast.Name) -> ast.Constant:
        """Returns the name as a string constant."""
        return ast.Constant(node.id)


def _parse_axis(text: str, base: Hyperparameters) -> Axis:
    """Parses one text of the form KEY=VALUE,VALUE,..."""
    key, _, listed = (part.strip() for part in text.partition("="))
    hints = typing.get_type_hints(type(base))
    kinds = {name: hints[name] for name in base.to_dict()}
    if key not in kinds:
        raise ValueError(
            f"--sweep={text}: there is no hyperparameter {key!r}; the hyperparameters are {', '.join(kinds)}."
        )
    try:
        items = ast.literal_eval(_Names().visit(ast.parse(f"[{listed}]", mode="eval")))
    except (SyntaxError, ValueError):
        items = []
    if not items:
        raise ValueError(
            f"--sweep={text}: give values separated by commas, such as "
            f'{key}={label(base.to_dict()[key])}, and tuples in parentheses and quotes, such as "(0,),(1,)".'
        )
    values = []
    for item in items:
        if typing.get_origin(kinds[key]) is tuple and not isinstance(item, tuple):
            item = (item,)
        if not _fits(item, kinds[key]):
            kind = kinds[key].__name__ if isinstance(kinds[key], type) else kinds[key]
            raise ValueError(f"--sweep={text}: {item!r} has the wrong type; {key} takes {kind}.")
        try:
            values.append(base.from_dict(base.to_dict() | {key: item}).to_dict()[key])
        except ValueError as error:
            raise ValueError(f"--sweep={text}: {error}") from error
    if len(set(map(label, values))) < len(values):
        raise ValueError(f"--sweep={text}: give each value once.")
    return Axis(key, tuple(values))


def _fits(value: Any, kind: Any) -> bool:
    """Returns whether a plain value has the type of a field; `from_dict` checks the names of enum members."""
    inner = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if isinstance(kind, enum.EnumType):
        return isinstance(value, str)
    return type(value) in ((int, float) if kind is float else (kind,))
