"""Fine-tuning, the baseline of the paper (appendix E.1): a few steps of Adam on some weights until the model says the
target, free (FT) or in an L∞ ball around the weights as they were (FT-L; Zhu et al., 2020, "Modifying Memories in
Transformer Models").

    requests ─► token arrays ─► states below the lowest trained layer, once ─► steps on ΔW, Δb ─► dense delta

What is trained is the change, in float32; the loss is that of the weights as `apply_delta` will merge them.

Axes: N edits, M minibatches of B requests, R requests, T tokens, K target tokens, S steps.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from rome_jax.data.request import EditRequest
from rome_jax.edit.baseline_config import FTConfig
from rome_jax.edit.delta import apply_delta
from rome_jax.edit.result import EditResult
from rome_jax.edit.stages.chunks import check_requests, map_chunks
from rome_jax.edit.stages.targets import TargetInputs, target_nll, tokenize_request_targets
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Delta, DenseUpdate, Leaf, Part
from rome_jax.models.registry import LanguageModel


@struct.dataclass
class FTResult:
    """N edits and how they came about.

    Attributes:
      deltas: dense updates with case axis N; by layer, weight and part.
      loss: float32 [N, S, M], of each minibatch before its step; NaN once training has ended.
      steps: int32 [N], the passes that each edit took.
    """

    deltas: Delta
    loss: jax.Array
    steps: jax.Array


@struct.dataclass
class _Settings:
    """The numbers of `FTConfig` that training reads: arrays, so that a sweep over them compiles once."""

    lr: jax.Array
    weight_decay: jax.Array
    norm_constraint: jax.Array
    loss_threshold: jax.Array

    @classmethod
    def of(cls, config: FTConfig) -> _Settings:
        """Those of a configuration; no constraint is a ball without end."""
        numbers = {field.name: getattr(config, field.name) for field in dataclasses.fields(cls)}
        numbers["norm_constraint"] = config.norm_constraint or jnp.inf
        return cls(**{name: jnp.float32(number) for name, number in numbers.items()})


@struct.dataclass
class _Carry:
    """The state of the loop; names as in `FTResult`."""

    step: jax.Array
    changes: tuple[jax.Array, ...]
    adam: optax.OptState
    loss: jax.Array
    done: jax.Array


def compute_from_inputs(
    params: forward.Params, model_config: ModelConfig, inputs: TargetInputs, config: FTConfig
) -> FTResult:
    """The algorithm: N independent edits from token arrays, each trained on its own M minibatches.

    Args:
      params, model_config: the model.
      inputs: with leading axes N, M and B.
      config: hyperparameters; a number of them that changes no shape compiles nothing anew.
    """
    trained = _trained(params, config)
    settings = _Settings.of(config)
    changes, loss, steps = _train(params, model_config, trained, config.num_steps, settings, inputs)
    updates = tuple(
        DenseUpdate(leaf, part, jnp.full(len(steps), layer, jnp.int32), change)
        for (layer, leaf, part), change in zip(trained, changes, strict=True)
    )
    return FTResult(Delta(updates), loss, steps)


Weight = tuple[int, Leaf, Part]  # layer, projection, and which array of it


def _trained(params: forward.Params, config: FTConfig) -> tuple[Weight, ...]:
    """The weights that are trained, from the lowest layer on; a projection may have no bias."""
    return tuple(
        (layer, leaf, part)
        for layer in config.layers
        for leaf in config.leaves
        for part in Part
        if part.value in params["blocks"][leaf.value[0]][leaf.value[1]]
    )


@functools.partial(jax.jit, static_argnames=("model_config", "trained", "num_steps"))
def _train(
    params: forward.Params,
    model_config: ModelConfig,
    trained: tuple[Weight, ...],
    num_steps: int,
    settings: _Settings,
    inputs: TargetInputs,
) -> tuple[tuple[jax.Array, ...], jax.Array, jax.Array]:
    """The program behind `compute_from_inputs`: changes [N, ...] of the weights `trained`, losses and steps."""
    # No step changes what comes in at the lowest trained layer.
    rows = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), inputs.batch)
    hidden = forward.hidden_states(params, model_config, rows, stop=trained[0][0]).hidden
    hidden = hidden.reshape(*inputs.target_mask.shape[:3], *hidden.shape[1:])  # [N, M, B, T, D]

    start = tuple(
        params["blocks"][leaf.value[0]][leaf.value[1]][part.value][layer].astype(jnp.float32)
        for layer, leaf, part in trained
    )
    # Weight decay before Adam: its gradient is scaled like any other.
    optimizer = optax.chain(
        optax.add_decayed_weights(settings.weight_decay), optax.adam(settings.lr)
    )
    gradient_of = jax.value_and_grad(_loss)  # of the changes alone
    radius = settings.norm_constraint

    def one_edit(hidden, inputs):
        def step(state, minibatch):
            changes, adam = state
            loss, gradient = gradient_of(changes, params, model_config, trained, *minibatch)
            weights = jax.tree.map(jnp.add, start, changes)
            updates, adam_after = optimizer.update(gradient, adam, weights)
            moved = jax.tree.map(
                lambda change, update: jnp.clip(change + update, -radius, radius), changes, updates
            )
            # A minibatch that is learnt moves nothing, Adam's averages included.
            keep = functools.partial(jnp.where, loss < settings.loss_threshold)
            return jax.tree.map(keep, state, (moved, adam_after)), loss

        requests = inputs.target_mask.any(-1).sum(-1)  # [M]

        def whole_pass(carry):
            (changes, adam), losses = jax.lax.scan(
                step, (carry.changes, carry.adam), (hidden, inputs)
            )
            mean = (losses * requests).sum() / requests.sum()
            return _Carry(
                step=carry.step + 1,
                changes=changes,
                adam=adam,
                loss=carry.loss.at[carry.step].set(losses),
                done=mean < settings.loss_threshold,
            )

        changes = jax.tree.map(jnp.zeros_like, start)
        last = jax.lax.while_loop(
            lambda carry: (carry.step < num_steps) & ~carry.done,
            whole_pass,
            _Carry(
                step=jnp.int32(0),
                changes=changes,
                adam=optimizer.init(changes),
                loss=jnp.full((num_steps, len(requests)), jnp.nan),
                done=jnp.bool(False),
            ),
        )
        return last.changes, last.loss, last.step

    return jax.vmap(one_edit)(hidden, inputs)


def _loss(
    changes: Sequence[jax.Array],
    params: forward.Params,
    config: ModelConfig,
    trained: Sequence[Weight],
    hidden: jax.Array,
    inputs: TargetInputs,
) -> jax.Array:
    """Mean over a minibatch of each target's NLL per token.

    Args:
      changes: of the weights `trained`.
      params, config: the model.
      hidden: [B, T, D], the residual stream before the lowest trained layer.
      inputs: of B requests.
    """
    attention = forward.plain_attention(inputs.batch)
    updates: dict[int, list[DenseUpdate]] = {}
    for (layer, leaf, part), change in zip(trained, changes, strict=True):
        updates.setdefault(layer, []).append(DenseUpdate(leaf, part, jnp.int32(0), change))

    after = min(updates)
    for layer, own in updates.items():
        hidden = forward.run_layers(
            params, config, hidden, attention, start=after, stop=layer, remat=True
        ).hidden
        # A stack of this layer alone: its gradient is not one of all layers.
        stack = jax.tree.map(lambda leaf, at=layer: leaf[at : at + 1], params["blocks"])
        merged = apply_delta({"blocks": stack}, Delta(tuple(own)))
        hidden = forward.run_layer(merged, config, hidden, attention, 0).hidden
        after = layer + 1
    hidden = forward.run_layers(params, config, hidden, attention, start=after, remat=True).hidden
    hidden = jnp.take_along_axis(hidden, inputs.read[..., None], axis=1)
    logits = forward.unembed(params, config, hidden)  # [B, K, V]

    requests = inputs.target_mask.any(-1).sum()  # the others fill up the minibatch
    return target_nll(logits, inputs).sum() / requests


def compute(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: FTConfig,
    *,
    chunk_size: int = 1,
    progress: bool = False,
) -> EditResult:
    """N independent edits, each trained on its own request, with their losses.

    They are dense: N changes take N times the memory of the trained weights (GPT-2 XL: 41 MB each). Ask for a few at
    a time where there are many.

    Args:
      model: what to edit; not changed.
      requests: the facts to write.
      config: hyperparameters.
      chunk_size: requests that are trained side by side; each takes about seven times the trained weights' memory.
      progress: show a progress bar.

    Returns:
      `EditResult` whose deltas are dense, to be merged one at a time; a loss per pass.

    Raises:
      ValueError: If there are no requests, chunk_size is below 1, or a layer or weight does not exist.
      SequenceTooLongError: If a request does not fit the context.

    Example:
      >>> result = compute(model, requests, FTConfig.for_model(model.name))  # doctest: +SKIP
      >>> edited = apply_delta(model.params, result.deltas[0])  # doctest: +SKIP
    """
    _check(model, requests, config, chunk_size)

    def compute_chunk(chunk: Sequence[EditRequest]) -> EditResult:
        inputs = _tokenize(model, chunk, config).reshape(len(chunk), 1, 1)
        found = compute_from_inputs(model.params, model.config, inputs, config)
        return EditResult(found.deltas, losses=found.loss[..., 0], steps=found.steps)

    lengths = [len(request.text) + len(request.target_text) for request in requests]
    return map_chunks(compute_chunk, requests, lengths, chunk_size, "FT", progress)


def compute_deltas(
    model: LanguageModel, requests: Sequence[EditRequest], config: FTConfig, **options: Any
) -> Delta:
    """N independent edits as one Delta with case axis N; arguments and errors are those of `compute`.

    Example:
      >>> deltas = compute_deltas(model, requests, FTConfig.for_model(model.name))  # doctest: +SKIP
      >>> edited = apply_delta(model.params, deltas[0])  # doctest: +SKIP
    """
    return compute(model, requests, config, **options).deltas


def compute_joint_delta(
    model: LanguageModel, requests: Sequence[EditRequest], config: FTConfig
) -> Delta:
    """One edit for all requests, trained on minibatches of them, in their order.

    Args:
      model, requests, config: as for `compute`.

    Returns:
      A dense Delta without a case axis.

    Raises:
      ValueError, SequenceTooLongError: as `compute`.

    Example:
      >>> delta = compute_joint_delta(model, requests, FTConfig.for_model(model.name))  # doctest: +SKIP
      >>> edited = apply_delta(model.params, delta)  # doctest: +SKIP
    """
    _check(model, requests, config)
    inputs = minibatches(_tokenize(model, requests, config), config.batch_size)
    return compute_from_inputs(model.params, model.config, inputs, config).deltas[0]


def minibatches(inputs: TargetInputs, batch_size: int) -> TargetInputs:
    """Inputs of R requests as one edit of M minibatches; the last is filled up with rows that do not count."""
    num_requests = len(inputs.target_mask)
    size = min(batch_size, num_requests)
    filler = -num_requests % size
    filled = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf[:filler]]), inputs)
    filled.target_mask[num_requests:] = False
    return filled.reshape(1, -1, size)


def _tokenize(
    model: LanguageModel, requests: Sequence[EditRequest], config: FTConfig
) -> TargetInputs:
    return tokenize_request_targets(
        model.tokenizer, requests, model.config.context_length, config.scoring
    )


def _check(
    model: LanguageModel, requests: Sequence[EditRequest], config: FTConfig, chunk_size: int = 1
) -> None:
    check_requests(model, requests, config, chunk_size)
    for leaf in config.leaves:
        module, name = leaf.value
        if name not in model.params["blocks"][module]:
            known = [
                leaf.name for leaf in Leaf if leaf.value[1] in model.params["blocks"][leaf.value[0]]
            ]
            raise ValueError(
                f"leaves={leaf.name} does not exist: the model's weights are {', '.join(known)}."
            )
