"""The steps of a hypernetwork's training: the network, its optimizer, and one update.

batch of examples ─► `losses` ─► `_objective` ─► clipped Adam ─► for KE, ascent of the multiplier
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from rome_jax.data.tokens import TokenBatch
from rome_jax.edit.baseline_config import MENDConfig
from rome_jax.edit.hypernetworks.losses import ExampleBatch, Losses, losses
from rome_jax.edit.hypernetworks.networks import Config
from rome_jax.edit.hypernetworks.training_config import TrainingConfig
from rome_jax.edit.methods.ke import KE
from rome_jax.edit.methods.mend import MEND
from rome_jax.edit.stages.gradients import GradientFactors, gradient_factors
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.registry import LanguageModel


@struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
      variables: The variables of the network: its parameters and, for MEND, the running statistics.
      optimizer: The state of the optimizer.
      multiplier: float32 [] the weight of the KL; for KE the Lagrange multiplier.
      margin: float32 [] the largest KL that KE's constraint allows, in nats. Only validations change it.
    """

    variables: Mapping[str, Any]
    optimizer: optax.OptState
    multiplier: jax.Array
    margin: jax.Array


def make_network(config: Config, model_config: ModelConfig) -> MEND | KE:
    """Builds the linen module of a configuration.

    Args:
      config: The hyperparameters of the network.
      model_config: The configuration of the model to edit.

    Example:
      >>> type(make_network(MENDConfig((5,)), model.config)).__name__
      'MEND'
    """
    if isinstance(config, MENDConfig):
        return MEND(config)
    return KE(config, model_config.vocab_size, model_config.width)


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Builds Adam with gradient clipping; MEND's rates have their own learning rate."""
    parts = {
        "rates": optax.adam(config.rate_learning_rate),
        "network": optax.adam(config.learning_rate),
    }
    return optax.chain(optax.clip_by_global_norm(config.clip), optax.multi_transform(parts, _parts))


def _parts(params: Mapping[str, Any]) -> dict[str, str]:
    """Assigns each top-level entry of the parameters to a part of the optimizer."""
    return {name: "rates" if name == "rates" else "network" for name in params}


def initial_state(
    network: nn.Module, model: LanguageModel, batch: ExampleBatch, config: TrainingConfig
) -> TrainState:
    """Builds the state before the first step; KE's token embedding starts as the model's.

    Args:
      network: The linen module.
      model: The model to edit.
      batch: Any batch of examples, which gives the shapes.
      config: The settings of the training.
    """
    edits = jax.tree.map(lambda leaf: leaf[: len(batch.condition.ids)], batch.rows)
    layers, leaves = network.config.layers, network.config.leaves
    factors = gradient_factors(model.params, model.config, edits, layers, leaves)
    variables = _initialize(network, jax.random.key(config.seed), factors, batch.condition)
    if isinstance(network, KE):
        table = model.params["wte"]["embedding"].astype(jnp.float32)
        variables["params"]["condition"]["embedding"]["embedding"] = table
    optimizer = make_optimizer(config).init(variables["params"])
    margin = jnp.float32(config.margin or 0.0)
    return TrainState(variables, optimizer, jnp.float32(config.locality_weight), margin)


@functools.partial(jax.jit, static_argnames="network")
def _initialize(
    network: nn.Module,
    key: jax.Array,
    factors: Mapping[str, GradientFactors],
    condition: TokenBatch,
) -> dict[str, Any]:
    """Draws the variables of a network."""
    return dict(network.init(key, factors, condition))


@functools.partial(jax.jit, static_argnames=("network", "model_config", "config"))
def train_step(
    state: TrainState,
    network: nn.Module,
    params: forward.Params,
    model_config: ModelConfig,
    config: TrainingConfig,
    batch: ExampleBatch,
) -> tuple[TrainState, Losses]:
    """Takes one step of Adam on the network and, for KE, one step of ascent on the Lagrange multiplier.

    Args:
      state: The state before the step.
      network: The linen module.
      params: The parameters of the model to edit, which stay frozen.
      model_config: The configuration of that model.
      config: The settings of the training.
      batch: The examples of this step.

    Returns:
      The state after the step, and the losses before it.
    """
    old = state.variables["params"]
    gradient, (found, variables) = jax.grad(_objective, has_aux=True)(
        old, state, network, params, model_config, config, batch
    )
    updates, optimizer = make_optimizer(config).update(gradient, state.optimizer, old)
    variables = {**variables, "params": optax.apply_updates(old, updates)}
    multiplier = _ascended(state, config, found.kl)
    return TrainState(variables, optimizer, multiplier, state.margin), found


def _objective(
    weights: Mapping[str, Any],
    state: TrainState,
    network: nn.Module,
    params: forward.Params,
    model_config: ModelConfig,
    config: TrainingConfig,
    batch: ExampleBatch,
) -> tuple[jax.Array, tuple[Losses, Mapping[str, Any]]]:
    """Computes edit_weight · edit + multiplier · KL, with the losses and the new variables."""
    found, variables = losses(
        network, {**state.variables, "params": weights}, params, model_config, batch, True
    )
    return config.edit_weight * found.edit + state.multiplier * found.kl, (found, variables)


def _ascended(state: TrainState, config: TrainingConfig, kl: jax.Array) -> jax.Array:
    """Returns the multiplier after one step of ascent on the constraint KL ≤ margin (De Cao et al., section 4.1)."""
    if config.margin is None:
        return state.multiplier
    return jnp.maximum(state.multiplier + config.multiplier_rate * (kl - state.margin), 0.0)


# The losses of a batch in validation, without new running statistics.
evaluate = jax.jit(losses, static_argnames=("network", "model_config", "training"))
