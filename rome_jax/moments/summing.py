"""The pass of a collection over its corpus: the sums of one part, their error, and the parts added up.

    corpus ─► articles, cut at T tokens ─► packed rows ─► batches ─► Σ k kᵀ of each layer ─► the state of a part

See `rome_jax.moments.collect` for a collection as a whole.

Axes: T tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rome_jax.data.corpus import Corpus
from rome_jax.data.packing import Packer, Row, stack
from rome_jax.data.tokenization import prompt_ids
from rome_jax.files.progress import tqdm
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.error_bar import direction_error, draw_keys, is_due
from rome_jax.moments.limits import Limit
from rome_jax.moments.state import Counts, Part, State, read_header, read_state, write_state

_TEXTS = 256  # Texts tokenized per call of the tokenizer, at most.


@dataclasses.dataclass(frozen=True)
class Job:
    """A collection with its settings; see `collect`."""

    model: LanguageModel
    corpus: Corpus
    limit: Limit
    length: int
    num_rows: int
    directory: Path
    settings: Mapping[str, Any]

    def sum(
        self, part: Part, layers: Sequence[int], checkpoint_seconds: float, progress: bool
    ) -> State:
        """Reads the corpus to its end, sums the batches of a part, and returns the last state.

        One of several parts keeps this state in its file.
        """
        path, settings = part.path(self.directory), {**self.settings, **part.settings}
        state = read_state(path, self.model) if path.exists() else State.new(self.model, layers)
        if state.complete:
            return state
        articles = _articles(self.model, self.corpus, self.limit, self.length, state.counts)
        rows = Packer(articles, self.length, waiting=state.waiting, window=self.corpus.read_ahead)
        with _bar(state, self.corpus, self.limit, progress) as bar:
            saved = time.monotonic()
            while batch := list(itertools.islice(rows, self.num_rows)):
                before = state.tokens
                self._add(state, batch, part)
                state.counts.rows += len(batch)
                state.waiting = rows.waiting
                _show(bar, state, self.limit)
                # Before the state is saved, so that a resumed run stops at the same place.
                if is_due(before, state.tokens) and _reaches_error(state, self.limit):
                    break
                if time.monotonic() - saved >= checkpoint_seconds:
                    write_state(path, state, settings)
                    saved = time.monotonic()
        if not state.counts.rows:
            raise ValueError(f"corpus {self.corpus.name!r} holds no text: give another corpus.")
        state.complete = True
        if part.count > 1:
            write_state(path, state, settings)
        return state

    def _add(self, state: State, rows: Sequence[Row], part: Part) -> None:
        """Adds a batch that belongs to a part to one of the halves, which take turns."""
        number = state.counts.rows // self.num_rows
        if state.keys and number % part.count != part.index:
            return
        batch = stack(rows, self.num_rows, self.length)
        if not state.keys:  # the same in all parts
            state.keys = draw_keys(state.halves[0], batch)
        if number % part.count == part.index:
            state.halves[number % 2].add(batch)

    def merge(self, parts: Sequence[Part]) -> State:
        """Adds up the states of all parts in their order."""
        merged = None
        for part in parts:  # One at a time, because they are large.
            state = read_state(part.path(self.directory), self.model)
            if merged is None:
                merged = state
                continue
            for half, more in zip(merged.halves, state.halves, strict=True):
                half.merge(more)
        assert merged is not None
        return merged


def count_incomplete(directory: Path, parts: Sequence[Part]) -> int:
    """Returns the number of parts, if there are several, without a complete state."""
    paths = [part.path(directory) for part in parts if part.count > 1]
    return sum(not (path.exists() and read_header(path)["complete"]) for path in paths)


def error_of(state: State, layer: int) -> float | None:
    """Returns the error of a layer's C; None if there are too few tokens."""
    first, second = state.halves
    totals = first.totals[layer], second.totals[layer]
    return direction_error(*totals, (first.tokens, second.tokens), state.keys[layer])


def _reaches_error(state: State, limit: Limit) -> bool:
    """Returns whether the error of all layers is as small as requested."""
    if limit.error is None:
        return False
    errors = [error_of(state, layer) for layer in state.layers]
    return all(error is not None and error <= limit.error for error in errors)


# Articles, and the progress.


def _articles(
    model: LanguageModel, corpus: Corpus, limit: Limit, length: int, counts: Counts
) -> Iterator[np.ndarray]:
    """Yields the ids of each article, cut at `length` tokens, and counts the articles as they are taken."""
    texts = corpus.read(counts.texts)
    size = min(_TEXTS, corpus.read_ahead)
    while not limit.reached(counts) and (chunk := list(itertools.islice(texts, size))):
        for ids in prompt_ids(model.tokenizer, chunk):
            if limit.reached(counts):
                return
            left = length if limit.tokens is None else limit.tokens - counts.tokens
            article = np.asarray(ids[: min(length, left)], np.int32)
            counts.texts += 1
            if len(article):
                counts.articles += 1
                counts.tokens += len(article)
                yield article


def _bar(state: State, corpus: Corpus, limit: Limit, progress: bool) -> tqdm:
    """Returns a bar that counts tokens if these are limited, and articles otherwise."""
    unit, total = "article", limit.articles or corpus.size
    if limit.tokens is not None:
        unit, total = "token", limit.tokens
    elif limit.articles and corpus.size:
        total = min(limit.articles, corpus.size)
    return tqdm(
        total=total,
        initial=_done(state, limit),
        unit=unit,
        unit_scale=True,
        desc="statistics",
        disable=not progress,
    )


def _done(state: State, limit: Limit) -> int:
    """Returns the number of tokens or articles in the rows so far, in the unit of the bar."""
    if limit.tokens is not None:
        return state.counts.tokens - sum(map(len, state.waiting))
    return state.counts.articles - len(state.waiting)


def _show(bar: tqdm, state: State, limit: Limit) -> None:
    """Updates the bar."""
    bar.set_postfix_str(f"{state.tokens:,} tokens", refresh=False)
    bar.update(_done(state, limit) - bar.n)
