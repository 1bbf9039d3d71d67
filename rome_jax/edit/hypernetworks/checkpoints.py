"""The checkpoints of a hypernetwork's training, from which a killed run resumes."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as checkpoint
import typing_extensions

from rome_jax.edit.hypernetworks.steps import TrainState
from rome_jax.files import checked as values
from rome_jax.files.checksums import checksum
from rome_jax.files.folders import creating
from rome_jax.files.system_errors import explaining


class _History(typing_extensions.TypedDict):
    """The part of a checkpoint that is stored as JSON."""

    rows: list[dict[str, Any]]
    about: dict[str, Any]
    checksums: typing_extensions.NotRequired[list[str]]  # earlier versions wrote none


@dataclasses.dataclass(frozen=True)
class Progress:
    """A training run after one of its validations.

    Attributes:
      step: The number of steps so far.
      state: The state after the last step.
      best: The variables of the network that validated best so far.
      history: One row of numbers per validation.
    """

    step: int
    state: TrainState
    best: Mapping[str, Any]
    history: tuple[dict[str, float], ...] = ()


@contextlib.contextmanager
def open_manager(directory: Path) -> Iterator[checkpoint.CheckpointManager]:
    """Opens a directory of checkpoints that keeps the last one only; an exception leaves no part of a checkpoint."""
    options = checkpoint.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    with creating(directory):
        try:
            with checkpoint.CheckpointManager(directory, options=options) as manager:
                yield manager
        except BaseException:
            for unfinished in directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            raise


def save(
    manager: checkpoint.CheckpointManager, progress: Progress, about: Mapping[str, Any]
) -> None:
    """Writes a checkpoint.

    Args:
      manager: The directory of checkpoints.
      progress: The run after a validation.
      about: The settings of the run.
    """
    arrays = (progress.state, progress.best)
    history = {"rows": list(progress.history), "about": about, "checksums": _checksums(arrays)}
    with explaining(manager.directory):
        manager.save(
            progress.step,
            args=checkpoint.args.Composite(
                state=checkpoint.args.StandardSave(arrays),
                history=checkpoint.args.JsonSave(history),
            ),
        )


def _checksums(arrays: Any) -> list[str]:
    """Returns the checksum of each array; Orbax notices no changed bit in the arrays it reads."""
    return [checksum(np.asarray(leaf)) for leaf in jax.tree.leaves(arrays)]


def check(
    manager: checkpoint.CheckpointManager, about: Mapping[str, Any], run_directory: Path
) -> None:
    """Refuses to resume from the checkpoint of a run with other settings, whose arrays might not fit.

    Args:
      manager: The directory of checkpoints.
      about: The settings of the run.
      run_directory: The directory of the run, for the error message.

    Raises:
      ValueError: If there is a checkpoint of a run with other settings.
    """
    step = manager.latest_step()
    if step is not None:
        check_settings(run_directory, _read_history(manager, step)["about"], about)


def restore(manager: checkpoint.CheckpointManager, start: Progress) -> Progress:
    """Reads the last checkpoint.

    Args:
      manager: The directory of checkpoints; see `check`.
      start: The run before its first step, which is returned if there is no checkpoint.

    Raises:
      ValueError: If the checkpoint is damaged.
    """
    step = manager.latest_step()
    if step is None:
        return start
    item = checkpoint.args.StandardRestore((start.state, start.best))
    history = _read_history(manager, step)
    with _naming_damage(manager):
        restored = manager.restore(step, args=checkpoint.args.Composite(state=item))["state"]
        if history.get("checksums", _checksums(restored)) != _checksums(restored):
            raise ValueError("its arrays do not have their checksums")
    # Restored arrays are committed to a device. Uncommitted copies, like new arrays, share the compiled programs.
    state, best = jax.tree.map(jnp.asarray, jax.device_get(restored))
    return Progress(step, state, best, tuple(history["rows"]))


def _read_history(manager: checkpoint.CheckpointManager, step: int) -> dict[str, Any]:
    """Reads the history and the settings of a checkpoint, without its arrays."""
    item = checkpoint.args.Composite(history=checkpoint.args.JsonRestore())
    with _naming_damage(manager):
        history = manager.restore(step, args=item)["history"]
        return values.check(_History, history, f"step {step}")


@contextlib.contextmanager
def _naming_damage(manager: checkpoint.CheckpointManager) -> Iterator[None]:
    """Names the directory and a remedy in place of the exceptions of Orbax, of which there are many."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{manager.directory} holds a damaged checkpoint: remove it to start again."
        ) from error


def check_settings(directory: Path, known: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Refuses to continue a run with other settings.

    Args:
      directory: The directory of the run.
      known: The settings of the run there.
      about: The settings to continue with.

    Raises:
      ValueError: If they differ, with the names of those that do.
    """
    differing = [name for name in about if known.get(name) != about[name]]
    if differing:
        raise ValueError(
            f"{directory} holds a training run that differs in {', '.join(differing)}: remove it, or give another "
            "output_dir."
        )
