"""The clean run of a prompt and its corrupted runs (paper, section 2.1).

    prompt                          ─► clean run        ─► states, the answer o and its probability P[o]
    prompt, noise on the subject    ─► S corrupted runs ─► states, and the mean probability P*[o]

P[o] − P*[o] is the total effect of the corruption. `restore` puts clean states back into the corrupted runs.

Axes: L layers, T columns (the prompt and all target tokens but the last, padded), S noise samples, D width, M target
tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rome_jax.data.tokens import TokenBatch
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Site
from rome_jax.models.layers import KVCache
from rome_jax.models.patches import Patch, PatchMode
from rome_jax.models.registry import LanguageModel
from rome_jax.models.stack import LayersOutput
from rome_jax.trace.prompt import TracePrompt, TraceTokens

# The sites that a trace can restore or sever.
SITES = (Site.RESIDUAL, Site.MLP_OUT, Site.ATTN_OUT)


class Measure(enum.StrEnum):
    """How an answer is scored before the scores are averaged over noise samples.

    For a target of several tokens both measures are those of the whole sequence.
    """

    PROBABILITY = "probability"
    LOG_PROBABILITY = "log_probability"


@struct.dataclass
class RunStates:
    """The arrays of one clean run and S corrupted runs, and the measure of all scores that are computed from them.

    Attributes:
      clean: [L, 1, T, D] values of the clean run, by site.
      corrupted: [L, S, T, D] values of the corrupted runs, by site.
      embedded: [S, T, D] residual stream of the corrupted runs before layer 0.
      cache: Keys and values of the corrupted runs.
      mask: bool [T], True for real tokens.
      read: int32 [M] columns whose predictions are the target's tokens.
      target: int32 [M] tokens of the answer.
      clean_score: [] measure of the answer in the clean run.
      corrupted_score: [] mean measure of the answer over the corrupted runs.
      measure: How the answer is scored (static).
    """

    clean: dict[Site, jax.Array]
    corrupted: dict[Site, jax.Array]
    embedded: jax.Array
    cache: KVCache
    mask: jax.Array
    read: jax.Array
    target: jax.Array
    clean_score: jax.Array
    corrupted_score: jax.Array
    measure: Measure = struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Runs:
    """A prompt's clean run and its corrupted runs: what every restoration starts from.

    `sweep.start` makes it. `sweep.trace`, `screen.screen` and `screen.verify` take it.

    Attributes:
      model: The model that ran.
      prompt: The prompt that it ran on.
      states: The arrays of the runs.
    """

    model: LanguageModel
    prompt: TracePrompt
    states: RunStates

    @property
    def measure(self) -> Measure:
        """How the answer is scored, here and in all traces that start from these runs."""
        return self.states.measure

    @property
    def clean_score(self) -> float:
        """The measure of the answer in the clean run, P[o] in the paper."""
        return float(self.states.clean_score)

    @property
    def corrupted_score(self) -> float:
        """The mean measure of the answer over the corrupted runs, P*[o] in the paper."""
        return float(self.states.corrupted_score)

    @property
    def target(self) -> np.ndarray:
        """The tokens of the answer, int32 [M]."""
        return np.asarray(self.states.target)

    @property
    def answer(self) -> str:
        """The text of the answer."""
        return self.model.tokenizer.decode(self.target)


def score(logits: jax.Array, target: jax.Array, measure: Measure) -> jax.Array:
    """Computes the measure of a target.

    Args:
      logits: [..., M, V] logits at the columns that predict the target.
      target: int32 [M] tokens.
      measure: The target's joint probability, or its logarithm.

    Returns:
      [...] scores.

    Example:
      >>> logits = jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]]))
      >>> round(float(score(logits, jnp.array([1, 0]), Measure.PROBABILITY)), 4)  # 0.75 · 0.5
      0.375
    """
    log_probs = jax.nn.log_softmax(logits)
    target = jnp.broadcast_to(target, logits.shape[:-1])
    joint = jnp.take_along_axis(log_probs, target[..., None], axis=-1)[..., 0].sum(-1)
    return jnp.exp(joint) if measure is Measure.PROBABILITY else joint


@functools.partial(jax.jit, static_argnames=("config", "mode", "measure"))
def run_clean_and_corrupted(
    params: forward.Params,
    config: ModelConfig,
    tokens: TraceTokens,
    noise: jax.Array,
    *,
    mode: PatchMode = PatchMode.ADD,
    measure: Measure = Measure.PROBABILITY,
) -> RunStates:
    """Runs a prompt once as it is and S times with noise on its subject.

    Without a target in `tokens`, the answer is the most likely next token of the clean run.

    Args:
      params, config: The model.
      tokens: The prompt.
      noise: [S, T, D] noise for the token embeddings; only the subject's columns are used.
      mode: Whether noise is added to the subject's token embeddings or replaces them.
      measure: How the answer is scored.

    Returns:
      The states of all runs, from which restorations start.
    """
    batch = TokenBatch(tokens.ids[None], tokens.mask[None])
    attention = forward.plain_attention(batch)
    read = tokens.last + jnp.arange(1 if tokens.target is None else len(tokens.target))

    def run(patches: Sequence[Patch]) -> tuple[jax.Array, LayersOutput, jax.Array]:
        embedded = forward.embed(params, config, batch.ids, attention.positions, patches)
        out = forward.run_layers(
            params, config, embedded, attention, capture=SITES, keep_cache=True
        )
        return embedded, out, forward.unembed(params, config, out.hidden[:, read])

    _, clean, logits = run(())
    target = logits[0].argmax(-1) if tokens.target is None else tokens.target
    clean_score = score(logits, target, measure)[0]

    corrupt = Patch(Site.EMBED, mode, jnp.int32(0), tokens.subject[None], noise)
    embedded, corrupted, logits = run((corrupt,))
    assert corrupted.cache is not None  # as `keep_cache` asks
    return RunStates(
        clean.captures,
        corrupted.captures,
        embedded,
        corrupted.cache,
        tokens.mask,
        read,
        target,
        clean_score,
        score(logits, target, measure).mean(),
        measure,
    )
