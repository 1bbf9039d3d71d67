"""The flag that every program takes."""

from __future__ import annotations

from absl import flags

CACHE = flags.DEFINE_bool(
    "compilation_cache", True, "Keep compiled programs in the cache folder, for the next run."
)
