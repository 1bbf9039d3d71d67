"""Training of some weights on the loss of edit requests, by Adam with projection onto a norm ball: the inner loop of
fine-tuning (Meng et al., 2022, appendix E.1; the ball of FT-L: Zhu et al., 2020, "Modifying Memories in Transformer
Models").

    hidden states before the lowest trained layer, computed once
    ─► pass over the minibatches: `_loss` ─► Adam step ─► `_project` ─► ... ─► until the loss is low enough

What is trained is the change of the weights, in float32. The loss is that of the weights as `apply_delta` merges them.

Axes: N edits, M minibatches of B requests, T tokens, K target tokens, V vocabulary, D width, S passes.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from flax import struct

from rome_jax.edit.baseline_config import FTConfig
from rome_jax.edit.delta import apply_delta, weight_of
from rome_jax.edit.stages.targets import TargetInputs, target_nll
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Delta, DenseUpdate, Leaf, Part
from rome_jax.models.layers import Attention

# A trained array: its layer, its projection, and whether it is the kernel or the bias.
Weight = tuple[int, Leaf, Part]
# The changes of the trained arrays, in their order, each of the shape of its array.
Changes = tuple[jax.Array, ...]


@struct.dataclass
class Settings:
    """The numbers of `FTConfig` that training reads, as arrays: a sweep over them compiles once."""

    lr: jax.Array
    weight_decay: jax.Array
    norm_constraint: jax.Array
    loss_threshold: jax.Array

    @classmethod
    def of(cls, config: FTConfig) -> Settings:
        """Reads the numbers of a configuration; the absence of a norm constraint becomes an infinite radius."""
        numbers = {field.name: getattr(config, field.name) for field in dataclasses.fields(cls)}
        numbers["norm_constraint"] = config.norm_constraint or jnp.inf
        return cls(**{name: jnp.float32(number) for name, number in numbers.items()})


@struct.dataclass
class _Problem:
    """What all steps of all edits share.

    Attributes:
      params: The model's parameters.
      model_config: The model's configuration (static).
      trained: The trained arrays (static).
      start: Their values before training, in float32.
      settings: The hyperparameters of a step.
    """

    params: forward.Params
    model_config: ModelConfig = struct.field(pytree_node=False)
    trained: tuple[Weight, ...] = struct.field(pytree_node=False)
    start: Changes
    settings: Settings


@struct.dataclass
class _TrainingState:
    """The state of one edit's training between two passes.

    Attributes:
      step: int32 [] the number of passes so far.
      changes: The changes so far.
      adam: The state of the optimizer.
      loss: float32 [S, M] the losses so far; NaN for the passes to come.
      done: bool [] whether the target is learned.
    """

    step: jax.Array
    changes: Changes
    adam: optax.OptState
    loss: jax.Array
    done: jax.Array


@functools.partial(jax.jit, static_argnames=("model_config", "trained", "num_steps"))
def train_weights(
    params: forward.Params,
    model_config: ModelConfig,
    trained: tuple[Weight, ...],
    num_steps: int,
    settings: Settings,
    inputs: TargetInputs,
) -> tuple[Changes, jax.Array, jax.Array]:
    """Trains N edits side by side, each on its own M minibatches, in one compiled program.

    Args:
      params: The model's parameters.
      model_config: The model's configuration.
      trained: The arrays to train, lowest layer first.
      num_steps: The most passes over the minibatches.
      settings: The hyperparameters of a step.
      inputs: Token arrays with leading axes N, M and B. Minibatches may be filled with requests whose target masks
        are all False, which do not count.

    Returns:
      The changes [N, ...] of the trained arrays, the losses [N, S, M] and the number of passes [N].
    """
    hidden = _frozen_states(params, model_config, inputs, stop=trained[0][0])
    start = tuple(weight_of(params, layer, leaf, part) for layer, leaf, part in trained)
    problem = _Problem(params, model_config, trained, start, settings)
    return jax.vmap(functools.partial(_train_edit, problem, num_steps))(hidden, inputs)


def _frozen_states(
    params: forward.Params, model_config: ModelConfig, inputs: TargetInputs, stop: int
) -> jax.Array:
    """Computes the residual stream [N, M, B, T, D] before layer `stop`, which training does not change."""
    rows = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), inputs.batch)
    hidden = forward.hidden_states(params, model_config, rows, stop=stop).hidden
    return hidden.reshape(*inputs.target_mask.shape[:3], *hidden.shape[1:])


def _train_edit(
    problem: _Problem, num_steps: int, hidden: jax.Array, inputs: TargetInputs
) -> tuple[Changes, jax.Array, jax.Array]:
    """Trains one edit on its M minibatches: passes until the target is learned, but at most `num_steps`."""
    changes = jax.tree.map(jnp.zeros_like, problem.start)
    first = _TrainingState(
        step=jnp.int32(0),
        changes=changes,
        adam=_optimizer(problem.settings).init(changes),
        loss=jnp.full((num_steps, len(inputs.target_mask)), jnp.nan),
        done=jnp.bool(False),
    )
    last = jax.lax.while_loop(
        lambda state: (state.step < num_steps) & ~state.done,
        functools.partial(_run_pass, problem, hidden, inputs),
        first,
    )
    return last.changes, last.loss, last.step


def _run_pass(
    problem: _Problem, hidden: jax.Array, inputs: TargetInputs, state: _TrainingState
) -> _TrainingState:
    """Takes one step on each of the M minibatches, in their order."""
    (changes, adam), losses = jax.lax.scan(
        functools.partial(_step, problem), (state.changes, state.adam), (hidden, inputs)
    )
    return _TrainingState(
        step=state.step + 1,
        changes=changes,
        adam=adam,
        loss=state.loss.at[state.step].set(losses),
        done=_mean_loss(losses, inputs) < problem.settings.loss_threshold,
    )


def _mean_loss(losses: jax.Array, inputs: TargetInputs) -> jax.Array:
    """Averages the losses [M] of the minibatches, weighted by their numbers of requests."""
    num_requests = inputs.target_mask.any(-1).sum(-1)  # [M], without those that fill a minibatch
    return (losses * num_requests).sum() / num_requests.sum()


def _step(
    problem: _Problem,
    state: tuple[Changes, optax.OptState],
    minibatch: tuple[jax.Array, TargetInputs],
) -> tuple[tuple[Changes, optax.OptState], jax.Array]:
    """Takes one step of projected Adam, and returns the loss before it.

    A minibatch that is already learned moves nothing, not even the averages of Adam.
    """
    changes, adam = state
    settings = problem.settings
    loss, gradient = jax.value_and_grad(_loss)(changes, problem, *minibatch)
    weights = jax.tree.map(jnp.add, problem.start, changes)
    updates, moved_adam = _optimizer(settings).update(gradient, adam, weights)
    moved = jax.tree.map(
        lambda change, update: _project(change + update, settings.norm_constraint), changes, updates
    )
    keep_if_learned = functools.partial(jnp.where, loss < settings.loss_threshold)
    return jax.tree.map(keep_if_learned, state, (moved, moved_adam)), loss


def _optimizer(settings: Settings) -> optax.GradientTransformation:
    """Builds Adam with an L2 penalty, whose gradient Adam scales like the rest (unlike AdamW)."""
    return optax.chain(optax.add_decayed_weights(settings.weight_decay), optax.adam(settings.lr))


def _project(change: jax.Array, radius: jax.Array) -> jax.Array:
    """Projects a change onto the L∞ ball of FT-L, ‖ΔW‖∞ ≤ radius (Zhu et al., 2020)."""
    return jnp.clip(change, -radius, radius)


# The loss


def _loss(
    changes: Changes, problem: _Problem, hidden: jax.Array, inputs: TargetInputs
) -> jax.Array:
    """Computes the mean loss of B requests, each the mean negative log-likelihood of its target's tokens.

    Args:
      changes: The changes of the trained arrays.
      problem: What all steps share.
      hidden: [B, T, D] the residual stream before the lowest trained layer.
      inputs: Token arrays of B requests.
    """
    attention = forward.plain_attention(inputs.batch)
    hidden = _run_changed_layers(changes, problem, hidden, attention)
    hidden = jnp.take_along_axis(hidden, inputs.read[..., None], axis=1)
    logits = forward.unembed(problem.params, problem.model_config, hidden)  # [B, K, V]
    num_requests = inputs.target_mask.any(-1).sum()  # without those that fill the minibatch
    return target_nll(logits, inputs).sum() / num_requests


def _run_changed_layers(
    changes: Changes, problem: _Problem, hidden: jax.Array, attention: Attention
) -> jax.Array:
    """Runs all layers from the lowest trained one, with the changes merged into their weights."""
    params, config = problem.params, problem.model_config
    updates: dict[int, list[DenseUpdate]] = {}
    for (layer, leaf, part), change in zip(problem.trained, changes, strict=True):
        updates.setdefault(layer, []).append(DenseUpdate(leaf, part, jnp.int32(0), change))

    position = min(updates)
    for layer, own in updates.items():
        hidden = forward.run_layers(
            params, config, hidden, attention, start=position, stop=layer, remat=True
        ).hidden
        # A stack of this layer alone, so that the gradient is not as large as a stack of all layers.
        stack = jax.tree.map(lambda leaf, at=layer: leaf[at : at + 1], params["blocks"])
        merged = apply_delta({"blocks": stack}, Delta(tuple(own)))
        hidden = forward.run_layer(merged, config, hidden, attention, 0).hidden
        position = layer + 1
    return forward.run_layers(params, config, hidden, attention, start=position, remat=True).hidden
