"""The figure of a sweep: lines, bars, or a heatmap, depending on the varied keys."""

import pytest

pytest.importorskip("matplotlib")

from rome_jax.edit.config import ROMEConfig
from rome_jax.evaluation.grid import Grid, label
from rome_jax.evaluation.metrics import Estimate
from rome_jax.evaluation.summaries import Summary
from rome_jax.plots.sweeps import draw

BASE = ROMEConfig(layers=(0,))


def made_up(grid, **more):
    """Returns summaries with the scores 10, 20, 30, ... at the points, and asymmetric intervals."""
    return {
        point.name: Summary(
            4,
            {
                "post_score": Estimate(10.0 * number, 5.0, 4, 10.0 * number - 6, 10.0 * number + 4),
                "post_rewrite_acc": Estimate(99.0, 5.0, 4, 90.0, 100.0),
            }
            | more,
        )
        for number, point in enumerate(grid.points, 1)
    }


def test_numbers_are_drawn_as_lines_in_their_order():
    grid = Grid.parse(["layers=5,0,3"], BASE)
    axes = draw(grid, made_up(grid), "a $ title").axes[0]
    score, efficacy = axes.lines
    assert score.get_xdata().tolist() == [0, 3, 5]
    assert score.get_ydata().tolist() == [20, 30, 10]
    assert efficacy.get_label() == "efficacy"
    assert axes.get_xlabel() == "layers" and axes.get_xscale() == "linear"
    bands = [band.get_paths()[0].vertices[:, 1] for band in axes.collections]
    assert (bands[0].min(), bands[0].max()) == (4, 34)
    assert (bands[1].min(), bands[1].max()) == (90, 100)
    (legend,) = axes.figure.legends
    labels = [text.get_text() for text in legend.texts]
    assert labels == ["score S", "efficacy", "95 % interval"]


def test_means_without_an_interval_have_none_drawn():
    grid = Grid.parse(["layers=0,1"], BASE)
    found = {
        point.name: Summary(1, {"post_score": Estimate(50.0, 0.0, 1)}) for point in grid.points
    }
    (band,) = draw(grid, found, "").axes[0].collections
    assert set(band.get_paths()[0].vertices[:, 1]) == {50.0}
    bars = Grid.parse(["key_mode=reference,consistent"], BASE)
    found = dict(zip([point.name for point in bars.points], found.values(), strict=True))
    axes = draw(bars, found, "").axes[0]
    assert [bar.get_height() for bar in axes.containers[1]] == [50, 50]


def test_the_axis_of_lines_uses_its_range_and_that_of_bars_begins_at_zero():
    high = {"post_score": Estimate(97.0, 1.0, 4, 93.0, 99.0)}
    lines, bars = (Grid.parse([text], BASE) for text in ("layers=0,1", "key_mode=reference"))
    assert draw(lines, made_up(lines, **high), "").axes[0].get_ylim()[0] > 85
    assert draw(bars, made_up(bars, **high), "").axes[0].get_ylim()[0] == 0


def test_values_over_several_decades_are_drawn_on_a_log_axis():
    grid = Grid.parse(["v_lr=0.01,0.1,1"], BASE)
    axes = draw(grid, made_up(grid), "").axes[0]
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.01", "0.1", "1"]


@pytest.mark.parametrize("text", ["key_mode=reference,consistent", "layers=(0,),(0,1)"])
def test_values_that_are_not_numbers_are_drawn_as_bars(text):
    grid = Grid.parse([text], BASE)
    axes = draw(grid, made_up(grid), "").axes[0]
    assert [bar.get_height() for bar in axes.containers[1]] == [10, 20]
    assert [t.get_text() for t in axes.get_xticklabels()] == list(map(label, grid.axes[0].values))


def test_two_keys_are_a_heatmap_with_the_first_key_down():
    grid = Grid.parse(["layers=0,1", "v_lr=0.1,0.5,1"], BASE)
    axes, bar = draw(grid, made_up(grid), "").axes
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written[0.5, 0.5] == "10.0" and written[2.5, 0.5] == "30.0"
    assert written[0.5, 1.5] == "40.0"
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("layers", "v_lr") and axes.yaxis_inverted()
    assert bar.get_ylabel() == "score S, %"


def test_figures_that_cannot_be_drawn_are_refused():
    grid = Grid.parse(["layers=0", "v_lr=0.1", "kl_factor=0"], BASE)
    with pytest.raises(ValueError, match="3 keys are varied"):
        draw(grid, made_up(grid), "")
    grid = Grid.parse(["layers=0"], BASE)
    with pytest.raises(ValueError, match="no metric in common"):
        draw(grid, {"layers=0": Summary(1, {"time": Estimate(1.0, 0.0, 1)})}, "")
