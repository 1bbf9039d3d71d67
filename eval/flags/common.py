"""The flags that every program accepts."""

from __future__ import annotations

from absl import flags

CACHE = flags.DEFINE_bool(
    "compilation_cache",
    True,
    "Keep compiled programs in the cache folder, so that the next run starts faster.",
)
VERIFY = flags.DEFINE_bool(
    "verify",
    False,
    "Compare every file of rome_jax that is read with its checksums, including large ones that have not changed since "
    "the last check.",
)
NAMES = (CACHE.name, VERIFY.name)
