"""v*: the MLP output that makes the model produce the target (Meng et al., 2022, section 3.1, step 2, equation 4).

For each request, one vector δ is added to the MLP output of the edited layer at the fact token. Its loss is

    mean over the contexts of the target's negative log-likelihood per token
    + kl_factor · KL(current ‖ initial) of the prediction at the fact token of "{subject} is a"
    + v_weight_decay · ‖δ‖ / ‖v₀‖²

Adam minimizes it, and after each step δ is projected onto the ball ‖δ‖ ≤ clamp_norm_factor · ‖v₀‖. All requests of a
batch share one compiled loop. A request that is done keeps its δ. Two options, off by default, save evaluations:
`v_first_step` lengthens the first steps, and an editor's `v_warm_start` begins at an earlier δ; see `Search`.

PMET optimizes two vectors, one at the attention's output and one at the MLP's; each has a decay and a ball of its own.

Axes: N requests, K context templates, R = (K + 1)·N rows, T columns, S steps, M target tokens, D width, V vocabulary,
P = 1 or 2 vectors.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.spread_config import SpreadConfig
from rome_jax.edit.stages.inputs import EditInputs, EssenceRows, TargetRows
from rome_jax.edit.stages.shared_contexts import SharedContexts
from rome_jax.edit.stages.steps import Search, project_to_ball, safe_norm
from rome_jax.edit.stages.suffix import Suffix, freeze_prefix, mlp_output, run_suffix
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.stack import tie

# PMET: weight of the negative log-likelihood while the target is the answer in all contexts, and the KL divergence
# below which such a request is done (authors' code; the paper does not mention them).
_SATISFIED_NLL_FACTOR = 0.1
_SATISFIED_KL = 0.01


@struct.dataclass
class ValueResult:
    """The optimized values and their course.

    Attributes:
      delta: float32 [N, D] δ; v* = v₀ + δ. [N, 2, D] for a pair of attention and MLP.
      loss: float32 [N, S] loss at each evaluation; NaN once a request is done. If the δ of an evaluation is rejected,
        it is the loss at the last accepted one.
      nll, kl, weight_decay: float32 [N, S] terms of the loss, with their factors.
      steps: int32 [N] number of evaluations.
      present: bool [N], whether greedy decoding of the bare prompt gave the target before the edit.
    """

    delta: jax.Array
    loss: jax.Array
    nll: jax.Array
    kl: jax.Array
    weight_decay: jax.Array
    steps: jax.Array
    present: jax.Array


def loss_terms(
    delta: jax.Array,
    suffix: Suffix,
    params: forward.Params,
    model_config: ModelConfig,
    targets: TargetRows,
    essence: EssenceRows,
    layer: int,
    after_attention: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes what the loss reads from the model with δ.

    Args:
      delta: float32 [N, P, D], δ.
      suffix: Suffix columns of all rows, without δ.
      params, model_config, layer: As in `optimize_value`.
      targets, essence: Columns counted from the first suffix column.
      after_attention: As in `optimize_pair`; None if P is 1.

    Returns:
      The negative log-likelihood of the targets [N], the log-probabilities after the fact token of the essence rows
      [N, V], and whether the target is the model's answer in each context [K, N].
    """
    num_contexts, num_requests, num_read = targets.read.shape
    fact = jnp.concatenate([targets.fact.reshape(-1), essence.fact])  # [R]
    # Adding δ to the output of the layer's MLP or attention adds it to the residual stream after the layer.
    shift = jnp.tile(delta.sum(1), (num_contexts + 1, 1))  # [R, D]
    if after_attention is not None and not model_config.parallel_residual:
        # The MLP of the layer reads what was added to the attention's output.
        mlp = functools.partial(mlp_output, params, model_config, layer=layer)
        at_attention = jnp.tile(delta[:, 0], (num_contexts + 1, 1))
        shift += mlp(after_attention + at_attention) - mlp(after_attention)
    shift = shift.astype(suffix.hidden.dtype)
    hidden = suffix.hidden.at[jnp.arange(len(fact)), fact].add(shift)

    # An essence row has one column to read; repeating it makes all rows read equally many.
    read_essence = jnp.broadcast_to(essence.fact[:, None], (num_requests, num_read))
    read = jnp.concatenate([targets.read.reshape(-1, num_read), read_essence])  # [R, M]
    hidden = run_suffix(params, model_config, suffix, hidden, read, layer)  # [R, M, D]
    # One product with the embedding for both, and none for a column that is not read.
    in_targets = hidden[:-num_requests].reshape(-1, hidden.shape[-1])  # [K · N · M, D]
    logits = forward.unembed(
        params, model_config, jnp.concatenate([in_targets, hidden[-num_requests:, 0]])
    )
    essence_log_probs = jax.nn.log_softmax(logits[-num_requests:])
    logits = logits[:-num_requests].reshape(*targets.read.shape, -1)  # [K, N, M, V]

    # A masked sum instead of a gather: XLA fuses it with its gradient into one pass over the logits.
    is_target = jnp.arange(logits.shape[-1]) == targets.ids[..., None]
    log_prob = jnp.where(is_target, logits, 0.0).sum(-1) - jax.nn.logsumexp(logits, axis=-1)
    weights = targets.mask / targets.mask.sum(-1, keepdims=True)  # [N, M]
    nll = -(log_prob * weights).sum(-1).mean(0)
    greedy = logits.argmax(-1) == targets.ids
    return nll, essence_log_probs, (greedy | ~targets.mask).all(-1)


@struct.dataclass
class ValueSettings:
    """The hyperparameters of the optimization as arrays, so that a sweep over them compiles once."""

    v_lr: jax.Array
    v_weight_decay: jax.Array
    clamp_norm_factor: jax.Array
    kl_factor: jax.Array
    loss_threshold: jax.Array
    argmax_evaluations: jax.Array
    v_first_step: jax.Array

    @classmethod
    def of(cls, config: ROMEConfig | SpreadConfig) -> ValueSettings:
        """Reads them from a configuration."""
        return cls(*(jnp.float32(getattr(config, f.name)) for f in dataclasses.fields(cls)))


@struct.dataclass
class _Carry:
    """The state of the loop; other fields are as in `ValueResult`.

    Attributes:
      initial: float32 [N, V] log-probabilities that KL measures from.
      satisfied: int32 [N] number of evaluations in which the target was the answer in all sampled contexts.
      nll_factor: float32 [N] present weight of the negative log-likelihood.
      adam: Adam's state, or what steps that can be taken back need.
    """

    step: jax.Array
    delta: jax.Array
    adam: optax.OptState | Search
    initial: jax.Array
    done: jax.Array
    present: jax.Array
    satisfied: jax.Array
    nll_factor: jax.Array
    history: jax.Array
    steps: jax.Array


def optimize_value(
    params: forward.Params,
    model_config: ModelConfig,
    config: ROMEConfig | SpreadConfig,
    inputs: EditInputs,
    hidden: jax.Array,
    value: jax.Array,
    layer: int,
    shared: SharedContexts | None = None,
    start: jax.Array | np.ndarray | None = None,
) -> ValueResult:
    """Finds δ for N requests at once.

    Args:
      params: Weights of the model.
      model_config: Configuration of the model.
      config: Hyperparameters. Only the number of steps, and whether the first ones are longer, is compiled in.
      inputs: Token arrays of the requests.
      hidden: [R, T, D] residual stream after `layer`. Edits of lower layers show here and nowhere else.
      value: float32 [N, D] v₀, the present MLP output at the fact token of the bare prompt. Its norm sets the ball and
        the weight decay. MEMIT passes the residual stream at that token instead.
      layer: Edited layer (static).
      shared: `inputs.shared` if all requests have run on the same weights so far, otherwise None.
      start: float32 [N, 1, D] δ of earlier edits, which are tried first, and 0 for requests without one. None if no
        request has one.
    """
    found = _prepare_and_optimize(
        params, model_config, config, inputs, hidden, value[:, None], layer, shared, start
    )
    return dataclasses.replace(found, delta=found.delta[:, 0])


def optimize_pair(
    params: forward.Params,
    model_config: ModelConfig,
    config: SpreadConfig,
    inputs: EditInputs,
    hidden: jax.Array,
    values: jax.Array,
    after_attention: jax.Array,
    layer: int,
    shared: SharedContexts | None = None,
    nll_factor: float = 1.0,
    start: jax.Array | np.ndarray | None = None,
) -> ValueResult:
    """Finds two δ for N requests at once, of the attention's and of the MLP's output of a layer (PMET).

    Args:
      params, model_config, config, inputs, hidden, layer, shared: As in `optimize_value`.
      values: float32 [N, 2, D] present outputs of attention and MLP at the fact token of the bare prompt.
      after_attention: float32 [R, D] residual stream between attention and MLP at the fact token of each row.
      nll_factor: Weight of the negative log-likelihood.
      start: As in `optimize_value`, float32 [N, 2, D].
    """
    return _prepare_and_optimize(
        *(params, model_config, config, inputs, hidden, values, layer, shared, start),
        after_attention=after_attention,
        nll_factor=nll_factor,
    )


def _prepare_and_optimize(
    params: forward.Params,
    model_config: ModelConfig,
    config: ROMEConfig | SpreadConfig,
    inputs: EditInputs,
    hidden: jax.Array,
    value: jax.Array,
    layer: int,
    shared: SharedContexts | None,
    start: jax.Array | np.ndarray | None,
    after_attention: jax.Array | None = None,
    nll_factor: float = 1.0,
) -> ValueResult:
    """Splits the rows into prefix and suffix and runs the loop; `value` is [N, P, D]."""
    num_prefix = inputs.num_prefix
    suffix = freeze_prefix(params, model_config, inputs.batch, num_prefix, hidden, layer, shared)
    # Only what the loss reads: other arrays of `inputs` have shapes that would compile the program anew.
    return _optimize(
        params,
        model_config,
        ValueSettings.of(config),
        inputs.targets.shift(-num_prefix),
        inputs.essence.shift(-num_prefix),
        suffix,
        value,
        layer,
        config.v_num_grad_steps,
        after_attention,
        jnp.float32(nll_factor),
        start,
        config.v_first_step > 1,
    )


@functools.partial(jax.jit, static_argnames=("model_config", "layer", "num_steps", "longer_steps"))
def _optimize(
    params: forward.Params,
    model_config: ModelConfig,
    settings: ValueSettings,
    targets: TargetRows,
    essence: EssenceRows,
    suffix: Suffix,
    value: jax.Array,
    layer: int,
    num_steps: int,
    after_attention: jax.Array | None,
    nll_factor: jax.Array,
    start: jax.Array | None = None,
    longer_steps: bool = False,
) -> ValueResult:
    """Runs the loop of `optimize_value`; the rows are given by their suffix columns alone."""
    num_requests, num_parts, width = value.shape
    value_norm = safe_norm(value)  # [N, P]
    adam = optax.adam(settings.v_lr)

    def loss(delta, step, initial, nll_factor):
        weights, delta = tie(params, delta)
        nll, current, answers = loss_terms(
            delta, suffix, weights, model_config, targets, essence, layer, after_attention
        )
        nll = nll_factor * nll
        # The first evaluation is at δ = 0 and gives the distribution that KL measures from.
        initial = jnp.where(step == 0, jax.lax.stop_gradient(current), initial)
        kl = settings.kl_factor * (jnp.exp(current) * (current - initial)).sum(-1)
        decay = settings.v_weight_decay * (safe_norm(delta) / value_norm**2).sum(1)
        total = nll + kl + decay
        # Requests do not interact, so the gradient of the sum holds the gradient of each.
        return total.sum(), (jnp.stack([total, nll, kl, decay]), initial, answers)

    def project(delta):
        radius = settings.clamp_norm_factor * value_norm
        return project_to_ball(delta.reshape(-1, width), radius.reshape(-1)).reshape(delta.shape)

    def judge(carry, values, answers):
        """Accepts or rejects the present δ if it can be rejected, and then records the evaluation."""
        if not isinstance(carry.adam, Search):
            return None, record(carry, values, answers, answers)
        accepted = carry.adam.accepts(values)
        search = carry.adam.accept(accepted, carry.delta, values)
        after = record(carry.replace(adam=search), search.terms, answers, answers & accepted)
        factor = jnp.where(accepted, after.nll_factor, carry.nll_factor)
        return accepted, after.replace(nll_factor=factor)

    def record(carry, values, answers, kept_answers):
        """Records an evaluation of the requests that are not done yet."""
        running = ~carry.done
        history = carry.history.at[..., carry.step].set(jnp.where(running, values, jnp.nan))
        done = carry.done | (values[0] < settings.loss_threshold)
        # The sampled contexts decide, or the bare prompt if there are none.
        satisfied = carry.satisfied + kept_answers[min(1, len(answers) - 1) :].all(0)
        done |= (settings.argmax_evaluations > 0) & (satisfied >= settings.argmax_evaluations)
        carry = carry.replace(satisfied=satisfied)
        if after_attention is not None:
            everywhere = kept_answers.all(0)
            done |= everywhere & (values[2] <= _SATISFIED_KL)
            factor = jnp.where(everywhere, _SATISFIED_NLL_FACTOR, nll_factor)
            carry = carry.replace(nll_factor=factor)
        return carry.replace(
            history=history,
            steps=carry.steps + running,
            done=done,
            present=jnp.where(carry.step == 0, answers[0], carry.present),
        )

    def evaluate_and_step(carry):
        gradient, (values, initial, answers) = jax.grad(loss, has_aux=True)(
            carry.delta, carry.step, carry.initial, carry.nll_factor
        )
        before = carry.nll_factor
        accepted, carry = judge(carry, values, answers)
        if accepted is None:
            updates, adam_state = adam.update(gradient, carry.adam)
            trial = optax.apply_updates(carry.delta, updates)
        else:
            weight = carry.nll_factor / before - 1
            trial, adam_state = carry.adam.advance(
                adam, accepted, gradient, weight, carry.satisfied > 0
            )
        return carry.replace(
            step=carry.step + 1,
            delta=jnp.where(carry.done[:, None, None], carry.delta, project(trial)),
            adam=adam_state,
            initial=initial,
        )

    zeros = jnp.zeros((num_requests, num_parts, width), jnp.float32)
    if longer_steps or start is not None:
        earlier = zeros if start is None else start
        first: optax.OptState | Search = Search.begin(adam, earlier, settings.v_first_step)
    else:
        first = adam.init(zeros)
    carry = _Carry(
        step=jnp.int32(0),
        delta=zeros,
        adam=first,
        initial=jnp.zeros((num_requests, model_config.vocab_size)),
        done=jnp.zeros(num_requests, bool),
        present=jnp.zeros(num_requests, bool),
        satisfied=jnp.zeros(num_requests, jnp.int32),
        nll_factor=jnp.full(num_requests, nll_factor),
        history=jnp.full((4, num_requests, num_steps), jnp.nan),
        steps=jnp.zeros(num_requests, jnp.int32),
    )
    carry = jax.lax.while_loop(
        lambda carry: (carry.step < num_steps - 1) & ~carry.done.all(), evaluate_and_step, carry
    )
    # No step follows the last evaluation, so the returned δ has the loss that is recorded last.
    _, (values, _, answers) = loss(carry.delta, carry.step, carry.initial, carry.nll_factor)
    accepted, last = judge(carry, values, answers)
    delta = last.delta if accepted is None else last.adam.delta
    total, nll, kl, decay = last.history
    return ValueResult(delta, total, nll, kl, decay, last.steps, last.present)
