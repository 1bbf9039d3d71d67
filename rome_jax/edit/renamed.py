"""Arguments that have a new name, under which the old one is accepted for one release."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def accept_covariance(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """A function with the argument `second_moments` that takes it as `covariance=` too, with a DeprecationWarning.

    Raises:
      TypeError: If both names are given.

    Example:
      >>> accept_covariance(lambda *, second_moments=None: second_moments)(covariance=1)  # doctest: +SKIP
      1
    """

    @functools.wraps(function)
    def accepting(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        if "covariance" in named:
            if "second_moments" in named:
                raise TypeError("covariance= is the old name of second_moments=: give one of them.")
            warnings.warn(
                "covariance= is now second_moments=, and goes in the next release.",
                DeprecationWarning,
                stacklevel=2,
            )
            named["second_moments"] = named.pop("covariance")
        return function(*arguments, **named)

    return accepting
