"""Grids of hyperparameters: the points of a sweep, as given on the command line."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rome_jax.edit.config import Hyperparameters
from rome_jax.files.checked import shown

_MOST_POINTS = 10_000


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
          ValueError: If there is no text, a text is malformed, a hyperparameter is unknown or named twice, a value has
            the wrong type, is out of range, or is given twice, or there are more than 10,000 combinations.

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
        count = math.prod(len(axis.values) for axis in axes)
        if count > _MOST_POINTS:
            raise ValueError(
                f"--sweep gives {count} combinations of values: give fewer values, for at most {_MOST_POINTS}."
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


def parse_values(text: str) -> list[Any]:
    """Parses values separated by commas: Python literals, and names of enum members without quotes.

    Args:
      text: The values, such as "0.1,1" or "(0,1),(2,)".

    Returns:
      The values; none if the text is malformed.

    Example:
      >>> parse_values("(0,1),5e-1,reference,None")
      [(0, 1), 0.5, 'reference', None]
    """
    try:
        return ast.literal_eval(_Names().visit(ast.parse(f"[{text}]", mode="eval")))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return []  # the last two from deep nesting


def _parse_axis(text: str, base: Hyperparameters) -> Axis:
    """Parses one text of the form KEY=VALUE,VALUE,..."""
    key, _, listed = (part.strip() for part in text.partition("="))
    known = base.to_dict()
    if key not in known:
        raise ValueError(
            f"--sweep={shown(text)}: there is no hyperparameter {shown(key)}; the hyperparameters are "
            f"{', '.join(known)}."
        )
    items = parse_values(listed)
    if not items:
        raise ValueError(
            f"--sweep={shown(text)}: give values separated by commas, such as "
            f'{key}={label(known[key])}, and tuples in parentheses and quotes, such as "(0,),(1,)".'
        )
    try:
        values = [base.from_dict(known | {key: item}).to_dict()[key] for item in items]
    except ValueError as error:
        raise ValueError(f"--sweep={shown(text)}: {error}") from error
    if len(set(map(label, values))) < len(values):
        raise ValueError(f"--sweep={shown(text)}: give each value once.")
    return Axis(key, tuple(values))
