"""Methods that spread an edit over layers, with the functions that every method has.

A method is a `ClosedForm`: the parts that `rome_jax.edit.methods.spread` puts together, such as its penalty A, its
slack s, its divisor, and whether it keeps the keys of a batch of edits as part of the penalty of later batches. The
module of a method defines one and names its functions.

Axes: N requests, F MLP width, D width; K is [N, F] in code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from rome_jax.data.request import EditRequest
from rome_jax.edit.delta import apply_delta, merge_deltas
from rome_jax.edit.editor import EditorState, SequentialEditor
from rome_jax.edit.methods.spread import Spread, Written, tokenize
from rome_jax.edit.modifiers import pruned
from rome_jax.edit.penalty import PastKeys
from rome_jax.edit.renamed import accept_covariance
from rome_jax.edit.resources import Resources
from rome_jax.edit.result import EditResult
from rome_jax.edit.spread_config import Modifier, SpreadConfig
from rome_jax.edit.stages.answers import add_answers, target_answers, warn_of_failures
from rome_jax.edit.stages.chunks import (
    check_config,
    check_moments,
    check_requests,
    length_from_subject,
    map_chunks,
)
from rome_jax.edit.stages.contexts import given_or_sampled
from rome_jax.edit.warm_start import add_batch
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.second_moment import SecondMoment

Moments = Mapping[int, SecondMoment]


@dataclasses.dataclass(frozen=True)
class ClosedForm(Spread):
    """A method of the family.

    The attributes are those of `Spread`.

    Example:
      >>> from rome_jax.edit import MEMITConfig, memit
      >>> memit.MEMIT.slack(MEMITConfig((5,)), 10)
      1.0
    """

    @accept_covariance
    def compute_joint_delta(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        config: SpreadConfig,
        *,
        second_moments: Moments | None = None,
        templates: Sequence[str] | None = None,
        key: jax.Array | None = None,
        chunk_size: int = 8,
        progress: bool = False,
        check_answers: bool = True,
    ) -> Delta:
        """Computes one edit that writes all requests.

        Besides the model, this takes the memory of a second stack of down-projections, into which the updates of lower
        layers are merged before higher layers are read (2 GB for GPT-2 XL in float32).

        Args:
          model: Model to edit; it is not changed.
          requests: N facts to write. If two of them contradict each other, the model learns a compromise.
          config: Hyperparameters.
          second_moments: Second moment C of each edited layer, if `config.needs_second_moments`.
          templates: Context templates. Each ends in "{}", and the first is "{}". None samples them from the model.
          key: PRNG key of that sampling.
          chunk_size: Number of requests that run at once; it bounds the memory. 8 is fastest on CPUs, and GPUs can take
            more.
          progress: Whether to show progress bars.
          check_answers: Whether to run the edited model once per request and warn if a target is not its answer.

        Returns:
          A `Delta` without a case axis, with one update per layer. An update has rank N, or is dense if that takes less
          memory.

        Raises:
          ValueError: If there are no requests, `chunk_size` is below 1, the model does not have a layer, a second
            moment is missing, `templates` and `key` are both None, or the first template is not "{}".
          DuplicateKeysError: If two requests have equal keys and the method has no slack.
          SequenceTooLongError: If a request does not fit the context.

        Example:
          >>> from rome_jax.edit import MEMITConfig, apply_delta, memit
          >>> config = MEMITConfig.for_model(model.name)
          >>> delta = memit.compute_joint_delta(model, [request], config, second_moments=moments, templates=["{}"])
          >>> edited = model.replace(params=apply_delta(model.params, delta))
          >>> rome_jax.generate_text(edited, [request.text], max_new_tokens=2)
          ['Gothulf Punby plays the sport of tennis.']
        """
        templates = _check(model, requests, config, second_moments, templates, key, chunk_size)
        penalties = self.penalties(config, second_moments)
        written = self.write(
            model, requests, config, penalties, {}, templates, chunk_size, progress
        )
        delta = written.delta
        if config.has(Modifier.PRUNE):
            edited = apply_delta(model.params, delta)
            delta = merge_deltas([delta, pruned(edited, delta)])
        if check_answers:
            self._warn(model, requests, delta)
        return delta

    @accept_covariance
    def compute(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        config: SpreadConfig,
        *,
        second_moments: Moments | None = None,
        templates: Sequence[str] | None = None,
        key: jax.Array | None = None,
        chunk_size: int = 8,
        progress: bool = False,
        check_answers: bool = True,
    ) -> EditResult:
        """Computes N independent edits, each of one request. Arguments and errors are as in `compute_joint_delta`.

        Returns:
          The edits with case axis N and one update of rank one per layer. Losses and steps are those of z.

        Example:
          >>> from rome_jax.edit import MEMITConfig, memit
          >>> config = MEMITConfig.for_model(model.name)
          >>> result = memit.compute(model, [request], config, second_moments=moments, templates=["{}"])
          >>> [update.left.shape for update in result.deltas.updates]
          [(1, 512, 1), (1, 512, 1), (1, 512, 1)]
        """
        templates = _check(model, requests, config, second_moments, templates, key, chunk_size)
        penalties = self.penalties(config, second_moments)

        def compute_chunk(chunk: Sequence[EditRequest]) -> EditResult:
            inputs = tokenize(model, chunk, config, templates)
            return self.independent(model, inputs, config, penalties)

        lengths = list(map(length_from_subject, requests))
        result = map_chunks(compute_chunk, requests, lengths, chunk_size, self.name, progress)
        result = add_answers(model, requests, result.finite(requests), check_answers)
        return dataclasses.replace(result, templates=tuple(templates))

    def compute_deltas(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        config: SpreadConfig,
        **options: Any,
    ) -> Delta:
        """Computes N independent edits as one `Delta` with case axis N. Arguments and errors are as in `compute`."""
        return self.compute(model, requests, config, **options).deltas

    def make_editor(self, config: SpreadConfig, *, chunk_size: int = 8) -> SequentialEditor:
        """Returns the method as an editor that carries its state from one batch of edits to the next.

        Args:
          config: Hyperparameters.
          chunk_size: Number of requests that run at once; it bounds the memory.

        Example:
          >>> from rome_jax.edit import MEMITConfig, Resources, memit
          >>> editor = memit.make_editor(MEMITConfig.for_model(model.name))
          >>> state = editor.init(model, Resources(moments), templates=["{}"])
          >>> delta, state = editor.update(state, model, [request])
          >>> state.num_edits
          1
        """

        def init(
            model: LanguageModel,
            resources: Resources,
            templates: Sequence[str] | None = None,
            key: jax.Array | None = None,
        ) -> EditorState:
            check_config(model, config, chunk_size)
            check_moments(model, config, resources.second_moments)
            templates = given_or_sampled(model, templates, key, config.template_lengths or ())
            penalties = self.penalties(config, resources.second_moments)
            return EditorState(tuple(templates), resources, penalties)

        def update(
            state: EditorState, model: LanguageModel, requests: Sequence[EditRequest]
        ) -> tuple[Delta, EditorState]:
            check_requests(model, requests, config, chunk_size)
            written = self.write(
                *(model, requests, config, state.penalties, state.past, state.templates),
                chunk_size,
                anchors=state.anchors,
                earlier=state.earlier if config.v_warm_start else None,
            )
            earlier = state.earlier
            if config.v_warm_start:
                earlier = add_batch(earlier, requests, written.found)
            past = state.past
            if self.remembers:
                past = self._remember(state, model, requests, config, written, chunk_size)
            kept = state.written
            if config.has(Modifier.PRUNE):
                kept = Delta((*kept.updates, *written.delta.updates))
            return written.delta, dataclasses.replace(
                state,
                past=past,
                num_edits=state.num_edits + len(requests),
                residuals=written.residuals,
                written=kept,
                anchors=written.anchors,
                earlier=earlier,
            )

        def finish(state: EditorState, model: LanguageModel) -> Delta | None:
            return pruned(model.params, state.written) if config.has(Modifier.PRUNE) else None

        return SequentialEditor(init, update, finish)

    def _remember(
        self,
        state: EditorState,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        config: SpreadConfig,
        written: Written,
        chunk_size: int,
    ) -> dict[int, PastKeys]:
        """Adds the keys of a batch to those of earlier batches."""
        keys, penalties = written.keys, state.penalties
        past = {
            layer: state.past.get(layer) or PastKeys.none(penalties[layer], whitened.shape[1])
            for layer, (whitened, _) in keys.items()
        }
        # Only RECT writes less than the solve of the next layer saw.
        if self.rereads and config.has(Modifier.RECT):
            edited = model.replace(params=apply_delta(model.params, written.delta))
            read = self.keys_of(edited, requests, config, state.templates, chunk_size)
            keys = {
                layer: (penalties[layer].whiten(own, past[layer].is_reduced), None)
                for layer, own in read.items()
            }
        return {
            layer: past[layer].add(whitened, below, penalties[layer].basis)
            for layer, (whitened, below) in keys.items()
        }

    def _warn(self, model: LanguageModel, requests: Sequence[EditRequest], delta: Delta) -> None:
        """Warns of targets that are not the answer of the edited model."""
        edited = model.replace(params=apply_delta(model.params, delta))
        warn_of_failures(requests, *target_answers(edited, requests), stacklevel=5)


def _check(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: SpreadConfig,
    second_moments: Moments | None,
    templates: Sequence[str] | None,
    key: jax.Array | None,
    chunk_size: int,
) -> Sequence[str]:
    """Checks all arguments and returns the context templates."""
    check_requests(model, requests, config, chunk_size)
    check_moments(model, config, second_moments)
    lengths = config.context_template_length_params
    return given_or_sampled(model, templates, key, lengths)
