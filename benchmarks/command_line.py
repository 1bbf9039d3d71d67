"""The parser of the benchmarks' command lines."""

from __future__ import annotations

from typing import Any

from absl.flags import argparse_flags


def parser(description: str, **options: Any) -> argparse_flags.ArgumentParser:
    """Builds a parser that knows only the flags which a benchmark adds to it.

    By default, absl's parser also inherits every flag that any module in the process has defined, so a benchmark could
    not be imported next to a program with a flag of the same name.

    Args:
      description: Text at the top of `--help`.
      options: Further arguments of `argparse.ArgumentParser`.
    """
    return argparse_flags.ArgumentParser(
        description=description, inherited_absl_flags=None, **options
    )
