"""MEMIT: many facts written at once, over a range of layers (Meng et al., 2023, "Mass-Editing Memory in a Transformer",
arXiv 2210.07229, section 4 and algorithm 1).

    1. For each request alone: z = h + δ, the state after the last edited layer with which the model produces the
       target (equation 16). It is found in the same way as v* of ROME.
    2. For each edited layer, from the lowest: the keys K and the present states h of all requests;
       R = (z − h) / (layers left), the share of this layer (equation 20);
       ΔW = (λ C + K Kᵀ)⁻¹ K Rᵀ, merged before the next layer is read (equation 14).

λ C stands for what a layer already stores. The larger λ, the less an edit changes, both the new facts and others.

Kernels are stored [in, out], so ΔW here is the transpose of the paper's Δ.

Axes: N requests, M context templates, R = (M + 1)·N rows, T tokens, F MLP width, D width; K is [F, N].
"""

from __future__ import annotations

import dataclasses
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
from rome_jax.edit.result import EditResult, check_finite
from rome_jax.edit.stages.answers import add_answers, target_answers, warn_of_failures
from rome_jax.edit.stages.chunks import (
    RequestChunks,
    check_moments,
    check_requests,
    length_from_subject,
    map_chunks,
    moment_of,
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
from rome_jax.moments.second_moment import SecondMoment


def optimize_states(
    params: forward.Params, model_config: ModelConfig, inputs: EditInputs, config: MEMITConfig
) -> tuple[jax.Array, ValueResult]:
    """Finds z of N requests (section 4.3).

    z is the residual stream after the last edited layer, at the fact token, with which the model produces the target.

    Args:
      params: Weights of the model.
      model_config: Configuration of the model.
      inputs: Token arrays of the requests.
      config: Hyperparameters. The norm of the present state bounds the distance of z from it.

    Returns:
      z, float32 [N, D], and how its δ was found.
    """
    last = config.layers[-1]
    hidden = layer_states(
        params, model_config, inputs.batch, inputs.fact, last, None, inputs.shared
    ).hidden
    h = _at_fact_token(hidden, inputs)
    # A vector added to the MLP's output moves the state after the layer by that vector.
    found = optimize_value(params, model_config, config, inputs, hidden, h, last, inputs.shared)
    return h + found.delta, found


def read_states(
    params: forward.Params,
    model_config: ModelConfig,
    inputs: EditInputs,
    layer: int,
    last: int,
    deltas: Delta | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Reads the keys of one layer and the states after the last edited layer.

    Args:
      params: Weights of the model. `layer` and the layers above are not edited yet.
      model_config: Configuration of the model.
      inputs: Token arrays of N requests.
      layer: Layer of the keys.
      last: Layer of the states; `layer` or above.
      deltas: Edits in force that are not in `params`, with case axis N.

    Returns:
      The mean key over the templates, float32 [N, F], and the state after `last` at the fact token of the bare
      prompt, float32 [N, D].
    """
    # Edits of one request each make the states of shared contexts differ.
    shared = inputs.shared if deltas is None else None
    states = layer_states(params, model_config, inputs.batch, inputs.fact, layer, deltas, shared)
    bare = slice(inputs.num_requests)  # the rows of the bare prompts
    batch = TokenBatch(inputs.batch.ids[bare], inputs.batch.mask[bare])
    hidden = _run_on(params, model_config, batch, states.hidden[bare], layer + 1, last + 1)
    return _mean_key(inputs.by_context(states.key)), _at_fact_token(hidden, inputs)


def _mean_key(keys: jax.Array) -> jax.Array:
    """Averages keys [K, N, F] to [N, F]. As in the published code, the bare prompt's key has half of the weight."""
    if len(keys) == 1:
        return keys[0]
    return (keys[0] + keys[1:].mean(axis=0)) / 2


def _at_fact_token(hidden: jax.Array, inputs: EditInputs) -> jax.Array:
    """Reads the states of the bare prompts at their fact tokens: [at least N, T, D] to float32 [N, D]."""
    requests = jnp.arange(inputs.num_requests)
    return hidden[requests, jnp.asarray(inputs.targets.fact)[0]].astype(jnp.float32)


@functools.partial(jax.jit, static_argnames="config")
def _run_on(
    params: forward.Params,
    config: ModelConfig,
    batch: TokenBatch,
    hidden: jax.Array,
    start: jax.Array,
    stop: jax.Array,
) -> jax.Array:
    """Runs the layers start to stop − 1. The bounds are traced, so that one program serves all layers."""
    attention = forward.plain_attention(batch)
    return forward.run_layers(params, config, hidden, attention, start=start, stop=stop).hidden


def associate(keys: np.ndarray, moment: SecondMoment | None, weight: float) -> np.ndarray:
    """Computes Kᵀ (λ C + K Kᵀ)⁻¹ (equation 14). The transpose of this, times the residuals, is ΔW.

    By the matrix inversion lemma it equals (I + Kᵀ X)⁻¹ Xᵀ with X = (λ C)⁻¹ K. This takes a solve with C, with its
    cached factor, and one system of N equations with a condition number of at most 1 + tr(Kᵀ X).

    Args:
      keys: [..., N, F] independent sets of N keys.
      moment: C. None uses the identity.
      weight: λ.

    Returns:
      float64 [..., N, F].

    Raises:
      ValueError: If the keys hold NaN or an infinite number, or λ C + K Kᵀ is not positive definite.

    Example:
      >>> associate(np.array([[3.0, 1.0]]), None, 10.0).tolist()  # k / (10 + k·k)
      [[0.15, 0.05]]
    """
    keys = np.asarray(keys, np.float64)
    if not np.isfinite(keys).all():
        raise ValueError("the keys of the requests are not finite: check the model's weights.")
    solved = (keys if moment is None else moment.solve(keys).astype(np.float64)) / weight
    gram = np.eye(keys.shape[-2]) + keys @ np.swapaxes(solved, -1, -2)
    try:
        return scipy.linalg.solve(gram, solved, assume_a="pos")
    except ValueError as error:  # also np.linalg.LinAlgError, and what scipy says about NaN
        raise ValueError(
            f"the second moments and mom2_update_weight={weight} give no positive definite matrix: raise the weight, "
            "or collect the second moments on more tokens."
        ) from error


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
    check_answers: bool = True,
) -> Delta:
    """Computes one edit that writes all requests.

    Besides the model, this takes the memory of a second stack of down-projections, into which the updates of lower
    layers are merged before higher layers are read (2 GB for GPT-2 XL in float32).

    Args:
      model: Model to edit; it is not changed.
      requests: N facts to write. If two of them contradict each other, the model learns a compromise.
      config: Hyperparameters.
      second_moments: Second moment C of each edited layer. Required if `config.mom2_adjustment` is set.
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
      ValueError: If there are no requests, `chunk_size` is below 1, the model does not have a layer, a second moment is
        missing, `templates` and `key` are both None, or the first template is not "{}".
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
    chunks = RequestChunks.of(list(map(length_from_subject, requests)), chunk_size)
    inputs = [_tokenize(model, chunk, config, templates) for chunk in chunks.split(requests)]

    def find(chunk: EditInputs) -> np.ndarray:
        return np.asarray(optimize_states(model.params, model.config, chunk, config)[0])

    def read(chunk: EditInputs, params: forward.Params, layer: int) -> tuple[np.ndarray, ...]:
        found = read_states(params, model.config, chunk, layer, config.layers[-1])
        return tuple(map(np.asarray, found))

    z = chunks.map(find, inputs, "MEMIT", progress)  # [N, D]
    params, updates = model.params, []
    layers = tqdm(config.layers, unit="layer", desc="MEMIT", disable=not progress)
    for index, layer in enumerate(layers):
        read_layer = functools.partial(read, params=params, layer=layer)
        keys, h = chunks.map(read_layer, inputs, "MEMIT")  # [N, F] and [N, D]
        left = associate(keys, moment_of(config, second_moments, layer), config.mom2_update_weight)
        residual = (z - h) / (len(config.layers) - index)
        updates.append(_joint_update(layer, left, residual))
        if index + 1 < len(config.layers):
            params = apply_delta(params, Delta((updates[-1],)), donate=index > 0)
    joint = Delta(tuple(updates))
    check_finite(joint, requests)
    if check_answers:
        last = Delta((updates[-1],))
        edited = model.replace(params=apply_delta(params, last, donate=len(updates) > 1))
        warn_of_failures(requests, *target_answers(edited, requests), stacklevel=4)
    return joint


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

    def compute_chunk(chunk: Sequence[EditRequest]) -> EditResult:
        inputs = _tokenize(model, chunk, config, templates)
        return _independent(model, inputs, config, second_moments)

    result = map_chunks(
        compute_chunk,
        requests,
        list(map(length_from_subject, requests)),
        chunk_size,
        "MEMIT",
        progress,
    )
    result = add_answers(model, requests, result.finite(requests), check_answers)
    return dataclasses.replace(result, templates=tuple(templates))


@accept_covariance
def compute_deltas(
    model: LanguageModel, requests: Sequence[EditRequest], config: MEMITConfig, **options: Any
) -> Delta:
    """Computes N independent edits as one `Delta` with case axis N. Arguments and errors are as in `compute`."""
    return compute(model, requests, config, **options).deltas


def _independent(
    model: LanguageModel,
    inputs: EditInputs,
    config: MEMITConfig,
    second_moments: Mapping[int, SecondMoment] | None,
) -> EditResult:
    """Computes the edits of a chunk. Each request sees only its own updates of the lower layers."""
    z, found = optimize_states(model.params, model.config, inputs, config)
    updates: list[LowRankUpdate] = []
    all_keys = []
    for index, layer in enumerate(config.layers):
        deltas = Delta(tuple(updates)) if updates else None
        keys, h = read_states(model.params, model.config, inputs, layer, config.layers[-1], deltas)
        moment = moment_of(config, second_moments, layer)
        left = associate(np.asarray(keys)[:, None], moment, config.mom2_update_weight)  # [N, 1, F]
        residual = (z - h) / (len(config.layers) - index)
        update = LowRankUpdate(
            Leaf.MLP_DOWN,
            jnp.full(len(keys), layer, jnp.int32),
            jnp.asarray(left[:, 0, :, None], jnp.float32),
            residual[..., None],
        )
        updates.append(update)
        all_keys.append(keys)
    return EditResult(
        Delta(tuple(updates)),
        losses=found.loss,
        steps=found.steps,
        keys=tuple(all_keys),
        was_answer=found.present,
    )


def _joint_update(layer: int, left: np.ndarray, right: np.ndarray) -> Update:
    """Builds ΔW = leftᵀ right from [N, F] and [N, D], as factors or dense, whichever takes less memory."""
    (rank, rows), columns = left.shape, right.shape[1]
    if rank * (rows + columns) > rows * columns:
        change = jnp.asarray(left.T @ right, jnp.float32)
        return DenseUpdate(Leaf.MLP_DOWN, Part.KERNEL, jnp.int32(layer), change)
    factors = (jnp.asarray(factor.T, jnp.float32) for factor in (left, right))
    return LowRankUpdate(Leaf.MLP_DOWN, jnp.int32(layer), *factors)


def _tokenize(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: MEMITConfig,
    templates: Sequence[str],
) -> EditInputs:
    """Builds the token arrays of a chunk."""
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
    """Checks all arguments and returns the context templates."""
    check_requests(model, requests, config, chunk_size)
    check_moments(model, config, second_moments)
    lengths = config.context_template_length_params
    return given_or_sampled(model, templates, key, lengths)
