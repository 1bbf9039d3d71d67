"""Texts that a model generates about a subject, and their scores: fluency, consistency and essence."""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.data import tokenization
from rome_jax.data.tokens import bucket, pad
from rome_jax.evaluation.datasets import CounterFactRecord
from rome_jax.evaluation.metrics import essence_perplexity
from rome_jax.evaluation.scoring import Query, TargetScore, prompt_ids, text_query
from rome_jax.evaluation.snippets import AttributeSnippets
from rome_jax.evaluation.text_metrics import fluency, reference_score
from rome_jax.models.generate import Sampling, clean_text, generate
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import LanguageModel

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

_SAMPLING = Sampling(top_k=5)
_LENGTH = 100  # tokens of a generated text, including its prompt, and of an essence text


class EssenceTarget(enum.Enum):
    """Which target's reference texts contain the essence text of a record, the text about its subject.

    Attributes:
      NEW: The new target, as in the published code. A subject rarely has a text there.
      TRUE: The true target, to which the subject belongs before the edit.
    """

    NEW = "new"
    TRUE = "true"


@dataclasses.dataclass(frozen=True)
class GenerationTests:
    """The tests of generated texts: what they are compared with, and the seed that they are sampled with.

    Attributes:
      snippets: Reference texts about subjects, by attribute.
      vectorizer: Computes the TF-IDF vectors that are compared.
      seed: Text i of a case depends only on this seed, the case id and i, not on the rest of the batch.
      essence: Where the essence text is looked up; see `EssenceTarget`.
    """

    snippets: AttributeSnippets
    vectorizer: TfidfVectorizer
    seed: int = 0
    essence: EssenceTarget = EssenceTarget.NEW

    def essence_queries(
        self, model: LanguageModel, records: Sequence[CounterFactRecord]
    ) -> dict[int, tuple[str, Query]]:
        """Returns the essence text of each record, and the query that scores its first 100 tokens.

        The essence text is the reference text about the subject under one of the targets. Records without one are
        absent.

        Args:
          model: The model to score.
          records: N records.

        Returns:
          (text, query) by the index of the record.
        """
        texts = {
            case: " ".join(
                snippet.text
                for snippet in self.snippets.texts(record.relation_id, self._essence_id(record))
                if snippet.name == record.request.subject
            )
            for case, record in enumerate(records)
        }
        texts = {case: text for case, text in texts.items() if text}
        ids = tokenization.prompt_ids(model.tokenizer, list(texts.values()))
        return {
            case: (text, text_query(tokens[:_LENGTH], case))
            for (case, text), tokens in zip(texts.items(), ids, strict=True)
            if len(tokens) > 1
        }

    def _essence_id(self, record: CounterFactRecord) -> str | None:
        """Returns the id of the target under which the essence text is looked up."""
        new = self.essence is EssenceTarget.NEW
        return record.target_new_id if new else record.target_true_id

    def results(
        self,
        model: LanguageModel,
        records: Sequence[CounterFactRecord],
        deltas: Delta | None,
        essences: dict[int, tuple[str, TargetScore]],
        max_tokens: int,
    ) -> list[dict[str, Any]]:
        """Generates and scores the texts of N records, each under its own edit.

        Args:
          model: The unedited model.
          records: N records.
          deltas: N edits with a case axis; None for the unedited model.
          essences: The essence text and its score, by the index of the record.
          max_tokens: Columns of the cache in one generation; bounds the memory.

        Returns:
          One dictionary per record, under the original's names: `ngram_entropy` and `text` if the record has generation
          prompts, `reference_score` if there are also reference texts of the new attribute, and `essence_score` and
          `essence_text` if there is an essence text.
        """
        found: list[dict[str, Any]] = []
        written = self._generate(model, records, deltas, max_tokens)
        for case, record in enumerate(records):
            result: dict[str, Any] = {}
            if texts := written[case]:
                result["ngram_entropy"] = fluency(texts)
                snippets = self.snippets.texts(record.relation_id, record.target_new_id)
                if references := [snippet.text for snippet in snippets]:
                    result["reference_score"] = reference_score(self.vectorizer, texts, references)
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
        """Generates the texts of each case, in the order of its prompts."""
        asked = [
            (case, number, prompt)
            for case, record in enumerate(records)
            for number, prompt in enumerate(record.generation_prompts)
        ]
        ids = prompt_ids(model, [prompt for *_, prompt in asked])
        # Prompts of similar length share a generation: the longest one decides the number of columns in its cache.
        order = sorted(range(len(asked)), key=lambda index: len(ids[index]))
        size = max(1, max_tokens // bucket(_LENGTH))
        texts: dict[tuple[int, int], str] = {}
        for start in range(0, len(order), size):
            part = order[start : start + size]
            # A short batch is filled up with repeated rows, so that few shapes are compiled.
            rows = np.resize(part, bucket(len(part), 2) if len(order) <= size else size)
            cases = np.array([asked[row][0] for row in rows], np.int32)
            numbers = np.array([asked[row][1] for row in rows])
            case_ids = np.array([records[case].case_id for case in cases])
            out = generate(
                model.params,
                model.config,
                pad([ids[row] for row in rows]),
                max_length=min(_LENGTH, model.config.context_length),
                sampling=_SAMPLING,
                key=_keys(self.seed, case_ids, numbers),
                deltas=None if deltas is None else deltas.rows(jnp.asarray(cases), len(cases)),
            )
            for row, text in zip(part, out.texts(model.tokenizer), strict=False):
                texts[asked[row][:2]] = clean_text(text)
        written = collections.defaultdict(list)
        for case, number, _ in asked:
            written[case].append(texts[case, number])
        return written


def _keys(seed: int, case_ids: np.ndarray, numbers: np.ndarray) -> jax.Array:
    """Returns one PRNG key for each text, [B]."""
    fold = jax.vmap(jax.random.fold_in)
    base = jnp.broadcast_to(jax.random.key(seed), case_ids.shape)
    return fold(fold(base, case_ids.astype(np.uint32)), numbers.astype(np.uint32))
