"""Groups of processes that fill one folder of results, each with its share of the work.

    process 0    process 1    ...      each computes its share on its own devices and writes its own files
        └────────────┴─── ROOT/.processes-JOB/     one file per process, whose content changes while the process lives

The processes exchange nothing but files: what process 0 decides, and signs of life. So a process that dies or hangs
stops no other process, and any folder that all processes see is enough.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import itertools
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rome_jax.files.artifacts import write_whole
from rome_jax.files.checked import listed
from rome_jax.files.folders import creating
from rome_jax.files.locks import held, lock

TIMEOUT = 120.0  # seconds without a sign of life after which a process counts as lost
_PREFIX = ".processes-"
_BEATS = 10  # signs of life per timeout
_POLL = 0.2  # seconds between two looks at the other processes
_VISIBLE = 90.0  # seconds until a new file shows on all hosts; NFS caches the content of a folder for a minute
_ABANDONED = 86_400.0  # seconds until the folder of a group that was killed as a whole is removed
_Item = TypeVar("_Item")


class GroupError(ValueError):
    """The processes of a group cannot work together."""


class IncompleteError(GroupError):
    """Another process ended early, and its share is not complete.

    Attributes:
      arguments: Arguments that the same command needs to resume the run.
    """

    arguments: tuple[str, ...] = ()


class State(enum.StrEnum):
    """How far a process is."""

    WORKING = "working"
    FINISHED = "finished"  # with its share; it waits for the others
    GONE = "gone"
    FAILED = "failed"  # gone before it had finished
    LOST = "lost"  # without a sign of life


_ENDED = (State.GONE, State.FAILED, State.LOST)


@dataclasses.dataclass(frozen=True)
class ProcessGroup:
    """The group that this process belongs to, or this process alone.

    Attributes:
      index: Number of this process, from 0.
      count: Number of processes.

    Example:
      >>> ALONE.share([7, 8, 9]), ALONE.agree("run", lambda: "run_000")
      ([7, 8, 9], 'run_000')
    """

    index: int = 0
    count: int = 1
    _members: _Members | None = dataclasses.field(default=None, repr=False)

    def share(self, items: Sequence[_Item]) -> list[_Item]:
        """Returns this process's share of some work, which must be the same list in all processes.

        Example:
          >>> [ProcessGroup(index, 2).share("abcde") for index in range(2)]
          [['a', 'c', 'e'], ['b', 'd']]
        """
        return list(items[self.index :: self.count])

    def agree(self, name: str, compute: Callable[[], Any]) -> Any:
        """Computes a value in process 0, on which all other processes wait for it.

        Args:
          name: Name of the value, different for each call.
          compute: Returns the value, which JSON can hold; called in process 0 only.

        Returns:
          The value of process 0, in all processes.

        Raises:
          GroupError: If process 0 ends before it has the value.
        """
        if self._members is None:
            return compute()
        if self.index == 0:
            value = compute()
            self._members.publish(name, value)
            return value
        return self._members.read(name)

    @contextlib.contextmanager
    def working_in(
        self, directory: str | Path, name: str, plan: Callable[[], Any]
    ) -> Iterator[Any]:
        """Keeps other runs out of a folder in a `with` statement, while all processes of the group may write to it.

        Args:
          directory: A folder that exists.
          name: Name of the folder in errors.
          plan: Computes, in process 0 and before any process works, what is to be done; see `agree`.

        Yields:
          The plan.

        Raises:
          FolderInUseError: If another run uses the folder.
          GroupError: If process 0 ends before it has a plan.
        """
        todo = None if self.index == 0 else self.agree("plan", plan)
        with held(directory, name, shared=self.index > 0) as descriptor:
            if self.index == 0:
                todo = plan()
                if self.count > 1:
                    with contextlib.suppress(OSError):  # the file system has no locks
                        lock(descriptor, shared=True)
                    todo = self.agree("plan", lambda: todo)
            yield todo

    def finish(self, missing: Callable[[], int], unit: str = "cases") -> None:
        """Waits until every other process has finished its share, or ended, and checks that nothing is missing.

        Args:
          missing: Returns how much of the whole work is missing.
          unit: What `missing` counts, for the message.

        Raises:
          IncompleteError: If something is missing, because another process ended early.
        """
        if self._members is None:
            return
        early = self._members.wait()
        if self.index > 0 and not early:
            return  # process 0 checks, and may already have removed files that `missing` looks for
        deadline = time.monotonic() + _VISIBLE
        while (left := missing()) and not early and time.monotonic() < deadline:
            time.sleep(_POLL)
        if left:
            who = f"process {listed(early)}" if early else "another process"
            raise IncompleteError(
                f"the run is incomplete ({unit} missing: {left}), because {who} of {self.count} ended early: start all "
                "processes again to resume it."
            )


ALONE = ProcessGroup()


class _Members:
    """The folder in which the processes of a group see each other.

    Args:
      folder: The folder.
      index, count: As in `ProcessGroup`.
      timeout: Seconds without a sign of life after which another process counts as lost.
    """

    def __init__(self, folder: Path, index: int, count: int, timeout: float):
        self._folder, self._index, self._timeout = folder, index, timeout
        self._others = [other for other in range(count) if other != index]
        self._state = State.WORKING
        self._beats = itertools.count()
        self._ended = threading.Event()
        self._lock = threading.Lock()  # one writer of this process's file
        self._seen: dict[int, tuple[str, float]] = {}  # content, and when it changed
        self._thread = threading.Thread(target=self._live, daemon=True)

    def enter(self) -> None:
        """Begins to show signs of life."""
        self._show()
        self._thread.start()

    def leave(self) -> None:
        """Ends the signs of life, and removes the folder if no other process is left."""
        self._ended.set()
        self._thread.join()
        self._set(State.GONE if self._state is State.FINISHED else State.FAILED)
        if all(self.state(other) in _ENDED for other in self._others):
            shutil.rmtree(self._folder, ignore_errors=True)

    def check_shared(self) -> None:
        """Waits until this process sees the files of all others.

        Raises:
          GroupError: If it does not.
        """
        deadline = time.monotonic() + _VISIBLE
        while unseen := [other for other in self._others if not self._path(other).exists()]:
            if time.monotonic() > deadline:
                raise GroupError(
                    f"process {self._index} does not see the files of process {listed(unseen)} in "
                    f"{self._folder.parent}: give a folder that all processes share."
                )
            time.sleep(_POLL)

    def state(self, other: int) -> State:
        """Returns the state of another process."""
        now = time.monotonic()
        before, changed = self._seen.setdefault(other, (f"{State.WORKING}", now))
        try:
            content = self._path(other).read_text() or before
        except OSError:  # a network file system may fail for a moment
            content = before if self._folder.exists() else f"{State.GONE}"
        if content != before:
            changed = now
            self._seen[other] = (content, changed)
        state = State(content.split()[0])
        silent = state not in _ENDED and now - changed > self._timeout
        return State.LOST if silent else state

    def publish(self, name: str, value: Any) -> None:
        """Writes a value for the other processes."""
        write_whole(self._folder / f"{name}.json", json.dumps(value).encode())

    def read(self, name: str) -> Any:
        """Waits for a value of process 0."""
        path = self._folder / f"{name}.json"
        while True:
            state = self.state(0)
            with contextlib.suppress(FileNotFoundError):
                return json.loads(path.read_text())
            if state in _ENDED:
                raise GroupError(
                    "process 0 ended before the other processes could begin: its message says why."
                )
            time.sleep(_POLL)

    def wait(self) -> list[int]:
        """Waits until no other process works; returns those that ended before they had finished, as far as known."""
        # A process stays until all others have finished, so one that is gone by now has failed.
        gone = (State.GONE, State.FAILED)
        early = [other for other in self._others if self.state(other) in gone]
        self._set(State.FINISHED)
        while True:
            states = {other: self.state(other) for other in self._others}
            if State.WORKING not in states.values():
                break
            time.sleep(_POLL)
        ended = (State.FAILED, State.LOST)
        lost = [other for other, state in states.items() if state in ended]
        return sorted({*early, *lost})

    def _path(self, index: int) -> Path:
        """Returns the file of a process."""
        return self._folder / f"process_{index}"

    def _set(self, state: State) -> None:
        """Changes the state that the other processes see."""
        self._state = state
        with contextlib.suppress(OSError):  # they will take this process for lost
            self._show()

    def _show(self) -> None:
        """Writes a sign of life."""
        with self._lock:
            write_whole(self._path(self._index), f"{self._state} {next(self._beats)}".encode())

    def _live(self) -> None:
        """Shows signs of life until the process leaves."""
        while not self._ended.wait(self._timeout / _BEATS):
            with contextlib.suppress(OSError):  # the file system may be full for a while
                self._show()


@contextlib.contextmanager
def meeting(
    root: str | Path,
    job: str,
    index: int,
    count: int,
    *,
    timeout: float = TIMEOUT,
    barrier: Callable[[], object] = lambda: None,
) -> Iterator[ProcessGroup]:
    """Makes this process a member of a group in a `with` statement.

    Args:
      root: Folder that all processes share.
      job: Name of the group, which no other group has.
      index: Number of this process, from 0.
      count: Number of processes.
      timeout: Seconds without a sign of life after which another process counts as lost.
      barrier: Returns once all processes have called it.

    Yields:
      The group.

    Raises:
      GroupError: If the processes do not share the folder.
      OSError: If the folder cannot be written to.

    Example:
      >>> with meeting("results", "job", 0, 1) as group:
      ...     group.share([1, 2])
      [1, 2]
    """
    root = Path(root)
    with creating(root):
        if index == 0:
            _remove_abandoned(root)
        folder = root / f"{_PREFIX}{job}"
        folder.mkdir(exist_ok=True)
        members = _Members(folder, index, count, timeout)
        members.enter()
        try:
            barrier()
            members.check_shared()
            yield ProcessGroup(index, count, members)
        finally:
            members.leave()


def _remove_abandoned(root: Path) -> None:
    """Removes the folders of groups whose processes were all killed."""
    for folder in root.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)
