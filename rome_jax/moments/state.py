"""The state of a collection: everything that decides how it continues, and the file that keeps it.

A killed collection resumes from this file with the same bits: the sums, the articles that wait for a row, and the place
in the corpus decide everything that follows.

Axes: F MLP width.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
import pydantic
import typing_extensions

from rome_jax.files import safetensors_io
from rome_jax.files.checked import check, listed
from rome_jax.files.json_files import parse_object
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.key_sums import KeySums
from rome_jax.moments.triangle import pack_triangle, unpack_triangle

UNFINISHED = "unfinished.safetensors"
_STATES = re.compile(r"unfinished(?:_(\d+)_of_(\d+))?\.safetensors")
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
    tokens: Annotated[list[_Count], pydantic.Field(min_length=2, max_length=2)]
    complete: NotRequired[bool]


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a collection: every `count`th batch, from number `index` on.

    Example:
      >>> Part(0, 1).path(Path("stats")).name, Part(1, 2).path(Path("stats")).name
      ('unfinished.safetensors', 'unfinished_1_of_2.safetensors')
    """

    index: int
    count: int

    def path(self, directory: Path) -> Path:
        """Returns the file of the part's state in the directory of the collection."""
        if self.count == 1:
            return directory / UNFINISHED
        return directory / f"unfinished_{self.index}_of_{self.count}.safetensors"

    @property
    def settings(self) -> dict[str, str]:
        """What distinguishes the part's settings from those of the whole collection."""
        return {"part": f"{self.index} of {self.count}"} if self.count > 1 else {}


def parts_in(directory: Path) -> list[Part]:
    """Returns the parts that have a state in a directory.

    Raises:
      ValueError: If there are states of collections with different numbers of parts.
    """
    found = []
    for path in directory.glob("unfinished*.safetensors"):
        if match := _STATES.fullmatch(path.name):
            found.append(Part(int(match[1] or 0), int(match[2] or 1)))
    found.sort(key=lambda part: (part.count, part.index))
    if len({part.count for part in found}) > 1:
        names = listed(part.path(directory).name for part in found)
        raise ValueError(f"{directory} holds {names} of different collections: {_REMEDY}.")
    return found


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
      halves: Σ k kᵀ of the rows so far, in two halves; see `rome_jax.moments.error_bar`.
      counts: How far the collection is.
      waiting: int32 ids of the articles that were read but are in no row yet, oldest first.
      keys: The keys of each layer that the error of C is measured with, float32 [N, F]; empty before the first batch.
      complete: Whether the corpus was read to its end.
    """

    halves: tuple[KeySums, KeySums]
    counts: Counts = dataclasses.field(default_factory=Counts)
    waiting: list[np.ndarray] = dataclasses.field(default_factory=list)
    keys: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    complete: bool = False

    @classmethod
    def new(cls, model: LanguageModel, layers: Iterable[int]) -> State:
        """Returns the state of a collection that has read nothing."""
        layers = list(layers)
        first, second = (KeySums(model.params, model.config, layers) for _ in range(2))
        return cls((first, second))

    @property
    def layers(self) -> list[int]:
        """The layers, in order."""
        return sorted(self.halves[0].totals)

    @property
    def tokens(self) -> int:
        """Number of tokens that were summed."""
        return sum(half.tokens for half in self.halves)


def write_state(path: Path, state: State, settings: Mapping[str, Any]) -> None:
    """Writes a state and the settings of its collection. The file appears complete or not at all."""
    layers = state.layers
    width = state.halves[0].totals[layers[0]].shape[0]
    triangle = (np.dtype(np.float64), (width * (width + 1) // 2,))
    lengths = np.array([len(ids) for ids in state.waiting], np.int64)
    waiting = np.concatenate([*state.waiting, np.zeros(0, np.int32)])
    header = {
        "settings": dict(settings),
        "layers": layers,
        "counts": dataclasses.asdict(state.counts),
        "tokens": [half.tokens for half in state.halves],
        "complete": state.complete,
    }
    safetensors_io.write(
        path,
        {
            "lengths": (lengths.dtype, lengths.shape),
            "waiting": (waiting.dtype, waiting.shape),
            **{f"keys_{layer}": (keys.dtype, keys.shape) for layer, keys in state.keys.items()},
            **{name: triangle for name, _ in _named_totals(state)},
        },
        itertools.chain(
            [lengths, waiting, *state.keys.values()],
            (pack_triangle(total, np.float64) for _, total in _named_totals(state)),
        ),
        {"rome_jax": json.dumps(header)},
    )


def _named_totals(state: State) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name of each sum in a file, and the sum."""
    for number, half in enumerate(state.halves):
        for layer in state.layers:
            yield f"layer_{layer}_half_{number}", half.totals[layer]


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
    name = f"{path}, metadata"
    header = parse_object(file.metadata.get("rome_jax", ""), name, remedy=_REMEDY)
    if isinstance(header.get("tokens"), int):  # of one sum; there are two since C has an error
        raise ValueError(f"{path} was written by an earlier version of rome_jax: {_REMEDY}.")
    return file, {"complete": False, **check(_Header, header, name)}


def read_state(path: Path, model: LanguageModel) -> State:
    """Reads the state that `write_state` wrote for a model.

    Raises:
      ValueError: If the file is damaged.
    """
    file, header = _open(path)
    try:
        state = State.new(model, header["layers"])
        state.counts, state.complete = Counts(**header["counts"]), header["complete"]
        for half, tokens in zip(state.halves, header["tokens"], strict=True):
            half.tokens = tokens
        for name, total in _named_totals(state):
            found = unpack_triangle(file.tensors[name].read())
            if found.shape != total.shape or not np.isfinite(found).all():
                raise ValueError(f"{name} has another width, or NaN")
            total[:] = found
        for layer in state.layers:
            keys = np.array(file.tensors[f"keys_{layer}"].read())
            shaped = keys.ndim == 2 and keys.shape[1] == model.config.mlp_width
            if not shaped or not np.isfinite(keys).all():
                raise ValueError(f"keys_{layer} has another width, or NaN")
            state.keys[layer] = keys
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
