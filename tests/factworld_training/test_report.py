"""The report on a factworld model."""

import dataclasses
import re

import pytest

from rome_jax.factworld.facts import make_world
from rome_jax.factworld_training import report as report_module
from rome_jax.factworld_training.recall import recalled
from rome_jax.factworld_training.report import Sizes, report
from rome_jax.trace.averages import TokenClass


@pytest.mark.slow
def test_a_report_has_recall_tracing_and_edits(shipped_model, monkeypatch, capsys):
    few = dataclasses.replace(make_world(), facts=make_world().facts[::50])
    monkeypatch.setattr(report_module, "recalled", lambda model, world: recalled(model, few))
    report(shipped_model("factworld-gpt2"), Sizes(held_out=2, tuning=0, traced=1))
    lines = capsys.readouterr().out.splitlines()
    percent = re.fullmatch(r"recall: ([\d.]+) % of 216 prompts \(36 facts\)", lines[0])[1]
    assert float(percent) > 97
    assert lines[1].startswith("mean indirect effect of hidden states, 1 of 1 facts, 10 samples:")
    assert lines[2].split() == ["layer", "0", "1", "2", "3", "4", "5"]
    places, best, edits = lines[3:9], lines[9], lines[10:13]
    assert [line[2:27].rstrip() for line in places] == [place.value for place in TokenClass]
    assert all(len(line.split()) >= 7 for line in places)
    layer, peak = re.fullmatch(
        r"  best layer of the last subject token: (\d), (0\.\d{3})", best
    ).groups()
    effects = places[list(TokenClass).index(TokenClass.LAST_SUBJECT)].split()[-6:]
    assert effects[int(layer)] == peak == max(effects)
    assert edits[0] == "2 held-out requests (mean and 95 % interval):"
    assert edits[1].startswith("  before ") and edits[2].startswith("  ROME, layer 0 ")
    before, after = (float(re.search(r"efficacy +([\d.]+)", line)[1]) for line in edits[1:])
    assert (before, after) == (0, 100)
    assert re.fullmatch(r"\d+ s", lines[13])


def test_an_interval_needs_two_requests():
    with pytest.raises(ValueError, match=r"--num_cases=1 .*: give at least 2"):
        Sizes(held_out=1)
