"""Edits that are kept: a delta with its provenance, applied to the model it was made for and taken out again.

`rome_jax.edit.edit_files` writes them to files and reads them.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from rome_jax.data.request import EditRequest
from rome_jax.edit.config import Hyperparameters
from rome_jax.edit.delta import apply_delta, merge_deltas, negate_delta, weight_changes
from rome_jax.edit.methods.rome import LayerEdit
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import LanguageModel
from rome_jax.version import __version__


class WrongModelError(ValueError):
    """An edit was made for another model."""


@dataclasses.dataclass(frozen=True)
class EditedModel:
    """The model that an edit was computed on.

    Attributes:
      name, source: as `LanguageModel` has them.
      fingerprint: of its weights before this edit.
      dtype: of its weights.
      precision: of its matrix products.
    """

    name: str
    source: str
    fingerprint: str
    dtype: str
    precision: str

    @classmethod
    def of(cls, model: LanguageModel) -> EditedModel:
        """The record of a model; reads all of its weights."""
        return cls(
            model.name,
            model.source,
            model.fingerprint(),
            str(model.params["wte"]["embedding"].dtype),
            model.config.precision.name,
        )

    def __str__(self) -> str:
        return f"{self.name} ({self.source}, {self.dtype}, fingerprint {self.fingerprint[:12]})"


@dataclasses.dataclass(frozen=True)
class EditedLayer:
    """What an edit did to a weight of one layer.

    Attributes:
      layer: its index.
      norm_ratio: ‖ΔW‖ / ‖W‖.
      division_factor: k · u, of ROME.
      weight: its name, as in `WeightChange`.
    """

    layer: int
    norm_ratio: float
    division_factor: float | None = None
    weight: str = "mlp/down"  # the only one that early files know


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where an edit comes from.

    Attributes:
      method: its name, such as "ROME".
      requests: the facts that it writes.
      config: hyperparameters as plain values; `from_dict` of the method's configuration reads them.
      templates: context templates; none of methods without.
      seed: they were sampled from; None if they were given.
      model: what was edited.
      layers: what it did to each weight.
      versions: of the packages that computed it.
      created: date and time, ISO 8601, in UTC.
      hypernetwork: `Hypernetwork.digest` of the one that computed it, of MEND and KE.
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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Provenance:
        """What `dataclasses.asdict` and JSON made of one.

        Raises:
          TypeError, KeyError, ValueError: values of something else.
        """
        parts = {
            "requests": tuple(EditRequest(**request) for request in values["requests"]),
            "templates": tuple(values["templates"]),
            "model": EditedModel(**values["model"]),
            "layers": tuple(EditedLayer(**layer) for layer in values["layers"]),
        }
        return cls(**{**values, **parts})


@dataclasses.dataclass(frozen=True, eq=False)
class SavedEdit:
    """One edit, and where it comes from.

    Attributes:
      delta: what it adds to the weights, without a case axis.
      provenance: all that is known of it.
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
) -> tuple[SavedEdit, ...]:
    """The edits that a method's `compute_deltas` has found, with their provenance, ready for `save_edits`.

    Args:
      model, requests, config: what it was called with.
      method: its name, such as "ROME".
      deltas: what it returned, with case axis N.
      layers: of a `ROMEResult`: how ROME's edits came about.
      templates: the context templates, if the method uses them.
      seed: that they were sampled from; None if they were given.
      hypernetwork: digest of the one that computed them, if the method uses one.

    Returns:
      One `SavedEdit` a request.

    Raises:
      ValueError: not as many edits as requests, or edits of another model.

    Example:
      >>> deltas = fine_tune.compute_deltas(model, [request], config)  # doctest: +SKIP
      >>> (edit,) = record_edits(model, [request], "FT-L", config, deltas)  # doctest: +SKIP
    """
    if len(deltas) != len(requests):
        raise ValueError(f"{len(deltas)} deltas for {len(requests)} requests: give one a request.")
    edited = EditedModel.of(model)
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    edits = []
    for index, request in enumerate(requests):
        delta = deltas[index]
        factors = {edit.layer: float(edit.division_factor[index]) for edit in layers}
        provenance = Provenance(
            method=str(method),
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
        )
        edits.append(SavedEdit(delta, provenance))
    return tuple(edits)


def apply_edits(
    model: LanguageModel, edits: Sequence[SavedEdit], *, force: bool = False
) -> LanguageModel:
    """A model with edits merged into its weights, in their order.

    Each edit must have been made for `model`, or for `model` with the edits before it: independent edits of one model
    and edits made one on top of the other both work. Fingerprints compare every bit of the weights: an edit made
    on top of another on one kind of device may have to be forced on another kind, which rounds differently.

    Args:
      model: not changed.
      edits: such as `load_edits` returns.
      force: compare nothing. Fingerprints read all weights.

    Returns:
      A new model that shares the weights that are not changed.

    Raises:
      WrongModelError: an edit that was made for another model.
      ValueError: an edit that is there twice, or one of a weight, layer or shape that the model does not have.

    Example:
      >>> edited = apply_edits(model, load_edits("edits/sport.safetensors"))  # doctest: +SKIP
    """
    deltas = [edit.delta for edit in edits]
    here = None if force else EditedModel.of(model)
    for index, edit in enumerate(() if force else edits):
        wanted = edit.provenance.model
        if edit.provenance in [other.provenance for other in edits[:index]]:
            raise ValueError(
                f"the edit of {subjects(edit)} is there twice: name it once, or give force=True (--force)."
            )
        if wanted.fingerprint == here.fingerprint:
            continue
        if index and wanted.fingerprint == _changed(model, deltas[:index], "+").fingerprint():
            continue
        raise WrongModelError(
            f"the edit of {subjects(edit)} was made for {wanted}, and this is {here}"
            f"{f' with {index} of the edits' if index else ''}: load that model, or give force=True (--force)."
        )
    return _changed(model, deltas, "+")


def revert_edits(
    model: LanguageModel, edits: Sequence[SavedEdit], *, force: bool = False
) -> LanguageModel:
    """A model with edits taken out of its weights by subtraction, the last first.

    The weights are those from before the edits up to rounding; see `revert_delta`. To get back the very bits keep the
    model that `apply_edits` was given. That a model holds an edit can be seen only in the trivial case.

    Args:
      model: with the edits in it; not changed.
      edits: such as `load_edits` returns.
      force: compare nothing.

    Returns:
      A new model that shares the weights that are not changed.

    Raises:
      WrongModelError: the model is the one that an edit was made for, and so does not hold it.
      ValueError: an edit of a weight, layer or shape that the model does not have.

    Example:
      >>> model = revert_edits(edited, load_edits("edits/sport.safetensors"))  # doctest: +SKIP
    """
    here = None if force else model.fingerprint()
    for edit in edits:
        if edit.provenance.model.fingerprint == here:
            raise WrongModelError(
                f"{edit.provenance.model} is the model that the edit of {subjects(edit)} was made for and does not "
                "hold it: load the edited model, or give force=True (--force) to subtract it all the same."
            )
    return _changed(model, [negate_delta(edit.delta) for edit in reversed(edits)], "-")


def subjects(edit: SavedEdit) -> str:
    """What an edit is about, for messages: the subjects of its requests."""
    return ", ".join(repr(request.subject) for request in edit.provenance.requests)


def _changed(model: LanguageModel, deltas: Sequence[Delta], sign: str) -> LanguageModel:
    """The model with some deltas merged into its weights; its source says how many."""
    if not deltas:
        return model
    source = f"{model.source} {sign} {len(deltas)} edit{'s' if len(deltas) > 1 else ''}"
    params = apply_delta(model.params, merge_deltas(deltas))
    return model.replace(params=params, source=source)
