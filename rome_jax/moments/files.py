"""Second moments of MLP keys: made from batches, kept in files, found for a model.

A file of ours is `layer_<n>.safetensors`: the upper triangle of C in float32, row by row, and as JSON under the
metadata key `rome_jax` the fields of `MomentProvenance` and the count of tokens. The original's .npz files are read as
they are. `rome_jax.moments.collect` collects over a corpus.

Axes: F MLP width.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from rome_jax.data.tokens import TokenBatch
from rome_jax.files import safetensors_io
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.fingerprint import fingerprint
from rome_jax.models.registry import SHIPPED, LanguageModel
from rome_jax.moments import published as reference_stats
from rome_jax.moments.key_sums import KeySums
from rome_jax.moments.published import PUBLISHED, load_reference
from rome_jax.moments.second_moment import MomentProvenance, SecondMoment
from rome_jax.version import __version__

_FILE = re.compile(r"layer_(\d+)\.safetensors")


def accumulate(
    params: forward.Params,
    config: ModelConfig,
    batches: Iterable[TokenBatch],
    *,
    layers: Iterable[int] | None = None,
) -> dict[int, SecondMoment]:
    """Second moments over every real token of some batches, in one pass.

    Args:
      params, config: the model.
      batches: padded or packed, of a few thousand tokens each and of one shape, so that they share a program.
      layers: all by default.

    Returns:
      By layer. The corpus is not in the provenance: add it, or collect with `rome_jax.moments.collect`.

    Raises:
      ValueError: no batches, no layers, or a layer that the model does not have.
    """
    sums = KeySums(params, config, range(config.num_layers) if layers is None else layers)
    for batch in batches:
        sums.add(batch)
    if not sums.tokens:
        raise ValueError("no tokens: give at least one batch.")
    dtype = str(params["wte"]["embedding"].dtype)
    known = MomentProvenance(
        fingerprint=fingerprint(params, config), dtype=dtype, version=__version__
    )
    return {
        layer: mean_of(sums.totals[layer], sums.tokens, dataclasses.replace(known, layer=layer))
        for layer in sums.totals
    }


def mean_of(total: np.ndarray, tokens: int, provenance: MomentProvenance) -> SecondMoment:
    """The second moment of `KeySums.totals` of a layer, [F, F], whose upper triangle alone counts."""
    triangle = pack_triangle(total, np.float64)
    return SecondMoment(unpack_triangle(triangle / tokens), tokens, provenance)


# Files of ours.


def file_of(directory: str | Path, layer: int) -> Path:
    """Where a layer's second moment is kept in a directory."""
    return Path(directory) / f"layer_{layer}.safetensors"


def files_in(directory: str | Path) -> dict[int, Path]:
    """The files of second moments in a directory, by layer."""
    found = {
        int(match[1]): path
        for path in Path(directory).iterdir()
        if (match := _FILE.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def save(directory: str | Path, moments: Mapping[int, SecondMoment]) -> None:
    """Writes one file a layer, each whole or not at all.

    Args:
      directory: made if absent; files of other layers in it stay.
      moments: by layer.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for layer, moment in moments.items():
        triangle = pack_triangle(moment.mean, np.float32)
        known = dataclasses.asdict(dataclasses.replace(moment.provenance, layer=layer))
        safetensors_io.write(
            file_of(directory, layer),
            {"triangle": (triangle.dtype, triangle.shape)},
            [triangle],
            {"rome_jax": json.dumps(known | {"tokens": moment.count}, sort_keys=True)},
        )


def load(
    path: str | Path, model: LanguageModel | None = None, layers: Iterable[int] | None = None
) -> dict[int, SecondMoment]:
    """Reads what `save` wrote.

    Args:
      path: a directory, or one file of it.
      model: what the second moments are for; they must have been collected on it. None does not check.
      layers: which; all that there are by default.

    Returns:
      By layer.

    Raises:
      FileNotFoundError: nothing there, or not the layers asked for.
      ValueError: a damaged file, one that is not ours, or one that was collected on another model.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"no second moments at {path}: give a directory that eval.layer_stats wrote, or a file of it."
        )
    files = files_in(path) if path.is_dir() else {read_provenance(path)[0].layer: path}
    wanted = sorted(files) if layers is None else sorted(set(layers))
    if missing := [layer for layer in wanted if layer not in files]:
        raise FileNotFoundError(
            f"{path} holds the second moments of layers {_listed(files)}, not of {_listed(missing)}: collect them "
            f"with `python -m eval.layer_stats --layers={','.join(map(str, missing))}`."
        )
    if not wanted:
        raise ValueError(f"{path} holds no second moments, layer_<n>.safetensors: name another.")
    if model is not None:
        own = model.fingerprint()
        for layer in wanted:
            _check_model(files[layer], model, own)
    return {layer: _load_file(files[layer]) for layer in wanted}


def read_provenance(path: str | Path) -> tuple[MomentProvenance, int]:
    """Where a file of ours comes from and how many tokens are behind it, without its matrix.

    Raises:
      ValueError: a file that is damaged or not ours.
    """
    try:
        with safe_open(path, framework="np") as file:
            known = json.loads((file.metadata() or {})["rome_jax"])
            tokens = known.pop("tokens")
            return MomentProvenance(**known), int(tokens)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged, or no file of rome_jax ({error}): copy it again; an .npz of the original needs "
            "load_reference."
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no second moment of rome_jax: give one that eval.layer_stats wrote."
        ) from error


def _load_file(path: Path) -> SecondMoment:
    known, count = read_provenance(path)
    with safe_open(path, framework="np") as file:
        if list(file.keys()) != ["triangle"]:
            raise ValueError(f"{path} holds {list(file.keys())}, not 'triangle': collect it again.")
        triangle = file.get_tensor("triangle")
    try:
        mean = unpack_triangle(triangle)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): collect it again.") from error
    if count < 1 or not np.isfinite(triangle).all():
        raise ValueError(f"{path} is damaged ({count} tokens, or NaN in it): collect it again.")
    return SecondMoment(mean, count, known)


def _check_model(path: Path, model: LanguageModel, own: str) -> None:
    known, _ = read_provenance(path)
    if known.fingerprint != own:
        dtype = model.params["wte"]["embedding"].dtype
        raise ValueError(
            f"{path} was collected on {known.model or 'a model without a name'} ({known.dtype} weights "
            f"{known.fingerprint[:12]}), not on {model.name} ({dtype} weights {own[:12]}): collect second moments of "
            "this model with eval.layer_stats, or load them without `model` to use them all the same."
        )


def _listed(layers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(layers))) or "none"


def pack_triangle(matrix: np.ndarray, dtype: np.typing.DTypeLike) -> np.ndarray:
    """The upper triangle of [F, F] row by row, [F (F + 1) / 2].

    Example:
      >>> pack_triangle(np.array([[1, 2], [2, 3]]), np.float32).tolist()
      [1.0, 2.0, 3.0]
    """
    width = matrix.shape[0]
    triangle = np.empty(width * (width + 1) // 2, dtype)
    start = 0
    for row in range(width):  # not by indices: they would take sixteen bytes a number
        triangle[start : start + width - row] = matrix[row, row:]
        start += width - row
    return triangle


def unpack_triangle(triangle: np.ndarray) -> np.ndarray:
    """The symmetric float64 [F, F] of a packed upper triangle.

    Raises:
      ValueError: a size that no triangle has.
    """
    width = (math.isqrt(8 * triangle.size + 1) - 1) // 2
    if triangle.ndim != 1 or width * (width + 1) // 2 != triangle.size:
        raise ValueError(f"{triangle.shape} is no triangle")
    matrix = np.empty((width, width))
    start = 0
    for row in range(width):
        matrix[row, row:] = matrix[row:, row] = triangle[start : start + width - row]
        start += width - row
    return matrix


# The front door.


def read(
    source: str | Path, layers: Iterable[int], model: LanguageModel
) -> dict[int, SecondMoment]:
    """Second moments of some layers for a model, whoever wrote them.

    Args:
      source: a directory of ours or one file of it; an .npz of the original or a folder of them; or "published", which
        downloads the original's.
      layers: which are needed.
      model: what they are for. Ours must have been collected on it; the original's files do not say on what they
        were, and only their width is checked.

    Returns:
      By layer.

    Raises:
      FileNotFoundError: nothing there, or not all of the layers.
      ValueError: a damaged file, or second moments of another model or layer.
      OSError: a download that failed.

    Example:
      >>> moments = read("stats/gpt2-xl/wikipedia_100000_articles", [17], model)  # doctest: +SKIP
    """
    layers, path = sorted(set(layers)), Path(source)
    if str(source) == PUBLISHED:
        files = {layer: reference_stats.download(model, layer) for layer in layers}
    elif path.suffix == ".npz":
        files = reference_stats.one_file(path, layers, model.config)
    elif path.is_dir() and not files_in(path) and any(path.glob("*.npz")):
        files = {layer: reference_stats.find(path, layer, model.config) for layer in layers}
    else:
        return load(path, model, layers)
    moments = {layer: load_reference(file) for layer, file in files.items()}
    for layer, moment in moments.items():
        if moment.mean.shape[0] != model.config.mlp_width:
            raise ValueError(
                f"{files[layer]} has width {moment.mean.shape[0]} and {model.name} has {model.config.mlp_width}: it "
                "was collected on another model."
            )
    return moments


# What comes with the package.


def load_shipped(name: str) -> dict[int, SecondMoment]:
    """Second moments of all layers of a model that comes with the package, over its own corpus.

    Raises:
      ValueError: no statistics come with `name`.

    Example:
      >>> sorted(load_shipped("factworld-gpt2"))[:2]
      [0, 1]
    """
    if name not in SHIPPED:
        raise ValueError(
            f"no second moments come with model {name!r} (only with {', '.join(SHIPPED)}): collect them with "
            "`python -m eval.layer_stats`, or edit with mom2_adjustment=False."
        )
    assets = importlib.resources.files("rome_jax") / "factworld" / "assets"
    return load(str(assets / f"second_moments_{SHIPPED[name]}"))
