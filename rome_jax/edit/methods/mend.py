"""MEND, a baseline of the ROME paper: a network turns the gradient of an edit's loss into a better update.

The method is from Mitchell et al., 2022, "Fast Model Editing at Scale", section 3.

    requests ─► gradient factors x, δ ─► `RunningNormalizer` ─► `LowRankLayer`s ─► x̃, δ̃
             ─► ΔW = rate · Σ_t x̃_t ⊗ δ̃_t

One network serves all layers of a projection. Each layer has its own scale and shift in the network, and its own rate.

Axes: N requests, M layers, T tokens, X inputs and Y outputs of a projection, Z = X + Y.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import TokenBatch
from rome_jax.edit.baseline_config import MENDConfig, RateOrder
from rome_jax.edit.config import MethodName
from rome_jax.edit.hypernetworks import edits
from rome_jax.edit.result import EditResult
from rome_jax.edit.stages.gradients import GradientFactors
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import LanguageModel

# The rate before training. It is negative because the update is added to the weights while δ points uphill.
INITIAL_RATE = -1e-4
_EPSILON = 1e-7  # added to the standard deviation


class RunningNormalizer(nn.Module):
    """Normalization by the statistics of all tokens seen in training (section 3.2).

    The output is (values − mean) / standard deviation. As in the published code, the statistics of training grow within
    one batch: the tokens of all requests in one layer are added and normalized, and then those in the next layer.
    """

    @nn.compact
    def __call__(self, values: jax.Array, mask: jax.Array, training: bool) -> jax.Array:
        """Normalizes values.

        Args:
          values: [N, M, T, X]; the M layers are added in their order.
          mask: bool [N, M, T] the tokens that count.
          training: Whether to add these tokens to the statistics. If not, the statistics stay as they are.

        Returns:
          [N, M, T, X].
        """
        size = values.shape[-1]
        count = self.variable("statistics", "count", jnp.zeros, ())
        mean = self.variable("statistics", "mean", jnp.zeros, size)
        squares = self.variable("statistics", "squares", jnp.zeros, size)  # Σ (value − mean)²
        seen = _Moments(count.value, mean.value, squares.value)
        if not training or self.is_initializing():
            return seen.normalize(values)

        def add_layer(seen: _Moments, layer: tuple[jax.Array, jax.Array]):
            seen = seen.add(*layer)
            return seen, seen.normalize(layer[0])

        layers = (values.swapaxes(0, 1), mask.swapaxes(0, 1))
        seen, normalized = jax.lax.scan(add_layer, seen, layers)
        count.value, mean.value, squares.value = seen.count, seen.mean, seen.squares
        return normalized.swapaxes(0, 1)


@struct.dataclass
class _Moments:
    """The statistics of the tokens seen so far: their number, their mean [X] and Σ (value − mean)² [X]."""

    count: jax.Array
    mean: jax.Array
    squares: jax.Array

    def add(self, values: jax.Array, mask: jax.Array) -> _Moments:
        """Adds the values [..., X] of the tokens that count."""
        # Merging the moments of two sets (Chan et al., 1979) gives the same sums as going token by token.
        weight = mask.astype(values.dtype)[..., None]
        axes = tuple(range(values.ndim - 1))
        new = weight.sum()
        mean = (values * weight).sum(axes) / jnp.maximum(new, 1)
        squares = (weight * (values - mean) ** 2).sum(axes)
        total = jnp.maximum(self.count + new, 1)
        shift = mean - self.mean
        return _Moments(
            self.count + new,
            self.mean + shift * new / total,
            self.squares + squares + shift**2 * self.count * new / total,
        )

    def normalize(self, values: jax.Array) -> jax.Array:
        """Returns (values − mean) / (standard deviation + ε) of values [..., X]."""
        deviation = jnp.sqrt(self.squares / jnp.maximum(self.count - 1, 1))
        return (values - self.mean) / (deviation + _EPSILON)


class LowRankLayer(nn.Module):
    """A residual low-rank layer, z + relu((U V z + b) · scale + shift) (appendix C).

    Each of the M layers of the edited model has its own scale and shift. U and b start at 0, so the network starts as
    the identity.

    Attributes:
      rank: The rank of U V, at most Z.
    """

    rank: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """Maps z [N, M, T, Z] to the same shape."""
        modes, size = z.shape[1], z.shape[-1]
        rank = min(self.rank, size)
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        # The published code draws V with variance 1 and uses a tiny learning rate instead.
        v = self.param("v", nn.initializers.lecun_normal(), (size, rank))
        u = self.param("u", zeros, (rank, size))
        bias = self.param("bias", zeros, (size,))
        scale = self.param("scale", ones, (modes, size))
        shift = self.param("shift", zeros, (modes, size))
        product = jax.lax.Precision.HIGHEST
        inner = jnp.matmul(jnp.matmul(z, v, precision=product), u, precision=product) + bias
        inner = inner * scale[:, None] + shift[:, None]
        # All inputs of relu start at 0. Its gradient there must be 1, or the network would never learn.
        return z + jnp.where(inner >= 0, inner, 0.0)


class GradientTransform(nn.Module):
    """The network of one projection, which maps the factors x, δ to x̃, δ̃.

    Attributes:
      config: Hyperparameters.
    """

    config: MENDConfig

    @nn.compact
    def __call__(self, factors: GradientFactors, training: bool = False) -> GradientFactors:
        """Maps the factors of N requests in M layers to factors of the same shapes."""
        mask = factors.mask
        normalized = [
            RunningNormalizer(name=name)(value, mask, training)
            for name, value in (("x", factors.x), ("delta", factors.delta))
        ]
        z = jnp.concatenate(normalized, axis=-1)
        for index in range(self.config.num_hidden + 1):
            z = LowRankLayer(self.config.rank, name=f"layer_{index}")(z)
        z = z * mask[..., None]  # a token without a gradient contributes nothing
        return GradientFactors(*jnp.split(z, [factors.x.shape[-1]], axis=-1))


class MEND(nn.Module):
    """The whole hypernetwork, from gradients to edits.

    Attributes:
      config: Hyperparameters.
    """

    config: MENDConfig

    @nn.compact
    def __call__(
        self,
        factors: Mapping[str, GradientFactors],
        condition: TokenBatch | None = None,
        training: bool = False,
    ) -> Delta:
        """Computes independent edits of N requests.

        Args:
          factors: The gradient factors of each projection, by the name of its leaf.
          condition: Not used; KE reads it.
          training: Whether to add these gradients to the running statistics.

        Returns:
          One update of rank T per weight, with case axis N.
        """
        del condition
        config = self.config
        shape = (len(config.layers), len(config.leaves))
        rates = self.param("rates", nn.initializers.constant(INITIAL_RATE), shape)
        if config.rate_order is RateOrder.REFERENCE:
            rates = rates[:, ::-1]
        rates = rates * config.lr_scale
        updates = []
        for column, leaf in enumerate(config.leaves):
            found = GradientTransform(config, name=leaf.name)(factors[leaf.name], training)
            for index, layer in enumerate(config.layers):
                right = rates[index, column] * found.delta[:, index]
                updates.append(edits.token_update(leaf, layer, found.x[:, index], right))
        return Delta(tuple(updates))


def compute(
    model: LanguageModel, requests: Sequence[EditRequest], config: MENDConfig, **options: Any
) -> EditResult:
    """Computes N independent edits, each by a single pass through the network.

    Args:
      model: The model to edit; it is not changed.
      requests: The facts to write.
      config: Hyperparameters. Those that determine the network's shape must be the network's own.
      **options: `hypernetwork`, `chunk_size`, `progress` and `check_answers`, as in
        `rome_jax.edit.hypernetworks.edits.compute`.

    Returns:
      An `EditResult` with low-rank deltas: one update per weight, whose rank is the number of tokens.

    Raises:
      ValueError, SequenceTooLongError: As in `rome_jax.edit.hypernetworks.edits.compute`.

    Example:
      >>> from rome_jax import MENDConfig
      >>> compute(model, [request], MENDConfig.for_model(model.name)).deltas
      Delta(1 edits: MLP_UP [128, 512] rank 8 at layer 3, ...)
    """
    return edits.compute(
        MethodName.MEND, lambda _: MEND(config), model, requests, config, **options
    )


def compute_deltas(
    model: LanguageModel, requests: Sequence[EditRequest], config: MENDConfig, **options: Any
) -> Delta:
    """Returns the deltas of `compute`, N independent edits with case axis N. Takes and raises the same.

    Example:
      >>> from rome_jax import MENDConfig, apply_delta
      >>> deltas = compute_deltas(model, [request], MENDConfig.for_model(model.name))
      >>> edited = apply_delta(model.params, deltas[0])
    """
    return compute(model, requests, config, **options).deltas
