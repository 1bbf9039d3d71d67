"""Packing of documents into training sequences of one length.

The token positions of every subject mention are kept: training with an attention bottleneck needs
them.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from rome_jax.factworld.corpus import Document
from rome_jax.factworld_training.tokenizer import END_OF_TEXT


@dataclass(frozen=True)
class Packed:
    """One training sequence; every array is [T].

    ids: int32 token ids.
    document: int32 index of the document; a separator belongs to the document that it ends.
    mention: int32, 0 outside subject mentions, else the number of the mention in the sequence.
    mention_last: bool, the last token of a mention.
    object: bool, the tokens of facts' objects.
    loss_mask: bool, False on the filled tail alone: tokens that are not to be predicted.
    """

    ids: np.ndarray
    document: np.ndarray
    mention: np.ndarray
    mention_last: np.ndarray
    object: np.ndarray
    loss_mask: np.ndarray


_Encoded = tuple[list[int], list[tuple[int, int]], list[tuple[int, int]]]


def pack_documents(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    length: int,
    rng: np.random.Generator | None = None,
    *,
    window: int = 64,
) -> Iterator[Packed]:
    """Packs documents into sequences of exactly `length` tokens.

    A sequence begins with a document's first token; every document but one that ends exactly at
    the sequence's end is followed by one `<|endoftext|>`, and `<|endoftext|>` fills the tail.  A
    document that does not fit waits for the next sequence (the first of `window` that fits goes
    in), so nothing is lost and little is filled; the documents of a sequence are shuffled, so
    each sort begins sequences as often as it occurs.  A document longer than `length` is cut
    after a sentence, and skipped if its first sentence is too long.

    Args:
        documents: what to pack.
        tokenizer: has offsets and the token `<|endoftext|>`.
        length: tokens a sequence, T.
        rng: shuffles the documents of each sequence; `default_rng(0)` if None.
        window: how many waiting documents to choose from.

    Raises:
        ValueError: if `length` is below 1 or the tokenizer lacks `<|endoftext|>`.
    """
    separator = tokenizer.token_to_id(END_OF_TEXT)
    if length < 1:
        raise ValueError(f"length must be at least 1; got {length}")
    if separator is None:
        raise ValueError(f"the tokenizer has no token {END_OF_TEXT}")
    rng = np.random.default_rng(0) if rng is None else rng
    encoded = _encode(documents, tokenizer, length)
    waiting: list[_Encoded] = []
    exhausted = False
    while True:
        room, chosen = length, []
        while room > 0:
            while not exhausted and len(waiting) < window:
                item = next(encoded, None)
                exhausted = item is None
                if item is not None:
                    waiting.append(item)
            i = next((i for i, item in enumerate(waiting) if len(item[0]) <= room), None)
            if i is None:
                break
            chosen.append(waiting.pop(i))
            room -= len(chosen[-1][0]) + 1
        if not chosen:
            return
        yield _assemble([chosen[i] for i in rng.permutation(len(chosen))], separator, length)


def _encode(
    documents: Iterable[Document], tokenizer: Tokenizer, length: int, batch: int = 1024
) -> Iterator[_Encoded]:
    """(ids, token spans [start, stop) of the mentions, and of the objects) of each document that fits."""
    iterator = iter(documents)
    while chunk := list(itertools.islice(iterator, batch)):
        for document, encoding in zip(
            chunk, tokenizer.encode_batch([d.text for d in chunk]), strict=True
        ):
            ids, offsets = encoding.ids, encoding.offsets
            if len(ids) > length:
                end = _last_sentence_end(document.text, offsets, length)
                ids = ids[: sum(stop <= end for _, stop in offsets)]
            if ids:
                offsets = offsets[: len(ids)]
                mentions, objects = (
                    _token_spans(spans, offsets) for spans in (document.mentions, document.objects)
                )
                yield ids, mentions, objects


def _last_sentence_end(text: str, offsets: list[tuple[int, int]], length: int) -> int:
    """Character just after the last ". " that `length` tokens still cover; 0 if there is none."""
    return text.rfind(". ", 0, offsets[length - 1][1] + 1) + 1


def _token_spans(characters, offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Token span of every character span: the tokens whose characters overlap it."""
    spans, token = [], 0
    for start, stop in characters:
        while token < len(offsets) and offsets[token][1] <= start:
            token += 1
        first = token
        while token < len(offsets) and offsets[token][0] < stop:
            token += 1
        if token > first:
            spans.append((first, token))
    return spans


def _assemble(chosen, separator: int, length: int) -> Packed:
    ids = np.full(length, separator, np.int32)
    document = np.full(length, len(chosen) - 1, np.int32)
    mention = np.zeros(length, np.int32)
    mention_last = np.zeros(length, bool)
    is_object = np.zeros(length, bool)
    loss_mask = np.zeros(length, bool)
    start = number = 0
    for index, (tokens, mentions, objects) in enumerate(chosen):
        stop = start + len(tokens)
        ids[start:stop] = tokens
        document[start : stop + 1] = index
        loss_mask[start : stop + 1] = True
        for first, last in objects:
            is_object[start + first : start + last] = True
        for first, last in mentions:
            number += 1
            mention[start + first : start + last] = number
            mention_last[start + last - 1] = True
        start = stop + 1
    return Packed(ids, document, mention, mention_last, is_object, loss_mask)
