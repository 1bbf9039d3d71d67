"""The algorithm of the methods that spread an edit over layers by the closed form of `rome_jax.edit.solver`.

    1. For each request alone: z = h + δ, the state after the last edited layer with which the model produces the
       target (Meng et al., 2023, equation 16).
    2. For each edited layer, from the lowest: the keys K and the present states h of all requests;
       R = (z − h) / divisor(layers left), the share of this layer (equation 20);
       ΔW = X (Kᵀ X + s I)⁻¹ Rᵀ with X = A⁻¹ K, merged before the next layer is read.

Axes: N requests, F MLP width, D width; K is [N, F] in code.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rome_jax.data.request import EditRequest
from rome_jax.edit.config import MethodName
from rome_jax.edit.delta import Update, apply_delta
from rome_jax.edit.modifiers import (
    anchor_norm,
    anchored,
    compress_rank_one,
    keep_largest,
    keep_largest_of_each,
)
from rome_jax.edit.penalty import PastKeys, Penalty
from rome_jax.edit.result import EditResult, check_finite
from rome_jax.edit.solver import DuplicateKeysError, Solution, associate
from rome_jax.edit.spread_config import Modifier, SpreadConfig
from rome_jax.edit.stages.chunks import RequestChunks, length_from_subject, moment_of
from rome_jax.edit.stages.inputs import EditInputs, tokenize_requests
from rome_jax.edit.stages.states import optimize_states, read_outputs, read_states
from rome_jax.edit.warm_start import EarlierEdits, find_starts
from rome_jax.files.checked import shown
from rome_jax.files.progress import tqdm
from rome_jax.models import forward
from rome_jax.models.interventions import Delta, DenseUpdate, Leaf, LowRankUpdate, Part
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.second_moment import SecondMoment


class Written(NamedTuple):
    """What a joint edit wrote.

    Attributes:
      delta: One update per layer, without a case axis.
      keys: Arguments of `PastKeys.add` by layer: float32 [N, F] whitened keys, [N, r] if the past ones are reduced, and
        float64 [N, P] rows of the factor or None.
      residuals: Relative residual of the solve of each layer.
      anchors: Norms that NAS rescales to, by layer of z; empty without it.
      found: By layer of z, float32 [N, D] the states that δ was added to, and [N, P, D] δ; empty without `earlier`.
    """

    delta: Delta
    keys: dict[int, tuple[np.ndarray, np.ndarray | None]]
    residuals: dict[int, float]
    anchors: Mapping[int, float]
    found: Mapping[int, tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Spread:
    """The parts of a method.

    Attributes:
      name: Name of the method, for progress bars and messages.
      penalty: Function of the configuration and C, None for the identity, that returns the penalty A₀ of a layer.
      slack: Function of the configuration and N that returns s.
      divisor: Function of the number of layers left that returns what the residual is divided by.
      remembers: Whether the keys of a batch are added to the penalty of later batches of an editor.
      rereads: Whether these keys are those of the weights after the batch instead of those that its solve used.
      optimize: Function that finds z; see `rome_jax.edit.stages.states.optimize_states`.
      read: Function that reads keys and present states; see `rome_jax.edit.stages.states.read_states`.
    """

    name: MethodName
    penalty: Callable[[Any, SecondMoment | None], Penalty]
    slack: Callable[[Any, int], float] = lambda config, num_requests: 1.0
    divisor: Callable[[int], float] = float
    remembers: bool = False
    rereads: bool = False
    optimize: Callable[..., Any] = optimize_states
    read: Callable[..., Any] = read_states

    def penalties(
        self, config: SpreadConfig, second_moments: Mapping[int, SecondMoment] | None
    ) -> dict[int, Penalty]:
        """Returns A₀ of every layer that an edit changes."""
        return {
            layer: self.penalty(config, moment_of(config, second_moments, layer))
            for layer in config.written_layers
        }

    def write(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        config: SpreadConfig,
        penalties: Mapping[int, Penalty],
        past: Mapping[int, PastKeys],
        templates: Sequence[str],
        chunk_size: int = 8,
        progress: bool = False,
        anchors: Mapping[int, float] | None = None,
        earlier: Mapping[int, EarlierEdits] | None = None,
    ) -> Written:
        """Runs the algorithm above for all requests together.

        Args:
          model, requests, config, templates, chunk_size, progress: As in `compute_joint_delta`, and checked.
          penalties: A₀ by layer.
          past: Whitened keys of earlier edits by layer; empty without any.
          anchors: Norms that NAS rescales to, by layer of z. Those that are missing are taken from the requests; the
            model is unedited then.
          earlier: δ of earlier edits that z may begin at, by layer of z; None begins at 0.
        """
        chunks = RequestChunks.of(list(map(length_from_subject, requests)), chunk_size)
        inputs = [tokenize(model, part, config, templates) for part in chunks.split(requests)]
        params, layers, each = model.params, config.written_layers, config.has(Modifier.BLUE)

        def find(
            part: tuple[EditInputs, list[EditRequest]], params: forward.Params, last: int
        ) -> tuple[np.ndarray, np.ndarray | None]:
            inputs, own = part
            arguments = (params, model.config, inputs, config, last)
            if earlier is None:
                return np.asarray(self.optimize(*arguments)[0]), None
            starts = functools.partial(find_starts, earlier, own)
            z, found = self.optimize(*arguments, starts=starts)
            return np.asarray(z), np.asarray(found.delta)

        def read_mlp(part: EditInputs, params: forward.Params, last: int) -> np.ndarray:
            return np.asarray(read_outputs(params, model.config, part, last, last)[1])

        def read(part: EditInputs, params: forward.Params, layer: int, last: int):
            return tuple(map(np.asarray, self.read(params, model.config, part, layer, last)))

        updates: list[Update] = []
        all_keys, residuals, all_found, anchors = {}, {}, {}, dict(anchors or {})
        bar = tqdm(layers, unit="layer", desc=self.name, disable=not progress)
        for index, layer in enumerate(bar):
            last = layer if each else layers[-1]
            if index == 0 or each:
                find_of_last = functools.partial(find, params=params, last=last)
                parts = list(zip(inputs, chunks.split(requests), strict=True))
                z, delta = chunks.map(find_of_last, parts, self.name, progress)  # [N, D]
                if delta is not None:
                    delta = delta.reshape(len(z), -1, z.shape[1])  # [N, P, D]
                    all_found[last] = z - delta[:, -1], delta
            of_layer = functools.partial(read, params=params, layer=layer, last=last)
            keys, h = chunks.map(of_layer, inputs, self.name)  # [N, F] and [N, D]
            if config.has(Modifier.NAS) and (index == 0 or each):
                of_last = functools.partial(read_mlp, params=params, last=last)
                outputs = chunks.map(of_last, inputs, self.name)
                if last not in anchors:
                    unedited = outputs
                    if index:
                        of_last = functools.partial(read_mlp, params=model.params, last=last)
                        unedited = chunks.map(of_last, inputs, self.name)
                    anchors[last] = anchor_norm(unedited)
                z = h + anchored(outputs, z - h, anchors[last])
            solution = self._solve(keys, penalties[layer], config, past.get(layer), requests)
            share = (z - h) / (1 if each else self.divisor(len(layers) - index))
            updates.append(joint_update(layer, solution.left, share))
            all_keys[layer] = solution.whitened.astype(np.float32), solution.below
            residuals[layer] = solution.residual
            if index + 1 < len(layers):
                params = apply_delta(params, Delta((updates[-1],)), donate=index > 0)
        if config.has(Modifier.RECT):
            updates = [keep_largest(model.params, update) for update in updates]
        written = Delta(tuple(updates))
        check_finite(written, requests)
        return Written(written, all_keys, residuals, anchors, all_found)

    def independent(
        self,
        model: LanguageModel,
        inputs: EditInputs,
        config: SpreadConfig,
        penalties: Mapping[int, Penalty],
    ) -> EditResult:
        """Computes the edits of a chunk. Each request sees only its own updates of the lower layers."""
        layers, each = config.written_layers, config.has(Modifier.BLUE)
        updates: list[Any] = []
        all_keys, results = [], []
        for index, layer in enumerate(layers):
            last = layer if each else layers[-1]
            deltas = Delta(tuple(updates)) if updates else None
            if index == 0 or each:
                z, found = self.optimize(model.params, model.config, inputs, config, last, deltas)
                results.append(found)
            keys, h = self.read(model.params, model.config, inputs, layer, last, deltas)
            if config.has(Modifier.NAS) and (index == 0 or each):
                arguments = (model.params, model.config, inputs, last, last)
                outputs = unedited = read_outputs(*arguments, deltas)[1]
                if deltas is not None:
                    unedited = read_outputs(*arguments)[1]
                # Each request is the only one of its edit.
                anchor = np.linalg.norm(unedited, axis=1)
                z = h + anchored(np.asarray(outputs), np.asarray(z - h), anchor)
            solution = associate(
                np.asarray(keys)[:, None], penalties[layer], self.slack(config, 1)
            )  # N sets of one key
            share = (z - h) / (1 if each else self.divisor(len(layers) - index))
            left = jnp.asarray(solution.left[:, 0, :, None], jnp.float32)
            layer_axis = jnp.full(len(keys), layer, jnp.int32)
            updates.append(LowRankUpdate(Leaf.MLP_DOWN, layer_axis, left, share[..., None]))
            all_keys.append(keys)
        if config.has(Modifier.PRUNE):
            updates = [compress_rank_one(model.params, update) for update in updates]
        if config.has(Modifier.RECT):
            updates = [keep_largest_of_each(model.params, update) for update in updates]
        first = results[0]
        return EditResult(
            Delta(tuple(updates)),
            losses=first.loss,
            steps=first.steps,
            keys=tuple(all_keys),
            was_answer=first.present,
        )

    def keys_of(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        config: SpreadConfig,
        templates: Sequence[str],
        chunk_size: int,
    ) -> dict[int, np.ndarray]:
        """Reads the keys of all edited layers on the weights as they are."""
        chunks = RequestChunks.of(list(map(length_from_subject, requests)), chunk_size)
        inputs = [tokenize(model, part, config, templates) for part in chunks.split(requests)]

        def read(part: EditInputs, layer: int) -> np.ndarray:
            return np.asarray(self.read(model.params, model.config, part, layer, layer)[0])

        return {
            layer: chunks.map(functools.partial(read, layer=layer), inputs, self.name)
            for layer in config.written_layers
        }

    def _solve(
        self,
        keys: np.ndarray,
        penalty: Penalty,
        config: SpreadConfig,
        past: PastKeys | None,
        requests: Sequence[EditRequest],
    ) -> Solution:
        """Solves one layer; equal keys are named by their requests."""
        try:
            slack = self.slack(config, len(keys))
            return associate(keys, penalty, slack, past, config.solver_device)
        except DuplicateKeysError as error:
            first, second = error.pairs[0]
            raise DuplicateKeysError(
                f"requests[{first}] and requests[{second}], {shown(requests[first].text)} and "
                f"{shown(requests[second].text)}, have equal keys, so that {self.name} without a slack cannot give "
                "them different values: leave one out, or edit them in different batches.",
                error.pairs,
            ) from None


def joint_update(layer: int, left: np.ndarray, right: np.ndarray) -> Update:
    """Builds ΔW = leftᵀ right from [N, F] and [N, D], as factors or dense, whichever takes less memory."""
    (rank, rows), columns = left.shape, right.shape[1]
    if rank * (rows + columns) > rows * columns:
        change = jnp.asarray(left.T @ right, jnp.float32)
        return DenseUpdate(Leaf.MLP_DOWN, Part.KERNEL, jnp.int32(layer), change)
    factors = (jnp.asarray(factor.T, jnp.float32) for factor in (left, right))
    return LowRankUpdate(Leaf.MLP_DOWN, jnp.int32(layer), *factors)


def tokenize(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: SpreadConfig,
    templates: Sequence[str],
) -> EditInputs:
    """Builds the token arrays of a chunk."""
    context_length = model.config.context_length
    return tokenize_requests(
        model.tokenizer, requests, templates, config.fact_token, context_length
    )
