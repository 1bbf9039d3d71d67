"""Trained hypernetworks of MEND and KE: their files, and the models they belong to.

A hypernetwork is stored in one safetensors file. Its tensors are the network's variables, named by their paths; its
header says how they were trained.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import typing_extensions
from flax.traverse_util import flatten_dict, unflatten_dict

from rome_jax.edit.baseline_config import KEConfig, MENDConfig
from rome_jax.edit.config import MethodName
from rome_jax.files.checked import check, shown
from rome_jax.files.json_files import parse_object
from rome_jax.files.places import check_path
from rome_jax.files.safetensors_io import StoredTensor, open_file, write
from rome_jax.models import provenance
from rome_jax.models.provenance import Origin
from rome_jax.models.registry import SHIPPED, LanguageModel
from rome_jax.version import __version__

FORMAT = 1  # increased whenever an old reader would misread a new file
Config = MENDConfig | KEConfig


# The methods that need a hypernetwork, with the types of their hyperparameters.
CONFIG_TYPES: Mapping[MethodName, type[MENDConfig] | type[KEConfig]] = {
    MethodName.MEND: MENDConfig,
    MethodName.KE: KEConfig,
}


class _Header(typing_extensions.TypedDict):
    """The metadata of a file."""

    format: int
    kind: MethodName
    config: dict[str, Any]
    model: str
    fingerprint: str | None
    about: dict[str, Any]
    base: typing_extensions.NotRequired[str | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Hypernetwork:
    """A trained network of MEND or KE.

    Attributes:
      kind: The method, MEND or KE.
      config: The hyperparameters. Those that determine the network's shape are fixed by the training.
      variables: The variables of the linen module, by collection.
      model: The name of the model that the network was trained for.
      fingerprint: The fingerprint of that model's weights; None if it is unknown, as for published files.
      about: How the network was trained, as plain values: settings, results and versions.
      base: The base fingerprint of that model; empty if it is unknown, as for files of earlier versions.
    """

    kind: MethodName
    config: Config
    variables: Mapping[str, Any] = dataclasses.field(repr=False)
    model: str
    fingerprint: str | None
    about: Mapping[str, Any] = dataclasses.field(repr=False, default_factory=dict)
    base: str = ""

    def check(self, model: LanguageModel) -> Hypernetwork:
        """Returns the hypernetwork itself if it was trained for this model.

        The comparison reads all of the model's weights. A hypernetwork without a fingerprint passes.

        Raises:
          ValueError: If it was trained for other weights.
        """
        provenance.require(self.origin, model, *self._refusal(model))
        return self

    def check_related(self, model: LanguageModel) -> Hypernetwork:
        """Returns the hypernetwork itself if it was trained for this model, or for one that this model is an edit of.

        It reads few weights of a model that was checked before, and of its edits.

        Raises:
          ValueError: If it was trained for another model.
        """
        if not provenance.related(self.origin, model):
            provenance.require(self.origin, model, *self._refusal(model), provenance.BASE)
        return self

    @property
    def origin(self) -> Origin:
        """The model that the network was trained for, to be compared with another."""
        return Origin(self.model, self.fingerprint or "", self.base)

    def _refusal(self, model: LanguageModel) -> tuple[str, str]:
        """Returns the subject and the remedy of the message for another model."""
        command = training_command(self.kind, model.name)
        return (
            f"the hypernetwork of {self.kind} was trained for",
            f"load that model, or train one for this model with `{command}`",
        )

    def digest(self) -> str:
        """Returns the SHA-256 of the variables, which identifies the network."""
        found = hashlib.sha256()
        for name, value in sorted(flatten_dict(self.variables, sep=".").items()):
            found.update(name.encode() + np.asarray(value, np.float32).tobytes())
        return found.hexdigest()


def training_command(kind: MethodName, model_name: str) -> str:
    """Returns the command that trains a hypernetwork for a model.

    Example:
      >>> training_command(MethodName.KE, "gpt2-xl")
      'python -m eval.train_hypernetwork --alg_name=KE --model_name=gpt2-xl'
    """
    return f"python -m eval.train_hypernetwork --alg_name={kind} --model_name={model_name}"


def save(
    path: str | Path, hypernetwork: Hypernetwork, dtype: np.typing.DTypeLike | None = None
) -> Path:
    """Writes a hypernetwork to one file, either completely or not at all.

    Args:
      path: The file, which ends in .safetensors. An existing file is replaced.
      hypernetwork: The hypernetwork to write.
      dtype: The type of the network's parameters in the file, such as np.float16; None means float32. Running
        statistics are always float32.

    Returns:
      The path.

    Raises:
      ValueError: If the path has another suffix.

    Example:
      >>> hypernetwork = load_shipped(MethodName.MEND, model)
      >>> save("mend.safetensors", hypernetwork, np.float16).name
      'mend.safetensors'
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} must end in .safetensors.")
    header = {
        "format": FORMAT,
        "kind": hypernetwork.kind.value,
        "config": hypernetwork.config.to_dict(),
        "model": hypernetwork.model,
        "fingerprint": hypernetwork.fingerprint,
        "base": hypernetwork.base,
        "about": dict(hypernetwork.about),
    }
    arrays = {
        name: np.asarray(
            value, dtype if dtype is not None and name.startswith("params") else np.float32
        )
        for name, value in flatten_dict(hypernetwork.variables, sep=".").items()
    }
    specs = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    write(path, specs, arrays.values(), {"rome_jax": json.dumps(header)})
    return path


def load(path: str | Path, model: LanguageModel | None = None) -> Hypernetwork:
    """Reads a file that `save` wrote.

    Args:
      path: The file.
      model: The model that the hypernetwork must have been trained for; None skips this check.

    Returns:
      The hypernetwork, with float32 variables.

    Raises:
      FileNotFoundError: If the file does not exist.
      ValueError: If the file is damaged, holds no hypernetwork, or belongs to another model.

    Example:
      >>> path = save("mend.safetensors", load_shipped(MethodName.MEND, model))
      >>> load(path, model).config.rank
      64
    """
    path = Path(check_path(path))
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not a file: give a file that eval.train_hypernetwork wrote."
        )
    refusal = f"{path} holds no hypernetwork that rome_jax {__version__} can read"
    remedy = "give a file that eval.train_hypernetwork wrote"
    try:
        file = open_file(path)
        text = file.metadata.get("rome_jax", "")
        header = parse_object(text, "its metadata", dict[str, Any], remedy="it was cut short")
        version = check(int, header.get("format", 0), "format")
        if version > FORMAT:
            raise ValueError(f"format {version} is newer than {FORMAT}")
        header = check(_Header, header, "its metadata")
        if header["kind"] not in CONFIG_TYPES:
            raise ValueError(f"{header['kind']} has no hypernetwork")
        config = CONFIG_TYPES[header["kind"]].from_dict(header["config"])
        variables = _variables(file.tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{refusal} ({str(error).rstrip('.')}): {remedy}.") from error
    hypernetwork = Hypernetwork(
        header["kind"],
        config,
        variables,
        header["model"],
        header["fingerprint"],
        header["about"],
        header.get("base") or "",
    )
    return hypernetwork if model is None else hypernetwork.check(model)


def _variables(tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """Reads the variables of a network, which must be finite, in float32."""
    found = {}
    for name, tensor in tensors.items():
        array = tensor.read()
        if not np.isfinite(array.astype(np.float32)).all():
            raise ValueError(f"{name} holds NaN or infinity")
        found[name] = jnp.asarray(array, jnp.float32)
    try:
        return unflatten_dict(found, sep=".")
    except (TypeError, ValueError, AttributeError):  # one name is the beginning of another
        raise ValueError("the names of its tensors contradict each other") from None


def load_shipped(kind: MethodName, model: LanguageModel) -> Hypernetwork:
    """Reads the hypernetwork that comes with an embedded model.

    Args:
      kind: The method, MEND or KE.
      model: The model, whose weights must be those that the network was trained for.

    Returns:
      The hypernetwork.

    Raises:
      ValueError: If no hypernetwork comes with this model, or the model's weights have been changed.

    Example:
      >>> load_shipped(MethodName.KE, model).config.lstm_width
      64
    """
    if model.name not in SHIPPED:
        raise ValueError(
            f"no hypernetwork of {kind} comes with model {shown(model.name)} (only with {', '.join(SHIPPED)}): train "
            f"one with `{training_command(kind, model.name)}`, or give a file with --hypernetwork (hypernetwork=)."
        )
    assets = importlib.resources.files("rome_jax") / "factworld" / "assets" / "hypernetworks"
    return load(str(assets / f"{kind.lower()}_{SHIPPED[model.name]}.safetensors"), model)
