"""Accumulation over batches: Σ k kᵀ of the MLP keys of some layers, and their mean, in one pass.

A batch runs one layer at a time, up to the last requested layer. Products run in float32 at the highest precision. The
sums of a batch are brought to the host layer by layer and added up there in float64. The device therefore holds the
activations of one layer and one [F, F] matrix, however many layers are requested.

Axes: B rows, T tokens, D width, F MLP width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.data.tokens import TokenBatch
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.fingerprint import base_fingerprint, fingerprint
from rome_jax.models.interventions import Site
from rome_jax.models.layers import Attention, BlockOutput
from rome_jax.models.placement import MODEL_AXIS, constrain
from rome_jax.moments.second_moment import MomentProvenance, SecondMoment
from rome_jax.moments.triangle import pack_triangle, unpack_triangle
from rome_jax.version import __version__

_BLOCK = 1024  # Keys per matrix product.


class KeySums:
    """Σ k kᵀ over the real tokens of the batches added so far.

    Attributes:
      totals: The sum of each layer, float64 [F, F]; only the upper triangle is meaningful.
      tokens: Number of tokens added so far.

    Args:
      params, config: The model.
      layers: Layers whose keys are summed.

    Raises:
      ValueError: If `layers` is empty or names a layer the model does not have.

    Example:
      >>> from rome_jax.data.tokens import encode
      >>> sums = rome_jax.moments.KeySums(model.params, model.config, [0])
      >>> sums.add(encode(model.tokenizer, ["Gothulf Punby plays the sport of tennis."], multiple=32))
      >>> sums.totals[0].shape, sums.tokens
      ((512, 512), 9)
    """

    def __init__(self, params: forward.Params, config: ModelConfig, layers: Iterable[int]):
        layers = sorted(set(config.check_layers(layers)))
        if not layers:
            raise ValueError("layers is empty: name at least one layer.")
        self._params, self._config = params, config
        self.totals = {layer: np.zeros((config.mlp_width, config.mlp_width)) for layer in layers}
        self.tokens = 0

    def add(self, batch: TokenBatch) -> None:
        """Adds the keys of a batch.

        Args:
          batch: Padded or packed. Batches of one shape share their compiled programs.
        """
        params, config = self._params, self._config
        hidden, attention = _embed(params, config, batch)
        last = max(self.totals)
        for layer in range(last + 1):
            hidden, total = _run(
                params,
                config,
                hidden,
                attention,
                batch.mask,
                jnp.int32(layer),
                summed=layer in self.totals,
                last=layer == last,
            )
            if total is not None:
                self.totals[layer] += np.asarray(total)
        self.tokens += int(np.sum(batch.mask))

    def merge(self, other: KeySums) -> None:
        """Adds the sums of other batches of the same model and layers."""
        for layer, total in self.totals.items():
            total += other.totals[layer]
        self.tokens += other.tokens

    def read_keys(self, batch: TokenBatch, places: np.ndarray) -> dict[int, np.ndarray]:
        """Computes the keys of some tokens of a batch, without adding them.

        Args:
          batch: Padded or packed.
          places: int [N], indices of the tokens in the flattened batch [B T].

        Returns:
          The keys of each layer, float32 [N, F].
        """
        hidden, attention = _embed(self._params, self._config, batch)
        keys = {}
        for layer in range(max(self.totals) + 1):
            hidden, found = _read(
                self._params, self._config, hidden, attention, jnp.int32(layer), jnp.asarray(places)
            )
            if layer in self.totals:
                keys[layer] = np.asarray(found)
        return keys


def accumulate(
    params: forward.Params,
    config: ModelConfig,
    batches: Iterable[TokenBatch],
    *,
    layers: Iterable[int] | None = None,
) -> dict[int, SecondMoment]:
    """Computes second moments over every real token of some batches, in one pass.

    Args:
      params, config: The model.
      batches: Padded or packed batches of a few thousand tokens each. Batches of one shape share their programs.
      layers: Layers whose second moments are computed; all by default.

    Returns:
      The second moment of each layer. Its provenance does not name the corpus: add it, or collect with
      `rome_jax.moments.collect_second_moments`.

    Raises:
      ValueError: If there are no batches, or `layers` is empty or names a layer the model does not have.

    Example:
      >>> from rome_jax.data.tokens import encode
      >>> batch = encode(model.tokenizer, ["Gothulf Punby plays the sport of tennis."], multiple=32)
      >>> rome_jax.moments.accumulate(model.params, model.config, [batch], layers=[0])[0].count
      9
    """
    sums = KeySums(params, config, range(config.num_layers) if layers is None else layers)
    for batch in batches:
        sums.add(batch)
    if not sums.tokens:
        raise ValueError("batches hold no tokens: give at least one batch.")
    dtype = str(params["wte"]["embedding"].dtype)
    provenance = MomentProvenance(
        fingerprint=fingerprint(params, config),
        base=base_fingerprint(params, config),
        dtype=dtype,
        version=__version__,
    )
    return {
        layer: mean_of(
            sums.totals[layer], sums.tokens, dataclasses.replace(provenance, layer=layer)
        )
        for layer in sums.totals
    }


def mean_of(total: np.ndarray, tokens: int, provenance: MomentProvenance) -> SecondMoment:
    """Returns the second moment of one layer, from its entry in `KeySums.totals`.

    Args:
      total: [F, F]; only its upper triangle is read.
      tokens: Number of tokens that were summed.
      provenance: The model and the corpus.
    """
    triangle = pack_triangle(total, np.float64)
    return SecondMoment(unpack_triangle(triangle / tokens), tokens, provenance)


@functools.partial(jax.jit, static_argnames="config")
def _embed(
    params: forward.Params, config: ModelConfig, batch: TokenBatch
) -> tuple[jax.Array, Attention]:
    """Returns the embeddings [B, T, D] of a batch and how its tokens attend to each other."""
    attention = forward.plain_attention(batch)
    hidden = forward.embed(params, config, jnp.asarray(batch.ids), attention.positions)
    return hidden, attention


@functools.partial(jax.jit, static_argnames=("config", "summed", "last"))
def _run(
    params: forward.Params,
    config: ModelConfig,
    hidden: jax.Array,
    attention: Attention,
    mask: jax.Array,
    layer: jax.Array,
    *,
    summed: bool,
    last: bool,
) -> tuple[jax.Array | None, jax.Array | None]:
    """Runs one layer; returns its output unless it is the `last`, and Σ k kᵀ over the mask if it is `summed`."""
    out = forward.run_layer(params, config, hidden, attention, layer)
    total = None
    if summed:
        keys = _full_keys(params, config, hidden, attention, layer, out)
        total = _outer_products(jnp.where(mask[..., None], keys, 0.0))
        total = constrain(total, params["blocks"], MODEL_AXIS)
    return (None if last else out.hidden), total


@functools.partial(jax.jit, static_argnames="config")
def _read(
    params: forward.Params,
    config: ModelConfig,
    hidden: jax.Array,
    attention: Attention,
    layer: jax.Array,
    places: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Runs one layer; returns its output, and the keys [N, F] of some tokens."""
    out = forward.run_layer(params, config, hidden, attention, layer)
    keys = _full_keys(params, config, hidden, attention, layer, out)
    return out.hidden, keys.reshape(-1, keys.shape[-1])[places]


def _full_keys(
    params: forward.Params,
    config: ModelConfig,
    hidden: jax.Array,
    attention: Attention,
    layer: jax.Array,
    out: BlockOutput,
) -> jax.Array:
    """Returns the keys of a layer that was run, in float32.

    An edit computes its keys in float32 too, because C⁻¹ magnifies the rounding of half precision.
    """
    if hidden.dtype != jnp.float32:
        hidden = hidden.astype(jnp.float32)
        out = forward.run_layer(params, config, hidden, attention, layer)
    return out.sites[Site.MLP_KEY].astype(jnp.float32)


def _outer_products(keys: jax.Array) -> jax.Array:
    """Computes Σ k kᵀ of keys [B, T, F] block by block: one float32 sum over many thousand keys would lose digits."""

    def add(total, block):
        return total + jnp.matmul(block.T, block, precision=jax.lax.Precision.HIGHEST), None

    width = keys.shape[-1]
    keys = keys.reshape(-1, width)
    keys = jnp.pad(keys, ((0, -len(keys) % _BLOCK), (0, 0))) if len(keys) > _BLOCK else keys
    blocks = keys.reshape(-1, min(_BLOCK, len(keys)), width)
    return jax.lax.scan(add, jnp.zeros((width, width)), blocks)[0]
