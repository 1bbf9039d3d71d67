"""Packing of documents into training sequences of one length.

The sequences keep the token positions of every mention of a subject, which training with an attention bottleneck needs.
`rome_jax.data.packing` packs documents for everything else; here documents attend to each other, are separated by
`<|endoftext|>`, and have the order that the shipped models were trained on.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rome_jax.data.tokenization import encode_prompts
from rome_jax.data.tokens import token_span
from rome_jax.factworld.corpus import Document
from rome_jax.factworld_training.tokenizer import END_OF_TEXT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Span = tuple[int, int]  # (start, stop)


@dataclasses.dataclass(frozen=True)
class Packed:
    """One training sequence of T tokens.

    Attributes:
      ids: int32 [T], token ids.
      document: int32 [T], index of the document; a separator belongs to the document before it.
      mention: int32 [T], 0 outside mentions of subjects, and the number of the mention in the sequence inside.
      mention_last: bool [T], whether a token is the last of a mention.
      object: bool [T], whether a token belongs to the object of a fact.
      loss_mask: bool [T], False only in the padding at the end, which is not to be predicted.
    """

    ids: np.ndarray
    document: np.ndarray
    mention: np.ndarray
    mention_last: np.ndarray
    object: np.ndarray
    loss_mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """A tokenized document: its ids, and the token spans of its mentions and objects."""

    ids: list[int]
    mentions: list[Span]
    objects: list[Span]


def pack_documents(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    rng: np.random.Generator | None = None,
    *,
    window: int = 64,
) -> Iterator[Packed]:
    """Packs documents into sequences of exactly `length` tokens.

    A sequence begins with the first token of a document. One `<|endoftext|>` follows every document, except one that
    ends exactly at the end of the sequence, and `<|endoftext|>` fills the rest of a sequence. A document that does not
    fit waits for a later sequence (of `window` waiting documents, the first that fits is taken), so that no document is
    lost and little padding is needed. The documents of a sequence are shuffled, so that each sort of documents begins
    sequences as often as it occurs. A document longer than `length` is cut after a sentence, and skipped if its first
    sentence is too long.

    Args:
      documents: The documents.
      tokenizer: A fast tokenizer with `<|endoftext|>` as its end-of-sequence token.
      length: Number of tokens per sequence, T.
      rng: Shuffles the documents of each sequence; None means `default_rng(0)`.
      window: Number of waiting documents to choose from.

    Raises:
      ValueError: If `length` is less than 1, or the tokenizer has no `<|endoftext|>`.

    Example:
      >>> document = Document("Ada lives in Rome.", mentions=((0, 3),))
      >>> (packed,) = pack_documents([document], model.tokenizer, 12)
      >>> packed.mention.tolist()
      [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    """
    separator = tokenizer.eos_token_id
    if length < 1:
        raise ValueError(f"length={length} is too short: give at least 1 token.")
    if separator is None:
        raise ValueError(
            f"the tokenizer has no end-of-sequence token: give one that has {END_OF_TEXT}."
        )
    rng = np.random.default_rng(0) if rng is None else rng
    encoded = _encode(documents, tokenizer, length)
    waiting: list[_Encoded] = []
    exhausted = False
    while True:
        room, chosen = length, []
        while room > 0:
            while not exhausted and len(waiting) < window:
                item = next(encoded, None)
                if item is None:
                    exhausted = True
                else:
                    waiting.append(item)
            i = next((i for i, item in enumerate(waiting) if len(item.ids) <= room), None)
            if i is None:
                break
            chosen.append(waiting.pop(i))
            room -= len(chosen[-1].ids) + 1
        if not chosen:
            return
        yield _assemble([chosen[i] for i in rng.permutation(len(chosen))], separator, length)


def _encode(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    batch: int = 1024,
) -> Iterator[_Encoded]:
    """Yields the tokenized documents, cut to at most `length` tokens; skips those that cannot be cut."""
    iterator = iter(documents)
    while chunk := list(itertools.islice(iterator, batch)):
        encoded = encode_prompts(tokenizer, [document.text for document in chunk])
        for document, text in zip(chunk, encoded, strict=True):
            ids, offsets, end = text.ids, text.offsets, len(document.text)
            if len(ids) > length:
                end = _last_sentence_end(document.text, offsets, length)
                kept = sum(stop <= end for _, stop in offsets)
                ids, offsets = ids[:kept], offsets[:kept]
            if ids:
                mentions, objects = (
                    [token_span(offsets, start, stop) for start, stop in spans if stop <= end]
                    for spans in (document.mentions, document.objects)
                )
                yield _Encoded(ids, mentions, objects)


def _last_sentence_end(text: str, offsets: Sequence[Span], length: int) -> int:
    """Returns the index after the last period that ends a sentence within `length` tokens; 0 if there is none."""
    return text.rfind(". ", 0, offsets[length - 1][1] + 1) + 1


def _assemble(chosen: Sequence[_Encoded], separator: int, length: int) -> Packed:
    """Returns the sequence of some documents, in their order."""
    ids = np.full(length, separator, np.int32)
    document = np.full(length, len(chosen) - 1, np.int32)
    mention = np.zeros(length, np.int32)
    mention_last = np.zeros(length, bool)
    is_object = np.zeros(length, bool)
    loss_mask = np.zeros(length, bool)
    start = number = 0
    for index, item in enumerate(chosen):
        stop = start + len(item.ids)
        ids[start:stop] = item.ids
        document[start : stop + 1] = index
        loss_mask[start : stop + 1] = True
        for first, last in item.objects:
            is_object[start + first : start + last] = True
        for first, last in item.mentions:
            number += 1
            mention[start + first : start + last] = number
            mention_last[start + last - 1] = True
        start = stop + 1
    return Packed(ids, document, mention, mention_last, is_object, loss_mask)
