"""Edits as files, small ones, which say where they came from.

edits/sport.safetensors    one edit or several, in order. The tensors `<update>.<leaf>.<layer | left | right>` are
                           the factors of their updates, `<update>.<leaf>.<part>.<layer | change>` dense ones;
                           the header holds the `Provenance` of each, as JSON
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
FORMAT = 1  # raised when an old reader would misread a new file
# Tensors of an update: their dimensions.
_FACTORS = {"layer": 0, "left": 2, "right": 2}
_DENSE = {Part.KERNEL: {"layer": 0, "change": 2}, Part.BIAS: {"layer": 0, "change": 1}}


def save_edits(path: str | Path, edits: Sequence[SavedEdit]) -> Path:
    """Writes edits to one file, whole or not at all; several are merged, each with its provenance.

    Args:
      path: ends in .safetensors; replaced if it exists; its folder is made if absent.
      edits: in the order in which they are to be applied.

    Returns:
      The path.

    Raises:
      ValueError: no edits, another suffix, or an edit with a case axis.
      TypeError: provenance that JSON cannot hold.

    Example:
      >>> save_edits("edits/sport.safetensors", [edit])  # doctest: +SKIP
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
    """Returns the path if edits can be written there.

    Raises:
      ValueError: it does not end in .safetensors.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"{str(path)!r} must end in {SUFFIX}, such as edits/sport{SUFFIX}.")
    return path


def load_edits(path: str | Path) -> tuple[SavedEdit, ...]:
    """Reads what `save_edits` wrote.

    Returns:
      The edits in their order.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged file, a safetensors file that holds no edits, or a later format.

    Example:
      >>> edited = apply_edits(model, load_edits("edits/sport.safetensors"))  # doctest: +SKIP
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: name one that save_edits wrote.")
    tensors = read_header(path)
    with safe_open(path, framework="np") as file:
        text = (file.metadata() or {}).get("rome_jax")
    if text is None:
        raise ValueError(f"{path} is not an edit of rome_jax: name a file that save_edits wrote.")
    try:
        header = json.loads(text)
        version = int(header["format"])
        edits = _read(header["edits"], tensors) if version <= FORMAT else ()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not an edit that rome_jax {__version__} reads "
            f"({type(error).__name__}: {error}): save it again."
        ) from error
    if version > FORMAT:
        raise ValueError(
            f"{path} has format {version}, and rome_jax {__version__} reads up to {FORMAT}: update rome_jax."
        )
    return edits


def _tensors(update: Update) -> dict[str, np.ndarray]:
    """The arrays of an update by their names in a file."""
    if isinstance(update, DenseUpdate):
        weight, fields = f"{update.leaf.name}.{update.part.name}", _DENSE[update.part]
    else:
        weight, fields = update.leaf.name, _FACTORS
    return {f"{weight}.{field}": np.asarray(getattr(update, field)) for field in fields}


def _update(index: int, weight: str, arrays: Mapping[str, jax.Array]) -> Update:
    """The update that `_tensors` took apart."""
    leaf, *parts = weight.split(".")
    where = (Leaf[leaf], *(Part[part] for part in parts))
    kind, fields = (DenseUpdate, _DENSE[where[1]]) if parts else (LowRankUpdate, _FACTORS)
    if {field: array.ndim for field, array in arrays.items()} != fields:
        raise ValueError(f"update {index} consists of {', '.join(arrays)}")
    return kind(*where, **arrays)


def _read(
    parts: Sequence[Mapping[str, Any]], tensors: Mapping[str, StoredTensor]
) -> tuple[SavedEdit, ...]:
    """The edits of a header and the tensors beside it."""
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
