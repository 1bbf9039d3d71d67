"""How likely a model finds targets after prompts, each row under its own edit."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import LanguageModel
from rome_jax.request import target_text
from rome_jax.tokens import SequenceTooLongError, TokenBatch, pad, round_up

_ROW_MULTIPLE = 16  # batches come in few sizes, so that few programs are compiled


def prompt_ids(model: LanguageModel, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt.

    Raises:
      ValueError: a prompt without tokens, named.
      SequenceTooLongError: a prompt that does not fit the context, named.
    """
    rows = model.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    for index, row in enumerate(rows):
        if not row:
            raise ValueError(
                f"prompt {index}, {prompts[index]!r}, has no tokens: give at least one character."
            )
        _check_fits(model, row, f"prompt {index}, {prompts[index]!r},")
    return rows


def _check_fits(model: LanguageModel, row: Sequence[int], name: str) -> None:
    if len(row) > model.config.context_length:
        raise SequenceTooLongError(
            f"{name} has {len(row)} tokens, more than the model's context of "
            f"{model.config.context_length}: shorten the text."
        )


def target_nlls(
    model: LanguageModel,
    prompts: Sequence[str],
    targets: Sequence[str],
    *,
    deltas: Delta | None = None,
    case: Sequence[int] | None = None,
    batch_size: int = 256,
) -> np.ndarray:
    """Mean negative log-likelihood per token, in nats, of each target after its prompt; lower wins.

    Args:
      model: the unedited model.
      prompts, targets: B texts each; a target gets one leading space.
      deltas: N independent edits, if any.
      case: B indices, the edit that each row sees.
      batch_size: rows at a time.

    Returns:
      float [B].

    Raises:
      ValueError: a prompt without tokens, named.
      SequenceTooLongError: a prompt that does not fit the context with its target, named.

    Example:
      >>> target_nlls(model, ["The capital of France is"], ["Paris"])  # doctest: +SKIP
    """
    prefixes = prompt_ids(model, prompts)
    texts = [target_text(target) for target in targets]
    target_ids = model.tokenizer(texts, add_special_tokens=False)["input_ids"]
    rows = [p + t[:-1] for p, t in zip(prefixes, target_ids, strict=True)]
    for index, row in enumerate(rows):
        _check_fits(model, row, f"prompt {index}, {prompts[index]!r}, with {targets[index]!r}")
    target = pad(target_ids, multiple=4)
    columns = np.array([len(p) for p in prefixes])[:, None] - 1 + np.arange(target.ids.shape[1])
    # Rows of similar length share a batch, so that padding stays short.
    order = np.argsort([len(row) for row in rows], kind="stable")
    size = min(batch_size, round_up(len(rows), _ROW_MULTIPLE))
    nlls = np.empty(len(rows))
    for start in range(0, len(rows), size):
        index = order[start : start + size]
        full = np.resize(index, size)  # a short batch repeats rows: one shape, one program
        batch = pad([rows[i] for i in full], context_length=model.config.context_length, multiple=8)
        batch = batch.replace(case=None if case is None else np.asarray(case, np.int32)[full])
        at = np.minimum(columns[full], batch.ids.shape[1] - 1)
        values = _nlls(
            model.params, model.config, batch, at, target.ids[full], target.mask[full], deltas
        )
        nlls[index] = np.asarray(values)[: len(index)]
    return nlls


@functools.partial(jax.jit, static_argnames="config")
def _nlls(
    params: forward.Params,
    config: ModelConfig,
    batch: TokenBatch,
    columns: jax.Array,
    target_ids: jax.Array,
    target_mask: jax.Array,
    deltas: Delta | None,
) -> jax.Array:
    logits = forward.logits(params, config, batch, positions=columns, deltas=deltas)  # [B, M, V]
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), target_ids[..., None], -1)[..., 0]
    return -(log_probs * target_mask).sum(-1) / target_mask.sum(-1)


def perplexity(model: LanguageModel, texts: Sequence[str], *, batch_size: int = 32) -> float:
    """exp of the mean negative log-likelihood of all tokens but the first of each text.

    Args:
      model: with its edits merged.
      texts: of two tokens or more.
      batch_size: texts at a time.

    Raises:
      ValueError: no text has two tokens.
      SequenceTooLongError: a text that does not fit the context, named.

    Example:
      >>> perplexity(model, ["The capital of France is Paris."])  # doctest: +SKIP
    """
    rows = sorted(prompt_ids(model, texts), key=len)
    total = count = 0.0
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        batch = pad(part, context_length=model.config.context_length, multiple=32)
        nll, tokens = _text_nll(model.params, model.config, batch)
        total, count = total + float(nll), count + int(tokens)
    if not count:
        raise ValueError("no text has two tokens: give longer ones.")
    return float(np.exp(total / count))


@functools.partial(jax.jit, static_argnames="config")
def _text_nll(
    params: forward.Params, config: ModelConfig, batch: TokenBatch
) -> tuple[jax.Array, jax.Array]:
    log_probs = jax.nn.log_softmax(forward.logits(params, config, batch)[:, :-1])
    following = jnp.take_along_axis(log_probs, batch.ids[:, 1:, None], axis=-1)[..., 0]
    mask = batch.mask[:, 1:]
    return -(following * mask).sum(), mask.sum()
