"""Restorations compared with whole forward passes, and conditions that must not change them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.tokens import SequenceTooLongError, TokenBatch
from rome_jax.models import forward
from rome_jax.models.interventions import Site
from rome_jax.models.layers import Attention, Interventions
from rome_jax.models.masks import causal_mask
from rome_jax.models.patches import Patch, PatchMode, RunPatch
from rome_jax.trace import corruption, restore, sweep
from rome_jax.trace.corruption import SITES, Measure
from rome_jax.trace.prompt import TracePrompt
from rome_jax.trace.restore import TraceKind

TOLERANCE = 2e-6  # absolute, of probabilities
both_families = pytest.mark.parametrize("model", ["gpt2", "gptj"], indirect=True)
further = [pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "gpt_neox")]
all_families = pytest.mark.parametrize("model", ["gpt2", "gptj", *further], indirect=True)


def slowly(model, prompt, noise, kind, window, severed=(), measure=Measure.PROBABILITY):
    """Returns the table [tokens, layers] of one whole forward pass for each place.

    Each pass has the same patches, the corruption and one for each site and layer. Those that do nothing have an empty
    mask, so that one program serves all kinds.
    """
    ids = np.tile([prompt.ids + (prompt.target or (0,))[:-1]], (len(noise), 1))
    batch = TokenBatch(ids, np.ones(ids.shape, bool))
    column, num_layers = np.arange(ids.shape[1])[None], model.config.num_layers
    noise = np.asarray(prompt.spread(noise, ids.shape[1]))

    def embedded(noise):
        return Patch(Site.EMBED, PatchMode.ADD, np.int32(0), column >= 0, noise)

    def captured(patch):
        values = forward.capture(model.params, model.config, batch, SITES, patches=(patch,))
        return jax.device_get(values)

    leave, corrupt = embedded(np.zeros_like(noise)), embedded(noise)
    clean, corrupted = captured(leave), captured(corrupt)

    def log_probs(first, token, center):
        restored = range(*kind.layers(center, window))
        patches = [first]
        for site in SITES:
            values, layers = (
                (clean, restored) if site is kind.site else (corrupted, range(num_layers))
            )
            for layer in range(num_layers):
                active = layer in layers and (site is kind.site or site in severed)
                mask = (column == token) & active
                patches.append(
                    Patch(site, PatchMode.REPLACE, np.int32(layer), mask, values[site][layer])
                )
        logits = forward.logits(model.params, model.config, batch, patches=tuple(patches))
        return jax.nn.log_softmax(np.asarray(logits)[:, prompt.answer_columns])

    target = prompt.target or (int(log_probs(leave, -1, 0)[0, -1].argmax()),)
    table = np.zeros((len(prompt.ids), num_layers))
    for place in np.ndindex(*table.shape):
        found = np.asarray(log_probs(corrupt, *place))
        joint = sum(found[:, m, token] for m, token in enumerate(target))
        table[place] = (np.exp(joint) if measure is Measure.PROBABILITY else joint).mean()
    return table


@all_families
@pytest.mark.parametrize("kind", TraceKind)
def test_a_table_is_that_of_whole_passes(model, prompt, noise, runs, kind):
    expected = slowly(model, prompt, noise, kind, 2)
    table = sweep.trace(runs, kind=kind, window=2)
    np.testing.assert_allclose(table, expected, rtol=0, atol=TOLERANCE)
    assert np.ptp(expected) > 100 * TOLERANCE, "restored states matter"


@all_families
@pytest.mark.parametrize("site", [Site.MLP_OUT, Site.ATTN_OUT])
def test_a_severed_table_is_that_of_whole_passes(model, prompt, noise, runs, site):
    expected = slowly(model, prompt, noise, TraceKind.HIDDEN, 1, (site,))
    table = sweep.trace(runs, severed=(site,))
    np.testing.assert_allclose(table, expected, rtol=0, atol=TOLERANCE)
    assert np.abs(table - sweep.trace(runs)).max() > 20 * TOLERANCE
    same = sweep.trace(runs, severed=(site,), held=runs)
    np.testing.assert_allclose(same, table, rtol=0, atol=TOLERANCE)


def test_a_target_of_several_tokens(model, noise):
    text, measure = "The mother tongue of Linux is", Measure.LOG_PROBABILITY
    prompt = TracePrompt.of(model.tokenizer, text, "Linux", target="the English tongue")
    assert len(prompt.target) > 2
    runs = sweep.start(model, prompt, noise, measure=measure)
    table = sweep.trace(runs)
    expected = slowly(model, prompt, noise, TraceKind.HIDDEN, 1, measure=measure)
    np.testing.assert_allclose(table, expected, rtol=0, atol=5e-5)  # sums of logarithms near −20
    assert table.shape == (len(prompt.ids), model.config.num_layers)


@pytest.mark.parametrize(("kind", "chunk_columns"), [(TraceKind.HIDDEN, 1), (TraceKind.ATTN, 17)])
def test_chunks_and_their_company_do_not_matter(prompt, runs, kind, chunk_columns):
    whole = sweep.trace(runs, kind=kind, window=3)
    first = prompt.span[0]  # The longest restoration decides the shape, so it is always among them.
    for others in ([], [3, 11], [11, 8, 10], [9, 10, 11, 8]):
        tokens = [first, *others]
        table = sweep.trace(runs, kind=kind, window=3, tokens=tokens, chunk_columns=chunk_columns)
        np.testing.assert_allclose(table, whole[tokens], rtol=0, atol=TOLERANCE)


def test_padding_does_not_matter(model, prompt, noise, runs, monkeypatch):
    table = sweep.trace(runs)
    monkeypatch.setattr("rome_jax.trace.prompt._LENGTH_MULTIPLE", 32)
    longer = sweep.start(model, prompt, noise)
    assert len(longer.states.mask) == 32 > len(runs.states.mask)
    np.testing.assert_allclose(sweep.trace(longer), table, rtol=0, atol=TOLERANCE)


def test_samples_do_not_see_each_other(model, prompt, noise):
    whole, *parts = (
        sweep.trace(sweep.start(model, prompt, noise[np.array(samples)]))
        for samples in ((0, 1, 2), (0, 0, 0), (1, 2, 1), (2, 1, 2))
    )
    assert np.abs(parts[0] - whole).max() > 100 * TOLERANCE
    np.testing.assert_allclose(sum(parts) / 3, whole, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", TraceKind)
def test_no_noise_has_no_effect(model, prompt, noise, kind):
    runs = sweep.start(model, prompt, jnp.zeros_like(noise))
    assert runs.corrupted_score == pytest.approx(runs.clean_score, abs=TOLERANCE)
    for window in range(1, 6):
        table = sweep.trace(runs, kind=kind, window=window)
        np.testing.assert_allclose(table, runs.clean_score, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", [TraceKind.HIDDEN, TraceKind.ATTN])
def test_restoring_a_token_before_the_subject_changes_nothing(prompt, runs, kind):
    """These places run, from layer 0, only if severed modules keep values of given runs, here the same ones."""
    for window in range(1, 6):
        table = sweep.trace(runs, kind=kind, window=window, severed=(Site.MLP_OUT,), held=runs)
        before = table[: prompt.span[0]]
        assert before.size
        np.testing.assert_allclose(before, runs.corrupted_score, rtol=0, atol=TOLERANCE)


def test_the_last_state_is_the_answer(runs):
    table = sweep.trace(runs)
    assert abs(runs.clean_score - runs.corrupted_score) > 100 * TOLERANCE
    assert table[-1, -1] == pytest.approx(runs.clean_score, abs=TOLERANCE)


@functools.partial(jax.jit, static_argnames="config")
def restored_everywhere(params, config, states, embedded, active):
    """Returns the scores [S] with the clean values of each active site at all tokens and layers."""
    length = len(states.mask)
    column = jnp.arange(length)
    span = jnp.zeros(length, jnp.int32), jnp.full(length, config.num_layers)
    patches = tuple(
        RunPatch(
            site, PatchMode.REPLACE, *span, states.mask & active[site], column, states.clean[site]
        )
        for site in SITES
    )
    attention = Attention(column[None], causal_mask(states.mask[None]))
    hidden = forward.run_layers(
        params, config, embedded, attention, interventions=Interventions(patches)
    ).hidden
    logits = forward.unembed(params, config, hidden[:, states.read])
    return corruption.score(logits, states.target, Measure.PROBABILITY)


@pytest.mark.parametrize("kind", TraceKind)
def test_restoring_everything_everywhere_gives_the_clean_answer(model, runs, kind):
    states = runs.states
    embedded = np.asarray(states.embedded)
    if kind is not TraceKind.HIDDEN:
        # Restored module outputs add up on the embedding, so this one has to be clean too.
        first = {site: np.asarray(states.clean[site][0]) for site in SITES}
        clean = first[Site.RESIDUAL] - first[Site.MLP_OUT] - first[Site.ATTN_OUT]
        embedded = np.broadcast_to(clean, embedded.shape)
    active = {site: site is kind.site for site in SITES}
    found = restored_everywhere(model.params, model.config, states, embedded, active)
    np.testing.assert_allclose(found, runs.clean_score, rtol=0, atol=TOLERANCE)


def test_a_data_set_compiles_a_handful_of_programs(model, noise):
    """Prompts of similar length share one program for their runs and one for each kind."""
    texts = [f"{a} mother tongue of Linux {b}" for a in ("The", "A") for b in ("is", "of")]
    kinds = (TraceKind.HIDDEN, TraceKind.MLP)

    def compiled():
        programs = corruption.run_clean_and_corrupted, restore.restore
        return np.array([program._cache_size() for program in programs])

    before = compiled()
    for text in texts:
        prompt = TracePrompt.of(model.tokenizer, text, "Linux")
        runs = sweep.start(model, prompt, noise)
        for kind in kinds:
            for window in (2, 3):
                sweep.trace(runs, kind=kind, window=window)
    assert (compiled() - before <= [1, len(kinds)]).all()


# Bad input


@pytest.mark.parametrize("window", [0, -1, 100])
def test_a_window_that_does_not_fit_is_named(runs, window):
    with pytest.raises(ValueError, match=f"window={window}"):
        sweep.trace(runs, kind=TraceKind.MLP, window=window)


def test_tokens_beyond_the_prompt_are_named(runs):
    with pytest.raises(ValueError, match=r"tokens=\[99\]"):
        sweep.trace(runs, tokens=[99])


@pytest.mark.parametrize("shape", [(3, 1, 5), (0, 1, None), (1, 7, None)])
def test_noise_of_another_shape_is_named(model, prompt, shape):
    shape = tuple(size or model.config.width for size in shape) if shape[0] else (0, 1, 18)
    with pytest.raises(ValueError, match="noise has shape"):
        sweep.start(model, prompt, jnp.zeros(shape))


def test_a_chunk_without_columns_is_named(runs):
    with pytest.raises(ValueError, match="chunk_columns=0"):
        sweep.trace(runs, chunk_columns=0)


def test_a_prompt_beyond_the_context_is_named(model):
    prompt = TracePrompt.of(model.tokenizer, "Linux" + " is" * 70, "Linux")
    with pytest.raises(SequenceTooLongError, match="context of 64"):
        prompt.arrays(model.config.context_length)
