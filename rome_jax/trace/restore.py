"""Restoring clean states in the corrupted runs (paper, section 2.1).

A restoration is a place (token, layer). It puts back one clean hidden state, or the clean outputs of MLP or attention
at that token in a window of layers. How much of the answer returns is the place's indirect effect.

A restoration changes neither the columns before its token nor the layers below its first one. So it runs only the
columns from its token to the end of the answer. They begin at a start layer with the hidden states of the corrupted
runs, and attend to the cached keys and values of the corrupted columns before them. Several restorations run side by
side as the columns of one packed row for each noise sample:

                        cached columns        packed row, C = 8
    owner                                     A  A  A  B  B  -  -  -     A restores token 3, B token 4
    column              0  1  2  3  4  5      3  4  5  4  5  -  -  -     - is padding

    A, column 3 sees    x  x  x  .  .  .      x  .  .  .  .  .  .  .
    A, column 4         x  x  x  .  .  .      x  x  .  .  .  .  .  .
    A, column 5         x  x  x  .  .  .      x  x  x  .  .  .  .  .     its prediction is read
    B, column 4         x  x  x  x  .  .      .  .  .  x  .  .  .  .
    B, column 5         x  x  x  x  .  .      .  .  .  x  x  .  .  .     its prediction is read

`sweep` decides which restorations share a row.

Axes: L layers, T prompt columns (see `corruption`), S noise samples, D width, M target tokens, N restorations, C packed
columns.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Sequence
from typing import overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Site
from rome_jax.models.layers import Attention, Interventions
from rome_jax.models.patches import PatchMode, RunPatch, apply_patches
from rome_jax.trace.corruption import RunStates, score

DEFAULT_WINDOW = 10  # layers, as in the paper


class TraceKind(enum.StrEnum):
    """What is restored at a token: one hidden state, or a window of MLP or attention outputs."""

    HIDDEN = "hidden"
    MLP = "mlp"
    ATTN = "attn"

    @property
    def site(self) -> Site:
        """The site whose values are restored."""
        return {"hidden": Site.RESIDUAL, "mlp": Site.MLP_OUT, "attn": Site.ATTN_OUT}[self.value]

    @overload
    def layers(self, center: int, window: int) -> tuple[int, int]: ...
    @overload
    def layers(self, center: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]: ...
    @overload
    def layers(self, center: jax.Array, window: int | jax.Array) -> tuple[jax.Array, jax.Array]: ...
    def layers(self, center, window):
        """Returns the layers that a restoration covers, as (first, last + 1).

        Args:
          center: Layer that the restoration is named after, or an array of them.
          window: Number of layers of MLP or attention outputs; a hidden state is always one layer.

        Returns:
          Two values of the shape of `center`. They are not clipped to the layers of the model.

        Example:
          >>> TraceKind.MLP.layers(7, 10), TraceKind.HIDDEN.layers(7, 10)
          ((2, 12), (7, 8))
        """
        if self is TraceKind.HIDDEN:
            return center, center + 1
        return center - window // 2, center + (window + 1) // 2


@struct.dataclass
class PackedRestorations:
    """N restorations whose columns fill one packed row; see the picture at the top of the module.

    Attributes:
      token: int32 [N] restored column of the prompt.
      layer: int32 [N] layer at the center of each restoration.
      owner: int32 [C] restoration that each packed column belongs to; −1 for padding.
      column: int32 [C] column of the prompt that each packed column stands for.
      read: int32 [N, M] packed columns whose predictions are the target's tokens.
      start: int32 [] first layer that runs, the same for all.
    """

    token: jax.Array
    layer: jax.Array
    owner: jax.Array
    column: jax.Array
    read: jax.Array
    start: jax.Array

    @property
    def column_token(self) -> jax.Array:
        """The token that each packed column's restoration restores, int32 [C]."""
        return self.token[jnp.maximum(self.owner, 0)]

    @property
    def column_layer(self) -> jax.Array:
        """The layer of each packed column's restoration, int32 [C]."""
        return self.layer[jnp.maximum(self.owner, 0)]

    @property
    def restored(self) -> jax.Array:
        """Whether a packed column is the restored token itself, bool [C]."""
        return (self.column == self.column_token) & (self.owner >= 0)


def pack_restorations(
    tokens: np.ndarray,
    layers: np.ndarray,
    read: np.ndarray,
    start: int,
    num_columns: int,
    num_places: int,
) -> PackedRestorations:
    """Lays the columns of several restorations side by side.

    Args:
      tokens, layers: int [N'] places to restore, with N' at most N.
      read: int [M] columns of the prompt whose predictions are the target's tokens.
      start: First layer that runs.
      num_columns: C, columns of the packed row.
      num_places: N. The restorations beyond N' are padding, and their scores are meaningless.

    Returns:
      The packed row.

    Example:
      The row of the picture, with the answer read at column 5:

      >>> tokens, layers = np.array([3, 4]), np.array([2, 2])
      >>> row = pack_restorations(tokens, layers, np.array([5]), 2, num_columns=8, num_places=2)
      >>> row.column.tolist(), row.owner.tolist(), row.read.tolist()
      ([3, 4, 5, 4, 5, 0, 0, 0], [0, 0, 0, 1, 1, -1, -1, -1], [[2], [4]])
    """
    read = np.asarray(read)
    lengths = read[-1] + 1 - tokens
    first = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(len(tokens)), lengths)
    column = np.arange(len(owner)) - first[owner] + tokens[owner]
    columns_left, places_left = num_columns - len(owner), num_places - len(tokens)

    def as_int32(values: np.ndarray | int) -> jax.Array:
        return jnp.asarray(np.asarray(values, np.int32))

    return PackedRestorations(
        as_int32(np.pad(tokens, (0, places_left))),
        as_int32(np.pad(layers, (0, places_left))),
        as_int32(np.pad(owner, (0, columns_left), constant_values=-1)),
        as_int32(np.pad(column, (0, columns_left))),
        as_int32(np.pad(first[:, None] + read - tokens[:, None], ((0, places_left), (0, 0)))),
        as_int32(start),
    )


def packed_attention(packed: PackedRestorations, mask: jax.Array) -> Attention:
    """Builds the attention of a packed row over the cached columns and over itself.

    A packed column sees the corrupted columns before its restoration's token, and the columns of its own restoration
    up to itself.

    Args:
      packed: The packed row.
      mask: bool [T], True for the prompt's real columns.

    Returns:
      Positions [1, C], and the mask [1, C, T + C]: the cached columns, then those of the row.
    """
    column, owner = packed.column, packed.owner
    before_token = jnp.arange(len(mask)) < packed.column_token[:, None]
    own = (owner == owner[:, None]) & (column <= column[:, None])
    return Attention(column[None], jnp.concatenate([before_token & mask, own], axis=1)[None])


def restoring_patch(
    states: RunStates, packed: PackedRestorations, kind: TraceKind, window: int | jax.Array
) -> RunPatch:
    """Builds the patch that puts clean values back at each restoration's token, in its layers."""
    first, stop = kind.layers(packed.column_layer, window)
    clean = states.clean[kind.site]
    return RunPatch(
        kind.site, PatchMode.REPLACE, first, stop, packed.restored, packed.column, clean
    )


def severing_patches(
    states: RunStates, packed: PackedRestorations, severed: Sequence[Site], num_layers: int
) -> tuple[RunPatch, ...]:
    """Builds the patches that keep severed modules at their corrupted outputs, at the restored tokens in all layers."""
    first = jnp.zeros_like(packed.column)
    stop = jnp.full_like(packed.column, num_layers)
    return tuple(
        RunPatch(
            site,
            PatchMode.REPLACE,
            first,
            stop,
            packed.restored,
            packed.column,
            states.corrupted[site],
        )
        for site in severed
    )


def hidden_before_start(
    states: RunStates, packed: PackedRestorations, patches: Sequence[RunPatch]
) -> jax.Array:
    """Gathers the residual stream of the packed columns before layer `packed.start`, [S, C, D].

    These are the corrupted runs' embeddings if the row starts at layer 0, and otherwise the outputs of the layer below
    it. A hidden state that is restored at the layer below has already been put in.
    """
    below = packed.start - 1
    corrupted = states.corrupted[Site.RESIDUAL][jnp.maximum(below, 0)]
    hidden = jnp.where(packed.start == 0, states.embedded, corrupted)[:, packed.column]
    return apply_patches(patches, Site.RESIDUAL, below, hidden)


@functools.partial(jax.jit, static_argnames=("config", "kind", "severed"))
def restore(
    params: forward.Params,
    config: ModelConfig,
    states: RunStates,
    packed: PackedRestorations,
    *,
    kind: TraceKind = TraceKind.HIDDEN,
    window: int | jax.Array = DEFAULT_WINDOW,
    severed: tuple[Site, ...] = (),
    held: RunStates | None = None,
) -> jax.Array:
    """Scores the answer under each restoration of a packed row.

    Args:
      params, config: The model.
      states: Clean and corrupted runs of the prompt, which also decide how the answer is scored.
      packed: What is restored where. No restoration may change a layer below `packed.start - 1`, and only a hidden
        state may change that layer.
      kind: What is restored.
      window: Layers of MLP or attention outputs, from `layer - window // 2` on, clipped to the model.
      severed: Sites whose outputs at the restored token keep their corrupted values in every layer.
      held: Runs that those corrupted values are taken from; `states` if None.

    Returns:
      [N] scores, each the mean over noise samples.
    """
    patches = (
        restoring_patch(states, packed, kind, window),
        *severing_patches(states if held is None else held, packed, severed, config.num_layers),
    )
    attention = packed_attention(packed, states.mask)
    hidden = hidden_before_start(states, packed, patches)
    hidden = forward.run_layers(
        params,
        config,
        hidden,
        attention,
        start=packed.start,
        stop=config.num_layers - 1,
        interventions=Interventions(patches),
        cache=states.cache,
    ).hidden
    # The last layer and the head run only for the columns that predict the answer.
    read = packed.read.reshape(-1)
    hidden = forward.run_last_layer(
        params,
        config,
        hidden,
        attention,
        read,
        interventions=Interventions(tuple(patch.take(read) for patch in patches)),
        cache=states.cache,
    )
    logits = forward.unembed(params, config, hidden)
    logits = logits.reshape(hidden.shape[0], *packed.read.shape, -1)  # [S, N, M, V]
    return score(logits, states.target, states.measure).mean(axis=0)
