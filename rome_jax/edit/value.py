"""v*: the MLP output that makes the model say the target (paper, section 3.1, step 2, equation 4).

One vector δ a request is added to MLP_OUT at the edit layer, at the fact token. Its loss is

    mean over templates of the target's NLL per token
    + kl_factor · KL(current ‖ initial) of the prediction at the fact token of "{subject} is a"
    + v_weight_decay · ‖δ‖ / ‖v₀‖²

minimised by Adam, with δ projected to the ball ‖δ‖ ≤ clamp_norm_factor · ‖v₀‖ after each step. All requests of a batch
share one compiled loop; one that is done keeps its δ.

Axes: N requests, K templates, T tokens, M target tokens, D width, S steps.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from flax import struct

from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.inputs import EditInputs
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig


@struct.dataclass
class ValueResult:
    """The optimised values and how they came about.

    Attributes:
      delta: float32 [N, D]; v* = v₀ + delta.
      loss, nll, kl, weight_decay: float32 [N, S], each evaluation's terms; NaN once a request is done.
      steps: int32 [N], evaluations that each request took.
      present: bool [N], whether greedy decoding of the bare prompt gives the target already.
    """

    delta: jax.Array
    loss: jax.Array
    nll: jax.Array
    kl: jax.Array
    weight_decay: jax.Array
    steps: jax.Array
    present: jax.Array


def safe_norm(vectors: jax.Array) -> jax.Array:
    """‖·‖ over the last axis, with gradient 0 at 0, where that of a plain norm is NaN."""
    square = jnp.sum(vectors**2, axis=-1)
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def project_to_ball(vectors: jax.Array, radius: jax.Array) -> jax.Array:
    """Scales vectors [N, D] that are longer than `radius` [N] back to it."""
    norm = safe_norm(vectors)
    scale = jnp.where(norm > radius, radius / jnp.where(norm > 0, norm, 1.0), 1.0)
    return vectors * scale[:, None]


def loss_terms(
    delta: jax.Array,
    hidden: jax.Array,
    initial: jax.Array,
    params: forward.Params,
    model_config: ModelConfig,
    inputs: EditInputs,
    layer: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """NLL [N], KL [N], log-probabilities at the essence row's fact token [N, V], and whether the bare prompt's most
    likely tokens are the target [N].

    Args:
      delta: [N, D].
      hidden: [N·(K + 1), T, D], the residual stream after `layer`, without δ.
      initial: [N, V], log-probabilities at δ = 0.
      params, model_config, inputs, layer: as for `optimize_value`.
    """
    num_requests, num_rows = inputs.lookup.shape
    rows = jnp.arange(num_requests * num_rows)
    lookup = inputs.lookup.reshape(-1)
    # Adding to the layer's MLP output is adding to the residual stream behind it.
    shift = jnp.repeat(delta, num_rows, axis=0)  # [N·(K + 1), D]
    hidden = hidden.at[rows, lookup].add(shift.astype(hidden.dtype))
    hidden = forward.run_layers(
        params,
        model_config,
        hidden,
        forward.plain_attention(inputs.batch),
        start=layer + 1,
        remat=True,
    ).hidden
    hidden = hidden.reshape(num_requests, num_rows, *hidden.shape[1:])

    # Logits only where a target or the essence is read: [N, K, M, D] and [N, D].
    at_targets = jnp.take_along_axis(
        hidden[:, :-1],
        inputs.target_columns.reshape(num_requests, num_rows - 1, -1, 1),
        axis=2,
    )
    log_probs = jax.nn.log_softmax(forward.unembed(params, model_config, at_targets))
    target = jnp.take_along_axis(log_probs, inputs.target_ids[:, None, :, None], axis=-1)[..., 0]
    weights = inputs.target_mask / inputs.target_mask.sum(-1, keepdims=True)  # [N, M]
    nll = -(target * weights[:, None]).sum(-1).mean(-1)
    likeliest = log_probs[:, 0].argmax(-1) == inputs.target_ids
    present = (likeliest | ~inputs.target_mask).all(-1)

    at_essence = hidden[jnp.arange(num_requests), -1, inputs.lookup[:, -1]]
    essence = jax.nn.log_softmax(forward.unembed(params, model_config, at_essence))
    kl = (jnp.exp(essence) * (essence - initial)).sum(-1)
    return nll, kl, essence, present


@struct.dataclass
class ValueSettings:
    """The numbers of `ROMEConfig` that the optimisation reads: arrays, so that a sweep over them compiles once."""

    v_lr: jax.Array
    v_weight_decay: jax.Array
    clamp_norm_factor: jax.Array
    kl_factor: jax.Array
    loss_threshold: jax.Array

    @classmethod
    def of(cls, config: ROMEConfig) -> ValueSettings:
        """Those of a configuration."""
        return cls(*(jnp.float32(getattr(config, f.name)) for f in dataclasses.fields(cls)))


def optimize_value(
    params: forward.Params,
    model_config: ModelConfig,
    config: ROMEConfig,
    inputs: EditInputs,
    hidden: jax.Array,
    value: jax.Array,
    layer: int,
) -> ValueResult:
    """Finds δ for N requests at once.

    Args:
      params, model_config: the model.
      config: constants of the optimisation; only the number of steps is compiled in.
      inputs: token arrays of the requests.
      hidden: [N·(K + 1), T, D], the residual stream after `layer`.
      value: [N, D], v₀, the present MLP output at the fact token of the first template.
      layer: the edit layer, static. Edits of lower layers have done their work in `hidden`.

    Returns:
      `ValueResult`.
    """
    settings = ValueSettings.of(config)
    return _optimize(
        params, model_config, settings, inputs, hidden, value, layer, config.v_num_grad_steps
    )


@functools.partial(jax.jit, static_argnames=("model_config", "layer", "num_steps"))
def _optimize(
    params: forward.Params,
    model_config: ModelConfig,
    settings: ValueSettings,
    inputs: EditInputs,
    hidden: jax.Array,
    value: jax.Array,
    layer: int,
    num_steps: int,
) -> ValueResult:
    """The program behind `optimize_value`."""
    num_requests, width = value.shape
    terms = functools.partial(
        loss_terms,
        hidden=hidden,
        params=params,
        model_config=model_config,
        inputs=inputs,
        layer=layer,
    )
    start = jnp.zeros((num_requests, width), jnp.float32)
    # At δ = 0, where the KL term's reference is read; what is passed for it here does not matter.
    unused = jnp.zeros((num_requests, model_config.vocab_size))
    _, _, initial, present = terms(start, initial=unused)
    value_norm = safe_norm(value)
    adam = optax.adam(settings.v_lr)

    def loss(delta):
        nll, kl, _, _ = terms(delta, initial=initial)
        kl = settings.kl_factor * kl
        decay = settings.v_weight_decay * safe_norm(delta) / value_norm**2
        total = nll + kl + decay
        # Requests do not interact: the gradient of the sum is N gradients.
        return total.sum(), jnp.stack([total, nll, kl, decay])

    def unfinished(carry):
        step, _, _, done, _, _ = carry
        return (step < num_steps) & ~done.all()

    def evaluate_and_step(carry):
        step, delta, state, done, history, steps = carry
        (_, values), gradient = jax.value_and_grad(loss, has_aux=True)(delta)
        history = history.at[..., step].set(jnp.where(done, jnp.nan, values))
        steps = jnp.where(done, steps, step + 1)
        done = done | (values[0] < settings.loss_threshold)
        # The last evaluation only looks: the δ that is returned is the one whose loss is on record.
        moving = ~done & (step + 1 < num_steps)
        updates, state = adam.update(gradient, state)
        moved = project_to_ball(
            optax.apply_updates(delta, updates), settings.clamp_norm_factor * value_norm
        )
        return step + 1, jnp.where(moving[:, None], moved, delta), state, done, history, steps

    history = jnp.full((4, num_requests, num_steps), jnp.nan)
    done = jnp.zeros(num_requests, bool)
    carry = (0, start, adam.init(start), done, history, jnp.zeros(num_requests, jnp.int32))
    _, delta, _, _, history, steps = jax.lax.while_loop(unfinished, evaluate_and_step, carry)
    return ValueResult(delta, *history, steps=steps, present=present)
