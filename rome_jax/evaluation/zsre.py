"""zsRE: the prompts of a record, and the results in the original's layout.

Accuracy is teacher-forced: each token of the answer is predicted from the question and the tokens before it. The
original decodes those tokens to text, encodes the text again together with the question, and compares with the first
piece of the decoded token. If a character is split over two tokens, neither of them can ever be a hit. Both versions
are reported; they differ only in such cases.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rome_jax.data.request import target_text
from rome_jax.data.tokenization import continuation_ids, continuation_text
from rome_jax.evaluation.metrics import exact
from rome_jax.evaluation.record_types import ZsRERecord
from rome_jax.evaluation.scoring import Query, TargetScore, check_fits, prompt_ids
from rome_jax.files.checked import shown
from rome_jax.models.registry import LanguageModel

_KINDS = ("rewrite", "paraphrase", "neighborhood")


@dataclasses.dataclass(frozen=True)
class _Cell:
    """One Boolean of the results: the record and the list it belongs to, and the token of the query that decides it."""

    case: int
    name: str
    query: int
    token: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """The queries of N records, and how to turn their scores into results.

    Attributes:
      queries: The queries of all records; those of record i are scored under edit i.
      num_records: The number of records N.
    """

    queries: list[Query]
    num_records: int
    _cells: list[_Cell]

    def results(self, scores: Sequence[tuple[TargetScore, ...]]) -> list[dict[str, Any]]:
        """Turns the scores of `queries` into the results of N records.

        Args:
          scores: The scores of each query, as returned by `score_queries`.

        Returns:
          One dictionary per record. For rewrite, paraphrase and neighborhood prompts it has lists with one Boolean per
          target token: `rewrite_prompts_correct` as the original defines it, and `rewrite_prompts_correct_by_token`
          with token ids compared. In addition, `rewrite_prompts_exact` and `paraphrase_prompts_exact` have one Boolean
          per prompt: whether greedy decoding produces the whole new target. Records with portability prompts have the
          same three lists for them.
        """
        found: list[dict[str, Any]] = [
            {
                f"{kind}_prompts_{reading}": []
                for reading in ("correct", "correct_by_token")
                for kind in _KINDS
            }
            | {f"{kind}_prompts_exact": [] for kind in _KINDS[:2]}
            for _ in range(self.num_records)
        ]
        for cell in self._cells:
            hits = scores[cell.query][0].hits
            value = exact(hits) if cell.name.endswith("exact") else bool(hits[cell.token])
            found[cell.case].setdefault(cell.name, []).append(value)
        return found


def plan(model: LanguageModel, records: Sequence[ZsRERecord]) -> Plan:
    """Plans the scoring of N records.

    Args:
      model: The model to score.
      records: N records.

    Raises:
      ValueError: If a prompt has no tokens.
      SequenceTooLongError: If a prompt does not fit the model's context.
    """
    asked = [
        (case, kind, prompt, target)
        for case, record in enumerate(records)
        for kind, prompts, target in (
            ("rewrite", (record.request.text,), record.request.target_new),
            ("paraphrase", record.paraphrase_prompts, record.request.target_new),
            *(("neighborhood", (prompt,), answer) for prompt, answer in record.unrelated),
            *(("portability", (prompt,), answer) for prompt, answer in record.portability_prompts),
        )
        for prompt in prompts
    ]
    ids = prompt_ids(model, [prompt for _, _, prompt, _ in asked])
    texts = [target_text(target) for *_, target in asked]
    targets = list(map(tuple, continuation_ids(model.tokenizer, texts)))
    queries: list[Query] = []
    cells: list[_Cell] = []
    for (case, kind, prompt, _), prompt_tokens, target in zip(asked, ids, targets, strict=True):
        check_fits(
            model,
            len(prompt_tokens) + len(target) - 1,
            f"case {records[case].case_id}: {kind} prompt {shown(prompt)} with its target",
        )
        name, whole = f"{kind}_prompts_correct", len(queries)
        queries.append(Query(prompt_tokens, (target,), case))
        cells += [_Cell(case, f"{name}_by_token", whole, token) for token in range(len(target))]
        if kind != "neighborhood":
            cells.append(_Cell(case, f"{kind}_prompts_exact", whole, 0))
        for token, place in enumerate(_as_text(model, prompt, target)):
            if place == (prompt_tokens + target[:token], target[token]):
                cells.append(_Cell(case, name, whole, token))
            else:
                cells.append(_Cell(case, name, len(queries), 0))
                queries.append(Query(place[0], ((place[1],),), case))
    return Plan(queries, len(records), cells)


def _as_text(
    model: LanguageModel, prompt: str, target: Sequence[int]
) -> list[tuple[tuple[int, ...], int]]:
    """Returns the original's prompt ids and target id for each token of a target."""
    tokenizer = model.tokenizer
    texts = [prompt + continuation_text(tokenizer, target[:token]) for token in range(len(target))]
    pieces = continuation_ids(
        tokenizer, [continuation_text(tokenizer, [token]) for token in target]
    )
    return [(ids, piece[0]) for ids, piece in zip(prompt_ids(model, texts), pieces, strict=True)]
