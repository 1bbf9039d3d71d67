"""The sites and weights that can be read and changed inside a forward pass, and changes of weights as data.

A `Patch` of `rome_jax.models.patches` sets or adds values at a named `Site`. A `Delta` changes named weights: by
low-rank terms, one set per row of the batch, or by dense ones, which have to be merged into the weights first. Both are
frozen pytrees in which only names are static: layers, positions and values are arrays, so one compiled program serves
every intervention of the same shape. Nothing is stored in a model and nothing is mutated.

Axes: N cases (edits), B rows of the batch, T tokens that are run, C columns of a cache (0 without one), H heads, D
width of the residual stream, F width of the MLP, r rank.
"""

from __future__ import annotations

import enum
import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rome_jax.models.config import ModelConfig
from rome_jax.models.precision import MatmulPrecision, einsum


class Site(enum.StrEnum):
    """Places in a forward pass that can be captured and patched.

    Each layer has all of them but EMBED and, without a gated MLP, MLP_GATE.
    """

    EMBED = "embed"  # token embeddings before positions are added [B, T, D]
    # Probabilities after the softmax: how much each token (a row) takes from each column that it sees.
    ATTN_PATTERN = "attn_pattern"  # [B, H, T, C + T]
    ATTN_OUT = "attn_out"  # what attention adds to the residual stream [B, T, D]
    MLP_IN = "mlp_in"  # input of the up-projection [B, T, D]
    MLP_PRE = "mlp_pre"  # output of the up-projection; the activation's input if there is no gate [B, T, F]
    MLP_GATE = "mlp_gate"  # output of the gate projection, before the activation [B, T, F]
    MLP_KEY = "mlp_key"  # input of the down-projection: the key k of the paper [B, T, F]
    # What the MLP adds to the residual stream: the value v of the paper [B, T, D].
    MLP_OUT = "mlp_out"
    RESIDUAL = "residual"  # the output of the block: the hidden state h of the paper [B, T, D]


def check_sites(config: ModelConfig, sites: Sequence[Site]) -> None:
    """Checks that each layer of a model has some sites.

    Raises:
      ValueError: If it does not have one of them.
    """
    for site in sites:
        if site not in sites_of(config):
            raise ValueError(
                f"the layers of this {config.family.value} model have no site {site.name}: give one of "
                f"{', '.join(found.name for found in sites_of(config))}."
            )


def sites_of(config: ModelConfig) -> tuple[Site, ...]:
    """Returns the sites that each layer of a model has.

    Example:
      >>> Site.MLP_OUT in sites_of(model.config), Site.MLP_GATE in sites_of(model.config)
      (True, False)
    """
    absent = {Site.EMBED} if config.gated else {Site.EMBED, Site.MLP_GATE}
    return tuple(site for site in Site if site not in absent)


def activation_site(config: ModelConfig) -> Site:
    """Returns the site of the values that the MLP's non-linearity is applied to.

    Example:
      >>> activation_site(model.config).name
      'MLP_PRE'
    """
    return Site.MLP_GATE if config.gated else Site.MLP_PRE


class Leaf(enum.Enum):
    """Weights that a delta can change, by their path below `params["blocks"]`."""

    ATTN_QKV = ("attn", "qkv")
    ATTN_QUERY = ("attn", "query")
    ATTN_KEY = ("attn", "key")
    ATTN_VALUE = ("attn", "value")
    ATTN_OUT = ("attn", "out")
    MLP_UP = ("mlp", "up")
    MLP_GATE = ("mlp", "gate")
    MLP_DOWN = ("mlp", "down")


def leaves_of(config: ModelConfig) -> tuple[Leaf, ...]:
    """Returns the weights that each layer of a model has.

    Example:
      >>> [leaf.name for leaf in leaves_of(model.config)]
      ['ATTN_QKV', 'ATTN_OUT', 'MLP_UP', 'MLP_DOWN']
    """
    separate = {Leaf.ATTN_QUERY, Leaf.ATTN_KEY, Leaf.ATTN_VALUE}
    absent = separate if config.fused_qkv else {Leaf.ATTN_QKV}
    if not config.gated:
        absent = absent | {Leaf.MLP_GATE}
    return tuple(leaf for leaf in Leaf if leaf not in absent)


def check_leaves(config: ModelConfig, leaves: Sequence[Leaf], what: str = "the delta") -> None:
    """Checks that each layer of a model has some weights.

    Args:
      config: The model's config.
      leaves: The weights.
      what: What changes them, the subject of the message.

    Raises:
      ValueError: If it does not have one of them.
    """
    for leaf in leaves:
        if leaf not in leaves_of(config):
            raise ValueError(
                f"{what} changes {leaf.name}, which this {config.family.value} model does not have: choose from "
                f"{', '.join(found.name for found in leaves_of(config))}."
            )


class Part(enum.Enum):
    """The two arrays of a projection."""

    KERNEL = "kernel"
    BIAS = "bias"


@struct.dataclass
class LowRankUpdate:
    """ΔW = Σ_r left_r ⊗ right_r at one weight: the output x W of a projection gains Σ_r (x · left_r) right_r.

    Attributes:
      leaf: The weight that is changed (static); kernels are stored [in, out].
      layer: int32 [*N], the layer of each update.
      left: [*N, in, r].
      right: [*N, out, r].
    """

    leaf: Leaf = struct.field(pytree_node=False)
    layer: jax.Array
    left: jax.Array
    right: jax.Array


@struct.dataclass
class DenseUpdate:
    """ΔW of a whole kernel, or Δb of a bias.

    Only `apply_delta` takes it: in a forward pass, N of them would need as much memory as N weights.

    Attributes:
      leaf: The projection that is changed (static); kernels are stored [in, out].
      part: Whether its kernel or its bias is changed (static).
      layer: int32 [*N], the layer of each update.
      change: [*N, in, out], or [*N, out].
    """

    leaf: Leaf = struct.field(pytree_node=False)
    part: Part = struct.field(pytree_node=False)
    layer: jax.Array
    change: jax.Array


def check_factors(update: LowRankUpdate, shape: tuple[int, int] | None = None) -> None:
    """Checks the shapes of an update's factors; a product of unequal ranks would broadcast a rank of 1.

    Raises:
      ValueError: If the factors differ in rank or case axis, or do not fit a weight of `shape`, [in, out].
    """
    left, right = map(jnp.shape, (update.left, update.right))
    found = f"the update of {update.leaf.name} has the factors {list(left)} and {list(right)}"
    cases = jnp.shape(update.layer)
    if len(left) < 2 or len(right) < 2 or left[-1] != right[-1]:
        raise ValueError(f"{found}: give factors of equal rank.")
    if left[:-2] != cases or right[:-2] != cases:
        raise ValueError(
            f"{found} for layers of shape {list(cases)}: give one pair of factors per layer."
        )
    if shape is not None and (left[-2], right[-2]) != shape:
        raise ValueError(
            f"{found}, but the weight is {list(shape)}: it was made for another model."
        )


def _described(update: LowRankUpdate | DenseUpdate) -> str:
    """Describes what an update changes: its weight, shape, rank and layers."""
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
    """One edit without a case axis, or N edits in which all updates have a leading case axis.

    `deltas[i]` is one edit, `deltas[i:j]` is several, and `len(deltas)` is N.

    Attributes:
      updates: The changes of weights that make up the edit.
    """

    updates: tuple[LowRankUpdate | DenseUpdate, ...]

    @property
    def batched(self) -> bool:
        """Whether there is a case axis."""
        return bool(self.updates) and jnp.ndim(self.updates[0].layer) == 1

    @property
    def factored(self) -> bool:
        """Whether all updates are low-rank, so that a forward pass can take the delta unmerged."""
        return all(isinstance(update, LowRankUpdate) for update in self.updates)

    def __repr__(self) -> str:
        """Describes in one line how many edits there are and what each update changes, without its numbers.

        Example:
          >>> update = LowRankUpdate(Leaf.MLP_DOWN, jnp.int32(5), jnp.ones((8, 1)), jnp.ones((4, 1)))
          >>> Delta((update,))
          Delta(one edit: MLP_DOWN [8, 4] rank 1 at layer 5)
        """
        edits = f"{len(self)} edits" if self.batched else "one edit"
        return f"Delta({edits}: {', '.join(map(_described, self.updates)) or 'of nothing'})"

    def __len__(self) -> int:
        """Returns the number of edits, N."""
        if not self.batched:
            raise TypeError("this Delta is a single edit without a case axis, so it has no length.")
        return self.updates[0].layer.shape[0]

    def __getitem__(self, index: int | slice) -> Delta:
        """Returns one edit without the case axis, or the edits of a slice."""
        if not self.batched:
            raise TypeError("this Delta is a single edit without a case axis, so it has no index.")
        if not isinstance(index, slice):
            index = operator.index(index)
            if not -len(self) <= index < len(self):
                raise IndexError(
                    f"case {index} of {len(self)}."
                )  # jax would clamp the index silently
        return jax.tree.map(lambda leaf: leaf[index], self)

    def rows(self, case: jax.Array | np.ndarray | None, num_rows: int) -> Delta:
        """Assigns an edit to each row of a batch.

        A case below 0 or of N or more gives NaN: a program cannot raise an error, and must not take another edit.

        Args:
          case: int32 [B], the index of each row's edit; None if there is one edit, or one edit per row.
          num_rows: The number of rows, B.

        Returns:
          A Delta with case axis B.

        Raises:
          ValueError: If `case` is None although N is neither 1 nor B, or if an update is dense.

        Example:
          >>> update = LowRankUpdate(Leaf.MLP_DOWN, jnp.array([4, 5]), jnp.ones((2, 8, 1)), jnp.ones((2, 4, 1)))
          >>> Delta((update,)).rows(jnp.array([1, 1, 0]), 3).updates[0].layer.tolist()
          [5, 5, 4]
        """
        if not self.updates:
            return self
        if not self.factored:
            raise ValueError(
                "a dense delta cannot be used in a forward pass: merge it into the weights with apply_delta."
            )
        deltas = self if self.batched else jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], self)
        if case is None:
            if len(deltas) not in (1, num_rows):
                raise ValueError(
                    f"{len(deltas)} deltas and {num_rows} rows: set `case` of the TokenBatch, int32 [B], to the index "
                    "of each row's edit."
                )
            case = (
                jnp.arange(num_rows) if len(deltas) == num_rows else jnp.zeros(num_rows, jnp.int32)
            )
        case, last = jnp.asarray(case), len(deltas) - 1
        known = (case >= 0) & (case <= last)

        def take(leaf: jax.Array) -> jax.Array:
            taken = jnp.asarray(leaf)[jnp.clip(case, 0, last)]
            if not jnp.issubdtype(taken.dtype, jnp.inexact):
                return taken  # the layer, where the factors are NaN
            return jnp.where(known.reshape(-1, *[1] * (taken.ndim - 1)), taken, jnp.nan)

        return jax.tree.map(take, deltas)


def add_deltas(
    deltas: Delta | None,
    leaf: Leaf,
    layer: jax.Array | int,
    inputs: jax.Array,
    outputs: jax.Array,
    precision: MatmulPrecision,
) -> jax.Array:
    """Adds what low-rank deltas contribute to the outputs of one projection.

    Args:
      deltas: Edits with case axis B, or None.
      leaf: The projection's weight.
      layer: The layer that is being run.
      inputs: [B, T, in].
      outputs: [B, T, out], of the unedited projection; `out` may be several axes.
      precision: Precision of the matrix products.

    Returns:
      An array of the shape and dtype of `outputs`.

    Raises:
      ValueError: If an update is dense, or does not have the shape of the projection.
    """
    for update in () if deltas is None else deltas.updates:
        if update.leaf is not leaf:
            continue
        if not isinstance(update, LowRankUpdate):
            raise ValueError(
                f"the delta of {leaf.name} is dense: merge it into the weights with apply_delta."
            )
        check_factors(update, (inputs.shape[-1], math.prod(outputs.shape[2:])))
        # Selected and not multiplied by 0, which would carry a NaN into all other layers.
        active = (update.layer == layer)[:, None, None]
        left, right = (jnp.where(active, x, jnp.zeros_like(x)) for x in (update.left, update.right))
        coefficient = einsum("bti,bir->btr", inputs, left, precision)
        added = einsum("btr,bor->bto", coefficient, right, precision)
        outputs = outputs + added.astype(outputs.dtype).reshape(outputs.shape)
    return outputs
