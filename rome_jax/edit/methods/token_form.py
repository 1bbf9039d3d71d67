"""Methods that write by a closed form over all tokens, with the functions that every method has.

    1. One backward pass of the targets' negative log-likelihood gives, at every token of prompt and target, the input k
       of each edited projection and the gradient g of the loss with respect to its output.
    2. (k̂, ĝ) are (k, g) normalized by the mean and the standard deviation of all tokens so far, including this batch.
       Projections of one shape share these statistics, and the state carries them to the next batch.
    3. ΔW = (K Kᵀ + I)⁻¹ K Rᵀ, the closed form of `rome_jax.edit.solver` with A = I, s = 1, the raw inputs K, and
       residuals R that the method computes from k̂ and ĝ.

Axes: N requests, T tokens, X inputs and Y outputs of a projection, t tokens without padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.data.request import EditRequest
from rome_jax.edit.baseline_config import TokenConfig
from rome_jax.edit.config import MethodName
from rome_jax.edit.delta import apply_delta
from rome_jax.edit.editor import EditorState, SequentialEditor
from rome_jax.edit.hypernetworks.edits import token_update
from rome_jax.edit.methods.spread import joint_update
from rome_jax.edit.normalizer import Normalizer
from rome_jax.edit.penalty import Penalty
from rome_jax.edit.resources import Resources
from rome_jax.edit.result import EditResult, check_finite
from rome_jax.edit.solver import associate
from rome_jax.edit.stages.answers import add_answers, target_answers, warn_of_failures
from rome_jax.edit.stages.chunks import check_config, check_requests, map_chunks
from rome_jax.edit.stages.gradients import GradientFactors, gradient_factors
from rome_jax.edit.stages.targets import tokenize_request_targets
from rome_jax.models.interventions import Delta, Leaf
from rome_jax.models.registry import LanguageModel

Normalizers = Mapping[str, Normalizer]  # by shape of a projection, such as "512x128"


class _Tokens(NamedTuple):
    """Inputs and output gradients of the edited projections.

    Attributes:
      factors: By the name of the leaf, with axes N, layers, T and X or Y.
      mask: bool [N, T] tokens of prompt and target.
    """

    factors: Mapping[str, GradientFactors]
    mask: np.ndarray


class _Solved(NamedTuple):
    """The solved closed form of one projection: ΔW = leftᵀ right, [t, X] and [t, Y]."""

    leaf: Leaf
    layer: int
    left: np.ndarray
    right: np.ndarray
    residual: float


@dataclasses.dataclass(frozen=True)
class TokenForm:
    """A method of this form.

    Attributes:
      name: Name of the method, for progress bars.
      residuals: Function of the configuration, k̂ [t, X] and ĝ [t, Y] that returns R as rows, [t, Y].

    Example:
      >>> from rome_jax.edit import UltraEditConfig, ultra_edit
      >>> hats = np.array([[3.0, 4.0]]), np.array([[2.0]])
      >>> ultra_edit.ULTRAEDIT.residuals(UltraEditConfig((4,), lr=0.1), *hats).tolist()
      [[-5.0]]
    """

    name: MethodName
    residuals: Callable[[Any, np.ndarray, np.ndarray], np.ndarray]

    def compute_joint_delta(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        config: TokenConfig,
        *,
        chunk_size: int = 8,
        progress: bool = False,
        check_answers: bool = True,
    ) -> Delta:
        """Computes one edit that writes all requests, as the first batch of a sequence.

        Args:
          model: Model to edit; it is not changed.
          requests: N facts to write.
          config: Hyperparameters.
          chunk_size: Number of requests that run at once; it bounds the memory.
          progress: Whether to show a progress bar.
          check_answers: Whether to run the edited model once per request and warn if a target is not its answer.

        Returns:
          A `Delta` without a case axis, with one update per projection. An update has the rank of the number of tokens,
          or is dense if that takes less memory.

        Raises:
          ValueError: If there are no requests, `chunk_size` is below 1, or a layer or weight does not exist.
          SequenceTooLongError: If a request does not fit the context.

        Example:
          >>> from rome_jax.edit import UltraEditConfig, apply_delta, ultra_edit
          >>> config = UltraEditConfig.for_model(model.name)
          >>> delta = ultra_edit.compute_joint_delta(model, [request], config)
          >>> edited = model.replace(params=apply_delta(model.params, delta))
          >>> rome_jax.generate_text(edited, [request.text], max_new_tokens=2)
          ['Gothulf Punby plays the sport of tennis.']
        """
        check_requests(model, requests, config, chunk_size)
        delta = self._joint(model, requests, config, {}, chunk_size, progress)[0]
        if check_answers:
            edited = model.replace(params=apply_delta(model.params, delta))
            warn_of_failures(requests, *target_answers(edited, requests), stacklevel=3)
        return delta

    def compute(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        config: TokenConfig,
        *,
        chunk_size: int = 8,
        progress: bool = False,
        check_answers: bool = True,
    ) -> EditResult:
        """Computes N independent edits. Each takes its statistics from its own tokens, which are two or more.

        Arguments and errors are as in `compute_joint_delta`.

        Returns:
          The edits with case axis N and one update of rank T per projection.

        Example:
          >>> from rome_jax.edit import UltraEditConfig, ultra_edit
          >>> config = UltraEditConfig((4,))
          >>> ultra_edit.compute(model, [request], config, check_answers=False).deltas
          Delta(1 edits: MLP_DOWN [512, 128] rank 8 at layer 4)
        """
        check_requests(model, requests, config, chunk_size)
        tokens = self._read(model, requests, config, chunk_size, progress)
        each = [self._solve(tokens, [index], config, {})[0] for index in range(len(requests))]
        num_tokens = tokens.mask.shape[1]

        def padded(parts: Sequence[np.ndarray]) -> jax.Array:
            return jnp.stack(
                [np.pad(rows, ((0, num_tokens - len(rows)), (0, 0))) for rows in parts]
            )

        updates = tuple(
            token_update(
                solved[0].leaf,
                solved[0].layer,
                padded([one.left for one in solved]).astype(jnp.float32),
                padded([one.right for one in solved]).astype(jnp.float32),
            )
            for solved in zip(*each, strict=True)
        )
        result = EditResult(Delta(updates)).finite(requests)
        return add_answers(model, requests, result, check_answers, stacklevel=3)

    def compute_deltas(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        config: TokenConfig,
        **options: Any,
    ) -> Delta:
        """Computes N independent edits as one `Delta` with case axis N. Arguments and errors are as in `compute`."""
        return self.compute(model, requests, config, **options).deltas

    def make_editor(self, config: TokenConfig, *, chunk_size: int = 8) -> SequentialEditor:
        """Returns the method as an editor that carries its statistics from one batch of edits to the next.

        Args:
          config: Hyperparameters.
          chunk_size: Number of requests that run at once; it bounds the memory.

        Example:
          >>> from rome_jax.edit import Resources, UltraEditConfig, ultra_edit
          >>> editor = ultra_edit.make_editor(UltraEditConfig((4,)))
          >>> state = editor.init(model, Resources())
          >>> delta, state = editor.update(state, model, [request])
          >>> {shape: seen.count for shape, seen in state.normalizers.items()}
          {'512x128': 8}
        """

        def init(
            model: LanguageModel,
            resources: Resources,
            templates: Sequence[str] | None = None,
            key: jax.Array | None = None,
        ) -> EditorState:
            check_config(model, config, chunk_size)
            return EditorState((), resources)

        def update(
            state: EditorState, model: LanguageModel, requests: Sequence[EditRequest]
        ) -> tuple[Delta, EditorState]:
            check_requests(model, requests, config, chunk_size)
            delta, normalizers, residuals = self._joint(
                model, requests, config, state.normalizers, chunk_size, progress=False
            )
            return delta, dataclasses.replace(
                state,
                normalizers=normalizers,
                num_edits=state.num_edits + len(requests),
                residuals=residuals,
            )

        return SequentialEditor(init, update, lambda state, model: None)

    def _joint(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        config: TokenConfig,
        normalizers: Normalizers,
        chunk_size: int,
        progress: bool,
    ) -> tuple[Delta, Normalizers, dict[int, float]]:
        """Writes all requests together; returns the edit, the next statistics, and the largest residual by layer."""
        tokens = self._read(model, requests, config, chunk_size, progress)
        solved, normalizers = self._solve(tokens, range(len(requests)), config, normalizers)
        updates = (
            dataclasses.replace(joint_update(one.layer, one.left, one.right), leaf=one.leaf)
            for one in solved
        )
        delta = Delta(tuple(updates))
        check_finite(delta, requests)
        largest: dict[int, float] = {}
        for one in solved:
            largest[one.layer] = max(one.residual, largest.get(one.layer, 0.0))
        return delta, normalizers, largest

    def _read(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        config: TokenConfig,
        chunk_size: int,
        progress: bool,
    ) -> _Tokens:
        """Runs the backward pass of all requests."""
        tokenizer, context_length = model.tokenizer, model.config.context_length
        # Any token that follows a target makes the target's last token part of the row. It is not scored itself.
        inputs = tokenize_request_targets(tokenizer, requests, context_length, end=0)
        scored = np.pad(inputs.target_mask[:, 1:], ((0, 0), (0, 1)))
        inputs = dataclasses.replace(inputs, target_mask=scored)

        def read(chunk: Sequence[int]) -> dict[str, GradientFactors]:
            part = jax.tree.map(lambda leaf: leaf[np.array(chunk)], inputs)
            found = gradient_factors(model.params, model.config, part, config.layers, config.leaves)
            return jax.tree.map(np.asarray, found)

        rows = range(len(requests))
        factors = map_chunks(read, rows, rows, chunk_size, self.name, progress)
        return _Tokens(factors, np.asarray(inputs.batch.mask))

    def _solve(
        self, tokens: _Tokens, rows: Sequence[int], config: TokenConfig, normalizers: Normalizers
    ) -> tuple[list[_Solved], Normalizers]:
        """Solves all projections for the requests `rows`, and returns the statistics that include them."""
        chosen = np.array(rows)
        inside = tokens.mask[chosen]
        pairs: dict[tuple[Leaf, int], tuple[np.ndarray, np.ndarray]] = {}
        for leaf in config.leaves:
            found = tokens.factors[leaf.name]
            for index, layer in enumerate(config.layers):
                keys, gradients = (
                    np.asarray(a)[chosen, index][inside] for a in (found.x, found.delta)
                )
                pairs[leaf, layer] = keys, gradients
        normalizers = dict(normalizers)
        for keys, gradients in pairs.values():
            both, shape = np.concatenate([keys, gradients], 1), _shape(keys, gradients)
            seen = normalizers.get(shape) or Normalizer.of_size(both.shape[1])
            normalizers[shape] = seen.add(both)
        solved = []
        for (leaf, layer), (keys, gradients) in pairs.items():
            both = np.concatenate([keys, gradients], 1)
            hats = normalizers[_shape(keys, gradients)].normalize(both)
            key_hats, gradient_hats = np.split(hats, [keys.shape[1]], 1)
            right = self.residuals(config, key_hats, gradient_hats)
            solution = associate(keys, Penalty.of(None, 1.0), 1.0)
            solved.append(_Solved(leaf, layer, solution.left, right, solution.residual))
        return solved, normalizers


def _shape(keys: np.ndarray, gradients: np.ndarray) -> str:
    """Returns the shape of a projection as text."""
    return f"{keys.shape[1]}x{gradients.shape[1]}"
