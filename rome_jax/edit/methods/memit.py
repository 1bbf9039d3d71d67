"""MEMIT: many facts written at once, over a range of layers (Meng et al., 2023, "Mass-Editing Memory in a Transformer",
arXiv 2210.07229, section 4 and algorithm 1).

    requests, templates ─► token arrays ─► state h at the last layer ─► z = h + δ, which makes the model say the target
    then for each layer ─► keys K, present h ─► ΔW = (λ C + K Kᵀ)⁻¹ K · (z − h) / layers left ─► the next layer

z is found as v* of ROME is, for each request alone; the closed form serves all requests at once. λ C stands for what a
layer holds already: the larger λ, the less an edit does, to its own facts and to others.

Axes: N requests, M templates, T tokens, F MLP width, D width; K is [F, N].
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import TokenBatch
from rome_jax.edit.config import MEMITConfig
from rome_jax.edit.delta import Update, apply_delta
from rome_jax.edit.renamed import accept_covariance
from rome_jax.edit.result import EditResult
from rome_jax.edit.stages.chunks import (
    RequestChunks,
    behind_subject,
    check_moments,
    check_requests,
    map_chunks,
)
from rome_jax.edit.stages.contexts import given_or_sampled
from rome_jax.edit.stages.inputs import EditInputs, tokenize_requests
from rome_jax.edit.stages.key import layer_states
from rome_jax.edit.stages.value import ValueResult, optimize_value
from rome_jax.files.progress import tqdm
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Delta, DenseUpdate, Leaf, LowRankUpdate, Part
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.files import SecondMoment


def optimize_states(
    params: forward.Params, model_config: ModelConfig, inputs: EditInputs, config: MEMITConfig
) -> tuple[jax.Array, ValueResult]:
    """z of N requests (section 4.3): the residual stream after the last edited layer, at the fact token, with which the
    model says the target.

    Args:
      params, model_config: the model.
      inputs: token arrays of the requests.
      config: hyperparameters; the norm of the present state bounds how far z moves from it.

    Returns:
      z, float32 [N, D], and how its δ was found.
    """
    last = config.layers[-1]
    hidden = layer_states(
        params, model_config, inputs.batch, inputs.lookup.reshape(-1), last, None, inputs.contexts
    ).hidden
    start = _at_fact_token(_bare(hidden, inputs), inputs)
    # In both families a vector added to the MLP's output moves the state behind the layer by that vector.
    found = optimize_value(params, model_config, config, inputs, hidden, start, last)
    return start + found.delta, found


def read_states(
    params: forward.Params,
    model_config: ModelConfig,
    inputs: EditInputs,
    layer: int,
    last: int,
    deltas: Delta | None = None,
) -> tuple[jax.Array, jax.Array]:
    """What the closed form of one layer reads from a model that holds the edits of the layers below.

    Args:
      params, model_config: the model; `layer` and those above are not edited yet.
      inputs: token arrays of N requests.
      layer: whose keys are wanted.
      last: the layer whose state is wanted, `layer` or above.
      deltas: edits in force with case axis N, if they are not in `params`.

    Returns:
      The mean key over the templates, float32 [N, F], and the state after `last` at the fact token of the bare
      prompt, float32 [N, D].
    """
    contexts = inputs.contexts if deltas is None else None  # the edits make them differ
    states = layer_states(
        params, model_config, inputs.batch, inputs.lookup.reshape(-1), layer, deltas, contexts
    )
    keys = states.key.reshape(*inputs.lookup.shape, -1)[:, :-1]  # [N, M, F]
    keys = _mean_key(keys)
    batch = TokenBatch(_bare(inputs.batch.ids, inputs), _bare(inputs.batch.mask, inputs))
    hidden = _bare(states.hidden, inputs)
    hidden = _run_on(params, model_config, batch, hidden, layer + 1, last + 1)
    return keys, _at_fact_token(hidden, inputs)


def _mean_key(keys: jax.Array) -> jax.Array:
    """[N, M, F] -> [N, F]: half of it the bare prompt's, half the mean of the prefixed ones', as the published code."""
    if keys.shape[1] == 1:
        return keys[:, 0]
    return (keys[:, 0] + keys[:, 1:].mean(axis=1)) / 2


def _bare(rows: jax.Array, inputs: EditInputs) -> jax.Array:
    """The rows of the first template, the bare prompts: [N·(M + 1), ...] -> [N, ...]."""
    return rows[:: inputs.lookup.shape[1]]


def _at_fact_token(hidden: jax.Array, inputs: EditInputs) -> jax.Array:
    """[N, T, D] of the bare prompts -> float32 [N, D]."""
    lookup = jnp.asarray(inputs.lookup)[:, 0]
    return hidden[jnp.arange(len(lookup)), lookup].astype(jnp.float32)


@functools.partial(jax.jit, static_argnames="config")
def _run_on(
    params: forward.Params,
    config: ModelConfig,
    batch: TokenBatch,
    hidden: jax.Array,
    start: jax.Array,
    stop: jax.Array,
) -> jax.Array:
    """[B, T, D] before layer `start` -> before layer `stop`; the bounds are traced: one program for all layers."""
    attention = forward.plain_attention(batch)
    return forward.run_layers(params, config, hidden, attention, start=start, stop=stop).hidden


def associate(keys: np.ndarray, moment: SecondMoment | None, weight: float) -> np.ndarray:
    """Kᵀ (λ C + K Kᵀ)⁻¹ (section 4.2), by which the values of new facts are multiplied to give ΔW.

    With N keys it is (I + Kᵀ X)⁻¹ Xᵀ for X = (λ C)⁻¹ K: a system of N equations besides the solve with C, whose factor
    is kept from call to call. Its matrix is no worse conditioned than 1 + tr(Kᵀ X).

    Args:
      keys: [..., N, F]; sets of N keys, each for itself.
      moment: C; None takes the identity.
      weight: λ.

    Returns:
      float64 [..., N, F].

    Example:
      >>> associate(np.array([[3.0, 1.0]]), None, 10.0).tolist()  # k / (10 + k·k)
      [[0.15, 0.05]]
    """
    keys = np.asarray(keys, np.float64)
    solved = (keys if moment is None else moment.solve(keys).astype(np.float64)) / weight
    gram = np.eye(keys.shape[-2]) + keys @ np.swapaxes(solved, -1, -2)
    return scipy.linalg.solve(gram, solved, assume_a="pos")


@accept_covariance
def compute_joint_delta(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: MEMITConfig,
    *,
    second_moments: Mapping[int, SecondMoment] | None = None,
    templates: Sequence[str] | None = None,
    key: jax.Array | None = None,
    chunk_size: int = 8,
    progress: bool = False,
) -> Delta:
    """One edit that holds all requests.

    Besides the model it takes the memory of one more stack of down-projections, into which the lower layers' updates
    are merged while the higher ones are computed (GPT-2 XL in float32: 2 GB).

    Args:
      model: what to edit; not changed.
      requests: the facts to write; of two that contradict each other, the model learns something in between.
      config: hyperparameters.
      second_moments: second moments by layer; needed if `config.mom2_adjustment`.
      templates: context templates that end in "{}", the first of them "{}"; sampled from the model if None.
      key: PRNG key of that sampling.
      chunk_size: requests that run side by side; bounds the memory. 8 is fastest on CPUs; GPUs take more.
      progress: show progress bars.

    Returns:
      A Delta without a case axis, one update a layer: of rank N, or dense where that takes less memory.

    Raises:
      ValueError: no requests, a chunk_size below 1, no such layer, a missing second moment, neither templates nor key,
        templates that do not start with "{}".
      SequenceTooLongError: a request that does not fit the context.

    Example:
      >>> delta = compute_joint_delta(model, requests, MEMITConfig.for_model(model.name),
      ...                             second_moments=moments, key=jax.random.key(0))  # doctest: +SKIP
      >>> edited = apply_delta(model.params, delta)  # doctest: +SKIP
    """
    templates = _check(model, requests, config, second_moments, templates, key, chunk_size)
    chunks = RequestChunks.of(list(map(behind_subject, requests)), chunk_size)
    inputs = [_tokenize(model, chunk, config, templates) for chunk in chunks.split(requests)]

    def find(chunk: EditInputs) -> np.ndarray:
        return np.asarray(optimize_states(model.params, model.config, chunk, config)[0])

    def read(chunk: EditInputs, params: forward.Params, layer: int) -> tuple[np.ndarray, ...]:
        found = read_states(params, model.config, chunk, layer, config.layers[-1])
        return tuple(map(np.asarray, found))

    targets = chunks.map(find, inputs, "MEMIT", progress)
    params, updates = model.params, []
    layers = tqdm(config.layers, unit="layer", desc="MEMIT", disable=not progress)
    for index, layer in enumerate(layers):
        keys, states = chunks.map(
            functools.partial(read, params=params, layer=layer), inputs, "MEMIT"
        )
        left = associate(keys, _moment(second_moments, config, layer), config.mom2_update_weight)
        left_over = (targets - states) / (len(config.layers) - index)
        updates.append(_joint_update(layer, left, left_over))
        if index + 1 < len(config.layers):
            params = apply_delta(params, Delta((updates[-1],)), donate=index > 0)
    return Delta(tuple(updates))


@accept_covariance
def compute(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: MEMITConfig,
    *,
    second_moments: Mapping[int, SecondMoment] | None = None,
    templates: Sequence[str] | None = None,
    key: jax.Array | None = None,
    chunk_size: int = 8,
    progress: bool = False,
) -> EditResult:
    """N independent edits, each of one request; arguments and errors are those of `compute_joint_delta`.

    Returns:
      `EditResult` whose deltas have one update of rank one per layer; losses and steps are those of z.

    Example:
      >>> result = compute(model, requests, config, second_moments=moments, key=key)  # doctest: +SKIP
      >>> edited = apply_delta(model.params, result.deltas[0])  # doctest: +SKIP
    """
    templates = _check(model, requests, config, second_moments, templates, key, chunk_size)

    def compute_chunk(chunk: Sequence[EditRequest]) -> EditResult:
        inputs = _tokenize(model, chunk, config, templates)
        return _independent(model, inputs, config, second_moments)

    return map_chunks(
        compute_chunk, requests, list(map(behind_subject, requests)), chunk_size, "MEMIT", progress
    )


@accept_covariance
def compute_deltas(
    model: LanguageModel, requests: Sequence[EditRequest], config: MEMITConfig, **options: Any
) -> Delta:
    """N independent edits as one Delta with case axis N; arguments and errors are those of `compute`.

    Example:
      >>> deltas = compute_deltas(model, requests, config, second_moments=moments, key=key)  # doctest: +SKIP
      >>> edited = apply_delta(model.params, deltas[0])  # doctest: +SKIP
    """
    return compute(model, requests, config, **options).deltas


def _independent(
    model: LanguageModel,
    inputs: EditInputs,
    config: MEMITConfig,
    second_moments: Mapping[int, SecondMoment] | None,
) -> EditResult:
    """The edits of a chunk's requests, each on the model that holds its own updates of the lower layers."""
    targets, found = optimize_states(model.params, model.config, inputs, config)
    deltas, all_keys = None, []
    for index, layer in enumerate(config.layers):
        keys, states = read_states(
            model.params, model.config, inputs, layer, config.layers[-1], deltas
        )
        left = associate(
            np.asarray(keys)[:, None],
            _moment(second_moments, config, layer),
            config.mom2_update_weight,
        )
        right = (targets - states) / (len(config.layers) - index)
        layers = jnp.full(len(keys), layer, jnp.int32)
        left = jnp.asarray(left[:, 0, :, None], jnp.float32)
        update = LowRankUpdate(Leaf.MLP_DOWN, layers, left, right[..., None])
        deltas = Delta((*(deltas.updates if deltas else ()), update))
        all_keys.append(keys)
    return EditResult(
        deltas,
        losses=found.loss,
        steps=found.steps,
        keys=tuple(all_keys),
        was_answer=found.present,
    )


def _joint_update(layer: int, left: np.ndarray, right: np.ndarray) -> Update:
    """ΔW = leftᵀ right for left [N, F] and right [N, D], as factors or as a whole, whichever is smaller."""
    (rank, rows), columns = left.shape, right.shape[1]
    if rank * (rows + columns) > rows * columns:
        change = jnp.asarray(left.T @ right, jnp.float32)
        return DenseUpdate(Leaf.MLP_DOWN, Part.KERNEL, jnp.int32(layer), change)
    factors = (jnp.asarray(factor.T, jnp.float32) for factor in (left, right))
    return LowRankUpdate(Leaf.MLP_DOWN, jnp.int32(layer), *factors)


def _moment(
    second_moments: Mapping[int, SecondMoment] | None, config: MEMITConfig, layer: int
) -> SecondMoment | None:
    return second_moments[layer] if config.mom2_adjustment else None


def _tokenize(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: MEMITConfig,
    templates: Sequence[str],
) -> EditInputs:
    context_length = model.config.context_length
    return tokenize_requests(
        model.tokenizer, requests, templates, config.fact_token, context_length
    )


def _check(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: MEMITConfig,
    second_moments: Mapping[int, SecondMoment] | None,
    templates: Sequence[str] | None,
    key: jax.Array | None,
    chunk_size: int,
) -> Sequence[str]:
    """The context templates, after a look at everything else."""
    check_requests(model, requests, config, chunk_size)
    if config.mom2_adjustment:
        check_moments(config.layers, second_moments)
    lengths = config.context_template_length_params
    return given_or_sampled(model, templates, key, lengths)
