"""The supported families, and the conversion of configs from and to Hugging Face's `config.json`.

`from_hf` is strict: every attribute of `config.json` is used, known not to change the forward pass, or refused by name.
A model that does not load does less harm than one that is computed wrongly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rome_jax.files.checked import shown
from rome_jax.models.config import Family, ModelConfig, Rotary, RotaryPairs, UnsupportedConfigError
from rome_jax.models.families import gpt, llama, neox
from rome_jax.models.families.base import Attributes, FamilySpec

FAMILIES: Mapping[Family, FamilySpec] = {
    spec.family: spec
    for spec in (
        gpt.GPT2,
        gpt.GPTJ,
        llama.LLAMA,
        llama.MISTRAL,
        llama.QWEN2,
        llama.QWEN3,
        neox.NEOX,
    )
}

# Attributes that do not affect the forward pass at inference: training, bookkeeping, defaults of generation.
_IGNORED = frozenset(
    """
    _attn_implementation_autoset _flash_attn_2_enabled _name_or_path _num_labels architectures attention_dropout
    attention_probs_dropout_prob attn_implementation attn_pdrop bos_token_id chunk_size_feed_forward
    classifier_dropout dtype embd_pdrop eos_token_id finetuning_task
    generation_config gradient_checkpointing hidden_dropout hidden_dropout_prob id2label initializer_range
    is_llama_config label2id max_length model_type n_ctx n_special name_or_path output_attentions
    output_hidden_states output_past pad_token_id predict_special_tokens prefix problem_type resid_pdrop
    return_dict rope_interleaved sep_token_id summary_activation summary_first_dropout summary_proj_to_labels
    summary_type summary_use_proj task_specific_params tokenizer_class torch_dtype transformers.js_config
    transformers_version unk_token_id use_cache begin_suppress_tokens bad_words_ids decoder_start_token_id
    diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty
    forced_bos_token_id forced_eos_token_id is_composition length_penalty min_length no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values repetition_penalty
    return_dict_in_generate suppress_tokens temperature tf_legacy_loss tie_encoder_decoder top_k top_p
    torchscript typical_p use_bfloat16
    """.split()
)

# Attributes of all families that change the computation, with the values that are implemented here.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "is_decoder": (True, False),
    "is_encoder_decoder": (False,),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": ({}, None, []),
    "quantization_config": (None,),
}


def from_hf(config: Mapping[str, Any], name: str = "config.json") -> ModelConfig:
    """Reads the content of a Hugging Face `config.json`.

    Args:
      config: The parsed file.
      name: Name of the file in messages, such as its path.

    Returns:
      The `ModelConfig` of the same model.

    Raises:
      UnsupportedConfigError: If `model_type` is unknown, a size is missing, or an attribute is unknown or has a value
        that changes the forward pass in a way that is not implemented here.

    Example:
      >>> from_hf({"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 9,
      ...          "n_positions": 16}).mlp_width
      32
    """
    model_type = config.get("model_type")
    known = [family.value for family in Family]
    if model_type not in known:
        raise UnsupportedConfigError(
            f"{name} has model_type {shown(model_type)}; supported: {', '.join(known)}."
        )
    spec = FAMILIES[Family(model_type)]
    for attribute, value in config.items():
        required = (_REQUIRED | dict(spec.required)).get(attribute)
        if required is not None:
            if not any(value == usual and type(value) is type(usual) for usual in required):
                raise UnsupportedConfigError(
                    f"{name} sets {attribute}={shown(value)}, which changes the model's output and is not "
                    f"supported; only {required[0]!r} is."
                )
        elif attribute not in spec.handled and attribute not in _IGNORED:
            raise UnsupportedConfigError(
                f"{name} sets {attribute}={shown(value)}, which this library does not know; if it does not "
                "change the model's output, remove it from the file."
            )
    try:
        return spec.read(Attributes(config, name))
    except UnsupportedConfigError as error:
        message = str(error)
        raise UnsupportedConfigError(
            message if message.startswith(name) else f"{name}: {message}"
        ) from None


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """Builds the `config.json` with which `transformers` computes the same model; `from_hf` reads it back.

    Raises:
      UnsupportedConfigError: If the config has options that its family cannot express.

    Example:
      >>> from_hf(to_hf(model.config)) == model.config
      True
    """
    spec = FAMILIES[config.family]
    written = {"architectures": [spec.architecture], "model_type": config.family.value}
    written |= spec.write(config)
    if from_hf(written) != dataclasses.replace(config, precision=ModelConfig.precision):
        raise UnsupportedConfigError(
            f"{config} has options that {config.family.value} models do not have: choose those of the family."
        )
    return written


def family_config(family: Family, *sizes: int, **options: Any) -> ModelConfig:
    """Builds the config of a model of a family.

    Args:
      family: The family.
      *sizes: num_layers, width, num_heads, mlp_width, vocab_size, context_length.
      **options: Fields of `ModelConfig` that differ from those of the family.

    Example:
      >>> family_config(Family.GPT2, 2, 8, 2, 32, 9, 16).fused_qkv
      True
    """
    defaults = dict(FAMILIES[family].options)
    return ModelConfig(family, *sizes, **(defaults | options))


def _gpt2(num_layers: int, width: int, num_heads: int) -> ModelConfig:
    """Builds the config of a GPT-2 of any size."""
    return family_config(Family.GPT2, num_layers, width, num_heads, 4 * width, 50257, 1024)


# Configs of published models by the names that load them, for work with random weights and for tests.
PRESETS: Mapping[str, ModelConfig] = {
    "distilgpt2": _gpt2(6, 768, 12),
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
    "EleutherAI/gpt-j-6B": family_config(
        Family.GPTJ,
        28,
        4096,
        16,
        16384,
        50400,
        2048,
        rotary=Rotary(64, RotaryPairs.INTERLEAVED),
    ),
    "smollm2-135m": family_config(
        Family.LLAMA,
        30,
        576,
        9,
        1536,
        49152,
        8192,
        num_kv_heads=3,
        rotary=Rotary(64, base=100_000.0),
        tie_embeddings=True,
    ),
}
