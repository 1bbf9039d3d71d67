"""Conversion of pytorch_model.bin to safetensors, and the tensors of other PyTorch files.

This is the only module that imports torch. A `.bin` file is a pickle, so torch's own loader reads it, restricted to
tensors and memory-mapped. Training checkpoints also hold objects of other packages. These are replaced by placeholders,
and none of their code runs.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rome_jax.files import extras
from rome_jax.files.artifacts import cache_directory
from rome_jax.files.safetensors_io import CheckpointError, open_file, write


def convert(directory: Path) -> Path:
    """Converts the pytorch_model.bin files of a directory, or finds the result of an earlier conversion.

    Args:
      directory: A directory with pytorch_model.bin, or with shards and pytorch_model.bin.index.json.

    Returns:
      A safetensors file with the same tensors under the same names. It is in `directory`/.rome_jax or, if that is not
      writable, in the library's cache directory. A file whose size or date has changed is converted again.

    Raises:
      CheckpointError: If a file is missing, damaged, or holds more than tensors.
      MissingPackageError: If torch is not installed.
    """
    files = _binaries(directory)
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    name = f"converted-{hashlib.sha256(repr(stats).encode()).hexdigest()[:16]}.safetensors"
    places = [directory / ".rome_jax" / name, cache_directory() / "converted" / name]
    for place in places:
        if place.is_file() and _intact(place):
            return place
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


def _intact(path: Path) -> bool:
    """Returns whether an earlier conversion has the checksums that it was written with; earlier versions wrote none."""
    try:
        open_file(path)
    except CheckpointError:
        return False
    return True


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a training checkpoint, memory-mapped.

    Args:
      path: A file written by `torch.save`. Objects in it that are neither tensors nor plain data are ignored.

    Returns:
      Tensors by their path in the checkpoint's dictionaries, joined by "/"; a tensor outside of them has the path "".

    Raises:
      CheckpointError: If the file is missing or damaged.
      MissingPackageError: If torch is not installed.

    Example:
      >>> read_tensors("mend-10tok-gpt2-xl.pt")["model/edit_lrs"].shape  # doctest: +SKIP
      (6,)
    """
    _import_torch(path)
    try:
        content = _mapped(path, weights_only=False, pickle_module=_TensorsOnly)
    except Exception as error:  # a damaged file can raise anything
        raise CheckpointError(
            f"{path} is absent or damaged ({error}): download it again."
        ) from error
    return {name: _numpy(tensor) for name, tensor in _tensors(content, "")}


class _Ignored:
    """A placeholder for an object whose class is not loaded; it accepts everything that a pickle does to it."""

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
    """An unpickler that finds only the functions that build tensors; every other name gives `_Ignored`."""

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
    """A replacement of the `pickle` module for `torch.load` that builds only tensors and plain containers."""

    __name__ = "tensors only"
    Unpickler, UnpicklingError = _Unpickler, pickle.UnpicklingError

    @staticmethod
    def load(file, **options):
        """Loads as `pickle.load` does; torch calls it for the beginning of files in its old format."""
        return _Unpickler(file, **options).load()


def _tensors(content: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields the tensors in nested dictionaries with their paths."""
    import torch

    if isinstance(content, torch.Tensor):
        yield path, content
    elif isinstance(content, dict):
        for name, value in content.items():
            yield from _tensors(value, f"{path}/{name}" if path else str(name))


def _import_torch(path: str | Path) -> Any:
    """Imports torch, or raises a MissingPackageError that names the file."""
    extras.check("torch", "convert", f"{path}, which is in PyTorch's format,")
    import torch

    return torch


def _binaries(directory: Path) -> list[Path]:
    """Lists the pytorch_model.bin files of a directory."""
    if (directory / "pytorch_model.bin").is_file():
        return [directory / "pytorch_model.bin"]
    from rome_jax.models.checkpoint import shard_paths

    return shard_paths(directory / "pytorch_model.bin.index.json")


def _load(files: list[Path]) -> dict[str, Any]:
    """Loads torch tensors by name, memory-mapped."""
    _import_torch(files[0])
    tensors: dict[str, Any] = {}
    for file in files:
        try:
            loaded = _mapped(file, weights_only=True)
            _check_flat(loaded, file)
        except CheckpointError:
            raise
        except Exception as error:  # a damaged file can raise anything
            raise CheckpointError(
                f"{file} is damaged or holds more than tensors, which is not safe to open: download it again, or "
                "save the model as safetensors."
            ) from error
        tensors |= loaded
    return tensors


def _mapped(path: str | Path, **options: Any) -> Any:
    """Loads a file with `torch.load`, memory-mapped if its format allows that."""
    import torch

    try:
        return torch.load(path, map_location="cpu", mmap=True, **options)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
        # The format before PyTorch 1.6 cannot be memory-mapped.
        return torch.load(path, map_location="cpu", **options)


def _check_flat(loaded: Any, file: Path) -> None:
    """Refuses a file that is not a dictionary of tensors, and says where in it they are."""
    import torch

    if isinstance(loaded, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in loaded.items()
    ):
        return
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            raise CheckpointError(
                f"{file} is a training checkpoint with the weights under {key!r}: save these alone, "
                f"torch.save(torch.load(path)[{key!r}], {file.name!r})."
            )
    raise pickle.UnpicklingError


def _dtype(tensor: Any) -> np.dtype:
    """Returns the numpy dtype of a torch tensor, looked up by name because numpy has no bfloat16 of its own."""
    name = str(tensor.dtype).removeprefix("torch.")
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _numpy(tensor: Any) -> np.ndarray:
    """Converts a torch tensor to numpy, bfloat16 included."""
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _writable(directory: Path) -> bool:
    """Returns whether files can be written to a directory, which is created if necessary."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK)
