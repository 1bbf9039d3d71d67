"""The state of an editor as one safetensors file, with the weights that it has changed, so that a sequence can resume.

The tensors `state.FIELD...` are the arrays of the state, and `weight.LEAF.PART.LAYER` are changed weights as they are.
The header contains the rest of the state as JSON, and whatever the caller records. Second moments, hypernetworks and
penalties are not in the file: `init` of the editor brings them back.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import typing_extensions

from rome_jax.edit.edit_files import check_edit_path, read_updates, update_tensors
from rome_jax.edit.editor import EditorState
from rome_jax.edit.normalizer import Normalizer
from rome_jax.edit.penalty import PastKeys
from rome_jax.edit.warm_start import EarlierEdits
from rome_jax.files.checked import check
from rome_jax.files.checksums import with_checksum
from rome_jax.files.json_files import parse_object
from rome_jax.files.places import check_path
from rome_jax.files.safetensors_io import StoredFile, open_file, write
from rome_jax.models.forward import Params
from rome_jax.models.interventions import Delta, DenseUpdate, Leaf, Part
from rome_jax.version import __version__

FORMAT = 1  # increased when an old reader would misread a new file
KINDS: Mapping[str, Any] = {
    "EarlierEdits": EarlierEdits,
    "Normalizer": Normalizer,
    "PastKeys": PastKeys,
}
"""Dataclasses that fields of a state may hold, by name. A method whose state holds another one adds it."""

_KEY = "rome_jax.editor"  # in the metadata of the file
_REMEDY = "remove it, and begin again or from an earlier file"
_FRESH = ("templates", "resources", "penalties")  # what `init` brings back


class ChangedWeight(NamedTuple):
    """One layer's kernel or bias that edits have changed.

    Attributes:
      leaf: The projection.
      part: Its kernel or its bias.
      layer: Index of the layer.
    """

    leaf: Leaf
    part: Part
    layer: int

    @property
    def name(self) -> str:
        """Name of its tensor in a file."""
        return f"weight.{self.leaf.name}.{self.part.name}.{self.layer}"

    def of(self, params: Params) -> jax.Array:
        """Returns the weight, [in, out...] or [out...], in the model's own dtype."""
        module, name = self.leaf.value
        return params["blocks"][module][name][self.part.value][self.layer]


class _Header(typing_extensions.TypedDict):
    """What the header of a file says."""

    format: Annotated[int, pydantic.Field(ge=1)]
    templates: list[str]
    layers: list[int]
    fields: dict[str, Any]
    about: dict[str, Any]


def changed_weights(delta: Delta) -> set[ChangedWeight]:
    """Returns the weights that an edit without a case axis changes.

    Example:
      >>> from rome_jax.edit import LowRankUpdate
      >>> update = LowRankUpdate(Leaf.MLP_DOWN, jnp.int32(5), jnp.ones((8, 1)), jnp.ones((4, 1)))
      >>> [weight.name for weight in changed_weights(Delta((update,)))]
      ['weight.MLP_DOWN.KERNEL.5']
    """
    return {
        ChangedWeight(
            update.leaf,
            update.part if isinstance(update, DenseUpdate) else Part.KERNEL,
            int(update.layer),
        )
        for update in delta.updates
    }


def save_state(
    path: str | Path,
    state: EditorState,
    *,
    params: Params | None = None,
    changed: Iterable[ChangedWeight] = (),
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the state of an editor to one file, completely or not at all.

    Args:
      path: Path of the file, which ends in .safetensors. An existing file is replaced, and missing folders are created.
      state: The state.
      params: Weights that hold the edits so far; only needed with `changed`.
      changed: The weights to write, one layer each.
      about: Further JSON values by name, which `read_about` returns.

    Returns:
      The path.

    Raises:
      TypeError: If the state holds something else than numbers, texts, arrays, deltas, `KINDS`, and mappings and
        sequences of these; the message names it.
      ValueError: If the path has another suffix.
      OSError: If the file cannot be written.

    Example:
      >>> from rome_jax.edit.resources import Resources
      >>> fresh = EditorState(("{}",), Resources())
      >>> path = save_state("state.safetensors", dataclasses.replace(fresh, num_edits=3))
      >>> load_state(path, fresh).num_edits
      3
    """
    path = check_edit_path(path)
    arrays: dict[str, np.ndarray] = {}
    fields = {
        name: _encode(getattr(state, name), f"state.{name}", arrays) for name in _saved_fields()
    }
    for weight in sorted(changed, key=lambda weight: weight.name):
        assert params is not None
        arrays[weight.name] = np.asarray(weight.of(params))
    header = {
        "format": FORMAT,
        "templates": list(state.templates),
        "layers": sorted(state.penalties),
        "fields": fields,
        "about": dict(about or {}),
    }
    specs = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    write(path, specs, arrays.values(), {_KEY: json.dumps(with_checksum(header))})
    return path


def load_state(path: str | Path, fresh: EditorState) -> EditorState:
    """Reads the state of an editor that `save_state` wrote.

    Args:
      path: The file.
      fresh: What `init` of the editor returns for the unedited model; it gives templates, second moments and penalties.

    Raises:
      FileNotFoundError: If the file does not exist.
      ValueError: If the file is damaged, holds no state, has a later format, or belongs to other templates or layers.

    Example: See `save_state`.
    """
    file, header = _open(path)
    if header["templates"] != list(fresh.templates):
        raise ValueError(
            f"{path} belongs to {len(header['templates'])} other context templates than the {len(fresh.templates)} of "
            "this editor: give the templates of the earlier run, or begin again."
        )
    layers = sorted(fresh.penalties)
    if header["layers"] != layers:
        raise ValueError(
            f"{path} belongs to an editor of the layers {header['layers']}, and this one edits {layers}: give the "
            "hyperparameters of the earlier run, or begin again."
        )
    fields = header["fields"]
    if set(fields) != set(_saved_fields()):
        raise ValueError(
            f"{path} holds the fields {', '.join(sorted(fields))} of a state, but rome_jax {__version__} has "
            f"{', '.join(sorted(_saved_fields()))}: use the version that wrote it, or begin again."
        )
    try:
        values = {name: _decode(value, file, f"state.{name}") for name, value in fields.items()}
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise _damaged(file.path, f"its header does not describe a state, {error!r}") from error
    values["num_edits"] = check(int, values["num_edits"], f"{path}, num_edits")
    return dataclasses.replace(fresh, **values)


def read_about(path: str | Path) -> dict[str, Any]:
    """Returns the further values that `save_state` was given.

    Raises:
      FileNotFoundError: If the file does not exist.
      ValueError: If the file is damaged, holds no state, or has a later format.

    Example:
      >>> from rome_jax.edit.resources import Resources
      >>> read_about(save_state("state.safetensors", EditorState((), Resources()), about={"seconds": 0.5}))
      {'seconds': 0.5}
    """
    return dict(_open(path)[1]["about"])


def load_weights(path: str | Path, params: Params) -> tuple[Params, frozenset[ChangedWeight]]:
    """Puts the weights of a file that `save_state` wrote into a model, bit for bit.

    Args:
      path: The file.
      params: Weights of the unedited model, which stay valid.

    Returns:
      New params, which share the other leaves, and the weights that were replaced.

    Raises:
      FileNotFoundError: If the file does not exist.
      ValueError: If the file is damaged, or a weight has another shape or type in this model.

    Example:
      >>> from rome_jax.edit.resources import Resources
      >>> kernel = ChangedWeight(Leaf.MLP_DOWN, Part.KERNEL, 2)
      >>> state = EditorState((), Resources())
      >>> path = save_state("state.safetensors", state, params=model.params, changed=[kernel])
      >>> load_weights(path, model.params)[1] == {kernel}
      True
    """
    file, _ = _open(path)
    found = {}
    for name, tensor in file.tensors.items():
        if name.startswith("weight."):
            found[_weight(file.path, name)] = tensor.read()
    blocks = params["blocks"]
    for weight, array in found.items():
        module, name = weight.leaf.value
        stack = blocks.get(module, {}).get(name, {}).get(weight.part.value)
        fits = stack is not None and weight.layer < len(stack)
        if not fits or (stack.shape[1:], stack.dtype) != (array.shape, array.dtype):
            raise ValueError(
                f"{path} holds {weight.name.removeprefix('weight.')} as {array.dtype} {list(array.shape)}, which does "
                "not fit this model: give the model of the earlier run, or begin again."
            )
        replaced = stack.at[weight.layer].set(array)
        if replaced.sharding != stack.sharding:
            replaced = jax.device_put(replaced, stack.sharding)
        projection = blocks[module][name] | {weight.part.value: replaced}
        blocks = blocks | {module: blocks[module] | {name: projection}}
    return params | {"blocks": blocks}, frozenset(found)


def _saved_fields() -> list[str]:
    """Returns the names of the fields of a state that are in files."""
    return [field.name for field in dataclasses.fields(EditorState) if field.name not in _FRESH]


def _open(path: str | Path) -> tuple[StoredFile, _Header]:
    """Opens a file and reads its header."""
    path = Path(check_path(path))
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: give one that save_state wrote.")
    file = open_file(path)
    if _KEY not in file.metadata:
        raise ValueError(f"{path} is no state of an editor: give a file that save_state wrote.")
    header = parse_object(file.metadata[_KEY], f"{path}, metadata", _Header, remedy=_REMEDY)
    if header["format"] > FORMAT:
        raise ValueError(
            f"{path} has format {header['format']}, but rome_jax {__version__} reads formats up to {FORMAT}: update "
            "rome_jax."
        )
    return file, header


def _weight(path: Path, name: str) -> ChangedWeight:
    """Reads the name of a weight's tensor."""
    try:
        _, leaf, part, layer = name.split(".")
        return ChangedWeight(Leaf[leaf], Part[part], int(layer))
    except (KeyError, ValueError):
        raise _damaged(path, f"the tensor {name} is no weight of a layer") from None


def _encode(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """Returns a value as JSON, and adds its arrays by their names in the file."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Delta):
        for index, update in enumerate(value.updates):
            for part, array in update_tensors(update).items():
                arrays[f"{name}.{index}.{part}"] = array
        return {"delta": len(value.updates)}
    if isinstance(value, np.ndarray | jax.Array):
        arrays[name] = np.asarray(value)
        return {"array": "device" if isinstance(value, jax.Array) else "host"}
    if isinstance(value, Mapping):
        return {"map": [[key, _encode(one, f"{name}.{key}", arrays)] for key, one in value.items()]}
    if isinstance(value, tuple | list):
        return {"tuple": [_encode(one, f"{name}.{i}", arrays) for i, one in enumerate(value)]}
    kind = type(value).__name__
    if KINDS.get(kind) is not type(value):
        raise TypeError(f"{name} is a {kind}, which files of states cannot hold: add it to KINDS.")
    names = [field.name for field in dataclasses.fields(KINDS[kind])]
    fields = {one: _encode(getattr(value, one), f"{name}.{one}", arrays) for one in names}
    return {"kind": kind, "fields": fields}


def _decode(value: Any, file: StoredFile, name: str) -> Any:
    """Returns the value that `_encode` has encoded."""
    if not isinstance(value, dict):
        return value
    if "delta" in value:
        tensors = {
            found.removeprefix(f"{name}."): tensor
            for found, tensor in file.tensors.items()
            if found.startswith(f"{name}.")
        }
        updates = read_updates(file.path, tensors)
        if len(updates) != value["delta"]:
            raise _damaged(file.path, f"it holds {len(updates)} of {value['delta']} updates")
        return Delta(tuple(updates))
    if "array" in value:
        array = np.array(file.tensors[name].read())
        if not np.isfinite(array).all():
            raise _damaged(file.path, f"{name} holds numbers that are not finite")
        return jnp.asarray(array) if value["array"] == "device" else array
    if "map" in value:
        return {key: _decode(one, file, f"{name}.{key}") for key, one in value["map"]}
    if "tuple" in value:
        return tuple(_decode(one, file, f"{name}.{i}") for i, one in enumerate(value["tuple"]))
    parts = {one: _decode(part, file, f"{name}.{one}") for one, part in value["fields"].items()}
    try:
        return KINDS[value["kind"]](**parts)
    except ValueError as error:
        raise _damaged(file.path, f"{name} does not fit together, {error}") from error


def _damaged(path: Path, why: str) -> ValueError:
    """Builds the error for a file whose parts do not fit together."""
    return ValueError(f"{path} is damaged ({why}): {_REMEDY}.")
