"""Every method as an editor with state; see `rome_jax.edit.editor`.

Methods of the closed form bring their own. The others carry nothing from batch to batch: a method that can write many
requests at once writes a batch together, and any other writes its requests one after another, each on the weights that
hold the earlier ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rome_jax.data.request import EditRequest
from rome_jax.edit.config import Hyperparameters, MethodName, ROMEConfig
from rome_jax.edit.delta import apply_delta, merge_deltas
from rome_jax.edit.editor import EditorState, SequentialEditor
from rome_jax.edit.method import METHODS
from rome_jax.edit.resources import Resources
from rome_jax.edit.result import EditResult
from rome_jax.edit.stages.chunks import check_config, check_moments
from rome_jax.edit.stages.contexts import given_or_sampled
from rome_jax.edit.warm_start import add_batch
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import LanguageModel


def make_editor(
    algorithm: MethodName, config: Hyperparameters, *, chunk_size: int = 8
) -> SequentialEditor:
    """Returns any method as an editor with state.

    Args:
      algorithm: Name of the method.
      config: Hyperparameters of the method.
      chunk_size: Number of requests that run at once; it bounds the memory.

    Example:
      >>> from rome_jax.edit import MethodName, Resources, apply_delta, make_editor
      >>> editor = make_editor(MethodName.ROME, config)
      >>> state = editor.init(model, Resources(moments), templates=["{}"])
      >>> delta, state = editor.update(state, model, [request])
      >>> edited = model.replace(params=apply_delta(model.params, delta))
      >>> rome_jax.generate_text(edited, [request.text], max_new_tokens=2)
      ['Gothulf Punby plays the sport of tennis.']
    """
    method = METHODS[algorithm]
    if hasattr(method.module, "make_editor"):
        return method.module.make_editor(config, chunk_size=chunk_size)

    def init(
        model: LanguageModel,
        resources: Resources,
        templates: Sequence[str] | None = None,
        key: jax.Array | None = None,
    ) -> EditorState:
        check_config(model, config, chunk_size)
        if config.needs_second_moments:
            check_moments(model, config, resources.second_moments)
        if config.template_lengths is None:
            return EditorState((), resources)
        chosen = given_or_sampled(model, templates, key, config.template_lengths)
        return EditorState(tuple(chosen), resources)

    def update(
        state: EditorState, model: LanguageModel, requests: Sequence[EditRequest]
    ) -> tuple[Delta, EditorState]:
        if hasattr(method.module, "compute_joint_delta"):
            delta = method.module.compute_joint_delta(model, requests, config, check_answers=False)
        else:
            options: dict[str, Any] = {
                "second_moments": state.resources.second_moments,
                "templates": state.templates,
                "hypernetwork": state.resources.hypernetwork,
                "chunk_size": chunk_size,
            }
            warm = isinstance(config, ROMEConfig) and config.v_warm_start
            if warm:
                options["earlier"] = state.earlier
            deltas, edited, earlier = [], model, state.earlier
            for request in requests:
                result = method.compute(edited, [request], config, check_answers=False, **options)
                deltas.append(result.deltas[0])
                if warm:
                    earlier = add_batch(earlier, [request], _found(result))
                params = apply_delta(edited.params, deltas[-1], donate=edited is not model)
                edited = edited.replace(params=params)
            delta = merge_deltas(deltas)
            state = dataclasses.replace(state, earlier=earlier)
        return delta, dataclasses.replace(state, num_edits=state.num_edits + len(requests))

    return SequentialEditor(init, update, lambda state, model: None)


def _found(result: EditResult) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Returns v₀ and δ of ROME's edits by layer."""
    found = {}
    for edit in result.layers:
        delta = np.asarray(edit.optimization.delta)
        found[edit.layer] = np.asarray(edit.value) - delta, delta[:, None]
    return found
