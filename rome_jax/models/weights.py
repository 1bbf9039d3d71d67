"""Names of weights in Hugging Face's checkpoints: one table per family, for loading and for saving.

Axes: L layers. A checkpoint has one tensor for each layer; params have one leaf [L, ...] for all layers.
"""

from __future__ import annotations

import dataclasses

import jax

from rome_jax.models.config import Family, ModelConfig
from rome_jax.models.forward import param_shapes


@dataclasses.dataclass(frozen=True)
class Weight:
    """One row of a family's table.

    Attributes:
      path: Path of our leaf, joined by "/"; leaves below `blocks` have a leading axis [L].
      name: Name of the checkpoint's tensor, in which `{}` is the layer.
      transposed: Whether the checkpoint stores [out, in]. Our kernels are [in, out].
    """

    path: str
    name: str
    transposed: bool = False


def _norms(*names: str) -> tuple[Weight, ...]:
    """Builds the rows of LayerNorms: their scales and biases."""
    return tuple(
        Weight(f"{'' if name == 'ln_f' else 'blocks/'}{name}/{ours}", f"{prefix}{name}.{theirs}")
        for name in names
        for prefix in ("transformer." if name == "ln_f" else "transformer.h.{}.",)
        for ours, theirs in (("scale", "weight"), ("bias", "bias"))
    )


WEIGHTS: dict[Family, tuple[Weight, ...]] = {
    Family.GPT2: (  # Conv1D: [in, out] already
        Weight("wte/embedding", "transformer.wte.weight"),
        Weight("wpe/embedding", "transformer.wpe.weight"),
        *_norms("ln_1", "ln_2", "ln_f"),
        Weight("blocks/attn/qkv/kernel", "transformer.h.{}.attn.c_attn.weight"),
        Weight("blocks/attn/qkv/bias", "transformer.h.{}.attn.c_attn.bias"),
        Weight("blocks/attn/out/kernel", "transformer.h.{}.attn.c_proj.weight"),
        Weight("blocks/attn/out/bias", "transformer.h.{}.attn.c_proj.bias"),
        Weight("blocks/mlp/up/kernel", "transformer.h.{}.mlp.c_fc.weight"),
        Weight("blocks/mlp/up/bias", "transformer.h.{}.mlp.c_fc.bias"),
        Weight("blocks/mlp/down/kernel", "transformer.h.{}.mlp.c_proj.weight"),
        Weight("blocks/mlp/down/bias", "transformer.h.{}.mlp.c_proj.bias"),
        Weight("lm_head/kernel", "lm_head.weight", transposed=True),  # if untied
    ),
    Family.GPTJ: (  # nn.Linear: [out, in]
        Weight("wte/embedding", "transformer.wte.weight"),
        *_norms("ln_1", "ln_f"),
        Weight("blocks/attn/query/kernel", "transformer.h.{}.attn.q_proj.weight", transposed=True),
        Weight("blocks/attn/key/kernel", "transformer.h.{}.attn.k_proj.weight", transposed=True),
        Weight("blocks/attn/value/kernel", "transformer.h.{}.attn.v_proj.weight", transposed=True),
        Weight("blocks/attn/out/kernel", "transformer.h.{}.attn.out_proj.weight", transposed=True),
        Weight("blocks/mlp/up/kernel", "transformer.h.{}.mlp.fc_in.weight", transposed=True),
        Weight("blocks/mlp/up/bias", "transformer.h.{}.mlp.fc_in.bias"),
        Weight("blocks/mlp/down/kernel", "transformer.h.{}.mlp.fc_out.weight", transposed=True),
        Weight("blocks/mlp/down/bias", "transformer.h.{}.mlp.fc_out.bias"),
        Weight("lm_head/kernel", "lm_head.weight", transposed=True),  # if untied
        Weight("lm_head/bias", "lm_head.bias"),
    ),
}
# Causal masks that old versions of transformers saved with the weights; they are ignored.
_BUFFERS = ("transformer.h.{}.attn.bias", "transformer.h.{}.attn.masked_bias")


@dataclasses.dataclass(frozen=True)
class Slot:
    """The place of one tensor of the checkpoint: layer `layer` of a leaf, or the whole leaf if it is None."""

    weight: Weight
    layer: int | None
    shape: tuple[int, ...]  # as stored in the checkpoint


def leaf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every leaf by its path, as the linen model would create it."""
    return {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(config))
    }


def slots_of(config: ModelConfig) -> dict[str, Slot]:
    """Returns the slot of every tensor of a model's checkpoint by its name."""
    shapes = leaf_shapes(config)
    slots = {}
    for weight in WEIGHTS[config.family]:
        if weight.path not in shapes:  # a tied head has no weights of its own
            continue
        stacked = weight.path.startswith("blocks/")
        shape = shapes[weight.path][1:] if stacked else shapes[weight.path]
        for layer in range(config.num_layers) if stacked else (None,):
            slots[weight.name.format(layer)] = Slot(
                weight, layer, shape[::-1] if weight.transposed else shape
            )
    return slots
