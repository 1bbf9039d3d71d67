"""How likely a model, under many edits at once, finds targets after prompts.

    queries of N edited models ─► rows of tokens, each of one edit ─► ONE forward pass ─► log-probabilities

The prompts of an edit are packed into few rows, so that next to nothing is padding, and all targets of a prompt share
one run of it (`TokenBatch.branches`). Logits are computed where a target's token is predicted and nowhere else.

Axes: B rows, T columns, R of them read in a row, P places read in all, K tokens scored at a place, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.data.packing import Packer
from rome_jax.data.request import target_text
from rome_jax.data.tokens import SequenceTooLongError, TokenBatch, bucket, round_up
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Delta
from rome_jax.models.layers import Interventions
from rome_jax.models.registry import LanguageModel

_COLUMNS = (64, 96, 128)  # of a row, if no prompt is longer: few sizes, few programs
_PLACES = 256  # whose logits are in memory at once
MAX_TOKENS = 16_384


@dataclasses.dataclass(frozen=True)
class Query:
    """Targets to score after one prompt.

    Attributes:
      prompt: token ids, at least one.
      targets: token ids of each target, at least one each.
      case: which of N edits answers.
    """

    prompt: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]
    case: int = 0

    def __len__(self) -> int:
        """Tokens that run: the last one of a target is only predicted."""
        return len(self.prompt) + sum(len(target) - 1 for target in self.targets)


@dataclasses.dataclass(frozen=True)
class TargetScore:
    """How likely each token of a target is, teacher-forced.

    Attributes:
      log_probs: float32 [M], in nats.
      hits: bool [M], whether the token is the model's most likely one.
    """

    log_probs: np.ndarray
    hits: np.ndarray

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood per token; lower wins."""
        return -float(self.log_probs.mean(dtype=np.float64))


def tokenize_texts(model: LanguageModel, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids of each text, without special tokens."""
    if not texts:
        return []
    return list(map(tuple, model.tokenizer(list(texts), add_special_tokens=False)["input_ids"]))


def prompt_ids(model: LanguageModel, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids of each prompt.

    Raises:
      ValueError: a prompt without tokens, named.
      SequenceTooLongError: a prompt that does not fit the context, named.
    """
    rows = tokenize_texts(model, prompts)
    for index, row in enumerate(rows):
        if not row:
            raise ValueError(
                f"prompt {index}, {prompts[index]!r}, has no tokens: give at least one character."
            )
        _check_fits(model, len(row), f"prompt {index}, {prompts[index]!r},")
    return rows


def _check_fits(model: LanguageModel, length: int, name: str) -> None:
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
    """Queries from texts.

    Args:
      model: whose tokenizer and context length count.
      prompts: P texts.
      targets: of each prompt, one or more; a target gets one leading space.
      cases: of each prompt, the edit that answers; 0 if None.

    Raises:
      ValueError: a prompt without tokens, named.
      SequenceTooLongError: a prompt that does not fit the context with a target, named.

    Example:
      >>> make_queries(model, ["The capital of France is"], [["Paris", "Rome"]])  # doctest: +SKIP
    """
    flat = iter(
        tokenize_texts(model, [target_text(target) for group in targets for target in group])
    )
    queries = []
    for index, (ids, group) in enumerate(zip(prompt_ids(model, prompts), targets, strict=True)):
        target_ids = tuple(next(flat) for _ in group)
        for target, tokens in zip(group, target_ids, strict=True):
            name = f"prompt {index}, {prompts[index]!r}, with {target!r}"
            _check_fits(model, len(ids) + len(tokens) - 1, name)
        queries.append(Query(ids, target_ids, 0 if cases is None else int(cases[index])))
    return queries


def score_queries(
    model: LanguageModel,
    queries: Sequence[Query],
    deltas: Delta | None = None,
    *,
    max_tokens: int = MAX_TOKENS,
) -> list[tuple[TargetScore, ...]]:
    """The scores of every query's targets, each under its own edit, in one forward pass.

    Args:
      model: the unedited model; its weights are not copied.
      queries: of any edits, in any order.
      deltas: N edits with a case axis, or one, which all queries see; None scores the model itself.
      max_tokens: in a pass; bounds the memory. More queries than fit take several passes.

    Returns:
      One tuple for each query, one score for each of its targets.

    Example:
      >>> (score,), = score_queries(model, make_queries(model, ["The file"], [["is open"]]))  # doctest: +SKIP
      >>> score.nll  # doctest: +SKIP
    """
    if not queries:
        return []
    independent = deltas is not None and deltas.batched
    groups: dict[int, list[_Placed]] = {}
    for index, query in enumerate(queries):
        groups.setdefault(query.case if independent else 0, []).append(_Placed(index, query))
    columns, rows = _pack(groups, model.config.context_length)
    scores: dict[int, tuple[TargetScore, ...]] = {}
    size = max(1, max_tokens // columns)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        case = np.zeros(bucket(len(part)), np.int32)
        case[: len(part)] = [case for case, _ in part]
        own = deltas.rows(case, len(case)) if independent else deltas
        scores |= _score_rows(model, [row for _, row in part], len(case), columns, own)
    return [scores[index] for index in range(len(queries))]


@dataclasses.dataclass(frozen=True)
class _Placed:
    """A query and its place in the list: what a row is packed with."""

    index: int
    query: Query

    def __len__(self) -> int:
        return len(self.query)


def _pack(
    groups: Mapping[int, Sequence[_Placed]], context_length: int
) -> tuple[int, list[tuple[int, list[_Placed]]]]:
    """The queries of each case in rows of their own: the rows' columns, and the rows with their cases.

    Of several widths the one with the least padding.
    """
    longest = max(len(placed) for group in groups.values() for placed in group)
    # Long targets side by side may take more columns than there are positions.
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
    """Runs packed rows and gives each query its scores."""
    ids, segments, branches = (np.zeros((num_rows, columns), np.int32) for _ in range(3))
    # (row, column) -> its number and the tokens scored there, in the order of the rows
    places: dict[tuple[int, int], tuple[int, list[int]]] = {}
    spots: dict[int, list[list[tuple[int, int]]]] = {}  # query -> target -> [P, K] index of a token
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
                    number, wanted = places.setdefault((row, place), (len(places), []))
                    spots[item.index][-1].append((number, len(wanted)))
                    wanted.append(token)
            segments[row, begin:column] = segment
    count = bucket(max(len(places), 16), 2)
    if count > _PLACES:
        count = round_up(len(places), _PLACES)
    read, at = _by_row(list(places), num_rows, count)
    most = max(len(wanted) for _, wanted in places.values())
    tokens = np.zeros((count, most), np.int32)
    for number, wanted in places.values():
        tokens[number, : len(wanted)] = wanted
    batch = TokenBatch(ids, segments > 0, segments=segments, branches=branches)
    scored = _score(model.params, model.config, batch, read, at, tokens, deltas)
    log_probs, hits = map(np.asarray, scored)
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
    """(row, column) of places -> the columns read of each row [B, R], and each place's (row, index there) [P, 2]."""
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
    """What `_by_row` gives, and tokens [P, K] -> their log-probabilities, and whether each is the likeliest, [P, K]."""
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
        lambda x: x.reshape(-1, min(len(x), _PLACES), *x.shape[1:]), (hidden, tokens)
    )
    return jax.tree.map(lambda x: x.reshape(tokens.shape), jax.lax.map(score, parts))


def target_nlls(
    model: LanguageModel,
    prompts: Sequence[str],
    targets: Sequence[str],
    *,
    deltas: Delta | None = None,
) -> np.ndarray:
    """Mean negative log-likelihood per token, in nats, of one target after each prompt; lower wins.

    Args:
      model: the unedited model.
      prompts, targets: P texts each; a target gets one leading space.
      deltas: one edit, if any.

    Returns:
      float [P].

    Raises:
      ValueError, SequenceTooLongError: as `make_queries`.

    Example:
      >>> target_nlls(model, ["The capital of France is"], ["Paris"])  # doctest: +SKIP
    """
    queries = make_queries(model, prompts, [[target] for target in targets])
    return np.array([score.nll for (score,) in score_queries(model, queries, deltas)])


def perplexity(model: LanguageModel, texts: Sequence[str]) -> float:
    """exp of the mean negative log-likelihood of all tokens but the first of each text.

    Args:
      model: with its edits merged.
      texts: of two tokens or more.

    Raises:
      ValueError: no text has two tokens.
      SequenceTooLongError: a text that does not fit the context, named.

    Example:
      >>> perplexity(model, ["The capital of France is Paris."])  # doctest: +SKIP
    """
    queries = [text_query(row) for row in prompt_ids(model, texts) if len(row) > 1]
    if not queries:
        raise ValueError("no text has two tokens: give longer ones.")
    log_probs = [score.log_probs for (score,) in score_queries(model, queries)]
    return float(np.exp(-np.concatenate(log_probs).mean(dtype=np.float64)))


def text_query(ids: Sequence[int], case: int = 0) -> Query:
    """All tokens of a text after its first, of which there is at least one, as the target of the first."""
    return Query(tuple(ids[:1]), (tuple(ids[1:]),), case)
