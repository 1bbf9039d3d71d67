"""Registry of editing methods, and one interface to compute N independent edits with any of them."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from rome_jax.data.request import EditRequest
from rome_jax.edit import original_hparams as hparams
from rome_jax.edit.baseline_config import FT_VARIANTS, FTConfig, KEConfig, KNConfig, MENDConfig
from rome_jax.edit.config import Hyperparameters, MethodName, ROMEConfig
from rome_jax.edit.hypernetworks.networks import CONFIG_TYPES
from rome_jax.edit.methods import (
    alphaedit,
    emmet,
    encore,
    fine_tune,
    ke,
    knowledge_neurons,
    locft_bf,
    memit,
    mend,
    pmet,
    rome,
    ultra_edit,
)
from rome_jax.edit.resources import load_network, read_hypernetwork, read_second_moments
from rome_jax.edit.result import EditResult
from rome_jax.edit.spread_config import MEMITConfig, Modifier, SpreadConfig
from rome_jax.edit.stages.contexts import check_templates, templates_for
from rome_jax.edit.variant import MethodVariant
from rome_jax.files.checked import Count, Seed, check, shown
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import SHIPPED, LanguageModel


class Resource(enum.Enum):
    """An argument that only some methods need, in addition to a model, requests and hyperparameters."""

    SECOND_MOMENTS = "second_moments"
    TEMPLATES = "templates"
    HYPERNETWORK = "hypernetwork"


@dataclasses.dataclass(frozen=True)
class Method:
    """An editing method.

    Attributes:
      name: Name in tables and result folders.
      config_type: Class of its hyperparameters.
      config_file: Path of its config file; %s stands for a model.
      module: Module of its algorithm, with `compute`, and `compute_joint_delta` if one edit can write many requests.
      uses: Further arguments that it needs. Whether second moments are needed also depends on the configuration.
      factored: Whether its deltas have low rank, so that N of them can be scored in one batch.
      samples_templates: Whether it samples templates from a PRNG key if none are given.

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

    def for_model(self, model_name: str, modifiers: Sequence[Modifier] = ()) -> Hyperparameters:
        """Returns the published (or, for factworld, shipped) hyperparameters of a model.

        Args:
          model_name: Name of the model.
          modifiers: Modifiers of the method; `MethodVariant.modify` refuses them if it takes none.

        Raises:
          ValueError: If none are known.

        Example:
          >>> METHODS[MethodName.ROME].for_model("gpt2-xl").layers
          (17,)
        """
        if self.config_type is FTConfig:
            return FTConfig.for_model(model_name, self.name)
        if modifiers and issubclass(self.config_type, SpreadConfig):
            return self.config_type.for_model(model_name, modifiers=tuple(modifiers))
        return self.config_type.for_model(model_name)

    def compute(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        config: Hyperparameters,
        **options: Any,
    ) -> EditResult:
        """Computes N independent edits and checks whether each target is now the model's answer.

        Args:
          model: Model to edit; it is not changed.
          requests: N facts to write.
          config: Hyperparameters of this method.
          **options: `second_moments`, `templates`, `key` and `hypernetwork`, which are ignored by methods that do not
            use them, and `chunk_size` and `progress` as in the method's own `compute`.

        Raises:
          ValueError: If the method cannot work with a request or a hyperparameter.
          NotFiniteError: If an edit holds a number that is not finite.
          TypeError: If an option does not exist.

        Example:
          >>> method = METHODS[MethodName.ROME]
          >>> result = method.compute(model, [request], config, second_moments=moments, templates=["{}"])
          >>> result.is_answer.tolist()
          [True]
        """
        return self._compute(model, requests, config, options)

    def compute_deltas(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        config: Hyperparameters,
        **options: Any,
    ) -> Delta:
        """Computes the deltas of `compute` without running the edited model. Arguments and errors are the same."""
        return self._compute(model, requests, config, {**options, "check_answers": False}).deltas

    def _compute(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        config: Hyperparameters,
        options: Mapping[str, Any],
    ) -> EditResult:
        """Calls the method's own `compute` with those shared options that it uses."""
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
    """Builds an entry of `METHODS`."""
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
        *(
            _record(
                name, kind, f"{file}.py:%s", module, _MOMENTS, _TEMPLATES, samples_templates=True
            )
            for name, kind, file, module in (
                (MethodName.MEMIT, MEMITConfig, "memit", memit),
                (MethodName.EMMET, emmet.EMMETConfig, "emmet", emmet),
                (MethodName.PMET, pmet.PMETConfig, "pmet", pmet),
                (MethodName.ALPHAEDIT, alphaedit.AlphaEditConfig, "alphaedit", alphaedit),
                (MethodName.ENCORE, encore.ENCOREConfig, "encore", encore),
            )
        ),
        _record(MethodName.ULTRAEDIT, ultra_edit.UltraEditConfig, "ultra_edit.py:%s", ultra_edit),
        _record(
            *(MethodName.LOCFT_BF, locft_bf.LocFTConfig, "locft_bf.py:%s", locft_bf), factored=False
        ),
    ]
)


def read_config(
    algorithm: MethodName,
    model_name: str,
    values: ConfigDict | None = None,
    hparams_fname: str | Path | None = None,
    hypernetwork: str | None = None,
    changes: Mapping[str, Any] | None = None,
    modifiers: Sequence[Modifier] = (),
) -> Hyperparameters:
    """Reads hyperparameters from the given source, or takes the defaults of the hypernetwork or the model.

    Args:
      algorithm: Name of the method.
      model_name: Name of the model.
      values: Value of the flag --config.
      hparams_fname: Path of a hyperparameter file of the original code.
      hypernetwork: Value of the flag --hypernetwork.
      changes: Fields with other values, which apply on top of any source.
      modifiers: Modifiers of the method, for which other values than without them may be known for the model.

    Raises:
      ValueError: If both `values` and `hparams_fname` are given, a value has another type or is out of range, or
        nothing is given and the model has no defaults.

    Example:
      >>> read_config(MethodName.ROME, "factworld-gpt2", changes={"v_lr": "0.1"}).v_lr
      0.1
    """
    algorithm = check(MethodName, algorithm, "algorithm")
    method, changes = METHODS[algorithm], changes or {}
    if values is not None and hparams_fname is not None:
        raise ValueError("--config and --hparams_fname both give hyperparameters: leave one out.")
    if hparams_fname is not None:
        base = hparams.read(hparams_fname, method.config_type).to_dict()
    elif values is not None:
        base = values.to_dict()
    elif algorithm in CONFIG_TYPES and hypernetwork and not hypernetwork.endswith(".pt"):
        base = load_network(hypernetwork, algorithm).config.to_dict()
    else:
        base = _known_values(method, model_name, modifiers, given="layers" in changes)
    return method.config_type.from_dict({**base, **changes})


def _known_values(
    method: Method, model_name: str, modifiers: Sequence[Modifier], given: bool
) -> dict[str, Any]:
    """Returns the hyperparameters known for a model; if the layers are `given`, other models have none."""
    try:
        return method.for_model(model_name, modifiers).to_dict()
    except ValueError:
        if given:
            return {}
        raise ValueError(
            f"no {method.name} layer is known for model {shown(model_name)}: set one, as in "
            f'--config={method.config_file % "gpt2-xl"} --config.layers="(5,)", or choose a known model, such as '
            f"{', '.join(SHIPPED)}."
        ) from None


@dataclasses.dataclass(frozen=True)
class Editor:
    """A method prepared for one model, with everything that its edits share.

    Attributes:
      algorithm: Name of the method.
      model: Model to edit.
      config: Hyperparameters.
      seed: Seed that the context templates were sampled with, or None if they were given.
      options: Further arguments of `compute_deltas`: second moments, templates, a hypernetwork, the chunk size.

    Example:
      >>> editor = Editor.prepare(MethodName.ROME, model, config)
      >>> len(editor.options["templates"])
      21
    """

    algorithm: MethodName
    model: LanguageModel
    config: Hyperparameters
    seed: int | None
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
        templates: Sequence[str] | None = None,
    ) -> Editor:
        """Reads second moments and hypernetworks and samples context templates, as far as the method uses them.

        Args:
          algorithm: Name of the method.
          model: Model to edit.
          config: Hyperparameters.
          moments_source: Value of the flag --second_moments.
          hypernetwork_source: Value of the flag --hypernetwork.
          seed: Seed of the context templates.
          chunk_size: Number of requests that are optimized at once; it bounds the memory.
          templates: Context templates, if the method uses them; None samples them.

        Raises:
          ValueError: If the seed, the chunk size or a template is invalid, or as in `read_second_moments`.
          OSError: As in `read_second_moments` and `read_hypernetwork`.
        """
        seed = check(Seed, seed, "seed")
        options: dict[str, Any] = {"chunk_size": check(Count, chunk_size, "chunk_size")}
        options["second_moments"] = read_second_moments(moments_source, model, config)
        if config.template_lengths is not None:
            given = None if templates is None else check_templates(templates)
            options["templates"] = given or templates_for(model, config, seed)
        network = read_hypernetwork(hypernetwork_source, model, algorithm, config)
        if network is not None:
            options["hypernetwork"] = network
        return cls(algorithm, model, config, seed if templates is None else None, options)

    @property
    def name(self) -> MethodVariant:
        """Name of the method with its modifiers."""
        return MethodVariant.of(self.algorithm, self.config)

    @property
    def factored(self) -> bool:
        """Whether N of its deltas can be scored in one batch."""
        if isinstance(self.config, SpreadConfig) and self.config.has(Modifier.RECT):
            return False
        return METHODS[self.algorithm].factored

    def compute(self, requests: Sequence[EditRequest], progress: bool = False) -> Delta:
        """Computes N independent edits.

        Args:
          requests: N facts to write.
          progress: Whether to show a progress bar.

        Raises:
          ValueError: If the method cannot work with a request or the configuration.
        """
        method = METHODS[self.algorithm]
        return method.compute_deltas(
            self.model, requests, self.config, progress=progress, **self.options
        )
