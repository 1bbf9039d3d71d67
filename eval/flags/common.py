"""The flag that every program accepts."""

from __future__ import annotations

from absl import flags

CACHE = flags.DEFINE_bool(
    "compilation_cache",
    True,
    "Keep compiled programs in the cache folder, so that the next run starts faster.",
)
