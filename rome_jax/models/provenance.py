"""The one comparison of an artifact's fingerprint with a model: second moments, hypernetworks and saved edits.

An artifact names the model it was made on by two checksums of `rome_jax.models.fingerprint`. The fingerprint covers all
weights. The base fingerprint covers those that no edit changes, rounded to bfloat16, so it is shared by a model, its
edits, and its copies in bfloat16. Artifacts of earlier versions have only the fingerprint. For them the base
fingerprint is found by reading the stored weights of the model, from where it was loaded, once more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from rome_jax.models import fingerprint as fingerprints
from rome_jax.models.huggingface import load_params
from rome_jax.models.locate import NAMES, find, read_model_config
from rome_jax.models.registry import LanguageModel


class WrongModelError(ValueError):
    """The error for an artifact that was made for another model."""


class Match(enum.StrEnum):
    """How an artifact's model relates to the model it is used with."""

    SAME = "verified"  # bit-identical weights
    EDITED = "verified for the unedited model"  # the model is an edit of the artifact's model
    OTHER_DTYPE = "verified for another dtype"  # the same weights, rounded to another dtype
    UNVERIFIED = "unverified"  # the artifact has no fingerprint


# What second moments accept: C barely depends on an edit or on rounding.
BASE = (Match.SAME, Match.EDITED, Match.OTHER_DTYPE, Match.UNVERIFIED)
# What an artifact accepts that is only valid for bit-identical weights.
EXACT = (Match.SAME, Match.UNVERIFIED)


@dataclasses.dataclass(frozen=True)
class Origin:
    """The model that an artifact was made on, as far as the artifact says. Empty fields are unknown.

    Attributes:
      model: Name of the model.
      fingerprint: Fingerprint of its weights.
      base: Its base fingerprint.
      dtype: dtype of its weights.
    """

    model: str = ""
    fingerprint: str = ""
    base: str = ""
    dtype: str = ""

    @classmethod
    def of(cls, model: LanguageModel) -> Origin:
        """Describes a model. All of its weights are read."""
        return cls(model.name, model.fingerprint(), _base(model), dtype_of(model))

    def __str__(self) -> str:
        """Describes the model in messages."""
        about = " ".join(filter(None, (self.dtype, "weights", self.fingerprint[:12])))
        return f"{self.model or 'a model without a name'} ({about})"


# Pairs of a fingerprint and a base fingerprint that this process found to belong together.
_RELATED: set[tuple[str, str]] = set()


def dtype_of(model: LanguageModel) -> str:
    """Returns the name of the dtype of a model's weights."""
    return _dtype(model.params)


def _dtype(params: Any) -> str:
    """Returns the name of the dtype of some weights."""
    return str(params["wte"]["embedding"].dtype)


def _base(model: LanguageModel) -> str:
    """Computes the base fingerprint of a model."""
    return fingerprints.base_fingerprint(model.params, model.config)


def compare(origin: Origin, model: LanguageModel) -> Match | None:
    """Compares an artifact's model with a model.

    Args:
      origin: The artifact's model.
      model: The model that the artifact is to be used with.

    Returns:
      How they are related; None if they are different models.

    Example:
      >>> compare(Origin.of(model), model).name
      'SAME'
    """
    if not origin.fingerprint:
        return Match.UNVERIFIED
    base, here = _base(model), dtype_of(model)
    same_dtype = origin.dtype in ("", here)
    same_base = base == origin.base or (origin.fingerprint, base) in _RELATED
    if fingerprints.is_base(origin.base) and origin.dtype == here and not same_base:
        return None
    if model.fingerprint() == origin.fingerprint:
        _RELATED.add((origin.fingerprint, base))
        return Match.SAME
    if same_base or _same_stored(origin, model, base):
        _RELATED.add((origin.fingerprint, base))
        return Match.EDITED if same_dtype else Match.OTHER_DTYPE
    return None


def related(origin: Origin, model: LanguageModel) -> bool:
    """Returns whether `compare` finds a relation.

    It is fast enough to be called before each edit: of a model that was checked before, and of its edits, it only reads
    the sample of the base fingerprint.
    """
    if not origin.fingerprint:
        return True
    base = _base(model)
    if base == origin.base or (origin.fingerprint, base) in _RELATED:
        return True
    return compare(origin, model) is not None


def require(
    origin: Origin,
    model: LanguageModel,
    what: str,
    remedy: str,
    accepted: tuple[Match, ...] = EXACT,
) -> Match:
    """Refuses an artifact of another model.

    Args:
      origin: The artifact's model.
      model: The model that the artifact is to be used with.
      what: Subject and verb of the message, such as "stats/layer_5.safetensors was collected on".
      remedy: What to do instead, as an imperative.
      accepted: The relations that the artifact allows.

    Returns:
      How the two are related.

    Raises:
      WrongModelError: If they are different models, or are not related in an accepted way.

    Example:
      >>> require(Origin.of(model), model, "the network was trained for", "train one").value
      'verified'
    """
    match = compare(origin, model)
    if match is None or match not in accepted:
        raise WrongModelError(f"{what} {origin}, not {_this(model, what)}: {remedy}.")
    return match


def _this(model: LanguageModel, what: str) -> str:
    """Describes the present model with the preposition that ends `what`."""
    here = Origin(model.name, model.fingerprint(), "", dtype_of(model))
    return f"{what.rsplit(' ', 1)[-1]} {here}"


def _same_stored(origin: Origin, model: LanguageModel, base: str) -> bool:
    """Returns whether stored weights, of which the model is a rounding or an edit, are those of the artifact."""
    for place in _places(origin, model):
        # The model may have moved, may not fit into memory a second time, or the artifact names no dtype.
        with contextlib.suppress(ValueError, OSError, KeyError, TypeError, RuntimeError):
            with jax.default_device(jax.devices("cpu")[0]):
                config, params = _read(place)
            config = dataclasses.replace(config, precision=model.config.precision)
            if fingerprints.base_fingerprint(_cast(params, dtype_of(model)), config) != base:
                continue
            for dtype in dict.fromkeys((_dtype(params), origin.dtype)):
                if fingerprints.fingerprint(_cast(params, dtype), config) == origin.fingerprint:
                    return True
    return False


def _cast(params: Any, dtype: str) -> Any:
    """Rounds weights to a dtype; an unknown one leaves them as they are."""
    if not dtype:
        return params
    return jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)), params)


def _places(origin: Origin, model: LanguageModel) -> list[Path]:
    """Lists where the artifact's model may be stored: as the model of the same name, or where the model came from."""
    places = []
    for name in dict.fromkeys((origin.model, model.name)):
        if name in NAMES:
            with contextlib.suppress(ValueError):  # a wheel that is no longer in the cache
                places.append(find(name, None, None, offline=True)[0])
    source = re.sub(r"( [+-] \d+ edits?)+$", "", model.source)
    if source.startswith(("directory ", "file ")):
        places.append(Path(source.partition(" ")[2]))
    elif source.startswith("hub "):
        name, _, revision = source.removeprefix("hub ").partition(" @ ")
        with contextlib.suppress(ValueError):
            places.append(find(name, revision or None, None, offline=True)[0])
    return places


def _read(place: Path) -> tuple[Any, Any]:
    """Reads the config and the weights of a stored model in the dtype in which they are stored."""
    config = read_model_config(place)
    return config, load_params(place, config)
