"""Defects that are known and not mended yet: patterns of "NAME: EXPLANATION", each with what is wrong."""

from fnmatch import fnmatchcase

KNOWN: dict[str, str] = {}


def is_known(name: str, detail: str) -> bool:
    """Returns whether a failure is a known defect."""
    return any(fnmatchcase(f"{name}: {detail}", pattern) for pattern in KNOWN)
