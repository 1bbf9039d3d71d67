"""Packing of whole documents into rows of one length, with almost no padding.

Documents in one row do not attend to each other, and the positions of each begin at 0 (`TokenBatch.segments`), so its
states equal those of a separate run. Documents are never split, so a row can end in a little padding, which is masked.

`rome_jax.factworld_training.packing` builds training sequences, with separators and in the order in which the shipped
models were trained. The two modules share no code.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence, Sized
from typing import Generic, TypeVar

import numpy as np

from rome_jax.data.tokens import TokenBatch

Row = list[np.ndarray]  # the ids of the documents that share a row
Document = TypeVar("Document", bound=Sized)


class Packer(Generic[Document]):
    """An iterator over rows of at most `length` tokens, packed from a stream of documents.

    A row takes the document that has waited longest, then repeatedly the longest one that still fits. The rows depend
    only on the documents, so `waiting` and the documents that were not read yet are the whole state.

    Args:
      documents: int32 ids, or other objects with a `len` that is their number of tokens, from 1 to `length`.
      length: Number of tokens in a row, T.
      waiting: Documents that precede `documents`: the `Packer.waiting` of an interrupted run.
      window: Number of documents to choose from; more fill the rows better and take more memory.

    Raises:
      ValueError: If a document has no tokens or more than `length`.

    Example:
      >>> documents = [np.arange(n, dtype=np.int32) for n in (5, 4, 3, 7)]
      >>> [[len(ids) for ids in row] for row in Packer(iter(documents), 8)]
      [[5, 3], [4], [7]]
    """

    def __init__(
        self,
        documents: Iterator[Document],
        length: int,
        *,
        waiting: Sequence[Document] = (),
        window: int = 1024,
    ):
        self._documents = itertools.chain(waiting, documents)
        self._length = length
        self._window = window
        self._ages = itertools.count()
        self._waiting: dict[int, Document] = {}  # by age, oldest first
        self._by_length: list[tuple[int, int]] = []  # (tokens, age), sorted
        for document in itertools.islice(self._documents, len(waiting)):
            self._add(document)

    @property
    def waiting(self) -> list[Document]:
        """The documents that were read but are not in a row yet, oldest first."""
        return list(self._waiting.values())

    def __iter__(self) -> Iterator[list[Document]]:
        """Returns the packer itself."""
        return self

    def __next__(self) -> list[Document]:
        """Returns the documents of the next row."""
        room = max(0, self._window - len(self._waiting))
        for document in itertools.islice(self._documents, room):
            self._add(document)
        age = next(iter(self._waiting), None)
        if age is None:
            raise StopIteration
        row, room = [], self._length
        while age is not None:
            row.append(self._take(age))
            room -= len(row[-1])
            age = self._longest(room)
        return row

    def _add(self, document: Document) -> None:
        """Adds a document to those that are waiting."""
        if not 1 <= len(document) <= self._length:
            raise ValueError(
                f"a document of {len(document)} tokens does not fit into a row: give 1 to {self._length} tokens."
            )
        age = next(self._ages)
        self._waiting[age] = document
        bisect.insort(self._by_length, (len(document), age))

    def _take(self, age: int) -> Document:
        """Removes the document of an age from those that are waiting, and returns it."""
        document = self._waiting.pop(age)
        del self._by_length[bisect.bisect_left(self._by_length, (len(document), age))]
        return document

    def _longest(self, room: int) -> int | None:
        """Returns the age of the longest waiting document of at most `room` tokens, or None."""
        place = bisect.bisect_right(self._by_length, (room, math.inf))
        return self._by_length[place - 1][1] if place else None


def stack(rows: Sequence[Row], num_rows: int, length: int) -> TokenBatch:
    """Builds a batch [num_rows, length] from packed rows; the rest of it is padding.

    Args:
      rows: At most `num_rows` rows of documents.
      num_rows: B.
      length: T.

    Returns:
      `TokenBatch` on the host, with segments numbered from 1; 0 is padding.

    Example:
      >>> stack([[np.array([7, 8]), np.array([9])]], 1, 4).segments.tolist()
      [[1, 1, 2, 0]]
    """
    ids = np.zeros((num_rows, length), np.int32)
    segments = np.zeros((num_rows, length), np.int32)
    for index, row in enumerate(rows):
        start = 0
        for number, document in enumerate(row, start=1):
            columns = slice(start, start + len(document))
            ids[index, columns], segments[index, columns] = document, number
            start = columns.stop
    return TokenBatch(ids, segments > 0, segments=segments)
