"""First-order estimates compared with small restorations, and the states that are verified."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.models import forward
from rome_jax.models.layers import Attention, Interventions
from rome_jax.models.masks import causal_mask
from rome_jax.models.patches import PatchMode, RunPatch
from rome_jax.trace import sweep
from rome_jax.trace.corruption import Measure, score
from rome_jax.trace.restore import TraceKind
from rome_jax.trace.screen import screen, verify

STEP = 0.05


@functools.partial(jax.jit, static_argnames=("config", "measure"))
def moved(params, config, states, token, layer, steps, *, measure):
    """Returns the mean score after moving each kind's values at (token, layer) a share of the way to the clean ones."""
    column = jnp.arange(len(states.mask))
    span = jnp.full_like(column, layer), jnp.full_like(column, layer + 1)
    patches = []
    for kind, step in zip(TraceKind, steps, strict=True):
        clean, corrupted = states.clean[kind.site], states.corrupted[kind.site]
        there = (column == token) & (step != 0)
        values = corrupted + step * (clean - corrupted)
        patches.append(RunPatch(kind.site, PatchMode.REPLACE, *span, there, column, values))
    attention = Attention(column[None], causal_mask(states.mask[None]))
    hidden = forward.run_layers(
        params, config, states.embedded, attention, interventions=Interventions(tuple(patches))
    ).hidden
    logits = forward.unembed(params, config, hidden[:, states.read])
    return score(logits, states.target, measure).mean()


def rates(model, prompt, runs, kind, measure):
    """Returns the rates of the score [tokens, layers] by central differences, extrapolated to steps of size 0."""
    chosen = np.array([one is kind for one in TraceKind], np.float32)

    def slope(token, layer, step):
        where = np.int32(token), np.int32(layer)
        ends = [
            float(
                moved(model.params, model.config, runs.states, *where, by * chosen, measure=measure)
            )
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
def test_an_estimate_is_the_rate_of_a_small_restoration(model, prompt, noise, kind, measure):
    runs = sweep.start(model, prompt, noise, measure=measure)
    expected = rates(model, prompt, runs, kind, measure)
    found = screen(runs, kind=kind, window=1)
    tolerance = 5e-4 * np.abs(expected).max()  # of differences in float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(found[: prompt.span[0]], 0)
    assert (np.abs(found[prompt.span[0] :]) > tolerance).mean() > 0.5


def test_a_screening_runs_at_the_precision_of_the_model(model, runs):
    tf32 = model.replace(config=dataclasses.replace(model.config, precision="tf32"))
    exact, rounded = screen(runs), screen(dataclasses.replace(runs, model=tf32))
    assert 1e-5 < np.abs(rounded - exact).max() / np.abs(exact).max() < 1e-2


@pytest.mark.parametrize("model", ["gptj"], indirect=True)
def test_a_window_is_the_sum_of_its_layers(model, runs):
    single = screen(runs, kind=TraceKind.MLP, window=1)
    window = screen(runs, kind=TraceKind.MLP, window=2)
    for layer in range(model.config.num_layers):
        expected = single[:, max(layer - 1, 0) : layer + 1].sum(1)
        np.testing.assert_allclose(window[:, layer], expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("kind", [TraceKind.HIDDEN, TraceKind.MLP])
def test_the_states_that_rank_first_are_verified(prompt, runs, kind):
    whole = sweep.trace(runs, kind=kind, window=2)
    estimate = np.random.default_rng(0).standard_normal(whole.shape)
    estimate[: prompt.span[0]] += 10  # States before the subject are never restored.
    found = verify(runs, estimate, top=9, kind=kind, window=2)
    known = ~np.isnan(found)
    after = np.arange(len(whole)) >= prompt.span[0]
    assert known.sum() == 9 and not known[~after].any()
    assert estimate[known].min() > estimate[~known & after[:, None]].max()
    np.testing.assert_allclose(found[known], whole[known], rtol=0, atol=2e-6)
    every = verify(runs, estimate, top=10_000, kind=kind, window=2)
    np.testing.assert_allclose(every[after], whole[after], rtol=0, atol=2e-6)


@pytest.mark.parametrize("top", [0, -3])
def test_verifying_no_state_is_an_error(model, prompt, runs, top):
    estimate = np.zeros((len(prompt.ids), model.config.num_layers))
    with pytest.raises(ValueError, match=f"top={top}"):
        verify(runs, estimate, top=top)


def test_an_estimate_of_another_prompt_is_an_error(runs):
    with pytest.raises(ValueError, match="estimate has shape"):
        verify(runs, np.zeros((99, 3)), top=1)


def test_an_empty_window_is_an_error(runs):
    with pytest.raises(ValueError, match="window=0"):
        screen(runs, kind=TraceKind.ATTN, window=0)
