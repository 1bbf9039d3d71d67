"""The sentences about command lines that absl or ml_collections refuses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from rome_jax.terminal import failures

_LONGEST_VALUE = 80  # characters of a refused value in a message
# What to give instead of a value, by the reason for which absl refuses it.
_REMEDIES = {
    r"invalid literal for int|is not an integer$": "give an integer",
    r"could not convert string to float": "give a finite number",
    r"Non-boolean argument": "give true or false",
    r"is not an integer in the range \[(.*), (.*)\]": "give an integer from {} to {}",
    r"is not a number in the range \[(.*), (.*)\]": "give a number from {} to {}",
    r"value should be one of <(.*)>": "give one of {}",
}


def describe(error: Exception, argv: Sequence[str]) -> str:
    """Returns one sentence about an error while the flags are parsed.

    Args:
      error: The error; files of --config and --flagfile can raise any.
      argv: The command line.
    """
    if isinstance(error, flags.Error | AttributeError) and (said := _of_flags(str(error), argv)):
        return said
    file = _value("flagfile", argv)
    if file and ("flagfile" in str(error) or isinstance(error, UnicodeError)):
        return f"--flagfile={_short(file)} cannot be read: give the path of a text file with flags."
    if not (file := _value("config", argv)):
        return failures.describe(error)
    path, said = Path(file.partition(":")[0]), f"--config={_short(file)}"
    if path.suffix != ".py":
        return (
            f"{said}: a configuration is a Python file, such as configs/rome.py: give one, or give a JSON or YAML "
            "file as --hparams_fname."
        )
    if "has no attribute 'get_config'" in str(error):
        return f"{said}: the file has no function get_config: add one, as in configs/rome.py."
    if "Error whilst parsing config file" in str(error):
        return f"{said}: {_ended(str(error).strip().splitlines()[-1].partition(': ')[2])}"
    return f"{said}: {failures.describe(error)}"


def _of_flags(text: str, argv: Sequence[str]) -> str:
    """Returns the sentence about a flag or a field of a configuration; empty if a file is to blame."""
    if match := re.search(r"Unknown command line flag '(config\.\S+)'", text):
        return f"--{match[1]} is not a flag of a configuration: give --config=configs/... before it, or leave it out."
    # An unknown field gives "'v_lrr'\nDid you mean "v_lr" instead of "v_lrr"?", in quotes.
    if match := re.match(
        r"""["']?\\?'(\w+)\\?'(?!\w| )(?:.*Did you mean "(\w+)")?""", text, re.DOTALL
    ):
        field = match[1]
        said = next((a for a in argv if re.match(rf"--?config\.{field}\b", a)), field)
        meant = f", did you mean {match[2]}?" if match[2] else ": leave it out."
        return f"{said}: the configuration has no field {field}{meant}"
    if match := re.match(r"Unknown command line flag '([^']*)'(?:\. Did you mean: (.*) \?)?", text):
        meant = (
            f"did you mean --{match[2]}?" if match[2] else "leave it out; --help lists the flags."
        )
        return f"--{match[1]} is not a flag: {meant}"
    if match := re.match(r"Missing value for flag -*(\S+)", text):
        return f"--{match[1]} has no value: give --{match[1]}=VALUE."
    if "Error whilst parsing config file" in text or "Unable to open flagfile" in text:
        return ""
    if match := re.match(r"flag -*([^=]+)=(.*?): (.*)", text, re.DOTALL):
        return f"--{match[1]}={_short(match[2])}: {_ended(_remedy(match[3]))}"
    return "" if "has no attribute" in text else _ended(text)


def _value(name: str, argv: Sequence[str]) -> str:
    """Returns the last value of a flag on the command line; empty if it is not there."""
    found = ""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if match := re.fullmatch(rf"--?{name}(?:=(.*))?", argument, re.DOTALL):
            found = following if match[1] is None else match[1]
    return found


def _remedy(reason: str) -> str:
    """Says what to give instead of a value that absl refuses for a reason."""
    for pattern, remedy in _REMEDIES.items():
        if match := re.search(pattern, reason, re.DOTALL):
            return remedy.format(*match.groups()).replace("|", ", ")
    return reason


def _short(value: str) -> str:
    """Shortens a value, and puts it on one line."""
    line = " ".join(value.split())
    return line if len(line) <= _LONGEST_VALUE else f"{line[:_LONGEST_VALUE]}..."


def _ended(text: str) -> str:
    """Returns the first line of a text, with the period or question mark that it may lack."""
    line = next(iter(text.splitlines()), "it is not valid")
    return line if line.endswith((".", "?")) else f"{line}."
