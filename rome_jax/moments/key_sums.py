"""Σ k kᵀ of the MLP keys of some layers, in one pass over batches of tokens.

Batches run one layer at a time, up to the last layer asked for. Products run in float32 at highest precision; the
sums of a batch are brought to the host one layer after the other and added up there in float64. So the device holds
the activations of one layer and one [F, F] matrix, however many layers are asked for.

Axes: B rows, T tokens, D width, F MLP width.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.data.tokens import TokenBatch
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Site
from rome_jax.models.layers import Attention

_BLOCK = 1024  # keys in one product


class KeySums:
    """Σ k kᵀ over the real tokens of the batches added so far.

    Attributes:
      totals: by layer, float64 [F, F], of which only the upper triangle counts.
      tokens: how many.

    Args:
      params, config: the model.
      layers: whose keys are summed.

    Raises:
      ValueError: no layers, or one that the model does not have.

    Example:
      >>> sums = KeySums(model.params, model.config, [5])  # doctest: +SKIP
      >>> sums.add(encode(model.tokenizer, ["Rome is in Italy."]))  # doctest: +SKIP
      >>> sums.totals[5].shape  # doctest: +SKIP
      (512, 512)
    """

    def __init__(self, params: forward.Params, config: ModelConfig, layers: Iterable[int]):
        layers = sorted({config.check_layer(layer, "layers") for layer in layers})
        if not layers:
            raise ValueError("layers is empty: name at least one layer.")
        self._params, self._config = params, config
        self.totals = {layer: np.zeros((config.mlp_width, config.mlp_width)) for layer in layers}
        self.tokens = 0

    def add(self, batch: TokenBatch) -> None:
        """Adds a batch, padded or packed. Batches of one shape share their compiled programs."""
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


@functools.partial(jax.jit, static_argnames="config")
def _embed(
    params: forward.Params, config: ModelConfig, batch: TokenBatch
) -> tuple[jax.Array, Attention]:
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
    """One layer: its output unless it is the last, and Σ k kᵀ over the mask if it is `summed`."""
    out = forward.run_layer(params, config, hidden, attention, layer)
    total = None
    if summed:
        keys = out.sites[Site.MLP_KEY]
        if hidden.dtype != jnp.float32:
            # As the edit computes its keys: C⁻¹ magnifies the rounding of half precision.
            full = forward.run_layer(params, config, hidden.astype(jnp.float32), attention, layer)
            keys = full.sites[Site.MLP_KEY]
        total = _outer_products(jnp.where(mask[..., None], keys.astype(jnp.float32), 0.0))
    return (None if last else out.hidden), total


def _outer_products(keys: jax.Array) -> jax.Array:
    """Σ k kᵀ of keys [B, T, F], some at a time: a float32 sum over many thousands at once would lose digits."""

    def add(total, block):
        return total + jnp.matmul(block.T, block, precision=jax.lax.Precision.HIGHEST), None

    width = keys.shape[-1]
    keys = keys.reshape(-1, width)
    keys = jnp.pad(keys, ((0, -len(keys) % _BLOCK), (0, 0))) if len(keys) > _BLOCK else keys
    blocks = keys.reshape(-1, min(_BLOCK, len(keys)), width)
    return jax.lax.scan(add, jnp.zeros((width, width)), blocks)[0]
