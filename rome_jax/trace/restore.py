"""Causal tracing of one prompt (paper, section 2.1).

    clean run ─► states, answer     corrupted runs (noise on the subject) ─► restore clean states ─► score of the answer

A state that brings the answer back although the subject is corrupted carries the fact. A restoration is a place
(token, layer): one clean hidden state, or the clean outputs of MLP or attention at that token in a window of layers.

Nothing before a restored token changes, nor anything below the layer: a restoration starts from the corrupted runs'
states there, looks at their keys and values, and runs the columns from its token on. Several run side by side, as the
columns of one packed row for each noise sample; `sweep` decides which.

Axes: L layers, T prompt columns (with the target's, but its last), S noise samples, D width, M target tokens, N
restorations, C packed columns.
"""

from __future__ import annotations

import enum
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rome_jax.data.tokens import TokenBatch
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Patch, PatchMode, RunPatch, Site, apply_patches
from rome_jax.models.layers import Attention, Interventions, KVCache

DEFAULT_WINDOW = 10  # layers, as in the paper


class TraceKind(enum.StrEnum):
    """What is restored at a token: one hidden state, or a window of MLP or attention outputs."""

    HIDDEN = "hidden"
    MLP = "mlp"
    ATTN = "attn"

    @property
    def site(self) -> Site:
        """Where its values are put in."""
        return {"hidden": Site.RESIDUAL, "mlp": Site.MLP_OUT, "attn": Site.ATTN_OUT}[self.value]

    def layers(self, center, window: int):
        """(first, last + 1) layer of a restoration around `center`, an integer or an array; not clipped to the model.

        Example:
          >>> Kind.MLP.layers(7, 10), Kind.HIDDEN.layers(7, 10)
          ((2, 12), (7, 8))
        """
        if self is TraceKind.HIDDEN:
            return center, center + 1
        return center - window // 2, center + (window + 1) // 2


class Measure(enum.StrEnum):
    """What is averaged over noise samples: the target's probability, or its logarithm; of several tokens, jointly."""

    PROBABILITY = "probability"
    LOG_PROBABILITY = "log_probability"


@struct.dataclass
class Tokens:
    """A prompt on its way through the model, followed by the target but its last token, padded on the right.

    Attributes:
      ids: int32 [T].
      mask: bool [T], True for real tokens.
      subject: bool [T], True for the subject's.
      last: int32 [], column of the prompt's last token.
      target: int32 [M]; None for the most likely next token of the clean run.
    """

    ids: jax.Array
    mask: jax.Array
    subject: jax.Array
    last: jax.Array
    target: jax.Array | None = None


@struct.dataclass
class Runs:
    """The clean run, and S corrupted ones.

    Attributes:
      clean: by site, [L, 1, T, D].
      corrupted: by site, [L, S, T, D].
      embedded: [S, T, D], the corrupted residual stream before layer 0.
      cache: the corrupted runs' keys and values.
      mask: bool [T].
      read: int32 [M], columns whose predictions are the target's.
      target: int32 [M].
      clean_score, corrupted_score: [], the measure's means.
    """

    clean: dict[Site, jax.Array]
    corrupted: dict[Site, jax.Array]
    embedded: jax.Array
    cache: KVCache
    mask: jax.Array
    read: jax.Array
    target: jax.Array
    clean_score: jax.Array
    corrupted_score: jax.Array


@struct.dataclass
class Places:
    """N restorations, their columns side by side; made by `pack_restorations`.

    Attributes:
      token, layer: int32 [N].
      owner: int32 [C], the restoration that a packed column belongs to, −1 for padding.
      column: int32 [C], its column of the prompt.
      read: int32 [N, M], packed columns whose predictions are the target's.
      start: int32 [], the layer at which they set out, corrupted.
    """

    token: jax.Array
    layer: jax.Array
    owner: jax.Array
    column: jax.Array
    read: jax.Array
    start: jax.Array


SITES = (Site.RESIDUAL, Site.MLP_OUT, Site.ATTN_OUT)


def score(logits: jax.Array, target: jax.Array, measure: Measure) -> jax.Array:
    """Logits [..., M, V] and target [M] -> the measure [...].

    Example:
      >>> logits = jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]]))
      >>> round(float(score(logits, jnp.array([1, 0]), Measure.PROBABILITY)), 4)  # 0.75 · 0.5
      0.375
    """
    log_probs = jax.nn.log_softmax(logits)
    target = jnp.broadcast_to(target, logits.shape[:-1])
    joint = jnp.take_along_axis(log_probs, target[..., None], axis=-1)[..., 0].sum(-1)
    return jnp.exp(joint) if measure is Measure.PROBABILITY else joint


@functools.partial(jax.jit, static_argnames=("config", "mode", "measure"))
def run(
    params: forward.Params,
    config: ModelConfig,
    tokens: Tokens,
    noise: jax.Array,
    *,
    mode: PatchMode = PatchMode.ADD,
    measure: Measure = Measure.PROBABILITY,
) -> Runs:
    """The clean run and the corrupted ones.

    Args:
      params, config: the model.
      tokens: one prompt.
      noise: [S, T, D]; only the subject's columns are used.
      mode: whether noise is added to the subject's token embeddings or replaces them.
      measure: of the target.
    """
    batch = TokenBatch(tokens.ids[None], tokens.mask[None])
    attention = forward.plain_attention(batch)
    read = tokens.last + jnp.arange(1 if tokens.target is None else len(tokens.target))

    def through(patches):
        embedded = forward.embed(params, config, batch.ids, attention.positions, patches)
        out = forward.run_layers(
            params, config, embedded, attention, capture=SITES, keep_cache=True
        )
        return embedded, out, forward.unembed(params, config, out.hidden[:, read])

    _, clean, logits = through(())
    target = logits[0].argmax(-1) if tokens.target is None else tokens.target
    clean_score = score(logits, target, measure)[0]

    corrupt = Patch(Site.EMBED, mode, jnp.int32(0), tokens.subject[None], noise)
    embedded, corrupted, logits = through((corrupt,))
    return Runs(
        clean.captures,
        corrupted.captures,
        embedded,
        corrupted.cache,
        tokens.mask,
        read,
        target,
        clean_score,
        score(logits, target, measure).mean(),
    )


def pack_restorations(
    tokens: np.ndarray,
    layers: np.ndarray,
    read: np.ndarray,
    start: int,
    num_columns: int,
    num_places: int,
) -> Places:
    """Lays restorations out.

    Args:
      tokens, layers: int [N'], the places.
      read: int [M], the prompt's columns whose predictions are the target's.
      start: the layer at which they set out.
      num_columns: C.
      num_places: N; those beyond N' repeat nothing: they are padding, and their results mean nothing.
    """
    read = np.asarray(read)
    lengths = read[-1] + 1 - tokens
    first = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(len(tokens)), lengths)
    column = np.arange(len(owner)) - first[owner] + tokens[owner]
    room = num_columns - len(owner), num_places - len(tokens)
    return Places(
        np.pad(tokens, (0, room[1])).astype(np.int32),
        np.pad(layers, (0, room[1])).astype(np.int32),
        np.pad(owner, (0, room[0]), constant_values=-1).astype(np.int32),
        np.pad(column, (0, room[0])).astype(np.int32),
        np.pad(first[:, None] + read - tokens[:, None], ((0, room[1]), (0, 0))).astype(np.int32),
        np.int32(start),
    )


@functools.partial(jax.jit, static_argnames=("config", "kind", "severed", "measure"))
def restore(
    params: forward.Params,
    config: ModelConfig,
    runs: Runs,
    places: Places,
    *,
    kind: TraceKind = TraceKind.HIDDEN,
    window: int | jax.Array = DEFAULT_WINDOW,
    severed: tuple[Site, ...] = (),
    held: Runs | None = None,
    measure: Measure = Measure.PROBABILITY,
) -> jax.Array:
    """Scores of N restorations.

    Args:
      params, config: the model.
      runs: of the prompt.
      places: what is restored where, at least one layer above `places.start - 1`.
      kind: of the restorations.
      window: layers of MLP or attention outputs, from layer − window // 2 on, clipped to the model.
      severed: sites whose outputs at the restored token stay what they were in the corrupted runs, in every layer.
      held: the runs they are held at the values of; `runs` itself if None.
      measure: of the target.

    Returns:
      [N], the means over samples.
    """
    columns, owner = places.column, jnp.maximum(places.owner, 0)
    token, layer = places.token[owner], places.layer[owner]
    restored = (columns == token) & (places.owner >= 0)

    clean, replace = runs.clean[kind.site], PatchMode.REPLACE
    first, stop = kind.layers(layer, window)
    patches = [RunPatch(kind.site, replace, first, stop, restored, columns, clean)]
    for site in severed:
        values = (runs if held is None else held).corrupted[site]
        every = jnp.zeros_like(layer), jnp.full_like(layer, config.num_layers)
        patches.append(RunPatch(site, replace, *every, restored, columns, values))

    earlier = jnp.arange(len(runs.mask)) < token[:, None]
    own = (places.owner == places.owner[:, None]) & (columns <= columns[:, None])
    attention = Attention(columns[None], jnp.concatenate([earlier & runs.mask, own], axis=1)[None])
    # Before layer `start` stands what is behind the layer below it, where a hidden state may be restored already.
    below = runs.corrupted[Site.RESIDUAL][jnp.maximum(places.start - 1, 0)]
    hidden = jnp.where(places.start == 0, runs.embedded, below)[:, columns]
    hidden = apply_patches(patches, Site.RESIDUAL, places.start - 1, hidden)
    hidden = forward.run_layers(
        params,
        config,
        hidden,
        attention,
        start=places.start,
        stop=config.num_layers - 1,
        interventions=Interventions(tuple(patches)),
        cache=runs.cache,
    ).hidden
    read = places.read.reshape(-1)
    hidden = forward.run_last_layer(
        params,
        config,
        hidden,
        attention,
        read,
        interventions=Interventions(tuple(patch.take(read) for patch in patches)),
        cache=runs.cache,
    )
    logits = forward.unembed(params, config, hidden).reshape(
        hidden.shape[0], *places.read.shape, -1
    )  # [S, N, M, V]
    return score(logits, runs.target, measure).mean(axis=0)
