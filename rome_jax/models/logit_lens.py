"""The logit lens: what each layer's residual stream would say if it were the last.

Axes: L layers, B rows, T tokens, V vocabulary, k tokens kept.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.data.tokens import TokenBatch
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
    """Next-token logits that the hidden state after each layer already implies.

    The final LayerNorm and the head are applied to the residual stream after layers 0, ..., L - 1. Entry l is layer
    l, as everywhere in this package, and the last entry is what `forward.logits` gives.

    Args:
      params, config: the model.
      batch: B rows, padded on either side; `batch.case` says which delta each row sees.
      positions: int32 [B], the column to look at in each row; None means its last real token.
      deltas: one edit, or N with a case axis.

    Returns:
      float32 [L, B, V].

    Raises:
      ValueError: positions of another shape than [B], or deltas that do not fit the rows.

    Example:
      >>> lens = logit_lens(model.params, model.config, batch)  # doctest: +SKIP
      >>> top_tokens(lens[:, 0], model.tokenizer)  # doctest: +SKIP

    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).
    """
    num_rows, length = batch.ids.shape
    if positions is None:
        positions = length - 1 - jnp.argmax(jnp.flip(jnp.asarray(batch.mask), axis=-1), axis=-1)
    positions = jnp.asarray(positions)
    if positions.shape != (num_rows,):
        raise ValueError(
            f"positions has shape {positions.shape}: give one column a row, ({num_rows},)."
        )
    states = hidden_states(params, config, batch, deltas=deltas, capture=(Site.RESIDUAL,))
    residual = states.captures[Site.RESIDUAL]  # [L, B, T, D]
    residual = jnp.take_along_axis(residual, positions[None, :, None, None], axis=2)
    return unembed(params, config, residual[:, :, 0])


def top_tokens(logits: jax.Array, tokenizer, k: int = 5) -> list[list[tuple[str, float]]]:
    """The k most likely tokens of each row with their probabilities, for printing.

    Args:
      logits: float [M, V], such as one prompt's `logit_lens(...)[:, 0]`.
      tokenizer: of the model.
      k: how many.

    Returns:
      M lists of k (text, probability), most likely first.
    """
    probabilities, ids = jax.lax.top_k(jax.nn.softmax(jnp.asarray(logits), axis=-1), k)
    return [
        [(tokenizer.decode([token]), probability) for token, probability in zip(*row, strict=True)]
        for row in zip(np.asarray(ids).tolist(), np.asarray(probabilities).tolist(), strict=True)
    ]
