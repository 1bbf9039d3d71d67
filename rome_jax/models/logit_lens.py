"""The logit lens: the next-token prediction that the residual stream after each layer already implies.

Axes: L layers, B rows, T tokens, V vocabulary, k tokens kept.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.data.tokens import TokenBatch
from rome_jax.files.checked import Count, check
from rome_jax.models.config import ModelConfig
from rome_jax.models.forward import Params, hidden_states, unembed
from rome_jax.models.interventions import Delta, Site


@functools.partial(jax.jit, static_argnames="config")
def logit_lens(
    params: Params,
    config: ModelConfig,
    batch: TokenBatch,
    *,
    positions: jax.Array | None = None,
    deltas: Delta | None = None,
) -> jax.Array:
    """Computes the next-token logits that the hidden state after each layer implies.

    The final LayerNorm and the head are applied to the residual stream after layers 0, ..., L - 1. Entry l belongs to
    layer l, as everywhere in this package, and the last entry equals `forward.logits`.

    Args:
      params: Params of the whole model.
      config: The model's config (static).
      batch: B rows, padded on either side; `batch.case` assigns a delta to each row.
      positions: int32 [B], the column to read in each row; None means the last real token.
      deltas: One edit, or N edits with a case axis.

    Returns:
      float32 [L, B, V].

    Raises:
      ValueError: If the shape of `positions` is not [B], or the deltas do not fit the rows.

    Example:
      >>> batch = rome_jax.encode(model.tokenizer, ["Gothulf Punby plays the sport of"])
      >>> lens = rome_jax.logit_lens(model.params, model.config, batch)
      >>> top_tokens(lens[-1], model.tokenizer, k=1)
      [[(' rowing', 0.98...)]]

    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).
    """
    num_rows, length = batch.ids.shape
    if positions is None:
        positions = length - 1 - jnp.argmax(jnp.flip(jnp.asarray(batch.mask), axis=-1), axis=-1)
    positions = jnp.asarray(positions)
    if positions.shape != (num_rows,):
        raise ValueError(
            f"positions has shape {positions.shape}: give one column per row, shape ({num_rows},)."
        )
    states = hidden_states(params, config, batch, deltas=deltas, capture=(Site.RESIDUAL,))
    residual = states.captures[Site.RESIDUAL]  # [L, B, T, D]
    residual = jnp.take_along_axis(residual, positions[None, :, None, None], axis=2)
    return unembed(params, config, residual[:, :, 0])


def top_tokens(logits: jax.Array, tokenizer: Any, k: int = 5) -> list[list[tuple[str, float]]]:
    """Finds the k most likely tokens of each row and their probabilities, for printing.

    Args:
      logits: float [M, V], such as `logit_lens(...)[:, 0]` of one prompt.
      tokenizer: The model's tokenizer.
      k: Number of tokens per row.

    Returns:
      M lists of k pairs (text, probability), most likely first.

    Raises:
      ValueError: If k is not a whole number from 1 to V.

    Example:
      >>> top_tokens(jnp.zeros((2, 1536)).at[:, 65].set(20), model.tokenizer, k=1)[0]
      [('a', 0.99...)]
    """
    k, size = check(Count, k, "k"), jnp.shape(logits)[-1]
    if k > size:
        raise ValueError(f"k={k}: the vocabulary has {size} tokens; give at most as many.")
    probabilities, ids = jax.lax.top_k(jax.nn.softmax(jnp.asarray(logits), axis=-1), k)
    return [
        [(tokenizer.decode([token]), probability) for token, probability in zip(*row, strict=True)]
        for row in zip(np.asarray(ids).tolist(), np.asarray(probabilities).tolist(), strict=True)
    ]
