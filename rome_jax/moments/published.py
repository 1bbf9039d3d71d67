"""The original's statistics files: the .npz format, their names, and where they are published.

An .npz file holds one layer: the SUM of k kᵀ under `mom2.mom2`, the number of tokens under `mom2.count`, and the number
of articles under `sample_size`. It does not say which model it was collected on. Its name says the layer.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rome_jax.files import artifacts
from rome_jax.models.config import ModelConfig
from rome_jax.models.huggingface import layer_name
from rome_jax.models.interventions import Leaf
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.second_moment import MomentProvenance, SecondMoment

PUBLISHED = "published"  # Given instead of a path, it downloads the original's files.
PUBLISHED_URL = "https://rome.baulab.info/data/stats"


def load_reference(path: str | Path) -> SecondMoment:
    """Reads a statistics file of the original and divides its sum by its number of tokens.

    Args:
      path: An .npz file.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the file is damaged or lacks the original's keys.

    Example:
      >>> path = "transformer.h.5.mlp.c_proj_float32_mom2_100.npz"
      >>> np.savez(path, **{"mom2.mom2": np.full((2, 2), 30.0), "mom2.count": 10, "sample_size": 100})
      >>> load_reference(path).mean.tolist()
      [[3.0, 3.0], [3.0, 3.0]]
    """
    path = Path(path)
    arrays = _read_npz(path)
    if "mom2.mom2" not in arrays or "mom2.count" not in arrays:
        raise ValueError(
            f"{path} holds {sorted(arrays)}, not the original's 'mom2.mom2' and 'mom2.count': give a statistics file "
            "of the original."
        )
    count, total = int(arrays["mom2.count"]), arrays["mom2.mom2"]
    if count < 1 or not np.isfinite(total).all():
        raise ValueError(f"{path} is damaged (it holds {count} tokens, or NaN): copy it again.")
    provenance = MomentProvenance(articles=int(arrays.get("sample_size", 0)))
    return SecondMoment(total.astype(np.float64) / count, count, provenance)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of an .npz file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"there are no second moments at {path}: give the path of an .npz file."
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            # The original's files also hold a class name, which is not needed and may be a pickle.
            return {name: arrays[name] for name in arrays if not name.endswith("constructor")}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or not an .npz file: copy it again.") from error


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
      OSError: If there is no network or no such file, or the download breaks off; the message says what to do.

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
    place = f"{model.name.replace('/', '_')}/wikipedia_stats/{name}"
    return artifacts.download(
        f"{PUBLISHED_URL}/{place}", artifacts.cache_directory() / "stats" / place
    )


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
