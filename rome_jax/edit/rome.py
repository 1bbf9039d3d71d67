"""ROME: Rank-One Model Editing (Meng et al., 2022, "Locating and Editing Factual Associations in GPT", section 3).

    requests, templates ─► token arrays ─► states at layer l ─► k*, u = C⁻¹ k* ─► v* ─► ΔW = u ⊗ (v* − W k) / (k · u)

Every stage is a pure function of arrays and works on N independent requests at once; this module calls them in order.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rome_jax.covariance import SecondMoment
from rome_jax.edit.config import KeyMode, ROMEConfig
from rome_jax.edit.contexts import sample_templates
from rome_jax.edit.delta import rank_one_update
from rome_jax.edit.inputs import EditInputs, tokenize
from rome_jax.edit.key import layer_states, whitened_direction
from rome_jax.edit.value import ValueResult, optimize_value
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import LanguageModel
from rome_jax.request import EditRequest

# ‖ΔW‖ / ‖W‖ beyond this is no edit of one fact: disabling edits (arXiv 2403.07175) are far above, sound ones of the
# shipped models about 0.2 to 3.
EXPLOSION_RATIO = 10.0


@struct.dataclass
class LayerEdit:
    """How the update of one layer came about, for N requests.

    Attributes:
      layer: its index (static).
      u: [N, F], the whitened direction.
      value: [N, D], v*.
      optimization: losses and δ of the value.
      division_factor: [N], k · u.
      norm_ratio: [N], ‖ΔW‖ / ‖W‖ (Frobenius).
    """

    layer: int = struct.field(pytree_node=False)
    u: jax.Array
    value: jax.Array
    optimization: ValueResult
    division_factor: jax.Array
    norm_ratio: jax.Array


@struct.dataclass
class ROMEResult:
    """N edits and, by layer, how they came about."""

    deltas: Delta
    layers: tuple[LayerEdit, ...]


def edit_inputs(
    model: LanguageModel,
    inputs: EditInputs,
    config: ROMEConfig,
    covariance: Mapping[int, SecondMoment],
) -> ROMEResult:
    """The algorithm, on token arrays of N requests; see `compute`."""
    num_requests, num_rows = inputs.lookup.shape
    deltas, edits = None, []
    for layer in config.layers:
        states = layer_states(
            model.params, model.config, inputs.batch, inputs.lookup.reshape(-1), layer, deltas
        )
        keys = states.key.reshape(num_requests, num_rows, -1)[
            :, :-1
        ]  # [N, K, F], without the essence row
        values = states.value.reshape(num_requests, num_rows, -1)[:, :-1]
        mean_key = keys.mean(axis=1)
        u = whitened_direction(mean_key, covariance[layer] if config.mom2_adjustment else None)

        start = values[:, 0]  # v₀, of the unprefixed prompt
        optimized = optimize_value(
            model.params, model.config, config, inputs, states.hidden, start, layer
        )
        target = start + optimized.delta

        if config.key_mode is KeyMode.REFERENCE:
            key, value = keys[:, 0], start
        else:
            key, value = (
                mean_key,
                values.mean(axis=1),
            )  # W k + b is affine: the mean value is that of the mean key
        update, factor = rank_one_update(layer, u, key, value, target)
        deltas = Delta((*(deltas.updates if deltas else ()), update))
        weight = model.params["blocks"]["mlp"]["down"]["kernel"][layer].astype(jnp.float32)
        ratio = jnp.linalg.norm(update.right[..., 0], axis=-1) / jnp.linalg.norm(weight)  # ‖u‖ = 1
        edits.append(LayerEdit(layer, u, target, optimized, factor, ratio))
    return ROMEResult(deltas, tuple(edits))


def compute(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: ROMEConfig,
    *,
    covariance: Mapping[int, SecondMoment] | None = None,
    templates: Sequence[str] | None = None,
    key: jax.Array | None = None,
    chunk_size: int = 32,
) -> ROMEResult:
    """N independent edits, with everything that is known of them.

    Args:
      model: what to edit; not changed.
      requests: the facts to write.
      config: hyperparameters.
      covariance: second moments by layer; needed if `config.mom2_adjustment`.
      templates: context templates that end in "{}", the first of them "{}"; sampled from the model if None.
      key: PRNG key of that sampling.
      chunk_size: requests that are optimised at once; bounds the memory.

    Returns:
      `ROMEResult` with a leading case axis N.

    Raises:
      ValueError: no requests, a chunk_size below 1, no such layer, a missing second moment, neither templates nor key,
        templates that do not start with "{}".
      SequenceTooLongError: a request that does not fit the context.

    Example:
      >>> result = compute(model, [request], ROMEConfig.for_model(model.name),
      ...                  covariance=moments, key=jax.random.key(0))  # doctest: +SKIP
    """
    if not requests:
        raise ValueError("requests is empty: give at least one EditRequest.")
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1.")
    for layer in config.layers:
        model.config.check_layer(layer, "layers")
        if config.mom2_adjustment and layer not in (covariance or {}):
            raise ValueError(
                f"covariance has no second moment of layer {layer}: collect it (rome_jax.covariance.accumulate) "
                "or set mom2_adjustment=False."
            )
    if templates is None:
        if key is None:
            raise ValueError("templates and key are both None: give one of them.")
        templates = sample_templates(model, key, config.context_template_length_params)
    if not templates or templates[0] != "{}":
        raise ValueError(
            f"templates={list(templates)[:1]} must start with '{{}}', the bare prompt."
        )

    results = []
    for start in range(0, len(requests), chunk_size):
        chunk = list(requests[start : start + chunk_size])
        # A short last chunk repeats a request: one shape, one program.
        padding = [chunk[-1]] * (min(chunk_size, len(requests)) - len(chunk))
        inputs = tokenize(
            model.tokenizer,
            chunk + padding,
            templates,
            config.fact_token,
            model.config.context_length,
        )
        result = edit_inputs(model, inputs, config, covariance or {})
        results.append(jax.tree.map(operator.itemgetter(slice(len(chunk))), result))
    result = jax.tree.map(lambda *parts: jnp.concatenate(parts), *results)
    _warn(result, requests)
    return result


def compute_deltas(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: ROMEConfig,
    *,
    covariance: Mapping[int, SecondMoment] | None = None,
    templates: Sequence[str] | None = None,
    key: jax.Array | None = None,
    chunk_size: int = 32,
) -> Delta:
    """N independent edits as one Delta with case axis N; arguments and errors are those of `compute`.

    Example:
      >>> deltas = compute_deltas(model, requests, config, covariance=moments, key=key)  # doctest: +SKIP
      >>> edited = apply_delta(model.params, deltas[0])  # doctest: +SKIP
    """
    return compute(
        model,
        requests,
        config,
        covariance=covariance,
        templates=templates,
        key=key,
        chunk_size=chunk_size,
    ).deltas


def _warn(result: ROMEResult, requests: Sequence[EditRequest]) -> None:
    """Names the edits that write what the model says anyway, and those that will harm it."""
    for index in np.flatnonzero(result.layers[0].optimization.present):
        warnings.warn(
            f"target_new={requests[index].target_new!r} is the model's present answer to "
            f"{requests[index].text!r}: the edit changes little.",
            stacklevel=3,
        )
    for edit in result.layers:
        for index in np.flatnonzero(
            ~(np.asarray(edit.norm_ratio) < EXPLOSION_RATIO)
        ):  # NaN counts too
            warnings.warn(
                f"the edit of {requests[index].subject!r} changes layer {edit.layer} by "
                f"{float(edit.norm_ratio[index]):.2g} times the norm of its weights (division factor "
                f"{float(edit.division_factor[index]):.2g}) and will likely disable the model; "
                "try key_mode=KeyMode.CONSISTENT or another layer.",
                stacklevel=3,
            )
