"""Tracing finds the facts where training has put them: at the subject's last token, in the lower layers."""

import pytest

from rome_jax.models.registry import load_model
from rome_jax.trace.averages import TokenClass, average_effects
from rome_jax.trace.facts import open_facts
from rome_jax.trace.noise import fit_noise, parse_noise
from rome_jax.trace.protocol import Protocol, Series, trace_case

SERIES = (Series.HIDDEN, Series.MLP, Series.ATTN)
WINDOW = 3  # of six layers


@pytest.mark.parametrize("name", ["factworld-gpt2", "factworld-gptj"])
def test_the_planted_place_of_the_facts_is_found(name):
    model, facts = load_model(name), open_facts("factworld")
    noise = fit_noise(model, parse_noise("s3"), subjects=facts.subjects)
    protocol = Protocol(noise, samples=5, window=WINDOW)
    cases = {series: [] for series in SERIES}
    for fact in facts.facts[:16]:
        for series, result in trace_case(model, fact, protocol, SERIES, {}):
            cases[series].append(result)
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
    if (
        name == "factworld-gpt2"
    ):  # GPT-J's first attention gathers the parts of a name where they end
        assert attn[subject].peak[1] < mlp[subject].peak[1] / 2
