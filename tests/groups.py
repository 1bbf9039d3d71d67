"""Processes that share a folder of results, as threads of the test process, which see each other through its files."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rome_jax.files.groups import ProcessGroup, meeting


def together(root: Path, *works: Callable[[ProcessGroup], Any], timeout: float = 30.0) -> list[Any]:
    """Runs one function per process, each with its group; returns what they return or raise."""
    barrier = threading.Barrier(len(works))
    results: list[Any] = [None] * len(works)

    def run(index: int) -> None:
        try:
            with meeting(
                root, "job", index, len(works), timeout=timeout, barrier=barrier.wait
            ) as group:
                results[index] = works[index](group)
        except BaseException as error:  # a test's stand-in for SIGKILL
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
