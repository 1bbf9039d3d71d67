"""GPT-2 (Radford et al., 2019) and GPT-J (Wang and Komatsuzaki, 2021)."""

from __future__ import annotations

from typing import Any

from rome_jax.models.config import Family, ModelConfig, Rotary, RotaryPairs, UnsupportedConfigError
from rome_jax.models.families.base import Attributes, FamilySpec, Weight, linear, norms

_HANDLED = frozenset(
    """
    vocab_size n_positions n_embd n_layer n_head n_inner activation_function layer_norm_epsilon tie_word_embeddings
    """.split()
)
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "rotary": (True,),
    "rope_scaling": (None,),
    "rope_parameters": (None,),
}
# Causal masks that old versions of transformers saved with the weights.
_BUFFERS = ("transformer.h.{}.attn.bias", "transformer.h.{}.attn.masked_bias")

GPT2_OPTIONS = {"fused_qkv": True}
GPTJ_OPTIONS = {
    "parallel_residual": True,
    "shared_norm": True,
    "qkv_bias": False,
    "out_bias": False,
    "head_bias": True,
    "tie_embeddings": False,
}


def _read(found: Attributes, family: Family, options: dict[str, Any]) -> ModelConfig:
    """Reads the attributes that both families have."""
    width = found.size("n_embd")
    options["tie_embeddings"] = found.read(
        bool, "tie_word_embeddings", options.get("tie_embeddings", True)
    )
    return ModelConfig(
        family,
        found.size("n_layer"),
        width,
        found.size("n_head"),
        found.size("n_inner", 4 * width),
        found.size("vocab_size"),
        found.size("n_positions"),
        activation=found.activation("activation_function", "gelu_new"),
        norm_epsilon=found.read(float, "layer_norm_epsilon", 1e-5),
        **options,
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    """Returns the attributes that both families have."""
    return {
        "activation_function": config.activation.value,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "layer_norm_epsilon": config.norm_epsilon,
        "n_embd": config.width,
        "n_head": config.num_heads,
        "n_inner": config.mlp_width,
        "n_layer": config.num_layers,
        "n_positions": config.context_length,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": config.tie_embeddings,
        "vocab_size": config.vocab_size,
    }


def _read_gpt2(found: Attributes) -> ModelConfig:
    if found.get("rotary_dim"):
        raise UnsupportedConfigError(
            f"config.json sets rotary_dim={found['rotary_dim']!r}, but GPT-2 has learned positions."
        )
    return _read(found, Family.GPT2, dict(GPT2_OPTIONS))


def _read_gptj(found: Attributes) -> ModelConfig:
    if "rotary_dim" in found and not found["rotary_dim"]:
        raise UnsupportedConfigError(
            f"config.json sets rotary_dim={found['rotary_dim']!r}: GPT-J needs a positive number."
        )
    rotary = Rotary(found.size("rotary_dim", 64), RotaryPairs.INTERLEAVED)
    return _read(found, Family.GPTJ, {**GPTJ_OPTIONS, "rotary": rotary})


def _write_gptj(config: ModelConfig) -> dict[str, Any]:
    return _write(config) | {"rotary_dim": config.rotary.dim if config.rotary else 0}


GPT2 = FamilySpec(
    Family.GPT2,
    options=GPT2_OPTIONS,
    read=_read_gpt2,
    write=_write,
    handled=_HANDLED | {"rotary_dim"},
    required=_REQUIRED,
    weights=(  # Conv1D: [in, out] already
        Weight("wte/embedding", "transformer.wte.weight"),
        Weight("wpe/embedding", "transformer.wpe.weight"),
        *norms("blocks/ln_1", "transformer.h.{}.ln_1"),
        *norms("blocks/ln_2", "transformer.h.{}.ln_2"),
        *norms("ln_f", "transformer.ln_f"),
        Weight("blocks/attn/qkv/kernel", "transformer.h.{}.attn.c_attn.weight"),
        Weight("blocks/attn/qkv/bias", "transformer.h.{}.attn.c_attn.bias"),
        Weight("blocks/attn/out/kernel", "transformer.h.{}.attn.c_proj.weight"),
        Weight("blocks/attn/out/bias", "transformer.h.{}.attn.c_proj.bias"),
        Weight("blocks/mlp/up/kernel", "transformer.h.{}.mlp.c_fc.weight"),
        Weight("blocks/mlp/up/bias", "transformer.h.{}.mlp.c_fc.bias"),
        Weight("blocks/mlp/down/kernel", "transformer.h.{}.mlp.c_proj.weight"),
        Weight("blocks/mlp/down/bias", "transformer.h.{}.mlp.c_proj.bias"),
        *linear("lm_head", "lm_head"),
    ),
    prefix="transformer.",
    buffers=_BUFFERS,
    architecture="GPT2LMHeadModel",
)
GPTJ = FamilySpec(
    Family.GPTJ,
    options=GPTJ_OPTIONS,
    read=_read_gptj,
    write=_write_gptj,
    handled=_HANDLED | {"rotary_dim"},
    required=_REQUIRED,
    weights=(
        Weight("wte/embedding", "transformer.wte.weight"),
        *norms("blocks/ln_1", "transformer.h.{}.ln_1"),
        *norms("ln_f", "transformer.ln_f"),
        *linear("blocks/attn/query", "transformer.h.{}.attn.q_proj"),
        *linear("blocks/attn/key", "transformer.h.{}.attn.k_proj"),
        *linear("blocks/attn/value", "transformer.h.{}.attn.v_proj"),
        *linear("blocks/attn/out", "transformer.h.{}.attn.out_proj"),
        *linear("blocks/mlp/up", "transformer.h.{}.mlp.fc_in"),
        *linear("blocks/mlp/down", "transformer.h.{}.mlp.fc_out"),
        *linear("lm_head", "lm_head"),
    ),
    prefix="transformer.",
    buffers=_BUFFERS,
    architecture="GPTJForCausalLM",
)
