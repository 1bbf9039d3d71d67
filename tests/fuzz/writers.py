"""The table of writers: what happens to files on a full disk, through links, and in places that cannot be written.

A writer that is added here is tried under all of these conditions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import rome_jax
from rome_jax.edit.hypernetworks import networks
from rome_jax.files.artifacts import write_whole
from rome_jax.models import runs
from rome_jax.moments import files as moment_files
from rome_jax.trace import result
from tests.edit.networks import MEND_CONFIG, random_hypernetwork
from tests.fuzz import examples
from tests.fuzz.cases import Attempt, Case, Expect, Verdict, attempt_call, litter, snapshot

_BYTES = 64  # the longest file on the full disk


@dataclasses.dataclass(frozen=True)
class Writer:
    """A function that writes a file or a folder.

    Attributes:
      name: Name of the writer.
      area: The part of the library that it belongs to.
      target: Name of the file or folder.
      write: Writes it; called with its path.
      folder: Whether the target is a folder.
    """

    name: str
    area: str
    target: str
    write: Callable[[Path], Any]
    folder: bool = False

    def cases(self) -> Iterator[Case]:
        """Yields one case per condition."""
        for condition, (expect, prepare, holds) in _CONDITIONS.items():
            if self.folder and condition.startswith("link"):
                continue
            if condition == "folder-there" and self.folder:
                continue
            run = functools.partial(self._try, prepare, holds, condition == "full-disk")
            yield Case(
                f"write/{self.name}/{condition}", f"write: {condition}", self.area, expect, run
            )

    def _try(
        self,
        prepare: Callable[[Path], object],
        holds: Callable[[Path], bool],
        full: bool,
        folder: Path,
    ) -> Attempt:
        path = folder / "out" / self.target
        self.write(folder / "first" / self.target)  # imports and compiles, and shows that it works
        prepare(path)
        before = snapshot(folder)
        with _full_disk() if full else contextlib.nullcontext():
            attempt = attempt_call(lambda: self.write(path), path.name, path.parent.name)
        after = snapshot(folder)
        if left := litter(before, after):
            return Attempt(None, Verdict.LITTER, ", ".join(left))
        lost = [name for name in before if "foreign" in name and after.get(name) != before[name]]
        if lost or not holds(path):
            return Attempt(None, Verdict.LITTER, f"{path} is not what it was: {attempt.detail}")
        return attempt


@contextlib.contextmanager
def _full_disk() -> Iterator[None]:
    """Lets every file end after a few bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    return path


def _link(path: Path, to: str) -> None:
    _parent(path).symlink_to(to)


def _file_in_the_way(path: Path) -> None:
    path.parent.write_text("foreign\n")


def _folder_in_the_way(path: Path) -> None:
    _parent(path).mkdir()
    (path / "foreign").write_text("keep\n")


def _folder_of_links(path: Path) -> None:
    _parent(path).parent.joinpath("elsewhere").mkdir()
    path.symlink_to("../elsewhere/real")


# The expected outcome, the files that exist beforehand, and what must hold afterwards.
_CONDITIONS: dict[str, tuple[Expect, Callable[[Path], object], Callable[[Path], bool]]] = {
    "new": (Expect.ACCEPT, lambda path: None, Path.exists),
    "full-disk": (Expect.REFUSE, lambda path: None, lambda path: not path.is_file()),
    "parent-is-a-file": (Expect.REFUSE, _file_in_the_way, lambda path: path.parent.is_file()),
    "folder-there": (Expect.REFUSE, _folder_in_the_way, lambda path: (path / "foreign").exists()),
    "link-to-a-file": (
        Expect.ACCEPT,
        _folder_of_links,
        lambda path: path.is_symlink() and path.exists(),
    ),
    "link-to-a-full-device": (
        Expect.REFUSE,
        lambda path: _link(path, "/dev/full"),
        lambda path: path.is_symlink() and os.readlink(path) == "/dev/full",
    ),
    "link-to-a-device": (
        Expect.ACCEPT,
        lambda path: _link(path, "/dev/null"),
        lambda path: path.is_symlink() and os.readlink(path) == "/dev/null",
    ),
    "link-to-itself": (Expect.REFUSE, lambda path: _link(path, path.name), Path.is_symlink),
}
if os.geteuid() != 0:  # root may write everywhere
    _CONDITIONS["read-only"] = (
        Expect.REFUSE,
        lambda path: _parent(path).parent.chmod(0o500),
        lambda path: not path.exists(),
    )


def _moments(path: Path) -> None:
    moment_files.save(path.parent, {0: rome_jax.SecondMoment(np.eye(12), 100)})


WRITERS = (
    Writer("write_whole", "edits", "whole.bin", lambda path: write_whole(path, bytes(500))),
    Writer(
        "run-settings", "data", "run.json", lambda path: runs.write_json(path, {"seed": [0] * 99})
    ),
    Writer(
        "edit",
        "edits",
        "edit.safetensors",
        lambda path: rome_jax.save_edits(path, [examples.random_edit()]),
    ),
    Writer("moments", "models", "layer_0.safetensors", _moments),
    Writer(
        "trace",
        "edits",
        "knowledge_0.npz",
        lambda path: result.save_trace(path, result.SkippedCase("the answer is another one" * 9)),
    ),
    Writer(
        "hypernetwork",
        "models",
        "network.safetensors",
        lambda path: networks.save(path, random_hypernetwork(MEND_CONFIG, examples.tiny().config)),
    ),
    Writer(
        "hugging-face",
        "models",
        "model",
        lambda path: rome_jax.save_hf(path, examples.tiny()),
        folder=True,
    ),
    Writer(
        "orbax",
        "models",
        "model",
        lambda path: rome_jax.save_orbax(path, examples.tiny()),
        folder=True,
    ),
)


def cases() -> Iterator[Case]:
    """Yields all cases of writers."""
    for writer in WRITERS:
        yield from writer.cases()
