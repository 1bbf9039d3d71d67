"""A corpus that the model writes itself, for second moments on a machine without texts.

C describes the keys that the edited layer sees when the model works, and text that the model samples shows it such
keys. Documents begin in several ways and are drawn at several temperatures, because text from one opening at one
temperature repeats itself.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from rome_jax.data.corpus import Corpus
from rome_jax.data.tokenization import begin_ids, continuation_text, prompt_ids
from rome_jax.data.tokens import pad
from rome_jax.models.generate import Sampling, generate
from rome_jax.models.registry import IN_WHEELS, SHIPPED, LanguageModel

NAME = "self"
DEFAULT_DOCUMENTS = 192  # about 24,000 tokens; one batch of each temperature
_TOKENS_PER_DIMENSION = 8  # of C, at least, if no document ends early
TEMPERATURES = (0.7, 0.85, 1.0)
DOCUMENT_TOKENS = 128  # with the opening
_ROWS = (
    64  # Documents per batch; a part of the recipe, because it can change the last bits of logits.
)
_SIZE = 1_000_000  # Documents that can be read.
_WORDS = 256  # Number of frequent words.
_SPACES = ("Ġ", "▁")  # A space in the tokens of byte-level tokenizers and of SentencePiece.
_SEPARATOR = "<|endoftext|>"
_PHRASES = (
    "The", "In", "A", "It", "This", "He", "She", "They", "There", "When", "For", "As", "On", "At", "After",
    "According to the", "One of the", "In the early", "The first", "Born in", "Located in", "During the",
)  # fmt: skip
_DIGITS = ("1", "2", "3", "10", "19", "20", "50", "100", "1999", "2010", "2020")
_NAMES = (
    "John", "Mary", "David", "Maria", "William", "Anna", "Mohammed", "Li", "London", "Paris", "Germany", "Japan",
    "Africa", "California", "Microsoft", "Toyota", "Barack Obama", "Albert Einstein", "The University of",
    "The United States",
)  # fmt: skip


def default_corpus(model_name: str) -> str:
    """Returns the name of the corpus that a model's keys and embeddings are measured on by default.

    Args:
      model_name: Name of the model.

    Returns:
      "factworld", "self" for a pretrained model that loads without the hub, or "wikipedia".

    Example:
      >>> from rome_jax.moments import own_texts
      >>> own_texts.default_corpus("smollm2-135m"), own_texts.default_corpus("gpt2-xl")
      ('self', 'wikipedia')
    """
    if model_name in IN_WHEELS:
        return NAME
    return "factworld" if model_name in SHIPPED else "wikipedia"


def default_documents(width: int) -> int:
    """Returns the number of documents that are read by default, a multiple of one batch of each temperature.

    Args:
      width: Width F of the MLP. C has F dimensions and cannot be inverted if it averages fewer tokens.

    Returns:
      192, or as many documents as have 8 F tokens if none ends early.

    Example:
      >>> from rome_jax.moments import own_texts
      >>> [own_texts.default_documents(width) for width in (1536, 6400, 16384)]
      [192, 576, 1152]
    """
    needed = math.ceil(_TOKENS_PER_DIMENSION * width / DOCUMENT_TOKENS)
    return DEFAULT_DOCUMENTS * max(1, math.ceil(needed / DEFAULT_DOCUMENTS))


def self_corpus(model: LanguageModel, *, seed: int = 0) -> Corpus:
    """Builds the corpus of texts that a model samples.

    A document is at most 128 tokens long and ends where the model ends it. Its opening is the begin-of-text token, a
    frequent word of the vocabulary, a short phrase, a number, or a name, each kind with the same probability. Batches
    of 64 documents take turns at the temperatures. The seed and the index of a document decide its opening and its
    random draws, so a corpus can be read from any index, and an interrupted collection resumes with the same texts.

    Args:
      model: The model that writes.
      seed: Seed of openings and draws.

    Returns:
      A `Corpus` of a million documents, of which `default_documents` are read by default. Its `recipe` holds the
      seed, temperatures, openings, and length; its revision is their SHA-256. Texts are generated while they are read.

    Example:
      >>> corpus = rome_jax.moments.self_corpus(model)
      >>> corpus.name, corpus.recipe["temperatures"]
      ('self', [0.7, 0.85, 1.0])
    """
    kinds = _openings(model.tokenizer)
    recipe = {
        "seed": seed,
        "temperatures": list(TEMPERATURES),
        "document_tokens": min(DOCUMENT_TOKENS, model.config.context_length),
        "rows": _ROWS,
        "starts": kinds,
    }
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()

    def read(first: int) -> Iterator[str]:
        batch, skipped = divmod(first, _ROWS)
        texts = itertools.chain.from_iterable(
            _write_documents(model, recipe, index) for index in range(batch, _SIZE // _ROWS)
        )
        return itertools.islice(texts, skipped, None)

    return Corpus(
        NAME,
        f"sha256:{digest}",
        _SIZE // _ROWS * _ROWS,
        read,
        default_articles=default_documents(model.config.mlp_width),
        recipe=recipe,
        read_ahead=_ROWS,
    )


def _openings(tokenizer: Any) -> dict[str, list[str]]:
    """Returns the openings by kind. The empty text stands for the begin-of-text token."""
    kinds = {
        "frequent words": _frequent_words(tokenizer),
        "phrases": list(_PHRASES),
        "numbers": list(_DIGITS),
        "names": list(_NAMES),
    }
    if _begin(tokenizer):
        kinds["begin of text"] = [""]
    return {kind: texts for kind, texts in kinds.items() if texts}


def _begin(tokenizer: Any) -> list[int]:
    """Returns the tokens at the beginning of a text; empty if the tokenizer has no such token."""
    if begin := begin_ids(tokenizer):
        return list(begin)
    separator = tokenizer.get_vocab().get(_SEPARATOR, tokenizer.bos_token_id)
    return [] if separator is None else [separator]


def _frequent_words(tokenizer: Any) -> list[str]:
    """Returns words that the tokenizer has single tokens for, the most frequent first, as merges are sorted."""
    words: dict[str, None] = {}
    for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer))):
        word = token[1:]
        if token[:1] in _SPACES and len(word) > 1 and word.isascii() and word.isalpha():
            words[word] = None
        if len(words) == _WORDS:
            break
    return list(words)


def _write_documents(model: LanguageModel, recipe: dict[str, Any], batch: int) -> list[str]:
    """Samples the documents of one batch."""
    seed, length = recipe["seed"], recipe["document_tokens"]
    indices = range(batch * _ROWS, (batch + 1) * _ROWS)
    openings = [_opening(recipe["starts"], seed, index) for index in indices]
    prompts = [
        ids if text else _begin(model.tokenizer)
        for text, ids in zip(openings, prompt_ids(model.tokenizer, openings), strict=True)
    ]
    prompts = [ids[: length - 1] for ids in prompts]
    key = jax.random.key(seed, impl="threefry2x32")
    sampled = generate(
        model.params,
        model.config,
        pad(prompts),
        max_length=length,
        sampling=Sampling(recipe["temperatures"][batch % len(recipe["temperatures"])]),
        key=jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(indices.start, indices.stop)),
        stop_token=model.tokenizer.eos_token_id,
    )
    special = set(model.tokenizer.all_special_ids)
    return [
        opening + _text(model.tokenizer, ids, special)
        for opening, ids in zip(openings, sampled.tokens(with_prompt=False), strict=True)
    ]


def _opening(kinds: dict[str, list[str]], seed: int, index: int) -> str:
    """Draws the opening of a document."""
    draws = np.random.default_rng([seed, index])
    texts = kinds[sorted(kinds)[draws.integers(len(kinds))]]
    return texts[draws.integers(len(texts))]


def _text(tokenizer: Any, ids: Sequence[int], special: set[int]) -> str:
    """Decodes a continuation up to its first special token."""
    kept = list(itertools.takewhile(lambda token: token not in special, ids))
    return continuation_text(tokenizer, kept)
