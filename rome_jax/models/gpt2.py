"""GPT-2 (Radford et al., 2019): pre-norm blocks in which the MLP reads the output of attention."""

from __future__ import annotations

import jax
from flax import linen as nn

from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Site
from rome_jax.models.layers import (
    MLP,
    Attention,
    BlockOutput,
    Interventions,
    KVCache,
    LayerInterventions,
    SelfAttention,
    columns,
    layer_norm,
)


class Block(nn.Module):
    """One layer: a = attn(ln_1(h)); m = mlp(ln_2(h + a)); h + a + m."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        hidden: jax.Array,
        attention: Attention,
        cache: KVCache | None = None,
        layer: jax.Array | int = 0,
        interventions: Interventions = Interventions(),
        read: jax.Array | None = None,
    ) -> BlockOutput:
        """Runs the layer; see `rome_jax.models.forward.run_layer`."""
        here = LayerInterventions(layer, interventions)
        normed = layer_norm(self.config, "ln_1")(hidden)
        attn, own, attn_sites = SelfAttention(self.config, fused=True, use_bias=True, name="attn")(
            normed, attention, here, cache=cache, read=read
        )
        hidden = columns(hidden, read) + attn
        normed = layer_norm(self.config, "ln_2")(hidden)
        value, mlp_sites = MLP(self.config, name="mlp")(normed, here)
        hidden = here.patch(Site.RESIDUAL, hidden + value)
        return BlockOutput(hidden, own, attn_sites | mlp_sites | {Site.RESIDUAL: hidden})
