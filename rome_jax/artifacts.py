"""Where files that can be made again are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """`$ROME_JAX_CACHE`, else `$XDG_CACHE_HOME/rome_jax`, else `~/.cache/rome_jax`. It may not exist yet."""
    if place := os.environ.get("ROME_JAX_CACHE"):
        return Path(place).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rome_jax"
