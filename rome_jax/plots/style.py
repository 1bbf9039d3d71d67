"""The look that all figures share: palette, settings, the saver, and the check for matplotlib.

matplotlib comes with the extra `plot`. No module of this package imports it until a figure is drawn, so a program can
import them all and call `check_matplotlib` before it begins its work.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import io
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from rome_jax.files import extras
from rome_jax.files.artifacts import write_whole
from rome_jax.files.checked import shown

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.container import Container
    from matplotlib.figure import Figure

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Color(enum.StrEnum):
    """The palette of Okabe and Ito, which readers with any color vision can tell apart, and a gray."""

    BLACK = "#000000"
    ORANGE = "#E69F00"
    SKY = "#56B4E9"
    GREEN = "#009E73"
    BLUE = "#0072B2"
    VERMILION = "#D55E00"
    PURPLE = "#CC79A7"
    GRAY = "#707070"


WIDTH = 7.0
"""Width in inches of a figure that spans the text of a page; its text stays readable at 800 pixels."""

TITLE_SIZE = 9
SMALL_SIZE = 7

_SETTINGS: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.titlesize": TITLE_SIZE,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "savefig.facecolor": "white",
    "text.parse_math": False,  # a token or a name may contain dollar signs
    "text.usetex": False,
    "xtick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.labelsize": 7.5,
    "ytick.major.width": 0.6,
}
# DejaVu comes with matplotlib; the others, where installed, have the scripts that it lacks.
_FONT = "DejaVu Sans"
_FURTHER_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans Devanagari", "Noto Sans"),
    *("Hiragino Sans", "Microsoft YaHei", "WenQuanYi Zen Hei", "Arial Unicode MS"),
)
# Text stays text in PDF and SVG files, and the same figure gives the same bytes.
_FILE_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "svg.hashsalt": "rome_jax",
}
_METADATA: dict[str, dict[str, None]] = {
    ".pdf": {"CreationDate": None, "ModDate": None},
    ".svg": {"Date": None},
    ".png": {},
}
_DPI = 180
_COLOR_STEP = 5  # of 255; a color changes by at most 2


def check_matplotlib(purpose: str = "the figure") -> None:
    """Checks that matplotlib is installed, without importing it.

    Args:
      purpose: What needs it, for the message.

    Raises:
      MissingPackageError: If it is not installed; the message says how to install it.

    Example:
      >>> check_matplotlib("the figure of the averages")
    """
    extras.check("matplotlib", "plot", purpose)


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """Applies the library's matplotlib settings inside a `with` block; the user's own settings return after it.

    Raises:
      MissingPackageError: If matplotlib is not installed.
    """
    check_matplotlib()
    import matplotlib

    with matplotlib.rc_context({**_SETTINGS, **_FILE_SETTINGS, "font.family": _fonts()}):
        yield


def drawing(draw: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorates a function that draws a figure, so that it runs in the library's `settings`."""

    @functools.wraps(draw)
    def styled(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with settings():
            return draw(*args, **kwargs)

    return styled


@functools.cache
def _fonts() -> list[str]:
    """Returns the fonts to look for a character in, of those that are installed."""
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return [_FONT, *(font for font in _FURTHER_FONTS if font in installed), "sans-serif"]


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure that belongs to no window and to no global state.

    Args:
      width, height: Its size in inches.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def check_figure_path(path: str | Path, name: str = "path") -> Path:
    """Checks that a figure can be written in the format that a file's name ends in, and returns the path.

    Args:
      path: The file.
      name: Name of the path in errors, such as "--plot".

    Raises:
      ValueError: If the file does not end in .pdf, .svg or .png.

    Example:
      >>> check_figure_path("figures/sweep.bmp", "--plot")
      Traceback (most recent call last):
      ValueError: --plot='figures/sweep.bmp' must end in one of .pdf, .svg, .png.
    """
    if Path(path).suffix.lower() not in _METADATA:
        raise ValueError(f"{name}={shown(str(path))} must end in one of {', '.join(_METADATA)}.")
    return Path(path)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure to a file; an interrupted call leaves no partial file, and the same figure gives the same bytes.

    Text remains text in PDF and SVG files. PNG files have 180 dots per inch.

    Args:
      figure: A figure from this package.
      path: A file that ends in .pdf, .svg or .png; its folder is created if it is missing.

    Raises:
      ValueError: If the file has another suffix.

    Example:
      >>> from rome_jax.plots import style
      >>> with style.settings():
      ...     figure = style.new_figure(2, 1)
      >>> style.save_figure(figure, "figures/empty.svg")
    """
    path = check_figure_path(path)
    suffix = path.suffix.lower()
    image = io.BytesIO()
    with settings():
        figure.savefig(
            image,
            format=suffix[1:],
            metadata=_METADATA[suffix],
            dpi=_DPI,
            bbox_inches="tight",  # what reaches over the edge is not cut off
        )
    write_whole(path, _compact(image) if suffix == ".png" else image.getvalue())


def _compact(image: io.BytesIO) -> bytes:
    """Returns a PNG image with rounded colors, about half as large; no color changes visibly."""
    from PIL import Image  # required by matplotlib

    with Image.open(image) as full:
        colors = np.asarray(full.convert("RGB"), np.float32)
    rounded = (_COLOR_STEP * np.round(colors / _COLOR_STEP)).astype(np.uint8)
    small = io.BytesIO()
    Image.fromarray(rounded).save(small, format="PNG", optimize=True, dpi=(_DPI, _DPI))
    return small.getvalue()


def band(axes: Axes, x: Sequence[float] | np.ndarray, interval: np.ndarray, color: object) -> None:
    """Shades an interval around a line.

    Args:
      axes: The panel.
      x: [N] positions.
      interval: [2, N] lower and upper ends.
      color: The color of the line.
    """
    axes.fill_between(x, *interval, color=color, alpha=0.18, linewidth=0)


def band_patch(label: str = "95 % interval") -> Artist:
    """Returns the entry of a legend that explains bands of any color.

    Args:
      label: What the bands are.
    """
    from matplotlib.patches import Patch

    return Patch(color=Color.GRAY, alpha=0.25, linewidth=0, label=label)


def whiskers(**changes: Any) -> dict[str, Any]:
    """Returns the options that draw thin black error bars on bars, with `changes`."""
    return {"ecolor": "black", "elinewidth": 0.7, "capsize": 1.5, "capthick": 0.7, **changes}


def percent_axis(axes: Axes, values: Iterable[float], *, bars: bool = False) -> None:
    """Limits a vertical axis of percentages to the range that its values use.

    The axis ends at 100 and begins at a multiple of five below the least value, or at 0 for bars; a small margin keeps
    markers whole.

    Args:
      axes: The panel.
      values: All values that it shows, the ends of intervals included; NaN is ignored.
      bars: Whether the values are lengths of bars.
    """
    finite = [value for value in values if math.isfinite(value)]
    least = 0.0 if bars else max(0.0, min(finite, default=0.0))
    low = min(90.0, 5 * math.floor(least / 5))
    margin = 0.03 * (100 - low)
    axes.set_ylim(low if bars else low - margin, 100 + margin)


def log_axis(axes: Axes, which: str) -> None:
    """Makes an axis logarithmic, with plain numbers such as 0.02 as its labels.

    Args:
      axes: The panel.
      which: "x" or "y".
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    low, high = sorted(axis.get_view_interval())
    many = math.log10(high / low) > 1.6
    axis.set_major_locator(LogLocator(subs=(1.0,) if many else (1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def legend_below(figure: Figure, handles: Sequence[Artist | Container], columns: int) -> None:
    """Draws the one legend of a figure below all its panels.

    Args:
      figure: The figure.
      handles: What the legend explains, each with its own label; without any there is no legend.
      columns: The number of columns.
    """
    if handles:
        figure.legend(handles=list(handles), loc="outside lower center", ncols=columns)


def wrap(text: str, length: int) -> str:
    """Breaks lines of more than `length` characters.

    Example:
      >>> wrap("a long title", 8)
      'a long\\ntitle'
    """
    return "\n".join(textwrap.fill(line, length) for line in text.splitlines())
