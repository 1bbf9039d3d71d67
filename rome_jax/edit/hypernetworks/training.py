"""Training of MEND and KE on a frozen model (Mitchell et al., 2022, section 3.2; De Cao et al., 2021, section 4.1).

    examples ─► losses of a batch ─► Adam ─► validation ─► checkpoint ─► the network that validated best

MEND minimises edit_weight · edit + locality_weight · KL. KE minimises the edit loss under the constraint KL ≤ margin,
with a Lagrange multiplier that goes up while the constraint is broken; the margin shrinks while validation succeeds.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as checkpoint
from flax import linen as nn
from flax import struct

from rome_jax.data.tokens import round_up
from rome_jax.edit.baseline_config import MENDConfig
from rome_jax.edit.config import MethodName
from rome_jax.edit.hypernetworks import networks as hypernetworks
from rome_jax.edit.hypernetworks.losses import (
    ExampleBatch,
    Examples,
    Losses,
    losses,
    tokenize_examples,
)
from rome_jax.edit.hypernetworks.networks import Hypernetwork
from rome_jax.edit.methods.ke import KE
from rome_jax.edit.methods.mend import MEND
from rome_jax.edit.stages.gradients import gradient_factors
from rome_jax.files.artifacts import write_whole
from rome_jax.files.progress import tqdm
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.registry import LanguageModel
from rome_jax.version import __version__

FILE, REPORT, _CHECKPOINTS = "hypernetwork.safetensors", "training.json", "checkpoints"


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a hypernetwork is trained.

    Attributes:
      learning_rate: of Adam.
      rate_learning_rate: of Adam for MEND's rates.
      batch_size: edits in a step.
      edit_weight, locality_weight: of the two losses in training and validation; KE's training learns the second.
      margin: of KE's constraint, in nats; None for MEND.
      margin_min, margin_decay: where the margin ends, and its factor after each validation that succeeds.
      margin_success: share of validation edits that must succeed for that.
      multiplier_rate: step of the Lagrange multiplier's ascent.
      clip: largest norm of a gradient.
      max_steps: of Adam.
      validate_every: steps; then a checkpoint is written, too.
      patience: validations without a better loss before training ends.
      num_validation: edits in a validation, the same each time.
      seed: of initialisation and examples.

    Raises:
      ValueError: a value out of range, named.
    """

    learning_rate: float
    rate_learning_rate: float = 1e-4
    batch_size: int = 32
    edit_weight: float = 0.1
    locality_weight: float = 1.0
    margin: float | None = None
    margin_min: float = 1e-5
    margin_decay: float = 0.8
    margin_success: float = 0.9
    multiplier_rate: float = 0.1
    clip: float = 100.0
    max_steps: int = 4000
    validate_every: int = 200
    patience: int = 5
    num_validation: int = 128
    seed: int = 0

    def __post_init__(self):
        positive = "learning_rate rate_learning_rate batch_size clip max_steps validate_every"
        for field in (*positive.split(), "patience", "num_validation"):
            if getattr(self, field) <= 0:
                raise ValueError(f"{field}={getattr(self, field)} must be positive.")
        for field in ("edit_weight", "locality_weight", "margin_min", "multiplier_rate"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field}={getattr(self, field)} must not be negative.")
        if self.margin is not None and self.margin <= 0:
            raise ValueError(f"margin={self.margin} must be positive, or None for no constraint.")
        if not 0 < self.margin_decay <= 1:
            raise ValueError(f"margin_decay={self.margin_decay} must lie above 0, up to 1.")

    @classmethod
    def for_kind(cls, kind: MethodName, **changes) -> TrainingConfig:
        """What the embedded models' networks were trained with.

        Example:
          >>> TrainingConfig.for_kind(Kind.MEND).edit_weight
          0.1
        """
        return cls(**(_TRAINING[kind] | changes))


_TRAINING: Mapping[MethodName, dict[str, Any]] = {
    MethodName.MEND: {"learning_rate": 3e-4, "rate_learning_rate": 1e-3, "max_steps": 1000},
    MethodName.KE: {
        "learning_rate": 1e-3,
        "edit_weight": 1.0,
        "margin": 1e-2,
        "max_steps": 3000,
    },
}


@struct.dataclass
class TrainState:
    """All that a step changes; `multiplier` is the weight of the KL."""

    variables: Mapping[str, Any]
    optimizer: optax.OptState
    multiplier: jax.Array
    margin: jax.Array


def make_network(config: hypernetworks.Config, model_config: ModelConfig) -> MEND | KE:
    """The linen module of a configuration."""
    if isinstance(config, MENDConfig):
        return MEND(config)
    return KE(config, model_config.vocab_size, model_config.width)


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Adam with clipped gradients; MEND's rates have a learning rate of their own."""
    parts = {
        "rates": optax.adam(config.rate_learning_rate),
        "network": optax.adam(config.learning_rate),
    }

    def labels(params):
        return {name: "rates" if name == "rates" else "network" for name in params}

    return optax.chain(optax.clip_by_global_norm(config.clip), optax.multi_transform(parts, labels))


@functools.partial(jax.jit, static_argnames=("network", "model_config", "config"))
def train_step(
    state: TrainState,
    network: nn.Module,
    params: forward.Params,
    model_config: ModelConfig,
    config: TrainingConfig,
    batch: ExampleBatch,
) -> tuple[TrainState, Losses]:
    """One step of Adam on the network and, for KE, one of ascent on the multiplier."""

    def objective(weights):
        variables = {**state.variables, "params": weights}
        found, variables = losses(network, variables, params, model_config, batch, True)
        return config.edit_weight * found.edit + state.multiplier * found.kl, (found, variables)

    gradient, (found, variables) = jax.grad(objective, has_aux=True)(state.variables["params"])
    optimizer = make_optimizer(config)
    updates, moved = optimizer.update(gradient, state.optimizer, state.variables["params"])
    weights = optax.apply_updates(state.variables["params"], updates)
    multiplier = state.multiplier
    if config.margin is not None:
        multiplier += config.multiplier_rate * (found.kl - state.margin)
        multiplier = jnp.maximum(multiplier, 0.0)
    variables = {**variables, "params": weights}
    return TrainState(variables, moved, multiplier, state.margin), found


_evaluate = jax.jit(losses, static_argnames=("network", "model_config", "training"))


def initial_state(
    network: nn.Module, model: LanguageModel, batch: ExampleBatch, config: TrainingConfig
) -> TrainState:
    """The state before the first step; KE's embedding begins as the model's."""
    edits = jax.tree.map(lambda leaf: leaf[: len(batch.condition.ids)], batch.rows)
    shape = (network.config.layers, network.config.leaves)
    factors = gradient_factors(model.params, model.config, edits, *shape)
    key = jax.random.key(config.seed)
    variables = jax.jit(network.init)(key, factors, batch.condition)
    if isinstance(network, KE):
        table = model.params["wte"]["embedding"].astype(jnp.float32)
        variables["params"]["condition"]["embedding"]["embedding"] = table
    optimizer = make_optimizer(config).init(variables["params"])
    margin = jnp.float32(config.margin or 0.0)
    return TrainState(variables, optimizer, jnp.float32(config.locality_weight), margin)


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
    """Trains a hypernetwork, or resumes a killed run, and keeps the one that validates best.

    Args:
      kind: which method.
      model: the one to edit; frozen.
      config: of the network.
      examples: to learn from.
      validation: of other facts.
      settings: of the training.
      directory: of hypernetwork.safetensors, training.json and, until the end, the checkpoints.
      data: says where the examples come from; a run of other data is not continued.
      dtype: of the parameters in the file; see `hypernetworks.save`.

    Returns:
      What hypernetwork.safetensors holds.

    Raises:
      ValueError: a layer that the model does not have, a directory with a run of other settings, or a training that
        diverges.
    """
    for layer in config.layers:
        model.config.check_layer(layer, "layers")
    directory = Path(directory).absolute()
    about = {
        "kind": kind.value,
        "config": config.to_dict(),
        "training": dataclasses.asdict(settings),
        "data": dict(data),
        "model": model.name,
        "fingerprint": model.fingerprint(),
        "file_dtype": np.dtype(dtype).name,
    }
    about = json.loads(json.dumps(about))  # as files give it back
    if (directory / REPORT).exists():
        known = json.loads((directory / REPORT).read_text())
        _check_settings(directory, known["about"], about)
        return hypernetworks.load(directory / FILE)
    variables, history = _optimize(
        make_network(config, model.config), model, examples, validation, settings, directory, about
    )
    versions = {"rome_jax": __version__, "jax": jax.__version__}
    best = min(history, key=lambda row: row["loss"])
    kept = {
        "training": about["training"],
        "data": about["data"],
        "best": best,
        "versions": versions,
    }
    found = Hypernetwork(kind, config, variables, model.name, about["fingerprint"], kept)
    hypernetworks.save(directory / FILE, found, dtype)
    # Last: it says that all of the rest is there.
    report = {"about": about, "versions": versions, "best": best, "history": history}
    write_whole(directory / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    shutil.rmtree(directory / _CHECKPOINTS, ignore_errors=True)
    return hypernetworks.load(directory / FILE)


def _optimize(
    network: nn.Module,
    model: LanguageModel,
    examples: Examples,
    validation: Examples,
    settings: TrainingConfig,
    directory: Path,
    about: Mapping[str, Any],
) -> tuple[Mapping[str, Any], list[dict[str, float]]]:
    """All steps, from the last checkpoint on if there is one: the best variables and every validation."""
    fixed = (network, model.params, model.config)
    checks = _validation_batches(model, validation, settings)
    state = initial_state(network, model, checks[0], settings)
    best, history = state.variables, []
    options = checkpoint.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    with checkpoint.CheckpointManager(directory / _CHECKPOINTS, options=options) as manager:
        done = manager.latest_step() or 0
        if done:
            # First what it is: the arrays of another network would not fit.
            item = checkpoint.args.Composite(history=checkpoint.args.JsonRestore())
            known = manager.restore(done, args=item)["history"]
            _check_settings(directory, known["about"], about)
            item = checkpoint.args.StandardRestore((state, best))
            restored = manager.restore(done, args=checkpoint.args.Composite(state=item))
            # As arrays of no fixed device, like new ones: the same programs serve them.
            state, best = jax.tree.map(jnp.asarray, jax.device_get(restored["state"]))
            history = known["rows"]
        bar = tqdm(total=settings.max_steps, initial=done, unit="step", desc=about["kind"])
        while done < settings.max_steps and not _is_over(history, settings.patience):
            seen = []
            for _ in range(min(settings.validate_every, settings.max_steps - done)):
                rng = np.random.default_rng([settings.seed, done])
                batch = tokenize_examples(model, examples.draw(rng, settings.batch_size))
                state, found = train_step(state, *fixed, settings, batch)
                seen.append(found)
                done += 1
                bar.update()
            row = {"step": done, **_means(seen, "train_")}
            row |= _means(
                [_evaluate(network, state.variables, *fixed[1:], b, False)[0] for b in checks]
            )
            row["loss"] = settings.edit_weight * row["edit"] + settings.locality_weight * row["kl"]
            if not np.isfinite(row["loss"]):
                raise ValueError(
                    f"learning_rate={settings.learning_rate} is too high: the validation loss is {row['loss']} after "
                    f"{done} steps; give a lower one and another output_dir."
                )
            row |= {"multiplier": float(state.multiplier), "margin": float(state.margin)}
            if row["loss"] < min((r["loss"] for r in history), default=np.inf):
                best = state.variables
            history.append(row)
            if settings.margin is not None and row["success"] > settings.margin_success:
                margin = max(settings.margin_min, row["margin"] * settings.margin_decay)
                state = state.replace(margin=jnp.float32(margin))
            names = ("edit", "kl", "success", "kept")
            bar.set_postfix({name: f"{row[name]:.3f}" for name in names}, refresh=False)
            manager.save(
                done,
                args=checkpoint.args.Composite(
                    state=checkpoint.args.StandardSave((state, best)),
                    history=checkpoint.args.JsonSave({"rows": history, "about": about}),
                ),
            )
    return best, history


def _validation_batches(
    model: LanguageModel, validation: Examples, settings: TrainingConfig
) -> list[ExampleBatch]:
    """The same edits in each validation, in batches like those of training."""
    rng = np.random.default_rng([settings.seed])
    drawn = validation.draw(rng, round_up(settings.num_validation, settings.batch_size))
    size = settings.batch_size
    parts = (drawn[begin : begin + size] for begin in range(0, len(drawn), size))
    return [tokenize_examples(model, part) for part in parts]


def _means(found: Sequence[Losses], prefix: str = "") -> dict[str, float]:
    values = {
        field.name: [getattr(one, field.name) for one in found]
        for field in dataclasses.fields(Losses)
    }
    return {prefix + name: float(np.mean(value)) for name, value in values.items()}


def _is_over(history: Sequence[Mapping[str, float]], patience: int) -> bool:
    """Whether the last `patience` validations were no better than one before them."""
    rows = [row["loss"] for row in history]
    return len(rows) > patience and min(rows[-patience:]) >= min(rows[:-patience])


def _check_settings(directory: Path, known: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    differing = [name for name in about if known.get(name) != about[name]]
    if differing:
        raise ValueError(
            f"{directory} holds a training with another {', '.join(differing)}: remove it, or give another output_dir."
        )
