"""What a hypernetwork's edits do to paraphrases, which must say the new target, and to other facts, which must stay.

    examples ─► gradients of the edits ─► network ─► deltas ─► edit loss of paraphrases, KL(before ‖ after) of others

Axes: N examples of a batch; 3 N rows: edits, paraphrases, other facts; K target tokens, V vocabulary.
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
from rome_jax.edit.hypernetworks.networks import condition_tokens
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
      request: the edit.
      paraphrase: another prompt that should get the new target.
      other_prompt, other_target: a prompt about something else, and its answer, which must stay.
    """

    request: EditRequest
    paraphrase: str
    other_prompt: str
    other_target: str


class Examples(Protocol):
    """Where examples come from."""

    def draw(self, rng: np.random.Generator, count: int) -> list[TrainingExample]:
        """So many examples; the same for the same generator."""


@struct.dataclass
class ExampleBatch:
    """Arrays of N examples.

    Attributes:
      rows: 3 N prompts with targets: edits, paraphrases, other facts.
      condition: [N, T], tokens of the edits.
    """

    rows: TargetInputs
    condition: TokenBatch


@struct.dataclass
class Losses:
    """Means over a batch.

    Attributes:
      edit: negative log-likelihood of the new targets behind paraphrases, in nats a token.
      kl: KL divergence of other facts' predictions, in nats a token.
      success: share of paraphrases whose likeliest tokens are the target.
      kept: share of other facts whose likeliest tokens are as before.
    """

    edit: jax.Array
    kl: jax.Array
    success: jax.Array
    kept: jax.Array


def tokenize_examples(model: LanguageModel, examples: Sequence[TrainingExample]) -> ExampleBatch:
    """The arrays of some examples, in few shapes."""
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
    """Edits a batch and looks at what that does.

    Returns:
      The losses, and the variables with new running statistics if `training`.
    """
    count, config = len(batch.condition.ids), network.config
    edits, asked = (
        jax.tree.map(lambda leaf, part=part: leaf[part], batch.rows)
        for part in (slice(count), slice(count, None))
    )
    factors = gradient_factors(params, model_config, edits, config.layers, config.leaves)
    deltas, changed = network.apply(
        variables, factors, batch.condition, training, mutable=["statistics"]
    )
    first = config.layers[0]
    hidden = forward.hidden_states(params, model_config, asked.batch, stop=first).hidden
    after = _predictions(params, model_config, asked, hidden, first, deltas)  # [2N, K, V]
    others = jax.tree.map(lambda leaf: leaf[count:], asked)
    before = _predictions(params, model_config, others, hidden[count:], first)

    nll = target_nll(after[:count], jax.tree.map(lambda leaf: leaf[:count], asked))
    old, new = (jax.nn.log_softmax(x) for x in (before, after[count:]))
    kl = mean_over_target((jnp.exp(old) * (old - new)).sum(-1), others)
    likeliest = after.argmax(-1)
    wanted = jnp.concatenate([asked.target_ids[:count], before.argmax(-1)])
    right = ((likeliest == wanted) | ~asked.target_mask).all(-1)
    found = Losses(nll.mean(), kl.mean(), right[:count].mean(), right[count:].mean())
    return found, {**variables, **changed}


def _predictions(
    params: forward.Params,
    model_config: ModelConfig,
    inputs: TargetInputs,
    hidden: jax.Array,
    first: int,
    deltas: Delta | None = None,
) -> jax.Array:
    """Logits [B, K, V] of the scored columns, from `hidden` before layer `first`; row b has the delta b mod N."""
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
