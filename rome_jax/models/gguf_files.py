"""Models in GGUF files, the format of llama.cpp: config, tokenizer, and tensors that are dequantized one at a time.

Only the Llama architecture with a byte-level tokenizer is read. Needs the extra `gguf`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rome_jax.files import extras
from rome_jax.files.checked import check
from rome_jax.files.safetensors_io import CheckpointError
from rome_jax.models.config import Family, ModelConfig, Rotary, UnsupportedConfigError
from rome_jax.models.families import family_config

if TYPE_CHECKING:
    import gguf

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
# Rotation frequencies, which follow from the metadata.
_IGNORED = ("rope_freqs.weight",)


@dataclasses.dataclass(frozen=True)
class QuantizedTensor:
    """A tensor of a GGUF file, with the interface of `StoredTensor`.

    Attributes:
      path: The file.
      name: Name of the tensor in checkpoints of transformers.
      shape: Its shape in checkpoints of transformers.
      source: The tensor in the file.
      num_heads: For queries and keys, the number of heads that the rows are sorted by; 0 for other tensors.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    source: gguf.ReaderTensor
    num_heads: int = 0

    @property
    def dtype(self) -> np.dtype:
        """float32, whatever the file stores."""
        return np.dtype(np.float32)

    def read(self) -> np.ndarray:
        """Dequantizes the tensor."""
        import gguf  # open_reader has checked that it is installed

        values = gguf.dequantize(self.source.data, self.source.tensor_type)
        values = np.asarray(values, np.float32).reshape(self.shape)
        if not self.num_heads:
            return values
        # llama.cpp rotates interleaved pairs and sorts the rows of each head for that: [K / 2, 2] -> [2, K / 2].
        rows = values.reshape(self.num_heads, -1, 2, *self.shape[1:])
        return rows.swapaxes(1, 2).reshape(self.shape)


def open_reader(path: Path) -> gguf.GGUFReader:
    """Opens a file and reads its metadata.

    Raises:
      CheckpointError: If the file is not a GGUF file, or is cut short.
      MissingPackageError: If the package gguf is not installed.
    """
    extras.check("gguf", "gguf", f"the GGUF file {path.name}")
    import gguf

    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a GGUF file, or is cut short ({error}): download or copy it again."
        ) from error


def read_config(reader: gguf.GGUFReader, path: Path) -> ModelConfig:
    """Builds the config of a model from its metadata.

    Args:
      reader: The open file.
      path: Its path, for error messages.

    Raises:
      UnsupportedConfigError: If the architecture is not Llama, or metadata are missing or of another type.
    """
    metadata = _Metadata(reader, path)
    architecture = metadata.read(str, "general.architecture")
    if architecture != "llama":
        raise UnsupportedConfigError(
            f"{path} holds a model of architecture {architecture!r}; of GGUF files only llama is supported."
        )
    if "llama.rope.scaling.type" in metadata and metadata.read(
        str, "llama.rope.scaling.type"
    ) not in ("none",):
        raise UnsupportedConfigError(
            f"{path} has scaled rotary positions, which are not supported."
        )
    names = {tensor.name for tensor in reader.tensors}
    width = metadata.read(int, "llama.embedding_length")
    heads = metadata.read(int, "llama.attention.head_count")
    vocabulary = next(
        (int(tensor.shape[1]) for tensor in reader.tensors if tensor.name == "token_embd.weight"), 0
    )
    return family_config(
        Family.LLAMA,
        metadata.read(int, "llama.block_count"),
        width,
        heads,
        metadata.read(int, "llama.feed_forward_length"),
        vocabulary,
        metadata.read(int, "llama.context_length"),
        num_kv_heads=metadata.read(int, "llama.attention.head_count_kv", heads),
        rotary=Rotary(
            metadata.read(int, "llama.rope.dimension_count", width // heads),
            base=metadata.read(float, "llama.rope.freq_base", 10_000.0),
        ),
        # The file has float32; the config.json that it was made from has the decimal number.
        norm_epsilon=float(
            np.format_float_positional(
                np.float32(metadata.read(float, "llama.attention.layer_norm_rms_epsilon"))
            )
        ),
        tie_embeddings="output.weight" not in names,
    )


def open_tensors(
    reader: gguf.GGUFReader, path: Path, config: ModelConfig
) -> dict[str, QuantizedTensor]:
    """Finds the tensors of a file by their names in transformers, without reading them.

    Args:
      reader: The open file.
      path: Its path.
      config: The model's config; see `read_config`.
    """
    known = {
        theirs.format(layer): name.format(layer)
        for theirs, name in _NAMES.items()
        for layer in range(config.num_layers)
    }
    heads = {"attn_q.weight": config.num_heads, "attn_k.weight": config.num_kv_heads}
    found = {}
    for tensor in reader.tensors:
        if tensor.name in _IGNORED:
            continue
        name = known.get(tensor.name, tensor.name)
        shape = tuple(map(int, tensor.shape[::-1]))
        sorted_by = heads.get(".".join(tensor.name.split(".")[2:]), 0)
        found[name] = QuantizedTensor(path, name, shape, tensor, sorted_by)
    return found


def build_tokenizer(reader: gguf.GGUFReader, path: Path) -> Any:
    """Rebuilds the fast tokenizer of transformers from the metadata.

    Args:
      reader: The open file.
      path: Its path, for error messages.

    Returns:
      A `PreTrainedTokenizerFast`.

    Raises:
      UnsupportedConfigError: If the tokenizer is not byte-level BPE with a known way of splitting texts.
    """
    from gguf import TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    metadata = _Metadata(reader, path)
    kind, split = (
        metadata.read(str, "tokenizer.ggml.model"),
        metadata.read(str, "tokenizer.ggml.pre"),
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    splitters = {
        "gpt-2": byte_level,
        "smollm": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), byte_level]
        ),
    }
    if kind != "gpt2" or split not in splitters:
        raise UnsupportedConfigError(
            f"{path} has a tokenizer {kind!r} that splits texts as {split!r}; supported: gpt2 with "
            f"{', '.join(splitters)}."
        )
    tokens = metadata.read(list[str], "tokenizer.ggml.tokens")
    merges = [
        tuple(merge.split(" ")) for merge in metadata.read(list[str], "tokenizer.ggml.merges")
    ]
    kinds = metadata.read(list[int], "tokenizer.ggml.token_type")
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = splitters[split], decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, token_kind in zip(tokens, kinds, strict=True)
            if token_kind == TokenType.CONTROL
        ]
    )
    special = {
        f"{ours}_token": tokens[metadata.read(int, f"tokenizer.ggml.{theirs}_token_id")]
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if f"tokenizer.ggml.{theirs}_token_id" in metadata
    }
    template = metadata.read(str | None, "tokenizer.chat_template", None)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        **special,
    )


class _Metadata(Mapping[str, Any]):
    """Key-value pairs of a file, which are checked when they are read."""

    def __init__(self, reader: gguf.GGUFReader, path: Path):
        self._fields, self._path = reader.fields, path

    def __getitem__(self, name: str) -> Any:
        return self._fields[name].contents()

    def __iter__(self):
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def read(self, kind: Any, name: str, *default: Any) -> Any:
        """Returns a value as a type, or the default if it is missing.

        Raises:
          UnsupportedConfigError: If it is missing without a default, or has another type.
        """
        if name not in self._fields:
            if default:
                return default[0]
            raise UnsupportedConfigError(f"{self._path} lacks {name}: download or copy it again.")
        return check(kind, self[name], f"{self._path}: {name}", error=UnsupportedConfigError)
