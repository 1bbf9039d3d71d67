"""Trained hypernetworks: their files, which model each belongs to, and the edits that they compute.

A file is one safetensors file: the network's variables by their path, and where they come from in its header.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open

from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import TokenBatch, pad
from rome_jax.edit.baseline_config import KEConfig, MENDConfig
from rome_jax.edit.config import MethodName
from rome_jax.edit.stages.chunks import check_requests, map_chunks
from rome_jax.edit.stages.gradients import GradientFactors, gradient_factors, projection_sizes
from rome_jax.edit.stages.targets import tokenize_request_targets
from rome_jax.files.safetensors_io import write
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import SHIPPED, LanguageModel
from rome_jax.version import __version__

FORMAT = 1  # raised when an old reader would misread a new file
# They can differ from those of the training: they do not change the network's shape.
_FREE = ("lr_scale", "rate_order", "max_scale")

Config = MENDConfig | KEConfig


# The methods that need a hypernetwork, and the type of their hyperparameters.
CONFIG_TYPES: Mapping[MethodName, type[MENDConfig] | type[KEConfig]] = {
    MethodName.MEND: MENDConfig,
    MethodName.KE: KEConfig,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Hypernetwork:
    """A trained network of MEND or KE.

    Attributes:
      kind: which of them.
      config: hyperparameters; those that decide its shape are fixed.
      variables: of the linen module, by collection.
      model: name of the model that it was trained for.
      fingerprint: of that model's weights; None if nobody knows it, as of published files.
      about: how it came about, as plain values: settings and results of the training, versions.
    """

    kind: MethodName
    config: Config
    variables: Mapping[str, Any] = dataclasses.field(repr=False)
    model: str
    fingerprint: str | None
    about: Mapping[str, Any] = dataclasses.field(repr=False, default_factory=dict)

    def check(self, model: LanguageModel) -> Hypernetwork:
        """Returns itself if it was trained for this model; reads all weights.

        Raises:
          ValueError: it was not.
        """
        own = None if self.fingerprint is None else model.fingerprint()
        if self.fingerprint != own:
            raise ValueError(
                f"the hypernetwork of {self.kind} was trained for {self.model} (weights {self.fingerprint[:12]}), not "
                f"for {model.name} (weights {own[:12]}): load that model, or train one for this with "
                f"`{training_command(self.kind, model.name)}`."
            )
        return self

    def digest(self) -> str:
        """SHA-256 of the variables: which network this is."""
        found = hashlib.sha256()
        for name, value in sorted(flatten_dict(self.variables, sep=".").items()):
            found.update(name.encode() + np.asarray(value, np.float32).tobytes())
        return found.hexdigest()


def training_command(kind: MethodName, model_name: str) -> str:
    """What to type for a hypernetwork of one's own."""
    return f"python -m eval.train_hypernetwork --alg_name={kind} --model_name={model_name}"


def save(path: str | Path, hypernetwork: Hypernetwork, dtype: np.typing.DTypeLike = None) -> Path:
    """Writes a hypernetwork to one file, whole or not at all.

    Args:
      path: ends in .safetensors; replaced if it exists.
      hypernetwork: what to write.
      dtype: of the network's parameters in the file, such as np.float16; None keeps float32. Running statistics are
        float32 always.

    Raises:
      ValueError: another suffix.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{str(path)!r} must end in .safetensors.")
    header = {
        "format": FORMAT,
        "kind": hypernetwork.kind.value,
        "config": hypernetwork.config.to_dict(),
        "model": hypernetwork.model,
        "fingerprint": hypernetwork.fingerprint,
        "about": dict(hypernetwork.about),
    }
    arrays = {
        name: np.asarray(
            value, dtype if dtype is not None and name.startswith("params") else np.float32
        )
        for name, value in flatten_dict(hypernetwork.variables, sep=".").items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    specs = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    write(path, specs, arrays.values(), {"rome_jax": json.dumps(header)})
    return path


def load(path: str | Path, model: LanguageModel | None = None) -> Hypernetwork:
    """Reads what `save` wrote.

    Args:
      path: of the file.
      model: that it must have been trained for; None compares nothing.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged file, one that holds no hypernetwork, or one of another model.

    Example:
      >>> load("mend/hypernetwork.safetensors", model).config.rank  # doctest: +SKIP
      64
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not a file: name one that eval.train_hypernetwork wrote."
        )
    try:
        with safe_open(path, framework="np") as file:
            header = json.loads((file.metadata() or {})["rome_jax"])
            kind = MethodName(header["kind"])
            if kind not in CONFIG_TYPES:
                raise ValueError(f"{kind} has no hypernetwork")
            config = CONFIG_TYPES[kind].from_dict(header["config"])
            names = list(file.keys())
            tensors = {name: jnp.asarray(file.get_tensor(name), jnp.float32) for name in names}
            if header["format"] > FORMAT:
                raise ValueError(f"format {header['format']}, and {FORMAT} is the newest known")
            origin = (header["model"], header["fingerprint"], header["about"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} holds no hypernetwork that rome_jax {__version__} reads ({type(error).__name__}: {error}): name a "
            "file that eval.train_hypernetwork wrote."
        ) from error
    variables = unflatten_dict(tensors, sep=".")
    hypernetwork = Hypernetwork(kind, config, variables, *origin)
    return hypernetwork if model is None else hypernetwork.check(model)


def load_shipped(kind: MethodName, model: LanguageModel) -> Hypernetwork:
    """The hypernetwork that comes with an embedded model.

    Raises:
      ValueError: none comes with this model, or its weights are others by now.
    """
    if model.name not in SHIPPED:
        raise ValueError(
            f"no hypernetwork of {kind} comes with model {model.name!r} (only with {', '.join(SHIPPED)}): train one "
            f"with `{training_command(kind, model.name)}`, or give one with --hypernetwork (hypernetwork=)."
        )
    assets = importlib.resources.files("rome_jax") / "factworld" / "assets" / "hypernetworks"
    return load(str(assets / f"{kind.lower()}_{SHIPPED[model.name]}.safetensors"), model)


def condition_tokens(
    tokenizer, requests: Sequence[EditRequest], length: int | None = None
) -> TokenBatch:
    """Prompts with the whole new targets, which KE reads: [N, T], padded on the right to `length` if given."""
    ids = tokenizer([r.text + r.target_text for r in requests], add_special_tokens=False)
    return pad(ids["input_ids"], multiple=length or 8)


def compute_deltas(
    network: nn.Module,
    model: LanguageModel,
    requests: Sequence[EditRequest],
    hypernetwork: Hypernetwork,
    chunk_size: int,
    progress: bool,
) -> Delta:
    """N independent edits of a network of either kind; see `mend.compute_deltas`."""
    config = network.config
    check_requests(model, requests, config, chunk_size)
    _check_sizes(network, model, hypernetwork)
    # One shape for all chunks: the number of tokens is the rank of their updates.
    arrays = (
        tokenize_request_targets(model.tokenizer, requests, model.config.context_length),
        condition_tokens(model.tokenizer, requests),
    )

    def compute_chunk(chunk: Sequence[int]) -> Delta:
        inputs, condition = jax.tree.map(lambda leaf: leaf[np.array(chunk)], arrays)
        factors = gradient_factors(model.params, model.config, inputs, config.layers, config.leaves)
        return _apply(network, hypernetwork.variables, factors, condition)

    rows, label = range(len(requests)), hypernetwork.kind.value
    return map_chunks(compute_chunk, rows, rows, chunk_size, label, progress)


_apply = jax.jit(
    lambda network, variables, factors, condition: network.apply(variables, factors, condition),
    static_argnums=0,
)


def _check_sizes(network: nn.Module, model: LanguageModel, hypernetwork: Hypernetwork) -> None:
    """Refuses a hypernetwork of a model of other sizes."""

    def factor(size):
        return jax.ShapeDtypeStruct((1, len(network.config.layers), 1, size), jnp.float32)

    factors = {
        leaf.name: GradientFactors(*map(factor, projection_sizes(model.config, leaf)))
        for leaf in network.config.leaves
    }
    tokens = TokenBatch(np.zeros((1, 1), np.int32), np.ones((1, 1), bool))
    own = jax.eval_shape(network.init, jax.random.key(0), factors, tokens)
    if jax.tree.map(np.shape, own) != jax.tree.map(np.shape, hypernetwork.variables):
        raise ValueError(
            f"hypernetwork was trained for {hypernetwork.model}, whose MLPs are of another size than those of "
            f"{model.name}: train one with `{training_command(hypernetwork.kind, model.name)}`."
        )


def check_shape(config: Config, hypernetwork: Hypernetwork) -> None:
    """Refuses a hypernetwork of another method or shape.

    Raises:
      ValueError: naming what differs.
    """
    trained = hypernetwork.config
    if type(config) is not type(trained):
        wanted = type(config).__name__.removesuffix("Config")
        raise ValueError(
            f"hypernetwork is one of {hypernetwork.kind}: give {wanted} one that was trained for it."
        )
    for field in dataclasses.fields(config):
        asked, own = getattr(config, field.name), getattr(trained, field.name)
        if field.name not in _FREE and asked != own:
            raise ValueError(
                f"{field.name}={asked} is not what the hypernetwork was trained with, {own}: take its own config."
            )
