"""A causal trace as `benchmarks.trace` pins it: prompt, noise, and the work that both sides do. Imports no torch.

The prompt has 8 tokens with the subject at tokens 2 to 4 (from 0).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from rome_jax.models.config import Family, ModelConfig
from rome_jax.trace import sweep
from rome_jax.trace.prompt import TracePrompt
from rome_jax.trace.restore import DEFAULT_WINDOW, TraceKind

PROMPT, SPAN = 8, (2, 5)
NOISE = 0.06  # three standard deviations of the random embeddings


def make_prompt(ids: np.ndarray, span: tuple[int, int] = SPAN) -> TracePrompt:
    """A prompt of tokens without text, whose answer is the model's own."""
    pieces = tuple(f"<{token}>" for token in ids)
    return TracePrompt(
        "".join(pieces), "".join(pieces[slice(*span)]), tuple(ids.tolist()), pieces, span
    )


def every_place(num_tokens: int, num_layers: int) -> np.ndarray:
    """int [T · L, 2], (token, layer), in the order of a table's rows."""
    return np.argwhere(np.ones((num_tokens, num_layers), bool))


@dataclasses.dataclass(frozen=True)
class Work:
    """Floating-point operations of a table: of products with weights alone, attention itself is below 2 %."""

    rome_jax: float
    torch: float


def programs(
    config: ModelConfig,
    prompt: TracePrompt,
    kind: TraceKind,
    chunk_columns: int,
    window: int = DEFAULT_WINDOW,
) -> list[tuple[int, int, int]]:
    """(start layer, columns, places) of each program that `sweep.trace` runs, the padding counted in."""
    tokens, layers = every_place(len(prompt.ids), config.num_layers).T
    plan = sweep.plan_chunks(
        prompt,
        tokens,
        layers,
        config.num_layers,
        kind=kind,
        window=window,
        chunk_columns=chunk_columns,
    )
    return [(chunk.start, chunk.num_columns, chunk.num_places) for chunk in plan]


def count_work(
    config: ModelConfig,
    prompt: TracePrompt,
    samples: int,
    kind: TraceKind,
    chunk_columns: int,
    window: int = DEFAULT_WINDOW,
) -> Work:
    """Two operations a weight and token.

    Args:
      config, prompt, kind: what is traced.
      samples: S, of the noise.
      chunk_columns: of rome_jax's programs.
      window: layers whose MLP or attention outputs are restored together.

    Example:
      >>> work = count_work(config, prompt, 10, Kind.HIDDEN, 64)  # doctest: +SKIP
      >>> work.rome_jax / work.torch  # doctest: +SKIP
    """
    width, num_layers = config.width, config.num_layers
    layer = 2 * (4 * width**2 + 2 * width * config.mlp_width)
    head = 2 * width * config.vocab_size
    # In the last layer columns that are not read give keys and values; GPT-2's projection has the queries in it too.
    keys_values = 2 * width**2 * (3 if config.family is Family.GPT2 else 2)
    num_read = len(prompt.answer_columns)

    padded = len(prompt.arrays(config.context_length).ids)
    ours = (1 + samples) * (padded * num_layers * layer + num_read * head)
    for begin, columns, places in programs(config, prompt, kind, chunk_columns, window):
        below_last = columns * (num_layers - 1 - begin) * layer
        last = columns * keys_values + places * num_read * layer
        ours += samples * (below_last + last + places * num_read * head)

    tokens = len(every_place(len(prompt.ids), num_layers)) * (1 + samples) * len(prompt.ids)
    return Work(ours, tokens * (num_layers * layer + head))
