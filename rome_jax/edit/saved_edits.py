"""Saved edits: deltas with their provenance, which can be applied to the right model and reverted.

`rome_jax.edit.edit_files` writes them to files and reads them.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import pydantic
import typing_extensions

from rome_jax.data.request import EditRequest, RequestError
from rome_jax.data.tokenization import describe_tokenization
from rome_jax.edit.config import Hyperparameters
from rome_jax.edit.delta import apply_delta, merge_deltas, negate_delta, weight_changes
from rome_jax.edit.methods.rome import LayerEdit
from rome_jax.edit.result import check_finite
from rome_jax.files.checked import check
from rome_jax.files.records import Text
from rome_jax.models.interventions import Delta
from rome_jax.models.provenance import WrongModelError
from rome_jax.models.registry import LanguageModel
from rome_jax.moments import checks
from rome_jax.moments.second_moment import SecondMoment
from rome_jax.version import __version__


@dataclasses.dataclass(frozen=True)
class EditedModel:
    """The model that an edit was computed on.

    Attributes:
      name, source: As in `LanguageModel`.
      fingerprint: Fingerprint of its weights before the edit.
      dtype: Data type of its weights.
      precision: Precision of its matrix products.
      begin_tokens: Tokens before each prompt, such as the begin-of-text token; empty for tokenizers without them, and
        in files of earlier versions.
    """

    name: str
    source: str
    fingerprint: str
    dtype: str
    precision: str
    begin_tokens: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: LanguageModel) -> EditedModel:
        """Records a model. All of its weights are read for the fingerprint."""
        return cls(
            model.name,
            model.source,
            model.fingerprint(),
            str(model.params["wte"]["embedding"].dtype),
            model.config.precision.name,
            tuple(describe_tokenization(model.tokenizer).get("begin_tokens", ())),
        )

    def __str__(self) -> str:
        """Describes the model in messages."""
        return f"{self.name} ({self.source}, {self.dtype}, fingerprint {self.fingerprint[:12]})"


@dataclasses.dataclass(frozen=True)
class EditedLayer:
    """The change that an edit made to one weight.

    Attributes:
      layer: Index of the layer.
      norm_ratio: ‖ΔW‖ / ‖W‖.
      division_factor: k · u of ROME, otherwise None.
      weight: Name of the weight, as in `WeightChange`.
    """

    layer: int
    norm_ratio: float
    division_factor: float | None = None
    weight: str = "mlp/down"  # early files only know this weight


@dataclasses.dataclass(frozen=True)
class Provenance:
    """The origin of an edit.

    Attributes:
      method: Name of the method, such as "ROME".
      requests: Facts that the edit writes.
      config: Hyperparameters as plain values; `from_dict` of the method's configuration reads them.
      templates: Context templates; empty for methods that do not use them.
      seed: Seed that the templates were sampled with, or None if they were given.
      model: Model that was edited.
      layers: Change of each weight.
      versions: Versions of the packages that computed the edit.
      created: Date and time in UTC, in ISO 8601.
      hypernetwork: `Hypernetwork.digest` of the hypernetwork that computed the edit, for MEND and KE.
      second_moments: By layer, how the second moment was verified, such as "unverified"; see
        `rome_jax.models.provenance.Match`. None if there were none, or if an earlier version wrote the file.
    """

    method: str
    requests: tuple[EditRequest, ...]
    config: Mapping[str, Any]
    templates: tuple[str, ...]
    seed: int | None
    model: EditedModel
    layers: tuple[EditedLayer, ...]
    versions: Mapping[str, str]
    created: str
    hypernetwork: str | None = None
    second_moments: Mapping[str, str] | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], name: str = "provenance") -> Provenance:
        """Rebuilds a provenance that went through `dataclasses.asdict` and JSON.

        Args:
          values: The plain values.
          name: What they are called in errors.

        Raises:
          ValueError: If a field is missing or unknown, or has another type.
        """
        fields = check(_ProvenanceFields, values, name)
        try:
            requests = tuple(EditRequest(**request) for request in fields["requests"])
        except RequestError as error:
            raise ValueError(f"{name}: {error}") from error
        parts = {
            "requests": requests,
            "templates": tuple(fields["templates"]),
            "model": EditedModel(**fields["model"]),
            "layers": tuple(EditedLayer(**layer) for layer in fields["layers"]),
        }
        return cls(**{**fields, **parts})


_STRICT = pydantic.ConfigDict(extra="forbid")


class _RequestFields(typing_extensions.TypedDict):
    """An `EditRequest` in a file."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    prompt: str
    subject: str
    target_new: str
    target_true: typing_extensions.NotRequired[str | None]
    case_id: typing_extensions.NotRequired[int]


class _ModelFields(typing_extensions.TypedDict):
    """An `EditedModel` in a file."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    name: str
    source: str
    fingerprint: str
    dtype: str
    precision: str
    begin_tokens: typing_extensions.NotRequired[tuple[str, ...]]


class _LayerFields(typing_extensions.TypedDict):
    """An `EditedLayer` in a file."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    layer: int
    norm_ratio: float
    division_factor: typing_extensions.NotRequired[float | None]
    weight: typing_extensions.NotRequired[str]


class _ProvenanceFields(typing_extensions.TypedDict):
    """A `Provenance` in a file."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    method: str
    requests: Annotated[list[_RequestFields], pydantic.Field(min_length=1)]
    config: dict[str, Any]
    templates: list[str]
    seed: int | None
    model: _ModelFields
    layers: list[_LayerFields]
    versions: dict[str, str]
    created: str
    hypernetwork: typing_extensions.NotRequired[str | None]
    second_moments: typing_extensions.NotRequired[dict[str, str] | None]


@dataclasses.dataclass(frozen=True, eq=False)
class SavedEdit:
    """One edit with its provenance.

    Attributes:
      delta: The edit, without a case axis.
      provenance: Origin of the edit.
    """

    delta: Delta
    provenance: Provenance


def record_edits(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    method: str,
    config: Hyperparameters,
    deltas: Delta,
    *,
    layers: Sequence[LayerEdit] = (),
    templates: Sequence[str] = (),
    seed: int | None = None,
    hypernetwork: str | None = None,
    second_moments: Mapping[int, SecondMoment] | None = None,
) -> tuple[SavedEdit, ...]:
    """Adds provenance to the edits that a method's `compute_deltas` returned, so that `save_edits` can write them.

    Args:
      model, requests, config: Arguments of `compute_deltas`.
      method: Name of the method, such as "ROME".
      deltas: Edits that it returned, with case axis N.
      layers: `EditResult.layers` of ROME, which adds division factors.
      templates: Context templates, if the method uses them.
      seed: Seed that they were sampled with, or None if they were given.
      hypernetwork: Digest of the hypernetwork that computed the edits, if the method uses one.
      second_moments: Second moments that the edits used; how they were verified is recorded.

    Returns:
      One `SavedEdit` per request.

    Raises:
      ValueError: If there are not as many edits as requests, the edits belong to another model, or an argument has
        another type.
      NotFiniteError: If an edit holds a number that is not finite.

    Example:
      >>> from rome_jax.edit import rome
      >>> deltas = rome.compute_deltas(model, [request], config, second_moments=moments, templates=["{}"])
      >>> (edit,) = record_edits(model, [request], "ROME", config, deltas)
      >>> edit.provenance.layers
      (EditedLayer(layer=0, norm_ratio=..., division_factor=None, weight='mlp/down'),)
      >>> edited = apply_edits(model, [edit])
      >>> rome_jax.generate_text(edited, [request.text], max_new_tokens=2)
      ['Gothulf Punby plays the sport of tennis.']
    """
    if len(deltas) != len(requests):
        raise ValueError(
            f"deltas holds {len(deltas)} edits for {len(requests)} requests: give one per request."
        )
    check_finite(deltas, requests)
    method, templates = (
        check(Text, method, "method"),
        check(tuple[str, ...], templates, "templates"),
    )
    seed = check(int | None, seed, "seed")
    hypernetwork = check(str | None, hypernetwork, "hypernetwork")
    edited = EditedModel.of(model)
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    edits = []
    for index, request in enumerate(requests):
        delta = deltas[index]
        factors = {edit.layer: float(edit.division_factor[index]) for edit in layers}
        provenance = Provenance(
            method=method,
            requests=(request,),
            config=json.loads(json.dumps(config.to_dict())),  # as a file gives it back
            templates=tuple(templates),
            seed=seed,
            model=edited,
            layers=tuple(
                EditedLayer(
                    change.layer, change.norm_ratio, factors.get(change.layer), change.weight
                )
                for change in weight_changes(model.params, delta)
            ),
            versions={"rome_jax": __version__, "jax": jax.__version__},
            created=created,
            hypernetwork=hypernetwork,
            second_moments=checks.describe_matches(second_moments) or None,
        )
        edits.append(SavedEdit(delta, provenance))
    return tuple(edits)


def apply_edits(
    model: LanguageModel, edits: Sequence[SavedEdit], *, force: bool = False
) -> LanguageModel:
    """Merges edits into the weights of a model, in their order.

    Each edit must have been made for `model`, or for `model` with the preceding edits. This covers both independent
    edits of one model and edits made one on top of another. Fingerprints compare every bit of the weights. Devices of
    different kinds round differently, so an edit made on top of another one on a GPU, for instance, may need `force` on
    a CPU.

    Args:
      model: Model to edit; it is not changed.
      edits: Edits, such as `load_edits` returns.
      force: Whether to skip the comparison of fingerprints, which reads all weights.

    Returns:
      A new model that shares the unchanged weights.

    Raises:
      WrongModelError: If an edit was made for another model.
      ValueError: If an edit is given twice, or changes a weight, layer or shape that the model does not have.

    Example: See `record_edits`.
    """
    deltas = [edit.delta for edit in edits]
    if force:
        return _changed(model, deltas, "+")
    here = EditedModel.of(model)
    for index, edit in enumerate(edits):
        expected = edit.provenance.model
        if edit.provenance in [other.provenance for other in edits[:index]]:
            raise ValueError(
                f"the edit of {subjects(edit)} is given twice: give it once, or set force=True (--force)."
            )
        if expected.fingerprint == here.fingerprint:
            continue
        if index and expected.fingerprint == _changed(model, deltas[:index], "+").fingerprint():
            continue
        raise WrongModelError(
            f"the edit of {subjects(edit)} was made for {expected}, and this is {here}"
            f"{f' with {index} of the edits' if index else ''}: load that model, or set force=True (--force)."
        )
    return _changed(model, deltas, "+")


def revert_edits(
    model: LanguageModel, edits: Sequence[SavedEdit], *, force: bool = False
) -> LanguageModel:
    """Subtracts edits from the weights of a model, the last one first.

    The result equals the weights before the edits up to rounding; see `revert_delta`. For bit-identical weights keep
    the model that was passed to `apply_edits`. Whether the model contains an edit cannot be checked, except for the
    case that it is the very model the edit was made for.

    Args:
      model: Model with the edits; it is not changed.
      edits: Edits, such as `load_edits` returns.
      force: Whether to skip the comparison of fingerprints.

    Returns:
      A new model that shares the unchanged weights.

    Raises:
      WrongModelError: If an edit was made for `model`, which therefore does not contain it.
      ValueError: If an edit changes a weight, layer or shape that the model does not have.

    Example:
      >>> from rome_jax.edit import rome
      >>> deltas = rome.compute_deltas(model, [request], config, second_moments=moments, templates=["{}"])
      >>> edits = record_edits(model, [request], "ROME", config, deltas)
      >>> reverted = revert_edits(apply_edits(model, edits), edits)
      >>> rome_jax.generate_text(reverted, [request.text], max_new_tokens=2)
      ['Gothulf Punby plays the sport of rowing.']
    """
    here = None if force else model.fingerprint()
    for edit in edits:
        if edit.provenance.model.fingerprint == here:
            raise WrongModelError(
                f"{edit.provenance.model} is the model that the edit of {subjects(edit)} was made for, so it does not "
                "contain the edit: load the edited model, or set force=True (--force) to subtract it anyway."
            )
    return _changed(model, [negate_delta(edit.delta) for edit in reversed(edits)], "-")


def subjects(edit: SavedEdit) -> str:
    """Lists the subjects of an edit's requests for messages."""
    return ", ".join(repr(request.subject) for request in edit.provenance.requests)


def _changed(model: LanguageModel, deltas: Sequence[Delta], sign: str) -> LanguageModel:
    """Merges deltas into the weights of a model and notes their number in its source."""
    if not deltas:
        return model
    source = f"{model.source} {sign} {len(deltas)} edit{'s' if len(deltas) > 1 else ''}"
    params = apply_delta(model.params, merge_deltas(deltas))
    return model.replace(params=params, source=source)
