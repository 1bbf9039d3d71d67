"""Checkpoints of a training through Orbax: arrays with their checksums, and notes as JSON.

A killed training resumes from the last checkpoint. Orbax notices no changed bit in the arrays that it reads, so their
checksums are kept with the notes.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired

import jax
import numpy as np
import orbax.checkpoint as checkpoint
import typing_extensions

from rome_jax.files.checked import check
from rome_jax.files.checksums import checksum
from rome_jax.files.folders import creating
from rome_jax.files.system_errors import check_space, explaining


class Notes(typing_extensions.TypedDict):
    """The part of a checkpoint that is stored as JSON."""

    rows: list[Any]
    about: dict[str, Any]
    checksums: NotRequired[list[str]]  # earlier versions wrote none


@contextlib.contextmanager
def open_manager(directory: Path) -> Iterator[checkpoint.CheckpointManager]:
    """Opens a directory of checkpoints that keeps the last one only; an exception leaves no part of a checkpoint."""
    options = checkpoint.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    with creating(directory):
        try:
            with checkpoint.CheckpointManager(directory.absolute(), options=options) as manager:
                yield manager
        except BaseException:
            for unfinished in directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            raise


def save(
    manager: checkpoint.CheckpointManager,
    step: int,
    arrays: Any,
    about: Mapping[str, Any],
    rows: list[Any] | None = None,
) -> None:
    """Writes a checkpoint.

    Args:
      manager: The directory of checkpoints.
      step: The number of steps so far.
      arrays: A tree of arrays.
      about: The settings of the training, as JSON values.
      rows: The history of the training, as JSON values.
    """
    notes = {"rows": rows or [], "about": dict(about), "checksums": _checksums(arrays)}
    with explaining(manager.directory):
        check_space(str(manager.directory), sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)))
        manager.save(
            step,
            args=checkpoint.args.Composite(
                state=checkpoint.args.StandardSave(arrays),
                history=checkpoint.args.JsonSave(notes),
            ),
        )


def read_notes(manager: checkpoint.CheckpointManager, step: int) -> Notes:
    """Reads the notes of a checkpoint, without its arrays.

    Raises:
      ValueError: If the checkpoint is damaged.
    """
    item = checkpoint.args.Composite(history=checkpoint.args.JsonRestore())
    with _naming_damage(manager):
        return check(Notes, manager.restore(step, args=item)["history"], f"step {step}")


def restore(manager: checkpoint.CheckpointManager, step: int, like: Any) -> Any:
    """Reads the arrays of a checkpoint.

    Args:
      manager: The directory of checkpoints.
      step: The step of the checkpoint.
      like: A tree of arrays of the same shapes.

    Returns:
      The arrays on the host.

    Raises:
      ValueError: If the checkpoint is damaged.
    """
    recorded = read_notes(manager, step).get("checksums")
    with _naming_damage(manager):
        item = checkpoint.args.Composite(state=checkpoint.args.StandardRestore(like))
        arrays = jax.device_get(manager.restore(step, args=item)["state"])
        if recorded is not None and recorded != _checksums(arrays):
            raise ValueError("its arrays do not have their checksums")
    return arrays


def _checksums(arrays: Any) -> list[str]:
    """Returns the checksum of each array."""
    return [checksum(np.asarray(leaf)) for leaf in jax.tree.leaves(arrays)]


@contextlib.contextmanager
def _naming_damage(manager: checkpoint.CheckpointManager) -> Iterator[None]:
    """Names the directory and a remedy in place of the exceptions of Orbax, of which there are many."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{manager.directory} holds a damaged checkpoint: remove it to start again."
        ) from error
