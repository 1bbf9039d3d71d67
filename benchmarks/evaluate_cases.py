"""Records as long as those of CounterFact, of random words, with a tokenizer that makes each word one token.

What the benchmarks of the evaluation time and measure depends on lengths alone. They follow the published records:
three of four subjects begin the prompt, most of the time one to five tokens come behind it.
"""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.edit_case import LAYERS, PREFIXES
from rome_jax.data.request import SLOT, EditRequest
from rome_jax.edit.config import ROMEConfig
from rome_jax.evaluation.datasets import CounterFactRecord

# The published layer, or that of benchmarks.edit.
EDIT_LAYERS = {
    **LAYERS,
    **{
        name: ROMEConfig.for_model(name).layers[0]
        for name in ("gpt2-large", "gpt2-xl", "EleutherAI/gpt-j-6B")
    },
}
PARAPHRASES, NEIGHBORS, ATTRIBUTES = 2, 10, 10
NUM_PROMPTS = 1 + PARAPHRASES + NEIGHBORS + ATTRIBUTES
# Numbers of tokens; each entry is as likely as the others.
_BEFORE_SUBJECT = (0, 0, 0, 4)
_SUBJECT = (2, 3, 4)
_BEHIND_SUBJECT = (1, 1, 2, 3, 3, 3, 4, 5, 5)
_TARGET = (1, 1, 1, 2)
_PROMPT = (7, 8, 9, 10)
_SENTENCE = (15, 16, 17, 18, 19, 20)  # of another text, which paraphrases begin with


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Words are decimal numbers below `vocab_size`, and tokens their values.

    Example:
      >>> word_tokenizer(50)("7 8 31")["input_ids"]
      [7, 8, 31]
    """
    words = models.WordLevel({str(token): token for token in range(vocab_size)}, unk_token="0")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def make_records(count: int, vocab_size: int, seed: int = 0) -> list[CounterFactRecord]:
    """Records of one rewrite, two paraphrase, ten neighborhood and ten attribute prompts.

    Args:
      count: N.
      vocab_size: of `word_tokenizer`.
      seed: more records of one seed begin with the fewer ones.

    Example:
      >>> record, = make_records(1, 50)
      >>> len(record.neighborhood_prompts), record.request.prompt.count("{}")
      (10, 1)
    """
    generator = np.random.default_rng(seed)

    def text(*lengths: int) -> str:
        """Random words, of as many tokens as one of the lengths says."""
        return " ".join(map(str, generator.integers(vocab_size, size=generator.choice(lengths))))

    def record(case_id: int) -> CounterFactRecord:
        prompt = f"{text(*_BEFORE_SUBJECT)} {SLOT} {text(*_BEHIND_SUBJECT)}".lstrip()
        subject, new, true = text(*_SUBJECT), text(*_TARGET), text(*_TARGET)
        return CounterFactRecord(
            EditRequest(prompt, subject, new, true, case_id),
            tuple(f"{text(*_SENTENCE)} {text(*_PROMPT)}" for _ in range(PARAPHRASES)),
            tuple(text(*_PROMPT) for _ in range(NEIGHBORS)),
            tuple(text(*_PROMPT) for _ in range(ATTRIBUTES)),
        )

    return [record(case_id) for case_id in range(count)]


def make_templates(vocab_size: int, seed: int = 0) -> list[str]:
    """21 context templates, as long as sampled ones.

    Example:
      >>> [len(template.split()) - 1 for template in make_templates(50)][:3]
      [0, 5, 5]
    """
    generator = np.random.default_rng(seed)
    words = [generator.integers(vocab_size, size=length).tolist() for length in PREFIXES]
    return [" ".join(map(str, [*prefix, SLOT])) for prefix in words]
