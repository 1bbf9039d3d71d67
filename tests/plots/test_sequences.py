"""The figures of edits that accumulate in a model, and of a hypernetwork's training."""

import pytest

pytest.importorskip("matplotlib")

from rome_jax.evaluation.intervals import wilson
from rome_jax.plots import hypernetworks, sequences


def row(edits, **changes):
    """A measurement of a model with some edits."""
    rates = {"retention": 100.0, "paraphrase": 90.0, "neighborhood": 80.0, "perplexity": 2.5}
    return {"edits": edits, **rates, **changes}


def sequence(mode="reference"):
    """A sequence of three edits, measured after the second and the third."""
    steps = [{"edit": number, "norm_ratio": 0.1 * number} for number in (1, 2, 3)]
    steps[1]["after"], steps[2]["after"] = row(2), row(3, retention=66.7)
    runs = {"reference": steps, "consistent": steps[:2]}
    about = {"model": "factworld-gpt2", "configuration": {"layers": [0]}, "perplexity_before": 2.0}
    return {**about, "runs": runs}


def test_a_sequence_has_a_line_for_each_key_mode_and_a_point_for_each_edit():
    figure = sequences.plot(sequence())
    retention, neighbors, perplexity, norms = figure.axes
    assert retention.get_title() == "edits that hold, %"
    assert [list(line.get_xdata()) for line in retention.lines] == [[2, 3], [2]]
    assert list(perplexity.lines[0].get_xdata()) == [0, 2, 3]
    assert perplexity.lines[0].get_ydata()[0] == 2.0
    assert [len(line.get_xdata()) for line in norms.lines] == [3, 2]
    assert not perplexity.collections and not norms.collections
    assert neighbors.get_ylim() == retention.get_ylim()
    assert figure.get_suptitle() == "3 ROME edits in sequence, factworld-gpt2, layer 0"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == [
        "key mode reference",
        "key mode consistent",
        "95 % interval",
    ]


def test_bands_are_the_intervals_of_the_table():
    band = sequences.plot(sequence()).axes[0].collections[0]
    edges = band.get_paths()[0].vertices
    at_three = sorted(set(edges[edges[:, 0] == 3, 1].round(6)))
    assert at_three == [pytest.approx(100 * end) for end in wilson(0.667, 3)]


def test_mass_edits_show_the_unedited_model_where_it_has_a_value_to_lose():
    report = {
        "model": "factworld-gpt2",
        "before": row(0, retention=0.0, paraphrase=0.0, neighborhood=100.0, perplexity=2.0),
        "runs": {"ROME": [row(1), row(100, perplexity=30.0)], "MEMIT": [row(1), row(100)]},
    }
    figure = sequences.plot_mass(report)
    dotted = [
        [line.get_ydata()[0] for line in a.lines if line.get_linestyle() == ":"]
        for a in figure.axes
    ]
    assert dotted == [[], [], [100.0], [2.0]]
    assert [axes.get_xscale() for axes in figure.axes] == ["log"] * 4
    assert [axes.get_yscale() for axes in figure.axes] == ["linear"] * 3 + ["log"]
    assert figure.axes[0].get_ylim()[0] > 0


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
    assert len(efficacy.collections) == 1, "the interval of the earlier edits"
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
