"""The checks that a second moment passes before it meets a model: its width, its layer, and the model it came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rome_jax.models import provenance
from rome_jax.models.provenance import Match, Origin
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.null_space import NullSpace
from rome_jax.moments.second_moment import SecondMoment

_REMEDY = "collect second moments of this model with eval.layer_stats"


def verified(
    moments: Mapping[int, SecondMoment], model: LanguageModel, names: Mapping[int, str]
) -> dict[int, SecondMoment]:
    """Checks second moments that were read for a model, and records how they were verified.

    All of the model's weights are read, once for all layers.

    Args:
      moments: The second moment of each layer.
      model: The model to be edited.
      names: Where the second moment of each layer comes from, such as a path, for messages.

    Returns:
      The second moments with their `match`.

    Raises:
      ValueError: If one has another width, belongs to another layer, or was collected on another model. Another dtype
        of the same weights is accepted, and so is a model that edits changed.

    Example:
      >>> verified(moments, model, dict.fromkeys(moments, "the package"))[0].match.value
      'verified'
    """
    matches: dict[Origin, Match] = {}
    for layer, moment in moments.items():
        _check_place(moment, layer, model, names[layer])
        if moment.origin not in matches:
            matches[moment.origin] = _require(moment, model, names[layer])
    return {
        layer: dataclasses.replace(moment, match=matches[moment.origin])
        for layer, moment in moments.items()
    }


def check(
    moments: Mapping[int, SecondMoment | NullSpace],
    model: LanguageModel,
    *,
    null_spaces: bool = False,
) -> None:
    """Checks second moments before an edit, and that they are positive definite.

    It reads few weights of a model that was checked before, and of its edits. Of null spaces, it checks the width and
    the layer.

    Args:
      moments: The second moment, or the null space, of each edited layer.
      model: The model to be edited.
      null_spaces: Whether the method takes null spaces.

    Raises:
      ValueError: As in `verified`, if one is not positive definite, or if one is a null space that the method does not
        take.

    Example:
      >>> check({0: moments[0]}, model)
    """
    origins = set()
    for layer, moment in moments.items():
        what = f"second_moments[{layer}]"
        if isinstance(moment, NullSpace):
            if not null_spaces:
                raise ValueError(
                    f"{what} is a NullSpace, which only AlphaEdit takes: give a SecondMoment."
                )
            moment.check(layer, model.config, what)
            continue
        _check_place(moment, layer, model, what)
        if moment.origin not in origins and not provenance.related(moment.origin, model):
            _require(moment, model, what)
        origins.add(moment.origin)
        moment.check_definite(layer)


def _require(moment: SecondMoment, model: LanguageModel, what: str) -> Match:
    """Refuses a second moment of another model."""
    return provenance.require(
        moment.origin, model, f"{what} was collected on", _REMEDY, provenance.BASE
    )


def _check_place(moment: SecondMoment, layer: int, model: LanguageModel, what: str) -> None:
    """Refuses a second moment of another width or layer."""
    width = model.config.mlp_width
    if moment.mean.shape[0] != width:
        raise ValueError(
            f"{what} has width {moment.mean.shape[0]}, and {model.name} has {width}: give second moments that were "
            "collected on this model."
        )
    known = moment.provenance
    if known.fingerprint and known.layer != layer:
        raise ValueError(
            f"{what} belongs to layer {known.layer}, not to layer {layer}: give the second moment of that layer."
        )


def describe_matches(moments: Mapping[int, SecondMoment | NullSpace] | None) -> dict[str, str]:
    """Describes how second moments were verified, as it is recorded with the results that depend on them.

    Args:
      moments: The second moment, or the null space, of each layer; None if there are none.

    Returns:
      "verified", "verified for another dtype", "unverified", and so on, by layer; see `provenance.Match`. For a null
      space, its file and the checksum of that file.

    Example:
      >>> describe_matches({5: SecondMoment(np.eye(4), count=100)})
      {'5': 'unverified'}
    """
    return {
        str(layer): str(moment if isinstance(moment, NullSpace) else moment.match.value)
        for layer, moment in (moments or {}).items()
    }
