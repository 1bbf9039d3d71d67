"""The tensors of a stored model: finding them, and matching them with the weights of a model.

Matching is strict: it fails unless every tensor of the model is there in the right shape. Tensors that are known not to
belong to the language model, such as the head of a reward model, are ignored with a warning.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import typing_extensions

from rome_jax.files import checked
from rome_jax.files.json_files import read_object
from rome_jax.files.safetensors_io import (
    CheckpointError,
    CheckpointWarning,
    StoredTensor,
    read_header,
)
from rome_jax.models import gguf_files
from rome_jax.models.config import ModelConfig
from rome_jax.models.families import FAMILIES
from rome_jax.models.gguf_files import QuantizedTensor
from rome_jax.models.weights import Slot, slots_of

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# Heads that fine-tuning adds next to the language model.
_EXTRA_HEADS = re.compile(r"(v_head|multiple_choice_head|score|classifier|qa_outputs|summary)\..*")
# Prefixes that wrappers put before all names, and what removes them.
_WRAPPERS = {
    "_orig_mod.": "a model that torch.compile wrapped",
    "module.": "a model that DataParallel or DeepSpeed wrapped",
    "model.": "a model inside a training module",
}
_DTYPES = ("float32", "float16", "bfloat16")


class _Index(typing_extensions.TypedDict):
    """An index of shards, as far as it is read."""

    weight_map: dict[str, str]


Tensor = StoredTensor | QuantizedTensor


def open_checkpoint(place: Path, config: ModelConfig) -> Mapping[str, Tensor]:
    """Finds the tensors of a stored model by name, without reading them. Headers and sizes of all files are checked.

    Args:
      place: A Hugging Face directory or a GGUF file.
      config: The model's config.

    Raises:
      CheckpointError: If there are no weights, a shard is missing, a file is damaged, or a tensor is stored twice.
      MissingPackageError: If the weights are in PyTorch's format and torch is not installed.
    """
    if gguf_files.is_gguf(place):
        return gguf_files.open_tensors(gguf_files.open_model(place), config)
    return _open_directory(place)


def _open_directory(directory: Path) -> dict[str, StoredTensor]:
    """Finds the tensors of a directory; errors are as in `open_checkpoint`."""
    if (directory / _SINGLE).is_file():
        return read_header(directory / _SINGLE)
    index = directory / _INDEX
    if not index.is_file():
        binaries = [directory / f"pytorch_model.bin{end}" for end in ("", ".index.json")]
        if not any(path.is_file() for path in binaries):
            adapter = any(directory.glob("adapter_model.*"))
            raise CheckpointError(
                f"{directory} has no weights, only an adapter of PEFT (LoRA): merge it into its base model "
                "(peft's merge_and_unload and save_pretrained) and load the result."
                if adapter
                else f"{directory} has no weights: expected {_SINGLE}, {_INDEX} or pytorch_model.bin in it."
            )
        from rome_jax.models import convert_torch  # only needed here

        return read_header(convert_torch.convert(directory))
    tensors: dict[str, StoredTensor] = {}
    for shard in shard_paths(index):
        for name, tensor in read_header(shard).items():
            if name in tensors:
                raise CheckpointError(
                    f"{name} is in {tensors[name].path} and in {shard}: remove the shards of other models."
                )
            tensors[name] = tensor
    return tensors


def shard_paths(index: Path) -> list[Path]:
    """Lists the files named by an index.

    Raises:
      CheckpointError: If the index does not parse, or files are missing.
    """
    names = sorted(set(read_object(index, _Index, error=CheckpointError)["weight_map"].values()))
    if wrong := [name for name in names if Path(name).name != name]:
        raise CheckpointError(
            f"{index} names {listed(wrong)}, which is not a file in its directory: download or copy it again."
        )
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise CheckpointError(
            f"{index.parent} lacks {listed(missing)}, which its index names: download or copy the rest."
        )
    return [index.parent / name for name in names]


def match(
    tensors: Mapping[str, Tensor], config: ModelConfig, place: Path
) -> list[tuple[Slot, Tensor]]:
    """Pairs every slot of a model with its tensor.

    Args:
      tensors: The tensors by name.
      config: The model's config.
      place: The directory or file, for messages.

    Returns:
      The pairs, in the order of the slots.

    Raises:
      CheckpointError: If tensors are missing, unexpected, or of another shape or dtype; the message lists all problems.
    """
    slots, spec = slots_of(config), FAMILIES[config.family]
    _check_prefix(tensors, slots, place)
    extra = [name for name in tensors if _EXTRA_HEADS.fullmatch(name)]
    if extra:
        warnings.warn(
            f"{place}: {listed(extra)} ignored, which the language model does not use.",
            CheckpointWarning,
            stacklevel=2,
        )
    names = {weight.path: weight.name for weight in spec.weights}
    head, embedding = names["lm_head/kernel"], names["wte/embedding"]
    full = {name: _with_prefix(name, spec.prefix, head) for name in tensors if name not in extra}
    twice = [name for name, count in Counter(full.values()).items() if count > 1]
    buffers = {
        buffer.format(layer) for buffer in spec.buffers for layer in range(config.num_layers)
    }
    by_name = {full[name]: tensors[name] for name in full if full[name] not in buffers}
    if config.tie_embeddings and head in by_name:
        _tie(by_name, head, embedding)

    problems = []
    if missing := [name for name in slots if name not in by_name]:
        problems.append(f"missing {listed(missing)}")
    if unexpected := [t.name for name, t in by_name.items() if name not in slots] + twice:
        problems.append(f"unexpected {listed(unexpected)}")
    known = {name: tensor for name, tensor in by_name.items() if name in slots}
    if shapes := [
        f"{name} has shape {tensor.shape} instead of {slots[name].shape}"
        for name, tensor in known.items()
        if tensor.shape != slots[name].shape
    ]:
        problems.append(listed(shapes, 4))
    if dtypes := [name for name, tensor in known.items() if tensor.dtype.name not in _DTYPES]:
        kinds = sorted({known[name].dtype.name for name in dtypes})
        problems.append(
            f"{listed(dtypes, 4)} {'is' if len(dtypes) == 1 else 'are'} {' and '.join(kinds)}, not float32, float16 or "
            "bfloat16, so save the checkpoint as one of these (model.float().save_pretrained)"
        )
    if problems:
        raise CheckpointError(
            f"the weights in {place} do not fit its config: {'; '.join(problems)}."
        )
    return [(slot, by_name[name]) for name, slot in slots.items()]


def _check_prefix(tensors: Mapping[str, Tensor], slots: Mapping[str, Slot], place: Path) -> None:
    """Refuses names that a wrapper changed, and says how to change them back."""
    own = any(name in slots for name in tensors)
    for prefix, kind in _WRAPPERS.items():
        if tensors and not own and all(name.startswith(prefix) for name in tensors):
            raise CheckpointError(
                f"the names of all weights in {place} begin with {prefix!r}, as those of {kind} do: save them "
                f"again without it, {{name.removeprefix({prefix!r}): tensor for name, tensor in weights.items()}}."
            )


def _tie(by_name: dict[str, Tensor], head_name: str, embedding_name: str) -> None:
    """Removes a head that is tied to the embeddings, or makes it the embeddings if these are not stored."""
    head = by_name.pop(head_name)
    embedding = by_name.setdefault(embedding_name, head)
    if not _same(head, embedding):
        raise CheckpointError(
            f"{head.path} has a {head_name} that differs from the embeddings, though the config ties them: "
            'set "tie_word_embeddings": false in config.json.'
        )


def _with_prefix(name: str, prefix: str, head: str) -> str:
    """Adds the prefix that some files lack, such as GPT-2's on the hub, and that newer files have."""
    own = name.startswith((prefix, f"{head.rpartition('.')[0]}."))
    return name if own else f"{prefix}{name}"


def _same(first: Tensor, second: Tensor) -> bool:
    """Returns whether two tensors are equal, comparing some rows at a time."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    a, b = first.read(), second.read()
    return all(np.array_equal(a[i : i + 1024], b[i : i + 1024]) for i in range(0, len(a), 1024))


def listed(names: Iterable[str], limit: int = 8) -> str:
    """Lists names in alphabetical order, up to a limit: in a checkpoint of another family, all names are wrong."""
    return checked.listed(sorted(names), limit)
