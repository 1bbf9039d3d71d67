"""Llama (Touvron et al., 2023) and the families that differ from it in few options: Mistral, Qwen2 and Qwen3."""

from __future__ import annotations

import functools
from typing import Any

from rome_jax.models.config import Activation, Family, ModelConfig, Norm, UnsupportedConfigError
from rome_jax.models.families.base import (
    Attributes,
    FamilySpec,
    Weight,
    linear,
    norms,
    rotary_attributes,
)

_HANDLED = frozenset(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    hidden_act max_position_embeddings rms_norm_eps rope_theta rope_scaling rope_parameters attention_bias mlp_bias
    tie_word_embeddings sliding_window use_sliding_window max_window_layers layer_types
    """.split()
)
_OPTIONS: dict[str, Any] = {
    "norm": Norm.RMS,
    "gated": True,
    "activation": Activation.SILU,
    "qkv_bias": False,
    "out_bias": False,
    "mlp_bias": False,
    "tie_embeddings": False,
}
# What transformers assumes for a missing num_key_value_heads; null and a missing one in Llama mean one per head.
_KV_HEADS = {Family.MISTRAL: 8, Family.QWEN2: 32, Family.QWEN3: 32}
_QWEN2_OPTIONS = _OPTIONS | {"qkv_bias": True}
_QWEN3_OPTIONS = _OPTIONS | {"qk_norm": True}


def _read(found: Attributes, *, family: Family, options: dict[str, Any]) -> ModelConfig:
    """Builds the config of any of these families."""
    _check_windows(found, family)
    width, heads = found.size("hidden_size"), found.size("num_attention_heads")
    # transformers assumes heads of width 128 in Qwen3.
    head_dim = found.size("head_dim", 128 if family is Family.QWEN3 else width // heads)
    kv_heads = heads if "num_key_value_heads" in found else _KV_HEADS.get(family, heads)
    biases = {}
    if family in (Family.LLAMA, Family.QWEN3):
        biases = dict.fromkeys(("qkv_bias", "out_bias"), found.read(bool, "attention_bias", False))
    if family is Family.LLAMA:
        biases["mlp_bias"] = found.read(bool, "mlp_bias", False)
    return ModelConfig(
        family,
        found.layers("num_hidden_layers"),
        width,
        heads,
        found.size("intermediate_size"),
        found.size("vocab_size"),
        found.size("max_position_embeddings"),
        head_dim=head_dim,
        num_kv_heads=found.size("num_key_value_heads", kv_heads),
        rotary=found.rotary(head_dim),
        norm_epsilon=found.positive("rms_norm_eps", 1e-6),
        **options
        | biases
        | {
            "activation": found.activation("hidden_act", "silu"),
            "tie_embeddings": found.read(bool, "tie_word_embeddings", False),
        },
    )


def _check_windows(found: Attributes, family: Family) -> None:
    """Refuses layers that attend to a window only.

    Raises:
      UnsupportedConfigError: If a window is shorter than the context.
    """
    # Mistral has no such switch: transformers always uses its window, which is 4,096 unless the file says otherwise.
    used = family is Family.MISTRAL or found.read(bool, "use_sliding_window", False)
    window = found.size("sliding_window", 4096)
    if (
        used
        and found.get("sliding_window", 4096) is not None
        and window < found.size("max_position_embeddings")
    ):
        raise UnsupportedConfigError(
            f"{found.source} sets sliding_window={window}, shorter than the context; windows are not supported."
        )
    types = set(found.read(tuple[str, ...], "layer_types", ())) - {"full_attention"}
    if types:
        raise UnsupportedConfigError(
            f"{found.source} has layers of type {', '.join(sorted(types))}; only full_attention is supported."
        )


def _write(config: ModelConfig) -> dict[str, Any]:
    """Returns the attributes of a config of any of these families."""
    if config.rotary is None:
        raise UnsupportedConfigError(f"{config.family.value} models have rotary positions.")
    found = {
        "head_dim": config.head_dim,
        "hidden_act": config.activation.value,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.context_length,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "vocab_size": config.vocab_size,
        **rotary_attributes(config.rotary),
    }
    if config.family in (Family.LLAMA, Family.QWEN3):
        found["attention_bias"] = config.qkv_bias
    if config.family is Family.LLAMA:
        found["mlp_bias"] = config.mlp_bias
    if config.family is Family.MISTRAL:
        found["sliding_window"] = None
    return found


_WEIGHTS = (
    Weight("wte/embedding", "model.embed_tokens.weight"),
    *norms("blocks/ln_1", "model.layers.{}.input_layernorm"),
    *norms("blocks/ln_2", "model.layers.{}.post_attention_layernorm"),
    *norms("ln_f", "model.norm"),
    *linear("blocks/attn/query", "model.layers.{}.self_attn.q_proj"),
    *linear("blocks/attn/key", "model.layers.{}.self_attn.k_proj"),
    *linear("blocks/attn/value", "model.layers.{}.self_attn.v_proj"),
    *linear("blocks/attn/out", "model.layers.{}.self_attn.o_proj"),
    *norms("blocks/attn/query_norm", "model.layers.{}.self_attn.q_norm"),
    *norms("blocks/attn/key_norm", "model.layers.{}.self_attn.k_norm"),
    *linear("blocks/mlp/gate", "model.layers.{}.mlp.gate_proj"),
    *linear("blocks/mlp/up", "model.layers.{}.mlp.up_proj"),
    *linear("blocks/mlp/down", "model.layers.{}.mlp.down_proj"),
    *linear("lm_head", "lm_head"),
)


def _spec(family: Family, options: dict[str, Any], architecture: str) -> FamilySpec:
    return FamilySpec(
        family,
        options=options,
        read=functools.partial(_read, family=family, options=options),
        write=_write,
        handled=_HANDLED,
        required={"pretraining_tp": (1,), "use_mrope": (False,)},
        weights=_WEIGHTS,
        prefix="model.",
        buffers=("model.layers.{}.self_attn.rotary_emb.inv_freq",),
        architecture=architecture,
    )


LLAMA = _spec(Family.LLAMA, _OPTIONS, "LlamaForCausalLM")
MISTRAL = _spec(Family.MISTRAL, _OPTIONS, "MistralForCausalLM")
QWEN2 = _spec(Family.QWEN2, _QWEN2_OPTIONS, "Qwen2ForCausalLM")
QWEN3 = _spec(Family.QWEN3, _QWEN3_OPTIONS, "Qwen3ForCausalLM")
