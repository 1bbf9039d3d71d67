"""The losses of a hypernetwork: its edits must write the new target for paraphrases and leave other facts unchanged.

    examples ─► gradients of the edits ─► network ─► deltas ─► edit loss of the paraphrases
                                                            └► KL(before ‖ after) of the other facts

The losses are those of Mitchell et al., 2022, section 3.2; De Cao et al., 2021, section 4.1, constrain the KL instead.

Axes: N examples of a batch; 3 N rows, which are the edits, paraphrases and other facts; T tokens, K target tokens,
D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import TokenBatch
from rome_jax.edit.hypernetworks.edits import condition_tokens
from rome_jax.edit.stages.gradients import gradient_factors
from rome_jax.edit.stages.targets import (
    TargetInputs,
    mean_over_target,
    target_nll,
    tokenize_targets,
)
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Delta
from rome_jax.models.layers import Interventions
from rome_jax.models.registry import LanguageModel


@dataclasses.dataclass(frozen=True)
class TrainingExample:
    """One edit to learn from.

    Attributes:
      request: The edit.
      paraphrase: Another prompt that should get the new target.
      other_prompt: A prompt about another fact, which must not change.
      other_target: The present answer to `other_prompt`, with its leading space.
    """

    request: EditRequest
    paraphrase: str
    other_prompt: str
    other_target: str


class Examples(Protocol):
    """A source of examples."""

    def draw(self, rng: np.random.Generator, count: int) -> list[TrainingExample]:
        """Draws `count` examples; generators in the same state draw the same examples."""


@struct.dataclass
class ExampleBatch:
    """The token arrays of N examples.

    Attributes:
      rows: The 3 N prompts with their targets: first the edits, then the paraphrases, then the other facts.
      condition: [N, T] the tokens of the edits, which KE reads.
    """

    rows: TargetInputs
    condition: TokenBatch


@struct.dataclass
class Losses:
    """The mean losses of a batch.

    Attributes:
      edit: The negative log-likelihood of the new targets after the paraphrases, in nats per token.
      kl: The KL divergence of the predictions for other facts, in nats per token.
      success: The share of paraphrases whose most likely tokens are the new target.
      kept: The share of other facts whose most likely tokens are the same as before the edit.
    """

    edit: jax.Array
    kl: jax.Array
    success: jax.Array
    kept: jax.Array


def tokenize_examples(model: LanguageModel, examples: Sequence[TrainingExample]) -> ExampleBatch:
    """Builds the token arrays of N examples, padded to one of few shapes.

    Args:
      model: The model, whose tokenizer is used.
      examples: The examples.

    Returns:
      The arrays.

    Raises:
      SequenceTooLongError: If a prompt with its target does not fit into the context.

    Example:
      >>> example = TrainingExample(request, "Gothulf Punby plays", "Tasune Bridge is made of", " stone")
      >>> batch = tokenize_examples(model, [example])
      >>> batch.rows.batch.ids.shape, batch.condition.ids.shape
      ((3, 8), (1, 12))
    """
    new = [e.request.target_text for e in examples]
    prompts = [
        *(e.request.text for e in examples),
        *(e.paraphrase for e in examples),
        *(e.other_prompt for e in examples),
    ]
    targets = [*new, *new, *(e.other_target for e in examples)]
    length = model.config.context_length
    rows = tokenize_targets(model.tokenizer, prompts, targets, length, multiples=(8, 4))
    columns = rows.batch.ids.shape[1] + rows.target_ids.shape[1]
    requests = [e.request for e in examples]
    return ExampleBatch(rows, condition_tokens(model.tokenizer, requests, columns))


def losses(
    network: nn.Module,
    variables: Mapping[str, Any],
    params: forward.Params,
    model_config: ModelConfig,
    batch: ExampleBatch,
    training: bool,
) -> tuple[Losses, Mapping[str, Any]]:
    """Edits a batch with a hypernetwork and computes the losses of the edited model.

    Args:
      network: The linen module of the hypernetwork.
      variables: Its variables.
      params: The parameters of the model to edit.
      model_config: The configuration of that model.
      batch: The token arrays of N examples.
      training: Whether to add the batch's gradients to the running statistics.

    Returns:
      The losses, and the variables with their new running statistics if `training` is set.
    """
    count = len(batch.condition.ids)
    edits, paraphrases, others = (
        _rows(batch.rows, slice(part * count, (part + 1) * count)) for part in range(3)
    )
    deltas, changed = _edit(network, variables, params, model_config, edits, batch, training)
    first = network.config.layers[0]
    asked = _rows(batch.rows, slice(count, None))
    hidden = forward.hidden_states(params, model_config, asked.batch, stop=first).hidden
    after = _predictions(params, model_config, asked, hidden, first, deltas)  # [2 N, K, V]
    before = _predictions(params, model_config, others, hidden[count:], first)  # [N, K, V]

    answers = jnp.concatenate([paraphrases.target_ids, before.argmax(-1)])
    right = ((after.argmax(-1) == answers) | ~asked.target_mask).all(-1)
    found = Losses(
        edit=target_nll(after[:count], paraphrases).mean(),
        kl=_kl_divergence(before, after[count:], others).mean(),
        success=right[:count].mean(),
        kept=right[count:].mean(),
    )
    return found, {**variables, **changed}


def _rows(inputs: TargetInputs, part: slice) -> TargetInputs:
    """Takes some of the rows."""
    return jax.tree.map(lambda leaf: leaf[part], inputs)


def _edit(
    network: nn.Module,
    variables: Mapping[str, Any],
    params: forward.Params,
    model_config: ModelConfig,
    edits: TargetInputs,
    batch: ExampleBatch,
    training: bool,
) -> tuple[Delta, Mapping[str, Any]]:
    """Computes the deltas of N edits, and the network's running statistics after them."""
    layers, leaves = network.config.layers, network.config.leaves
    factors = gradient_factors(params, model_config, edits, layers, leaves)
    return network.apply(variables, factors, batch.condition, training, mutable=["statistics"])


def _kl_divergence(before: jax.Array, after: jax.Array, inputs: TargetInputs) -> jax.Array:
    """Computes KL(before ‖ after) of logits [N, K, V], averaged over each target's tokens, [N]."""
    old, new = (jax.nn.log_softmax(logits) for logits in (before, after))
    return mean_over_target((jnp.exp(old) * (old - new)).sum(-1), inputs)


def _predictions(
    params: forward.Params,
    model_config: ModelConfig,
    inputs: TargetInputs,
    hidden: jax.Array,
    first: int,
    deltas: Delta | None = None,
) -> jax.Array:
    """Computes the logits [B, K, V] of the scored columns from the hidden states before layer `first`.

    With N deltas, row b is under delta b mod N.
    """
    attention = forward.plain_attention(inputs.batch)
    if deltas is not None:
        case = jnp.arange(len(hidden)) % len(deltas)
        deltas = deltas.rows(case, len(hidden))
    hidden = forward.run_layers(
        params,
        model_config,
        hidden,
        attention,
        start=first,
        interventions=Interventions((), deltas),
        remat=deltas is not None,
    ).hidden
    read = jnp.take_along_axis(hidden, inputs.read[..., None], axis=1)
    return forward.unembed(params, model_config, read)
