"""Traces of one prompt: the corrupted runs, then a restoration at every place, in few programs of few shapes.

    TracePrompt, noise ─► start: clean and corrupted runs ─► trace: every place ─► table [tokens, layers]
                                                                │
                                                                └─ scores: chunks of places, one packed row each

Axes: S noise samples, n subject tokens, D width, L layers, N places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.data.tokens import bucket
from rome_jax.files.checked import Count, PositiveInt, check, shown
from rome_jax.files.memory import check_memory
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Site
from rome_jax.models.patches import PatchMode
from rome_jax.models.registry import LanguageModel
from rome_jax.trace.corruption import Measure, Runs, run_clean_and_corrupted
from rome_jax.trace.prompt import TracePrompt
from rome_jax.trace.restore import DEFAULT_WINDOW, TraceKind, pack_restorations, restore

# The rows of each matrix product are the columns of a chunk times the noise samples. A few hundred rows keep a CPU
# busy, and a larger chunk would run more layers than some of its places need: all of them start at the lowest layer.
CHUNK_COLUMNS = 64
# A chunk has room for one place per this many columns. A prompt of ten tokens has about this many columns per place.
COLUMNS_PER_PLACE = 4

_LONG_ROW = 4096  # columns; up to this many, --chunk_columns alone decides


def start(
    model: LanguageModel,
    prompt: TracePrompt,
    noise: jax.Array | np.ndarray,
    *,
    mode: PatchMode = PatchMode.ADD,
    measure: Measure = Measure.PROBABILITY,
) -> Runs:
    """Computes a prompt's clean run and its corrupted runs, from which every kind of trace starts.

    Args:
      model: Model to trace.
      prompt: Prompt to trace.
      noise: [S, n, D] noise for the embeddings of the subject's tokens, one sample per corrupted run.
      mode: Whether the noise is added to the embeddings or replaces them.
      measure: How the answer is scored, here and in all traces of these runs.

    Returns:
      The runs, which `trace`, `scores` and the functions of `screen` take.

    Raises:
      SequenceTooLongError: If the prompt is longer than the model's context.
      ValueError: If the noise has another shape or type, or there is no such mode or measure.

    Example:
      >>> text = "Gothulf Punby plays the sport of"
      >>> prompt = TracePrompt.of(model.tokenizer, text, "Gothulf Punby")
      >>> runs = start(model, prompt, 0.5 * jax.random.normal(key, (2, 3, 128)))
      >>> runs.answer, round(runs.clean_score, 2), round(runs.corrupted_score, 2)
      (' rowing', 0.99, 0.04)
    """
    mode, measure = check(PatchMode, mode, "mode"), check(Measure, measure, "measure")
    noise = noise if isinstance(noise, jax.Array) else np.asarray(noise)
    if noise.dtype.kind not in "fiu":
        raise ValueError(f"noise has the type {noise.dtype}: give numbers.")
    noise = jnp.asarray(noise)
    if noise.ndim != 3 or noise.shape[2] != model.config.width or not len(noise):
        raise ValueError(
            f"noise has shape {noise.shape}: give noise of shape [samples, subject tokens, {model.config.width}], "
            "with at least one sample."
        )
    tokens = prompt.arrays(model.config.context_length)
    noise = prompt.spread(noise, len(tokens.ids))
    states = run_clean_and_corrupted(
        model.params, model.config, tokens, noise, mode=mode, measure=measure
    )
    return Runs(model, prompt, states)


def check_runs_memory(config: ModelConfig, num_tokens: int, samples: int) -> None:
    """Refuses corrupted runs whose states take more memory than the machine has.

    Args:
      config: Configuration of the model.
      num_tokens: Number of tokens of the prompt.
      samples: Number of noise samples.

    Raises:
      ValueError: If they need more.
    """
    # Three sites, and the keys and values of attention, in each layer.
    numbers = 5 * config.num_layers * samples * num_tokens * config.width
    check_memory(4 * numbers, f"a trace of {num_tokens} tokens with samples={samples}")


def trace(
    runs: Runs,
    *,
    kind: TraceKind = TraceKind.HIDDEN,
    window: int = DEFAULT_WINDOW,
    severed: Sequence[Site] = (),
    held: Runs | None = None,
    tokens: Sequence[int] | np.ndarray | None = None,
    chunk_columns: int = CHUNK_COLUMNS,
) -> np.ndarray:
    """Restores every layer at every token, or at some tokens (paper, section 2.1, figure 1).

    Args:
      runs: Clean and corrupted runs from `start`.
      kind: What is restored at a place.
      window: Number of layers of MLP or attention outputs that are restored together; no meaning for hidden states.
      severed: Sites, MLP_OUT or ATTN_OUT, whose outputs at the restored token keep their corrupted values (paper,
        section 2.2).
      held: Other runs that those corrupted values are taken from, as in the original, which draws new noise for them;
        `runs` if None.
      tokens: Columns of the prompt to restore; all if None.
      chunk_columns: Bound on the memory; see `scores`.

    Returns:
      [tokens, L], the measure of the answer with each place restored, the mean over noise samples. Subtract
      `runs.corrupted_score` for the indirect effects.

    Raises:
      ValueError: If a token is not in the prompt, or the window is empty or more than twice as long as the model is
        deep.

    Example:
      The effects of the hidden states at the subject's last token, by layer:

      >>> text = "Gothulf Punby plays the sport of"
      >>> prompt = TracePrompt.of(model.tokenizer, text, "Gothulf Punby")
      >>> runs = start(model, prompt, 0.5 * jax.random.normal(key, (2, 3, 128)))
      >>> effects = trace(runs) - runs.corrupted_score
      >>> effects[2].round(1)
      array([ 1.,  1.,  1.,  0., -0.,  0.], dtype=float32)
    """
    columns = _tokens(runs, range(len(runs.prompt.ids)) if tokens is None else tokens)
    num_layers = runs.model.config.num_layers
    return scores(
        runs,
        np.repeat(columns, num_layers),
        np.tile(np.arange(num_layers), len(columns)),
        kind=kind,
        window=window,
        severed=severed,
        held=held,
        chunk_columns=chunk_columns,
    ).reshape(len(columns), num_layers)


def scores(
    runs: Runs,
    tokens: np.ndarray,
    layers: np.ndarray,
    *,
    kind: TraceKind = TraceKind.HIDDEN,
    window: int = DEFAULT_WINDOW,
    severed: Sequence[Site] = (),
    held: Runs | None = None,
    chunk_columns: int = CHUNK_COLUMNS,
) -> np.ndarray:
    """Scores the answer under restorations at chosen places.

    Args:
      runs, kind, window, severed, held: As in `trace`.
      tokens, layers: int [N] places, (tokens[i], layers[i]) each.
      chunk_columns: Columns of one packed row, raised to the length from the first restored token to the end of the
        answer. Memory grows with it, with the samples and with the vocabulary.

    Returns:
      [N] scores, each the mean over noise samples.

    Raises:
      ValueError: If the prompt does not have a token, the model does not have a layer, the window is empty or more than
        twice as long as the model is deep, or `chunk_columns` is below 1.

    Example:
      >>> text = "Gothulf Punby plays the sport of"
      >>> prompt = TracePrompt.of(model.tokenizer, text, "Gothulf Punby")
      >>> runs = start(model, prompt, 0.5 * jax.random.normal(key, (2, 3, 128)))
      >>> tokens, layers = np.repeat([0, 2], 6), np.tile(np.arange(6), 2)
      >>> scores(runs, tokens, layers).round(2)[[0, 6]]  # the first and the last token of the subject, layer 0
      array([0.03, 0.99], dtype=float32)
    """
    kind, window = check(TraceKind, kind, "kind"), check(int, window, "window")
    num_layers = runs.model.config.num_layers
    tokens, layers = _tokens(runs, tokens), _indices(layers, num_layers, "layers", "the model")
    if len(tokens) != len(layers):
        raise ValueError(
            f"there are {len(tokens)} tokens and {len(layers)} layers: give one of each per place."
        )
    plan = plan_chunks(
        runs.prompt,
        tokens,
        layers,
        num_layers,
        kind=kind,
        window=window,
        from_start=held is not None,
        chunk_columns=chunk_columns,
    )
    result = np.full(len(tokens), runs.corrupted_score, np.float32)
    found = []
    for chunk in plan:
        packed = pack_restorations(
            tokens[chunk.indices],
            layers[chunk.indices],
            runs.prompt.answer_columns,
            chunk.start,
            chunk.num_columns,
            chunk.num_places,
        )
        found.append(
            restore(
                runs.model.params,
                runs.model.config,
                runs.states,
                packed,
                kind=kind,
                window=jnp.int32(min(window, 2 * num_layers)),  # unused if larger
                severed=tuple(severed),
                held=None if held is None else held.states,
            )
        )
    for chunk, values in zip(plan, found, strict=True):
        result[chunk.indices] = np.asarray(values)[: len(chunk.indices)]
    return result


def _tokens(runs: Runs, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    """Refuses tokens that the prompt does not have, and returns them as an array."""
    owner = f"the prompt {shown(runs.prompt.text)}"
    return _indices(tokens, len(runs.prompt.ids), "tokens", owner)


def _indices(values: Sequence[int] | np.ndarray, count: int, name: str, owner: str) -> np.ndarray:
    """Refuses tokens or layers that the prompt or the model does not have, and returns them as an array."""
    found = np.atleast_1d(np.asarray(values))
    whole = not found.size or found.dtype.kind in "iu"
    if found.ndim != 1 or not whole or (found.size and not 0 <= found.min() <= found.max() < count):
        raise ValueError(
            f"{name}={shown(found.tolist())}: {owner} has the {name} 0 to {count - 1}; give some of these."
        )
    return found.astype(int)


@dataclasses.dataclass(frozen=True, eq=False)
class RestorationChunk:
    """Restorations that run together, in one packed row.

    Attributes:
      indices: int [N], the places that the chunk restores, by their index in the plan's arguments.
      start: First layer that runs.
      num_columns, num_places: Shape of the program, the same for all chunks of a plan.
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
    """Decides which places run together and at which layer they start.

    Places are sorted by the lowest layer that they change, because all places of a chunk start at the lowest layer of
    any of them. Places before the subject are in no chunk: the corrupted runs have the clean states there, so
    restoring one changes nothing. The exception is `from_start`.

    Args:
      prompt, tokens, layers, kind, window, chunk_columns: As in `scores`.
      num_layers: Layers of the model.
      from_start: Whether severed modules keep the values of other runs. Then every place runs, from layer 0.

    Returns:
      The chunks, lowest layers first.

    Raises:
      ValueError: If the window is empty or more than twice as long as the model is deep, or `chunk_columns` is below 1.

    Example:
      >>> prompt = TracePrompt.of(model.tokenizer, "Gothulf Punby plays the sport of", "Gothulf Punby")
      >>> tokens, layers = np.repeat(np.arange(3), 6), np.tile(np.arange(6), 3)
      >>> [(chunk.start, len(chunk.indices)) for chunk in plan_chunks(prompt, tokens, layers, 6)]
      [(1, 10), (4, 8)]
    """
    check_window(kind, window, num_layers)
    chunk_columns = check(PositiveInt, chunk_columns, "chunk_columns")
    lowest, _ = kind.layers(layers, window)
    # A restored hidden state is a layer's output: the next layer is the first to change.
    lowest = np.clip(lowest + (kind is TraceKind.HIDDEN), 0, num_layers - 1)
    if from_start:
        lowest = np.zeros_like(layers)
    lengths = prompt.answer_columns[-1] + 1 - tokens
    order = np.lexsort((tokens, lowest))
    order = order[(tokens[order] >= prompt.span[0]) | from_start]
    if not len(order):
        return []
    # No row is much longer than all places together.
    chunk_columns = min(chunk_columns, max(_LONG_ROW, int(lengths[order].sum())))
    # Compiling another shape costs more than some padding.
    num_columns = bucket(max(chunk_columns, int(lengths[order].max())), 2)
    most_places = max(1, num_columns // COLUMNS_PER_PLACE)
    chunks: list[list[int]] = []
    columns_left = 0
    for index in order:
        if lengths[index] > columns_left or len(chunks[-1]) == most_places:
            chunks.append([])
            columns_left = num_columns
        chunks[-1].append(index)
        columns_left -= lengths[index]
    num_places = bucket(max(map(len, chunks)), 1)
    return [
        RestorationChunk(np.array(chunk), int(lowest[chunk[0]]), num_columns, num_places)
        for chunk in chunks
    ]


def default_window(num_layers: int) -> int:
    """Returns the paper's window of 10 layers, or half of the layers of a shallower model.

    In a model of six layers all windows of ten would cover the same layers.

    Raises:
      ValueError: If `num_layers` is not a whole number of at least 1.

    Example:
      >>> default_window(48), default_window(6)
      (10, 3)
    """
    return min(DEFAULT_WINDOW, max(1, check(Count, num_layers, "num_layers") // 2))


def check_window(kind: TraceKind, window: int, num_layers: int) -> None:
    """Refuses a window that does not fit the model.

    Args:
      kind: What is restored; any window is accepted for hidden states.
      window: Number of layers.
      num_layers: Layers of the model.

    Raises:
      ValueError: If the window is empty or longer than twice the layers, when it covers all of them at any center.

    Example:
      >>> check_window(TraceKind.MLP, 13, 6)
      Traceback (most recent call last):
      ValueError: window=13 must be between 1 and 12, twice the model's 6 layers.
    """
    if kind is not TraceKind.HIDDEN and not 1 <= window <= 2 * num_layers:
        raise ValueError(
            f"window={window} must be between 1 and {2 * num_layers}, twice the model's {num_layers} layers."
        )
