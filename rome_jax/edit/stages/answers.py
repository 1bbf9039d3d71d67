"""Whether an edited model gives the target as its answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.data.request import EditRequest
from rome_jax.edit.delta import apply_delta
from rome_jax.edit.stages.chunks import map_chunks
from rome_jax.edit.stages.targets import TargetInputs, tokenize_request_targets
from rome_jax.models import forward
from rome_jax.models.interventions import Delta, DenseUpdate
from rome_jax.models.registry import LanguageModel


def target_is_answer(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    deltas: Delta | None = None,
    chunk_size: int = 32,
) -> np.ndarray:
    """Checks whether greedy decoding of each request's prompt gives its new target.

    Args:
      model: Unedited model.
      requests: N requests.
      deltas: N edits, one per request. None checks the unedited model.
      chunk_size: Number of requests that run at once; it bounds the memory.

    Returns:
      bool [N].

    Raises:
      SequenceTooLongError: If a prompt with its target does not fit the context.

    Example:
      >>> target_is_answer(model, [request]).tolist()
      [False]
    """
    inputs = tokenize_request_targets(model.tokenizer, requests, model.config.context_length)
    dense = deltas is not None and any(isinstance(u, DenseUpdate) for u in deltas.updates)
    size = 1 if dense else chunk_size  # dense edits are merged into the weights one at a time

    def ask(rows: Sequence[int]) -> np.ndarray:
        chosen: TargetInputs = jax.tree.map(lambda leaf: leaf[np.array(rows)], inputs)
        params, own = model.params, None
        if deltas is not None and dense:
            params = apply_delta(params, deltas[rows[0]])
        elif deltas is not None:
            own = jax.tree.map(lambda leaf: leaf[np.array(rows)], deltas)
        case = np.arange(len(rows), dtype=np.int32)
        batch = dataclasses.replace(chosen.batch, case=case)
        logits = forward.logits(params, model.config, batch, positions=chosen.read, deltas=own)
        right = jnp.argmax(logits, -1) == chosen.target_ids
        return np.asarray((right | ~chosen.target_mask).all(-1))

    indices = range(len(requests))
    return map_chunks(ask, indices, [0] * len(requests), size, "answers")
