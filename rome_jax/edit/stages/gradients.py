"""Gradients of an edit's loss at the MLP weights, as the factors that they consist of.

For a projection y = x W + b the gradient is a sum over tokens (Mitchell et al., 2022, section 3),

    ∂L/∂W = Σ_t x_t ⊗ δ_t    with δ_t = ∂L/∂y_t,

so N requests have N such sums, and not N gradients as large as the weights. MEND and KE start from x and δ.

Axes: N requests, M layers, T tokens, X inputs and Y outputs of the projection.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import struct

from rome_jax.edit.stages.targets import TargetInputs, target_nll
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Leaf, Patch, PatchMode, Site
from rome_jax.models.layers import Interventions

# Where a projection's inputs and outputs can be seen.
_SITES = {
    Leaf.MLP_UP: (Site.MLP_IN, Site.MLP_PRE),
    Leaf.MLP_DOWN: (Site.MLP_KEY, Site.MLP_OUT),
}


@struct.dataclass
class GradientFactors:
    """The gradients of N requests at one projection in M layers.

    Attributes:
      x: float32 [N, M, T, X], inputs of the projection.
      delta: float32 [N, M, T, Y], gradients of its outputs; 0 in the padding.
    """

    x: jax.Array
    delta: jax.Array

    @property
    def mask(self) -> jax.Array:
        """bool [N, M, T], tokens on which the loss depends."""
        return jnp.any(self.x != 0, axis=-1) & jnp.any(self.delta != 0, axis=-1)


@functools.partial(jax.jit, static_argnames=("model_config", "layers", "leaves"))
def gradient_factors(
    params: forward.Params,
    model_config: ModelConfig,
    inputs: TargetInputs,
    layers: tuple[int, ...],
    leaves: tuple[Leaf, ...],
) -> dict[str, GradientFactors]:
    """The gradients of each request's loss, the mean negative log-likelihood of its target.

    Args:
      params, model_config: the model.
      inputs: N prompts with the new targets.
      layers: ascending; those below the first of them run without a gradient.
      leaves: which projections of the MLP.

    Returns:
      Factors by the name of the leaf.
    """
    first = layers[0]
    batch = inputs.batch
    attention = forward.plain_attention(batch)
    hidden = forward.hidden_states(params, model_config, batch, stop=first).hidden
    everywhere = jnp.ones_like(jnp.asarray(batch.mask))

    def loss(probes):
        patches = tuple(
            Patch(_SITES[leaf][1], PatchMode.ADD, jnp.int32(layer), everywhere, probe)
            for leaf in leaves
            for layer, probe in zip(layers, probes[leaf.name], strict=True)
        )
        out = forward.run_layers(
            params,
            model_config,
            hidden,
            attention,
            start=first,
            interventions=Interventions(patches),
            capture=[_SITES[leaf][0] for leaf in leaves],
        )
        read = jnp.take_along_axis(out.hidden, inputs.read[..., None], axis=1)
        nll = target_nll(forward.unembed(params, model_config, read), inputs)
        return nll.sum(), out.captures  # a request's gradient is that of its own loss

    probes = {
        leaf.name: jnp.zeros(
            (len(layers), *batch.ids.shape, projection_sizes(model_config, leaf)[1])
        )
        for leaf in leaves
    }
    deltas, captures = jax.grad(loss, has_aux=True)(probes)
    chosen = jnp.array(layers) - first
    return {
        leaf.name: GradientFactors(
            captures[_SITES[leaf][0]][chosen].swapaxes(0, 1).astype(jnp.float32),
            deltas[leaf.name].swapaxes(0, 1),
        )
        for leaf in leaves
    }


def projection_sizes(model_config: ModelConfig, leaf: Leaf) -> tuple[int, int]:
    """Inputs and outputs of a projection of the MLP."""
    sizes = (model_config.width, model_config.mlp_width)
    return sizes if leaf is Leaf.MLP_UP else sizes[::-1]
