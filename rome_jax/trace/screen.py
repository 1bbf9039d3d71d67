"""Screening: one backward pass ranks all states, and only the best are restored.

Moving a corrupted state by α of the way to the clean one changes the score at the rate

    ∂score/∂α at α = 0  =  E over samples of ⟨∂score/∂h, h_clean − h_corrupted⟩,

and one backward pass gives it at every (token, layer) at once. It is the first term of the indirect effect and no more:
large moves saturate. A window's is the sum over its layers, as if each output were moved by itself; restored, the later
ones stay at their clean values and do not answer to the earlier ones. So it ranks, and `verify` restores what ranks
first. (Attribution patching, Nanda 2023, https://www.neelnanda.io/mechanistic-interpretability/attribution-patching,
under the paper's noise.)

Axes: T tokens, L layers, S noise samples, D width.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import PatchMode, RunPatch
from rome_jax.models.layers import Attention, Interventions, causal_mask
from rome_jax.models.registry import LanguageModel
from rome_jax.trace.prompt import TracePrompt
from rome_jax.trace.restore import DEFAULT_WINDOW, Measure, Runs, TraceKind, score
from rome_jax.trace.sweep import CHUNK_COLUMNS, check_window, scores


def screen(
    model: LanguageModel,
    prompt: TracePrompt,
    runs: Runs,
    *,
    kind: TraceKind = TraceKind.HIDDEN,
    window: int = DEFAULT_WINDOW,
    measure: Measure = Measure.PROBABILITY,
) -> np.ndarray:
    """First-order indirect effects.

    Args:
      model, prompt: what is traced.
      runs: from `sweep.start`.
      kind, window, measure: as for `sweep.trace`. The measure may be another than that of `runs` and `verify`.

    Returns:
      [prompt tokens, L]; 0 before the subject.

    Raises:
      ValueError: a window that the model has no room for.

    Example:
      >>> estimate = screen(model, prompt, runs)  # doctest: +SKIP
      >>> table = verify(model, prompt, runs, estimate, top=20)  # doctest: +SKIP
    """
    num_layers = model.config.num_layers
    check_window(kind, window, num_layers)
    rates = np.asarray(_rates(model.params, model.config, runs, kind=kind, measure=measure))
    first, stop = kind.layers(np.arange(num_layers), window)
    until = np.concatenate([np.zeros((1, rates.shape[1])), rates.cumsum(axis=0)])
    estimate = until[np.clip(stop, 0, num_layers)] - until[np.clip(first, 0, num_layers)]
    return estimate.T[: len(prompt.ids)]


def verify(
    model: LanguageModel,
    prompt: TracePrompt,
    runs: Runs,
    estimate: np.ndarray,
    *,
    top: int,
    kind: TraceKind = TraceKind.HIDDEN,
    window: int = DEFAULT_WINDOW,
    measure: Measure = Measure.PROBABILITY,
    chunk_columns: int = CHUNK_COLUMNS,
) -> np.ndarray:
    """Restores the `top` states of a screening.

    Args:
      model, prompt, runs, kind, window, measure, chunk_columns: as for `sweep.trace`.
      estimate: from `screen`.
      top: how many states, those with the largest estimates from the subject on; all if there are fewer.

    Returns:
      [prompt tokens, L], the scores of those states, NaN elsewhere.

    Raises:
      ValueError: a `top` below 1, or an estimate of another shape.
    """
    if top < 1:
        raise ValueError(f"top={top} must be at least 1.")
    shape = len(prompt.ids), model.config.num_layers
    if estimate.shape != shape:
        raise ValueError(
            f"estimate has shape {estimate.shape}: for this prompt and model it must be {shape}."
        )
    # Before the subject an estimate of 0 is exact, and not worth a restoration.
    first = prompt.span[0]
    chosen = np.argsort(-estimate[first:], axis=None, kind="stable")[:top]
    tokens, layers = np.unravel_index(first * shape[1] + chosen, shape)
    table = np.full(estimate.shape, np.nan, np.float32)
    table[tokens, layers] = scores(
        model,
        prompt,
        runs,
        tokens,
        layers,
        kind=kind,
        window=window,
        measure=measure,
        chunk_columns=chunk_columns,
    )
    return table


@functools.partial(jax.jit, static_argnames=("config", "kind", "measure"))
def _rates(
    params: forward.Params, config: ModelConfig, runs: Runs, *, kind: TraceKind, measure: Measure
) -> jax.Array:
    """[L, T]: the rate of each single layer and token."""
    clean, corrupted = runs.clean[kind.site], runs.corrupted[kind.site]
    length = len(runs.mask)
    column = jnp.arange(length)
    attention = Attention(column[None], causal_mask(runs.mask[None]))
    span = jnp.zeros(length, jnp.int32), jnp.full(length, config.num_layers)

    def mean_score(shift):
        patch = RunPatch(kind.site, PatchMode.ADD, *span, runs.mask, column, shift)
        hidden = forward.run_layers(
            params,
            config,
            runs.embedded,
            attention,
            interventions=Interventions((patch,)),
            remat=True,
        ).hidden
        logits = forward.unembed(params, config, hidden[:, runs.read])
        return score(logits, runs.target, measure).mean()

    gradient = jax.grad(mean_score)(jnp.zeros(corrupted.shape, jnp.float32))  # [L, S, T, D]
    return (gradient * (clean - corrupted)).sum(axis=(1, 3))
