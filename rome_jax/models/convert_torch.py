"""pytorch_model.bin -> safetensors, once; and the tensors of other PyTorch files. The only module that imports torch.

A `.bin` file is a pickle, so it is read by torch's own loader, restricted to tensors and mapped from the disk. Training
checkpoints hold objects of other packages, too: those are read as nothing, and no code of theirs runs.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from rome_jax.files.artifacts import cache_directory
from rome_jax.files.safetensors_io import CheckpointError, write


def convert(directory: Path) -> Path:
    """Converts the pytorch_model.bin files of a directory, or finds what an earlier call converted.

    Args:
      directory: with pytorch_model.bin, or shards and pytorch_model.bin.index.json.

    Returns:
      A safetensors file with the same tensors under the same names, in `directory`/.rome_jax or, where that cannot be
      written, in the library's cache directory. A file of another size or date is converted anew.

    Raises:
      CheckpointError: torch is not installed; a file is absent, damaged, or holds more than tensors.
    """
    files = _binaries(directory)
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    name = f"converted-{hashlib.sha256(repr(stats).encode()).hexdigest()[:16]}.safetensors"
    places = [directory / ".rome_jax" / name, cache_directory() / "converted" / name]
    for target in places:
        if target.is_file():
            return target
    tensors = _load(files)
    target = next((place for place in places if _writable(place.parent)), None)
    if target is None:
        raise CheckpointError(
            f"neither {places[0].parent} nor {places[1].parent} can be written: set ROME_JAX_CACHE to a "
            "directory for the converted weights."
        )
    specs = {key: (_dtype(tensor), tuple(tensor.shape)) for key, tensor in tensors.items()}
    write(target, specs, (_numpy(tensor) for tensor in tensors.values()), {"format": "pt"})
    return target


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a training checkpoint, by their path in its dictionaries.

    Args:
      path: of a file that `torch.save` wrote. Objects in it that are neither tensors nor plain data are left out.

    Raises:
      CheckpointError: torch is not installed, no such file, or a damaged one.

    Example:
      >>> read_tensors("mend-10tok-gpt2-xl.pt")["model/edit_lrs"].shape  # doctest: +SKIP
      (6,)
    """
    torch = _import_torch(path)
    try:
        content = torch.load(
            path, map_location="cpu", weights_only=False, pickle_module=_TensorsOnly
        )
    except Exception as error:  # whatever a damaged file makes it raise
        raise CheckpointError(
            f"{path} is absent or damaged ({error}): download it again."
        ) from error
    return {name: _numpy(tensor) for name, tensor in _tensors(content, "")}


class _Ignored:
    """Stands for an object of a class that is not loaded; takes whatever a pickle does to it."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def __call__(self, *args, **kwargs):
        return self

    append = extend = add = update = __call__


class _Unpickler(pickle.Unpickler):
    """Looks up the few functions that tensors are made with; every other name gives `_Ignored`."""

    def find_class(self, module, name):
        known = {
            ("collections", "OrderedDict"),
            ("torch._utils", "_rebuild_tensor_v2"),
            ("torch._utils", "_rebuild_parameter"),
            ("torch", "Size"),
        }
        if (module, name) in known or (module == "torch" and name.endswith("Storage")):
            return super().find_class(module, name)
        return _Ignored


class _TensorsOnly:
    """A `pickle` for `torch.load` that builds tensors and plain containers alone."""

    __name__ = "tensors only"
    Unpickler, UnpicklingError = _Unpickler, pickle.UnpicklingError

    @staticmethod
    def load(file, **options):
        """As `pickle.load`: torch begins to read files of its old format with it."""
        return _Unpickler(file, **options).load()


def _tensors(content, path: str) -> Iterator[tuple[str, object]]:
    import torch

    if isinstance(content, torch.Tensor):
        yield path, content
    elif isinstance(content, dict):
        for name, value in content.items():
            yield from _tensors(value, f"{path}/{name}" if path else str(name))


def _import_torch(path: str | Path):
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            f'{path} is in PyTorch\'s format, which has to be converted once: pip install "rome_jax[convert]".'
        ) from None
    return torch


def _binaries(directory: Path) -> list[Path]:
    if (directory / "pytorch_model.bin").is_file():
        return [directory / "pytorch_model.bin"]
    from rome_jax.models.huggingface import shard_paths

    return shard_paths(directory / "pytorch_model.bin.index.json")


def _load(files: list[Path]) -> dict:
    """name -> torch tensor, mapped from the disk."""
    torch = _import_torch(files[0])
    tensors = {}
    for file in files:
        try:
            try:
                loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap can only be used" not in str(error):
                    raise
                # The format before PyTorch 1.6 cannot be mapped.
                loaded = torch.load(file, map_location="cpu", weights_only=True)
            if not all(isinstance(tensor, torch.Tensor) for tensor in loaded.values()):
                raise pickle.UnpicklingError
        except Exception as error:  # whatever a damaged file makes it raise
            raise CheckpointError(
                f"{file} is damaged or holds more than tensors, which is not safe to open: download it again, or "
                "save the model as safetensors."
            ) from error
        tensors |= loaded
    return tensors


def _dtype(tensor) -> np.dtype:
    """numpy's dtype of a torch tensor, by name: numpy itself has no bfloat16."""
    name = str(tensor.dtype).removeprefix("torch.")
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _numpy(tensor) -> np.ndarray:
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _writable(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK)
