"""The figure of methods side by side."""

import pytest

pytest.importorskip("matplotlib")

from rome_jax.evaluation.metrics import Estimate
from rome_jax.evaluation.tables import Row
from rome_jax.plots.results import method_bars


def row(name, **metrics):
    return Row(name, 4, {metric: Estimate(*value) for metric, value in metrics.items()})


ROWS = [
    row("unedited", rewrite_success=(10.0, 0.0, 4), neighborhood_success=(80.0, 20.0, 4)),
    row("ROME", rewrite_success=(100.0, 0.0, 4), neighborhood_success=(70.0, 10.0, 1)),
    row("FT $1$", rewrite_success=(50.0, 50.0, 4)),
]
METRICS = {"ES $": "rewrite_success", "NS": "neighborhood_success"}


def bars(axes):
    """Place and length of a panel's bars."""
    return [(round(p.get_y() + p.get_height() / 2, 6), p.get_width()) for p in axes.patches]


def test_a_panel_for_each_metric_with_a_bar_for_each_row_that_has_it():
    efficacy, specificity = method_bars(ROWS, METRICS).axes
    assert bars(efficacy) == [(0, 10), (1, 100), (2, 50)]
    assert bars(specificity) == [(0, 80), (1, 70)]
    assert [axes.get_title() for axes in (efficacy, specificity)] == list(METRICS)
    # The first row on top in all of them, and where the unedited model is.
    assert efficacy.yaxis_inverted() and specificity.get_ylim() == efficacy.get_ylim()
    assert efficacy.get_xlim()[0] == 0
    assert [line.get_xdata()[0] for line in efficacy.lines if line.get_linestyle() == ":"] == [10]


def test_intervals_are_those_of_the_table_and_a_single_case_has_none():
    efficacy, specificity = method_bars(ROWS, METRICS).axes
    # 80 ± 1.96 · 20 / √4; and a mean of one case.
    assert spans(specificity) == [pytest.approx(2 * 19.6), None]
    assert spans(efficacy) == [0, 0, pytest.approx(2 * 49)]


def spans(axes):
    """The lengths of a panel's error bars, None where nothing is drawn."""
    (container,) = [c for c in axes.containers if hasattr(c, "patches")]
    (lines,) = container.errorbar.lines[2]
    return [s[1, 0] - s[0, 0] if len(s) else None for s in lines.get_segments()]


def test_names_are_shown_as_they_are():
    figure = method_bars(ROWS, METRICS, title="200 $ cases $")
    axes = figure.axes[0]
    labels = axes.get_yticklabels()
    assert [label.get_text() for label in labels] == ["unedited", "ROME", "FT $1$"]
    assert figure.get_suptitle() == "200 $ cases $"
    texts = [*labels, axes.title, figure._suptitle]
    assert not any(text.get_parse_math() for text in texts)


def test_many_rows_and_metrics_keep_their_size_and_empty_panels_are_left_out():
    names = [f"m{number}" for number in range(9)]
    many = [row(f"method {n}", **dict.fromkeys(names, (50.0, 1.0, 4))) for n in range(9)]
    figure = method_bars(many, {name: name for name in [*names, "score"]})
    drawn = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in drawn] == names
    assert [axes.get_subplotspec().rowspan.start for axes in drawn] == [0] * 5 + [1] * 4
    small = method_bars(many[:3], {"m0": "m0"}).get_size_inches()
    width, height = figure.get_size_inches()
    assert width <= 9 and height > 3 * small[1]


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="metrics=score: no row has one; name metrics of these"):
        method_bars(ROWS, {"S": "score"})
    with pytest.raises(ValueError, match="metrics=none"):
        method_bars([], {})
