"""Old names of flags: aliases, and names that say the opposite."""

from __future__ import annotations

from absl import flags

_MARK = "Alias for "


class _Opposite(flags.BooleanFlag):
    """A boolean flag that sets another one to the opposite of its own value."""

    def __init__(self, name: str, of: flags.Flag):
        super().__init__(name, None, f"{_MARK}--no{of.name}.")
        self._of = of

    def parse(self, argument: str | bool) -> None:
        super().parse(argument)
        self._of.parse(not self.value)
        self.present += 1


def alias(original: str, *names: str) -> None:
    """Further names of a flag.

    Example:
      >>> alias("second_moments", "covariance")  # doctest: +SKIP
    """
    for name in names:
        flags.DEFINE_alias(name, original)


def opposite(original: str, name: str) -> None:
    """A name that says the opposite of a boolean flag.

    Example:
      >>> opposite("generation", "skip_generation_tests")  # doctest: +SKIP
    """
    flags.DEFINE_flag(_Opposite(name, flags.FLAGS[original]))


def is_alias(flag: flags.Flag) -> bool:
    """Whether a flag only is another name of one."""
    return (flag.help or "").startswith(_MARK)
