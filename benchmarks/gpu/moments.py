"""Second moments at the real model size: tokens per second that enter Σ k kᵀ of the edit layer."""

from __future__ import annotations

import jax
import numpy as np

from benchmarks.gpu import sizes, weights
from benchmarks.gpu.child import Context
from benchmarks.gpu.measure import median_seconds, peak_gib
from rome_jax.data.tokens import TokenBatch
from rome_jax.moments.key_sums import KeySums

_ROWS, _LENGTH = 8, 1024


def run(context: Context) -> None:
    """Writes the tokens per second of batches of full rows."""
    size = sizes.Size.of(context.size, context.tiny)
    shape = (2, 32) if context.tiny else (_ROWS, _LENGTH)
    params = weights.random_params(size.config, context.dtype)
    ids = np.random.default_rng(0).integers(size.config.vocab_size, size=shape)
    batch = TokenBatch(ids.astype(np.int32), np.ones(shape, bool))
    sums = KeySums(params, size.config, [size.layer])
    cold, _ = median_seconds(lambda: sums.add(batch), 1)
    repeats = 3 if context.seconds_left > 4 * cold else 1
    seconds, _ = median_seconds(lambda: sums.add(batch), repeats)
    context.emit(
        "second moments",
        {
            "model": context.size,
            "layer": size.layer,
            "dtype": context.dtype,
            "rows": f"{shape[0]} × {shape[1]} tokens",
            "s of the first batch": cold,
            "s per batch": seconds,
            "tokens per s": round(ids.size / seconds),
            "peak GiB so far": peak_gib(),
        },
    )
    jax.block_until_ready(params)
