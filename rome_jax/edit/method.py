"""Editing methods by name: their hyperparameters, and one way to compute N independent edits with any of them."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from rome_jax.data.request import EditRequest
from rome_jax.edit import original_hparams as hparams
from rome_jax.edit.baseline_config import (
    FTConfig,
    FTVariant,
    KEConfig,
    KNConfig,
    MENDConfig,
)
from rome_jax.edit.config import Hyperparameters, MEMITConfig, ROMEConfig
from rome_jax.edit.hypernetworks import networks as hypernetworks
from rome_jax.edit.hypernetworks import released as released_hypernetworks
from rome_jax.edit.hypernetworks.networks import Hypernetwork, HypernetworkKind
from rome_jax.edit.methods import fine_tune, ke, knowledge_neurons, memit, mend, rome
from rome_jax.edit.stages.contexts import sample_templates
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import SHIPPED, LanguageModel
from rome_jax.moments import files as moment_files


class Algorithm(enum.StrEnum):
    """Names of methods, as tables and result folders have them."""

    ROME = "ROME"
    FT = "FT"
    FT_L = "FT-L"
    FT_ATTN = "FT-attn"
    KN = "KN"
    MEND = "MEND"
    KE = "KE"
    MEMIT = "MEMIT"


@dataclasses.dataclass(frozen=True)
class Method:
    """What is known of a method before a model is loaded.

    Attributes:
      for_model: model name -> published hyperparameters; ValueError if there are none.
      config_type: of its hyperparameters.
      config_file: where they are as a config file; %s stands for a model.
      factored: whether its deltas are of low rank: N of them are scored in one batch.
      compute_deltas: the common signature of methods (see CONTRIBUTING.md).
    """

    for_model: Callable[[str], Hyperparameters]
    config_type: type[Hyperparameters]
    config_file: str
    factored: bool
    compute_deltas: Callable[..., Delta]


def _fine_tuning(variant: FTVariant) -> Method:
    def for_model(name: str) -> FTConfig:
        return FTConfig.for_model(name, variant)

    file = f"configs/ft.py:%s,{variant.value}"
    return Method(for_model, FTConfig, file, False, fine_tune.compute_deltas)


METHODS: Mapping[Algorithm, Method] = {
    Algorithm.ROME: Method(
        ROMEConfig.for_model, ROMEConfig, "configs/rome.py:%s", True, rome.compute_deltas
    ),
    Algorithm.FT: _fine_tuning(FTVariant.FT),
    Algorithm.FT_L: _fine_tuning(FTVariant.FT_L),
    Algorithm.FT_ATTN: _fine_tuning(FTVariant.FT_ATTN),
    Algorithm.KN: Method(
        KNConfig.for_model, KNConfig, "configs/kn.py:%s", True, knowledge_neurons.compute_deltas
    ),
    Algorithm.MEND: Method(
        MENDConfig.for_model, MENDConfig, "configs/mend.py:%s", True, mend.compute_deltas
    ),
    Algorithm.KE: Method(KEConfig.for_model, KEConfig, "configs/ke.py:%s", True, ke.compute_deltas),
    Algorithm.MEMIT: Method(
        MEMITConfig.for_model, MEMITConfig, "configs/memit.py:%s", True, memit.compute_deltas
    ),
}


def read_config(
    algorithm: Algorithm,
    model_name: str,
    values: ConfigDict | None = None,
    hparams_fname: str | Path | None = None,
    hypernetwork: str | None = None,
) -> Hyperparameters:
    """Hyperparameters of --config, of a JSON file of the original, or else those of a hypernetwork or the model.

    Raises:
      ValueError: both are given; neither, and none are known; or bad values: what to do.
    """
    method = METHODS[algorithm]
    if values is not None and hparams_fname is not None:
        raise ValueError("--config and --hparams_fname both give hyperparameters: leave one out.")
    if hparams_fname is not None:
        return hparams.read(hparams_fname, method.config_type)
    if values is not None:
        return method.config_type.from_dict(values.to_dict())
    if algorithm in list(HypernetworkKind) and hypernetwork and not hypernetwork.endswith(".pt"):
        return _load_network(hypernetwork, algorithm).config
    try:
        return method.for_model(model_name)
    except ValueError:
        raise ValueError(
            f"no {algorithm} layer is known for model {model_name!r}: name one, as in "
            f'--config={method.config_file % "gpt2-xl"} --config.layers="(5,)", or give a known model, such as '
            f"{', '.join(SHIPPED)}."
        ) from None


def needs_second_moments(config: Hyperparameters) -> bool:
    """Whether edits of this configuration use second moments."""
    return getattr(config, "mom2_adjustment", False)


def check_second_moments(source: str | None, model_name: str, config: Hyperparameters) -> None:
    """Says what is missing before a large model is loaded.

    Raises:
      ValueError: an edit that needs second moments of a model that comes without them, and no --second_moments.
    """
    if needs_second_moments(config) and source is None and model_name not in SHIPPED:
        raise ValueError(
            f"no second moments come with model {model_name!r}: give --second_moments=..., or edit without them, "
            f"--config=configs/{'memit' if isinstance(config, MEMITConfig) else 'rome'}.py:gpt2-xl "
            "--config.mom2_adjustment=False."
        )


def read_second_moments(
    source: str | None, model: LanguageModel, config: Hyperparameters
) -> Mapping[int, moment_files.SecondMoment] | None:
    """Second moments of the edited layers, from --second_moments or from the package; None if the edit uses none.

    Raises:
      ValueError: second moments of another model or layer, or a damaged file.
      OSError: nothing there, or a download that failed.
    """
    if not needs_second_moments(config):
        return None
    if source is None:
        return moment_files.load_shipped(model.name)
    return moment_files.read(source, config.layers, model)


def read_hypernetwork(
    source: str | None, model: LanguageModel, algorithm: Algorithm, config: Hyperparameters
) -> Hypernetwork | None:
    """The network of --hypernetwork, or the one that comes with the model; None if the method has none.

    Args:
      source: what eval.train_hypernetwork wrote, or a published .pt file.
      model: that it must belong to.
      algorithm, config: the method.

    Raises:
      ValueError: a network of another model or configuration, a damaged file, or none for this model.
      OSError: nothing there.
    """
    if algorithm not in list(HypernetworkKind):
        if source is not None:
            raise ValueError(
                f"--hypernetwork={source} is for {', '.join(HypernetworkKind)}: leave it out."
            )
        return None
    if source is None:
        return hypernetworks.load_shipped(HypernetworkKind(algorithm), model)
    if source.endswith(".pt"):
        return released_hypernetworks.read(source, model, config)
    return _load_network(source, algorithm).check(model)


def _load_network(source: str, algorithm: Algorithm) -> Hypernetwork:
    network = hypernetworks.load(source)
    if network.kind != algorithm:
        raise ValueError(
            f"--hypernetwork={source} is one of {network.kind}: give {algorithm} one that was trained for it."
        )
    return network


@dataclasses.dataclass(frozen=True)
class Editor:
    """A method made ready for one model: all that its edits share is computed once.

    Attributes:
      algorithm, model, config: which edits these are.
      seed: of the context templates.
      options: further arguments of `compute_deltas`: second moments, templates, a hypernetwork, chunk size.
    """

    algorithm: Algorithm
    model: LanguageModel
    config: Hyperparameters
    seed: int
    options: Mapping[str, Any] = dataclasses.field(repr=False)

    @classmethod
    def prepare(
        cls,
        algorithm: Algorithm,
        model: LanguageModel,
        config: Hyperparameters,
        *,
        moments_source: str | None = None,
        hypernetwork_source: str | None = None,
        seed: int = 0,
        chunk_size: int = 8,
    ) -> Editor:
        """Reads second moments and hypernetworks and samples context templates, where the method uses them.

        Args:
          algorithm, model, config: which edits.
          moments_source: as the flag --second_moments.
          hypernetwork_source: as the flag --hypernetwork.
          seed: of the context templates.
          chunk_size: requests that are optimised at once; bounds the memory.

        Raises:
          ValueError, OSError: as `read_second_moments` and `read_hypernetwork`.
        """
        options: dict[str, Any] = {"chunk_size": chunk_size}
        options["second_moments"] = read_second_moments(moments_source, model, config)
        lengths = getattr(config, "context_template_length_params", None)
        if lengths is not None:
            options["templates"] = sample_templates(model, jax.random.key(seed), lengths)
        network = read_hypernetwork(hypernetwork_source, model, algorithm, config)
        if network is not None:
            options["hypernetwork"] = network
        return cls(algorithm, model, config, seed, options)

    @property
    def factored(self) -> bool:
        """Whether N of its deltas are scored in one batch."""
        return METHODS[self.algorithm].factored

    def compute(self, requests: Sequence[EditRequest]) -> Delta:
        """N independent edits.

        Raises:
          ValueError: a request or configuration that the method cannot work with.
        """
        method = METHODS[self.algorithm]
        return method.compute_deltas(self.model, requests, self.config, **self.options)
