"""Progress bars: plain bars in a terminal, widgets in a notebook that supports them."""

from __future__ import annotations

import warnings

from tqdm import TqdmWarning

with warnings.catch_warnings():
    # In a notebook without ipywidgets, tqdm falls back to plain bars and advises the user to install ipywidgets.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

__all__ = ["tqdm"]
