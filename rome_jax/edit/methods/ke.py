"""KnowledgeEditor (KE), a baseline of the ROME paper: a recurrent network reads the edit, and masks and shifts the
gradient.

The method is from De Cao et al., 2021, "Editing Factual Knowledge in Language Models", section 4.2.

    requests ─► gradient ∇ = Σ_t x_t ⊗ δ_t
             └► tokens ─► `Condition`: bidirectional LSTM ─► `Conditioner` of each weight ─► α, β, γ, ζ, η

    ΔW = max_scale · σ(η) · (∇ ⊙ (softmax(α) ⊗ γ) + softmax(β) ⊗ ζ)

The mask softmax(α) ⊗ γ and the shift softmax(β) ⊗ ζ have rank one. The update therefore has rank T + 1: the masked
factors of the T tokens, and the shift.

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
from rome_jax.edit.hypernetworks import edits
from rome_jax.edit.hypernetworks.networks import Hypernetwork
from rome_jax.edit.result import EditResult
from rome_jax.edit.stages.gradients import GradientFactors
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import LanguageModel

_PRECISION = jax.lax.Precision.HIGHEST


class Condition(nn.Module):
    """The encoder of an edit's tokens: the last states of an LSTM in both directions.

    Attributes:
      config: Hyperparameters.
      vocab_size: The number of rows of the token embedding.
      width: The width of the token embedding.
    """

    config: KEConfig
    vocab_size: int
    width: int

    @nn.compact
    def __call__(self, tokens: TokenBatch) -> jax.Array:
        """Encodes tokens [N, T], padded on the right, as the condition [N, C]."""
        embedded = nn.Embed(self.vocab_size, self.width, name="embedding")(tokens.ids)
        lengths = jnp.asarray(tokens.mask).sum(-1)
        states = []
        for name, reverse in (("forward", False), ("backward", True)):
            cell = nn.OptimizedLSTMCell(self.config.lstm_width, name=name)
            runner = nn.RNN(cell, return_carry=True, reverse=reverse)
            # The cell itself has no argument for the precision of its products.
            with jax.default_matmul_precision("highest"):
                (_, state), _ = runner(embedded, seq_lengths=lengths)
            states.append(state)
        dense = nn.Dense(self.config.condition_width, precision=_PRECISION, name="linear")
        return jnp.tanh(dense(jnp.concatenate(states, axis=-1)))


class Conditioner(nn.Module):
    """The network that predicts the mask, shift and scale of one weight's update.

    Attributes:
      hidden_width: The width of the hidden layer.
      inputs: The number of inputs X of the weight.
      outputs: The number of outputs Y of the weight.
    """

    hidden_width: int
    inputs: int
    outputs: int

    @nn.compact
    def __call__(self, condition: jax.Array) -> list[jax.Array]:
        """Maps the condition [N, C] to γ [N, Y], α [N, X], ζ [N, Y], β [N, X] and η [N, 1]."""
        hidden_layer = nn.Dense(self.hidden_width, precision=_PRECISION, name="hidden")
        hidden = jnp.tanh(nn.WeightNorm(hidden_layer, name="hidden_norm")(condition))
        sizes = [self.outputs, self.inputs, self.outputs, self.inputs, 1]
        output_layer = nn.Dense(sum(sizes), precision=_PRECISION, name="out")
        found = nn.WeightNorm(output_layer, name="out_norm")(hidden)
        ends = [sum(sizes[: index + 1]) for index in range(len(sizes) - 1)]
        return jnp.split(found, ends, axis=-1)


class KE(nn.Module):
    """The whole hypernetwork, from gradients and tokens to edits.

    Attributes:
      config: Hyperparameters.
      vocab_size: The number of rows of the token embedding, as in the model.
      width: The width of the token embedding, as in the model.
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
        """Computes independent edits of N requests.

        Args:
          factors: The gradient factors of each projection, by the name of its leaf.
          condition: The tokens [N, T] of the prompts with their new targets.
          training: Not used; MEND reads it.

        Returns:
          One update of rank T + 1 per weight, with case axis N.
        """
        del training
        config = self.config
        encoded = Condition(config, self.vocab_size, self.width, name="condition")(condition)
        updates = []
        for leaf in config.leaves:
            x, delta = factors[leaf.name].x, factors[leaf.name].delta
            for index, layer in enumerate(config.layers):
                sizes = (config.hidden_width, x.shape[-1], delta.shape[-1])
                predicted = Conditioner(*sizes, name=f"{leaf.name}_{layer}")(encoded)
                left, right = _update_factors(
                    x[:, index], delta[:, index], predicted, config.max_scale
                )
                updates.append(edits.token_update(leaf, layer, left, right))
        return Delta(tuple(updates))


def _update_factors(
    x: jax.Array, delta: jax.Array, predicted: list[jax.Array], max_scale: float
) -> tuple[jax.Array, jax.Array]:
    """Builds the T + 1 factors of one weight's update, [N, T + 1, X] and [N, T + 1, Y].

    Row t masks the gradient factors of token t, and the last row is the shift.
    """
    gamma, alpha, zeta, beta, eta = predicted
    masked = x * jax.nn.softmax(alpha)[:, None]
    left = jnp.concatenate([masked, jax.nn.softmax(beta)[:, None]], axis=1)
    right = jnp.concatenate([delta * gamma[:, None], zeta[:, None]], axis=1)
    return left, max_scale * jax.nn.sigmoid(eta)[..., None] * right


def compute(
    model: LanguageModel, requests: Sequence[EditRequest], config: KEConfig, **options: Any
) -> EditResult:
    """Computes N independent edits, each by a single pass through the network.

    Args:
      model: The model to edit; it is not changed.
      requests: The facts to write.
      config: Hyperparameters. Those that determine the network's shape must be the network's own.
      **options: `hypernetwork`, `chunk_size`, `progress` and `check_answers`, as in
        `rome_jax.edit.hypernetworks.edits.compute`.

    Returns:
      An `EditResult` with low-rank deltas: one update per weight, whose rank is the number of tokens plus one.

    Raises:
      ValueError, SequenceTooLongError: As in `rome_jax.edit.hypernetworks.edits.compute`.

    Example:
      >>> from rome_jax import KEConfig
      >>> compute(model, [request], KEConfig.for_model(model.name)).deltas
      Delta(1 edits: MLP_UP [128, 512] rank 9 at layer 3, ...)
    """

    def build(hypernetwork: Hypernetwork) -> KE:
        # A published network knows more tokens than the model.
        embedding = hypernetwork.variables["params"]["condition"]["embedding"]["embedding"]
        return KE(config, *embedding.shape)

    return edits.compute(MethodName.KE, build, model, requests, config, **options)


def compute_deltas(
    model: LanguageModel, requests: Sequence[EditRequest], config: KEConfig, **options: Any
) -> Delta:
    """Returns the deltas of `compute`, N independent edits with case axis N. Takes and raises the same.

    Example:
      >>> from rome_jax import KEConfig, apply_delta
      >>> deltas = compute_deltas(model, [request], KEConfig.for_model(model.name))
      >>> edited = apply_delta(model.params, deltas[0])
    """
    return compute(model, requests, config, **options).deltas
