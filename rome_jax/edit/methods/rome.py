"""ROME: Rank-One Model Editing (Meng et al., 2022, "Locating and Editing Factual Associations in GPT", section 3).

    requests, templates ─► token arrays ─► states at layer l ─► k*, u = C⁻¹ k* ─► v* ─► ΔW = u ⊗ (v* − W k) / (k · u)

Every stage is a pure function of arrays and works on N independent requests at once; this module calls them in order.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rome_jax.data.request import EditRequest, EditWarning
from rome_jax.edit.config import KeyMode, ROMEConfig
from rome_jax.edit.delta import apply_delta, rank_one_update
from rome_jax.edit.renamed import accept_covariance
from rome_jax.edit.result import EditResult
from rome_jax.edit.stages.chunks import behind_subject, check_moments, check_requests, map_chunks
from rome_jax.edit.stages.contexts import given_or_sampled
from rome_jax.edit.stages.inputs import EditInputs, tokenize_requests
from rome_jax.edit.stages.key import layer_states, whitened_direction
from rome_jax.edit.stages.value import ValueResult, optimize_value
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.files import SecondMoment

# ‖ΔW‖ / ‖W‖ beyond this is no edit of one fact: disabling edits (arXiv 2403.07175) are far above, sound ones of the
# shipped models about 0.2 to 3.
EXPLOSION_RATIO = 10.0


@struct.dataclass
class LayerEdit:
    """How the update of one layer came about, for N requests.

    Attributes:
      layer: its index (static).
      key: [N, F], k*, the mean over the contexts.
      u: [N, F], the whitened direction.
      value: [N, D], v*.
      optimization: losses and δ of the value.
      division_factor: [N], k · u.
      norm: [N], ‖ΔW‖ (Frobenius).
      norm_ratio: [N], ‖ΔW‖ / ‖W‖.
    """

    layer: int = struct.field(pytree_node=False)
    key: jax.Array
    u: jax.Array
    value: jax.Array
    optimization: ValueResult
    division_factor: jax.Array
    norm: jax.Array
    norm_ratio: jax.Array


@accept_covariance
def compute_from_inputs(
    params: forward.Params,
    model_config: ModelConfig,
    inputs: EditInputs,
    config: ROMEConfig,
    second_moments: Mapping[int, SecondMoment | jax.typing.ArrayLike] | None = None,
) -> EditResult:
    """The algorithm: N independent edits from token arrays. Pure; its stages are compiled one by one.

    With the factors of the second moments it can be traced as a whole: jit it with everything but `params`, `inputs`
    and the factors closed over.

    Args:
      params, model_config: the model.
      inputs: token arrays of N requests; see `rome_jax.edit.stages.inputs.tokenize_requests`.
      config: hyperparameters.
      second_moments: second moments by layer, or inside a `jit` their factors (`SecondMoment.factor`, float32
        [F, F]); needed if `config.mom2_adjustment`.
    """
    num_requests, num_rows = inputs.lookup.shape
    deltas, edits = None, []
    for layer in config.layers:
        states = layer_states(
            params,
            model_config,
            inputs.batch,
            inputs.lookup.reshape(-1),
            layer,
            deltas,
            inputs.contexts,
        )
        keys, values = (
            x.reshape(num_requests, num_rows, -1)[:, :-1] for x in (states.key, states.value)
        )  # [N, K, F] and [N, K, D], without the essence row
        mean_key = keys.mean(axis=1)
        u = whitened_direction(mean_key, second_moments[layer] if config.mom2_adjustment else None)

        start = values[:, 0]  # v₀, of the unprefixed prompt
        optimized = optimize_value(
            params, model_config, config, inputs, states.hidden, start, layer
        )
        target = start + optimized.delta

        if config.key_mode is KeyMode.REFERENCE:
            key, value = keys[:, 0], start
        else:  # W k + b is affine: the mean value is that of the mean key
            key, value = mean_key, values.mean(axis=1)
        update, factor = rank_one_update(layer, u, key, value, target)
        deltas = Delta((*(deltas.updates if deltas else ()), update))
        inputs = inputs.replace(contexts=None)  # the edits make them differ
        weight = params["blocks"]["mlp"]["down"]["kernel"][layer].astype(jnp.float32)
        norm = jnp.linalg.norm(update.right[..., 0], axis=-1)  # ‖u‖ = 1
        edits.append(
            LayerEdit(
                layer, mean_key, u, target, optimized, factor, norm, norm / jnp.linalg.norm(weight)
            )
        )
    first = edits[0].optimization
    return EditResult(
        deltas,
        losses=first.loss,
        steps=first.steps,
        keys=tuple(edit.key for edit in edits),
        was_answer=first.present,
        layers=tuple(edits),
    )


@accept_covariance
def edit(
    params: forward.Params,
    model_config: ModelConfig,
    inputs: EditInputs,
    config: ROMEConfig,
    second_moments: Mapping[int, SecondMoment | jax.typing.ArrayLike] | None = None,
) -> forward.Params:
    """From params to params: one edit computed and merged, for a jit of your own. It has no host callback.

    Args:
      params, model_config, config, second_moments: as for `compute_from_inputs`.
      inputs: token arrays of one request.

    Returns:
      New params; the old ones stay valid.

    Raises:
      ValueError: several requests.

    Example:
      >>> inputs = tokenize_requests(tokenizer, [request], templates, config.fact_token, 1024)  # doctest: +SKIP
      >>> factors = {layer: moments[layer].factor for layer in config.layers}  # doctest: +SKIP
      >>> step = jax.jit(lambda params, factors: rome.edit(params, model_config, inputs, config, factors))
      >>> edited = step(params, factors)  # doctest: +SKIP
    """
    if len(inputs.lookup) != 1:
        raise ValueError(
            f"inputs hold {len(inputs.lookup)} requests: edit one after another, or score them side by side with "
            "compute_deltas."
        )
    result = compute_from_inputs(params, model_config, inputs, config, second_moments)
    return apply_delta(params, result.deltas[0])


@accept_covariance
def compute(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: ROMEConfig,
    *,
    second_moments: Mapping[int, SecondMoment] | None = None,
    templates: Sequence[str] | None = None,
    key: jax.Array | None = None,
    chunk_size: int = 8,
    progress: bool = False,
) -> EditResult:
    """N independent edits, with everything that is known of them.

    Args:
      model: what to edit; not changed.
      requests: the facts to write.
      config: hyperparameters.
      second_moments: second moments by layer; needed if `config.mom2_adjustment`.
      templates: context templates that end in "{}", the first of them "{}"; sampled from the model if None.
      key: PRNG key of that sampling.
      chunk_size: requests that are optimised at once; bounds the memory. 8 is fastest on CPUs; GPUs take more.
      progress: show a progress bar.

    Returns:
      `EditResult` with a leading case axis N.

    Raises:
      ValueError: no requests, a chunk_size below 1, no such layer, a missing second moment, neither templates nor key,
        templates that do not start with "{}".
      SequenceTooLongError: a request that does not fit the context.

    Example:
      >>> result = compute(model, [request], ROMEConfig.for_model(model.name),
      ...                  second_moments=moments, key=jax.random.key(0))  # doctest: +SKIP
    """
    check_requests(model, requests, config, chunk_size)
    if config.mom2_adjustment:
        check_moments(config.layers, second_moments)
    lengths = config.context_template_length_params
    templates = given_or_sampled(model, templates, key, lengths)

    def compute_chunk(chunk: Sequence[EditRequest]) -> EditResult:
        context_length = model.config.context_length
        inputs = tokenize_requests(
            model.tokenizer, chunk, templates, config.fact_token, context_length
        )
        return compute_from_inputs(model.params, model.config, inputs, config, second_moments)

    result = map_chunks(
        compute_chunk, requests, list(map(behind_subject, requests)), chunk_size, "ROME", progress
    )
    for message in _warnings(result, requests):
        warnings.warn(message, EditWarning, stacklevel=3)  # past the decorator
    return result


@accept_covariance
def compute_deltas(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: ROMEConfig,
    *,
    second_moments: Mapping[int, SecondMoment] | None = None,
    templates: Sequence[str] | None = None,
    key: jax.Array | None = None,
    chunk_size: int = 8,
    progress: bool = False,
) -> Delta:
    """N independent edits as one Delta with case axis N; arguments and errors are those of `compute`.

    Example:
      >>> deltas = compute_deltas(model, requests, config, second_moments=moments, key=key)  # doctest: +SKIP
      >>> edited = apply_delta(model.params, deltas[0])  # doctest: +SKIP
    """
    return compute(
        model,
        requests,
        config,
        second_moments=second_moments,
        templates=templates,
        key=key,
        chunk_size=chunk_size,
        progress=progress,
    ).deltas


@accept_covariance
def compute_sequence(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: ROMEConfig,
    *,
    second_moments: Mapping[int, SecondMoment] | None = None,
    templates: Sequence[str] | None = None,
    key: jax.Array | None = None,
) -> Iterator[tuple[LanguageModel, EditResult]]:
    """Edits one after another, each computed on the model that holds all earlier ones.

    Args:
      model: what to edit first; it stays valid.
      requests, config, second_moments, templates, key: as for `compute`. Templates and second moments are those of the
        unedited model throughout.

    Yields:
      After each edit, the model so far and the edit with its case axis of 1. A model's changed weights are written
      over when the next one is asked for: read what you need of it before, or copy it.

    Raises:
      ValueError: as `compute`.

    Example:
      >>> for edited, result in compute_sequence(model, requests, config, second_moments=moments, key=key):
      ...     print(result.layers[0].norm_ratio)  # doctest: +SKIP
    """
    lengths = config.context_template_length_params
    templates = given_or_sampled(model, templates, key, lengths)
    for index, request in enumerate(requests):
        result = compute(
            model, [request], config, second_moments=second_moments, templates=templates
        )
        params = apply_delta(model.params, result.deltas[0], donate=index > 0)
        model = model.replace(params=params)
        yield model, result


def _warnings(result: EditResult, requests: Sequence[EditRequest]) -> Iterator[str]:
    """Names the edits that write what the model says anyway, and those that will harm it."""
    for index in np.flatnonzero(result.was_answer):
        yield (
            f"target_new={requests[index].target_new!r} is the model's present answer to "
            f"{requests[index].text!r}: the edit changes little."
        )
    for edit in result.layers:
        # NaN counts too.
        for index in np.flatnonzero(~(np.asarray(edit.norm_ratio) < EXPLOSION_RATIO)):
            yield (
                f"the edit of {requests[index].subject!r} changes layer {edit.layer} by "
                f"{float(edit.norm_ratio[index]):.2g} times the norm of its weights (division factor "
                f"{float(edit.division_factor[index]):.2g}) and will likely disable the model; "
                "try key_mode=KeyMode.CONSISTENT or another layer."
            )
