"""What a model of the embedded world knows, and how well it predicts at each position."""

from __future__ import annotations

import numpy as np
import optax
from tokenizers import Tokenizer

from rome_jax.data.request import fill
from rome_jax.data.tokens import TokenBatch, pad
from rome_jax.factworld.corpus import documents
from rome_jax.factworld.facts import World
from rome_jax.factworld_training.packing import pack_documents
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig

_RECALL_ROWS = 512


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
    config: ModelConfig,
    tokenizer: Tokenizer,
    world: World,
    seed: int,
    sequences: int = 96,
) -> np.ndarray:
    """Mean next-token loss in nats at each position of fresh context-long sequences, [context - 1]."""
    length = config.context_length
    stream = pack_documents(documents(world, seed=seed), tokenizer, length)
    rows = [next(stream) for _ in range(sequences)]
    ids, loss_mask = (
        np.stack([getattr(row, name) for row in rows]) for name in ("ids", "loss_mask")
    )
    batch = TokenBatch(ids, np.ones_like(ids, bool))
    logits = forward.logits(params, config, batch)[:, :-1]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
    weights = loss_mask[:, 1:]
    return np.asarray((losses * weights).sum(0) / weights.sum(0))
