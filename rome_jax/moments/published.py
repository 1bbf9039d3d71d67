"""The original's statistics files: the .npz format, their names, and where they are published.

An .npz file holds one layer: the SUM of k kᵀ under `mom2.mom2`, the number of tokens under `mom2.count`, and the number
of articles under `sample_size`. It does not say which model it was collected on. Its name says the layer.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rome_jax.files import downloads
from rome_jax.files.artifacts import cache_directory
from rome_jax.files.checked import check, shown
from rome_jax.files.places import check_path
from rome_jax.models.config import ModelConfig
from rome_jax.models.huggingface import layer_name
from rome_jax.models.interventions import Leaf
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.second_moment import MomentProvenance, SecondMoment

PUBLISHED = "published"  # Given instead of a path, it downloads the original's files.
PUBLISHED_URL = "https://rome.baulab.info/data/stats"
# Folders on the server, by the lower-case names of models on the hub. The server does not have all layers, so a
# download can fail with HTTP 404.
_FOLDERS = {
    "gpt2-medium": "gpt2-medium",
    "openai-community/gpt2-medium": "gpt2-medium",
    "gpt2-xl": "gpt2-xl",
    "openai-community/gpt2-xl": "gpt2-xl",
    "eleutherai/gpt-j-6b": "EleutherAI_gpt-j-6B",
}
_SUM, _COUNT, _ARTICLES = "mom2.mom2", "mom2.count", "sample_size"
_SMALL, _MOST_PACKED = (
    1 << 26,
    50,
)  # bytes, and the factor by which sums of keys can be compressed at most
# What reading a damaged archive raises.
_DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    KeyError,
    RuntimeError,
    NotImplementedError,
    OverflowError,
    MemoryError,
    SyntaxError,
    RecursionError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def load_reference(path: str | Path, *, width: int | None = None) -> SecondMoment:
    """Reads a statistics file of the original and divides its sum by its number of tokens.

    Only the three arrays that are needed are read, after a look at their sizes.

    Args:
      path: An .npz file.
      width: Width that the second moment must have; None accepts any.

    Returns:
      The second moment, unverified: the file does not say which model it belongs to.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the file is damaged, lacks the original's keys, or has another width.

    Example:
      >>> path = "transformer.h.5.mlp.c_proj_float32_mom2_100.npz"
      >>> np.savez(path, **{"mom2.mom2": np.full((2, 2), 30.0), "mom2.count": 10, "sample_size": 100})
      >>> load_reference(path).mean.tolist()
      [[3.0, 3.0], [3.0, 3.0]]
    """
    path = Path(check_path(path))
    if not path.is_file():
        raise FileNotFoundError(
            f"there are no second moments at {path}: give the path of an .npz file."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            total, count, articles = _read_arrays(path, archive, width)
    except _Refused:
        raise
    except _DAMAGE as error:
        raise ValueError(
            f"{path} is damaged or not an .npz file ({error}): copy it again."
        ) from error
    if count < 1 or not np.isfinite(total).all():
        raise ValueError(f"{path} is damaged (it holds {count} tokens, or NaN): copy it again.")
    return SecondMoment(
        total.astype(np.float64) / count, count, MomentProvenance(articles=articles)
    )


class _Refused(ValueError):
    """An error with a message of its own."""


def _read_arrays(
    path: Path, archive: zipfile.ZipFile, width: int | None
) -> tuple[np.ndarray, int, int]:
    """Reads the sum, the number of tokens and the number of articles, but no other arrays, which may be pickles."""
    sizes = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    if len(sizes) < len(archive.infolist()):
        raise _Refused(f"{path} holds two arrays of the same name: copy it again.")
    if not {_SUM, _COUNT} <= sizes.keys():
        raise _Refused(
            f"{path} holds {shown(sorted(sizes))}, not the original's {_SUM!r} and {_COUNT!r}: give a "
            "statistics file of the original."
        )
    shape, dtype = _header(archive, _SUM)
    if len(shape) != 2 or shape[0] != shape[1] or dtype.kind not in "fiu":
        raise _Refused(
            f"{path}: {_SUM} is {dtype} of shape {shape}, not a square matrix of numbers: give a statistics file of "
            "the original."
        )
    if width is not None and shape[0] != width:
        raise _Refused(
            f"{path} has width {shape[0]} and the model has {width}: give a file that was collected on this model."
        )
    stored, unpacked = sizes[_SUM].compress_size, math.prod(shape) * dtype.itemsize
    if unpacked > max(_SMALL, _MOST_PACKED * stored):
        raise _Refused(
            f"{path} would unpack {stored:,} bytes to {unpacked:,}, which sums of keys cannot do: give a statistics "
            "file of the original."
        )
    numbers = []
    for name in (_COUNT, _ARTICLES):
        if name in sizes and _header(archive, name)[0] not in ((), (1,)):
            raise _Refused(
                f"{path}: {name} is not one number: give a statistics file of the original."
            )
        value = _array(archive, name).item() if name in sizes else 0
        numbers.append(check(int, value, f"{path}: {name}", error=_Refused))
    return _array(archive, _SUM), numbers[0], numbers[1]


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Reads the shape and dtype of an array without its values."""
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
    return shape, dtype


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Reads an array."""
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def file_name(config: ModelConfig, layer: int, articles: int = 100_000) -> str:
    """Returns the original's name for the file of a layer.

    Args:
      config: The model.
      layer: Index of the layer.
      articles: Number of articles that the statistics were collected on.

    Raises:
      ValueError: If the model does not have the layer.

    Example:
      >>> from rome_jax.models.families import PRESETS
      >>> file_name(PRESETS["gpt2-xl"], 17)
      'transformer.h.17.mlp.c_proj_float32_mom2_100000.npz'
    """
    config.check_layer(layer)
    return f"{layer_name(config, Leaf.MLP_DOWN, layer)}_float32_mom2_{articles}.npz"


def folder_of(model_name: str) -> str | None:
    """Returns the folder of the published statistics of a model; None if none are known.

    Example:
      >>> from rome_jax.moments import published
      >>> published.folder_of("EleutherAI/gpt-j-6b"), published.folder_of("distilgpt2")
      ('EleutherAI_gpt-j-6B', None)
    """
    return _FOLDERS.get(model_name.lower())


def download(model: LanguageModel, layer: int) -> Path:
    """Downloads the original's Wikipedia statistics of a layer, unless they are in the cache already.

    Not every model and layer has been published; for the others the server answers with an error.

    Args:
      model: A model of the Hugging Face hub; the published files are listed by its name there.
      layer: Index of the layer.

    Returns:
      The path of the .npz file in the cache.

    Raises:
      ValueError: If the model was loaded from a local directory, or does not have the layer.
      UnreachableError: If there is no network or no such file; the message says what to do.
      OSError: If the download breaks off.

    Example:
      >>> download(rome_jax.load_model("gpt2-xl"), 17).name  # doctest: +SKIP
      'transformer.h.17.mlp.c_proj_float32_mom2_100000.npz'
    """
    if model.source.startswith("directory"):
        raise ValueError(
            f"{model.name} is a local directory, but the published statistics are listed by a model's name on the "
            "hub: load the model by that name, or download the .npz file and give its path."
        )
    name = file_name(model.config, layer)
    folder = folder_of(model.name) or model.name.replace("/", "_")
    place = f"{folder}/wikipedia_stats/{name}"
    return downloads.download(f"{PUBLISHED_URL}/{place}", cache_directory() / "stats" / place)


def one_file(path: Path, layers: Sequence[int], config: ModelConfig) -> dict[int, Path]:
    """Returns an .npz file as that of the one requested layer.

    Raises:
      ValueError: If several layers are requested, or the file's name says another layer.
    """
    if len(layers) > 1:
        raise ValueError(
            f"{path} holds the second moment of one layer, but layers={tuple(layers)} are requested: give one layer, "
            "or a directory."
        )
    before, after = layer_name(config, Leaf.MLP_DOWN, 0).split("0", 1)
    named = re.match(rf"{re.escape(before)}(\d+){re.escape(after)}", path.name)
    if named and int(named[1]) != layers[0]:
        raise ValueError(
            f"{path} belongs to layer {named[1]} by its name, but layer {layers[0]} is requested: give the file of "
            "that layer."
        )
    return {layers[0]: path}


def find(directory: Path, layer: int, config: ModelConfig) -> Path:
    """Returns the only .npz file of a layer in a folder.

    Raises:
      FileNotFoundError: If the folder holds no file of that layer, or several.
    """
    pattern = f"{layer_name(config, Leaf.MLP_DOWN, layer)}_float32_mom2_*.npz"
    found = sorted(directory.glob(pattern))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{directory} holds {len(found)} files {pattern}, but exactly one is needed: give the path of the file."
        )
    return found[0]
