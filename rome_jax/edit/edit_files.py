"""Edits as small safetensors files that record where the edits came from.

A file such as edits/sport.safetensors contains one or more edits, in order. The tensors
`<update>.<leaf>.<layer | left | right>` are low-rank updates, and `<update>.<leaf>.<part>.<layer | change>` are dense
ones. The header contains the `Provenance` of each edit as JSON.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from rome_jax.edit.delta import Update, merge_deltas
from rome_jax.edit.saved_edits import Provenance, SavedEdit
from rome_jax.files.safetensors_io import StoredTensor, read_header, write
from rome_jax.models.interventions import Delta, DenseUpdate, Leaf, LowRankUpdate, Part
from rome_jax.version import __version__

SUFFIX = ".safetensors"
FORMAT = 1  # increased when an old reader would misread a new file
# The tensors of an update, with their numbers of dimensions.
_FACTORS = {"layer": 0, "left": 2, "right": 2}
_DENSE = {Part.KERNEL: {"layer": 0, "change": 2}, Part.BIAS: {"layer": 0, "change": 1}}


def save_edits(path: str | Path, edits: Sequence[SavedEdit]) -> Path:
    """Writes edits to one file, completely or not at all.

    Args:
      path: Path of the file, which ends in .safetensors. An existing file is replaced, and missing folders are created.
      edits: Edits in the order in which they are to be applied, each with its provenance.

    Returns:
      The path.

    Raises:
      ValueError: If there are no edits, the path has another suffix, or an edit has a case axis.
      TypeError: If JSON cannot represent the provenance.

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
        for name, array in _tensors(update).items()
    }
    specs = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, specs, arrays.values(), metadata)
    return path


def check_edit_path(path: str | Path) -> Path:
    """Returns the path of an edit file.

    Raises:
      ValueError: If the path does not end in .safetensors.

    Example:
      >>> check_edit_path("edits/sport.safetensors").name
      'sport.safetensors'
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"{str(path)!r} must end in {SUFFIX}, such as edits/sport{SUFFIX}.")
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
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: give one that save_edits wrote.")
    tensors = read_header(path)
    with safe_open(path, framework="np") as file:
        text = (file.metadata() or {}).get("rome_jax")
    if text is None:
        raise ValueError(f"{path} is not an edit of rome_jax: give a file that save_edits wrote.")
    try:
        header = json.loads(text)
        version = int(header["format"])
        edits = _read(header["edits"], tensors) if version <= FORMAT else ()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not an edit that rome_jax {__version__} can read "
            f"({type(error).__name__}: {error}): save it again."
        ) from error
    if version > FORMAT:
        raise ValueError(
            f"{path} has format {version}, but rome_jax {__version__} reads formats up to {FORMAT}: update rome_jax."
        )
    return edits


def _tensors(update: Update) -> dict[str, np.ndarray]:
    """Returns the arrays of an update by their names in a file."""
    if isinstance(update, DenseUpdate):
        weight, fields = f"{update.leaf.name}.{update.part.name}", _DENSE[update.part]
    else:
        weight, fields = update.leaf.name, _FACTORS
    return {f"{weight}.{field}": np.asarray(getattr(update, field)) for field in fields}


def _update(index: int, weight: str, arrays: Mapping[str, jax.Array]) -> Update:
    """Rebuilds an update from the name of its weight and its arrays."""
    leaf, *parts = weight.split(".")
    fields = _DENSE[Part[parts[0]]] if parts else _FACTORS
    if {field: array.ndim for field, array in arrays.items()} != fields or len(parts) > 1:
        raise ValueError(f"update {index} consists of {', '.join(arrays)}")
    if parts:
        return DenseUpdate(Leaf[leaf], Part[parts[0]], **arrays)
    return LowRankUpdate(Leaf[leaf], **arrays)


def _read(
    parts: Sequence[Mapping[str, Any]], tensors: Mapping[str, StoredTensor]
) -> tuple[SavedEdit, ...]:
    """Builds the edits from the header and the tensors of a file."""
    fields: dict[tuple[int, str], dict[str, jax.Array]] = {}
    for name, tensor in tensors.items():
        where, field = name.rsplit(".", 1)
        index, weight = where.split(".", 1)
        fields.setdefault((int(index), weight), {})[field] = jnp.array(tensor.read())
    updates = [_update(index, weight, fields[index, weight]) for index, weight in sorted(fields)]
    counts = [part["updates"] for part in parts]
    if sum(counts) != len(updates):
        raise ValueError(f"{len(updates)} updates instead of {sum(counts)}")
    edits, start = [], 0
    for part, count in zip(parts, counts, strict=True):
        delta = Delta(tuple(updates[start : start + count]))
        edits.append(SavedEdit(delta, Provenance.from_dict(part["provenance"])))
        start += count
    return tuple(edits)
