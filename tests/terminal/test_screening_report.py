"""The report on screenings, from comparisons made by hand."""

import dataclasses

import numpy as np
import pytest

from rome_jax.terminal import screening_report
from rome_jax.terminal.screening_report import Comparison, report
from rome_jax.trace.best_states import Agreement
from rome_jax.trace.corruption import Measure
from rome_jax.trace.facts import open_facts
from rome_jax.trace.noise import Distribution, Noise
from rome_jax.trace.protocol import Protocol
from rome_jax.trace.restore import TraceKind


@pytest.fixture
def facts():
    """Two facts that the model knows, and one that it does not."""
    first, _, second, unknown = open_facts("factworld").facts[:4]
    return [first, dataclasses.replace(unknown, attribute="zebra"), second]


@pytest.fixture
def protocol():
    return Protocol(Noise(Distribution.GAUSSIAN, 0.5), samples=2, window=3)


def test_a_report_averages_the_facts_that_the_model_knows(
    shipped_model, facts, protocol, monkeypatch
):
    agreements = [
        Agreement(rank=0.9, best=True, found=0.75, reach=1.0),
        Agreement(rank=0.5, best=False, found=0.25, reach=np.nan),
    ]
    compared = []

    def compare(runs, *, kind, window, top):
        assert (window, top) == (3, 20)
        number = sum(one is kind for one in compared)
        compared.append(kind)
        seconds = {Measure.PROBABILITY: 1.0, Measure.LOG_PROBABILITY: 2.0}
        return Comparison(dict.fromkeys(Measure, agreements[number]), seconds, 4.0)

    monkeypatch.setattr(screening_report, "compare", compare)
    states, runs, header, *rows = report(shipped_model("factworld-gpt2"), facts, protocol, top=20)
    assert compared == list(TraceKind) * 2
    assert states == "2 of 3 prompts traced, 42 to 42 states from the subject on"
    assert runs.startswith("best 20 verified; clean and corrupted runs take ")
    assert header.split()[-4:] == ["least", "seconds", "in", "full"]
    assert [row.split()[:2] for row in rows] == [
        [kind.value, measure]
        for kind in TraceKind
        for measure in ("probability", "log-probability")
    ]
    # Mean and least rank, share with the best state, share found, mean and least reach, seconds of both.
    numbers = [float(cell) for cell in rows[0].split()[2:]]
    assert numbers == pytest.approx([0.7, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0, 4.0])
    assert rows[1].split()[-2:] == ["2.000", "4.000"]


def test_a_report_without_a_known_fact_is_an_error(shipped_model, facts, protocol):
    with pytest.raises(ValueError, match="factworld-gpt2 knows none of the 1 facts"):
        report(shipped_model("factworld-gpt2"), facts[1:2], protocol, top=20)
