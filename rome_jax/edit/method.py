"""Editing methods by name: their hyperparameters, and one way to compute N independent edits with any of them."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from ml_collections import ConfigDict

from rome_jax.data.request import EditRequest
from rome_jax.edit import original_hparams as hparams
from rome_jax.edit.baseline_config import (
    FT_VARIANTS,
    FTConfig,
    KEConfig,
    KNConfig,
    MENDConfig,
)
from rome_jax.edit.config import Hyperparameters, MEMITConfig, MethodName, ROMEConfig
from rome_jax.edit.hypernetworks import networks as hypernetworks
from rome_jax.edit.hypernetworks import released as released_hypernetworks
from rome_jax.edit.hypernetworks.networks import CONFIG_TYPES, Hypernetwork
from rome_jax.edit.methods import fine_tune, ke, knowledge_neurons, memit, mend, rome
from rome_jax.edit.result import EditResult
from rome_jax.edit.stages.answers import target_is_answer
from rome_jax.edit.stages.contexts import sample_templates
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import SHIPPED, LanguageModel
from rome_jax.moments import files as moment_files


class Resource(enum.Enum):
    """What some methods need besides a model, requests and hyperparameters; also the names of their arguments."""

    SECOND_MOMENTS = "second_moments"
    TEMPLATES = "templates"
    HYPERNETWORK = "hypernetwork"


@dataclasses.dataclass(frozen=True)
class Method:
    """An editing method: all that others need to know of it.

    Attributes:
      name: as tables and result folders have it.
      config_type: of its hyperparameters.
      config_file: where they are as a config file; %s stands for a model.
      module: where its algorithm is: `compute`, and `compute_joint_delta` if it can write many requests at once.
      uses: what it takes besides. A configuration can do without second moments.
      factored: whether its deltas are of low rank: N of them are scored in one batch.
      samples_templates: whether it samples templates itself, from a key, where none are given.
      make_editor: factory of an editor that carries a state from one batch of edits to the next; None if it has none.

    Example:
      >>> METHODS[MethodName.ROME].factored
      True
    """

    name: MethodName
    config_type: type[Hyperparameters]
    config_file: str
    module: ModuleType
    uses: frozenset[Resource] = frozenset()
    factored: bool = True
    samples_templates: bool = False
    make_editor: Callable[..., Any] | None = None

    def for_model(self, model_name: str) -> Hyperparameters:
        """The published (or, for factworld, shipped) hyperparameters of a model.

        Raises:
          ValueError: If none are known.
        """
        if self.config_type is FTConfig:
            return FTConfig.for_model(model_name, self.name)
        return self.config_type.for_model(model_name)

    def compute(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        config: Hyperparameters,
        **options: Any,
    ) -> EditResult:
        """N independent edits, and whether each target is now the model's answer.

        Args:
          model: what to edit; not changed.
          requests: the facts to write.
          config: hyperparameters of this method.
          **options: second_moments, templates, key and hypernetwork, which are ignored by methods that do not use
            them; chunk_size and progress, as for the method's own `compute`.

        Raises:
          ValueError: If a request or hyperparameter is one that the method cannot work with.
          TypeError: If there is no such option.

        Example:
          >>> result = METHODS[MethodName.FT].compute(model, requests, config)  # doctest: +SKIP
          >>> result.is_answer.tolist()  # doctest: +SKIP
          [True]
        """
        result = self._compute(model, requests, config, options)
        return result.replace(is_answer=target_is_answer(model, requests, result.deltas))

    def compute_deltas(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        config: Hyperparameters,
        **options: Any,
    ) -> Delta:
        """The deltas of `compute` alone, without asking the edited model; arguments and errors are the same.

        Example:
          >>> deltas = METHODS[MethodName.KN].compute_deltas(model, requests, config)  # doctest: +SKIP
        """
        return self._compute(model, requests, config, options).deltas

    def _compute(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        config: Hyperparameters,
        options: Mapping[str, Any],
    ) -> EditResult:
        """The method's own `compute`, given what it uses of the options that all methods share."""
        shared = {"key", *(resource.value for resource in Resource)}
        used = {use.value for use in self.uses} | ({"key"} if self.samples_templates else set())
        own = {name: value for name, value in options.items() if name not in shared - used}
        return self.module.compute(model, requests, config, **own)


def _record(
    name: MethodName,
    config_type: type[Hyperparameters],
    file: str,
    module: ModuleType,
    *uses: Resource,
    **others: Any,
) -> tuple[MethodName, Method]:
    return name, Method(name, config_type, f"configs/{file}", module, frozenset(uses), **others)


_MOMENTS, _TEMPLATES, _NETWORK = Resource
METHODS: Mapping[MethodName, Method] = dict(
    [
        _record(
            *(MethodName.ROME, ROMEConfig, "rome.py:%s", rome, _MOMENTS, _TEMPLATES),
            samples_templates=True,
        ),
        *(
            _record(name, FTConfig, f"ft.py:%s,{variant}", fine_tune, factored=False)
            for variant, name in FT_VARIANTS.items()
        ),
        _record(MethodName.KN, KNConfig, "kn.py:%s", knowledge_neurons, _TEMPLATES),
        _record(MethodName.MEND, MENDConfig, "mend.py:%s", mend, _NETWORK),
        _record(MethodName.KE, KEConfig, "ke.py:%s", ke, _NETWORK),
        _record(
            *(MethodName.MEMIT, MEMITConfig, "memit.py:%s", memit, _MOMENTS, _TEMPLATES),
            samples_templates=True,
        ),
    ]
)


def read_config(
    algorithm: MethodName,
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
    if algorithm in CONFIG_TYPES and hypernetwork and not hypernetwork.endswith(".pt"):
        return _load_network(hypernetwork, algorithm).config
    try:
        return method.for_model(model_name)
    except ValueError:
        raise ValueError(
            f"no {algorithm} layer is known for model {model_name!r}: name one, as in "
            f'--config={method.config_file % "gpt2-xl"} --config.layers="(5,)", or give a known model, such as '
            f"{', '.join(SHIPPED)}."
        ) from None


def check_second_moments(source: str | None, model_name: str, config: Hyperparameters) -> None:
    """Says what is missing before a large model is loaded.

    Raises:
      ValueError: an edit that needs second moments of a model that comes without them, and no --second_moments.
    """
    if config.needs_second_moments and source is None and model_name not in SHIPPED:
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
    if not config.needs_second_moments:
        return None
    if source is None:
        return moment_files.load_shipped(model.name)
    return moment_files.read(source, config.layers, model)


def read_hypernetwork(
    source: str | None, model: LanguageModel, algorithm: MethodName, config: Hyperparameters
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
    if algorithm not in CONFIG_TYPES:
        if source is not None:
            raise ValueError(
                f"--hypernetwork={source} is for {', '.join(CONFIG_TYPES)}: leave it out."
            )
        return None
    if source is None:
        return hypernetworks.load_shipped(MethodName(algorithm), model)
    if source.endswith(".pt"):
        return released_hypernetworks.read(source, model, config)
    return _load_network(source, algorithm).check(model)


def _load_network(source: str, algorithm: MethodName) -> Hypernetwork:
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

    algorithm: MethodName
    model: LanguageModel
    config: Hyperparameters
    seed: int
    options: Mapping[str, Any] = dataclasses.field(repr=False)

    @classmethod
    def prepare(
        cls,
        algorithm: MethodName,
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
        if config.template_lengths is not None:
            key = jax.random.key(seed)
            options["templates"] = sample_templates(model, key, config.template_lengths)
        network = read_hypernetwork(hypernetwork_source, model, algorithm, config)
        if network is not None:
            options["hypernetwork"] = network
        return cls(algorithm, model, config, seed, options)

    @property
    def factored(self) -> bool:
        """Whether N of its deltas are scored in one batch."""
        return METHODS[self.algorithm].factored

    def compute(self, requests: Sequence[EditRequest], progress: bool = False) -> Delta:
        """N independent edits.

        Args:
          requests: the facts to write.
          progress: show a progress bar.

        Raises:
          ValueError: a request or configuration that the method cannot work with.
        """
        method = METHODS[self.algorithm]
        return method.compute_deltas(
            self.model, requests, self.config, progress=progress, **self.options
        )
