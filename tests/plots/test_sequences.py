"""The figures of edits that accumulate in a model, and of a hypernetwork's training."""

import pytest

pytest.importorskip("matplotlib")

from rome_jax.evaluation.intervals import wilson
from rome_jax.plots import hypernetworks, sequences


@pytest.mark.parametrize("margin", [None, 0.01])
def test_training_curves_have_one_legend_and_a_margin_only_under_a_constraint(margin):
    names = ("edit", "train_edit", "kl", "train_kl", "margin", "success", "kept")
    history = [{"step": step, **dict.fromkeys(names, 1 / step)} for step in (1, 2)]
    about = {"kind": "KE", "model": "m", "training": {"margin": margin, "num_validation": 8}}
    figure = hypernetworks.plot({"history": history, "best": history[1], "about": about})
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.texts]
    assert ("margin of the constraint" in labels) == (margin is not None)
    assert len(labels) == len(set(labels)) == 6 + (margin is not None)
    edit, divergence, rates = figure.axes
    assert (edit.get_yscale(), divergence.get_yscale(), rates.get_yscale()) == (
        "log",
        "log",
        "linear",
    )
    assert list(rates.lines[0].get_ydata()) == [100, 50]


def measured(edits, earlier=True, **changes):
    """A measurement of `eval.sequence`."""
    kinds = ("efficacy", "paraphrase", "neighborhood")
    scores = {"records": 10, **dict.fromkeys(kinds, 90.0)}
    scores |= {f"{kind}_generated": 80.0 for kind in kinds}
    row = {"edits": edits, "newest": scores, "earlier": scores if earlier else None}
    row |= {"requests": None, "perplexity": 2.5, "kl": 0.1, "norm_ratios": {"3": 0.1, "4": 0.2}}
    return row | changes


def test_a_sequence_of_batches_has_lines_for_both_groups_and_ways_and_marks_the_alarm():
    before = measured(0, newest=None, requests=measured(0)["newest"], norm_ratios={})
    rows = [before, measured(1, earlier=False), measured(10), measured(100, kl=None)]
    settings = {"alg_name": "MEMIT", "batch_size": 5}
    report = {"model": "factworld-gpt2", "settings": settings, "measurements": rows}
    figure = sequences.plot_edits({**report, "alarms": [{"edits": 100}]})
    efficacy, _, neighbors, perplexity, divergence, norms = figure.axes
    assert figure.get_suptitle() == "100 edits by MEMIT in batches of 5, factworld-gpt2"
    drawn = [list(line.get_xdata()) for line in efficacy.lines]
    assert drawn == [[1, 10, 100], [1, 10, 100], [10, 100], [10, 100], [100, 100]]
    (band,) = efficacy.collections  # that of the earlier edits
    edges = band.get_paths()[0].vertices
    at_hundred = sorted(set(edges[edges[:, 0] == 100, 1].round(6)))
    assert at_hundred == [pytest.approx(100 * end) for end in wilson(0.9, 10)]
    assert neighbors.lines[4].get_linestyle() == ":" and perplexity.lines[1].get_ydata()[0] == 2.5
    assert list(divergence.lines[0].get_ydata())[:2] == [0.1, 0.1]
    assert [text.get_text() for text in norms.get_legend().texts] == ["layer 3", "layer 4"]
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == [
        *("newest, likelihood", "newest, generated text"),
        *("earlier, likelihood", "earlier, generated text"),
        *("unedited", "first alarm", "95 % interval"),
    ]
    del rows[1:]
    assert sequences.plot_edits({**report, "alarms": []}).get_suptitle().startswith("0 edits by")
