"""Models as Orbax checkpoints, which can be written and read on any number of devices.

A checkpoint is a directory with model.json, the folder tokenizer, and the folder params, which is an Orbax checkpoint
of its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import typing_extensions
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from rome_jax.files.checked import check
from rome_jax.files.folders import abandoned, creating, staging
from rome_jax.files.json_files import read_object
from rome_jax.files.places import check_path
from rome_jax.files.safetensors_io import CheckpointError, damaged
from rome_jax.files.system_errors import check_space, explaining
from rome_jax.models.families import from_hf, to_hf
from rome_jax.models.precision import MatmulPrecision, as_precision
from rome_jax.models.registry import LanguageModel, as_dtype
from rome_jax.models.sharding import param_shardings
from rome_jax.models.tokenizer import load_tokenizer
from rome_jax.models.transformer import param_shapes
from rome_jax.version import __version__

# Raised when an old reader would not understand a new checkpoint. In format 1, queries, keys and values of a fused
# projection share one axis; since format 2 there is an axis of size 3, as in params, so that devices write their parts.
FORMAT = 2
_MODEL, _TOKENIZER, _PARAMS = "model.json", "tokenizer", "params"


class _Content(typing_extensions.TypedDict):
    """The content of model.json, as far as it is read."""

    format: int
    name: str
    fingerprint: str
    config: dict[str, Any]
    dtypes: dict[str, Any]


def save_orbax(directory: str | Path, model: LanguageModel, *, overwrite: bool = False) -> None:
    """Writes a model as an Orbax checkpoint, with its config, tokenizer and fingerprint.

    Each device writes its part of the params. The directory appears complete or not at all.

    Args:
      directory: A new or empty directory, or an earlier checkpoint, which `overwrite` allows to replace.
      model: The model to save.
      overwrite: Whether to replace an earlier checkpoint of `save_orbax`. Nothing else is ever replaced.

    Raises:
      FileExistsError: If the directory holds a checkpoint and `overwrite` is not set, or holds anything else.
      CheckpointError: If the params do not fit the model's config.

    Example:
      >>> save_orbax("checkpoint", model)
      >>> load_orbax("checkpoint").fingerprint() == model.fingerprint()
      True
    """
    import orbax.checkpoint as ocp  # slow to import, and needed only for checkpoints

    directory = check_orbax_directory(directory, overwrite=overwrite)
    shapes = jax.tree.map(lambda leaf: leaf.shape, param_shapes(model.config))
    if jax.tree.map(lambda leaf: leaf.shape, model.params) != shapes:
        raise CheckpointError("params do not fit the config of this model: replace both together.")
    dtypes = jax.tree.map(lambda leaf: str(leaf.dtype), model.params)
    content = {
        "format": FORMAT,
        "name": model.name,
        "source": model.source,
        "fingerprint": model.fingerprint(),
        "config": to_hf(model.config),
        "dtypes": dtypes,
        "versions": {"rome_jax": __version__, "jax": jax.__version__},
    }
    with explaining(directory), creating(directory.parent), staging(directory.parent) as folder:
        new = folder.resolve() / "checkpoint"
        new.mkdir()
        model.tokenizer.save_pretrained(new / _TOKENIZER)
        check_space(new, sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)))
        # Leaving the context waits for the threads of the checkpointer.
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(new / _PARAMS, model.params)
        (new / _MODEL).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        if directory.exists() and any(directory.iterdir()):
            directory.replace(folder / _replaced(directory))
        new.replace(directory)


def _replaced(directory: Path) -> str:
    """Returns the name of a checkpoint inside the temporary folder while another one takes its place."""
    return f"old-{directory.name}"


def _recover(directory: Path) -> None:
    """Moves a checkpoint back into place, if a process was killed after it moved it away."""
    if directory.exists():
        return
    for left in abandoned(directory.parent):
        moved = left / _replaced(directory)
        if moved.is_dir():
            moved.replace(directory)
            return


def check_orbax_directory(directory: str | Path, *, overwrite: bool = False) -> Path:
    """Checks that a checkpoint can be written to a directory, and returns it as a path.

    Args:
      directory, overwrite: As in `save_orbax`.

    Raises:
      FileExistsError: If the directory holds a checkpoint and `overwrite` is not set, or holds anything else.
    """
    directory = Path(check(str, os.fspath(directory), "directory"))  # tokenizers wants Unicode
    _recover(directory)
    if not directory.exists() and not directory.is_symlink():
        return directory
    if not directory.is_dir():
        raise FileExistsError(f"{directory} is not a directory: give another path.")
    names = {path.name for path in directory.iterdir()}
    if not names:
        return directory
    if not (_MODEL in names and names <= {_MODEL, _TOKENIZER, _PARAMS} and _readable(directory)):
        raise FileExistsError(
            f"{directory} is not empty and not a checkpoint of save_orbax, and nothing else is ever replaced: give a "
            "new directory."
        )
    if not overwrite:
        raise FileExistsError(
            f"{directory} is not empty but holds an earlier checkpoint: set overwrite=True (--overwrite) to replace "
            "it, or give another directory."
        )
    return directory


def _readable(directory: Path) -> bool:
    """Returns whether a directory holds the model.json of `save_orbax`."""
    try:
        read_object(directory / _MODEL, _Content)
    except (OSError, ValueError):
        return False
    return True


def load_orbax(
    directory: str | Path,
    *,
    dtype: Any = None,
    precision: MatmulPrecision | str = jax.lax.Precision.HIGHEST,
    mesh: Mesh | None = None,
) -> LanguageModel:
    """Reads a checkpoint that `save_orbax` wrote, on any number of devices.

    Args:
      directory: The checkpoint's directory.
      dtype: Type of the params, such as "bfloat16". None keeps the stored type and also checks the fingerprint, which
        reads all weights once more.
      precision: Precision of matrix products, as in `load_model`.
      mesh: Devices to split the params over, such as `model_mesh()`; None means one device.

    Returns:
      `LanguageModel`.

    Raises:
      FileNotFoundError: If there is no checkpoint.
      CheckpointError: If the checkpoint is damaged.
      ValueError: If the dtype or precision is unknown, or the mesh does not fit the model.

    Example:
      >>> from rome_jax.models.sharding import model_mesh
      >>> save_orbax("checkpoint", model)
      >>> half = load_orbax("checkpoint", dtype="bfloat16", mesh=model_mesh())
      >>> half.params["ln_f"]["scale"].dtype
      dtype(bfloat16)
    """
    import orbax.checkpoint as ocp  # slow to import, and needed only for checkpoints

    directory, dtype = Path(check_path(directory, "directory")), as_dtype(dtype)
    _recover(directory)
    if not (directory / _MODEL).is_file():
        raise FileNotFoundError(
            f"{directory} has no {_MODEL}: give a directory that save_orbax wrote."
        )
    path = directory / _MODEL
    content = read_object(path, _Content, error=CheckpointError)
    if content["format"] > FORMAT:
        raise CheckpointError(
            f"{path} has format {content['format']}, but rome_jax {__version__} reads formats up to {FORMAT}: update "
            "rome_jax."
        )
    name, config, fingerprint = (
        content["name"],
        from_hf(content["config"], f"{path}: config"),
        content["fingerprint"],
    )
    stored = _with_dtypes(param_shapes(config), content["dtypes"], path)
    for part in (_TOKENIZER, _PARAMS):
        if not (directory / part).is_dir():
            raise CheckpointError(
                f"{directory} lacks the folder {part}: copy or save the checkpoint again."
            )
    config = dataclasses.replace(config, precision=as_precision(precision))
    tokenizer = load_tokenizer(directory / _TOKENIZER, config)
    one = SingleDeviceSharding(jax.local_devices()[0])
    shardings = param_shardings(config, mesh) if mesh else jax.tree.map(lambda _: one, stored)
    wanted = jax.tree.map(
        lambda leaf, sharding: leaf.update(dtype=dtype or leaf.dtype, sharding=sharding),
        stored,
        shardings,
    )
    whole = NamedSharding(mesh, PartitionSpec()) if mesh else one
    target = _without_axis_of_parts(wanted, whole) if content["format"] < 2 else wanted
    place = (directory / _PARAMS).resolve()
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            _check_shapes(checkpointer.metadata(place), target)
            params = checkpointer.restore(place, target)
    except Exception as error:  # a damaged file can raise anything
        raise damaged(directory / _PARAMS, error) from error
    params = jax.tree.map(_in_shape, params, wanted)
    model = LanguageModel(name, config, params, tokenizer, f"directory {directory.resolve()}")
    # Orbax does not notice a changed bit in the weights.
    if dtype is None and model.fingerprint() != fingerprint:
        raise CheckpointError(
            f"the weights in {directory / _PARAMS} do not have the fingerprint in {_MODEL}, so they were damaged or "
            "replaced: copy or save the checkpoint again."
        )
    return model


def _with_dtypes(shapes: Any, dtypes: Mapping[str, Any], path: Path) -> Any:
    """Returns the shapes of all params with the dtypes that model.json gives them.

    Raises:
      CheckpointError: If model.json lacks a dtype, or gives one that weights cannot have.
    """

    def with_dtype(keys: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        found: Any = dtypes
        name = "dtypes"
        try:
            for key in keys:
                found = check(dict[str, Any], found, name).get(key.key)
                name += f".{key.key}"
            return jax.ShapeDtypeStruct(leaf.shape, as_dtype(check(str, found, name)))
        except ValueError as error:
            why = str(error).rstrip(".")
            raise CheckpointError(f"{path} is damaged ({why}): copy or save it again.") from error

    return jax.tree_util.tree_map_with_path(with_dtype, shapes)


def _without_axis_of_parts(leaves: Any, whole: Sharding) -> Any:
    """Returns the leaves of a checkpoint of format 1; those of another shape than ours are read whole."""

    def flat(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        if "qkv" not in [key.key for key in path]:
            return leaf
        *rest, parts, width = leaf.shape
        return leaf.update(shape=(*rest, parts * width), sharding=whole)

    return jax.tree_util.tree_map_with_path(flat, leaves)


def _in_shape(leaf: jax.Array, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    """Brings a leaf of format 1 into our shape."""
    if leaf.shape == wanted.shape:
        return leaf
    return jax.device_put(leaf.reshape(wanted.shape), wanted.sharding)


def _check_shapes(metadata: Any, stored: Any) -> None:
    """Refuses params of other shapes than the config's, before memory for them is reserved."""
    tree = getattr(metadata, "item_metadata", metadata)
    found = {
        jax.tree_util.keystr(path): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(tree, "tree", tree))
    }
    expected = {
        jax.tree_util.keystr(path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(stored)
    }
    if found != expected:
        raise ValueError("its shapes are not those of the config")
