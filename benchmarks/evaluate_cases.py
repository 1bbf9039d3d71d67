"""Records of random words with the lengths of CounterFact records, and a tokenizer that makes each word one token.

The time and memory of an evaluation depend only on lengths. The lengths follow the published records: three of four
prompts begin with the subject, and one to five tokens follow it.
"""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.edit_case import LAYERS, PREFIXES
from rome_jax.data.request import SLOT, EditRequest
from rome_jax.edit.config import ROMEConfig
from rome_jax.evaluation.datasets import CounterFactRecord

# The published edit layer, or the layer of `benchmarks.edit`.
EDIT_LAYERS = {
    **LAYERS,
    **{
        name: ROMEConfig.for_model(name).layers[0]
        for name in ("gpt2-large", "gpt2-xl", "EleutherAI/gpt-j-6B")
    },
}
PARAPHRASES, NEIGHBORS, ATTRIBUTES = 2, 10, 10
NUM_PROMPTS = 1 + PARAPHRASES + NEIGHBORS + ATTRIBUTES
# Numbers of tokens, from which a length is drawn uniformly.
_BEFORE_SUBJECT = (0, 0, 0, 4)
_SUBJECT = (2, 3, 4)
_AFTER_SUBJECT = (1, 1, 2, 3, 3, 3, 4, 5, 5)
_TARGET = (1, 1, 1, 2)
_PROMPT = (7, 8, 9, 10)
_SENTENCE = (15, 16, 17, 18, 19, 20)  # the unrelated text at the beginning of a paraphrase


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Builds a tokenizer whose words are decimal numbers below `vocab_size` and whose tokens are their values.

    Example:
      >>> word_tokenizer(50)("7 8 31")["input_ids"]
      [7, 8, 31]
    """
    words = models.WordLevel({str(token): token for token in range(vocab_size)}, unk_token="0")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def make_records(count: int, vocab_size: int, seed: int = 0) -> list[CounterFactRecord]:
    """Builds random records, each with one rewrite, two paraphrase, ten neighborhood, and ten attribute prompts.

    Args:
      count: Number of records.
      vocab_size: Vocabulary size of `word_tokenizer`.
      seed: Seed of the lengths and words. With the same seed, a shorter list is the beginning of a longer one.

    Example:
      >>> record, = make_records(1, 50)
      >>> len(record.neighborhood_prompts), record.request.prompt.count("{}")
      (10, 1)
    """
    generator = np.random.default_rng(seed)

    def text(*lengths: int) -> str:
        """Draws a text of random words, with one of the given lengths."""
        return " ".join(map(str, generator.integers(vocab_size, size=generator.choice(lengths))))

    def record(case_id: int) -> CounterFactRecord:
        prompt = f"{text(*_BEFORE_SUBJECT)} {SLOT} {text(*_AFTER_SUBJECT)}".lstrip()
        subject, new, true = text(*_SUBJECT), text(*_TARGET), text(*_TARGET)
        return CounterFactRecord(
            EditRequest(prompt, subject, new, true, case_id),
            tuple(f"{text(*_SENTENCE)} {text(*_PROMPT)}" for _ in range(PARAPHRASES)),
            tuple(text(*_PROMPT) for _ in range(NEIGHBORS)),
            tuple(text(*_PROMPT) for _ in range(ATTRIBUTES)),
        )

    return [record(case_id) for case_id in range(count)]


def make_templates(vocab_size: int, seed: int = 0) -> list[str]:
    """Builds 21 random context templates with the lengths of sampled ones.

    Example:
      >>> [len(template.split()) - 1 for template in make_templates(50)][:3]
      [0, 5, 5]
    """
    generator = np.random.default_rng(seed)
    words = [generator.integers(vocab_size, size=length).tolist() for length in PREFIXES]
    return [" ".join(map(str, [*prefix, SLOT])) for prefix in words]
