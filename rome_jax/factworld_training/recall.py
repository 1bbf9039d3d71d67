"""What a factworld model knows: recall of the facts, and the loss at each position."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax

from rome_jax.data.request import fill
from rome_jax.data.tokens import TokenBatch
from rome_jax.evaluation.scoring import make_queries, score_queries
from rome_jax.factworld.corpus import documents
from rome_jax.factworld.facts import World
from rome_jax.factworld_training.packing import pack_documents
from rome_jax.models import forward
from rome_jax.models.registry import LanguageModel


def recalled(model: LanguageModel, world: World) -> np.ndarray:
    """Returns whether greedy decoding completes each template of each fact with the whole object.

    Args:
      model: The model.
      world: The facts. All relations must have the same number of templates.

    Returns:
      bool [facts, templates].
    """
    pairs = [
        (fill(template, fact.subject), fact.target)
        for fact in world.facts
        for template in world.relation(fact.relation_id).templates
    ]
    prompts, targets = zip(*pairs, strict=True)
    scores = score_queries(model, make_queries(model, prompts, [[target] for target in targets]))
    return np.array([score.hits.all() for (score,) in scores]).reshape(len(world.facts), -1)


def loss_by_position(
    model: LanguageModel, world: World, seed: int, sequences: int = 96
) -> np.ndarray:
    """Computes the mean next-token loss at each position of sequences that fill the context.

    Args:
      model: The model.
      world: The facts that the sequences are about.
      seed: Seed of the documents.
      sequences: Number of sequences.

    Returns:
      Loss in nats, [context length - 1].
    """
    stream = pack_documents(
        documents(world, seed=seed), model.tokenizer, model.config.context_length
    )
    rows = [next(stream) for _ in range(sequences)]
    ids = jnp.asarray(np.stack([row.ids for row in rows]))
    weights = np.stack([row.loss_mask for row in rows])[:, 1:]
    batch = TokenBatch(ids, jnp.ones_like(ids, bool))
    logits = forward.logits(model.params, model.config, batch)[:, :-1]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
    return np.asarray((losses * weights).sum(0) / weights.sum(0))
