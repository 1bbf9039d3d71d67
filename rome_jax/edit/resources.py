"""What methods need in addition to a model, requests and hyperparameters: second moments and hypernetworks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rome_jax.edit.baseline_config import KEConfig, MENDConfig
from rome_jax.edit.config import Hyperparameters, MethodName, model_key
from rome_jax.edit.hypernetworks import networks as hypernetworks
from rome_jax.edit.hypernetworks import released as released_hypernetworks
from rome_jax.edit.hypernetworks.edits import check_sizes
from rome_jax.edit.hypernetworks.networks import CONFIG_TYPES, Hypernetwork
from rome_jax.edit.hypernetworks.steps import make_network
from rome_jax.edit.spread_config import MEMITConfig
from rome_jax.files import extras
from rome_jax.files.checked import shown
from rome_jax.models.registry import LanguageModel
from rome_jax.moments import null_space, sources
from rome_jax.moments.shipped import is_shipped
from rome_jax.moments.sources import Source


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a method needs besides a model, requests and hyperparameters.

    Attributes:
      second_moments: Second moment C of each edited layer, of the unedited model: a `SecondMoment`. AlphaEdit also
        takes a `NullSpace`.
      hypernetwork: Hypernetwork of MEND or KE.
    """

    second_moments: Mapping[int, Any] | None = None
    hypernetwork: Hypernetwork | None = None


def check_second_moments(source: str | None, model_name: str, config: Hyperparameters) -> None:
    """Checks before a large model is loaded that an edit has the second moments that it needs.

    Args:
      source: Value of the flag --second_moments.
      model_name: Name of the model.
      config: Hyperparameters.

    Raises:
      ValueError: If the edit needs second moments, and `source` is "shipped" and none are shipped with the model, or
        `source` is a file of null spaces and the method does not take them.
      MissingPackageError: If `source` is a file of null spaces, and torch is not installed.

    Example:
      >>> check_second_moments("null_space_project.pt", "gpt2-xl", config)
      Traceback (most recent call last):
      ValueError: second_moments=null_space_project.pt holds AlphaEdit's projections and no second moments, which ...
    """
    _check_kind(source, config)
    if config.needs_second_moments and null_space.is_null_space_file(source):
        extras.check("torch", "convert", f"second_moments={source}, which is in PyTorch's format,")
    if config.needs_second_moments and source == Source.SHIPPED and not is_shipped(model_name):
        name = model_name if model_key(model_name) in config.published else "gpt2-xl"
        raise ValueError(
            f"no second moments come with model {shown(model_name)}: leave out --second_moments=shipped, or edit "
            "without them, "
            f"--config=configs/{'memit' if isinstance(config, MEMITConfig) else 'rome'}.py:{name} "
            "--config.mom2_adjustment=False."
        )


def read_second_moments(
    source: str | None, model: LanguageModel, config: Hyperparameters
) -> Mapping[int, Any] | None:
    """Reads the second moments of the edited layers, or for AlphaEdit their null spaces.

    Args:
      source: Value of the flag --second_moments. None reads those in the package. The null_space_project.pt of
        AlphaEdit's authors gives a `NullSpace` of each layer.
      model: Model that they must belong to.
      config: Hyperparameters.

    Returns:
      The second moments or null spaces by layer, or None if the edit does not use them.

    Raises:
      ValueError: If the second moments belong to another model or layer, a file is damaged, or the method does not take
        null spaces.
      OSError: If a file does not exist or a download fails.

    Example:
      >>> sorted(read_second_moments(None, model, config))
      [0]
    """
    if not config.needs_second_moments:
        return None
    _check_kind(source, config)
    if source is not None and null_space.is_null_space_file(source):
        return null_space.read_null_spaces(source, config.layers, model)
    return sources.read(source, config.written_layers, model)


def _check_kind(source: str | None, config: Hyperparameters) -> None:
    """Refuses null spaces for a method that needs second moments."""
    takes = config.takes_null_spaces or not config.needs_second_moments
    if source is not None and null_space.is_null_space_file(source) and not takes:
        method = type(config).__name__.removesuffix("Config")
        raise ValueError(null_space.refusal(source, method))


def read_hypernetwork(
    source: str | None, model: LanguageModel, algorithm: MethodName, config: Hyperparameters
) -> Hypernetwork | None:
    """Reads the hypernetwork of a method.

    Args:
      source: Value of the flag --hypernetwork: a file that eval.train_hypernetwork wrote, or a published .pt file. None
        reads the one in the package.
      model: Model that it must belong to.
      algorithm: Name of the method.
      config: Hyperparameters of the method.

    Returns:
      The hypernetwork, or None if the method does not use one.

    Raises:
      ValueError: If the hypernetwork belongs to another model, method or configuration, the file is damaged, or the
        package has none for this model.
      OSError: If the file does not exist.
    """
    if algorithm not in CONFIG_TYPES:
        if source is not None:
            raise ValueError(
                f"--hypernetwork={source} is only for {', '.join(CONFIG_TYPES)}: leave it out."
            )
        return None
    if source is None:
        return hypernetworks.load_shipped(MethodName(algorithm), model)
    if source.endswith(".pt"):
        assert isinstance(config, MENDConfig | KEConfig)  # the methods in CONFIG_TYPES
        return released_hypernetworks.read(source, model, config)
    network = load_network(source, algorithm)
    try:
        check_sizes(make_network(network.config, model.config), model, network)
    except ValueError as error:
        raise ValueError(f"--hypernetwork={source}: {error}") from error
    return network.check(model)


def load_network(source: str, algorithm: MethodName) -> Hypernetwork:
    """Loads a hypernetwork and checks that it was trained for the method."""
    network = hypernetworks.load(source)
    if network.kind != algorithm:
        raise ValueError(
            f"--hypernetwork={source} was trained for {network.kind}: give one that was trained for {algorithm}."
        )
    return network
