"""MEND, a baseline of the paper: a network that turns the gradient of an edit's loss into a better one (Mitchell et
al., 2022, "Fast Model Editing at Scale", section 3).

    requests ─► gradient factors x, δ ─► normalised ─► network ─► x̃, δ̃ ─► ΔW = rate · Σ_t x̃_t ⊗ δ̃_t

One network serves all layers of a projection; each layer has its own scale and shift in it, and its own rate.

Axes: N requests, M layers, T tokens, X inputs and Y outputs of a projection, Z = X + Y.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import TokenBatch
from rome_jax.edit.baseline_config import MENDConfig, RateOrder
from rome_jax.edit.config import MethodName
from rome_jax.edit.hypernetworks import networks as hypernetworks
from rome_jax.edit.hypernetworks.networks import Hypernetwork
from rome_jax.edit.result import EditResult
from rome_jax.edit.stages.gradients import GradientFactors
from rome_jax.models.interventions import Delta, LowRankUpdate
from rome_jax.models.registry import LanguageModel

# The rates are learned and added to the weights, and δ points uphill.
INITIAL_RATE = -1e-4
_EPSILON = 1e-7  # of the standard deviation


class RunningNormalizer(nn.Module):
    """(values − mean) / standard deviation, both over all tokens that training has seen (section 3.2)."""

    @nn.compact
    def __call__(self, values: jax.Array, mask: jax.Array, training: bool) -> jax.Array:
        """values [..., X], mask bool [...] of those that count -> [..., X]; in training they are counted first."""
        size = values.shape[-1]
        count = self.variable("statistics", "count", jnp.zeros, ())
        mean = self.variable("statistics", "mean", jnp.zeros, size)
        squares = self.variable("statistics", "squares", jnp.zeros, size)  # Σ (value − mean)²
        if training and not self.is_initializing():
            # Two sets' moments as one (Chan et al., 1979): the same sums as token by token.
            weight = mask.astype(values.dtype)[..., None]
            axes = tuple(range(values.ndim - 1))
            new = weight.sum()
            new_mean = (values * weight).sum(axes) / jnp.maximum(new, 1)
            new_squares = (weight * (values - new_mean) ** 2).sum(axes)
            total = jnp.maximum(count.value + new, 1)
            shift = new_mean - mean.value
            squares.value += new_squares + shift**2 * count.value * new / total
            mean.value += shift * new / total
            count.value += new
        deviation = jnp.sqrt(squares.value / jnp.maximum(count.value - 1, 1))
        return (values - mean.value) / (deviation + _EPSILON)


class LowRankLayer(nn.Module):
    """z + relu((U V z + b) · scale + shift), with scale and shift of each of M layers of the edited model.

    U and b begin at 0: the network begins as the identity (appendix C).
    """

    rank: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """[N, M, T, Z] -> the same."""
        modes, size = z.shape[1], z.shape[-1]
        rank = min(self.rank, size)
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        # The published code draws V of variance 1 and takes a tiny learning rate.
        v = self.param("v", nn.initializers.lecun_normal(), (size, rank))
        u = self.param("u", zeros, (rank, size))
        bias = self.param("bias", zeros, (size,))
        scale = self.param("scale", ones, (modes, size))
        shift = self.param("shift", zeros, (modes, size))
        product = jax.lax.Precision.HIGHEST
        inner = jnp.matmul(jnp.matmul(z, v, precision=product), u, precision=product) + bias
        inner = inner * scale[:, None] + shift[:, None]
        # At 0, where it begins, relu's gradient must be 1, or nothing is ever learned.
        return z + jnp.where(inner >= 0, inner, 0.0)


class GradientTransform(nn.Module):
    """x, δ -> x̃, δ̃ of one projection."""

    config: MENDConfig

    @nn.compact
    def __call__(self, factors: GradientFactors, training: bool = False) -> GradientFactors:
        mask = factors.mask
        normalised = [
            RunningNormalizer(name=name)(value, mask, training)
            for name, value in (("x", factors.x), ("delta", factors.delta))
        ]
        z = jnp.concatenate(normalised, axis=-1)
        for index in range(self.config.num_hidden + 1):
            z = LowRankLayer(self.config.rank, name=f"layer_{index}")(z)
        z = z * mask[..., None]  # a token without a gradient adds nothing
        return GradientFactors(*jnp.split(z, [factors.x.shape[-1]], axis=-1))


class MEND(nn.Module):
    """The whole hypernetwork: from gradients to edits."""

    config: MENDConfig

    @nn.compact
    def __call__(
        self,
        factors: Mapping[str, GradientFactors],
        condition: TokenBatch | None = None,
        training: bool = False,
    ) -> Delta:
        """Independent edits of N requests.

        Args:
          factors: of each projection, by the name of its leaf.
          condition: for other hypernetworks.
          training: whether running statistics count these gradients.

        Returns:
          One update a weight with case axis N, of rank T.
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
                left = found.x[:, index].swapaxes(1, 2)  # [N, X, T]
                right = rates[index, column] * found.delta[:, index].swapaxes(1, 2)
                layers = jnp.full(len(left), layer, jnp.int32)
                updates.append(LowRankUpdate(leaf, layers, left, right))
        return Delta(tuple(updates))


def compute(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: MENDConfig,
    *,
    hypernetwork: Hypernetwork | None = None,
    chunk_size: int = 8,
    progress: bool = False,
) -> EditResult:
    """N independent edits, each of a single pass through the network.

    Args:
      model: what to edit; not changed.
      requests: the facts to write.
      config: hyperparameters; those of the network's shape must be its own.
      hypernetwork: trained for this model; None takes the one that comes with it.
      chunk_size: requests that run side by side; bounds the memory.
      progress: show a progress bar.

    Returns:
      `EditResult` with deltas of low rank: one update a weight, its rank the number of tokens.

    Raises:
      ValueError: no requests, a chunk_size below 1, no such layer, no hypernetwork, or one of another method, shape or
        model.
      SequenceTooLongError: a request that does not fit the context.

    Example:
      >>> result = compute(model, requests, MENDConfig.for_model(model.name))  # doctest: +SKIP
      >>> edited = apply_delta(model.params, result.deltas[0])  # doctest: +SKIP
    """
    hypernetwork = hypernetwork or hypernetworks.load_shipped(MethodName.MEND, model)
    hypernetworks.check_shape(config, hypernetwork)
    deltas = hypernetworks.compute_deltas(
        MEND(config), model, requests, hypernetwork, chunk_size, progress
    )
    return EditResult(deltas)


def compute_deltas(
    model: LanguageModel, requests: Sequence[EditRequest], config: MENDConfig, **options: Any
) -> Delta:
    """N independent edits as one Delta with case axis N; arguments and errors are those of `compute`.

    Example:
      >>> deltas = compute_deltas(model, requests, MENDConfig.for_model(model.name))  # doctest: +SKIP
      >>> edited = apply_delta(model.params, deltas[0])  # doctest: +SKIP
    """
    return compute(model, requests, config, **options).deltas
