"""The figure of methods side by side."""

import pytest

pytest.importorskip("matplotlib")

from rome_jax.evaluation.columns import Row
from rome_jax.evaluation.metrics import Estimate
from rome_jax.plots.results import method_bars


def row(name, **metrics):
    return Row(name, 4, {metric: Estimate(*value) for metric, value in metrics.items()})


ROWS = [
    row("unedited", rewrite_success=(10.0, 0.0, 4), neighborhood_success=(80.0, 20.0, 4)),
    row(
        "FT $1$",
        score=(50.0, 0.0, 4),
        rewrite_success=(50.0, 50.0, 4, 15.0, 85.0),
    ),
    row(
        "ROME",
        score=(80.0, 0.0, 4),
        rewrite_success=(100.0, 0.0, 4, 51.0, 100.0),
        neighborhood_success=(70.0, 10.0, 1),
    ),
]
METRICS = {"ES $": "rewrite_success", "NS": "neighborhood_success"}
PAIRED = {"S": "score", "ES": "rewrite_success", "EM": "rewrite_diff"} | {
    "PS": "paraphrase_success",
    "PM": "paraphrase_diff",
    "GE": "ngram_entropy",
}


def bars(axes):
    """Place and length of a panel's bars."""
    return [(round(p.get_y() + p.get_height() / 2, 6), p.get_width()) for p in axes.patches]


def spans(axes):
    """The ends of a panel's error bars, None where none is drawn."""
    (container,) = [c for c in axes.containers if hasattr(c, "patches")]
    (lines,) = container.errorbar.lines[2]
    return [tuple(s[:, 0]) if len(s) else None for s in lines.get_segments()]


def names(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_a_panel_for_each_metric_with_a_bar_for_each_method_that_has_it():
    efficacy, specificity = method_bars(ROWS, METRICS).axes
    assert bars(efficacy) == [(0, 100), (1, 50)]
    assert bars(specificity) == [(0, 70)]
    assert [axes.get_title() for axes in (efficacy, specificity)] == list(METRICS)
    assert efficacy.yaxis_inverted() and specificity.get_ylim() == efficacy.get_ylim()
    assert efficacy.get_xlim()[0] == 0


def test_methods_are_ordered_by_score_below_the_unedited_model():
    efficacy, specificity = method_bars(ROWS, METRICS).axes
    assert names(efficacy) == ["unedited", "ROME", "FT $1$"]
    dotted = [line.get_xdata()[0] for line in efficacy.lines if line.get_linestyle() == ":"]
    assert dotted == [10]
    assert [text.get_text() for axes in (efficacy, specificity) for text in axes.texts] == [
        "10.0",
        "80.0",
    ]
    without = [row(r.name, rewrite_success=(50.0, 0.0, 4)) for r in ROWS]
    assert names(method_bars(without, METRICS).axes[0]) == ["unedited", "FT $1$", "ROME"]
    twice = [ROWS[1], row("unedited (ROME)", rewrite_success=(0.0, 0.0, 4)), *ROWS]
    assert names(method_bars(twice, METRICS).axes[0]) == [r.name for r in twice]


def test_whiskers_are_the_intervals_and_a_value_without_one_has_none():
    efficacy, specificity = method_bars(ROWS, METRICS).axes
    assert spans(efficacy) == [(51, 100), (15, 85)]
    assert spans(specificity) == [None]


def test_names_are_shown_as_they_are():
    figure = method_bars(ROWS, METRICS, title="200 $ cases $")
    axes = figure.axes[0]
    assert figure.get_suptitle() == "200 $ cases $"
    texts = [*axes.get_yticklabels(), axes.title, figure._suptitle]
    assert not any(text.get_parse_math() for text in texts)


def test_scores_are_above_their_magnitudes_and_other_metrics_below_both():
    values = dict.fromkeys(PAIRED.values(), (50.0, 1.0, 4, 45.0, 55.0))
    values["ngram_entropy"] = (600.0, 1.0, 4, 598.0, 602.0)
    figure = method_bars([row("FT", **values), row("ROME", **values)], PAIRED)
    drawn = {a.get_title(): a for a in figure.axes if a.axison}
    places = {
        label: (a.get_subplotspec().rowspan.start, a.get_subplotspec().colspan.start)
        for label, a in drawn.items()
    }
    assert places == {
        "ES": (0, 0),
        "PS": (0, 1),
        "EM": (1, 0),
        "PM": (1, 1),
        "S": (2, 0),
        "GE": (2, 1),
    }
    assert drawn["GE"].get_xlim()[0] > 590  # points, whose axis need not begin at zero


def test_a_figure_of_many_methods_and_metrics_fits_a_column():
    labels = [f"m{number}" for number in range(9)]
    many = [row(f"method {n}", **dict.fromkeys(labels, (50.0, 1.0, 4))) for n in range(9)]
    figure = method_bars(many, {name: name for name in [*labels, "score"]})
    drawn = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in drawn] == labels
    assert [axes.get_subplotspec().rowspan.start for axes in drawn] == [0] * 5 + [1] * 4
    small = method_bars(many[:3], {"m0": "m0"}).get_size_inches()
    width, height = figure.get_size_inches()
    assert width <= 7 and height > 2 * small[1]


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="metrics=essence_score: no row has one; name metrics of"):
        method_bars(ROWS, {"PPL": "essence_score"})
    with pytest.raises(ValueError, match="metrics=none"):
        method_bars([], {})
