"""Former names of flags: aliases and negations."""

from __future__ import annotations

from absl import flags

_MARK = "Alias for "


class _Opposite(flags.BooleanFlag):
    """A boolean flag that sets another flag to the opposite of its own value."""

    def __init__(self, name: str, of: flags.Flag):
        super().__init__(name, None, f"{_MARK}--no{of.name}.")
        self._of = of

    def parse(self, argument: str | bool) -> None:
        super().parse(argument)
        self._of.parse(not self.value)
        self.present += 1


def alias(original: str, *names: str) -> None:
    """Defines further names of a flag: `alias("second_moments", "covariance")`."""
    for name in names:
        flags.DEFINE_alias(name, original)


def opposite(original: str, name: str) -> None:
    """Defines a flag that negates a boolean flag: `opposite("generation", "skip_generation_tests")`."""
    flags.DEFINE_flag(_Opposite(name, flags.FLAGS[original]))


def is_alias(flag: flags.Flag) -> bool:
    """Returns whether a flag is only another name of a flag."""
    return (flag.help or "").startswith(_MARK)
