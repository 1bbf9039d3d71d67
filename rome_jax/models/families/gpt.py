"""GPT-2 (Radford et al., 2019) and GPT-J (Wang and Komatsuzaki, 2021)."""

from __future__ import annotations

from typing import Any

from rome_jax.files.checked import shown
from rome_jax.models.config import Family, ModelConfig, Rotary, RotaryPairs, UnsupportedConfigError
from rome_jax.models.families.base import Attributes, FamilySpec, Weight, linear, norms

_HANDLED = frozenset(
    """
    vocab_size n_positions n_embd n_layer n_head n_inner activation_function layer_norm_epsilon tie_word_embeddings
    rotary_dim reorder_and_upcast_attn scale_attn_weights scale_attn_by_inverse_layer_idx
    """.split()
)
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "rotary": (True,),
    "rope_scaling": (None,),
    "rope_parameters": (None,),
}
# Causal masks and rotary angles that old versions of transformers saved with the weights.
_BUFFERS = (
    "transformer.h.{}.attn.bias",
    "transformer.h.{}.attn.masked_bias",
    "transformer.h.{}.attn.embed_positions",
)

# Options of GPT-2's attention, with the names and usual values of their attributes.
_GPT2_ATTENTION = {
    "scale_scores": ("scale_attn_weights", True),
    "scale_by_layer": ("scale_attn_by_inverse_layer_idx", False),
    "upcast_attention": ("reorder_and_upcast_attn", False),
}
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
        found.layers("n_layer"),
        width,
        found.size("n_head"),
        found.size("n_inner", 4 * width),
        found.size("vocab_size"),
        found.size("n_positions"),
        activation=found.activation("activation_function", "gelu_new"),
        norm_epsilon=found.positive("layer_norm_epsilon", 1e-5),
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
    if found.get("rotary_dim") not in (None, 0):
        raise UnsupportedConfigError(
            f"{found.source} sets rotary_dim={shown(found['rotary_dim'])}, but GPT-2 has learned positions: remove it "
            "from the file."
        )
    attention = {
        option: found.read(bool, name, default)
        for option, (name, default) in _GPT2_ATTENTION.items()
    }
    return _read(found, Family.GPT2, {**GPT2_OPTIONS, **attention})


def _write_gpt2(config: ModelConfig) -> dict[str, Any]:
    values = {option: getattr(config, option) for option in _GPT2_ATTENTION}
    return _write(config) | {
        name: values[option]
        for option, (name, default) in _GPT2_ATTENTION.items()
        if values[option] != default
    }


def _read_gptj(found: Attributes) -> ModelConfig:
    for name, default in _GPT2_ATTENTION.values():
        if name != "reorder_and_upcast_attn" and found.read(bool, name, default) != default:
            raise UnsupportedConfigError(
                f"{found.source} sets {name}={shown(found[name])}, which changes the model's output and is not "
                f"supported in GPT-J; only {default} is."
            )
    rotary = Rotary(found.size("rotary_dim", 64), RotaryPairs.INTERLEAVED)
    return _read(found, Family.GPTJ, {**GPTJ_OPTIONS, "rotary": rotary})


def _write_gptj(config: ModelConfig) -> dict[str, Any]:
    return _write(config) | {"rotary_dim": config.rotary.dim if config.rotary else 0}


GPT2 = FamilySpec(
    Family.GPT2,
    options=GPT2_OPTIONS,
    read=_read_gpt2,
    write=_write_gpt2,
    handled=_HANDLED,
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
    exact_tokenizer=False,
)
GPTJ = FamilySpec(
    Family.GPTJ,
    options=GPTJ_OPTIONS,
    read=_read_gptj,
    write=_write_gptj,
    handled=_HANDLED,
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
    exact_tokenizer=False,
)
