"""Support for old names of arguments, which are accepted for one release."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def accept_covariance(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Lets a function with the argument `second_moments` also accept it as `covariance=`, with a DeprecationWarning.

    Args:
      function: Function with an argument `second_moments`.

    Returns:
      The function with both names. It raises a TypeError if both are given.

    Example:
      >>> import warnings
      >>> with warnings.catch_warnings(record=True):
      ...     accept_covariance(lambda *, second_moments=None: second_moments)(covariance=1)
      1
    """

    @functools.wraps(function)
    def accepting(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        if "covariance" in named:
            if "second_moments" in named:
                raise TypeError("covariance= is the old name of second_moments=: give one of them.")
            warnings.warn(
                "covariance= is now second_moments=, and will be removed in the next release.",
                DeprecationWarning,
                stacklevel=2,
            )
            named["second_moments"] = named.pop("covariance")
        return function(*arguments, **named)

    return accepting
