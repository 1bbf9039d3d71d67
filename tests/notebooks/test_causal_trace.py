"""The notebooks of causal tracing run from a clean kernel and find both sites."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.notebooks import common

EARLY = slice(0, 2)  # centers of the MLP windows that recall the facts of factworld-gpt2
PEAK = r"(-?\d\.\d+) layer +(\d+)"
SITES = ("at the early site:", "at the late site: ")


def path_of(name):
    return common.FOLDER / f"{name}.ipynb"


def run_small(name, settings, tmp_path, monkeypatch):
    """Runs a notebook with other settings; returns its texts and code cells by id, and the folder it ran in."""
    notebook = common.read(path_of(name))
    cells = common.code_cells(notebook)
    for setting, value in settings.items():
        line = re.compile(rf"^{setting} = \d+\b", re.MULTILINE)
        assert sum(len(line.findall(cell.source)) for cell in cells.values()) == 1, setting
        for cell in cells.values():
            cell.source = line.sub(f"{setting} = {value}", cell.source)
    workdir = common.execute(notebook, tmp_path, monkeypatch)
    return {key: common.text_outputs(cell) for key, cell in cells.items()}, cells, workdir


def numbers(text, label):
    """Returns the array that a cell prints after a label."""
    found = re.findall(rf"{re.escape(label)} *\[([^\]]*)\]", text)
    assert len(found) == 1, (label, text)
    return np.array(found[0].split(), float)


@pytest.mark.slow
def test_one_prompt_shows_the_early_and_the_late_site(tmp_path, monkeypatch):
    settings = {"SAMPLES": 4, "NUM_FACTS": 1}
    texts, cells, workdir = run_small("causal_trace", settings, tmp_path, monkeypatch)
    assert "Gothulf Punby plays the sport of rowing" in texts["example"]
    assert "subject: ('Gothulf', ' P', 'unby')" in texts["example"]
    total = float(re.search(r"total effect (.*)", texts["corrupted"])[1])
    assert total > 0.9

    # In one layer the last subject token brings the fact back; the others do not.
    first, last, end = numbers(texts["one"], "indirect effect")
    assert last > 0.9 * total and max(first, end) < 0.1 * total

    subject = numbers(texts["all"], "largest effect of each subject token")
    assert subject.argmax() == len(subject) - 1 and subject[:-1].max() < 0.2 * total
    at_subject = numbers(texts["all"], "last subject token")
    at_end = numbers(texts["all"], "last token")
    assert at_subject[EARLY].min() > 0.9 * total and at_end[EARLY].max() < 0.1 * total
    assert at_end[-1] == pytest.approx(total, abs=0.002) and at_subject[-1] == 0

    # MLPs make the early site, attention the late one.
    mlp = numbers(texts["mlp"], "last subject token")
    assert mlp[EARLY].min() > 0.9 * total and mlp[EARLY.stop :].max() < 0.2 * total
    assert numbers(texts["mlp"], "last token").max() < 0.2 * total
    assert numbers(texts["attn"], "last subject token").max() < 0.5 * total
    assert numbers(texts["attn"], "last token")[3:5].min() > 0.8 * total

    assert texts["several"].startswith("1 of 1 facts")
    images = {
        name: common.num_images(cell) for name, cell in cells.items() if common.num_images(cell)
    }
    assert images == {"all": 1, "attn": 1, "several": 1}
    assert list(workdir.iterdir()) == []


@pytest.mark.slow
def test_severing_costs_the_lower_layers_most(tmp_path, monkeypatch):
    settings = {"SAMPLES": 4, "NUM_FACTS": 8}
    texts, cells, workdir = run_small("causal_trace_severed", settings, tmp_path, monkeypatch)
    assert texts["trace"].startswith("8 facts traced, 0 skipped")
    ordinary = numbers(texts["bars"], "ordinary")
    severed = numbers(texts["bars"], "MLP severed")
    lost = numbers(texts["difference"], "lost without MLP")
    np.testing.assert_allclose(lost, ordinary - severed, atol=0.0016)  # each rounded to 0.001
    assert lost[0] == lost.max() > 0.01
    assert lost[0] < 0.3 * ordinary[0]  # most of the fact is recalled in layer 0
    assert np.abs(lost[-2:]).max() < 0.01 < lost[0]
    without_attention = numbers(texts["bars"], "attention severed")
    np.testing.assert_allclose(
        numbers(texts["difference"], "lost without attention"),
        ordinary - without_attention,
        atol=0.0016,
    )
    assert common.num_images(cells["bars"]) == 1
    assert list(workdir.iterdir()) == []


@pytest.mark.slow
def test_averages_peak_at_both_sites_and_the_cases_stay(tmp_path, monkeypatch):
    settings = {"SAMPLES": 4, "NUM_FACTS": 6}
    texts, cells, workdir = run_small("average_causal_effects", settings, tmp_path, monkeypatch)
    assert "6 prompts traced, 0 skipped" in texts["averages"]
    total = float(re.search(r"total effect ([\d.]+)", texts["averages"])[1])
    peaks = {
        label.strip(): [(float(value), int(layer)) for value, layer in re.findall(PEAK, rest)]
        for label, rest in re.findall(r"^  ([A-Z][a-z ]+?)  +(.*)$", texts["averages"], re.M)
    }
    hidden, mlp, attn = peaks["Last subject token"]
    assert hidden[0] > 0.9 * total and hidden[1] < 3
    assert mlp[0] > 0.8 * total and mlp[1] in (0, 1)
    assert attn[0] < 0.4 * total
    for other in ("First subject token", "Middle subject tokens", "Further tokens"):
        assert max(value for value, _ in peaks[other]) < 0.3 * hidden[0]
    hidden, mlp, attn = peaks["Last token"]
    assert hidden == (pytest.approx(total, abs=0.002), 5)
    assert mlp[0] < 0.4 * total < 0.8 * total < attn[0] and attn[1] >= 3

    early_mlp, late_mlp = (numbers(texts["sites"], f"{site} MLP") for site in SITES)
    assert early_mlp.max() > 2 * late_mlp.max()
    images = {
        name: common.num_images(cell) for name, cell in cells.items() if common.num_images(cell)
    }
    assert images == {"lines": 1, "hidden": 1, "mlp": 1, "attn": 1}
    folder = workdir / "results" / "causal_trace" / "factworld-gpt2"
    assert [path.name for path in workdir.iterdir()] == ["results"]
    assert len(list(folder.glob("cases/knowledge_*.npz"))) == 3 * 6
