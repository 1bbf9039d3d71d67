"""Statistics files of the original: their names, where they are published, and reading them.

An .npz file holds one layer: the SUM of k kᵀ under `mom2.mom2`, the count of tokens under `mom2.count`, the count of
articles under `sample_size`. It does not say on which model it was collected; its name says the layer.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rome_jax.files import artifacts
from rome_jax.models.config import Family, ModelConfig
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.second_moment import MomentProvenance, SecondMoment

PUBLISHED = "published"  # instead of a path: download the original's files
PUBLISHED_URL = "https://rome.baulab.info/data/stats"
_LAYER_NAMES = {
    Family.GPT2: "transformer.h.{}.mlp.c_proj",
    Family.GPTJ: "transformer.h.{}.mlp.fc_out",
}


def load_reference(path: str | Path) -> SecondMoment:
    """Reads a statistics file of the original (its .npz holds the SUM of k kᵀ, and the token count).

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that is damaged or lacks the original's keys.
    """
    path = Path(path)
    arrays = _read_npz(path)
    if "mom2.mom2" not in arrays or "mom2.count" not in arrays:
        raise ValueError(
            f"{path} holds {sorted(arrays)}, not the original's 'mom2.mom2' and 'mom2.count'."
        )
    count, total = int(arrays["mom2.count"]), arrays["mom2.mom2"]
    if count < 1 or not np.isfinite(total).all():
        raise ValueError(f"{path} is damaged ({count} tokens, or NaN in it): copy it again.")
    known = MomentProvenance(articles=int(arrays.get("sample_size", 0)))
    return SecondMoment(total.astype(np.float64) / count, count, known)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"no second moments at {path}: give the path of an .npz file.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            # The original's files hold a class name too, which is not needed and may be a pickle.
            return {name: arrays[name] for name in arrays if not name.endswith("constructor")}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or no .npz file: copy it again.") from error


def file_name(config: ModelConfig, layer: int, articles: int = 100_000) -> str:
    """The original's name of the file of a layer.

    Example:
      >>> file_name(load_model("gpt2-xl").config, 17)  # doctest: +SKIP
      'transformer.h.17.mlp.c_proj_float32_mom2_100000.npz'
    """
    config.check_layer(layer)
    return f"{_LAYER_NAMES[config.family].format(layer)}_float32_mom2_{articles}.npz"


def download(model: LanguageModel, layer: int) -> Path:
    """Downloads the original's Wikipedia statistics of a layer, unless they are in the cache already.

    Not every model and layer has been published: the answer to others is an error of the server.

    Args:
      model: from the hub, since the files go by its name there.
      layer: whose.

    Returns:
      The path of the .npz.

    Raises:
      ValueError: a model from a local directory, or a layer that it does not have.
      OSError: no network, no such file, or a broken download; the sentence says what to do.
    """
    if model.source.startswith("directory"):
        raise ValueError(
            f"{model.name} is a local directory, and the published statistics go by a model's name on the hub: load it "
            "by that name, or download the .npz and give its path."
        )
    name = file_name(model.config, layer)
    place = f"{model.name.replace('/', '_')}/wikipedia_stats/{name}"
    return artifacts.download(
        f"{PUBLISHED_URL}/{place}", artifacts.cache_directory() / "stats" / place
    )


def one_file(path: Path, layers: Sequence[int], config: ModelConfig) -> dict[int, Path]:
    """The one layer that an .npz serves; its name may say which."""
    if len(layers) > 1:
        raise ValueError(
            f"{path} holds the second moment of one layer, but layers={tuple(layers)} are wanted: give one layer, or "
            "a directory."
        )
    named = re.match(re.escape(_LAYER_NAMES[config.family]).replace(r"\{\}", r"(\d+)"), path.name)
    if named and int(named[1]) != layers[0]:
        raise ValueError(
            f"{path} is of layer {named[1]} by its name, but layer {layers[0]} is wanted: give that layer's file."
        )
    return {layers[0]: path}


def find(directory: Path, layer: int, config: ModelConfig) -> Path:
    pattern = f"{_LAYER_NAMES[config.family].format(layer)}_float32_mom2_*.npz"
    found = sorted(directory.glob(pattern))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{directory} holds {len(found)} files {pattern}, and one is needed: name the file."
        )
    return found[0]
