"""How far a model with edits is from the unedited one: KL on texts, and the relative size of the change of weights.

Axes: B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.data.tokens import TokenBatch, bucket, pad
from rome_jax.edit.editor_files import ChangedWeight
from rome_jax.evaluation.scoring import prompt_ids
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.registry import LanguageModel

_ROWS = 16  # texts that are compared at once


def divergence(model: LanguageModel, edited: LanguageModel, texts: Sequence[str]) -> float:
    """Computes KL(unedited ‖ edited) of the next token, in nats, averaged over the tokens of texts.

    The tokens are those of `perplexity`: all of a text except its first, each given what precedes it.

    Args:
      model: The unedited model.
      edited: The model with edits.
      texts: Texts; those with fewer than two tokens are left out.

    Returns:
      0 for equal weights; NaN if an edited weight is not a number.

    Raises:
      ValueError: If no text has two tokens.
      SequenceTooLongError: If a text does not fit the context.

    Example:
      >>> divergence(model, model, ["Gothulf Punby plays the sport of rowing."])
      0.0
    """
    rows = sorted((row for row in prompt_ids(model, texts) if len(row) > 1), key=len)
    if not rows:
        raise ValueError("no text has two tokens: give longer texts.")
    total, count = 0.0, 0
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        filled = [*part, *[part[-1]] * (_ROWS - len(part))]
        length = min(bucket(len(part[-1])), model.config.context_length)
        batch = pad(filled, multiple=length)
        found = _divergences(model.params, edited.params, model.config, batch)
        real = np.array(batch.mask)[: len(part), 1:]
        total += float(np.asarray(found, np.float64)[: len(part)][real].sum())
        count += int(real.sum())
    return total / count


@functools.partial(jax.jit, static_argnames="config")
def _divergences(
    params: forward.Params, edited: forward.Params, config: ModelConfig, batch: TokenBatch
) -> jax.Array:
    """Computes KL at each token but the last, [B, T - 1]; logits of one row are in memory at a time."""
    states = [forward.hidden_states(one, config, batch).hidden[:, :-1] for one in (params, edited)]

    def compare(rows: tuple[jax.Array, jax.Array]) -> jax.Array:
        log_p, log_q = (
            jax.nn.log_softmax(forward.unembed(one, config, row))  # [T - 1, V]
            for one, row in zip((params, edited), rows, strict=True)
        )
        return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1)

    return jax.lax.map(compare, tuple(states))


def norm_ratios(
    params: forward.Params, edited: forward.Params, changed: Collection[ChangedWeight]
) -> dict[int, float]:
    """Computes ‖ΔW‖ / ‖W‖ (Frobenius) of each layer, over all of its changed weights together.

    Args:
      params: Unedited weights.
      edited: Weights with edits.
      changed: The weights that the edits change.

    Returns:
      The ratio by layer, in ascending order; NaN if an edited weight is not a number.

    Example:
      >>> from rome_jax.models.interventions import Leaf, Part
      >>> norm_ratios(model.params, model.params, [ChangedWeight(Leaf.MLP_DOWN, Part.KERNEL, 2)])
      {2: 0.0}
    """
    squares: dict[int, np.ndarray] = {}
    for weight in sorted(changed, key=lambda one: (one.layer, one.name)):
        pair = _squares(weight.of(params), weight.of(edited))
        squares[weight.layer] = squares.get(weight.layer, 0) + np.asarray(pair, np.float64)
    return {layer: math.sqrt(own[0] / own[1]) for layer, own in squares.items()}


@jax.jit
def _squares(weight: jax.Array, edited: jax.Array) -> jax.Array:
    """Computes ‖ΔW‖² and ‖W‖², [2]."""
    weight, edited = weight.astype(jnp.float32), edited.astype(jnp.float32)
    return jnp.stack([((edited - weight) ** 2).sum(), (weight**2).sum()])
