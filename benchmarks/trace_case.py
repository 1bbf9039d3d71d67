"""A causal trace of fixed shapes for the benchmarks: its prompt, its noise, and the work of both sides.

The prompt has 8 tokens with the subject at tokens 2 to 4 (counted from 0). This module does not import torch.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from rome_jax.models.config import ModelConfig
from rome_jax.trace import sweep
from rome_jax.trace.prompt import TracePrompt
from rome_jax.trace.restore import DEFAULT_WINDOW, TraceKind

PROMPT, SPAN = 8, (2, 5)
NOISE = 0.06  # three times the standard deviation of the random embeddings


def make_prompt(ids: np.ndarray, span: tuple[int, int] = SPAN) -> TracePrompt:
    """Builds a prompt from token ids. Its answer is the token that the model predicts.

    Args:
      ids: int [T] tokens.
      span: (first, last + 1) token of the subject.
    """
    pieces = tuple(f"<{token}>" for token in ids)
    return TracePrompt(
        "".join(pieces), "".join(pieces[slice(*span)]), tuple(ids.tolist()), pieces, span
    )


def every_place(num_tokens: int, num_layers: int) -> np.ndarray:
    """Returns all pairs (token, layer), int [T · L, 2], in the row-major order of a table [T, L]."""
    return np.argwhere(np.ones((num_tokens, num_layers), bool))


@dataclasses.dataclass(frozen=True)
class Work:
    """Floating-point operations per table.

    Only matrix products with weights are counted. The products inside attention add less than 2 %.

    Attributes:
      rome_jax: Operations of rome_jax, including padding.
      torch: Operations of the PyTorch implementation.
    """

    rome_jax: float
    torch: float


def programs(
    config: ModelConfig,
    prompt: TracePrompt,
    kind: TraceKind,
    chunk_columns: int,
    window: int = DEFAULT_WINDOW,
) -> list[tuple[int, int, int]]:
    """Lists (start layer, columns, places) of each program that `sweep.trace` runs, including padding.

    Args:
      config: Configuration of the model.
      prompt: Prompt to trace.
      kind: States to restore.
      chunk_columns: Columns that one program runs together.
      window: Number of layers whose MLP or attention outputs are restored together.
    """
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
    """Counts the floating-point operations of a table that restores every layer at every token.

    Each token takes two operations per weight.

    Args:
      config, prompt, kind, chunk_columns, window: As in `programs`.
      samples: Number of noise samples, S.
    """
    width, num_layers = config.width, config.num_layers
    layer = 2 * (4 * width**2 + 2 * width * config.mlp_width)
    head = 2 * width * config.vocab_size
    # In the last layer, columns that are not read compute only keys and values. GPT-2's fused projection also computes
    # their queries.
    keys_values = 2 * width**2 * (3 if config.fused_qkv else 2)
    num_read = len(prompt.answer_columns)

    padded = len(prompt.arrays(config.context_length).ids)
    ours = (1 + samples) * (padded * num_layers * layer + num_read * head)
    for begin, columns, places in programs(config, prompt, kind, chunk_columns, window):
        below_last = columns * (num_layers - 1 - begin) * layer
        last = columns * keys_values + places * num_read * layer
        ours += samples * (below_last + last + places * num_read * head)

    tokens = len(every_place(len(prompt.ids), num_layers)) * (1 + samples) * len(prompt.ids)
    return Work(ours, tokens * (num_layers * layer + head))
