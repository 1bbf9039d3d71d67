"""What can be read and changed inside a forward pass, as data.

A `Patch` sets or adds values at a named `Site`; a `Delta` adds low-rank terms to named weights, one set per row of
the batch, or dense ones, which have to be merged. Both are frozen pytrees whose only static parts are names: layers,
positions and values are arrays, so one compiled program serves every intervention of the same shape. Nothing is
stored in a model and nothing is mutated.

Axes: N cases (edits), B rows of the batch, T tokens, C columns of a cache (0 without one), H heads, D width, F MLP
width, r rank.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


class Site(enum.StrEnum):
    """Places in a forward pass that can be captured and patched; all but EMBED exist once a layer."""

    EMBED = "embed"  # token embeddings, before positions are added [B, T, D]
    # Probabilities after the softmax: how much each token (a row) takes from each of the columns that it sees.
    ATTN_PATTERN = "attn_pattern"  # [B, H, T, C + T]
    ATTN_OUT = "attn_out"  # what attention adds to the residual stream [B, T, D]
    MLP_IN = "mlp_in"  # input of the up-projection [B, T, D]
    MLP_PRE = "mlp_pre"  # up-projection, before the activation [B, T, F]
    MLP_KEY = "mlp_key"  # input of the down-projection: the key k of the paper [B, T, F]
    MLP_OUT = (
        "mlp_out"  # what the MLP adds to the residual stream: the value v of the paper [B, T, D]
    )
    RESIDUAL = "residual"  # the block's output: the hidden state h of the paper [B, T, D]


class Leaf(enum.Enum):
    """Weights that a delta can change, by their path below `params["blocks"]`."""

    ATTN_QKV = ("attn", "qkv")
    ATTN_QUERY = ("attn", "query")
    ATTN_KEY = ("attn", "key")
    ATTN_VALUE = ("attn", "value")
    ATTN_OUT = ("attn", "out")
    MLP_UP = ("mlp", "up")
    MLP_DOWN = ("mlp", "down")


class Part(enum.Enum):
    """The two arrays of a projection."""

    KERNEL = "kernel"
    BIAS = "bias"


class PatchMode(enum.Enum):
    """What a patch does with its values."""

    REPLACE = "replace"
    ADD = "add"


@struct.dataclass
class Patch:
    """New values at one site.

    Attributes:
      site: where (static).
      mode: replace or add (static).
      layer: int32 [] or [B]; ignored at `Site.EMBED`.
      mask: bool [B, T], the positions that are changed; at `Site.ATTN_PATTERN` the tokens that look, in all heads.
      values: broadcastable to the site's [B, T, ...], or [B, H, T, C + T].

    Example:
      Add `delta` [D] to the MLP output of layer 5 at position 3 of every row:
      >>> Patch(Site.MLP_OUT, PatchMode.ADD, jnp.int32(5), jnp.arange(8)[None] == 3, delta)  # doctest: +SKIP
    """

    site: Site = struct.field(pytree_node=False)
    mode: PatchMode = struct.field(pytree_node=False)
    layer: jax.Array
    mask: jax.Array
    values: jax.Array

    def apply(self, layer: jax.Array | int | None, value: jax.Array) -> jax.Array:
        """`value` [B, T, ...] of the site at `layer`, or [B, H, T, C + T], changed."""
        mask = self.mask
        if self.site is not Site.EMBED:
            mask = mask & (jnp.asarray(self.layer) == layer).reshape(-1, 1)
        new = self.values if self.mode is PatchMode.REPLACE else value + self.values
        if self.site is Site.ATTN_PATTERN:
            mask = mask[:, None]  # heads
        return jnp.where(mask[..., None], new.astype(value.dtype), value)


@struct.dataclass
class RunPatch:
    """Values of another run put in at one site, column by column, each in its own range of layers.

    Not for `Site.ATTN_PATTERN`, whose rows belong to the columns of their own run.

    Axes: R rows and C columns of the other run.

    Attributes:
      site: where (static).
      mode: replace or add (static).
      start, stop: int32 [T], the layers from start to stop - 1 are changed.
      mask: bool [T], the columns that are changed.
      column: int32 [T], the other run's column that each takes its values from.
      values: [L, R, C, ...] of the other run; R is B, or 1.
    """

    site: Site = struct.field(pytree_node=False)
    mode: PatchMode = struct.field(pytree_node=False)
    start: jax.Array
    stop: jax.Array
    mask: jax.Array
    column: jax.Array
    values: jax.Array

    def apply(self, layer: jax.Array | int, value: jax.Array) -> jax.Array:
        """`value` [B, T, ...] of the site at `layer`, changed.

        Raises:
          ValueError: the site is ATTN_PATTERN.
        """
        if self.site is Site.ATTN_PATTERN:
            raise ValueError("a RunPatch has no patterns of attention: use a Patch.")
        active = self.mask & (self.start <= layer) & (layer < self.stop)
        new = jnp.take(self.values, layer, axis=0, mode="clip")[:, self.column]
        if self.mode is PatchMode.ADD:
            new = value + new
        return jnp.where(active[:, None], new.astype(value.dtype), value)

    def take(self, columns: jax.Array) -> RunPatch:
        """The same for some of the columns alone, int32 [P]."""
        names = ("start", "stop", "mask", "column")
        return self.replace(**{name: getattr(self, name)[columns] for name in names})


@struct.dataclass
class LowRankUpdate:
    """ΔW = Σ_r left_r ⊗ right_r at one weight: a projection's output x W gains Σ_r (x · left_r) right_r.

    Attributes:
      leaf: which weight (static); kernels are stored [in, out].
      layer: int32 [*N].
      left: [*N, in, r].
      right: [*N, out, r].
    """

    leaf: Leaf = struct.field(pytree_node=False)
    layer: jax.Array
    left: jax.Array
    right: jax.Array


@struct.dataclass
class DenseUpdate:
    """ΔW of a whole kernel, or Δb of a bias. Only `apply_delta` takes it: N of them are as large as N weights.

    Attributes:
      leaf: which projection (static); kernels are stored [in, out].
      part: its kernel or its bias (static).
      layer: int32 [*N].
      change: [*N, in, out], or [*N, out].
    """

    leaf: Leaf = struct.field(pytree_node=False)
    part: Part = struct.field(pytree_node=False)
    layer: jax.Array
    change: jax.Array


def _described(update: LowRankUpdate | DenseUpdate) -> str:
    """What an update changes: its weight, shape, rank and layers."""
    if isinstance(update, LowRankUpdate):
        rows, columns, rank = update.left.shape[-2], update.right.shape[-2], update.left.shape[-1]
        what = f"{update.leaf.name} [{rows}, {columns}] rank {rank}"
    else:
        batched = jnp.ndim(update.layer)
        what = f"{update.leaf.name} {update.part.value} {list(update.change.shape[batched:])}"
    if isinstance(update.layer, jax.core.Tracer | jax.ShapeDtypeStruct):
        return what
    layers = sorted(set(np.ravel(update.layer).tolist()))
    return f"{what} at layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"


@struct.dataclass
class Delta:
    """An edit, or N of them: updates that share one leading case axis, or have none.

    `deltas[i]` is one edit, `deltas[i:j]` several; `len(deltas)` is N.
    """

    updates: tuple[LowRankUpdate | DenseUpdate, ...]

    @property
    def batched(self) -> bool:
        """Whether there is a case axis."""
        return bool(self.updates) and jnp.ndim(self.updates[0].layer) == 1

    @property
    def factored(self) -> bool:
        """Whether all updates are low-rank, so that a forward pass can take it unmerged."""
        return all(isinstance(update, LowRankUpdate) for update in self.updates)

    def __repr__(self) -> str:
        """One line: how many edits, and what each update changes, without its numbers.

        Example:
          >>> update = LowRankUpdate(Leaf.MLP_DOWN, jnp.int32(5), jnp.ones((8, 1)), jnp.ones((4, 1)))
          >>> Delta((update,))
          Delta(one edit: MLP_DOWN [8, 4] rank 1 at layer 5)
        """
        edits = f"{len(self)} edits" if self.batched else "one edit"
        return f"Delta({edits}: {', '.join(map(_described, self.updates)) or 'of nothing'})"

    def __len__(self) -> int:
        if not self.batched:
            raise TypeError("this Delta is a single edit: it has no case axis and no length.")
        return self.updates[0].layer.shape[0]

    def __getitem__(self, index) -> Delta:
        if not self.batched:
            raise TypeError("this Delta is a single edit: it has no case axis to index.")
        if not isinstance(index, slice):
            index = operator.index(index)
            if not -len(self) <= index < len(self):
                raise IndexError(f"case {index} of {len(self)}.")  # jax would clamp it silently
        return jax.tree.map(lambda leaf: leaf[index], self)

    def rows(self, case: jax.Array | None, num_rows: int) -> Delta:
        """Spreads the edits over the rows of a batch.

        Args:
          case: int32 [B], the edit that each row sees; None if there is one edit, or one a row.
          num_rows: B.

        Returns:
          A Delta with case axis B.

        Raises:
          ValueError: no `case` though N is neither 1 nor B, or a dense update.

        A case beyond N gives NaN: inside a compiled program it can be no error, and must not be another edit.
        """
        if not self.updates:
            return self
        if not self.factored:
            raise ValueError(
                "a dense delta cannot enter a forward pass by rows: merge it with apply_delta."
            )
        deltas = self if self.batched else jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], self)
        if case is None:
            if len(deltas) not in (1, num_rows):
                raise ValueError(
                    f"{len(deltas)} deltas and {num_rows} rows: set `case` of the TokenBatch, [B] int32, to say "
                    "which edit each row sees."
                )
            case = (
                jnp.arange(num_rows) if len(deltas) == num_rows else jnp.zeros(num_rows, jnp.int32)
            )
        return jax.tree.map(lambda leaf: jnp.asarray(leaf).at[case].get(mode="fill"), deltas)


def apply_patches(
    patches: Sequence[Patch | RunPatch],
    site: Site,
    layer: jax.Array | int | None,
    value: jax.Array,
) -> jax.Array:
    """`value` of `site` at `layer` after the patches that aim there, in their order."""
    for patch in patches:
        if patch.site is site:
            value = patch.apply(layer, value)
    return value


def add_deltas(
    deltas: Delta | None,
    leaf: Leaf,
    layer: jax.Array | int,
    inputs: jax.Array,
    outputs: jax.Array,
    precision: jax.lax.Precision,
) -> jax.Array:
    """`outputs` [B, T, out] of the projection `leaf` at `layer`, plus what the deltas (case axis B) add to it."""
    for update in () if deltas is None else deltas.updates:
        if update.leaf is not leaf:
            continue
        active = (update.layer == layer).astype(update.left.dtype)[:, None, None]
        coefficient = jnp.einsum("bti,bir->btr", inputs, update.left * active, precision=precision)
        added = jnp.einsum("btr,bor->bto", coefficient, update.right, precision=precision)
        outputs = outputs + added.astype(outputs.dtype)
    return outputs
