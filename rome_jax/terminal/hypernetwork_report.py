"""The report of `eval.train_hypernetwork`: the curves of the training, and the numbers of the network that was kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pydantic
import typing_extensions

from rome_jax.edit.hypernetworks.training import REPORT
from rome_jax.files.json_files import read_object


class _Row(typing_extensions.TypedDict):
    """A validation in the report of a training."""

    step: int
    edit: float
    train_edit: float
    kl: float
    train_kl: float
    success: float
    kept: float
    margin: typing_extensions.NotRequired[float | None]


class _Training(typing_extensions.TypedDict):
    """The settings of a training that the figure names."""

    margin: float | None
    num_validation: int


class _About(typing_extensions.TypedDict):
    """What was trained."""

    kind: str
    model: str
    training: _Training


class _Report(typing_extensions.TypedDict):
    """The report of a training."""

    history: Annotated[list[_Row], pydantic.Field(min_length=1)]
    best: _Row
    about: _About


def report(directory: str | Path) -> None:
    """Draws training.png and prints the best validation.

    Args:
      directory: The directory of a finished training.

    Example:
      >>> import json, pathlib
      >>> from rome_jax.terminal import hypernetwork_report
      >>> row = {"step": 100, "edit": 0.2, "train_edit": 0.3, "kl": 0.01, "train_kl": 0.02, "success": 0.9, "kept": 1.0}
      >>> about = {"kind": "MEND", "model": "factworld-gpt2", "training": {"margin": None, "num_validation": 128}}
      >>> content = {"history": [row], "best": row, "about": about}
      >>> _ = pathlib.Path("training.json").write_text(json.dumps(content))
      >>> hypernetwork_report.report(".")
      Best at step 100 of 100: 90.0% of validation paraphrases give the new target, 100.0% of other facts are kept; edit
      loss 0.200, KL 0.0100 nats
    """
    from rome_jax.plots.hypernetworks import plot
    from rome_jax.plots.style import save_figure

    directory = Path(directory)
    found = read_object(directory / REPORT, _Report, remedy="train it again")
    save_figure(plot(found), directory / "training.png")
    best = found["best"]
    print(
        f"Best at step {best['step']} of {found['history'][-1]['step']}: {best['success']:.1%} of validation "
        f"paraphrases give the new target, {best['kept']:.1%} of other facts are kept; edit loss {best['edit']:.3f}, "
        f"KL {best['kl']:.4f} nats"
    )
