"""The checkpoints of a hypernetwork's training, from which a killed run resumes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as checkpoint

from rome_jax.edit.hypernetworks.steps import TrainState
from rome_jax.models import training_checkpoints
from rome_jax.models.training_checkpoints import read_notes


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
    training_checkpoints.save(manager, progress.step, arrays, about, list(progress.history))


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
        check_settings(run_directory, read_notes(manager, step)["about"], about)


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
    arrays = training_checkpoints.restore(manager, step, (start.state, start.best))
    # Restored arrays are committed to a device. Uncommitted copies, like new arrays, share the compiled programs.
    state, best = jax.tree.map(jnp.asarray, arrays)
    return Progress(step, state, best, tuple(read_notes(manager, step)["rows"]))


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
