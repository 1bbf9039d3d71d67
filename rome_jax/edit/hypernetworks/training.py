"""Training of MEND and KE on a frozen model (Mitchell et al., 2022, section 3.2; De Cao et al., 2021, section 4.1).

    `_run_steps` ─► `_validate` ─► `_record`: best network, margin ─► checkpoint ─► ... until `_is_over`

MEND minimizes edit_weight · edit + locality_weight · KL. KE minimizes the edit loss under the constraint KL ≤ margin.
Its Lagrange multiplier rises while the constraint is violated, and the margin shrinks while validations succeed.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import typing_extensions

from rome_jax.data.tokenization import describe_tokenization
from rome_jax.data.tokens import round_up
from rome_jax.edit.config import MethodName
from rome_jax.edit.hypernetworks import checkpoints
from rome_jax.edit.hypernetworks import networks as hypernetworks
from rome_jax.edit.hypernetworks.checkpoints import Progress
from rome_jax.edit.hypernetworks.losses import ExampleBatch, Examples, Losses, tokenize_examples
from rome_jax.edit.hypernetworks.networks import Hypernetwork
from rome_jax.edit.hypernetworks.steps import evaluate, initial_state, make_network, train_step
from rome_jax.edit.hypernetworks.training_config import TrainingConfig
from rome_jax.edit.methods.ke import KE
from rome_jax.edit.methods.mend import MEND
from rome_jax.files.artifacts import remove_leftovers, write_whole
from rome_jax.files.folders import creating
from rome_jax.files.json_files import read_object
from rome_jax.files.locks import in_use
from rome_jax.files.progress import tqdm
from rome_jax.models import training_checkpoints
from rome_jax.models.fingerprint import base_fingerprint
from rome_jax.models.interventions import check_leaves
from rome_jax.models.registry import LanguageModel
from rome_jax.version import __version__

FILE, REPORT, _CHECKPOINTS = "hypernetwork.safetensors", "training.json", "checkpoints"


def train(
    kind: MethodName,
    model: LanguageModel,
    config: hypernetworks.Config,
    examples: Examples,
    validation: Examples,
    settings: TrainingConfig,
    directory: str | Path,
    *,
    data: Mapping[str, Any],
    dtype: np.typing.DTypeLike = np.float32,
) -> Hypernetwork:
    """Trains a hypernetwork, or resumes a killed run, and keeps the network that validates best.

    Args:
      kind: The method, MEND or KE.
      model: The model to edit, which stays frozen.
      config: The hyperparameters of the network.
      examples: The examples to learn from.
      validation: The examples of the validation, about other facts.
      settings: The settings of the training.
      directory: Where hypernetwork.safetensors, training.json and, until the end, the checkpoints are written.
      data: A description of the examples, as plain values. A run with other data is not resumed.
      dtype: The type of the parameters in the file; see `networks.save`.

    Returns:
      The hypernetwork, as hypernetwork.safetensors holds it.

    Raises:
      ValueError: If the model does not have a layer or weight, the directory holds a run with other settings or a
        damaged file, or the training diverges.
      FolderInUseError: If another process trains in the directory.
      OSError: If a file cannot be written.
    """
    for layer in config.layers:
        model.config.check_layer(layer, "layers")
    check_leaves(model.config, config.leaves, "the configuration")
    directory = Path(directory).absolute()
    about = _describe(kind, model, config, settings, data, dtype)
    with creating(directory), in_use(directory, "output_dir"):
        remove_leftovers(directory)
        if (directory / REPORT).exists():
            known = read_object(directory / REPORT, _Report, remedy="remove it to train again")
            checkpoints.check_settings(directory, known["about"], about)
        else:
            network = make_network(config, model.config)
            checks = _validation_batches(model, validation, settings)
            run = _Run(network, model, examples, checks, settings, directory, about)
            _write(run, kind, _optimize(run), dtype)
        shutil.rmtree(directory / _CHECKPOINTS, ignore_errors=True)
        return hypernetworks.load(directory / FILE)


class _Report(typing_extensions.TypedDict):
    """The part of the report of a training that decides whether it is the same training."""

    about: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same throughout a training run.

    Attributes:
      network: The linen module.
      model: The model to edit.
      examples: The examples to learn from.
      checks: The batches of a validation.
      settings: The settings of the training.
      directory: Where the run is written.
      about: The settings and the origin of everything, as plain values.
    """

    network: MEND | KE
    model: LanguageModel
    examples: Examples
    checks: Sequence[ExampleBatch]
    settings: TrainingConfig
    directory: Path
    about: Mapping[str, Any]


def _describe(
    kind: MethodName,
    model: LanguageModel,
    config: hypernetworks.Config,
    settings: TrainingConfig,
    data: Mapping[str, Any],
    dtype: np.typing.DTypeLike,
) -> dict[str, Any]:
    """Returns the settings of a run as plain values, which a resumed run must share."""
    about = {
        "kind": kind.value,
        "config": config.to_dict(),
        "training": dataclasses.asdict(settings),
        "data": dict(data),
        "model": model.name,
        "fingerprint": model.fingerprint(),
        "file_dtype": np.dtype(dtype).name,
        **describe_tokenization(model.tokenizer),
    }
    return json.loads(json.dumps(about))  # with lists for tuples, as a file returns it


def _validation_batches(
    model: LanguageModel, validation: Examples, settings: TrainingConfig
) -> list[ExampleBatch]:
    """Draws the edits of all validations, in batches of the training's size."""
    rng = np.random.default_rng([settings.seed])
    size = settings.batch_size
    drawn = validation.draw(rng, round_up(settings.num_validation, size))
    parts = (drawn[begin : begin + size] for begin in range(0, len(drawn), size))
    return [tokenize_examples(model, part) for part in parts]


def _optimize(run: _Run) -> Progress:
    """Takes all steps, from the last checkpoint if there is one, with a validation after every few of them."""
    settings = run.settings
    with training_checkpoints.open_manager(run.directory / _CHECKPOINTS) as manager:
        checkpoints.check(manager, run.about, run.directory)
        state = initial_state(run.network, run.model, run.checks[0], settings)
        progress = checkpoints.restore(manager, Progress(0, state, state.variables))
        with tqdm(
            total=settings.max_steps, initial=progress.step, unit="step", desc=run.about["kind"]
        ) as bar:
            while not _is_over(progress, settings):
                progress, train_losses = _run_steps(run, progress, bar.update)
                row = _validate(run, progress, train_losses)
                progress = _record(settings, progress, row)
                names = ("edit", "kl", "success", "kept")
                bar.set_postfix({name: f"{row[name]:.3f}" for name in names}, refresh=False)
                checkpoints.save(manager, progress, run.about)
    return progress


def _is_over(progress: Progress, settings: TrainingConfig) -> bool:
    """Returns whether all steps are taken, or the last `patience` validations brought no better loss."""
    found, patience = [row["loss"] for row in progress.history], settings.patience
    exhausted = len(found) > patience and min(found[-patience:]) >= min(found[:-patience])
    return progress.step >= settings.max_steps or exhausted


def _run_steps(
    run: _Run, progress: Progress, on_step: Callable[[], Any]
) -> tuple[Progress, list[Losses]]:
    """Takes the steps until the next validation, and returns the losses before each of them."""
    settings, state, train_losses = run.settings, progress.state, []
    stop = min(progress.step + settings.validate_every, settings.max_steps)
    for step in range(progress.step, stop):
        # A generator per step, so that a resumed run draws the same examples.
        rng = np.random.default_rng([settings.seed, step])
        batch = tokenize_examples(run.model, run.examples.draw(rng, settings.batch_size))
        state, found = train_step(
            state, run.network, run.model.params, run.model.config, settings, batch
        )
        train_losses.append(found)
        on_step()
    return dataclasses.replace(progress, step=stop, state=state), train_losses


def _validate(run: _Run, progress: Progress, train_losses: Sequence[Losses]) -> dict[str, float]:
    """Computes the numbers of a validation: the row of the history.

    Raises:
      ValueError: If the validation loss is not finite.
    """
    settings, state, model = run.settings, progress.state, run.model
    found = [
        evaluate(run.network, state.variables, model.params, model.config, batch, False)[0]
        for batch in run.checks
    ]
    row = {"step": progress.step, **_means(train_losses, "train_"), **_means(found)}
    row["loss"] = settings.edit_weight * row["edit"] + settings.locality_weight * row["kl"]
    if not np.isfinite(row["loss"]):
        raise ValueError(
            f"learning_rate={settings.learning_rate} is too high: the validation loss is {row['loss']} after "
            f"{progress.step} steps; give a lower one and another output_dir."
        )
    return row | {"multiplier": float(state.multiplier), "margin": float(state.margin)}


def _means(found: Sequence[Losses], prefix: str = "") -> dict[str, float]:
    """Averages losses by name."""
    return {
        prefix + field.name: float(np.mean([getattr(one, field.name) for one in found]))
        for field in dataclasses.fields(Losses)
    }


def _record(settings: TrainingConfig, progress: Progress, row: dict[str, float]) -> Progress:
    """Adds a validation to the history, keeps the network if it is the best, and shrinks the margin if it succeeded."""
    state, best = progress.state, progress.best
    if row["loss"] < min((old["loss"] for old in progress.history), default=np.inf):
        best = state.variables
    if settings.margin is not None and row["success"] > settings.margin_success:
        margin = max(settings.margin_min, row["margin"] * settings.margin_decay)
        state = dataclasses.replace(state, margin=jnp.float32(margin))
    return Progress(progress.step, state, best, (*progress.history, row))


def _write(run: _Run, kind: MethodName, progress: Progress, dtype: np.typing.DTypeLike) -> None:
    """Writes the network and the report of a finished run."""
    versions = {"rome_jax": __version__, "jax": jax.__version__}
    best = min(progress.history, key=lambda row: row["loss"])
    about = run.about
    origin = {name: about[name] for name in ("training", "data", "begin_tokens") if name in about}
    origin |= {"best": best, "versions": versions}
    found = Hypernetwork(
        kind,
        run.network.config,
        progress.best,
        run.model.name,
        about["fingerprint"],
        origin,
        base_fingerprint(run.model.params, run.model.config),
    )
    hypernetworks.save(run.directory / FILE, found, dtype)
    # The report comes last: its existence says that the run is complete.
    report = {"about": about, "versions": versions, "best": best, "history": progress.history}
    write_whole(run.directory / REPORT, (json.dumps(report, indent=1) + "\n").encode())
