"""Second moments over a corpus, for one, several or all layers in one pass, into files.

    corpus ─► articles, cut at T tokens ─► packed rows ─► batches ─► Σ k kᵀ by layer ─► one file a layer

A run keeps its state in the directory that it writes to. Killed at any moment, it resumes there and ends with
the same bits: the sums, the documents that wait for a row and the place in the corpus decide all of the rest.

Axes: T tokens, F MLP width.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from rome_jax.data.corpus import Corpus
from rome_jax.data.packing import Packer, stack
from rome_jax.files import safetensors_io
from rome_jax.files.progress import tqdm
from rome_jax.models.registry import LanguageModel
from rome_jax.moments import files as moment_files
from rome_jax.moments.key_sums import KeySums
from rome_jax.moments.second_moment import MomentProvenance, SecondMoment
from rome_jax.version import __version__

UNFINISHED = "unfinished.safetensors"
_TEXTS = 256  # tokenized at a time


@dataclasses.dataclass(frozen=True)
class Limit:
    """How much of a corpus is read: so many articles, exactly so many tokens, or all of it.

    Example:
      >>> str(Limit(articles=1000)), str(Limit())
      ('1000 articles', 'all')
    """

    articles: int | None = None
    tokens: int | None = None

    def __post_init__(self):
        given = [value for value in (self.articles, self.tokens) if value is not None]
        if len(given) > 1 or min(given, default=1) < 1:
            raise ValueError(
                f"num_articles={self.articles}, num_tokens={self.tokens}: give one of them, at least 1, or none."
            )

    def __str__(self) -> str:
        if self.tokens is not None:
            return f"{self.tokens} tokens"
        return "all" if self.articles is None else f"{self.articles} articles"

    def reached(self, counts: Counts) -> bool:
        """Whether nothing more is to be read."""
        if self.tokens is not None:
            return counts.tokens >= self.tokens
        return self.articles is not None and counts.articles >= self.articles


@dataclasses.dataclass
class Counts:
    """How far a run is.

    Attributes:
      texts: of the corpus that were looked at.
      articles: of these, those that are not empty.
      tokens: of these articles.
      rows: that were summed; some articles may still wait for one.
    """

    texts: int = 0
    articles: int = 0
    tokens: int = 0
    rows: int = 0


@dataclasses.dataclass
class _Run:
    """All that decides how a run continues."""

    sums: KeySums
    counts: Counts = dataclasses.field(default_factory=Counts)
    waiting: list[np.ndarray] = dataclasses.field(default_factory=list)


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
    progress: bool = True,
) -> None:
    """Writes `layer_<n>.safetensors` for each layer; layers that are there already are not done again.

    Args:
      model: whose keys.
      corpus: see `rome_jax.data.corpus`.
      layers: which; the model runs up to the last of them.
      directory: of the files, and of the state until they are written.
      limit: how much of the corpus.
      sequence_length: tokens after which an article is cut, T; the model's context by default.
      batch_tokens: in a batch, whose rows are as many as fit. More is faster on large devices and takes more memory.
      checkpoint_seconds: time between saved states.
      progress: show a bar.

    Raises:
      ValueError: a layer that the model has not, lengths that do not fit, a corpus without text, or a directory that
        holds statistics, or the state of a run, of another model, corpus or setting; the sentence names it.

    Example:
      >>> collect(model, open_corpus("factworld"), [0], "stats/mine", limit=Limit(tokens=10_000))  # doctest: +SKIP
    """
    directory = Path(directory)
    length = model.config.context_length if sequence_length is None else sequence_length
    num_rows = _rows_of_a_batch(length, batch_tokens, model.config.context_length)
    wanted = {model.config.check_layer(layer, "layers") for layer in layers}
    if not wanted:
        raise ValueError("layers is empty: name at least one layer.")
    settings = _settings(model, corpus, limit, length) | {"batch_tokens": batch_tokens}
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob(".*.safetensors.*.tmp"):  # of a run that was killed while writing
        left.unlink()
    state = directory / UNFINISHED
    finished = _finished(directory, settings)
    if state.exists() and set(_read_state(state)["layers"]) <= finished:
        state.unlink()  # of a run that was killed between its last file and its end
    if wanted <= finished:
        return
    run = _resume(state, settings, model, wanted, finished) or _Run(
        KeySums(model.params, model.config, wanted - finished)
    )
    articles = _articles(model, corpus, limit, length, run.counts)
    rows = Packer(articles, length, waiting=run.waiting)
    with _bar(run, corpus, limit, progress) as bar:
        saved = time.monotonic()
        while batch := list(itertools.islice(rows, num_rows)):
            run.sums.add(stack(batch, num_rows, length))
            run.counts.rows += len(batch)
            run.waiting = rows.waiting
            _show(bar, run, limit)
            if time.monotonic() - saved >= checkpoint_seconds:
                _save(state, run, settings)
                saved = time.monotonic()
    _write(directory, run, settings)
    state.unlink(missing_ok=True)


def _rows_of_a_batch(length: int, batch_tokens: int, context_length: int) -> int:
    if not 1 <= length <= context_length:
        raise ValueError(
            f"sequence_length={length}: give 1 to {context_length}, the model's context."
        )
    if batch_tokens < length:
        raise ValueError(
            f"batch_tokens={batch_tokens} is less than one row of {length}: give at least that many, or a smaller "
            "sequence_length."
        )
    return batch_tokens // length


def describe(layer: int, moment: SecondMoment) -> str:
    """A line on a layer: how well C can be solved with, and how much is behind it."""
    try:
        condition = f"{moment.condition_number():8.2e}"
    except ValueError:
        condition = "not positive definite"
    fill = "" if np.isnan(moment.fill_rate) else f"   rows filled {100 * moment.fill_rate:.2f} %"
    return (
        f"layer {layer:2d}   width {moment.mean.shape[0]}   condition number {condition}   "
        f"{moment.count:,} tokens of {moment.provenance.articles:,} articles{fill}"
    )


def default_directory(model: LanguageModel, corpus: Corpus, limit: Limit) -> Path:
    """stats/<model>/<corpus>_<limit>, so that other limits do not collide.

    Example:
      >>> default_directory(load_model("factworld-gpt2"), open_corpus("factworld"), Limit())  # doctest: +SKIP
      PosixPath('stats/factworld-gpt2/factworld_all')
    """
    parts = (_short_name(model), f"{corpus.name}_{limit}")
    return Path("stats", *(re.sub(r"[^\w.-]+", "_", part) for part in parts))


def _short_name(model: LanguageModel) -> str:
    """Its name, without the path to a local directory."""
    local = model.source.startswith("directory")
    return Path(model.name).resolve().name if local else model.name


def _settings(model: LanguageModel, corpus: Corpus, limit: Limit, length: int) -> dict[str, Any]:
    """All that decides the result, but for the layers; for the state, and for the refusal of another."""
    return {
        "model": _short_name(model),
        "fingerprint": model.fingerprint(),
        "dtype": str(model.params["wte"]["embedding"].dtype),
        "corpus": corpus.name,
        "revision": corpus.revision,
        "limit": str(limit),
        "sequence_length": length,
        "precision": model.config.precision.name,
        "version": __version__,
    }


def _articles(
    model: LanguageModel, corpus: Corpus, limit: Limit, length: int, counts: Counts
) -> Iterator[np.ndarray]:
    """The ids of one article after the other, cut at `length` tokens and counted as they are taken."""
    texts = corpus.read(counts.texts)
    while not limit.reached(counts) and (chunk := list(itertools.islice(texts, _TEXTS))):
        for ids in model.tokenizer(chunk, add_special_tokens=False, verbose=False)["input_ids"]:
            if limit.reached(counts):
                return
            left = length if limit.tokens is None else limit.tokens - counts.tokens
            ids = np.asarray(ids[: min(length, left)], np.int32)
            counts.texts += 1
            if len(ids):
                counts.articles += 1
                counts.tokens += len(ids)
                yield ids


def _bar(run: _Run, corpus: Corpus, limit: Limit, progress: bool) -> tqdm:
    """A bar that counts tokens if these are limited, else articles."""
    unit, total = "article", limit.articles or corpus.size
    if limit.tokens is not None:
        unit, total = "token", limit.tokens
    elif limit.articles and corpus.size:
        total = min(limit.articles, corpus.size)
    return tqdm(
        total=total,
        initial=_done(run, limit),
        unit=unit,
        unit_scale=True,
        desc="statistics",
        disable=not progress,
    )


def _done(run: _Run, limit: Limit) -> int:
    return run.counts.articles - len(run.waiting) if limit.tokens is None else run.sums.tokens


def _show(bar: tqdm, run: _Run, limit: Limit) -> None:
    bar.set_postfix_str(f"{run.sums.tokens:,} tokens", refresh=False)
    bar.update(_done(run, limit) - bar.n)


def _write(directory: Path, run: _Run, settings: Mapping[str, Any]) -> None:
    """The files of all layers, one after the other: their means are never in memory together."""
    if not run.sums.tokens:
        raise ValueError(f"corpus {settings['corpus']!r} holds no text: give another one.")
    known = MomentProvenance(
        **{key: settings[key] for key in _KEPT},
        articles=run.counts.articles,
        rows=run.counts.rows,
    )
    for layer in sorted(run.sums.totals):
        moment = moment_files.mean_of(run.sums.totals.pop(layer), run.sums.tokens, known)
        moment_files.save(directory, {layer: moment})


# Settings that a finished file says too.
_KEPT = (
    "model",
    "fingerprint",
    "dtype",
    "corpus",
    "revision",
    "limit",
    "sequence_length",
    "version",
)


# What is in the directory already.


def _finished(directory: Path, settings: Mapping[str, Any]) -> set[int]:
    """The layers whose files are there.

    Raises:
      ValueError: one of them was collected with other settings.
    """
    files = moment_files.files_in(directory)
    for path in files.values():
        there = dataclasses.asdict(moment_files.read_provenance(path)[0])
        compared = [key for key in _KEPT if key != "version"]  # an update leaves old files good
        _refuse_others(path, {key: there[key] for key in compared}, settings)
    return set(files)


def _refuse_others(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    differing = [
        f"{key} is {there[key]} there and {here[key]} here"
        for key in there
        if key not in ("model", "fingerprint") and there[key] != here[key]
    ]
    if there["fingerprint"] != here["fingerprint"]:
        names = [f"{of['model']} ({of['fingerprint'][:12]})" for of in (there, here)]
        differing.insert(0, f"model is {names[0]} there and {names[1]} here")
    if differing:
        raise ValueError(
            f"{path} comes from other settings ({'; '.join(differing)}): give another output_dir, or remove it."
        )


def _save(path: Path, run: _Run, settings: Mapping[str, Any]) -> None:
    """Writes the state of a run, whole or not at all."""
    width = next(iter(run.sums.totals.values())).shape[0]
    triangle = (np.dtype(np.float64), (width * (width + 1) // 2,))
    lengths = np.array([len(ids) for ids in run.waiting], np.int64)
    waiting = np.concatenate([*run.waiting, np.zeros(0, np.int32)])
    state = {
        "settings": dict(settings),
        "layers": sorted(run.sums.totals),
        "counts": dataclasses.asdict(run.counts),
        "tokens": run.sums.tokens,
    }
    safetensors_io.write(
        path,
        {
            "lengths": (lengths.dtype, lengths.shape),
            "waiting": (waiting.dtype, waiting.shape),
            **{f"layer_{layer}": triangle for layer in state["layers"]},
        },
        itertools.chain(
            [lengths, waiting],
            (
                moment_files.pack_triangle(run.sums.totals[layer], np.float64)
                for layer in state["layers"]
            ),
        ),
        {"rome_jax": json.dumps(state)},
    )


def _read_state(path: Path) -> dict[str, Any]:
    """What `_save` wrote, but for the arrays."""
    try:
        with safe_open(path, framework="np") as file:
            return json.loads(file.metadata()["rome_jax"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it to begin anew.") from error


def _resume(
    path: Path,
    settings: Mapping[str, Any],
    model: LanguageModel,
    wanted: set[int],
    finished: set[int],
) -> _Run | None:
    """The run that `_save` wrote the state of; None if there is none.

    Raises:
      ValueError: a damaged file, or the state of a run with other settings, which are named.
    """
    if not path.exists():
        return None
    state = _read_state(path)
    here = settings | {"layers": sorted(wanted - finished)}
    there = state["settings"] | {"layers": sorted(set(state["layers"]) - finished)}
    _refuse_others(path, there, here)
    # All of its layers: one of them may have its file already, but the others' bits could depend on it.
    run = _Run(KeySums(model.params, model.config, state["layers"]), Counts(**state["counts"]))
    run.sums.tokens = state["tokens"]
    with safe_open(path, framework="np") as file:
        for layer in state["layers"]:
            run.sums.totals[layer] = moment_files.unpack_triangle(file.get_tensor(f"layer_{layer}"))
        ends = np.cumsum(file.get_tensor("lengths"))
        run.waiting = np.split(file.get_tensor("waiting"), ends)[:-1]
    return run
