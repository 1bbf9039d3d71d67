"""Editors that carry state from one batch of edits to the next, in the manner of optax.

    editor = alphaedit.make_editor(config)
    state = editor.init(model, resources, templates=templates)
    for requests in batches:
        delta, state = editor.update(state, model, requests)
        model = model.replace(params=apply_delta(model.params, delta))
    delta = editor.finish(state, model)  # None for most methods

Everything that a batch needs of the model before the first edit, templates and second moments, is in the state. Nothing
else lasts from one call to the next, so editors of different models or configurations cannot disturb each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

from rome_jax.edit.normalizer import Normalizer
from rome_jax.edit.penalty import PastKeys, Penalty
from rome_jax.edit.resources import Resources
from rome_jax.edit.warm_start import EarlierEdits
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import LanguageModel


@dataclasses.dataclass(frozen=True, eq=False)
class EditorState:
    """The state of an editor after some batches of edits.

    Attributes:
      templates: Context templates of all edits.
      resources: What `init` was given.
      penalties: Penalty A₀ by layer, for methods with a closed form.
      past: Keys of earlier batches by layer, for methods that protect them.
      num_edits: Number of requests so far.
      residuals: Relative residual of the latest solve by layer.
      written: All changes so far, for methods that revise them at the end.
      anchors: Norms of MLP outputs of the unedited model that NAS rescales to, by layer of z; empty before the first
        batch.
      normalizers: Running statistics by shape of a weight, such as "512x128", for methods that normalize what they see.
      earlier: δ of earlier edits by layer, which later ones may begin at, if the configuration sets `v_warm_start`.
    """

    templates: tuple[str, ...]
    resources: Resources = dataclasses.field(repr=False)
    penalties: Mapping[int, Penalty] = dataclasses.field(default_factory=dict, repr=False)
    past: Mapping[int, PastKeys] = dataclasses.field(default_factory=dict, repr=False)
    num_edits: int = 0
    residuals: Mapping[int, float] = dataclasses.field(default_factory=dict)
    written: Delta = dataclasses.field(default=Delta(()), repr=False)
    anchors: Mapping[int, float] = dataclasses.field(default_factory=dict)
    normalizers: Mapping[str, Normalizer] = dataclasses.field(default_factory=dict, repr=False)
    earlier: Mapping[int, EarlierEdits] = dataclasses.field(default_factory=dict, repr=False)


class SequentialEditor(NamedTuple):
    """A method with state, as three pure functions.

    Attributes:
      init: `(model, resources, templates=None, key=None)` to the state before the first edit. `model` is the unedited
        model. Raises ValueError if second moments are missing, or `templates` and `key` are both None.
      update: `(state, model, requests)` to the edit of one batch, a `Delta` without a case axis, and the next state.
        `model` holds all earlier edits; the given state and model stay valid.
      finish: `(state, model)` to a last `Delta` after all batches, or None if the method has none.
    """

    init: Callable[..., EditorState]
    update: Callable[..., tuple[Delta, EditorState]]
    finish: Callable[[EditorState, LanguageModel], Delta | None]
