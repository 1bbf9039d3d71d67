"""Tracing finds the facts where training put them: at the subject's last token, in the lower layers."""

import pytest

from rome_jax.trace.averages import TokenClass, average_effects
from rome_jax.trace.facts import open_facts
from rome_jax.trace.noise import fit_noise, parse_noise
from rome_jax.trace.protocol import Protocol, Series, find_prompt, trace_facts

SERIES = (Series.HIDDEN, Series.MLP, Series.ATTN)
WINDOW = 3  # of six layers


@pytest.mark.parametrize("name", ["factworld-gpt2", "factworld-gptj"])
def test_the_planted_place_of_the_facts_is_found(shipped_model, name):
    model, facts = shipped_model(name), open_facts("factworld")
    # Prompts of up to eight tokens share their programs.
    chosen = [fact for fact in facts.facts[:40] if len(find_prompt(model, fact).ids) <= 8][:8]
    noise = fit_noise(model, parse_noise("s3"), subjects=facts.subjects)
    protocol = Protocol(noise, samples=2, window=WINDOW)
    cases = trace_facts(model, chosen, protocol, SERIES, {})
    hidden, mlp, attn = (average_effects(cases[series]).indirect for series in SERIES)
    half = model.config.num_layers // 2
    subject, last = TokenClass.LAST_SUBJECT, TokenClass.LAST

    layer, value = hidden[subject].peak
    assert layer < half and value > 0.4
    for place in TokenClass:
        if place is not subject and hidden[place].count:
            assert hidden[place].mean[:half].max() < value - 0.3, place
    assert hidden[last].mean[half:].max() > hidden[subject].mean[half:].max()

    layer, value = mlp[subject].peak
    assert layer < half and value > 0.15
    assert value == max(mlp[place].peak[1] for place in TokenClass if mlp[place].count)

    layer, value = attn[last].peak
    assert layer >= half and value > 0.4
    assert value == max(attn[place].peak[1] for place in TokenClass if attn[place].count)
    # The first attention of factworld-gptj gathers the parts of a name at its end.
    if name == "factworld-gpt2":
        assert attn[subject].peak[1] < mlp[subject].peak[1] / 2
