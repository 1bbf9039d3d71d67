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

from rome_jax.edit.config import MEMITConfig, ROMEConfig
from rome_jax.edit.stages.inputs import EditInputs
from rome_jax.edit.stages.suffix import Suffix, freeze_prefix, run_suffix
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


@struct.dataclass
class Readout:
    """Where δ enters a suffix, and what is read of it: all of `EditInputs` that the optimisation needs.

    Attributes:
      fact: int32 [N, K + 1], the suffix column of the fact token.
      columns: int32 [N, K + 1, M], the suffix columns whose predictions are read.
      target_ids: int32 [N, M].
      target_mask: bool [N, M], False beyond a target's end.
    """

    fact: jax.Array
    columns: jax.Array
    target_ids: jax.Array
    target_mask: jax.Array

    @classmethod
    def of(cls, inputs: EditInputs) -> Readout:
        """That of N requests."""
        start = inputs.start
        return cls(
            inputs.lookup - start,
            inputs.read - start[..., None],
            jnp.asarray(inputs.target_ids),
            jnp.asarray(inputs.target_mask),
        )


def loss_terms(
    delta: jax.Array,
    suffix: Suffix,
    params: forward.Params,
    model_config: ModelConfig,
    readout: Readout,
    layer: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """NLL [N], log-probabilities at the essence row's fact token [N, V], and whether the bare prompt's most likely
    tokens are the target [N].

    Args:
      delta: [N, D].
      suffix: of all rows, without δ.
      params, model_config, layer: as for `optimize_value`.
      readout: where δ enters, and what is read.
    """
    num_requests, num_rows, num_targets = readout.columns.shape
    rows = jnp.arange(num_requests * num_rows)
    # Adding to the layer's MLP output is adding to the residual stream behind it.
    shift = jnp.repeat(delta, num_rows, axis=0).astype(suffix.hidden.dtype)  # [R, D]
    hidden = suffix.hidden.at[rows, readout.fact.reshape(-1)].add(shift)

    # Logits only where a target or the essence is read, in one product: [N, K·M + 1, V].
    read = readout.columns.reshape(len(rows), -1)  # [R, M]
    hidden = run_suffix(params, model_config, suffix, hidden, read, layer)  # [R, M, D]
    hidden = hidden.reshape(num_requests, -1, hidden.shape[-1])
    hidden = hidden[
        :, : hidden.shape[1] - (num_targets - 1)
    ]  # the essence row's one column, read once
    logits = forward.unembed(params, model_config, hidden)
    essence = jax.nn.log_softmax(logits[:, -1])
    logits = logits[:, :-1].reshape(num_requests, -1, num_targets, logits.shape[-1])  # [N, K, M, V]

    # A masked sum, not a gather: with its gradient it melts into one pass over the logits.
    chosen = jnp.arange(logits.shape[-1]) == readout.target_ids[:, None, :, None]
    target = jnp.where(chosen, logits, 0.0).sum(-1) - jax.nn.logsumexp(logits, axis=-1)
    weights = readout.target_mask / readout.target_mask.sum(-1, keepdims=True)  # [N, M]
    nll = -(target * weights[:, None]).sum(-1).mean(-1)
    likeliest = logits[:, 0].argmax(-1) == readout.target_ids
    present = (likeliest | ~readout.target_mask).all(-1)
    return nll, essence, present


@struct.dataclass
class ValueSettings:
    """The numbers of a configuration that the optimisation reads: arrays, so that a sweep over them compiles once."""

    v_lr: jax.Array
    v_weight_decay: jax.Array
    clamp_norm_factor: jax.Array
    kl_factor: jax.Array
    loss_threshold: jax.Array

    @classmethod
    def of(cls, config: ROMEConfig | MEMITConfig) -> ValueSettings:
        """Those of a configuration."""
        return cls(*(jnp.float32(getattr(config, f.name)) for f in dataclasses.fields(cls)))


@struct.dataclass
class _Carry:
    """The state of the loop; names as in `ValueResult` and `loss_terms`."""

    step: jax.Array
    delta: jax.Array
    adam: optax.OptState
    initial: jax.Array
    done: jax.Array
    present: jax.Array
    history: jax.Array
    steps: jax.Array


def optimize_value(
    params: forward.Params,
    model_config: ModelConfig,
    config: ROMEConfig | MEMITConfig,
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
      value: [N, D], v₀, the present MLP output at the fact token of the first template, whose norm sets the ball and
        the weight decay; MEMIT gives the residual stream there.
      layer: the edit layer, static. Edits of lower layers have done their work in `hidden`.

    Returns:
      `ValueResult`.
    """
    settings = ValueSettings.of(config)
    suffix = freeze_prefix(params, model_config, inputs, hidden, layer)
    # Not all of `inputs`: their padded lengths and shared contexts would each compile the program anew.
    readout = Readout.of(inputs)
    return _optimize(
        params, model_config, settings, readout, suffix, value, layer, config.v_num_grad_steps
    )


@functools.partial(jax.jit, static_argnames=("model_config", "layer", "num_steps"))
def _optimize(
    params: forward.Params,
    model_config: ModelConfig,
    settings: ValueSettings,
    readout: Readout,
    suffix: Suffix,
    value: jax.Array,
    layer: int,
    num_steps: int,
) -> ValueResult:
    """The program behind `optimize_value`."""
    num_requests, width = value.shape
    value_norm = safe_norm(value)
    adam = optax.adam(settings.v_lr)

    def loss(delta, step, initial):
        nll, essence, present = loss_terms(delta, suffix, params, model_config, readout, layer)
        # The first evaluation is at δ = 0: what it finds is what KL measures from.
        initial = jnp.where(step == 0, jax.lax.stop_gradient(essence), initial)
        kl = settings.kl_factor * (jnp.exp(essence) * (essence - initial)).sum(-1)
        decay = settings.v_weight_decay * safe_norm(delta) / value_norm**2
        total = nll + kl + decay
        # Requests do not interact: the gradient of the sum is N gradients.
        return total.sum(), (jnp.stack([total, nll, kl, decay]), initial, present)

    def record(carry, values):
        """`carry` after an evaluation of the requests that were not done."""
        running = ~carry.done
        history = carry.history.at[..., carry.step].set(jnp.where(running, values, jnp.nan))
        done = carry.done | (values[0] < settings.loss_threshold)
        return carry.replace(history=history, steps=carry.steps + running, done=done)

    def evaluate_and_step(carry):
        gradient, (values, initial, present) = jax.grad(loss, has_aux=True)(
            carry.delta, carry.step, carry.initial
        )
        carry = record(carry, values)
        updates, adam_state = adam.update(gradient, carry.adam)
        radius = settings.clamp_norm_factor * value_norm
        moved = project_to_ball(optax.apply_updates(carry.delta, updates), radius)
        return carry.replace(
            step=carry.step + 1,
            delta=jnp.where(carry.done[:, None], carry.delta, moved),
            adam=adam_state,
            initial=initial,
            present=jnp.where(carry.step == 0, present, carry.present),
        )

    start = jnp.zeros((num_requests, width), jnp.float32)
    carry = _Carry(
        step=jnp.int32(0),
        delta=start,
        adam=adam.init(start),
        initial=jnp.zeros((num_requests, model_config.vocab_size)),
        done=jnp.zeros(num_requests, bool),
        present=jnp.zeros(num_requests, bool),
        history=jnp.full((4, num_requests, num_steps), jnp.nan),
        steps=jnp.zeros(num_requests, jnp.int32),
    )
    carry = jax.lax.while_loop(
        lambda carry: (carry.step < num_steps - 1) & ~carry.done.all(), evaluate_and_step, carry
    )
    # The last evaluation only looks: the δ that is returned is the one whose loss is on record.
    _, (values, _, present) = loss(carry.delta, carry.step, carry.initial)
    last = record(carry, values)
    present = jnp.where(carry.step == 0, present, carry.present)
    return ValueResult(last.delta, *last.history, steps=last.steps, present=present)
