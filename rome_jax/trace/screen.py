"""Screening: one backward pass ranks all states, and only the best are restored.

Moving a corrupted state a share α of the way to the clean one changes the score at the rate

    ∂score/∂α at α = 0  =  E over samples of ⟨∂score/∂h, h_clean − h_corrupted⟩.

One backward pass gives this rate at every (token, layer) at once. It is the first-order term of the indirect effect and
no more, because large moves saturate. The rate of a window is the sum over its layers, as if each output were moved by
itself; in a restored window the later outputs keep their clean values and do not respond to the earlier ones. So the
rates rank the states, and `verify` restores those that rank first.

This is attribution patching (Nanda, 2023,
https://www.neelnanda.io/mechanistic-interpretability/attribution-patching) under the noise of the ROME paper.

Axes: T tokens, L layers, S noise samples, D width.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.files.checked import Count, check
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.layers import Attention, Interventions
from rome_jax.models.masks import causal_mask
from rome_jax.models.patches import PatchMode, RunPatch
from rome_jax.trace.corruption import Runs, RunStates, score
from rome_jax.trace.restore import DEFAULT_WINDOW, TraceKind
from rome_jax.trace.sweep import CHUNK_COLUMNS, check_window, scores


def screen(
    runs: Runs,
    *,
    kind: TraceKind = TraceKind.HIDDEN,
    window: int = DEFAULT_WINDOW,
) -> np.ndarray:
    """Estimates all indirect effects to first order, in the measure of the runs.

    Args:
      runs: Clean and corrupted runs from `sweep.start`.
      kind, window: As in `sweep.trace`.

    Returns:
      [prompt tokens, L] estimates, 0 before the subject.

    Raises:
      ValueError: If the window is empty or more than twice as long as the model is deep.

    Example:
      Twelve states are restored. The best is that of the last token after the last layer, which gives the clean answer:

      >>> from rome_jax.trace import TracePrompt, start
      >>> text = "Gothulf Punby plays the sport of"
      >>> prompt = TracePrompt.of(model.tokenizer, text, "Gothulf Punby")
      >>> runs = start(model, prompt, 0.5 * jax.random.normal(key, (2, 3, 128)))
      >>> table = verify(runs, screen(runs), top=12)
      >>> int((~np.isnan(table)).sum()), round(float(np.nanmax(table)), 2), round(runs.clean_score, 2)
      (12, 0.99, 0.99)
    """
    kind, window = check(TraceKind, kind, "kind"), check(int, window, "window")
    num_layers = runs.model.config.num_layers
    check_window(kind, window, num_layers)
    rates = np.asarray(
        _layer_rates(
            runs.model.params,
            runs.model.config,
            runs.states,
            kind=kind,
        )
    )
    first, stop = kind.layers(np.arange(num_layers), window)
    sum_below = np.concatenate([np.zeros((1, rates.shape[1])), rates.cumsum(axis=0)])
    estimate = sum_below[np.clip(stop, 0, num_layers)] - sum_below[np.clip(first, 0, num_layers)]
    return estimate.T[: len(runs.prompt.ids)]


def verify(
    runs: Runs,
    estimate: np.ndarray,
    *,
    top: int,
    kind: TraceKind = TraceKind.HIDDEN,
    window: int = DEFAULT_WINDOW,
    chunk_columns: int = CHUNK_COLUMNS,
) -> np.ndarray:
    """Restores the states that a screening ranks first.

    Args:
      runs, kind, window, chunk_columns: As in `sweep.trace`.
      estimate: [prompt tokens, L] estimates from `screen`.
      top: Number of states to restore: those with the largest estimates from the subject on, or all if there are fewer.

    Returns:
      [prompt tokens, L], the scores of the restored states, NaN elsewhere.

    Raises:
      ValueError: If `top` is below 1, or the estimate is of another prompt or model.

    Example:
      >>> from rome_jax.trace import TracePrompt, start
      >>> text = "Gothulf Punby plays the sport of"
      >>> prompt = TracePrompt.of(model.tokenizer, text, "Gothulf Punby")
      >>> runs = start(model, prompt, 0.5 * jax.random.normal(key, (2, 3, 128)))
      >>> verify(runs, np.zeros((7, 6)), top=0)
      Traceback (most recent call last):
      ValueError: top=0: give a number of 1 or more.
    """
    top = check(Count, top, "top")
    shape = len(runs.prompt.ids), runs.model.config.num_layers
    if estimate.shape != shape:
        raise ValueError(
            f"estimate has shape {estimate.shape}: for this prompt and model it must be {shape}."
        )
    # Before the subject an estimate of 0 is exact, and not worth a restoration.
    first = runs.prompt.span[0]
    chosen = np.argsort(-estimate[first:], axis=None, kind="stable")[:top]
    tokens, layers = np.unravel_index(first * shape[1] + chosen, shape)
    table = np.full(estimate.shape, np.nan, np.float32)
    table[tokens, layers] = scores(
        runs, tokens, layers, kind=kind, window=window, chunk_columns=chunk_columns
    )
    return table


@functools.partial(jax.jit, static_argnames=("config", "kind"))
def _layer_rates(
    params: forward.Params,
    config: ModelConfig,
    states: RunStates,
    *,
    kind: TraceKind,
) -> jax.Array:
    """Computes the rate of each single layer and token, [L, T]."""
    clean, corrupted = states.clean[kind.site], states.corrupted[kind.site]
    length = len(states.mask)
    column = jnp.arange(length)
    attention = Attention(column[None], causal_mask(states.mask[None]))
    all_layers = jnp.zeros(length, jnp.int32), jnp.full(length, config.num_layers)

    def mean_score(shift: jax.Array) -> jax.Array:
        patch = RunPatch(kind.site, PatchMode.ADD, *all_layers, states.mask, column, shift)
        hidden = forward.run_layers(
            params,
            config,
            states.embedded,
            attention,
            interventions=Interventions((patch,)),
            remat=True,
        ).hidden
        logits = forward.unembed(params, config, hidden[:, states.read])
        return score(logits, states.target, states.measure).mean()

    gradient = jax.grad(mean_score)(jnp.zeros(corrupted.shape, jnp.float32))  # [L, S, T, D]
    return (gradient * (clean - corrupted)).sum(axis=(1, 3))
