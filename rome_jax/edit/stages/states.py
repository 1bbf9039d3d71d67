"""z and the states that edits of several layers read (Meng et al., 2023, "Mass-Editing Memory in a Transformer",
section 4.3 and algorithm 1).

Axes: N requests, K context templates, R = (K + 1)·N rows, T tokens, F MLP width, D width.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.data.tokens import TokenBatch
from rome_jax.edit.spread_config import SpreadConfig
from rome_jax.edit.stages.inputs import EditInputs
from rome_jax.edit.stages.key import LayerStates, layer_states
from rome_jax.edit.stages.value import ValueResult, optimize_pair, optimize_value
from rome_jax.edit.warm_start import FindStarts
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Delta, Site


def optimize_states(
    params: forward.Params,
    model_config: ModelConfig,
    inputs: EditInputs,
    config: SpreadConfig,
    layer: int | None = None,
    deltas: Delta | None = None,
    starts: FindStarts | None = None,
) -> tuple[jax.Array, ValueResult]:
    """Finds z of N requests (section 4.3).

    z is the residual stream after the last edited layer, at the fact token, with which the model produces the target.

    Args:
      params: Weights of the model.
      model_config: Configuration of the model.
      inputs: Token arrays of the requests.
      config: Hyperparameters. The norm of the present state bounds the distance of z from it.
      layer: Layer of z. Defaults to the last edited one.
      deltas: Edits of lower layers in force that are not in `params`, with case axis N.
      starts: Function that finds the δ of earlier edits to begin at; None begins at 0.

    Returns:
      z, float32 [N, D], and how its δ was found.
    """
    last = config.layers[-1] if layer is None else layer
    # Edits of one request each make the states of shared contexts differ.
    shared = inputs.shared if deltas is None else None
    hidden = layer_states(
        params, model_config, inputs.batch, inputs.fact, last, deltas, shared
    ).hidden
    h = _at_fact_token(hidden, inputs)
    # A vector added to the MLP's output moves the state after the layer by that vector.
    start = None if starts is None else starts(last, np.asarray(h), 1)
    found = optimize_value(params, model_config, config, inputs, hidden, h, last, shared, start)
    return h + found.delta, found


def optimize_outputs(
    params: forward.Params,
    model_config: ModelConfig,
    inputs: EditInputs,
    config: SpreadConfig,
    layer: int | None = None,
    deltas: Delta | None = None,
    nll_factor: float = 1.0,
    starts: FindStarts | None = None,
) -> tuple[jax.Array, ValueResult]:
    """Finds target outputs of the last edited layer's attention and MLP together (Li et al., 2024, "PMET: Precise Model
    Editing in a Transformer", section 4).

    Args:
      params, model_config, inputs, config, layer, deltas, starts: As in `optimize_states`.
      nll_factor: Weight of the negative log-likelihood in the loss.

    Returns:
      The target output of the MLP at the fact token, float32 [N, D], and how the pair of δ was found.
    """
    last = config.layers[-1] if layer is None else layer
    shared = inputs.shared if deltas is None else None
    states = layer_states(
        params, model_config, inputs.batch, inputs.fact, last, deltas, shared, with_attention=True
    )
    bare = slice(inputs.num_requests)
    assert states.attention is not None  # it was asked for
    values = jnp.stack([states.attention[bare], states.value[bare]], axis=1)
    rows = jnp.arange(len(states.value))
    after_attention = states.hidden[rows, inputs.fact].astype(jnp.float32) - states.value
    found = optimize_pair(
        *(params, model_config, config, inputs, states.hidden, values, after_attention, last),
        shared,
        nll_factor,
        None if starts is None else starts(last, np.asarray(values[:, 1]), 2),
    )
    return values[:, 1] + found.delta[:, 1], found


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
    states, batch = _layer_and_bare(params, model_config, inputs, layer, deltas)
    hidden = states.hidden[: inputs.num_requests]
    hidden = _run_on(params, model_config, batch, hidden, layer + 1, last + 1)
    return _mean_key(inputs.by_context(states.key)), _at_fact_token(hidden, inputs)


def read_outputs(
    params: forward.Params,
    model_config: ModelConfig,
    inputs: EditInputs,
    layer: int,
    last: int,
    deltas: Delta | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Reads the keys of one layer, and the outputs of the last edited layer's MLP instead of the states after it.

    Arguments and results are otherwise those of `read_states`.
    """
    states, batch = _layer_and_bare(params, model_config, inputs, layer, deltas)
    keys = _mean_key(inputs.by_context(states.key))
    if layer == last:
        return keys, states.value[: inputs.num_requests]
    hidden = states.hidden[: inputs.num_requests]
    hidden = _run_on(params, model_config, batch, hidden, layer + 1, last)
    return keys, _at_fact_token(_mlp_outputs(params, model_config, batch, hidden, last), inputs)


def _layer_and_bare(
    params: forward.Params,
    model_config: ModelConfig,
    inputs: EditInputs,
    layer: int,
    deltas: Delta | None,
) -> tuple[LayerStates, TokenBatch]:
    """Runs all rows to a layer; also returns the tokens of the bare prompts, which are the first rows."""
    # Edits of one request each make the states of shared contexts differ.
    shared = inputs.shared if deltas is None else None
    states = layer_states(params, model_config, inputs.batch, inputs.fact, layer, deltas, shared)
    bare = slice(inputs.num_requests)
    return states, TokenBatch(inputs.batch.ids[bare], inputs.batch.mask[bare])


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


@functools.partial(jax.jit, static_argnames="config")
def _mlp_outputs(
    params: forward.Params,
    config: ModelConfig,
    batch: TokenBatch,
    hidden: jax.Array,
    layer: jax.Array,
) -> jax.Array:
    """Runs one layer and returns what its MLP adds to the residual stream, [N, T, D]."""
    attention = forward.plain_attention(batch)
    out = forward.run_layer(params, config, hidden, attention, layer)
    return out.sites[Site.MLP_OUT]
