"""Texts that a model writes about a subject, and how they are judged: fluency, consistency and essence."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.data.tokens import bucket, pad
from rome_jax.evaluation.datasets import CounterFactRecord
from rome_jax.evaluation.metrics import essence_perplexity
from rome_jax.evaluation.scoring import Query, TargetScore, prompt_ids, text_query, tokenize_texts
from rome_jax.evaluation.snippets import AttributeSnippets
from rome_jax.evaluation.text_metrics import fluency, reference_score
from rome_jax.models.generate import Sampling, clean_text, generate
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import LanguageModel

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

_SAMPLING = Sampling(top_k=5)
_LENGTH = 100  # tokens of a generated text, its prompt included, and of an essence text


@dataclasses.dataclass(frozen=True)
class GenerationTests:
    """What generated texts are compared with, and the seed that they are drawn with.

    Attributes:
      snippets: texts about subjects by their attribute.
      vectorizer: gives the TF-IDF vectors that are compared.
      seed: text i of a case comes from it, the case's id and i alone, whatever else is in the batch.
    """

    snippets: AttributeSnippets
    vectorizer: TfidfVectorizer
    seed: int = 0

    def essence_queries(
        self, model: LanguageModel, records: Sequence[CounterFactRecord]
    ) -> dict[int, tuple[str, Query]]:
        """By case, for records whose subject has a reference text: that text, and what scores its first 100 tokens."""
        texts = {
            case: " ".join(
                snippet.text
                for snippet in self.snippets.texts(record.relation_id, record.target_true_id)
                if snippet.name == record.request.subject
            )
            for case, record in enumerate(records)
        }
        texts = {case: text for case, text in texts.items() if text}
        ids = tokenize_texts(model, list(texts.values()))
        return {
            case: (text, text_query(tokens[:_LENGTH], case))
            for (case, text), tokens in zip(texts.items(), ids, strict=True)
            if len(tokens) > 1
        }

    def results(
        self,
        model: LanguageModel,
        records: Sequence[CounterFactRecord],
        deltas: Delta | None,
        essences: dict[int, tuple[str, TargetScore]],
        max_tokens: int,
    ) -> list[dict[str, Any]]:
        """Generates and judges the texts of N records, each under its own edit.

        Args:
          model: the unedited model.
          records: N records.
          deltas: N edits with a case axis, or None.
          essences: by case, the essence text and its score.
          max_tokens: columns of the cache in one generation; bounds the memory.

        Returns:
          For each record, by the original's names, what can be said of it: `ngram_entropy` and `text` if it has
          generation prompts, `reference_score` if there are texts of the new attribute too, `essence_score` and
          `essence_text`.
        """
        found: list[dict[str, Any]] = []
        written = self._generate(model, records, deltas, max_tokens)
        for case, record in enumerate(records):
            result: dict[str, Any] = {}
            if texts := written[case]:
                result["ngram_entropy"] = fluency(texts)
                snippets = self.snippets.texts(record.relation_id, record.target_new_id)
                if references := [snippet.text for snippet in snippets]:
                    score = reference_score(self.vectorizer, texts, references)
                    result["reference_score"] = score
                result["text"] = texts
            if case in essences:
                text, score = essences[case]
                result["essence_score"] = essence_perplexity(score.log_probs)
                result["essence_text"] = [text]
            found.append(result)
        return found

    def _generate(
        self,
        model: LanguageModel,
        records: Sequence[CounterFactRecord],
        deltas: Delta | None,
        max_tokens: int,
    ) -> dict[int, list[str]]:
        """The texts of each case, in the order of its prompts."""
        asked = [
            (case, number, prompt)
            for case, record in enumerate(records)
            for number, prompt in enumerate(record.generation_prompts)
        ]
        ids = prompt_ids(model, [prompt for *_, prompt in asked])
        # Prompts of like length share a generation, whose cache has as many columns as the longest fills.
        order = sorted(range(len(asked)), key=lambda index: len(ids[index]))
        size = max(1, max_tokens // bucket(_LENGTH))
        texts: dict[tuple[int, int], str] = {}
        for start in range(0, len(order), size):
            part = order[start : start + size]
            # A short batch repeats rows: few shapes, few programs.
            rows = np.resize(part, bucket(len(part), 2) if len(order) <= size else size)
            case = np.array([asked[row][0] for row in rows], np.int32)
            numbers = np.array([asked[row][1] for row in rows])
            case_ids = np.array([records[one].case_id for one in case])
            out = generate(
                model.params,
                model.config,
                pad([ids[row] for row in rows]),
                max_length=min(_LENGTH, model.config.context_length),
                sampling=_SAMPLING,
                key=_keys(self.seed, case_ids, numbers),
                deltas=deltas and deltas.rows(case, len(case)),
            )
            for row, text in zip(part, out.texts(model.tokenizer), strict=False):
                texts[asked[row][:2]] = clean_text(text)
        written = collections.defaultdict(list)
        for case, number, _ in asked:
            written[case].append(texts[case, number])
        return written


def _keys(seed: int, case_ids: np.ndarray, numbers: np.ndarray) -> jax.Array:
    """One PRNG key for each text, [B]."""
    fold = jax.vmap(jax.random.fold_in)
    base = jnp.broadcast_to(jax.random.key(seed), case_ids.shape)
    return fold(fold(base, case_ids.astype(np.uint32)), numbers.astype(np.uint32))
