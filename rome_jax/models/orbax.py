"""Models as Orbax checkpoints, written and read on any number of devices.

checkpoint/    model.json, tokenizer/ and params/; the last is an Orbax checkpoint of its own
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, SingleDeviceSharding

from rome_jax.files.safetensors_io import CheckpointError, damaged
from rome_jax.models.config import from_hf, to_hf
from rome_jax.models.forward import param_shapes
from rome_jax.models.registry import LanguageModel, as_dtype, as_precision, load_tokenizer
from rome_jax.models.sharding import param_shardings
from rome_jax.version import __version__

FORMAT = 1  # raised when an old reader would misread a new checkpoint
_MODEL, _TOKENIZER, _PARAMS = "model.json", "tokenizer", "params"


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
      mesh: devices over which the params are split, such as `model_mesh()`; None means one
        device.

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
        raise damaged(directory / _MODEL, error) from error
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
        raise damaged(directory / _PARAMS, error) from error
    model = LanguageModel(name, config, params, tokenizer, f"directory {directory.resolve()}")
    # A changed bit in the weights is nothing that Orbax notices.
    if dtype is None and model.fingerprint() != fingerprint:
        raise CheckpointError(
            f"the weights in {directory / _PARAMS} do not have the fingerprint that {_MODEL} names: they were damaged "
            "or exchanged; copy or save the checkpoint again."
        )
    return model
