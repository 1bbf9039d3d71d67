"""Edits as small safetensors files that record where the edits came from.

A file such as edits/sport.safetensors contains one or more edits, in order. The tensors
`<update>.<leaf>.<layer | left | right>` are low-rank updates, and `<update>.<leaf>.<part>.<layer | change>` are dense
ones. The header contains the `Provenance` of each edit as JSON.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import pydantic
import typing_extensions

from rome_jax.edit.delta import Update, merge_deltas, weight_name
from rome_jax.edit.saved_edits import Provenance, SavedEdit, subjects
from rome_jax.files.checked import shown
from rome_jax.files.json_files import parse_object
from rome_jax.files.places import check_path
from rome_jax.files.safetensors_io import StoredTensor, open_file, write
from rome_jax.models.interventions import (
    Delta,
    DenseUpdate,
    Leaf,
    LowRankUpdate,
    Part,
    check_factors,
)
from rome_jax.version import __version__

SUFFIX = ".safetensors"
FORMAT = 1  # increased when an old reader would misread a new file
_REMEDY = "copy the file again, or save the edit again"
_NAME = re.compile(
    r"(?P<index>\d{1,9})\.(?P<weight>[A-Z_]+(\.[A-Z]+)?)\.(?P<field>layer|left|right|change)"
)
_MOST_LAYERS = 1 << 20
# The tensors of an update, with their numbers of dimensions.
_FACTORS = {"layer": 0, "left": 2, "right": 2}
_DENSE = {Part.KERNEL: {"layer": 0, "change": 2}, Part.BIAS: {"layer": 0, "change": 1}}


class _Version(typing_extensions.TypedDict):
    """What the header of a file of any format says."""

    format: Annotated[int, pydantic.Field(ge=1)]


class _Edit(typing_extensions.TypedDict):
    """What the header says about one edit."""

    updates: Annotated[int, pydantic.Field(ge=0)]
    provenance: dict[str, Any]


class _Header(_Version):
    """The header of a file."""

    edits: Annotated[list[_Edit], pydantic.Field(min_length=1)]


def save_edits(path: str | Path, edits: Sequence[SavedEdit]) -> Path:
    """Writes edits to one file, completely or not at all.

    Args:
      path: Path of the file, which ends in .safetensors. An existing file is replaced, and missing folders are created.
      edits: Edits in the order in which they are to be applied, each with its provenance.

    Returns:
      The path.

    Raises:
      ValueError: If there are no edits, the path has another suffix, or an edit has a case axis or holds a number that
        is not finite.
      TypeError: If JSON cannot represent the provenance.
      OSError: If the file cannot be written.

    Example:
      >>> from rome_jax.edit import record_edits, rome
      >>> deltas = rome.compute_deltas(model, [request], config, second_moments=moments, templates=["{}"])
      >>> edits = record_edits(model, [request], "ROME", config, deltas)
      >>> path = save_edits("edits/sport.safetensors", edits)
      >>> (edit,) = load_edits(path)
      >>> edit.provenance.method, edit.provenance.requests[0].target_new
      ('ROME', 'tennis')
    """
    path = check_edit_path(path)
    if not edits:
        raise ValueError(f"edits is empty: there is nothing to write to {path}.")
    for edit in edits:
        if not all(
            np.isfinite(x).all() for u in edit.delta.updates for x in update_tensors(u).values()
        ):
            raise ValueError(
                f"the edit of {subjects(edit)} holds numbers that are not finite: it is not written to {path}."
            )
    updates = merge_deltas([edit.delta for edit in edits]).updates
    header = {
        "format": FORMAT,
        "edits": [
            {"updates": len(edit.delta.updates), "provenance": dataclasses.asdict(edit.provenance)}
            for edit in edits
        ],
    }
    metadata = {"rome_jax": json.dumps(header)}
    arrays = {
        f"{index}.{name}": array
        for index, update in enumerate(updates)
        for name, array in update_tensors(update).items()
    }
    specs = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    write(path, specs, arrays.values(), metadata)
    return path


def check_edit_path(path: str | Path) -> Path:
    """Returns the path of an edit file.

    Raises:
      ValueError: If the path does not end in .safetensors, or no file can have it.

    Example:
      >>> check_edit_path("edits/sport.safetensors").name
      'sport.safetensors'
    """
    path = Path(check_path(path))
    if path.suffix != SUFFIX:
        raise ValueError(f"{shown(str(path))} must end in {SUFFIX}, such as edits/sport{SUFFIX}.")
    return path


def load_edits(path: str | Path) -> tuple[SavedEdit, ...]:
    """Reads a file that `save_edits` wrote.

    Returns:
      The edits in their order.

    Raises:
      FileNotFoundError: If the file does not exist.
      ValueError: If the file is damaged, does not contain edits, or has a later format.

    Example: See `save_edits`.
    """
    path = Path(check_path(path))
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: give one that save_edits wrote.")
    file = open_file(path)
    if "rome_jax" not in file.metadata:
        raise ValueError(f"{path} is not an edit of rome_jax: give a file that save_edits wrote.")
    name, text = f"{path}, metadata", file.metadata["rome_jax"]
    version = parse_object(text, name, _Version, remedy=_REMEDY)["format"]
    if version > FORMAT:
        raise ValueError(
            f"{path} has format {version}, but rome_jax {__version__} reads formats up to {FORMAT}: update rome_jax."
        )
    header = parse_object(text, name, _Header, remedy=_REMEDY)
    updates = read_updates(path, file.tensors)
    if sum(edit["updates"] for edit in header["edits"]) != len(updates):
        raise _damaged(path, f"its header announces other updates than the {len(updates)} it holds")
    rest, edits = iter(updates), []
    for index, part in enumerate(header["edits"]):
        delta = Delta(tuple(itertools.islice(rest, part["updates"])))
        provenance = Provenance.from_dict(part["provenance"], f"{name}: edits[{index}].provenance")
        edit = SavedEdit(delta, provenance)
        recorded = {(layer.layer, layer.weight) for layer in provenance.layers}
        changed = {(int(update.layer), weight_name(update)) for update in delta.updates}
        if recorded != changed:
            raise _damaged(
                path,
                f"its header names changes of {_listed(recorded)}, and its tensors change {_listed(changed)}",
            )
        edits.append(edit)
    return tuple(edits)


def _damaged(path: Path, why: str) -> ValueError:
    """Builds the error for a file whose parts do not fit together."""
    return ValueError(f"{path} is damaged ({why}): {_REMEDY}.")


def _listed(weights: Collection[tuple[int, str]]) -> str:
    """Lists weights, at most three of them."""
    weighed = [f"{name} of layer {layer}" for layer, name in sorted(weights)]
    return ", ".join(weighed[:3] + ["..."] * (len(weighed) > 3)) or "nothing"


def update_tensors(update: Update) -> dict[str, np.ndarray]:
    """Returns the arrays of an update by their names in a file."""
    if isinstance(update, DenseUpdate):
        weight, fields = f"{update.leaf.name}.{update.part.name}", _DENSE[update.part]
    else:
        weight, fields = update.leaf.name, _FACTORS
    return {f"{weight}.{field}": np.asarray(getattr(update, field)) for field in fields}


def read_updates(path: Path, tensors: Mapping[str, StoredTensor]) -> list[Update]:
    """Builds the updates from tensors of a file, in their order.

    Args:
      path: The file, for messages.
      tensors: The tensors by their names: the number of an update, a period, and what `update_tensors` names.

    Raises:
      ValueError: If a name, type, or shape is not that of a part of an update, or a number is not finite.
    """
    found: dict[tuple[int, str], dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise _damaged(path, f"the tensor {shown(name)} is no part of an edit")
        array = np.array(tensor.read())
        is_layer = match["field"] == "layer"
        if not np.issubdtype(array.dtype, np.integer if is_layer else np.floating) and (
            is_layer or array.dtype != jnp.bfloat16
        ):
            raise _damaged(path, f"{name} has the type {array.dtype}")
        if is_layer and (array.ndim or not 0 <= int(array) < _MOST_LAYERS):
            raise _damaged(path, f"{name} is no layer")
        if not np.isfinite(array).all():
            raise _damaged(path, f"{name} holds numbers that are not finite")
        found.setdefault((int(match["index"]), match["weight"]), {})[match["field"]] = array
    order = sorted(found)
    if [index for index, _ in order] != list(range(len(order))):
        raise _damaged(path, "its updates are not numbered one by one from 0")
    return [_update(path, index, weight, found[index, weight]) for index, weight in order]


def _update(path: Path, index: int, weight: str, arrays: Mapping[str, np.ndarray]) -> Update:
    """Rebuilds an update from the name of its weight and its arrays."""
    leaf, _, part = weight.partition(".")
    if leaf not in Leaf.__members__ or part not in ("", *Part.__members__):
        raise _damaged(path, f"update {index} is of the unknown weight {shown(weight)}")
    fields = _DENSE[Part[part]] if part else _FACTORS
    if {field: array.ndim for field, array in arrays.items()} != fields:
        raise _damaged(path, f"update {index} consists of {', '.join(sorted(arrays))}")
    parts = {field: jnp.asarray(array) for field, array in arrays.items()}
    parts["layer"] = parts["layer"].astype(jnp.int32)
    if part:
        return DenseUpdate(Leaf[leaf], Part[part], **parts)
    update = LowRankUpdate(Leaf[leaf], **parts)
    if 0 in update.left.shape:
        raise _damaged(path, f"update {index} has factors without a column, so it changes nothing")
    try:
        check_factors(update)
    except ValueError as error:
        raise _damaged(path, str(error).rstrip(".")) from error
    return update
