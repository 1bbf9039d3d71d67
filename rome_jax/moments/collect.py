"""Collection over a corpus: the second moments of any number of layers, in one resumable pass, one file per layer.

    corpus ─► articles, cut at T tokens ─► packed rows ─► batches ─► Σ k kᵀ of each layer ─► one file per layer

A collection keeps its state (`rome_jax.moments.state`) in the directory that it writes to. If it is killed at any
moment, the next call resumes there and ends with the same bits.

Several processes may share a collection, in as many parts as there were processes when it began. Every process reads
and packs the whole corpus, which is cheap, and part p of P sums every Pth batch, from batch p on. A part has a state of
its own. When all are complete, process 0 adds them up in their order, so the bits of the result depend on the number of
parts and on nothing else. They differ from those of one part in the rounding of float64.

Axes: T tokens.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic

from rome_jax.data.corpus import Corpus
from rome_jax.files.artifacts import remove_leftovers
from rome_jax.files.checked import check
from rome_jax.files.folders import creating
from rome_jax.files.groups import ALONE, ProcessGroup
from rome_jax.files.memory import check_memory
from rome_jax.models import runs
from rome_jax.models.fingerprint import base_fingerprint
from rome_jax.models.registry import LanguageModel
from rome_jax.moments import files as moment_files
from rome_jax.moments.key_sums import mean_of
from rome_jax.moments.limits import Limit
from rome_jax.moments.second_moment import MomentProvenance
from rome_jax.moments.state import Part, State, parts_in, read_header
from rome_jax.moments.summing import Job, count_incomplete, error_of
from rome_jax.version import __version__

_LONGEST_ROW = 2048
_Seconds = Annotated[float, pydantic.Field(ge=0)]


def collect(
    model: LanguageModel,
    corpus: Corpus,
    layers: Iterable[int],
    directory: str | Path,
    *,
    limit: Limit = Limit(),
    sequence_length: int | None = None,
    batch_tokens: int = 4096,
    checkpoint_seconds: float = 300.0,
    dtype: str = "float32",
    command: str = "",
    progress: bool = True,
    group: ProcessGroup = ALONE,
) -> None:
    """Collects the second moments of some layers and writes `layer_<n>.safetensors` for each.

    Layers whose files exist already are not collected again.

    Args:
      model: The model whose keys are collected.
      corpus: The texts; see `rome_jax.data.corpus`.
      layers: Layers to collect. The model runs up to the last of them.
      directory: Directory of the files, and of the state until they are written.
      limit: How much of the corpus is read, and the error of C at which the collection stops earlier.
      sequence_length: Number of tokens T after which an article is cut; by default the model's context length, but at
        most 2,048.
      batch_tokens: Number of tokens per batch, which has as many rows as fit. A larger batch is faster on a large
        device and takes more memory.
      checkpoint_seconds: Seconds between saved states.
      dtype: Type of the stored numbers; see `rome_jax.moments.files.save`.
      command: Command line that the files record.
      progress: Whether to show a progress bar.
      group: The processes that share the collection. Process 0 writes the files, after the others have returned.

    Raises:
      ValueError: If the model does not have a layer, the lengths do not fit together, the corpus holds no text, the
        directory holds files or a state of another model, corpus, or setting, which the message names, or the limit has
        an error and there are several processes.
      IncompleteError: If another process ended before its part was complete.
      FolderInUseError: If another process collects into the directory.
      OSError: If the directory cannot be written to.

    Example:
      >>> _ = Path("articles.txt").write_text("Gothulf Punby plays the sport of rowing.\\n" * 60)
      >>> corpus = rome_jax.moments.open_corpus("articles.txt", sample_by="line")
      >>> sizes = {"limit": Limit(tokens=300), "sequence_length": 32, "batch_tokens": 32}
      >>> collect(model, corpus, [0], "stats/mine", **sizes, progress=False)
      >>> rome_jax.moments.load("stats/mine", model)[0].count
      300
    """
    directory = Path(directory)
    length = check(int | None, sequence_length, "sequence_length")
    if length is None:
        length = min(model.config.context_length, _LONGEST_ROW)
    batch_tokens = check(int, batch_tokens, "batch_tokens")
    checkpoint_seconds = check(_Seconds, checkpoint_seconds, "checkpoint_seconds")
    num_rows = _rows_per_batch(length, batch_tokens, model.config.context_length)
    needed = 4 * batch_tokens * (model.config.mlp_width + 4 * model.config.width)
    check_memory(needed, f"batch_tokens={batch_tokens}")
    requested = set(model.config.check_layers(layers))
    if not requested:
        raise ValueError("layers is empty: name at least one layer.")
    if limit.error is not None and group.count > 1:
        raise ValueError(
            f"until_error={limit.error} needs the sums of all processes during the pass: leave it out, or start one "
            "process."
        )
    settings = _settings(model, corpus, limit, length) | {"batch_tokens": batch_tokens}
    job = Job(model, corpus, limit, length, num_rows, directory, settings)

    def plan() -> dict[str, Any]:
        return _plan(directory, requested, settings, group.count)

    with creating(directory), group.working_in(directory, "output_dir", plan) as todo:
        _check_settings(directory, todo["settings"], settings)
        parts = [Part(index, todo["parts"]) for index in range(todo["parts"])]
        for part in group.share(parts):
            state = job.sum(part, todo["layers"], checkpoint_seconds, progress)
        group.finish(lambda: count_incomplete(directory, parts), "parts")
        if group.index or not parts:
            return
        provenance = MomentProvenance(
            **{key: settings[key] for key in _RECORDED if key in settings},
            base=base_fingerprint(model.params, model.config),
            recipe=dict(corpus.recipe),
            # Names of files may be any bytes.
            command=command.encode("utf-8", "backslashreplace").decode(),
        )
        if len(parts) > 1:
            state = job.merge(parts)
        _write(directory, state, provenance, dtype)
        for part in parts:
            part.path(directory).unlink(missing_ok=True)


def default_directory(model: LanguageModel, corpus: Corpus, limit: Limit) -> Path:
    """Returns the default directory of a collection, stats/<model>/<corpus>_<limit>, which is its own for each limit.

    Example:
      >>> _ = Path("articles.txt").write_text("Gothulf Punby plays the sport of rowing.")
      >>> corpus = rome_jax.moments.open_corpus("articles.txt")
      >>> default_directory(model, corpus, Limit(tokens=300)).as_posix()
      'stats/factworld-gpt2/articles_300_tokens'
    """
    return model_directory(model) / _as_file_name(f"{corpus.name}_{limit}")


def model_directory(model: LanguageModel) -> Path:
    """Returns the folder that holds the default directories of all collections of a model.

    Example:
      >>> model_directory(model).as_posix()
      'stats/factworld-gpt2'
    """
    return Path("stats", _as_file_name(runs.short_name(model)))


def _as_file_name(text: str) -> str:
    """Replaces what is not safe in the name of a file."""
    return re.sub(r"[^\w.-]+", "_", text)


def _rows_per_batch(length: int, batch_tokens: int, context_length: int) -> int:
    """Returns how many rows of `length` tokens a batch has."""
    if not 1 <= length <= context_length:
        raise ValueError(
            f"sequence_length={length} does not fit the model: give 1 to {context_length}, the model's context length."
        )
    if batch_tokens < length:
        raise ValueError(
            f"batch_tokens={batch_tokens} is less than one row of {length} tokens: give at least that many, or a "
            "smaller sequence_length."
        )
    return batch_tokens // length


def _settings(model: LanguageModel, corpus: Corpus, limit: Limit, length: int) -> dict[str, Any]:
    """Returns everything that decides the result, except the layers and the size of a batch."""
    return {
        **runs.describe_model(model),
        "corpus": corpus.name,
        "revision": corpus.revision,
        "limit": str(limit),
        "sequence_length": length,
        "version": __version__,
    }


# The settings that a finished file records; begin_tokens are only set for tokenizers that have them.
_RECORDED = (
    "model",
    "fingerprint",
    "dtype",
    "corpus",
    "revision",
    "limit",
    "sequence_length",
    "version",
    "begin_tokens",
)


# Start: what the directory holds already.


def _plan(
    directory: Path, requested: set[int], settings: Mapping[str, Any], count: int
) -> dict[str, Any]:
    """Returns what is to be collected: the layers of all states, none if all requested ones have files, and the parts.

    Raises:
      ValueError: If the directory holds files or a state of other settings, or a damaged file.
    """
    remove_leftovers(directory)  # A run was killed while writing.
    finished = _finished(directory, settings)
    parts = parts_in(directory)
    headers = {part: read_header(part.path(directory)) for part in parts}
    if headers and all(set(header["layers"]) <= finished for header in headers.values()):
        for part in parts:  # A run was killed after its last file, before it removed its states.
            part.path(directory).unlink()
        headers = {}
    if requested <= finished:
        return {"settings": dict(settings), "layers": [], "parts": 0}
    layers = requested - finished
    resumed = set(layers)
    for part, header in headers.items():
        _check_settings(
            part.path(directory),
            header["settings"] | {"layers": sorted(set(header["layers"]) - finished)},
            {**settings, **part.settings, "layers": sorted(layers)},
        )
        # A state has all of its layers, also those with files: the bits of the others may depend on them.
        resumed |= set(header["layers"])
    return {
        "settings": dict(settings),
        "layers": sorted(resumed),
        "parts": next(iter(headers)).count if headers else count,
    }


def _finished(directory: Path, settings: Mapping[str, Any]) -> set[int]:
    """Returns the layers that have files, and refuses files of other settings."""
    paths = moment_files.files_in(directory)
    # Files of an older version of rome_jax stay valid.
    compared = {key: settings.get(key, []) for key in _RECORDED if key != "version"}
    for path in paths.values():
        recorded = dataclasses.asdict(moment_files.read_provenance(path)[0])
        _check_settings(path, {key: recorded[key] for key in compared}, compared)
    return set(paths)


def _check_settings(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raises ValueError if the settings of a file differ from those of this collection."""
    if differing := runs.differences(there, here):
        raise ValueError(
            f"{path} comes from other settings ({'; '.join(differing)}): give another output_dir, or remove it."
        )


# End: the files.


def _write(directory: Path, state: State, provenance: MomentProvenance, dtype: str) -> None:
    """Writes the files layer by layer, so that only one mean is in memory at a time."""
    tokens = state.tokens
    provenance = dataclasses.replace(
        provenance, articles=state.counts.articles - len(state.waiting), rows=state.counts.rows
    )
    for layer in state.layers:
        known = dataclasses.replace(provenance, error=error_of(state, layer))
        first, second = (half.totals.pop(layer) for half in state.halves)
        first += second
        moment_files.save(directory, {layer: mean_of(first, tokens, known)}, dtype)
