"""Every restoration of a prompt, in few programs of few shapes.

    TracePrompt, noise ─► start: clean and corrupted runs ─► scores: chunks of places ─► table [tokens, layers]

Axes: S noise samples, n subject tokens, D width, L layers, N places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from rome_jax.data.tokens import bucket
from rome_jax.models.interventions import PatchMode, Site
from rome_jax.models.registry import LanguageModel
from rome_jax.trace.prompt import TracePrompt
from rome_jax.trace.restore import (
    DEFAULT_WINDOW,
    Measure,
    Runs,
    TraceKind,
    pack_restorations,
    restore,
    run,
)

# Columns of a chunk times noise samples are the rows of every product: some hundreds fill a CPU, and what starts
# together runs the layers of the lowest.
CHUNK_COLUMNS = 64
# A place is at least one column, and about this many in a prompt of ten tokens: what a chunk has room for.
_COLUMNS_A_PLACE = 4


def start(
    model: LanguageModel,
    prompt: TracePrompt,
    noise: jax.Array,
    *,
    mode: PatchMode = PatchMode.ADD,
    measure: Measure = Measure.PROBABILITY,
) -> Runs:
    """The clean and the corrupted runs of a prompt, from which every kind of trace sets out.

    Args:
      model, prompt: what is traced.
      noise: [S, n, D], one sample a corrupted run.
      mode: whether noise is added to the subject's token embeddings or replaces them.
      measure: of the answer.

    Raises:
      SequenceTooLongError: a prompt longer than the model's context.
      ValueError: noise of another shape.

    Example:
      >>> runs = start(model, prompt, noise)  # doctest: +SKIP
      >>> table = trace(model, prompt, runs, kind=Kind.MLP)  # doctest: +SKIP
    """
    if noise.ndim != 3 or noise.shape[2] != model.config.width or not len(noise):
        raise ValueError(
            f"noise has shape {noise.shape}: it must be [samples, subject tokens, {model.config.width}]."
        )
    tokens = prompt.arrays(model.config.context_length)
    noise = prompt.spread(noise, len(tokens.ids))
    return run(model.params, model.config, tokens, noise, mode=mode, measure=measure)


def trace(
    model: LanguageModel,
    prompt: TracePrompt,
    runs: Runs,
    *,
    kind: TraceKind = TraceKind.HIDDEN,
    window: int = DEFAULT_WINDOW,
    severed: Sequence[Site] = (),
    held: Runs | None = None,
    tokens: Sequence[int] | None = None,
    measure: Measure = Measure.PROBABILITY,
    chunk_columns: int = CHUNK_COLUMNS,
) -> np.ndarray:
    """Restores every layer at every token, or at some tokens.

    Args:
      model, prompt: as for `start`.
      runs: what it returned.
      kind: what is restored.
      window: how many layers of MLP or attention outputs.
      severed: sites, MLP_OUT and ATTN_OUT, that are held at their corrupted values at the restored token.
      held: other runs to take those values from; the original draws new noise for them.
      tokens: the prompt's columns to restore; all if None.
      measure: as for `start`.
      chunk_columns: bounds the memory; see `scores`.

    Returns:
      [tokens, L], the mean measure over samples; minus `runs.corrupted_score`, the indirect effect.

    Raises:
      ValueError: a token beyond the prompt, or a window that is empty or larger than the model.
    """
    tokens = np.arange(len(prompt.ids)) if tokens is None else np.asarray(tokens)
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < len(prompt.ids)):
        raise ValueError(
            f"tokens={tokens.tolist()}: the prompt {prompt.text!r} has the tokens 0 to {len(prompt.ids) - 1}."
        )
    layers = np.arange(model.config.num_layers)
    every = [x.ravel() for x in np.meshgrid(tokens, layers, indexing="ij")]
    return scores(
        model,
        prompt,
        runs,
        *every,
        kind=kind,
        window=window,
        severed=severed,
        held=held,
        measure=measure,
        chunk_columns=chunk_columns,
    ).reshape(len(tokens), len(layers))


def scores(
    model: LanguageModel,
    prompt: TracePrompt,
    runs: Runs,
    tokens: np.ndarray,
    layers: np.ndarray,
    *,
    kind: TraceKind = TraceKind.HIDDEN,
    window: int = DEFAULT_WINDOW,
    severed: Sequence[Site] = (),
    held: Runs | None = None,
    measure: Measure = Measure.PROBABILITY,
    chunk_columns: int = CHUNK_COLUMNS,
) -> np.ndarray:
    """Scores [N] of restorations at the places (tokens[i], layers[i]).

    Args:
      chunk_columns: columns of one program, at least those from the first restored token to the prompt's end; memory
        grows with it, the samples and the vocabulary.
      others: as for `trace`.
    """
    plan = plan_chunks(
        prompt,
        tokens,
        layers,
        model.config.num_layers,
        kind=kind,
        window=window,
        from_start=held is not None,
        chunk_columns=chunk_columns,
    )
    result = np.full(len(tokens), float(runs.corrupted_score), np.float32)
    found = []
    for chunk in plan:
        places = pack_restorations(
            tokens[chunk.indices],
            layers[chunk.indices],
            prompt.answer_columns,
            chunk.start,
            chunk.num_columns,
            chunk.num_places,
        )
        found.append(
            restore(
                model.params,
                model.config,
                runs,
                places,
                kind=kind,
                window=np.int32(window),
                severed=tuple(severed),
                held=held,
                measure=measure,
            )
        )
    for chunk, values in zip(plan, found, strict=True):
        result[chunk.indices] = np.asarray(values)[: len(chunk.indices)]
    return result


@dataclasses.dataclass(frozen=True, eq=False)
class RestorationChunk:
    """Restorations that share a program.

    Attributes:
      indices: int [N], which of the places.
      start: the layer at which they set out.
      num_columns, num_places: the shape of the program, the same for all chunks of a plan.
    """

    indices: np.ndarray
    start: int
    num_columns: int
    num_places: int


def plan_chunks(
    prompt: TracePrompt,
    tokens: np.ndarray,
    layers: np.ndarray,
    num_layers: int,
    *,
    kind: TraceKind = TraceKind.HIDDEN,
    window: int = DEFAULT_WINDOW,
    from_start: bool = False,
    chunk_columns: int = CHUNK_COLUMNS,
) -> list[RestorationChunk]:
    """Which places run together, and from which layer on: nothing below it changes.

    Places before the subject are in no chunk: a state there is what it was. Only if other noise holds some of it there
    is something to run, and from layer 0.

    Args:
      prompt, tokens, layers, kind, window, chunk_columns: as for `scores`.
      num_layers: of the model.
      from_start: values of other runs are held.

    Raises:
      ValueError: a window that the model has no room for, or a chunk_columns below 1.
    """
    check_window(kind, window, num_layers)
    if chunk_columns < 1:
        raise ValueError(f"chunk_columns={chunk_columns} must be at least 1.")
    first, _ = kind.layers(layers, window)
    # Behind a restored hidden state the next layer is the first to change.
    first = np.clip(first + (kind is TraceKind.HIDDEN), 0, num_layers - 1)
    if from_start:
        first = np.zeros_like(layers)
    lengths = prompt.answer_columns[-1] + 1 - tokens
    order = np.lexsort((tokens, first))
    order = order[(tokens[order] >= prompt.span[0]) | from_start]
    if not len(order):
        return []
    # Few shapes: a compiled program costs more than some padding.
    most = bucket(max(chunk_columns, int(lengths[order].max())), 2)
    most_places = max(1, most // _COLUMNS_A_PLACE)
    chunks, room = [], 0
    for index in order:
        if lengths[index] > room or len(chunks[-1]) == most_places:
            chunks.append([])
            room = most
        chunks[-1].append(index)
        room -= lengths[index]
    places = bucket(max(map(len, chunks)), 1)
    return [
        RestorationChunk(np.array(chunk), int(first[chunk[0]]), most, places) for chunk in chunks
    ]


def default_window(num_layers: int) -> int:
    """The paper's window, or half of a shallow model's layers: more, and all windows are alike.

    Example:
      >>> default_window(48), default_window(6)
      (10, 3)
    """
    return min(DEFAULT_WINDOW, max(1, num_layers // 2))


def check_window(kind: TraceKind, window: int, num_layers: int) -> None:
    """Raises ValueError for a window that the model has no room for."""
    if kind is not TraceKind.HIDDEN and not 1 <= window <= 2 * num_layers:
        raise ValueError(
            f"window={window}: it must lie between 1 and {2 * num_layers}, twice the model's {num_layers} layers."
        )
