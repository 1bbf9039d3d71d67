"""The figures of causal tracing name their numbers, whatever the prompt, and their texts have room."""

import dataclasses
import itertools

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.collections import QuadMesh
from matplotlib.text import Text

from rome_jax.models.interventions import Site
from rome_jax.plots.tracing import (
    average_heatmap,
    average_lines,
    heatmap,
    heatmaps,
    severed_bars,
)
from rome_jax.trace.averages import AverageEffects, ClassAverage, TokenClass
from rome_jax.trace.restore import TraceKind
from rome_jax.trace.result import TraceResult

TOKENS = ("The", " Space", " Need", "le", " is", " in")


def trace_of(tokens=TOKENS, num_layers=6, **changes) -> TraceResult:
    """A trace with a peak at the last of four subject tokens, unless `changes` says otherwise."""
    scores = np.full((len(tokens), num_layers), 0.02, np.float32)
    scores[min(3, len(tokens) - 1), num_layers // 3] = 0.6
    fields = {
        "scores": scores,
        "low_score": 0.0125,
        "high_score": 0.934,
        "input_ids": np.arange(len(tokens)),
        "input_tokens": tuple(tokens),
        "subject_range": (0, min(4, len(tokens) - 1)),
        "answer": " Seattle",
        "kind": TraceKind.HIDDEN,
        "window": 10,
        "tokens": tuple(range(len(tokens))),
        "provenance": {"model": "gpt2-xl", "measure": "probability"},
    }
    return TraceResult(**fields | changes)


def averages_of(num_layers=6, absent=(), sign=1.0) -> AverageEffects:
    """Averages of 1,000 prompts, with some classes of tokens absent."""
    nothing = np.full(num_layers, np.nan)
    indirect = {
        place: ClassAverage(nothing, nothing, 0)
        if place in absent
        else ClassAverage(
            sign * np.linspace(0.01, 0.02 * index, num_layers), np.full(num_layers, 0.004), 1000
        )
        for index, place in enumerate(TokenClass, 1)
    }
    return AverageEffects(indirect, 0.27, 0.0847, 0.1853, 0.0121, 1000, 3)


def row_labels(figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def cells(figure) -> QuadMesh:
    (mesh,) = (c for c in figure.axes[0].collections if isinstance(c, QuadMesh))
    return mesh


def lines(axes) -> list:
    """The lines that a legend explains."""
    return [line for line in axes.lines if not line.get_label().startswith("_")]


def test_heatmap_names_what_was_traced():
    figure = heatmap(trace_of())
    table, bar = figure.axes
    assert row_labels(figure) == ["The*", "Space*", "Need*", "le*", "is", "in"]
    weights = [label.get_fontweight() for label in table.get_yticklabels()]
    assert weights == ["bold"] * 4 + ["normal"] * 2
    assert table.get_title() == "Impact of restoring state after corrupted input"
    where, caption = table.get_xlabel().split("\n")
    assert where == "single restored layer within gpt2-xl"
    assert caption == "p(Seattle): clean 0.934, corrupted 0.0125"
    assert bar.get_ylabel() == "p(Seattle)"
    np.testing.assert_array_equal(cells(figure).get_array(), trace_of().scores)
    low, high = table.get_ylim()
    assert low > high  # the first token is on top
    assert heatmap(trace_of(), title="Mine").axes[0].get_title() == "Mine"


def test_heatmap_of_each_kind():
    """Windows name their size and what they restore, and every kind has its own colors."""
    figures = {kind: heatmap(trace_of(kind=kind, provenance={})) for kind in TraceKind}
    assert [figure.axes[0].get_xlabel().split("\n")[0] for figure in figures.values()] == [
        "single restored layer",
        "center of interval of 10 restored MLP layers",
        "center of interval of 10 restored attention layers",
    ]
    assert "MLP" in figures[TraceKind.MLP].axes[0].get_title()
    assert [cells(figure).get_cmap().name for figure in figures.values()] == [
        "Purples",
        "Greens",
        "Reds",
    ]


def test_heatmap_names_the_measure():
    figure = heatmap(trace_of(provenance={"measure": "log_probability"}, low_score=-7.314))
    assert figure.axes[1].get_ylabel() == "log p(Seattle)"
    assert "log p(Seattle): clean 0.934, corrupted −7.31" in figure.axes[0].get_xlabel()


def test_heatmap_of_some_tokens():
    """Rows are the restored tokens, marked by their place in the prompt."""
    for tokens, expected in [((3, 5), ["le*", "in"]), ((3,), ["le*"])]:
        scores = np.full((len(tokens), 6), 0.5)
        some = dataclasses.replace(trace_of(), scores=scores, tokens=tokens)
        assert row_labels(heatmap(some)) == expected


def test_colors_begin_at_the_corrupted_score():
    """Neither rounding errors nor small effects next to large negative ones look large."""

    def limits(scores, **changes):
        figure = heatmap(trace_of(scores=np.asarray(scores, np.float32), **changes))
        return cells(figure).get_clim(), figure.axes[1].get_ylim()

    shown, _ = limits(trace_of().scores)
    assert shown == pytest.approx((0.0125, 0.6))
    constant, _ = limits(np.full((6, 6), 0.0125))
    assert constant == (0.0125, 0.934)
    for high in (0.3, 0.1):  # the corruption did nothing, or helped
        (low, top), _ = limits(np.full((6, 6), 0.3), low_score=0.3, high_score=high)
        assert low == 0.3 and top - low > 1e-4
    negative = np.full((6, 6), 0.1)
    negative[0, 0] = 0.301
    shown, _ = limits(negative, low_score=0.3)
    assert shown == pytest.approx((0.3, 0.5))


def test_scores_below_the_color_scale_are_marked():
    assert cells(heatmap(trace_of())).colorbar.extend == "neither"
    assert cells(heatmap(trace_of(low_score=0.1))).colorbar.extend == "min"


def test_unknown_scores_are_blank():
    scores = trace_of().scores.copy()
    scores[1] = np.nan
    figure = heatmap(trace_of(scores=scores))
    np.testing.assert_array_equal(np.ma.getmaskarray(cells(figure).get_array()), np.isnan(scores))
    assert figure.axes[0].patch.get_hatch()
    assert not heatmap(trace_of()).axes[0].patch.get_hatch()
    nothing = heatmap(trace_of(scores=np.full((6, 6), np.nan)))
    assert np.ma.getmaskarray(cells(nothing).get_array()).all()


def test_tokens_that_cannot_be_seen_are_shown():
    tokens = ("$x_1$", " \\frac{", "\n\n", "\t", " ", "", "\x00", "\ufffd", " Привет", "a" * 40)
    figure = heatmap(trace_of(tokens, subject_range=(0, 1), answer=" $5\n"), title="$a$")
    expected = ["$x_1$*", "\\frac{", "↵↵", "⇥", "␣", "∅", "\\x00", "\ufffd", "Привет"]
    assert row_labels(figure) == [*expected, "a" * 31 + "…"]
    table, bar = figure.axes
    texts = [*table.get_yticklabels(), table.title, table.xaxis.label, bar.yaxis.label]
    assert not any(text.get_parse_math() for text in texts)
    assert bar.get_ylabel() == "p($5↵)"


def test_heatmaps_share_one_scale_and_name_the_tokens_once():
    higher = np.full((6, 6), 0.8, np.float32)
    results = [trace_of(), trace_of(kind=TraceKind.MLP, window=3, scores=higher)]
    figure = heatmaps(results)
    panels, bars = figure.axes[:2], figure.axes[2:]
    assert [axes.get_title() for axes in panels] == ["single hidden states", "MLP outputs"]
    assert [axes.get_xlabel() for axes in panels] == ["layer", "center of 3-layer window"]
    assert row_labels(figure) == ["The*", "Space*", "Need*", "le*", "is", "in"]
    assert panels[0].yaxis_inverted() and panels[1].get_ylim() == panels[0].get_ylim()
    meshes = [axes.collections[0] for axes in panels]
    assert [mesh.get_clim() for mesh in meshes] == [pytest.approx((0.0125, 0.8))] * 2
    assert [bar.get_ylabel() for bar in bars] == ["", "p(Seattle)"]
    assert figure.get_suptitle().startswith("gpt2-xl, p(Seattle) with clean states restored: clean")


def test_heatmaps_refuse_nothing_and_other_prompts():
    with pytest.raises(ValueError, match="results is empty: give"):
        heatmaps([])
    with pytest.raises(ValueError, match="different prompts, tokens, answers or measures: give"):
        heatmaps([trace_of(), trace_of(answer=" Paris")])


def test_average_heatmap():
    averages = averages_of(absent=[TokenClass.MIDDLE_SUBJECT])
    figure = average_heatmap(averages, TraceKind.MLP, window=4, model="gpt2-xl")
    assert row_labels(figure) == [place.value for place in TokenClass]
    shown = cells(figure).get_array()
    assert np.ma.getmaskarray(shown)[:, 0].tolist() == [False, True] + [False] * 4
    np.testing.assert_array_equal(shown[2], averages.indirect[TokenClass.LAST_SUBJECT].mean)
    title, label = figure.axes[0].get_title(), figure.axes[0].get_xlabel()
    assert title == "Average indirect effect of restoring MLP over 1,000 prompts"
    assert label.split("\n") == [
        "center of interval of 4 restored MLP layers within gpt2-xl",
        "total effect 0.185 ± 0.012 (95 % interval): clean 0.27, corrupted 0.0847",
    ]
    assert cells(figure).get_clim()[0] == 0


def test_average_lines():
    """A panel for each kind, and a line and a band for each class that occurs, told apart without color."""
    absent = [TokenClass.MIDDLE_SUBJECT, TokenClass.FURTHER]
    averages = {
        TraceKind.HIDDEN: averages_of(),
        TraceKind.ATTN: averages_of(absent=absent, sign=-1),
    }
    figure = average_lines(averages, title="gpt2-xl", window=10)
    hidden, attention = figure.axes
    assert hidden.get_title() == "single hidden states"
    assert attention.get_title() == "attention outputs, 10-layer windows"
    assert [line.get_label() for line in lines(hidden)] == [place.value for place in TokenClass]
    assert len(lines(attention)) == 4
    assert len({line.get_marker() for line in lines(hidden)}) == 6
    for axes, average in zip(figure.axes, averages.values(), strict=True):
        for line, band in zip(lines(axes), axes.collections, strict=True):
            of = average.indirect[TokenClass(line.get_label())]
            np.testing.assert_array_equal(line.get_ydata(), of.mean)
            edges = band.get_paths()[0].vertices[:, 1]
            assert edges.min() == pytest.approx((of.mean - of.band).min())
            assert edges.max() == pytest.approx((of.mean + of.band).max())
    (legend,) = figure.legends
    labels = [place.value for place in TokenClass]
    assert [text.get_text() for text in legend.texts] == [*labels, "95 % interval of the mean"]
    assert figure.get_suptitle() == "gpt2-xl: 1,000 prompts, total effect 0.185 ± 0.012"


def test_average_lines_of_different_prompts_name_them_in_each_panel():
    fewer = dataclasses.replace(averages_of(), num_cases=1)
    figure = average_lines({TraceKind.HIDDEN: averages_of(), TraceKind.MLP: fewer})
    assert figure.get_suptitle() == ""
    assert [axes.get_title().split("\n")[1].split(",")[0] for axes in figure.axes] == [
        "1",
        "1 prompt",
    ]


def test_average_lines_of_nothing():
    with pytest.raises(ValueError, match="averages is empty: give"):
        average_lines({})
    figure = average_lines({TraceKind.MLP: averages_of(absent=list(TokenClass))})
    assert not lines(figure.axes[0]) and not figure.legends


def test_severed_bars():
    """Bars and error bars of every layer, side by side."""
    effects = averages_of(sign=-1).indirect
    given = [effects[place] for place in list(TokenClass)[:3]]
    figure = severed_bars(given[0], {Site.MLP_OUT: given[1], Site.ATTN_OUT: given[2]})
    bars = [c for c in figure.axes[0].containers if hasattr(c, "patches")]
    for drawn, average in zip(bars, given, strict=True):
        np.testing.assert_allclose([bar.get_height() for bar in drawn], average.mean)
        ends = np.array(drawn.errorbar.lines[2][0].get_segments())[:, :, 1]
        np.testing.assert_allclose(ends[:, 1] - ends[:, 0], 2 * average.band)
    left = np.sort([bar.get_x() for drawn in bars for bar in drawn])
    assert (np.diff(left) > 0.99 * bars[0][0].get_width()).all()
    assert [text.get_text() for text in figure.legends[0].texts] == [
        "single state restored",
        "with MLPs severed",
        "with attention severed",
    ]
    _, second = figure.axes[0].get_title().split("\n")
    assert second == "1,000 prompts, whiskers: 95 % interval of the mean"


def test_severed_bars_leave_out_what_is_absent():
    present, absent = averages_of(), averages_of(absent=list(TokenClass))
    place = TokenClass.LAST_SUBJECT
    figure = severed_bars(present.indirect[place], {Site.MLP_OUT: absent.indirect[place]})
    assert [text.get_text() for text in figure.legends[0].texts] == ["single state restored"]
    assert not severed_bars(absent.indirect[place], {}).legends


def test_severed_bars_refuse_other_sites_and_other_models():
    short, long = (averages_of(n).indirect[TokenClass.LAST_SUBJECT] for n in (6, 12))
    with pytest.raises(ValueError, match="MLP_OUT and ATTN_OUT"):
        severed_bars(short, {Site.RESIDUAL: short})
    with pytest.raises(ValueError, match="has 12 layers and ordinary 6: give"):
        severed_bars(short, {Site.MLP_OUT: long})


def shown_texts(figure) -> list[Text]:
    """All but the labels of ticks outside an axis, which exist and are not drawn."""
    outside = set()
    for axis in itertools.chain.from_iterable((axes.xaxis, axes.yaxis) for axes in figure.axes):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                outside |= {tick.label1, tick.label2}
    texts = (text for text in figure.findobj(Text) if text not in outside)
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


LONG = (" antidisestablishmentarian", *(f" word{n}" for n in range(58)), " of")
FIGURES = {
    "two tokens": lambda: heatmap(trace_of((" Rome", " is"))),
    "one token restored": lambda: heatmap(
        dataclasses.replace(trace_of(), scores=np.ones((1, 48)), tokens=(3,))
    ),
    "60 tokens, 48 layers": lambda: heatmap(
        trace_of(
            LONG,
            48,
            kind=TraceKind.MLP,
            answer=" professor of comparative philology and antiquities",
            provenance={"model": "EleutherAI/gpt-j-6B", "measure": "log_probability"},
        ),
        title="The whole of a long prompt, " * 6,
    ),
    "three kinds": lambda: heatmaps([trace_of(LONG[:20], 48, kind=kind) for kind in TraceKind]),
    "average table": lambda: average_heatmap(
        averages_of(48), TraceKind.ATTN, window=10, model="gpt2"
    ),
    "three panels": lambda: average_lines(
        {kind: averages_of(48) for kind in TraceKind},
        title="Averages over many prompts " * 6,
        window=10,
    ),
    "one panel": lambda: average_lines({TraceKind.ATTN: averages_of()}),
    "bars": lambda: severed_bars(
        *((e := averages_of().indirect[TokenClass.LAST]), {Site.MLP_OUT: e, Site.ATTN_OUT: e}),
        title="The last subject token " * 5,
    ),
    "many bars": lambda: severed_bars(
        (e := averages_of(48).indirect[TokenClass.LAST]), {Site.MLP_OUT: e, Site.ATTN_OUT: e}
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_is_cut_off_or_on_other_text(name):
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    boxes = {text: text.get_window_extent() for text in shown_texts(figure)}
    page = figure.bbox.padded(1)
    for text, box in boxes.items():
        assert page.x0 <= box.x0 and box.x1 <= page.x1, text
        assert page.y0 <= box.y0 and box.y1 <= page.y1, text
    panels = [axes.get_window_extent() for axes in figure.axes]
    for text, other in itertools.combinations(boxes, 2):
        assert not boxes[text].padded(-1).overlaps(boxes[other].padded(-1)), (text, other)
    for text, box in boxes.items():
        assert not any(box.padded(-1).overlaps(panel) for panel in panels), text


def test_ticks_are_thinned():
    for num_layers, expected in [(1, [0]), (6, [0, 1, 2, 3, 4, 5]), (48, [*range(0, 48, 5)])]:
        axes = heatmap(trace_of(num_layers=num_layers)).axes[0]
        assert axes.get_xticks().tolist() == expected
        assert axes.get_xlim() == (-0.5, num_layers - 0.5)
