"""The state of a collection: everything that decides how it continues, and the file that keeps it.

A killed collection resumes from this file with the same bits: the sums, the articles that wait for a row, and the place
in the corpus decide everything that follows.

Axes: F MLP width.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
import typing_extensions

from rome_jax.files import safetensors_io
from rome_jax.files.json_files import parse_object
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.key_sums import KeySums
from rome_jax.moments.triangle import pack_triangle, unpack_triangle

UNFINISHED = "unfinished.safetensors"
_REMEDY = "remove it to start again"
_Count = Annotated[int, pydantic.Field(ge=0)]


class _Counts(typing_extensions.TypedDict):
    """The fields of `Counts` in a file."""

    texts: _Count
    articles: _Count
    tokens: _Count
    rows: _Count


class _Header(typing_extensions.TypedDict):
    """The metadata of a state."""

    settings: dict[str, Any]
    layers: list[_Count]
    counts: _Counts
    tokens: _Count


@dataclasses.dataclass
class Counts:
    """How far a collection is.

    Attributes:
      texts: Number of texts of the corpus that were read.
      articles: Number of these that are not empty.
      tokens: Number of tokens in these articles.
      rows: Number of rows that were summed; some articles may still wait for a row.
    """

    texts: int = 0
    articles: int = 0
    tokens: int = 0
    rows: int = 0


@dataclasses.dataclass
class State:
    """Everything that decides how a collection continues.

    Attributes:
      sums: Σ k kᵀ of the rows so far.
      counts: How far the collection is.
      waiting: int32 ids of the articles that were read but are in no row yet, oldest first.
    """

    sums: KeySums
    counts: Counts = dataclasses.field(default_factory=Counts)
    waiting: list[np.ndarray] = dataclasses.field(default_factory=list)


def write_state(path: Path, state: State, settings: Mapping[str, Any]) -> None:
    """Writes a state and the settings of its collection. The file appears complete or not at all."""
    width = next(iter(state.sums.totals.values())).shape[0]
    triangle = (np.dtype(np.float64), (width * (width + 1) // 2,))
    lengths = np.array([len(ids) for ids in state.waiting], np.int64)
    waiting = np.concatenate([*state.waiting, np.zeros(0, np.int32)])
    layers = sorted(state.sums.totals)
    header = {
        "settings": dict(settings),
        "layers": layers,
        "counts": dataclasses.asdict(state.counts),
        "tokens": state.sums.tokens,
    }
    safetensors_io.write(
        path,
        {
            "lengths": (lengths.dtype, lengths.shape),
            "waiting": (waiting.dtype, waiting.shape),
            **{f"layer_{layer}": triangle for layer in layers},
        },
        itertools.chain(
            [lengths, waiting],
            (pack_triangle(state.sums.totals[layer], np.float64) for layer in layers),
        ),
        {"rome_jax": json.dumps(header)},
    )


def read_header(path: Path) -> dict[str, Any]:
    """Reads the settings, layers, and counts of a state, without its arrays.

    Raises:
      ValueError: If the file is damaged.
    """
    return _open(path)[1]


def _open(path: Path) -> tuple[safetensors_io.StoredFile, dict[str, Any]]:
    """Opens the file of a state, and reads its metadata."""
    try:
        file = safetensors_io.open_file(path)
    except safetensors_io.CheckpointError as error:
        raise ValueError(f"{path} is damaged ({error}): {_REMEDY}.") from error
    header = parse_object(
        file.metadata.get("rome_jax", ""), f"{path}, metadata", _Header, remedy=_REMEDY
    )
    return file, header


def read_state(path: Path, model: LanguageModel) -> State:
    """Reads the state that `write_state` wrote for a model.

    Raises:
      ValueError: If the file is damaged.
    """
    file, header = _open(path)
    try:
        sums = KeySums(model.params, model.config, header["layers"])
        state = State(sums, Counts(**header["counts"]))
        state.sums.tokens = header["tokens"]
        for layer, total in state.sums.totals.items():
            found = unpack_triangle(file.tensors[f"layer_{layer}"].read())
            if found.shape != total.shape or not np.isfinite(found).all():
                raise ValueError(f"layer {layer} has another width, or NaN")
            state.sums.totals[layer] = found
        lengths, waiting = (file.tensors[name].read() for name in ("lengths", "waiting"))
        if (lengths.dtype, lengths.ndim, waiting.dtype) != (np.int64, 1, np.int32):
            raise ValueError("the waiting articles are of other types")
        if (lengths < 0).any() or waiting.shape != (lengths.sum(),):
            raise ValueError("the lengths of the waiting articles are wrong")
    except (ValueError, KeyError, TypeError) as error:
        why = str(error).rstrip(".")
        raise ValueError(f"{path} is damaged ({why}): {_REMEDY}.") from error
    state.waiting = np.split(np.array(waiting), np.cumsum(lengths))[:-1]
    return state
