"""Models in GGUF files, the format of llama.cpp: config, tokenizer, and tensors that are dequantized one at a time.

Only the Llama architecture with a byte-level tokenizer is read. Needs the extra `gguf`.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from rome_jax.files import extras
from rome_jax.files.checked import shown
from rome_jax.files.gguf_header import Header, TensorEntry, read_header
from rome_jax.files.safetensors_io import CheckpointError
from rome_jax.models.config import Family, ModelConfig, Rotary, UnsupportedConfigError
from rome_jax.models.families import family_config
from rome_jax.models.families.base import Attributes

SUFFIX = ".gguf"
# The types of special tokens, and of other tokens that are found before the text is split.
_CONTROL, _USER_DEFINED = 3, 4
# Metadata of the architecture that are read, or do not change the model's output. Other keys are refused.
_KNOWN = frozenset(
    f"llama.{name}"
    for name in """
    block_count context_length embedding_length feed_forward_length vocab_size attention.head_count
    attention.head_count_kv attention.key_length attention.value_length attention.layer_norm_rms_epsilon
    rope.dimension_count rope.freq_base rope.scaling.type
    """.split()
)
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
# Names of tensors in GGUF files and in checkpoints of transformers; `{}` is the layer.
_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "blk.{}.attn_norm.weight": "model.layers.{}.input_layernorm.weight",
    "blk.{}.ffn_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blk.{}.attn_q.weight": "model.layers.{}.self_attn.q_proj.weight",
    "blk.{}.attn_k.weight": "model.layers.{}.self_attn.k_proj.weight",
    "blk.{}.attn_v.weight": "model.layers.{}.self_attn.v_proj.weight",
    "blk.{}.attn_output.weight": "model.layers.{}.self_attn.o_proj.weight",
    "blk.{}.ffn_gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "blk.{}.ffn_up.weight": "model.layers.{}.mlp.up_proj.weight",
    "blk.{}.ffn_down.weight": "model.layers.{}.mlp.down_proj.weight",
}


@dataclasses.dataclass(frozen=True)
class QuantizedTensor:
    """A tensor of a GGUF file, with the interface of `StoredTensor`.

    Attributes:
      path: The file.
      name: Name of the tensor in checkpoints of transformers.
      entry: What the header says about it.
      num_heads: For queries and keys, the number of heads that the rows are sorted by; 0 for other tensors.
    """

    path: Path
    name: str
    entry: TensorEntry
    num_heads: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, which is the same in checkpoints of transformers."""
        return self.entry.shape

    @property
    def dtype(self) -> np.dtype:
        """float32, whatever the file stores."""
        return np.dtype(np.float32)

    def read(self) -> np.ndarray:
        """Dequantizes the tensor."""
        import gguf  # `open_model` has checked that it is installed

        kind = gguf.GGMLQuantizationType(self.entry.kind)
        shape = gguf.quant_shape_to_byte_shape(self.shape, kind)
        stored = np.memmap(self.path, np.uint8, "r", self.entry.offset, shape)
        try:
            values = gguf.dequantize(np.asarray(stored), kind)
        except NotImplementedError:
            raise CheckpointError(
                f"{self.path} stores {self.entry.name} as {kind.name}, which the package gguf cannot dequantize: give "
                "a file with another quantization."
            ) from None
        values = np.asarray(values, np.float32).reshape(self.shape)
        if not self.num_heads:
            return values
        # llama.cpp rotates interleaved pairs and sorts the rows of each head for that: [K / 2, 2] -> [2, K / 2].
        rows = values.reshape(self.num_heads, -1, 2, *self.shape[1:])
        return rows.swapaxes(1, 2).reshape(self.shape)


def is_gguf(path: Path) -> bool:
    """Returns whether a path is a file whose name ends as those of GGUF files."""
    return path.suffix.lower() == SUFFIX and path.is_file()


def check_installed(name: str) -> None:
    """Checks that GGUF files can be read.

    Args:
      name: The file or model, for the message.

    Raises:
      MissingPackageError: If the package gguf is not installed.
    """
    extras.check("gguf", "gguf", f"the model {name}")


def open_model(path: Path) -> Header:
    """Reads the header of a file.

    Raises:
      CheckpointError: If the file is not a GGUF file, or its header is damaged.
      MissingPackageError: If the package gguf is not installed.
    """
    check_installed(path.name)
    return read_header(path)


def read_config(header: Header) -> ModelConfig:
    """Builds the config of a model from the header of its file.

    Raises:
      UnsupportedConfigError: If the architecture is not Llama, or metadata are missing, of another type, or describe
        something that is not supported.
    """
    found = Attributes(header.metadata, str(header.path))
    architecture = found.read(str, "general.architecture", None)
    if architecture != "llama":
        raise UnsupportedConfigError(
            f"{header.path} holds a model of architecture {shown(architecture)}; of GGUF files only llama is "
            "supported."
        )
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    # The tensor has the scaling of Llama 3.1, which the metadata do not describe.
    scaling = found.read(str, "llama.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in shapes:
        raise UnsupportedConfigError(
            f"{header.path} has scaled rotary positions, which are not supported in GGUF files: give the model in the "
            "Hugging Face format."
        )
    for key in found:
        if key.startswith("llama.") and key not in _KNOWN:
            raise UnsupportedConfigError(
                f"{header.path} sets {shown(key)} to {shown(found[key])}, which is not supported in GGUF files: give "
                "the model in the Hugging Face format."
            )
    width, heads = found.size("llama.embedding_length"), found.size("llama.attention.head_count")
    head_dim = found.size("llama.attention.key_length", width // heads)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if found.size(key, head_dim) != head_dim:
            raise UnsupportedConfigError(
                f"{header.path} sets {key}={found[key]}, which differs from the head width {head_dim}; only models in "
                "which they are equal are supported."
            )
    # The file has float32; the config.json that it was made from has the decimal number.
    epsilon = np.float32(found.positive("llama.attention.layer_norm_rms_epsilon"))
    return family_config(
        Family.LLAMA,
        found.layers("llama.block_count"),
        width,
        heads,
        found.size("llama.feed_forward_length"),
        shapes.get("token_embd.weight", (0,))[0],
        found.size("llama.context_length"),
        head_dim=head_dim,
        num_kv_heads=found.size("llama.attention.head_count_kv", heads),
        rotary=Rotary(head_dim, base=found.positive("llama.rope.freq_base", 10_000.0)),
        norm_epsilon=float(np.format_float_positional(epsilon)),
        tie_embeddings="output.weight" not in shapes,
    )


def open_tensors(header: Header, config: ModelConfig) -> dict[str, QuantizedTensor]:
    """Finds the tensors of a file by their names in transformers, without reading them.

    Args:
      header: The header of the file.
      config: The model's config; see `read_config`.

    Raises:
      CheckpointError: If a tensor is stored in a way that cannot be dequantized, or the file is cut short.
    """
    known = {
        theirs.format(layer): name.format(layer)
        for theirs, name in _NAMES.items()
        for layer in range(config.num_layers)
    }
    heads = {"attn_q.weight": config.num_heads, "attn_k.weight": config.num_kv_heads}
    found = {}
    for entry in header.tensors:
        end = entry.offset + _num_bytes(entry, header.path)
        if end > header.size:
            raise CheckpointError(
                f"{header.path} is cut short: {entry.name} ends at byte {end} of {header.size}, so download or copy "
                "the file again."
            )
        name = known.get(entry.name, entry.name)
        sorted_by = heads.get(".".join(entry.name.split(".")[2:]), 0)
        found[name] = QuantizedTensor(header.path, name, entry, sorted_by)
    return found


def _num_bytes(entry: TensorEntry, path: Path) -> int:
    """Returns how many bytes a tensor takes in its file.

    Raises:
      CheckpointError: If it is stored in a way that cannot be dequantized.
    """
    import gguf

    try:
        kind = gguf.GGMLQuantizationType(entry.kind)
        return math.prod(gguf.quant_shape_to_byte_shape(entry.shape, kind))
    except ValueError as error:
        raise CheckpointError(
            f"{path} stores {entry.name} in a way that cannot be read ({error}): give a file with another quantization."
        ) from error


def build_tokenizer(header: Header) -> Any:
    """Rebuilds the fast tokenizer of transformers from the header of a file.

    Returns:
      A `PreTrainedTokenizerFast`.

    Raises:
      UnsupportedConfigError: If the tokenizer is not byte-level BPE with a known way of splitting texts, changes texts
        in a way that is not supported, or is damaged.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    found = Attributes(header.metadata, str(header.path))
    kind = found.read(str, "tokenizer.ggml.model", None)
    split = found.read(str, "tokenizer.ggml.pre", None)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    splitters = {
        "gpt-2": byte_level,
        "smollm": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), byte_level]
        ),
    }
    if kind != "gpt2" or split not in splitters:
        raise UnsupportedConfigError(
            f"{header.path} has a tokenizer {shown(kind)} that splits texts as {shown(split)}; supported: gpt2 with "
            f"{', '.join(splitters)}."
        )
    for name in ("add_eos_token", "add_space_prefix"):
        if found.read(bool, f"tokenizer.ggml.{name}", False):
            raise UnsupportedConfigError(
                f"{header.path} sets tokenizer.ggml.{name}=True, which is not supported; only False is."
            )
    tokens = found.read(list[str], "tokenizer.ggml.tokens", [])
    kinds = found.read(list[int], "tokenizer.ggml.token_type", [])
    merges = [
        tuple(merge.split(" ")) for merge in found.read(list[str], "tokenizer.ggml.merges", [])
    ]
    try:
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        added = [
            AddedToken(token, special=token_kind == _CONTROL, normalized=False)
            for token, token_kind in zip(tokens, kinds, strict=True)
            if token_kind in (_CONTROL, _USER_DEFINED)
        ]
        special = {
            f"{ours}_token": tokens[found.read(int, f"tokenizer.ggml.{theirs}_token_id", 0)]
            for ours, theirs in _SPECIAL.items()
            if f"tokenizer.ggml.{theirs}_token_id" in found
        }
    except Exception as error:  # tokenizers raises nothing more specific
        raise UnsupportedConfigError(
            f"{header.path} has a damaged tokenizer ({error}): download or copy it again."
        ) from error
    tokenizer.pre_tokenizer, tokenizer.decoder = splitters[split], decoders.ByteLevel()
    tokenizer.add_tokens(added)
    if found.read(bool, "tokenizer.ggml.add_bos_token", False):
        if "bos_token" not in special:
            raise UnsupportedConfigError(
                f"{header.path} sets tokenizer.ggml.add_bos_token=True without tokenizer.ggml.bos_token_id: give a "
                "complete file."
            )
        begin = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[begin, "$A"],
            pair=[begin, "$A", begin, "$B:1"],
            special_tokens=[(begin, tokens.index(begin))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=found.read(str, "tokenizer.chat_template", None),
        clean_up_tokenization_spaces=False,
        **special,
    )
