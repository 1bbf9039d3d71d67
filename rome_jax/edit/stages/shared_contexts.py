"""Contexts that several requests share, run once per group of requests.

All requests use the same context templates, so the rows of one template have a common beginning. A packed row holds
that beginning once, as branch 0 of `TokenBatch.branches`, and each request continues it in a branch of its own:

    rows of one template                  packed row
    The file is open. Rome is in          The file is open. | Rome is in | Linux is by
    The file is open. Linux is by              branch 0     |  branch 1  |  branch 2

A token sees branch 0 and its own branch. Its states are therefore those of its plain row. This holds as long as all
requests run on the same weights: edits of lower layers make their states differ.

Packed rows are described on the host, once, when the inputs are built. Compiled programs only gather with the two
index arrays, and depend on nothing but their shapes, which come in buckets.

Axes: N requests, K context templates, R = (K + 1)·N plain rows of T columns, Q packed rows of P columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import numpy as np
from flax import struct

from rome_jax.data.tokens import TokenBatch, bucket, round_up

# The cost of attention grows with the square of a packed row's length.
MOST_IN_GROUP = 8


@struct.dataclass
class PackedRows:
    """Plain rows in packed form, with the way there and back.

    Plain and packed columns are numbered row after row, as in `array.reshape(rows * columns, ...)`.

    Attributes:
      batch: [Q, P] packed tokens. Branch 0 is a shared beginning, and branches 1, 2, ... are the requests of a group.
      source: int32 [Q, P] plain column that each packed column comes from. 0 in the padding.
      place: int32 [R, T] packed column that each plain column went to. 0 in the padding.
    """

    batch: TokenBatch
    source: jax.Array | np.ndarray
    place: jax.Array | np.ndarray

    def pack(self, rows: jax.Array) -> jax.Array:
        """Gathers the columns of plain rows, [R, T, ...], into packed rows, [Q, P, ...]."""
        return jax.lax.collapse(rows, 0, 2)[self.source]

    def unpack(self, packed: jax.Array) -> jax.Array:
        """Gathers the columns of packed rows, [Q, P, ...], into plain rows, [R, T, ...]."""
        return jax.lax.collapse(packed, 0, 2)[self.place]


@struct.dataclass
class SharedContexts:
    """Packed forms of the rows of an edit.

    Attributes:
      rows: Whole rows, for the layers up to the edited one.
      prefixes: The columns before the first one that an edit changes, for the layers after it.
    """

    rows: PackedRows
    prefixes: PackedRows

    @classmethod
    def find(cls, batch: TokenBatch, num_requests: int, num_prefix: int) -> SharedContexts | None:
        """Packs rows by what the requests share before the first column that an edit changes.

        Args:
          batch: [R, T] concrete rows; row k·N + n is request n in context k.
          num_requests: N.
          num_prefix: Number of leading columns that no edit changes.

        Returns:
          The packed forms, or None if there is one request or nothing is shared.

        Example:
          >>> from rome_jax.data.tokens import pad
          >>> batch = pad([[7, 8, 1], [7, 8, 3, 4]])
          >>> shared = SharedContexts.find(batch, num_requests=2, num_prefix=3)
          >>> shared.rows.batch.ids[0, :5].tolist(), shared.rows.batch.branches[0, :5].tolist()
          ([7, 8, 1, 3, 4], [0, 0, 1, 2, 2])
        """
        prefix = TokenBatch(batch.ids[:, :num_prefix], batch.mask[:, :num_prefix])
        lengths = _shared_lengths(prefix, num_requests)
        if num_requests == 1 or not any(lengths):
            return None
        return cls(pack_rows(batch, lengths), pack_rows(prefix, lengths))


def _shared_lengths(batch: TokenBatch, num_requests: int) -> list[int]:
    """Returns for each context how many tokens its rows share at their beginning."""
    sequences = [ids[mask].tolist() for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    lengths = []
    for first in range(0, len(sequences), num_requests):
        columns = zip(*sequences[first : first + num_requests], strict=False)  # of the shortest row
        same = itertools.takewhile(lambda tokens: len(set(tokens)) == 1, columns)
        lengths.append(len(list(same)))
    return lengths


def pack_rows(batch: TokenBatch, lengths: Sequence[int]) -> PackedRows:
    """Packs the rows of each context, in groups of at most 8 requests.

    Args:
      batch: [R, T] concrete rows. Row k·N + n is request n in context k. Padding may be left or right.
      lengths: For each context, the number of tokens that its rows share at their beginning.

    Returns:
      One packed row per context and group.
    """
    num_rows, num_columns = batch.ids.shape
    tokens = [row * num_columns + np.flatnonzero(mask) for row, mask in enumerate(batch.mask)]
    num_requests = num_rows // len(lengths)
    groups = np.array_split(np.arange(num_requests), -(-num_requests // MOST_IN_GROUP))
    packed = [
        (shared, [tokens[context * num_requests + request] for request in group])
        for context, shared in enumerate(lengths)
        for group in groups
    ]
    width = max(shared + sum(len(row) - shared for row in rows) for shared, rows in packed)
    width = bucket(round_up(width, 16))  # one of few sizes: 16, 32, 48, ..., 128, 160, 192, ...
    source, branches = np.zeros((2, len(packed), width), np.int32)
    filled = np.zeros((len(packed), width), bool)
    place = np.zeros(num_rows * num_columns, np.int32)
    for index, (shared, rows) in enumerate(packed):
        end = shared
        for branch, row in enumerate(rows, start=1):
            begin, end = end, end + len(row) - shared
            columns = np.r_[:shared, begin:end]  # where the tokens of this plain row go
            source[index, columns] = row
            branches[index, begin:end] = branch
            place[row] = index * width + columns
        filled[index, :end] = True
    ids = np.where(filled, batch.ids.reshape(-1)[source], 0)
    segments = filled.astype(np.int32)
    return PackedRows(
        TokenBatch(ids, filled, segments=segments, branches=branches),
        source,
        place.reshape(num_rows, num_columns),
    )
