"""The tensors of a Hugging Face directory: finding them, and matching them with the weights of a model.

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
from rome_jax.models.config import ModelConfig
from rome_jax.models.weights import Slot, slots_of

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_HEAD, _EMBEDDING = "lm_head.weight", "transformer.wte.weight"
# Buffers that old versions of transformers saved with the weights: causal masks and rotary angles.
_BUFFERS = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias|embed_positions)")
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


def open_checkpoint(directory: Path) -> dict[str, StoredTensor]:
    """Finds the tensors of a directory by name, without reading them. Headers and sizes of all files are checked.

    Raises:
      CheckpointError: If there are no weights, a shard is missing, a file is damaged, or a tensor is stored twice.
      MissingPackageError: If the weights are in PyTorch's format and torch is not installed.
    """
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
    tensors: Mapping[str, StoredTensor], config: ModelConfig, directory: Path
) -> list[tuple[Slot, StoredTensor]]:
    """Pairs every slot of a model with its tensor.

    Args:
      tensors: The tensors of the directory by name.
      config: The model's config.
      directory: The directory, for messages.

    Returns:
      The pairs, in the order of the slots.

    Raises:
      CheckpointError: If tensors are missing, unexpected, or of another shape or dtype; the message lists all problems.
    """
    _check_prefix(tensors, directory)
    extra = [name for name in tensors if _EXTRA_HEADS.fullmatch(name)]
    if extra:
        warnings.warn(
            f"{directory}: {listed(extra)} ignored, which the language model does not use.",
            CheckpointWarning,
            stacklevel=2,
        )
    full = {name: _with_prefix(name) for name in tensors if name not in extra}
    twice = [name for name, count in Counter(full.values()).items() if count > 1]
    by_name = {full[name]: tensors[name] for name in full if not _BUFFERS.fullmatch(full[name])}
    if config.tie_embeddings and _HEAD in by_name:
        _tie(by_name)

    slots = slots_of(config)
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
            f"the weights in {directory} do not fit its config.json: {'; '.join(problems)}."
        )
    return [(slot, by_name[name]) for name, slot in slots.items()]


def _check_prefix(tensors: Mapping[str, StoredTensor], directory: Path) -> None:
    """Refuses names that a wrapper changed, and says how to change them back."""
    for prefix, kind in _WRAPPERS.items():
        if tensors and all(name.startswith(prefix) for name in tensors):
            raise CheckpointError(
                f"the names of all weights in {directory} begin with {prefix!r}, as those of {kind} do: save them "
                f"again without it, {{name.removeprefix({prefix!r}): tensor for name, tensor in weights.items()}}."
            )


def _tie(by_name: dict[str, StoredTensor]) -> None:
    """Removes a head that is tied to the embeddings, or makes it the embeddings if these are not stored."""
    head = by_name.pop(_HEAD)
    embedding = by_name.setdefault(_EMBEDDING, head)
    if not _same(head, embedding):
        raise CheckpointError(
            f"{head.path} has an lm_head.weight that differs from the embeddings, though the config ties them: "
            'set "tie_word_embeddings": false in config.json.'
        )


def _with_prefix(name: str) -> str:
    """Adds the prefix that GPT-2's files on the hub lack and newer files have."""
    return name if re.match(r"transformer\.|lm_head\.", name) else f"transformer.{name}"


def _same(first: StoredTensor, second: StoredTensor) -> bool:
    """Returns whether two tensors are equal, comparing some rows at a time."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    a, b = first.read(), second.read()
    return all(np.array_equal(a[i : i + 1024], b[i : i + 1024]) for i in range(0, len(a), 1024))


def listed(names: Iterable[str], limit: int = 8) -> str:
    """Lists names in alphabetical order, up to a limit: in a checkpoint of another family, all names are wrong."""
    return checked.listed(sorted(names), limit)
