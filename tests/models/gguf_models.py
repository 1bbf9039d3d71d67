"""Tiny Llama models in GGUF files, written by the package gguf as llama.cpp writes them."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from rome_jax.models.config import Family, ModelConfig, Rotary
from rome_jax.models.families import family_config
from rome_jax.models.forward import Params
from rome_jax.models.gguf_files import _NAMES
from rome_jax.models.huggingface import save_params
from tests.models.checkpoints import random_params, tensors_of

# Two special tokens, then the bytes, then two merges.
BYTES = "abcdefghijklmnopqrstuvwxyzR0123456789Ġ"
TOKENS = ["<s>", "</s>", *BYTES, "Ġr", "om"]
MERGES = ["Ġ r", "o m"]


def tiny_config(**changes) -> ModelConfig:
    """Builds a config of a Llama whose rows are wide enough for blocks of quantized numbers."""
    options = {"num_kv_heads": 2, "rotary": Rotary(8, base=1e5), "tie_embeddings": True}
    sizes = (2, 32, 4, 64, len(TOKENS), 48)
    return family_config(Family.LLAMA, *sizes, **(options | changes))


def write_gguf(path: Path, config: ModelConfig, folder: Path, *, kind: str = "F32") -> Params:
    """Writes a random model and returns its params.

    Args:
      path: The file.
      config: A config of `tiny_config`.
      folder: A folder for temporary files.
      kind: How matrices are stored, such as "Q8_0".
    """
    import gguf

    params = random_params(config)
    save_params(folder, params, config)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rotary.base)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(MERGES)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control] * 2 + [normal] * (len(TOKENS) - 2))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    tensors = tensors_of(folder)
    quantization = gguf.GGMLQuantizationType[kind]
    for theirs, name in _NAMES.items():
        for layer in range(config.num_layers if "{}" in name else 1):
            if name.format(layer) not in tensors:  # a tied head
                continue
            values = tensors[name.format(layer)]
            heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(
                theirs.split(".")[-2], 0
            )
            if heads:  # as convert_hf_to_gguf.py of llama.cpp
                shape = values.shape
                values = values.reshape(heads, 2, -1, shape[1]).swapaxes(1, 2).reshape(shape)
            stored = quantization if values.ndim == 2 else gguf.GGMLQuantizationType.F32
            data = gguf.quantize(np.ascontiguousarray(values), stored)
            writer.add_tensor(theirs.format(layer), data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return jax.tree.map(np.asarray, params)
