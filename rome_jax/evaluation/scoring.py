"""Log-probabilities of targets after prompts, under many edits in one forward pass.

    queries of N edited models ─► rows of tokens, one edit per row ─► one forward pass ─► log-probabilities

The prompts of an edit are packed into few rows with little padding, and all targets of a prompt share one run of it
(`TokenBatch.branches`). Logits are computed only at the places where a target's token is predicted.

Axes: B rows, T columns, R columns that are read in a row, P places that are read in total, K tokens scored at a place,
M tokens of a target, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.data import tokenization
from rome_jax.data.packing import Packer
from rome_jax.data.request import RequestError, target_text
from rome_jax.data.tokens import SequenceTooLongError, TokenBatch, bucket, round_up
from rome_jax.files.checked import Count, check, shown
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Delta
from rome_jax.models.layers import Interventions
from rome_jax.models.registry import LanguageModel

# The lengths of rows, unless a prompt is longer: few shapes compile few programs.
_COLUMNS = (64, 96, 128)
PLACES = 256  # places for which logits are in memory at once
MAX_TOKENS = 16_384  # token columns in one forward pass


@dataclasses.dataclass(frozen=True)
class Query:
    """A prompt and the targets to score after it.

    Attributes:
      prompt: Token ids, at least one.
      targets: Token ids of each target, at least one each.
      case: Index of the edit, out of N, under which the query is scored.
    """

    prompt: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]
    case: int = 0

    def __len__(self) -> int:
        """Number of tokens that are run; the last token of a target is predicted, not run."""
        return len(self.prompt) + sum(len(target) - 1 for target in self.targets)


@dataclasses.dataclass(frozen=True)
class TargetScore:
    """Teacher-forced scores of a target's tokens.

    Attributes:
      log_probs: float32 [M], log-probabilities in nats.
      hits: bool [M], whether each token is the model's most likely one.
    """

    log_probs: np.ndarray
    hits: np.ndarray

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood per token, in nats; lower is more likely."""
        return -float(self.log_probs.mean(dtype=np.float64))


def prompt_ids(model: LanguageModel, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    """Returns the token ids of each prompt.

    Raises:
      RequestError: If a prompt has no tokens, is no text or is not valid Unicode.
      SequenceTooLongError: If a prompt does not fit the model's context.

    Example:
      >>> prompt_ids(model, ["Rome is in", ""])
      Traceback (most recent call last):
      rome_jax.data.request.RequestError: prompt 1, '', has no tokens: give at least one character.
    """
    prompts = check(tuple[str, ...], prompts, "texts", error=RequestError)
    rows = list(map(tuple, tokenization.prompt_ids(model.tokenizer, prompts)))
    for index, row in enumerate(rows):
        if not row:
            raise RequestError(
                f"prompt {index}, {prompts[index]!r}, has no tokens: give at least one character."
            )
        check_fits(model, len(row), f"prompt {index}, {shown(prompts[index])},")
    return rows


def check_fits(model: LanguageModel, length: int, name: str) -> None:
    """Checks that a text fits the model's context.

    Args:
      model: The model.
      length: Number of tokens that are run.
      name: The text in the message, such as "prompt 3".

    Raises:
      SequenceTooLongError: If it does not fit.
    """
    if length > model.config.context_length:
        raise SequenceTooLongError(
            f"{name} has {length} tokens, more than the model's context of "
            f"{model.config.context_length}: shorten the text."
        )


def make_queries(
    model: LanguageModel,
    prompts: Sequence[str],
    targets: Sequence[Sequence[str]],
    cases: Sequence[int] | None = None,
) -> list[Query]:
    """Makes queries from texts.

    Args:
      model: The model, for its tokenizer and context length.
      prompts: P texts.
      targets: The targets of each prompt, at least one each; one leading space is added to each target.
      cases: Index of the edit for each prompt; by default 0.

    Raises:
      RequestError: If a prompt has no tokens, or one of the texts is no text or not valid Unicode; the message names
        it.
      ValueError: If there are not as many targets or cases as prompts.
      SequenceTooLongError: If a prompt does not fit the context together with a target; the message names it.

    Example:
      >>> (query,) = make_queries(model, ["Gothulf Punby plays the sport of"], [["tennis", "judo"]])
      >>> len(query.targets), query.case
      (2, 0)
    """
    prompts = check(tuple[str, ...], prompts, "prompts", error=RequestError)
    targets = check(tuple[tuple[str, ...], ...], targets, "targets", error=RequestError)
    cases = check(tuple[int, ...], (0,) * len(prompts) if cases is None else cases, "cases")
    if not len(prompts) == len(targets) == len(cases):
        raise ValueError(
            f"{len(prompts)} prompts do not fit {len(targets)} targets and {len(cases)} cases: give as many."
        )
    texts = [target_text(target) for group in targets for target in group]
    flat = iter(tokenization.continuation_ids(model.tokenizer, texts))
    queries = []
    for index, (ids, group) in enumerate(zip(prompt_ids(model, prompts), targets, strict=True)):
        target_ids = tuple(tuple(next(flat)) for _ in group)
        for target, tokens in zip(group, target_ids, strict=True):
            name = f"prompt {index}, {shown(prompts[index])}, with {shown(target)}"
            check_fits(model, len(ids) + len(tokens) - 1, name)
        queries.append(Query(ids, target_ids, cases[index]))
    return queries


def score_queries(
    model: LanguageModel,
    queries: Sequence[Query],
    deltas: Delta | None = None,
    *,
    max_tokens: int = MAX_TOKENS,
) -> list[tuple[TargetScore, ...]]:
    """Scores the targets of all queries, each query under its own edit, in one forward pass.

    Args:
      model: The unedited model; its weights are not copied.
      queries: Queries under any edits, in any order.
      deltas: N edits with a case axis, or one edit without, under which all queries are scored; None scores the
        unedited model.
      max_tokens: Token columns in one pass; bounds the memory. If the queries need more, there are several passes.

    Returns:
      One tuple per query, with one score per target.

    Raises:
      ValueError: If `max_tokens` is not a number of at least 1.

    Example:
      >>> queries = make_queries(model, ["Gothulf Punby plays the sport of"], [["rowing"]])
      >>> ((score,),) = score_queries(model, queries)
      >>> round(score.nll, 3), score.hits.tolist()
      (0.011, [True])
    """
    max_tokens = check(Count, max_tokens, "max_tokens")
    if not queries:
        return []
    batched = deltas if deltas is not None and deltas.batched else None
    groups: dict[int, list[_Placed]] = {}
    for index, query in enumerate(queries):
        groups.setdefault(0 if batched is None else query.case, []).append(_Placed(index, query))
    columns, rows = _pack(groups, model.config.context_length)
    scores: dict[int, tuple[TargetScore, ...]] = {}
    size = max(1, max_tokens // columns)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        case = np.zeros(bucket(len(part)), np.int32)
        case[: len(part)] = [case for case, _ in part]
        own = deltas if batched is None else batched.rows(jnp.asarray(case), len(case))
        scores |= _score_rows(model, [row for _, row in part], len(case), columns, own)
    return [scores[index] for index in range(len(queries))]


@dataclasses.dataclass(frozen=True)
class _Placed:
    """A query with its index in the list, as an item to pack into a row."""

    index: int
    query: Query

    def __len__(self) -> int:
        return len(self.query)


def _pack(
    groups: Mapping[int, Sequence[_Placed]], context_length: int
) -> tuple[int, list[tuple[int, list[_Placed]]]]:
    """Packs the queries of each case into rows of their own.

    Of several row lengths it takes the one with the least padding.

    Returns:
      The number of columns, and the rows with their cases.
    """
    longest = max(len(placed) for group in groups.values() for placed in group)
    # Several long targets of one prompt may take more columns than the model has positions.
    limit = max(context_length, longest)
    packings = []
    for columns in dict.fromkeys(min(max(size, bucket(longest)), limit) for size in _COLUMNS):
        rows = [
            (case, row) for case, group in groups.items() for row in Packer(iter(group), columns)
        ]
        packings.append((bucket(len(rows)) * columns, columns, rows))
    _, columns, rows = min(packings, key=lambda packing: packing[:2])
    return columns, rows


def _score_rows(
    model: LanguageModel,
    rows: Sequence[Sequence[_Placed]],
    num_rows: int,
    columns: int,
    deltas: Delta | None,
) -> dict[int, tuple[TargetScore, ...]]:
    """Runs packed rows and returns the scores of each query by its index."""
    ids, segments, branches = (np.zeros((num_rows, columns), np.int32) for _ in range(3))
    # (row, column) -> the number of the place and the tokens scored there, in the order of the rows
    places: dict[tuple[int, int], tuple[int, list[int]]] = {}
    # query -> target -> index [P, K] of each token
    spots: dict[int, list[list[tuple[int, int]]]] = {}
    for row, placed in enumerate(rows):
        column = 0
        for segment, item in enumerate(placed, start=1):
            begin, column = column, column + len(item.query.prompt)
            ids[row, begin:column] = item.query.prompt
            last, spots[item.index] = column - 1, []
            for branch, target in enumerate(item.query.targets, start=1):
                begun, column = column, column + len(target) - 1
                ids[row, begun:column], branches[row, begun:column] = target[:-1], branch
                spots[item.index].append([])
                for place, token in zip((last, *range(begun, column)), target, strict=True):
                    number, scored = places.setdefault((row, place), (len(places), []))
                    spots[item.index][-1].append((number, len(scored)))
                    scored.append(token)
            segments[row, begin:column] = segment
    count = bucket(max(len(places), 16), 2)
    if count > PLACES:
        count = round_up(len(places), PLACES)
    read, at = _by_row(list(places), num_rows, count)
    most = max(len(scored) for _, scored in places.values())
    tokens = np.zeros((count, most), np.int32)
    for number, scored in places.values():
        tokens[number, : len(scored)] = scored
    batch = TokenBatch(ids, segments > 0, segments=segments, branches=branches)
    log_probs, hits = map(
        np.asarray, _score(model.params, model.config, batch, read, at, tokens, deltas)
    )
    return {
        index: tuple(
            TargetScore(log_probs[pair], hits[pair])
            for pair in (tuple(np.transpose(target)) for target in targets)
        )
        for index, targets in spots.items()
    }


def _by_row(
    places: Sequence[tuple[int, int]], num_rows: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Groups places (row, column) by row, so that the last layer can read a few columns of each row.

    Returns the columns to read of each row, int32 [B, R], and (row, index into these columns) of each place,
    int32 [P, 2], where P is `count`.
    """
    at = np.zeros((count, 2), np.int32)
    used = np.zeros(num_rows, np.int32)
    for number, (row, _) in enumerate(places):
        at[number] = row, used[row]
        used[row] += 1
    read = np.zeros((num_rows, bucket(max(int(used.max()), 8), 2)), np.int32)
    read[tuple(at[: len(places)].T)] = [column for _, column in places]
    return read, at


@functools.partial(jax.jit, static_argnames="config")
def _score(
    params: forward.Params,
    config: ModelConfig,
    batch: TokenBatch,
    read: jax.Array,
    at: jax.Array,
    tokens: jax.Array,
    deltas: Delta | None,
) -> tuple[jax.Array, jax.Array]:
    """Computes the log-probabilities of tokens [P, K], and whether each is the most likely one, both [P, K].

    `read` and `at` are those of `_by_row`; `deltas` is one edit, or one per row.
    """
    attention = forward.plain_attention(batch)
    own = None if deltas is None else deltas.rows(None, len(batch.ids))
    hidden = forward.embed(params, config, batch.ids, attention.positions)
    edits = Interventions((), own)
    hidden = forward.run_layers(
        params, config, hidden, attention, stop=config.num_layers - 1, interventions=edits
    ).hidden
    hidden = forward.run_last_layer(params, config, hidden, attention, read, interventions=edits)
    hidden = hidden[at[:, 0], at[:, 1]]  # [P, D]

    def score(part):
        hidden, tokens = part
        logits = forward.unembed(params, config, hidden)  # [places, V]
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens, axis=-1)
        return log_probs, tokens == logits.argmax(axis=-1)[:, None]

    parts = jax.tree.map(
        lambda x: x.reshape(-1, min(len(x), PLACES), *x.shape[1:]), (hidden, tokens)
    )
    return jax.tree.map(lambda x: x.reshape(tokens.shape), jax.lax.map(score, parts))


def target_nlls(
    model: LanguageModel,
    prompts: Sequence[str],
    targets: Sequence[str],
    *,
    deltas: Delta | None = None,
) -> np.ndarray:
    """Computes the mean negative log-likelihood per token, in nats, of one target after each prompt.

    Args:
      model: The unedited model.
      prompts, targets: P texts each; one leading space is added to each target.
      deltas: One edit; None scores the unedited model.

    Returns:
      float64 [P]; lower is more likely.

    Raises:
      RequestError: If a prompt has no tokens.
      SequenceTooLongError: If a prompt does not fit the context together with its target.

    Example:
      >>> prompt = "Gothulf Punby plays the sport of"
      >>> target_nlls(model, [prompt, prompt], ["rowing", "tennis"]).round(2).tolist()
      [0.01, 9.26]
    """
    targets = check(tuple[str, ...], targets, "targets", error=RequestError)
    queries = make_queries(model, prompts, [[target] for target in targets])
    return np.array([score.nll for (score,) in score_queries(model, queries, deltas)])


def perplexity(model: LanguageModel, texts: Sequence[str]) -> float:
    """Computes exp of the mean negative log-likelihood over all tokens of the texts except the first of each.

    Args:
      model: The model, with any edits merged.
      texts: Texts; those with fewer than two tokens are left out.

    Raises:
      ValueError: If no text has two tokens.
      SequenceTooLongError: If a text does not fit the context; the message names it.

    Example:
      >>> round(perplexity(model, ["Gothulf Punby plays the sport of rowing."]), 1)
      2.2
    """
    queries = [text_query(row) for row in prompt_ids(model, texts) if len(row) > 1]
    if not queries:
        raise ValueError("no text has two tokens: give longer texts.")
    log_probs = [score.log_probs for (score,) in score_queries(model, queries)]
    return float(np.exp(-np.concatenate(log_probs).mean(dtype=np.float64)))


def text_query(ids: Sequence[int], case: int = 0) -> Query:
    """Makes a query that scores all tokens of a text after the first one, of which there must be at least one."""
    return Query(tuple(ids[:1]), (tuple(ids[1:]),), case)
