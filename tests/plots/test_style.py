"""What all figures share: files, settings, axes, and the check for matplotlib."""

import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import matplotlib
from PIL import Image

from rome_jax.files.extras import MissingPackageError
from rome_jax.plots import style


@style.drawing
def small_figure():
    """A figure with a name that is no mathematics."""
    figure = style.new_figure(2, 1)
    axes = figure.subplots()
    axes.plot([1, 2], [3, 4])
    axes.set_title("p($5$) of Space*")
    return figure


@pytest.mark.parametrize("suffix", [".pdf", ".svg", ".PNG"])
def test_files_are_reproducible(tmp_path, suffix, monkeypatch):
    """The same figure gives the same bytes, without a date, and no partial file remains."""
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    paths = [tmp_path / "new" / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        style.save_figure(small_figure(), path)
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert b"CreationDate" not in first and b"dc:date" not in first
    assert {path.name for path in paths[0].parent.iterdir()} == {path.name for path in paths}


def test_text_stays_text(tmp_path):
    style.save_figure(small_figure(), tmp_path / "figure.svg")
    assert ">p($5$) of Space*</" in (tmp_path / "figure.svg").read_text()
    style.save_figure(small_figure(), tmp_path / "figure.pdf")
    pdf = (tmp_path / "figure.pdf").read_bytes()
    assert b"/FontFile2" in pdf and b"/Subtype /Type3" not in pdf


def test_images_are_opaque_and_their_colors_almost_exact(tmp_path):
    figure = small_figure()
    style.save_figure(figure, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.mode == "RGB"
        colors = np.asarray(image).reshape(-1, 3).astype(int)
    assert (colors == 255).all(1).any()
    line = np.array(matplotlib.colors.to_rgb(figure.axes[0].lines[0].get_color())) * 255
    assert np.abs(colors - line).max(1).min() <= 3


@pytest.mark.parametrize("name", ["figure.jpg", "figure", "figure.pdf.gz"])
def test_save_refuses_other_formats(tmp_path, name):
    with pytest.raises(ValueError, match=r"\.pdf, \.svg, \.png"):
        style.save_figure(small_figure(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_figure_that_cannot_be_drawn_leaves_the_old_file(tmp_path, monkeypatch):
    path, figure = tmp_path / "figure.png", small_figure()
    path.write_bytes(b"old")

    def fail(*args, **kwargs):
        raise RuntimeError("no")

    monkeypatch.setattr(figure, "draw", fail)
    with pytest.raises(RuntimeError, match="no"):
        style.save_figure(figure, path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_settings_of_the_user_stay(tmp_path):
    """Nothing global changes, and the user's settings do not turn text into mathematics."""
    with matplotlib.rc_context({"font.size": 17, "svg.fonttype": "path", "text.usetex": True}):
        before = dict(matplotlib.rcParams)
        figure = small_figure()
        style.save_figure(figure, tmp_path / "figure.svg")
        assert dict(matplotlib.rcParams) == before
    assert not figure.axes[0].title.get_usetex()
    assert not figure.axes[0].title.get_parse_math()


def test_without_matplotlib_one_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        MissingPackageError, match=r"needs matplotlib: pip install 'rome_jax\[plot\]'"
    ):
        small_figure()


@pytest.mark.parametrize(
    ("values", "bars", "low"),
    [([87.5, 100.0, np.nan], False, 85), ([99.0], False, 90), ([0.0], False, 0), ([87.5], True, 0)],
)
def test_percentages_use_their_range(values, bars, low):
    with style.settings():
        axes = style.new_figure(2, 2).subplots()
        style.percent_axis(axes, values, bars=bars)
    bottom, top = axes.get_ylim()
    margin = 0.03 * (100 - low)
    assert (bottom, top) == pytest.approx((low if bars else low - margin, 100 + margin))


@pytest.mark.parametrize(
    ("high", "labels"), [(6, ["1", "2", "5"]), (1000, ["1", "10", "100", "1,000"])]
)
def test_logarithmic_axes_have_plain_numbers(high, labels):
    with style.settings():
        axes = style.new_figure(2, 2).subplots()
        axes.plot([1, high], [1, 1])
        style.log_axis(axes, "x")
        axes.figure.draw_without_rendering()
    limits = axes.get_xlim()
    ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    assert [tick.get_text() for place, tick in ticks if limits[0] <= place <= limits[1]] == labels
