"""Progress bars: plain ones in a terminal, widgets in a notebook that has them."""

from __future__ import annotations

import warnings

from tqdm import TqdmWarning

with warnings.catch_warnings():
    # In a notebook without ipywidgets tqdm falls back to plain bars; its advice to install them is not ours to give.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

__all__ = ["tqdm"]
