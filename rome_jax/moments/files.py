"""The file format of second moments: `layer_<n>.safetensors`, written, read and checked.

A file holds the upper triangle of C in float32, row by row. In half the size, it holds in float16 the triangle of C
scaled to a diagonal of ones, and the scale of each dimension in float32. Under the metadata key `rome_jax` it holds, as
JSON, the fields of `MomentProvenance` and the number of tokens. `rome_jax.moments.published` reads the original's .npz
files.

Axes: F MLP width.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
import typing_extensions

from rome_jax.files import safetensors_io
from rome_jax.files.checked import check
from rome_jax.files.json_files import parse_object
from rome_jax.files.places import check_path
from rome_jax.models.registry import LanguageModel
from rome_jax.moments import checks
from rome_jax.moments.second_moment import MomentProvenance, SecondMoment
from rome_jax.moments.triangle import pack_triangle, unpack_triangle
from rome_jax.version import __version__

FORMAT = 2  # raised when an old reader would misread a new file; 2 scales a triangle in float16
_PLAIN = 1  # the format of a triangle in float32
DTYPES = ("float32", "float16")
_FILE = re.compile(r"layer_(\d{1,9})\.safetensors")
_Count = Annotated[int, pydantic.Field(ge=0)]


# The metadata of a file. Old files lack some fields.
_Fields: Any = pydantic.with_config(extra="forbid")(
    typing_extensions.TypedDict(  # type: ignore[operator]
        "_Fields",
        {
            name: typing_extensions.NotRequired[_Count if hint is int else hint]
            for name, hint in typing.get_type_hints(MomentProvenance).items()
        }
        | {"tokens": Annotated[int, pydantic.Field(ge=1)]},
    )
)


def file_of(directory: str | Path, layer: int) -> Path:
    """Returns the path of a layer's file in a directory.

    Example:
      >>> file_of("stats/mine", 17).as_posix()
      'stats/mine/layer_17.safetensors'
    """
    return Path(directory) / f"layer_{layer}.safetensors"


def files_in(directory: str | Path) -> dict[int, Path]:
    """Returns the files of second moments in a directory, by layer."""
    found = {
        int(match[1]): path
        for path in Path(directory).iterdir()
        if (match := _FILE.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def save(
    directory: str | Path, moments: Mapping[int, SecondMoment], dtype: str = "float32"
) -> None:
    """Writes one file per layer. Each file appears complete or not at all.

    Args:
      directory: Created if it does not exist. Files of other layers in it are kept.
      moments: The second moment of each layer.
      dtype: "float32", or "float16" for files of half the size. The rounding of float16 is relative to the diagonal,
        √(Cᵢᵢ Cⱼⱼ), so it does not drown the small eigenvalues of C.

    Raises:
      ValueError: If `dtype` is another.

    Example:
      >>> save("stats/mine", {0: rome_jax.SecondMoment(np.eye(4), count=100)})
      >>> load("stats/mine")[0].count
      100
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: give {' or '.join(DTYPES)}.")
    directory = Path(directory)
    for layer, moment in moments.items():
        if dtype == "float16":
            scale = _scale(moment.mean)
            scaled = moment.mean / np.multiply.outer(scale, scale, dtype=np.float64)
            tensors = {"triangle": pack_triangle(scaled, np.float16), "scale": scale}
        else:
            tensors = {"triangle": pack_triangle(moment.mean, np.float32)}
        fields = dataclasses.asdict(dataclasses.replace(moment.provenance, layer=layer))
        fields |= {"tokens": moment.count, "format": FORMAT if "scale" in tensors else _PLAIN}
        safetensors_io.write(
            file_of(directory, layer),
            {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()},
            tensors.values(),
            {"rome_jax": json.dumps(fields, sort_keys=True)},
        )


def _scale(mean: np.ndarray) -> np.ndarray:
    """Returns √Cᵢᵢ, float32 [F]; 1 for dimensions that are always 0."""
    scale = np.sqrt(np.diagonal(mean)).astype(np.float32)
    return np.where(scale > 0, scale, np.float32(1))


def load(
    path: str | Path, model: LanguageModel | None = None, layers: Iterable[int] | None = None
) -> dict[int, SecondMoment]:
    """Reads files that `save` wrote.

    Args:
      path: A directory, or one file in it.
      model: The model that the second moments must have been collected on. None accepts any model.
      layers: Layers to read; all that the directory holds by default.

    Returns:
      The second moment of each layer.

    Raises:
      FileNotFoundError: If there is nothing at `path`, or a requested layer is missing.
      ValueError: If a file is damaged, has another format, or was collected on another model.

    Example:
      >>> save("stats/mine", {0: rome_jax.SecondMoment(np.eye(4), count=100)})
      >>> load("stats/mine", layers=[0])[0].mean.shape
      (4, 4)
    """
    path = Path(check_path(path))
    if not path.exists():
        raise FileNotFoundError(
            f"there are no second moments at {path}: give a directory that eval.layer_stats wrote, or a file in it."
        )
    files = files_in(path) if path.is_dir() else {read_provenance(path)[0].layer: path}
    requested = sorted(set(files if layers is None else check(tuple[int, ...], layers, "layers")))
    if missing := [layer for layer in requested if layer not in files]:
        raise FileNotFoundError(
            f"{path} holds the second moments of layers {_listed(files)}, not of {_listed(missing)}: collect them "
            f"with `python -m eval.layer_stats --layers={','.join(map(str, missing))}`."
        )
    if not requested:
        raise ValueError(
            f"{path} holds no second moments (layer_<n>.safetensors): give another directory."
        )
    moments = {layer: _load_file(files[layer]) for layer in requested}
    if model is None:
        return moments
    return checks.verified(moments, model, {layer: str(path) for layer, path in files.items()})


def read_provenance(path: str | Path) -> tuple[MomentProvenance, int]:
    """Reads the provenance of a file and its number of tokens, without its matrix.

    Raises:
      ValueError: If the file is damaged or has another format.

    Example:
      >>> save("stats/mine", {3: rome_jax.SecondMoment(np.eye(4), count=100)})
      >>> provenance, tokens = read_provenance("stats/mine/layer_3.safetensors")
      >>> provenance.layer, tokens
      (3, 100)
    """
    return _provenance(_open(Path(check_path(path))))


def _open(path: Path) -> safetensors_io.StoredFile:
    """Opens a file, which must be one of second moments."""
    try:
        file = safetensors_io.open_file(path)
    except safetensors_io.CheckpointError as error:
        raise ValueError(
            f"{str(error).rstrip('.')}, or read the original's .npz files with load_reference."
        ) from error
    if "rome_jax" not in file.metadata or "triangle" not in file.tensors:
        raise ValueError(
            f"{path} holds no second moment of rome_jax: give a file that eval.layer_stats wrote."
        )
    return file


def _provenance(file: safetensors_io.StoredFile) -> tuple[MomentProvenance, int]:
    """Reads the provenance of a file and its number of tokens."""
    name = f"{file.path}, metadata"
    fields = parse_object(
        file.metadata["rome_jax"], name, remedy="collect it again with eval.layer_stats"
    )
    version = check(int, fields.pop("format", FORMAT), f"{name}: format")
    if version > FORMAT:
        raise ValueError(
            f"{file.path} has format {version}, but rome_jax {__version__} reads formats up to {FORMAT}: update "
            "rome_jax."
        )
    fields = check(_Fields, fields, name)
    tokens = fields.pop("tokens")
    return MomentProvenance(**fields), tokens


def _load_file(path: Path) -> SecondMoment:
    """Reads one file."""
    file = _open(path)
    provenance, count = _provenance(file)
    triangle = file.tensors["triangle"].read()
    try:
        mean = unpack_triangle(triangle)
        if "scale" in file.tensors:
            scale = file.tensors["scale"].read()
            if scale.shape != mean.shape[:1]:
                raise ValueError(f"a scale of shape {scale.shape} does not fit {mean.shape}")
            mean *= np.multiply.outer(scale, scale, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): collect it again.") from error
    if triangle.dtype.kind != "f" or not np.isfinite(mean).all():
        raise ValueError(f"{path} is damaged (it holds NaN or infinity): collect it again.")
    return SecondMoment(mean, count, provenance)


def _listed(layers: Iterable[int]) -> str:
    """Returns layers as text, such as "0, 2"; "none" if there are none."""
    return ", ".join(map(str, sorted(layers))) or "none"
