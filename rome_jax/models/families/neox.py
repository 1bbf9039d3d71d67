"""GPT-NeoX (Black et al., 2022) and Pythia (Biderman et al., 2023)."""

from __future__ import annotations

from typing import Any

from rome_jax.models.config import Activation, Family, ModelConfig, UnsupportedConfigError
from rome_jax.models.families.base import (
    Attributes,
    FamilySpec,
    Weight,
    linear,
    norms,
    rotary_attributes,
)

_SHARE = "partial_rotary_factor"
_OPTIONS: dict[str, Any] = {
    "activation": Activation.GELU,
    "fused_qkv": True,
    "parallel_residual": True,
    "tie_embeddings": False,
}


def _read(found: Attributes) -> ModelConfig:
    width, heads = found.size("hidden_size"), found.size("num_attention_heads")
    attention_bias = found.read(bool, "attention_bias", True)
    share = found.rope().read(float, _SHARE, found.read(float, "rotary_pct", 0.25))
    return ModelConfig(
        Family.NEOX,
        found.layers("num_hidden_layers"),
        width,
        heads,
        found.size("intermediate_size"),
        found.size("vocab_size"),
        found.size("max_position_embeddings"),
        rotary=found.rotary(int(width // heads * share), "rotary_emb_base", (_SHARE,)),
        norm_epsilon=found.positive("layer_norm_eps", 1e-5),
        **_OPTIONS
        | {
            "activation": found.activation("hidden_act", "gelu"),
            "parallel_residual": found.read(bool, "use_parallel_residual", True),
            "qkv_bias": attention_bias,
            "out_bias": attention_bias,
            "tie_embeddings": found.read(bool, "tie_word_embeddings", False),
        },
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    if config.rotary is None:
        raise UnsupportedConfigError("gpt_neox models have rotary positions.")
    dim, head_dim = config.rotary.dim, config.head_dim
    share = dim / head_dim
    if int(head_dim * share) != dim:  # rounding has brought the product below dim
        share = (dim + 0.5) / head_dim
    return {
        "attention_bias": config.qkv_bias,
        "hidden_act": config.activation.value,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "layer_norm_eps": config.norm_epsilon,
        "max_position_embeddings": config.context_length,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "rotary_pct": share,
        "tie_word_embeddings": config.tie_embeddings,
        "use_parallel_residual": config.parallel_residual,
        "vocab_size": config.vocab_size,
        **rotary_attributes(config.rotary, "rotary_emb_base"),
    }


NEOX = FamilySpec(
    Family.NEOX,
    options=_OPTIONS,
    read=_read,
    write=_write,
    handled=frozenset(
        """
        vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_act rotary_pct
        rotary_emb_base rope_theta rope_scaling rope_parameters max_position_embeddings layer_norm_eps
        use_parallel_residual attention_bias tie_word_embeddings
        """.split()
    ),
    required={},
    weights=(
        Weight("wte/embedding", "gpt_neox.embed_in.weight"),
        *norms("blocks/ln_1", "gpt_neox.layers.{}.input_layernorm"),
        *norms("blocks/ln_2", "gpt_neox.layers.{}.post_attention_layernorm"),
        *norms("ln_f", "gpt_neox.final_layer_norm"),
        *linear("blocks/attn/qkv", "gpt_neox.layers.{}.attention.query_key_value", by_head=True),
        *linear("blocks/attn/out", "gpt_neox.layers.{}.attention.dense"),
        *linear("blocks/mlp/up", "gpt_neox.layers.{}.mlp.dense_h_to_4h"),
        *linear("blocks/mlp/down", "gpt_neox.layers.{}.mlp.dense_4h_to_h"),
        *linear("lm_head", "embed_out"),
    ),
    prefix="gpt_neox.",
    buffers=(
        "gpt_neox.layers.{}.attention.bias",
        "gpt_neox.layers.{}.attention.masked_bias",
        "gpt_neox.layers.{}.attention.rotary_emb.inv_freq",
    ),
    architecture="GPTNeoXForCausalLM",
)
