"""What requests of a chunk have in common: the tokens of each context template, which stand before every prompt.

They are run once a group of requests instead of once a request. Packed, a row holds one template's leading columns
and behind them the own columns of each request of a group, which look at the leading ones and at themselves.

Axes: N requests, J rows of each (templates and the essence row), R = N·J rows, T tokens, G groups of at most 8
requests, P = num_shared + requests of a group · num_own packed columns.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rome_jax.data.tokens import TokenBatch, bucket
from rome_jax.models.layers import Attention

# Attention's scores grow with the square of a packed row.
_MOST_IN_GROUP = 8


@struct.dataclass
class SharedContexts:
    """Where the rows of N requests begin alike.

    Attributes:
      lengths: int32 [J], leading columns in which row j is the same for all requests.
      num_requests: N (static, as are all that follow).
      num_shared: columns that hold the longest shared beginning.
      num_own: columns that hold what follows it, in each row of a request.
      num_own_prefix: the same, only up to the first column that an edit changes.
    """

    lengths: jax.Array
    num_requests: int = struct.field(pytree_node=False)
    num_shared: int = struct.field(pytree_node=False)
    num_own: int = struct.field(pytree_node=False)
    num_own_prefix: int = struct.field(pytree_node=False)

    @classmethod
    def find(cls, batch: TokenBatch, start: np.ndarray) -> SharedContexts | None:
        """Compares concrete rows; `start` [N, J] bounds what is shared. None if nothing is.

        Example:
          >>> batch = TokenBatch(np.array([[7, 8, 1, 2], [7, 8, 3, 4]]), np.ones((2, 4), bool))
          >>> SharedContexts.find(batch, np.array([[3], [3]])).lengths.tolist()
          [2]
        """
        num_requests, num_rows = start.shape
        ids, mask = (
            np.asarray(x).reshape(num_requests, num_rows, -1) for x in (batch.ids, batch.mask)
        )
        same = ((ids == ids[:1]) & (mask == mask[:1])).all(axis=0)  # [J, T]
        lengths = np.minimum(np.cumprod(same, axis=-1).sum(axis=-1), start.min(axis=0))
        if num_requests == 1 or not lengths.any():
            return None
        ends = mask.shape[-1] - mask[..., ::-1].argmax(axis=-1)  # [N, J]
        return cls(
            lengths.astype(np.int32),
            num_requests,
            bucket(int(lengths.max())),
            bucket(int((ends - lengths).max())),
            bucket(max(int((start - lengths).max()), 1)),
        )

    def pack(self, rows: jax.Array, num_own: int) -> jax.Array:
        """[R, T, ...] -> [G·J, P, ...]."""
        row, column, _ = self._sources(num_own, rows.shape[1])
        return rows[row, column]

    def attention(self, whole: Attention, num_own: int) -> Attention:
        """That of R plain rows -> that of G·J packed rows."""
        row, column, owner = self._sources(num_own, whole.mask.shape[-1])
        seen = whole.mask[row[..., None], column[..., None], column[:, None]]  # [G·J, P, P]
        allowed = (owner[:, None] == 0) | (owner[:, None] == owner[..., None])
        return Attention(whole.positions[row, column], seen & allowed)

    def place(self, columns: jax.Array, num_own: int) -> tuple[jax.Array, jax.Array]:
        """Columns [R, ...] of plain rows -> (row, column) in the packed ones, of the same shape.

        Columns beyond the own ones that were packed come out as the last of them.
        """
        size = self._group_size
        index = jnp.arange(columns.shape[0]).reshape(-1, *[1] * (columns.ndim - 1))
        request, row = index // len(self.lengths), index % len(self.lengths)
        length = jnp.asarray(self.lengths)[row]
        own = self.num_shared + (request % size) * num_own
        own += jnp.minimum(columns - length, num_own - 1)
        packed_row = (request // size) * len(self.lengths) + row
        return jnp.broadcast_to(packed_row, columns.shape), jnp.where(
            columns < length, columns, own
        )

    @property
    def num_groups(self) -> int:
        """G."""
        return -(-self.num_requests // _MOST_IN_GROUP)

    @property
    def _group_size(self) -> int:
        return -(-self.num_requests // self.num_groups)

    def _sources(self, num_own: int, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """int32 [G·J, P] each: row and column that a packed column comes from, and whose it is.

        The owner is 0 for shared columns, 1, 2, ... for a group's requests, −1 for columns with nothing in them.
        """
        lengths = jnp.asarray(self.lengths)[None, :, None]  # [1, J, 1]
        packed = jnp.arange(self.num_shared + self._group_size * num_own)
        shared = packed < self.num_shared
        slot = jnp.maximum(packed - self.num_shared, 0)
        # A last group that is not full repeats its last request.
        first = jnp.arange(self.num_groups)[:, None, None] * self._group_size
        request = jnp.minimum(first + slot // num_own, self.num_requests - 1)  # [G, 1, P]
        row = request * len(self.lengths) + jnp.arange(len(self.lengths))[:, None]
        column = jnp.where(shared, packed, lengths + slot % num_own)  # [1, J, P]
        filled = jnp.where(shared, packed < lengths, column < length)
        owner = jnp.where(filled, jnp.where(shared, 0, 1 + slot // num_own), -1)
        parts = row, jnp.minimum(column, length - 1), owner
        shape = (self.num_groups, len(self.lengths), len(packed))
        return tuple(jnp.broadcast_to(part, shape).reshape(-1, len(packed)) for part in parts)
