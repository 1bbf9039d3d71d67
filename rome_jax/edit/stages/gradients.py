"""Gradients of an edit's loss with respect to the MLP weights, as the factors that they consist of.

For a projection y = x W + b, the gradient is a sum over tokens (Mitchell et al., 2022, section 3):

    ∂L/∂W = Σ_t x_t ⊗ δ_t    with δ_t = ∂L/∂y_t

MLP_UP is the up-projection. A gated MLP multiplies its output by the activated output of MLP_GATE. Each of the two has
a gradient of its own, and both read the same x.

Storing x and δ for each of N requests avoids N gradients as large as the weights. MEND and KE start from x and δ.

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
from rome_jax.models.interventions import Leaf, Site
from rome_jax.models.layers import Interventions
from rome_jax.models.patches import Patch, PatchMode

# The sites of a projection's inputs and outputs.
_SITES = {
    Leaf.MLP_UP: (Site.MLP_IN, Site.MLP_PRE),
    Leaf.MLP_GATE: (Site.MLP_IN, Site.MLP_GATE),
    Leaf.MLP_DOWN: (Site.MLP_KEY, Site.MLP_OUT),
}


@struct.dataclass
class GradientFactors:
    """The gradients of N requests at one projection in M layers.

    Attributes:
      x: float32 [N, M, T, X] inputs of the projection.
      delta: float32 [N, M, T, Y] gradients of the loss with respect to its outputs; 0 in the padding.
    """

    x: jax.Array
    delta: jax.Array

    @property
    def mask(self) -> jax.Array:
        """bool [N, M, T] tokens that the loss depends on."""
        return jnp.any(self.x != 0, axis=-1) & jnp.any(self.delta != 0, axis=-1)


@functools.partial(jax.jit, static_argnames=("model_config", "layers", "leaves"))
def gradient_factors(
    params: forward.Params,
    model_config: ModelConfig,
    inputs: TargetInputs,
    layers: tuple[int, ...],
    leaves: tuple[Leaf, ...],
) -> dict[str, GradientFactors]:
    """Computes the gradients of each request's loss, the mean negative log-likelihood of its target.

    Args:
      params: Weights of the model.
      model_config: Configuration of the model (static).
      inputs: N prompts with the new targets.
      layers: Layers in ascending order (static). Layers below the first one run without a gradient.
      leaves: Projections of the MLP (static).

    Returns:
      The factors by the name of the leaf.

    Example:
      >>> from rome_jax.edit.stages.targets import tokenize_request_targets
      >>> inputs = tokenize_request_targets(model.tokenizer, [request], 256)
      >>> gradients = gradient_factors(model.params, model.config, inputs, (4, 5), (Leaf.MLP_UP,))
      >>> gradients["MLP_UP"].x.shape, gradients["MLP_UP"].delta.shape
      ((1, 2, 8, 128), (1, 2, 8, 512))
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
            capture=dict.fromkeys(_SITES[leaf][0] for leaf in leaves),
        )
        read = jnp.take_along_axis(out.hidden, inputs.read[..., None], axis=1)
        nll = target_nll(forward.unembed(params, model_config, read), inputs)
        # Requests do not interact, so the gradient of the sum holds the gradient of each.
        return nll.sum(), out.captures

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
    """Returns the numbers of inputs and outputs of a projection of the MLP.

    Example:
      >>> projection_sizes(model.config, Leaf.MLP_UP)
      (128, 512)
    """
    sizes = (model_config.width, model_config.mlp_width)
    return sizes[::-1] if leaf is Leaf.MLP_DOWN else sizes
