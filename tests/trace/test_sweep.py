"""Restorations against whole forward passes, and what must not change them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rome_jax.data.tokens import SequenceTooLongError, TokenBatch
from rome_jax.models import forward
from rome_jax.models.interventions import Patch, PatchMode, RunPatch, Site
from rome_jax.models.layers import Attention, Interventions, causal_mask
from rome_jax.trace import restore, sweep
from rome_jax.trace.prompt import TracePrompt
from rome_jax.trace.restore import Measure, TraceKind

TOLERANCE = 2e-6  # absolute, of probabilities
both = pytest.mark.parametrize("model", ["gpt2", "gptj"], indirect=True)


def slowly(model, prompt, noise, kind, window, severed=(), measure=Measure.PROBABILITY):
    """[tokens, layers], one whole forward pass for each."""
    target = prompt.target or (None,)
    ids = jnp.array([prompt.ids + (prompt.target or (0,))[:-1]])
    batch = TokenBatch(ids, jnp.ones(ids.shape, bool))
    many = TokenBatch(jnp.tile(ids, (len(noise), 1)), jnp.ones((len(noise), ids.shape[1]), bool))
    column = jnp.arange(ids.shape[1])[None]
    spread = prompt.spread(noise, ids.shape[1])
    corrupt = Patch(Site.EMBED, PatchMode.ADD, jnp.int32(0), column >= 0, spread)
    sites = (kind.site, *severed)
    clean = forward.capture(model.params, model.config, batch, sites)
    corrupted = forward.capture(model.params, model.config, many, sites, patches=(corrupt,))
    if prompt.target is None:
        logits = forward.logits(model.params, model.config, batch)
        target = (int(logits[0, -1].argmax()),)
    read = prompt.answer_columns
    table = np.zeros((len(prompt.ids), model.config.num_layers))
    for t in range(table.shape[0]):
        here = column == t
        for layer in range(table.shape[1]):
            first, stop = kind.layers(layer, window)
            patches = [corrupt]
            for i in range(max(first, 0), min(stop, table.shape[1])):
                new = clean[kind.site][i]
                patches.append(Patch(kind.site, PatchMode.REPLACE, jnp.int32(i), here, new))
            for site in severed:
                for i in range(table.shape[1]):
                    held = corrupted[site][i]
                    patches.append(Patch(site, PatchMode.REPLACE, jnp.int32(i), here, held))
            logits = forward.logits(model.params, model.config, many, patches=tuple(patches))
            log_probs = jax.nn.log_softmax(logits[:, read])
            joint = sum(log_probs[:, m, token] for m, token in enumerate(target))
            table[t, layer] = (jnp.exp(joint) if measure is Measure.PROBABILITY else joint).mean()
    return table


@both
@pytest.mark.parametrize("kind", TraceKind)
def test_a_table_is_that_of_whole_passes(model, prompt, noise, runs, kind):
    wanted = slowly(model, prompt, noise, kind, 2)
    table = sweep.trace(model, prompt, runs, kind=kind, window=2)
    np.testing.assert_allclose(table, wanted, rtol=0, atol=TOLERANCE)
    assert np.ptp(wanted) > 100 * TOLERANCE, "states that are restored matter"


@both
@pytest.mark.parametrize("site", [Site.MLP_OUT, Site.ATTN_OUT])
def test_a_severed_table_is_that_of_whole_passes(model, prompt, noise, runs, site):
    wanted = slowly(model, prompt, noise, TraceKind.HIDDEN, 1, (site,))
    table = sweep.trace(model, prompt, runs, severed=(site,))
    np.testing.assert_allclose(table, wanted, rtol=0, atol=TOLERANCE)
    assert np.abs(table - sweep.trace(model, prompt, runs)).max() > 100 * TOLERANCE
    same = sweep.trace(model, prompt, runs, severed=(site,), held=runs)
    np.testing.assert_allclose(same, table, rtol=0, atol=TOLERANCE)


def test_a_target_of_several_tokens(model, noise):
    text, measure = "The mother tongue of Linux is", Measure.LOG_PROBABILITY
    prompt = TracePrompt.of(model.tokenizer, text, "Linux", target="the English tongue")
    assert len(prompt.target) > 2
    runs = sweep.start(model, prompt, noise, measure=measure)
    table = sweep.trace(model, prompt, runs, measure=measure)
    wanted = slowly(model, prompt, noise, TraceKind.HIDDEN, 1, measure=measure)
    np.testing.assert_allclose(table, wanted, rtol=0, atol=5e-5)  # sums of logarithms near −20
    assert table.shape == (len(prompt.ids), model.config.num_layers)


@settings(deadline=None, max_examples=5)  # few: shapes are compiled
@given(chunk_columns=st.sampled_from([1, 17]), data=st.data())
def test_chunks_and_company_do_not_matter(model, prompt, noise, runs, chunk_columns, data):
    kind = data.draw(st.sampled_from([TraceKind.HIDDEN, TraceKind.ATTN]))
    whole = sweep.trace(model, prompt, runs, kind=kind, window=3)
    tokens = data.draw(st.lists(st.integers(0, len(prompt.ids) - 1), min_size=1, unique=True))
    table = sweep.trace(
        model, prompt, runs, kind=kind, window=3, tokens=tokens, chunk_columns=chunk_columns
    )
    np.testing.assert_allclose(table, whole[tokens], rtol=0, atol=TOLERANCE)


def test_padding_does_not_matter(model, prompt, noise, runs, monkeypatch):
    table = sweep.trace(model, prompt, runs)
    monkeypatch.setattr("rome_jax.trace.prompt._LENGTH_MULTIPLE", 32)
    longer = sweep.start(model, prompt, noise)
    assert len(longer.mask) == 32 > len(runs.mask)
    np.testing.assert_allclose(sweep.trace(model, prompt, longer), table, rtol=0, atol=TOLERANCE)


def test_a_sample_does_not_see_the_others(model, prompt, noise):
    tables = []
    for part in (noise, noise[:1], noise[1:]):
        tables.append(sweep.trace(model, prompt, sweep.start(model, prompt, part)))
    np.testing.assert_allclose(tables[0], (tables[1] + 2 * tables[2]) / 3, rtol=0, atol=TOLERANCE)


@settings(deadline=None, max_examples=10)
@given(kind=st.sampled_from(TraceKind), window=st.integers(1, 5))
def test_no_noise_has_no_effect(model, prompt, noise, kind, window):
    runs = sweep.start(model, prompt, jnp.zeros_like(noise))
    assert float(runs.corrupted_score) == pytest.approx(float(runs.clean_score), abs=TOLERANCE)
    table = sweep.trace(model, prompt, runs, kind=kind, window=window)
    np.testing.assert_allclose(table, float(runs.clean_score), rtol=0, atol=TOLERANCE)


@settings(deadline=None, max_examples=10)
@given(kind=st.sampled_from(TraceKind), window=st.integers(1, 5))
def test_before_the_subject_nothing_helps(model, prompt, runs, kind, window):
    """Run all the same, from layer 0, under values held that are those of the very runs."""
    before = np.arange(prompt.span[0])
    table = sweep.trace(model, prompt, runs, kind=kind, window=window, tokens=before, held=runs)
    assert table.size
    np.testing.assert_allclose(table, float(runs.corrupted_score), rtol=0, atol=TOLERANCE)


def test_the_last_state_is_the_answer(model, prompt, runs):
    table = sweep.trace(model, prompt, runs)
    clean = float(runs.clean_score)
    assert abs(clean - float(runs.corrupted_score)) > 100 * TOLERANCE
    assert table[-1, -1] == pytest.approx(clean, abs=TOLERANCE), "the last state is the answer"


@pytest.mark.parametrize("kind", TraceKind)
def test_restoring_everything_everywhere_gives_the_clean_answer(model, runs, kind):
    length, num_layers = len(runs.mask), model.config.num_layers
    span = jnp.zeros(length, jnp.int32), jnp.full(length, num_layers)
    column, values = jnp.arange(length), runs.clean[kind.site]
    patch = RunPatch(kind.site, PatchMode.REPLACE, *span, runs.mask, column, values)
    attention = Attention(column[None], causal_mask(runs.mask[None]))
    # Outputs of modules add up over the corrupted embedding, which only hidden states overwrite.
    embedded = runs.embedded
    if kind is not TraceKind.HIDDEN:
        span = (
            runs.clean[Site.RESIDUAL][0]
            - runs.clean[Site.MLP_OUT][0]
            - runs.clean[Site.ATTN_OUT][0]
        )
        embedded = jnp.broadcast_to(span, embedded.shape)
    hidden = forward.run_layers(
        model.params,
        model.config,
        embedded,
        attention,
        interventions=Interventions((patch,)),
    ).hidden
    logits = forward.unembed(model.params, model.config, hidden[:, runs.read])
    found = restore.score(logits, runs.target, Measure.PROBABILITY)
    np.testing.assert_allclose(found, float(runs.clean_score), rtol=0, atol=TOLERANCE)


def test_a_data_set_compiles_a_handful_of_programs(model, noise):
    """Prompts, tokens, layers and kinds of like length: one program for the runs and one a kind."""
    texts = [f"{a} mother tongue of Linux {b}" for a in ("The", "A") for b in ("is", "of")]
    kinds = (TraceKind.HIDDEN, TraceKind.MLP)
    before = restore.run._cache_size(), restore.restore._cache_size()
    for text in texts:
        prompt = TracePrompt.of(model.tokenizer, text, "Linux")
        runs = sweep.start(model, prompt, noise)
        for kind in kinds:
            for window in (2, 3):
                sweep.trace(model, prompt, runs, kind=kind, window=window, chunk_columns=16)
    after = restore.run._cache_size(), restore.restore._cache_size()
    assert after[0] - before[0] <= 1
    assert after[1] - before[1] <= len(kinds)


# Bad input


@pytest.mark.parametrize("window", [0, -1, 100])
def test_a_window_that_has_no_room_is_named(model, prompt, runs, window):
    with pytest.raises(ValueError, match=f"window={window}"):
        sweep.trace(model, prompt, runs, kind=TraceKind.MLP, window=window)


def test_tokens_beyond_the_prompt_are_named(model, prompt, runs):
    with pytest.raises(ValueError, match=r"tokens=\[99\]"):
        sweep.trace(model, prompt, runs, tokens=[99])


@pytest.mark.parametrize("shape", [(3, 1, 5), (0, 1, None), (1, 7, None)])
def test_noise_of_another_shape_is_named(model, prompt, shape):
    shape = tuple(size or model.config.width for size in shape) if shape[0] else (0, 1, 18)
    with pytest.raises(ValueError, match="noise has shape"):
        sweep.start(model, prompt, jnp.zeros(shape))


def test_a_chunk_without_columns_is_named(model, prompt, runs):
    with pytest.raises(ValueError, match="chunk_columns=0"):
        sweep.trace(model, prompt, runs, chunk_columns=0)


def test_a_prompt_beyond_the_context_is_named(model):
    prompt = TracePrompt.of(model.tokenizer, "Linux" + " is" * 70, "Linux")
    with pytest.raises(SequenceTooLongError, match="context of 64"):
        prompt.arrays(model.config.context_length)
