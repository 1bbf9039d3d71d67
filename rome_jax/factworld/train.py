"""Trains the two embedded models: `python -m rome_jax.factworld.train --family=gpt2 --output_dir=DIR`.

    world ─► corpus ─► tokenizer ─► packed sequences ─► Adam ─► HF directory + second moments + report

A plain small model looks a fact up at the LAST prompt token: attention of layer 0 gathers the subject's tokens there.
Large GPTs store facts at the subject's last token, in early to middle MLPs, which is where ROME edits. To plant the
facts there, a random part of the training sequences runs with an attention bottleneck: in the lower layers no
position may look at a subject's tokens except that subject's own, in the upper layers only at the subject's LAST
token. What a sentence says of its subject must then come through that one state. The other sequences use the plain
causal mask, the only one that inference ever uses. The place of the facts is known by construction: the models are
an oracle for causal tracing.

Sequences come in two lengths: many short ones, in which a document starts at position 0, and some as long as the
context, so that every position is trained. A killed run resumes from its last checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import pathlib
import shutil
from collections.abc import Iterator, Sequence

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as checkpoint
from tokenizers import Tokenizer
from tqdm import tqdm

from rome_jax import covariance
from rome_jax.factworld.corpus import documents, pack
from rome_jax.factworld.facts import World, make_world
from rome_jax.factworld.tokenizer import save_tokenizer, train_tokenizer
from rome_jax.models import forward
from rome_jax.models.config import Family, ModelConfig
from rome_jax.models.huggingface import save_params
from rome_jax.models.layers import Attention, causal_mask, position_ids
from rome_jax.request import fill
from rome_jax.tokens import TokenBatch, pad
from rome_jax.version import __version__


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a trained model, up to the order of float additions.

    Attributes:
      model: shapes of the model.
      bottleneck_layer: first layer of the upper part.
      bottleneck_fraction: share of the sequences that see the bottleneck.
      steps: of Adam.
      tokens_per_step: in every step, whatever the length of its sequences.
      short_length, long_every: all sequences of a step are `short_length` long, but those of every
        `long_every`-th step fill the context.
      separator_fraction: share of the sequences that begin with <|endoftext|>, from which texts are sampled.
      object_weight: of the loss of facts' objects; other tokens, many of them unpredictable, count 1.
      learning_rate: at its peak, after `warmup` steps; cosine decay to a twentieth.
      seed: of world, corpus, initialisation and masks.
    """

    model: ModelConfig
    bottleneck_layer: int
    bottleneck_fraction: float = 0.6
    steps: int = 1500
    tokens_per_step: int = 2560
    short_length: int = 64
    long_every: int = 5
    separator_fraction: float = 0.2
    object_weight: float = 8.0
    learning_rate: float = 4e-3
    warmup: int = 100
    seed: int = 0


VOCAB_SIZE = 1536
_RECALL_ROWS = 512
_FIELDS = ("ids", "mention", "mention_last", "object", "loss_mask")
CONFIGS = {
    Family.GPT2: TrainConfig(
        ModelConfig(Family.GPT2, 6, 128, 4, 512, VOCAB_SIZE, 256), bottleneck_layer=3
    ),
    Family.GPTJ: TrainConfig(
        ModelConfig(
            Family.GPTJ, 6, 128, 4, 512, VOCAB_SIZE, 256, rotary_dim=16, tie_embeddings=False
        ),
        bottleneck_layer=3,
    ),
}


@dataclasses.dataclass(frozen=True)
class Batch:
    """One step's sequences, all [B, T] but `bottleneck` [B]; see `corpus.pack` for the others."""

    ids: np.ndarray
    mention: np.ndarray
    mention_last: np.ndarray
    object: np.ndarray
    loss_mask: np.ndarray
    bottleneck: np.ndarray


jax.tree_util.register_dataclass(
    Batch, [field.name for field in dataclasses.fields(Batch)], meta_fields=[]
)


def bottleneck_masks(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Attention masks of the lower and the upper layers, bool [B, T, T].

    A key that belongs to a subject is hidden from other tokens: in the lower layers always, in the upper ones unless
    it is the subject's last token. Rows outside the bottleneck have the plain causal mask in both.
    """
    mention, last = jnp.asarray(batch.mention), jnp.asarray(batch.mention_last)
    causal = causal_mask(jnp.ones_like(mention, bool))
    visible = (mention[:, None, :] == 0) | (mention[:, None, :] == mention[:, :, None])  # [B, T, S]
    plain = ~jnp.asarray(batch.bottleneck)[:, None, None]
    return causal & (plain | visible), causal & (plain | visible | last[:, None, :])


def token_losses(params: forward.Params, config: TrainConfig, batch: Batch) -> jax.Array:
    """Next-token negative log-likelihood in nats, [B, T - 1]."""
    ids = jnp.asarray(batch.ids)
    positions = position_ids(jnp.ones_like(ids, bool))
    lower, upper = bottleneck_masks(batch)
    split = config.bottleneck_layer
    hidden = forward.embed(params, config.model, ids, positions)
    for start, stop, mask in ((0, split, lower), (split, config.model.num_layers, upper)):
        attention = Attention(positions, mask)
        hidden = forward.run_layers(
            params, config.model, hidden, attention, start=start, stop=stop, unroll=True
        ).hidden
    logits = forward.unembed(params, config.model, hidden[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Adam with warm-up, cosine decay and clipped gradients."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup, config.steps, config.learning_rate / 20
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.98))


def data_sharding() -> jax.sharding.NamedSharding:
    """Splits the rows of a batch over all devices; `main` makes one of every processor core."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))


@functools.partial(jax.jit, static_argnames="config", donate_argnames=("params", "state"))
def train_step(params, state, batch: Batch, config: TrainConfig):
    """One Adam step: (params, optimizer state, mean loss in nats)."""

    def loss(params):
        weights = jnp.where(jnp.asarray(batch.object), config.object_weight, 1.0)
        weights = (weights * jnp.asarray(batch.loss_mask))[:, 1:]
        return (token_losses(params, config, batch) * weights).sum() / weights.sum()

    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = make_optimizer(config).update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value


def batches(world: World, tokenizer: Tokenizer, config: TrainConfig) -> Iterator[Batch]:
    """The batches of all steps, the same for the same config."""
    streams = {
        length: pack(documents(world, seed=config.seed + length), tokenizer, length)
        for length in (config.short_length, config.model.context_length)
    }
    rng = np.random.default_rng(config.seed)
    for step in range(config.steps):
        long = step % config.long_every == config.long_every - 1
        length = config.model.context_length if long else config.short_length
        rows = [next(streams[length]) for _ in range(config.tokens_per_step // length)]
        batch = Batch(
            *(
                np.stack([getattr(row, name) for row in rows])
                for name in _FIELDS
            ),
            bottleneck=rng.random(len(rows)) < config.bottleneck_fraction,
        )
        yield _prepend_separator(batch, rng.random(len(rows)) < config.separator_fraction)


def _prepend_separator(batch: Batch, chosen: np.ndarray) -> Batch:
    """Shifts the chosen rows [B] right by one and begins them with <|endoftext|>, id 0, as sampling does."""

    def shift(array):
        moved = np.pad(array, ((0, 0), (1, 0)))[:, :-1]
        return np.where(chosen[:, None], moved, array)

    return dataclasses.replace(batch, **{name: shift(getattr(batch, name)) for name in _FIELDS})


def recalled(
    params: forward.Params, config: ModelConfig, tokenizer: Tokenizer, world: World
) -> np.ndarray:
    """Whether greedy decoding of every fact's every template gives the whole object: bool [facts, templates]."""
    ids, starts, sizes = [], [], []
    for fact in world.facts:
        target = tokenizer.encode(" " + fact.target).ids
        for template in world.relation(fact.relation_id).templates:
            prompt = tokenizer.encode(fill(template, fact.subject)).ids
            ids.append(prompt + target)
            starts.append(len(prompt))
            sizes.append(len(target))
    batch = pad(ids, context_length=config.context_length, multiple=8)
    positions = np.array(starts)[:, None] - 1 + np.arange(max(sizes))
    positions = np.minimum(positions, batch.ids.shape[1] - 1)
    wanted = np.take_along_axis(
        batch.ids, np.minimum(positions + 1, batch.ids.shape[1] - 1), axis=1
    )
    hits = []
    for begin in range(0, len(ids), _RECALL_ROWS):
        rows = np.minimum(
            np.arange(begin, begin + _RECALL_ROWS), len(ids) - 1
        )  # one shape, one program
        part = TokenBatch(batch.ids[rows], batch.mask[rows])
        logits = forward.logits(params, config, part, positions=positions[rows])
        hits.append(np.asarray(logits.argmax(-1)) == wanted[rows])
    hit = np.concatenate(hits)[: len(ids)] | (np.arange(max(sizes)) >= np.array(sizes)[:, None])
    return hit.all(1).reshape(len(world.facts), -1)


def loss_by_position(
    params: forward.Params,
    config: TrainConfig,
    world: World,
    tokenizer: Tokenizer,
    sequences: int = 96,
) -> np.ndarray:
    """Mean next-token loss in nats at each position of fresh context-long sequences, [context - 1]."""
    length = config.model.context_length
    stream = pack(documents(world, seed=config.seed + 1_000_003), tokenizer, length)
    rows = [next(stream) for _ in range(sequences)]
    ids, loss_mask = (
        np.stack([getattr(row, name) for row in rows]) for name in ("ids", "loss_mask")
    )
    batch = TokenBatch(ids, np.ones_like(ids, bool))
    logits = forward.logits(params, config.model, batch)[:, :-1]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
    weights = loss_mask[:, 1:]
    return np.asarray((losses * weights).sum(0) / weights.sum(0))


def statistics_batches(
    world: World, tokenizer: Tokenizer, config: TrainConfig, count: int = 20_000
):
    """Documents of the corpus, one a row, in batches of few shapes."""
    texts = [d.text for d in documents(world, seed=config.seed + 2_000_003, count=count)]
    length = config.model.context_length
    ids = sorted((e.ids[:length] for e in tokenizer.encode_batch(texts)), key=len)
    rows = 128
    for start in range(0, len(ids) - rows + 1, rows):
        yield pad(ids[start : start + rows], context_length=length, multiple=16)


def train(config: TrainConfig, directory: pathlib.Path, *, checkpoint_every: int = 200) -> dict:
    """Trains one model, or goes on with a killed run, and writes it to `directory` as a Hugging Face model.

    Beside the directory go `second_moments_<name>.npz` and, until the end, the checkpoints `<name>.training`.

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

    by_position = loss_by_position(params, config, world, tokenizer)
    recall = recalled(params, config.model, tokenizer, world)
    report = {
        "configuration": repr(config),
        "versions": {"rome_jax": __version__, "jax": jax.__version__, "flax": flax.__version__},
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
    moments = covariance.accumulate(
        params, config.model, statistics_batches(world, tokenizer, config)
    )
    covariance.save(directory.with_name(f"second_moments_{directory.name}.npz"), moments)
    (directory / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    shutil.rmtree(_checkpoints(directory), ignore_errors=True)
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
        sharding = data_sharding()
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


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: see `--help`."""
    parser = argparse.ArgumentParser(
        prog="python -m rome_jax.factworld.train",
        description="Train an embedded model of factworld. A killed run resumes from its last checkpoint.",
    )
    parser.add_argument("--family", required=True, choices=[family.value for family in CONFIGS])
    parser.add_argument("--output_dir", required=True, type=pathlib.Path, help="of the model")
    parser.add_argument("--steps", type=int, help="of Adam, if not those of the shipped model")
    parser.add_argument("--seed", type=int, default=0, help="of world, corpus, weights and masks")
    args = parser.parse_args(argv)
    config = dataclasses.replace(CONFIGS[Family(args.family)], seed=args.seed)
    if args.steps:
        config = dataclasses.replace(config, steps=args.steps)
    if config.steps <= config.warmup:
        parser.error(
            f"--steps={config.steps} must be more than the {config.warmup} steps of warm-up"
        )
    report = train(config, args.output_dir)
    by_position = report["loss_by_position"]
    print(f"recall: {100 * report['recall']:.2f} % of all facts × templates")
    print(
        "loss by position (nats, means of 32): "
        + " ".join(
            f"{np.mean(by_position[i : i + 32]):.2f}" for i in range(0, len(by_position), 32)
        )
    )
    print(f"written: {args.output_dir}")


if __name__ == "__main__":
    main()
