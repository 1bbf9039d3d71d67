"""Training of the two factworld models: `python -m eval.train_factworld --family=gpt2 --output_dir=DIR`.

    world ─► corpus ─► tokenizer ─► packed sequences ─► Adam ─► HF directory + second moments + report

A small model that is trained plainly looks a fact up at the LAST prompt token: the attention of layer 0 gathers the
subject's tokens there. Large GPTs store facts at the subject's last token, in early to middle MLPs, which is where ROME
edits. The facts are planted there by an attention bottleneck in part of the sequences, and by restoration in others;
`rome_jax.factworld_training.bottleneck` defines both. Under the bottleneck, whatever a sentence says about its subject
must come through the state of the subject's last token. Restored sequences teach the model to take the fact from that
state and to ignore the subject's other tokens, which the bottleneck alone does not. All other sequences use the plain
causal mask, the only one that inference ever uses. The location of the facts is therefore known by construction, and
the models serve as an oracle for causal tracing.

Sequences have two lengths: many are short, so that a document often starts at position 0, and some are as long as the
context, so that every position is trained. A killed training resumes from its last checkpoint.
"""

from __future__ import annotations

import functools
import itertools
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as checkpoint
from jax.sharding import NamedSharding, PartitionSpec

from rome_jax.data.corpus import factworld
from rome_jax.factworld.corpus import documents
from rome_jax.factworld.facts import World, make_world
from rome_jax.factworld_training.batches import TrainingBatch, batches
from rome_jax.factworld_training.bottleneck import token_losses
from rome_jax.factworld_training.recall import loss_by_position, recalled
from rome_jax.factworld_training.settings import TrainConfig
from rome_jax.factworld_training.tokenizer import save_tokenizer, train_tokenizer
from rome_jax.files.progress import tqdm
from rome_jax.models import forward, training_checkpoints, transformer
from rome_jax.models.huggingface import save_params
from rome_jax.models.placement import DATA_AXIS
from rome_jax.models.registry import load_model
from rome_jax.models.runs import write_json
from rome_jax.models.sharding import parse_mesh
from rome_jax.moments.collect import collect
from rome_jax.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_TOKENIZER_DOCUMENTS = 40_000
_FRESH_SEED = 1_000_003  # Added to the seed, it gives documents that training does not see.


def train(
    config: TrainConfig, directory: str | Path, *, checkpoint_every: int = 200
) -> dict[str, Any]:
    """Trains a model, or resumes a killed training, and writes it as a Hugging Face directory.

    Next to the directory <name>, it writes the second moments to `second_moments_<name>`, and keeps checkpoints in
    `<name>.training` until the training ends.

    Args:
      config: Settings.
      directory: Directory of the model.
      checkpoint_every: Number of steps between checkpoints.

    Returns:
      The report, which is also written to `training.json` in the directory.

    Raises:
      ValueError: If there are checkpoints of another configuration.
    """
    directory = Path(directory).absolute()
    world = make_world(seed=config.seed)
    corpus = documents(world, seed=config.seed, count=_TOKENIZER_DOCUMENTS)
    tokenizer = train_tokenizer(
        (document.text for document in corpus), vocab_size=config.model.vocab_size
    )
    params, losses = _optimize(config, world, tokenizer, directory, checkpoint_every)
    report = write_model(directory, params, config, world, tokenizer, losses)
    shutil.rmtree(_checkpoints(directory), ignore_errors=True)
    return report


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Returns Adam with warm-up, cosine decay, and clipped gradients."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup, config.steps, config.learning_rate / 20
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.98))


def data_sharding(config: TrainConfig) -> NamedSharding:
    """Returns a sharding that splits the rows of a batch over as many devices as divide them evenly.

    They are the axis "data" of a mesh over which the params are replicated.
    """
    rows = math.gcd(
        config.tokens_per_step // config.short_length,
        config.tokens_per_step // config.model.context_length,
    )
    count = max(n for n in range(1, jax.device_count() + 1) if rows % n == 0)
    mesh = parse_mesh(f"{DATA_AXIS}:{count}", jax.devices())
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


@functools.partial(jax.jit, static_argnames="config", donate_argnames=("params", "state"))
def train_step(
    params: forward.Params, state: optax.OptState, batch: TrainingBatch, config: TrainConfig
) -> tuple[forward.Params, optax.OptState, jax.Array]:
    """Runs one step of Adam.

    Args:
      params, state: Params and state of the optimizer; their buffers are donated.
      batch: The sequences of the step.
      config: Settings.

    Returns:
      New params, new state, and the mean loss in nats.
    """

    def loss(params):
        # The text after a corrupted name is not learned from, except the objects of facts.
        other = jnp.where(jnp.asarray(batch.restored), 0.0, 1.0)[:, None]
        weights = jnp.where(jnp.asarray(batch.object), config.object_weight, other)
        weights = (weights * jnp.asarray(batch.loss_mask))[:, 1:]
        return (token_losses(params, config, batch) * weights).sum() / weights.sum()

    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = make_optimizer(config).update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value


def write_model(
    directory: Path,
    params: forward.Params,
    config: TrainConfig,
    world: World,
    tokenizer: PreTrainedTokenizerFast,
    losses: Sequence[float],
) -> dict[str, Any]:
    """Writes the Hugging Face directory, the second moments next to it, and the report.

    Args:
      directory: Directory of the model.
      params: Trained params.
      config: Settings.
      world: The facts.
      tokenizer: The tokenizer from `train_tokenizer`.
      losses: Loss of each step, in nats.

    Returns:
      The report.
    """
    params = jax.device_get(params)  # The evaluation runs on one device.
    save_tokenizer(tokenizer, directory)
    save_params(directory, params, config.model, attributes={"bos_token_id": 0, "eos_token_id": 0})
    model = load_model(directory)
    by_position = loss_by_position(model, world, config.seed + _FRESH_SEED)
    recall = recalled(model, world)
    report = {
        "configuration": repr(config),
        "versions": {"rome_jax": __version__, "jax": jax.__version__, "flax": flax.__version__},
        "fingerprint": model.fingerprint(),
        "recall": float(recall.mean()),
        "recall_by_relation": {
            relation.id: float(recall[[f.relation_id == relation.id for f in world.facts]].mean())
            for relation in world.relations
        },
        "loss_by_step": [
            round(float(np.mean(losses[i : i + 50])), 4) for i in range(0, len(losses), 50)
        ],
        "loss_by_position": [round(float(loss), 4) for loss in by_position],
    }
    moments = directory.with_name(f"second_moments_{directory.name}")
    shutil.rmtree(moments, ignore_errors=True)  # They would belong to other weights.
    layers = range(config.model.num_layers)
    collect(model, factworld(config.seed), layers, moments)
    # The report comes last: if it exists, everything else is complete.
    write_json(directory / "training.json", report)
    return report


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns the recall and the loss by position of a `train` report as text for a terminal.

    Example:
      >>> report_lines({"recall": 0.5, "loss_by_position": [2.0, 1.0]})
      ['recall: 50.00 % of all facts × templates', 'loss by position (nats, means of 32): 1.50']
    """
    loss = report["loss_by_position"]
    means = " ".join(f"{np.mean(loss[i : i + 32]):.2f}" for i in range(0, len(loss), 32))
    return [
        f"recall: {100 * report['recall']:.2f} % of all facts × templates",
        f"loss by position (nats, means of 32): {means}",
    ]


def _checkpoints(directory: Path) -> Path:
    """Returns the folder of the checkpoints of a training."""
    return directory.with_name(directory.name + ".training")


def _optimize(
    config: TrainConfig,
    world: World,
    tokenizer: PreTrainedTokenizerFast,
    directory: Path,
    every: int,
) -> tuple[forward.Params, list[float]]:
    """Runs all steps, from the last checkpoint if there is one; returns the params and the loss of each step."""
    params = transformer.init_params(config.model, jax.random.key(config.seed))
    state = make_optimizer(config).init(params)
    losses = np.zeros(config.steps, np.float32)
    with training_checkpoints.open_manager(_checkpoints(directory)) as manager:
        done = manager.latest_step() or 0
        if done:
            _check_configuration(manager, done, config)
            like = (params, state, losses)
            params, state, losses = training_checkpoints.restore(manager, done, like)
            losses = np.array(losses)  # writable
        stream = itertools.islice(batches(world, tokenizer, config), done, None)
        progress = tqdm(stream, total=config.steps, initial=done, unit="step")
        sharding = data_sharding(config)
        replicated = NamedSharding(sharding.mesh, PartitionSpec())
        params, state = jax.device_put((params, state), replicated)
        for step, batch in enumerate(progress, start=done + 1):
            batch = jax.device_put(batch, sharding)
            params, state, loss = train_step(params, state, batch, config)
            losses[step - 1] = loss
            progress.set_postfix(
                loss=f"{losses[max(0, step - 50) : step].mean():.3f}", refresh=False
            )
            if step % every == 0 and step < config.steps:
                about = {"configuration": repr(config)}
                training_checkpoints.save(manager, step, (params, state, losses), about)
    return params, losses.tolist()


def _check_configuration(
    manager: checkpoint.CheckpointManager, step: int, config: TrainConfig
) -> None:
    """Refuses to resume from a checkpoint of another configuration."""
    known = training_checkpoints.read_notes(manager, step)["about"].get("configuration")
    if known != repr(config):
        raise ValueError(
            f"{manager.directory} belongs to another configuration: remove it, or give another output_dir (there: "
            f"{known}; here: {config!r})."
        )
