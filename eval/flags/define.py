"""Former names of flags, changes of single hyperparameters, and the bounds of numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from absl import flags

_MARK = "Alias for "
MOST = 2**31 - 1  # of anything that is counted
AUTO = "auto"


class _Opposite(flags.BooleanFlag):
    """A boolean flag that sets another flag to the opposite of its own value."""

    def __init__(self, name: str, of: flags.Flag):
        super().__init__(name, None, f"{_MARK}--no{of.name}.")
        self._of = of

    def parse(self, argument: str | bool) -> None:
        super().parse(argument)
        self._of.parse(not self.value)
        self.present += 1


class _IntegerOrAuto(flags.IntegerParser):
    """A parser of integers that also takes the word auto."""

    def parse(self, argument: str | int) -> int | str:
        return AUTO if argument == AUTO else super().parse(argument)


def DEFINE_integer_or_auto(
    name: str, default: int, text: str, lower_bound: int
) -> flags.FlagHolder[int | str]:
    """Defines a flag that takes an integer, or the word auto for a program to choose one.

    Args:
      name: Name of the flag.
      default: Default value.
      text: Help of the flag.
      lower_bound: Smallest integer.
    """
    return flags.DEFINE(_IntegerOrAuto(lower_bound, MOST), name, default, text)


class _Parsed(flags.ArgumentParser):
    """A parser of texts that a function checks and completes."""

    syntactic_help = "a text"

    def __init__(self, read: Callable[[str], str]):
        super().__init__()
        self._read = read

    def parse(self, argument: str) -> str:
        return self._read(argument)


def DEFINE_parsed(
    name: str, default: str, read: Callable[[str], str], text: str
) -> flags.FlagHolder[str]:
    """Defines a flag that takes a text.

    Args:
      name: Name of the flag.
      default: Default value.
      read: Function that returns the value, or raises ValueError with one sentence.
      text: Help of the flag.
    """
    return flags.DEFINE(_Parsed(read), name, default, text)


def alias(original: str, *names: str) -> None:
    """Defines further names of a flag: `alias("second_moments", "covariance")`."""
    for name in names:
        flags.DEFINE_alias(name, original)


def opposite(original: str, name: str) -> None:
    """Defines a flag that negates a boolean flag: `opposite("generation", "skip_generation_tests")`."""
    flags.DEFINE_flag(_Opposite(name, flags.FLAGS[original]))


def expand_fields(argv: Sequence[str]) -> list[str]:
    """Replaces --config.FIELD=VALUE by --config_field=FIELD=VALUE, unless --config names a file that has the field.

    Args:
      argv: The command line, program included.

    Example:
      >>> expand_fields(["edit", "--config.v_lr", "0.1", "--config.layers=5"])
      ['edit', '--config_field=v_lr=0.1', '--config_field=layers=5']
    """
    if any(re.match(r"--?config(=|$)", argument) for argument in argv):
        return list(argv)
    expanded, rest = [], list(argv)
    while rest:
        argument = rest.pop(0)
        match = re.fullmatch(r"--?(no)?config\.([^=]+)(=.*)?", argument, re.DOTALL)
        if argument == "--":
            return [*expanded, argument, *rest]
        if match is None:
            expanded.append(argument)
            continue
        value = match[3]
        if value is None and match[1] is None and rest and not rest[0].startswith("--"):
            value = f"={rest.pop(0)}"
        expanded.append(f"--config_field={match[2]}{value or f'={match[1] is None}'}")
    return expanded


def finite(flag: flags.FlagHolder[float]) -> None:
    """Refuses NaN as the value of a flag; absl's bounds let it pass."""
    flags.register_validator(
        flag.name, lambda value: value is None or math.isfinite(value), "give a finite number."
    )


def is_alias(flag: flags.Flag) -> bool:
    """Returns whether a flag is only another name of a flag."""
    return (flag.help or "").startswith(_MARK)
