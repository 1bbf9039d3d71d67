"""Trains the two embedded models: `python -m eval.train_factworld --family=gpt2 --output_dir=DIR`.

    world ─► corpus ─► tokenizer ─► packed sequences ─► Adam ─► HF directory + second moments + report

A plain small model looks a fact up at the LAST prompt token: attention of layer 0 gathers the subject's tokens there.
Large GPTs store facts at the subject's last token, in early to middle MLPs, which is where ROME edits. To plant the
facts there, a random part of the training sequences runs with an attention bottleneck: in the lower layers no
position may look at a subject's tokens except that subject's own, in the upper layers only at the subject's LAST
token. What a sentence says of its subject must then come through that one state. The other sequences use the plain
causal mask, the only one that inference ever uses. Some of these are restored: noise on the subjects' embeddings
corrupts everything below the upper layers but the state of each subject's last token. They teach the model to take the
fact from that state and to leave the subject's other tokens alone, which the bottleneck by itself does not. The
place of the facts is known by construction: the models are an oracle for causal tracing.

Sequences come in two lengths: many short ones, in which a document starts at position 0, and some as long as the
context, so that every position is trained. A killed run resumes from its last checkpoint.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as checkpoint
from tokenizers import Tokenizer

from rome_jax.data.corpus import factworld
from rome_jax.factworld.corpus import documents
from rome_jax.factworld.facts import World, make_world
from rome_jax.factworld_training.batches import RESTORED_EVERY, TrainingBatch, batches
from rome_jax.factworld_training.recall import loss_by_position, recalled
from rome_jax.factworld_training.settings import TrainConfig
from rome_jax.factworld_training.tokenizer import save_tokenizer, train_tokenizer
from rome_jax.files.progress import tqdm
from rome_jax.models import forward
from rome_jax.models.fingerprint import fingerprint
from rome_jax.models.huggingface import save_params
from rome_jax.models.layers import Attention, causal_mask, position_ids
from rome_jax.models.registry import load_model
from rome_jax.moments import collect as statistics
from rome_jax.version import __version__

NOISE_LEVEL = 3.0  # standard deviations of the token embeddings, as in causal tracing


def bottleneck_masks(batch: TrainingBatch) -> tuple[jax.Array, jax.Array]:
    """Attention masks of the lower and the upper layers, bool [B, T, T].

    A key that belongs to a subject is hidden from other tokens: in the lower layers always, in the upper ones unless
    it is the subject's last token. Rows outside the bottleneck have the plain causal mask in both.
    """
    mention, last = jnp.asarray(batch.mention), jnp.asarray(batch.mention_last)
    causal = causal_mask(jnp.ones_like(mention, bool))
    visible = (mention[:, None, :] == 0) | (mention[:, None, :] == mention[:, :, None])  # [B, T, S]
    plain = ~jnp.asarray(batch.bottleneck)[:, None, None]
    return causal & (plain | visible), causal & (plain | visible | last[:, None, :])


def token_losses(params: forward.Params, config: TrainConfig, batch: TrainingBatch) -> jax.Array:
    """Next-token negative log-likelihood in nats, [B, T - 1], of rows under a bottleneck, restored, or plain."""
    ids, mention = jnp.asarray(batch.ids), jnp.asarray(batch.mention)
    positions = position_ids(jnp.ones_like(ids, bool))
    lower, upper = bottleneck_masks(batch)
    split = config.bottleneck_layer

    def run(hidden, start, stop, mask, rows=slice(None)):
        attention = Attention(positions[rows], mask[rows])
        return forward.run_layers(
            params, config.model, hidden, attention, start=start, stop=stop, unroll=True
        ).hidden

    embedded = forward.embed(params, config.model, ids, positions)
    clean = run(embedded, 0, split, lower)
    # Some rows run a second time with noise on their subjects; then the clean state comes back at the last tokens.
    part = slice(0, None, RESTORED_EVERY)
    std = jax.lax.stop_gradient(params["wte"]["embedding"].std())
    keys = jax.vmap(jax.random.key)(jnp.asarray(batch.seed)[part])
    noise = jax.vmap(lambda key: jax.random.normal(key, embedded.shape[1:]))(keys)
    corrupted = embedded[part] + NOISE_LEVEL * std * noise * (mention[part] > 0)[..., None]
    corrupted = run(corrupted, 0, split, lower, part)
    restored = jnp.where(jnp.asarray(batch.mention_last)[part][..., None], clean[part], corrupted)
    chosen = jnp.asarray(batch.restored)[part][:, None, None]
    hidden = clean.at[part].set(jnp.where(chosen, restored, clean[part]))
    hidden = run(hidden, split, config.model.num_layers, upper)
    logits = forward.unembed(params, config.model, hidden[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Adam with warm-up, cosine decay and clipped gradients."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup, config.steps, config.learning_rate / 20
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.98))


def data_sharding(config: TrainConfig) -> jax.sharding.NamedSharding:
    """Splits the rows of a batch over as many devices as divide them evenly."""
    rows = math.gcd(
        config.tokens_per_step // config.short_length,
        config.tokens_per_step // config.model.context_length,
    )
    count = max(n for n in range(1, jax.device_count() + 1) if rows % n == 0)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("data",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))


@functools.partial(jax.jit, static_argnames="config", donate_argnames=("params", "state"))
def train_step(params, state, batch: TrainingBatch, config: TrainConfig):
    """One Adam step: (params, optimizer state, mean loss in nats)."""

    def loss(params):
        # What follows a corrupted name is no text to learn from, but for the objects.
        other = jnp.where(jnp.asarray(batch.restored), 0.0, 1.0)[:, None]
        weights = jnp.where(jnp.asarray(batch.object), config.object_weight, other)
        weights = (weights * jnp.asarray(batch.loss_mask))[:, 1:]
        return (token_losses(params, config, batch) * weights).sum() / weights.sum()

    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = make_optimizer(config).update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value


def train(
    config: TrainConfig, directory: str | pathlib.Path, *, checkpoint_every: int = 200
) -> dict:
    """Trains one model, or resumes a killed run, and writes it to `directory` as a Hugging Face model.

    Beside the directory go the second moments, in `second_moments_<name>`, and, until the end, the checkpoints
    `<name>.training`.

    Args:
      config: what to train.
      directory: of the model; its name is <name>.
      checkpoint_every: steps between checkpoints.

    Returns:
      The report that is also written to `training.json` in the directory.

    Raises:
      ValueError: the checkpoints found are those of another configuration.
    """
    directory = pathlib.Path(directory).absolute()
    world = make_world(seed=config.seed)
    texts = (document.text for document in documents(world, seed=config.seed, count=40_000))
    tokenizer = train_tokenizer(texts, vocab_size=config.model.vocab_size)
    params, losses = _optimize(config, world, tokenizer, directory, checkpoint_every)

    report = write_model(directory, params, config, world, tokenizer, losses)
    shutil.rmtree(_checkpoints(directory), ignore_errors=True)
    return report


def write_model(
    directory: pathlib.Path,
    params: forward.Params,
    config: TrainConfig,
    world: World,
    tokenizer: Tokenizer,
    losses: Sequence[float],
) -> dict:
    """Writes the Hugging Face directory, the second moments beside it and the report, which it returns."""
    params = jax.device_get(params)  # evaluation runs on one device
    fresh = config.seed + 1_000_003  # documents unseen in training
    by_position = loss_by_position(params, config.model, tokenizer, world, fresh)
    recall = recalled(params, config.model, tokenizer, world)
    report = {
        "configuration": repr(config),
        "versions": {"rome_jax": __version__, "jax": jax.__version__, "flax": flax.__version__},
        "fingerprint": fingerprint(params, config.model),
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
    save_tokenizer(tokenizer, directory)
    save_params(directory, params, config.model, attributes={"bos_token_id": 0, "eos_token_id": 0})
    moments = directory.with_name(f"second_moments_{directory.name}")
    shutil.rmtree(moments, ignore_errors=True)  # of other weights
    layers = range(config.model.num_layers)
    statistics.collect(load_model(directory), factworld(config.seed), layers, moments)
    temporary = (
        directory / ".training.json.tmp"
    )  # last, and whole: it says that all of the rest is there
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    temporary.replace(directory / "training.json")
    return report


def _checkpoints(directory: pathlib.Path) -> pathlib.Path:
    return directory.with_name(directory.name + ".training")


def _optimize(
    config: TrainConfig, world: World, tokenizer: Tokenizer, directory: pathlib.Path, every: int
) -> tuple[forward.Params, list[float]]:
    """All steps, from the last checkpoint on if there is one: (params, losses)."""
    params = forward.init_params(config.model, jax.random.key(config.seed))
    state = make_optimizer(config).init(params)
    losses = np.zeros(config.steps, np.float32)
    options = checkpoint.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    with checkpoint.CheckpointManager(_checkpoints(directory), options=options) as manager:
        done = manager.latest_step() or 0
        if done:
            args = checkpoint.args.Composite(
                state=checkpoint.args.StandardRestore((params, state, losses)),
                config=checkpoint.args.JsonRestore(),
            )
            restored = manager.restore(done, args=args)
            if restored["config"] != repr(config):
                raise ValueError(
                    f"{_checkpoints(directory)} belongs to another configuration: remove it, or give another "
                    f"output_dir. There: {restored['config']}. Here: {config!r}."
                )
            params, state, losses = restored["state"]
            losses = np.array(losses)
        stream = itertools.islice(batches(world, tokenizer, config), done, None)
        progress = tqdm(stream, total=config.steps, initial=done, unit="step")
        sharding = data_sharding(config)
        replicated = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        params, state = jax.device_put((params, state), replicated)
        for step, batch in enumerate(progress, start=done + 1):
            batch = jax.device_put(batch, sharding)
            params, state, loss = train_step(params, state, batch, config)
            losses[step - 1] = loss
            progress.set_postfix(
                loss=f"{losses[max(0, step - 50) : step].mean():.3f}", refresh=False
            )
            if step % every == 0 and step < config.steps:
                args = checkpoint.args.Composite(
                    state=checkpoint.args.StandardSave((params, state, losses)),
                    config=checkpoint.args.JsonSave(repr(config)),
                )
                manager.save(step, args=args)
    return params, losses.tolist()


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """What `train` found, for a terminal."""
    loss = report["loss_by_position"]
    means = " ".join(f"{np.mean(loss[i : i + 32]):.2f}" for i in range(0, len(loss), 32))
    return [
        f"recall: {100 * report['recall']:.2f} % of all facts × templates",
        f"loss by position (nats, means of 32): {means}",
    ]
