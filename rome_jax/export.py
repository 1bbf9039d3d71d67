"""Edits and models as files: delta files and Orbax checkpoints. `rome_jax.save_hf` writes Hugging Face directories.

edits/sport.safetensors    one edit or several, in order. The tensors `<update>.<leaf>.<layer | left | right>` are
                           the factors of their updates, `<update>.<leaf>.<part>.<layer | change>` dense ones;
                           the header holds the `Provenance` of each, as JSON
checkpoint/                model.json, tokenizer/ and params/; the last is an Orbax checkpoint of its own
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding
from safetensors import safe_open

from rome_jax.edit.delta import Update, merge_deltas
from rome_jax.models.config import from_hf, to_hf
from rome_jax.models.forward import param_shapes
from rome_jax.models.interventions import Delta, DenseUpdate, Leaf, LowRankUpdate, Part
from rome_jax.models.registry import LanguageModel, as_dtype, as_precision, load_tokenizer
from rome_jax.models.safetensors_io import CheckpointError, StoredTensor, read_header, write
from rome_jax.saved_edits import Provenance, SavedEdit
from rome_jax.sharding import param_shardings
from rome_jax.version import __version__

SUFFIX = ".safetensors"
FORMAT = 1  # of both forms; raised when an old reader would misread a new file
# Tensors of an update: their dimensions.
_FACTORS = {"layer": 0, "left": 2, "right": 2}
_DENSE = {Part.KERNEL: {"layer": 0, "change": 2}, Part.BIAS: {"layer": 0, "change": 1}}
_MODEL, _TOKENIZER, _PARAMS = "model.json", "tokenizer", "params"


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


def save_orbax(directory: str | Path, model: LanguageModel) -> None:
    """Writes a model as an Orbax checkpoint, with its config, its tokenizer and its fingerprint beside the params.

    Params are stored as they lie, each device its part. The directory appears whole or not at all.

    Args:
      directory: new or empty.
      model: what to save.

    Raises:
      FileExistsError: the directory holds something.
      CheckpointError: params that are not of the model's config.

    Example:
      >>> save_orbax("checkpoint", edited)  # doctest: +SKIP
    """
    import orbax.checkpoint as ocp  # slow to import, needed for checkpoints alone

    directory = check_orbax_directory(directory)
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
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".saving-") as folder:
        staging = Path(folder).resolve() / "checkpoint"
        staging.mkdir()
        model.tokenizer.save_pretrained(staging / _TOKENIZER)
        with ocp.StandardCheckpointer() as checkpointer:  # which waits for its threads at the end
            checkpointer.save(staging / _PARAMS, model.params)
        (staging / _MODEL).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        staging.replace(directory)


def check_orbax_directory(directory: str | Path) -> Path:
    """Returns the directory if a checkpoint can be written there.

    Raises:
      FileExistsError: it holds something, or is a file.
    """
    directory = Path(directory)
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists: give a new directory, or remove it first.")
    return directory


def load_orbax(
    directory: str | Path,
    *,
    dtype: Any = None,
    precision: jax.lax.Precision | str = jax.lax.Precision.HIGHEST,
    mesh: Mesh | None = None,
) -> LanguageModel:
    """Reads what `save_orbax` wrote, on any number of devices, whatever it was written on.

    Args:
      directory: of the checkpoint.
      dtype: of the params, such as "bfloat16"; None keeps what is stored and checks the fingerprint too, which reads
        all weights once more.
      precision: of matrix products, as in `load_model`.
      mesh: devices over which the params are split, such as `rome_jax.sharding.model_mesh()`; None means one device.

    Returns:
      `LanguageModel`.

    Raises:
      FileNotFoundError: no such checkpoint.
      CheckpointError: a damaged checkpoint.
      ValueError: a dtype or precision that there is not, or a mesh that does not suit the model.

    Example:
      >>> model = load_orbax("checkpoint", dtype="bfloat16", mesh=model_mesh())  # doctest: +SKIP
    """
    import orbax.checkpoint as ocp  # slow to import, needed for checkpoints alone

    directory, dtype = Path(directory), as_dtype(dtype)
    if not (directory / _MODEL).is_file():
        raise FileNotFoundError(
            f"{directory} has no {_MODEL}: name a directory that save_orbax wrote."
        )
    try:
        content = json.loads((directory / _MODEL).read_text())
        name, config, fingerprint = (
            content["name"],
            from_hf(content["config"]),
            content["fingerprint"],
        )
        stored = jax.tree.map(
            lambda leaf, kept: jax.ShapeDtypeStruct(leaf.shape, as_dtype(kept)),
            param_shapes(config),
            content["dtypes"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(directory / _MODEL, error) from error
    config = dataclasses.replace(config, precision=as_precision(precision))
    tokenizer = load_tokenizer(directory / _TOKENIZER, config)
    one = SingleDeviceSharding(jax.devices()[0])
    shardings = param_shardings(config, mesh) if mesh else jax.tree.map(lambda _: one, stored)
    target = jax.tree.map(
        lambda leaf, sharding: leaf.update(dtype=dtype or leaf.dtype, sharding=sharding),
        stored,
        shardings,
    )
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            params = checkpointer.restore((directory / _PARAMS).resolve(), target)
    except Exception as error:  # whatever a damaged file makes it raise
        raise _damaged(directory / _PARAMS, error) from error
    model = LanguageModel(name, config, params, tokenizer, f"directory {directory.resolve()}")
    # A changed bit in the weights is nothing that Orbax notices.
    if dtype is None and model.fingerprint() != fingerprint:
        raise CheckpointError(
            f"the weights in {directory / _PARAMS} do not have the fingerprint that {_MODEL} names: they were damaged "
            "or exchanged; copy or save the checkpoint again."
        )
    return model


def _damaged(path: Path, error: Exception) -> CheckpointError:
    why = " ".join(str(error).split())[:160]  # Orbax may add pages
    return CheckpointError(
        f"{path} is damaged or incomplete ({type(error).__name__}: {why}): copy or save it again."
    )
