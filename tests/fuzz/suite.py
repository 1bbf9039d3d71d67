"""All cases, and a sample of them for the fast tests."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from tests.fuzz import commands, further, inputs, readers, writers
from tests.fuzz.cases import Case


def all_cases(name: str = "") -> Iterator[Case]:
    """Yields every case: damaged files, bad arguments of functions, bad places to write to, bad command lines.

    Args:
      name: Name of a case or its beginning; sources without such a case are left out, which saves time.
    """
    for reader in readers.READERS:
        if _may_begin(f"file/{reader.name}/", name):
            yield from reader.cases()
    if _may_begin("file/further/", name):
        yield from further.cases()
    if _may_begin("input/", name):
        yield from inputs.cases()
    if _may_begin("write/", name):
        yield from writers.cases()
    if _may_begin("command/", name):
        yield from commands.cases()


def _may_begin(start: str, name: str) -> bool:
    return start.startswith(name) or name.startswith(start)


def sample(cases: Iterable[Case], count: int, seed: int = 0) -> list[Case]:
    """Returns some of the cases, of all kinds; the same ones for the same seed.

    Args:
      cases: The cases to choose from.
      count: Number of cases.
      seed: Seed of the choice.
    """
    by_kind: dict[str, list[Case]] = {}
    for case in cases:
        by_kind.setdefault(case.kind, []).append(case)
    generator = random.Random(seed)
    for group in by_kind.values():
        generator.shuffle(group)
    chosen: list[Case] = []
    while len(chosen) < count and any(by_kind.values()):
        chosen += [group.pop() for group in by_kind.values() if group]
    return chosen[:count]
