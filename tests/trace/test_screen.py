"""First-order estimates against the small steps that they stand for, and what is verified of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.models import forward
from rome_jax.models.interventions import PatchMode, RunPatch
from rome_jax.models.layers import Attention, Interventions, causal_mask
from rome_jax.trace import sweep
from rome_jax.trace.restore import Measure, TraceKind, score
from rome_jax.trace.screen import screen, verify

STEP = 0.05


@functools.partial(jax.jit, static_argnames=("config", "measure"))
def moved(params, config, runs, token, layer, steps, *, measure):
    """The mean score after moving what is at (token, layer) by shares of the way to the clean values, one a kind."""
    column = jnp.arange(len(runs.mask))
    span = jnp.full_like(column, layer), jnp.full_like(column, layer + 1)
    patches = []
    for kind, step in zip(TraceKind, steps, strict=True):
        clean, corrupted = runs.clean[kind.site], runs.corrupted[kind.site]
        there = (column == token) & (step != 0)
        values = corrupted + step * (clean - corrupted)
        patches.append(RunPatch(kind.site, PatchMode.REPLACE, *span, there, column, values))
    attention = Attention(column[None], causal_mask(runs.mask[None]))
    hidden = forward.run_layers(
        params, config, runs.embedded, attention, interventions=Interventions(tuple(patches))
    ).hidden
    logits = forward.unembed(params, config, hidden[:, runs.read])
    return score(logits, runs.target, measure).mean()


def rates(model, prompt, runs, kind, measure):
    """[tokens, layers], rates of the score by central differences over two steps, extrapolated to none."""
    chosen = np.array([one is kind for one in TraceKind], np.float32)

    def slope(token, layer, step):
        where = np.int32(token), np.int32(layer)
        ends = [
            float(moved(model.params, model.config, runs, *where, by * chosen, measure=measure))
            for by in (step, -step)
        ]
        return (ends[0] - ends[1]) / (2 * step)

    table = np.zeros((len(prompt.ids), model.config.num_layers))
    for place in np.ndindex(*table.shape):
        table[place] = (4 * slope(*place, STEP) - slope(*place, 2 * STEP)) / 3
    return table


@pytest.mark.parametrize("kind", TraceKind)
@pytest.mark.parametrize(
    ("model", "measure"),
    [("gpt2", Measure.LOG_PROBABILITY), ("gptj", Measure.PROBABILITY)],
    indirect=["model"],
)
def test_an_estimate_is_the_rate_of_a_small_restoration(model, prompt, runs, kind, measure):
    wanted = rates(model, prompt, runs, kind, measure)
    found = screen(model, prompt, runs, kind=kind, window=1, measure=measure)
    tolerance = 5e-4 * np.abs(wanted).max()  # what float32 leaves of a difference
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(found[: prompt.span[0]], 0)
    assert (np.abs(found[prompt.span[0] :]) > tolerance).mean() > 0.5


def test_a_window_is_the_sum_of_its_layers(model, prompt, runs):
    single = screen(model, prompt, runs, kind=TraceKind.MLP, window=1)
    window = screen(model, prompt, runs, kind=TraceKind.MLP, window=2)
    for layer in range(model.config.num_layers):
        wanted = single[:, max(layer - 1, 0) : layer + 1].sum(1)
        np.testing.assert_allclose(window[:, layer], wanted, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("kind", [TraceKind.HIDDEN, TraceKind.MLP])
def test_what_ranks_first_is_verified(model, prompt, runs, kind):
    whole = sweep.trace(model, prompt, runs, kind=kind, window=2)
    estimate = np.random.default_rng(0).standard_normal(whole.shape)
    estimate[: prompt.span[0]] += 10  # no state before the subject is worth a restoration
    found = verify(model, prompt, runs, estimate, top=4, kind=kind, window=2)
    known = ~np.isnan(found)
    after = np.arange(len(whole)) >= prompt.span[0]
    assert known.sum() == 4 and not known[~after].any()
    assert estimate[known].min() > estimate[~known & after[:, None]].max()
    np.testing.assert_allclose(found[known], whole[known], rtol=0, atol=2e-6)
    every = verify(model, prompt, runs, estimate, top=10_000, kind=kind, window=2)
    np.testing.assert_allclose(every[after], whole[after], rtol=0, atol=2e-6)


@pytest.mark.parametrize("top", [0, -3])
def test_a_screening_of_nothing_is_an_error(model, prompt, runs, top):
    estimate = np.zeros((len(prompt.ids), model.config.num_layers))
    with pytest.raises(ValueError, match=f"top={top}"):
        verify(model, prompt, runs, estimate, top=top)


def test_an_estimate_of_another_prompt_is_an_error(model, prompt, runs):
    with pytest.raises(ValueError, match="estimate has shape"):
        verify(model, prompt, runs, np.zeros((99, 3)), top=1)


def test_a_window_without_room_is_an_error(model, prompt, runs):
    with pytest.raises(ValueError, match="window=0"):
        screen(model, prompt, runs, kind=TraceKind.ATTN, window=0)
