"""KnowledgeEditor (KE), a baseline of the paper: a recurrent network reads the edit and masks and shifts the gradient
(De Cao et al., 2021, "Editing Factual Knowledge in Language Models", section 4.2).

    requests ─► gradient ∇ = Σ_t x_t ⊗ δ_t
             └► tokens ─► bidirectional LSTM ─► condition ─► rows α, β; columns γ, ζ; scale η of each weight

    ΔW = max_scale · σ(η) · (∇ ⊙ (softmax(α) ⊗ γ) + softmax(β) ⊗ ζ)

Mask and shift are of rank one, and so the update is of rank T + 1: the tokens' factors, masked, and the shift.

Axes: N requests, M layers, T tokens, X inputs and Y outputs of a projection, C condition width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import TokenBatch
from rome_jax.edit.baseline_config import KEConfig
from rome_jax.edit.config import MethodName
from rome_jax.edit.hypernetworks import networks as hypernetworks
from rome_jax.edit.hypernetworks.networks import Hypernetwork
from rome_jax.edit.result import EditResult
from rome_jax.edit.stages.gradients import GradientFactors
from rome_jax.models.interventions import Delta, LowRankUpdate
from rome_jax.models.registry import LanguageModel

_PRECISION = jax.lax.Precision.HIGHEST


class Condition(nn.Module):
    """Tokens of an edit -> what the conditioners see of it: the last states of an LSTM in both directions."""

    config: KEConfig
    vocab_size: int
    width: int

    @nn.compact
    def __call__(self, tokens: TokenBatch) -> jax.Array:
        """ids and mask [N, T], padded on the right -> [N, C]."""
        embedded = nn.Embed(self.vocab_size, self.width, name="embedding")(tokens.ids)
        lengths = jnp.asarray(tokens.mask).sum(-1)
        states = []
        for name, reverse in (("forward", False), ("backward", True)):
            cell = nn.OptimizedLSTMCell(self.config.lstm_width, name=name)
            runner = nn.RNN(cell, return_carry=True, reverse=reverse)
            with jax.default_matmul_precision("highest"):  # the cell has no argument for it
                (_, state), _ = runner(embedded, seq_lengths=lengths)
            states.append(state)
        dense = nn.Dense(self.config.condition_width, precision=_PRECISION, name="linear")
        return jnp.tanh(dense(jnp.concatenate(states, axis=-1)))


class Conditioner(nn.Module):
    """What the update of one weight is made of."""

    hidden_width: int
    inputs: int
    outputs: int

    @nn.compact
    def __call__(self, condition: jax.Array) -> list[jax.Array]:
        """[N, C] -> γ [N, Y], α [N, X], ζ [N, Y], β [N, X], η [N, 1]."""
        inner = nn.Dense(self.hidden_width, precision=_PRECISION, name="hidden")
        inner = jnp.tanh(nn.WeightNorm(inner, name="hidden_norm")(condition))
        sizes = [self.outputs, self.inputs, self.outputs, self.inputs, 1]
        outer = nn.Dense(sum(sizes), precision=_PRECISION, name="out")
        found = nn.WeightNorm(outer, name="out_norm")(inner)
        ends = [sum(sizes[: index + 1]) for index in range(len(sizes) - 1)]
        return jnp.split(found, ends, axis=-1)


class KE(nn.Module):
    """The whole hypernetwork: from gradients and tokens to edits.

    Attributes:
      config: hyperparameters.
      vocab_size, width: of the embedding of tokens; those of the model.
    """

    config: KEConfig
    vocab_size: int
    width: int

    @nn.compact
    def __call__(
        self,
        factors: Mapping[str, GradientFactors],
        condition: TokenBatch,
        training: bool = False,
    ) -> Delta:
        """Independent edits of N requests.

        Args:
          factors: of each projection, by the name of its leaf.
          condition: ids and mask [N, T] of prompts and new targets.
          training: for other hypernetworks.

        Returns:
          One update a weight with case axis N, of rank T + 1.
        """
        del training
        config = self.config
        seen = Condition(config, self.vocab_size, self.width, name="condition")(condition)
        updates = []
        for leaf in config.leaves:
            x, delta = factors[leaf.name].x, factors[leaf.name].delta
            for index, layer in enumerate(config.layers):
                name = f"{leaf.name}_{layer}"
                sizes = (config.hidden_width, x.shape[-1], delta.shape[-1])
                column_a, row_a, column_b, row_b, norm = Conditioner(*sizes, name=name)(seen)
                masked = x[:, index] * jax.nn.softmax(row_a)[:, None]
                left = jnp.concatenate([masked, jax.nn.softmax(row_b)[:, None]], axis=1)
                right = jnp.concatenate([delta[:, index] * column_a[:, None], column_b[:, None]], 1)
                right = config.max_scale * jax.nn.sigmoid(norm)[..., None] * right
                layers = jnp.full(len(left), layer, jnp.int32)
                updates.append(
                    LowRankUpdate(leaf, layers, left.swapaxes(1, 2), right.swapaxes(1, 2))
                )
        return Delta(tuple(updates))


def compute(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: KEConfig,
    *,
    hypernetwork: Hypernetwork | None = None,
    chunk_size: int = 8,
    progress: bool = False,
) -> EditResult:
    """N independent edits, each of a single pass through the network.

    Args:
      model: what to edit; not changed.
      requests: the facts to write.
      config: hyperparameters; those of the network's shape must be its own.
      hypernetwork: trained for this model; None takes the one that comes with it.
      chunk_size: requests that run side by side; bounds the memory.
      progress: show a progress bar.

    Returns:
      `EditResult` with deltas of low rank: one update a weight, its rank the number of tokens and one.

    Raises:
      ValueError: no requests, a chunk_size below 1, no such layer, no hypernetwork, or one of another method, shape or
        model.
      SequenceTooLongError: a request that does not fit the context.

    Example:
      >>> result = compute(model, requests, KEConfig.for_model(model.name))  # doctest: +SKIP
      >>> edited = apply_delta(model.params, result.deltas[0])  # doctest: +SKIP
    """
    hypernetwork = hypernetwork or hypernetworks.load_shipped(MethodName.KE, model)
    hypernetworks.check_shape(config, hypernetwork)
    # A published one knows more tokens than the model.
    size = hypernetwork.variables["params"]["condition"]["embedding"]["embedding"].shape
    deltas = hypernetworks.compute_deltas(
        KE(config, *size), model, requests, hypernetwork, chunk_size, progress
    )
    return EditResult(deltas)


def compute_deltas(
    model: LanguageModel, requests: Sequence[EditRequest], config: KEConfig, **options: Any
) -> Delta:
    """N independent edits as one Delta with case axis N; arguments and errors are those of `compute`.

    Example:
      >>> deltas = compute_deltas(model, requests, KEConfig.for_model(model.name))  # doctest: +SKIP
      >>> edited = apply_delta(model.params, deltas[0])  # doctest: +SKIP
    """
    return compute(model, requests, config, **options).deltas
