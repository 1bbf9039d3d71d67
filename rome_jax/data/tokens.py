"""Conversion of texts to padded token batches, and of character spans to token spans.

Positions come from offsets and masks, never from counting the tokens of a prefix. They stay right when a tokenizer
merges across words, adds a begin-of-text token or pads on the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import struct

from rome_jax.data.tokenization import prompt_ids
from rome_jax.files.checked import Count, check, shown


@struct.dataclass
class TokenBatch:
    """Token ids of B sequences.

    Attributes:
      ids: int32 [B, T]; the values at padding columns are arbitrary.
      mask: bool [B, T], True for real tokens, which are contiguous in each row; padding may be on either side.
      case: int32 [B], the index of each row's delta, or None.
      segments: int32 [B, T], the document that each token belongs to if several are packed into one row, or None.
        Documents do not attend to each other, and the positions of each begin at 0.
      branches: int32 [B, T], or None; only with `segments`. Tokens of branch 0 are the beginning of a document. Tokens
        of branch 1, 2, ... continue it and do not attend to other branches. Alternative continuations of one beginning
        can share one computation of it in this way.
    """

    ids: jax.Array | np.ndarray
    mask: jax.Array | np.ndarray
    case: jax.Array | np.ndarray | None = None
    segments: jax.Array | np.ndarray | None = None
    branches: jax.Array | np.ndarray | None = None


_MOST = np.iinfo(np.int32).max  # the largest token id


class SequenceTooLongError(ValueError):
    """A sequence has more tokens than the model has positions."""


def round_up(length: int, multiple: int) -> int:
    """Rounds a length up to a multiple. With shapes from few sizes, few programs are compiled.

    Example:
      >>> round_up(17, 8)
      24
    """
    return -(-length // multiple) * multiple


def bucket(length: int, sizes: int = 4) -> int:
    """Rounds a length up to the next of the sizes 1, 2, ..., 8, 10, 12, 14, 16, 20, 24, ...

    Each factor of two has four sizes. This gives few programs, and never more than a quarter of a shape is padding.
    `round_up` would waste more of short lengths and compile more programs for long ones.

    Args:
      length: The length, at least 1.
      sizes: Sizes per factor of two: 1, 2 or 4. Half as many sizes give half the programs and twice the padding.

    Example:
      >>> [bucket(length) for length in (5, 9, 17)], [bucket(length, 2) for length in (5, 9, 17)]
      ([5, 10, 20], [6, 12, 24])
    """
    return round_up(length, 2 ** max(0, (length - 1).bit_length() - sizes.bit_length()))


def pad(
    sequences: Sequence[Sequence[int]],
    *,
    context_length: int | None = None,
    multiple: int = 1,
    left: bool = False,
) -> TokenBatch:
    """Stacks sequences of ids of unequal length into a padded batch.

    Args:
      sequences: B sequences of ids, none of them empty.
      context_length: The model's context length, which sequences must not exceed; None does not check.
      multiple: The padded length is rounded up to a multiple of this, but never above `context_length`.
      left: Whether to pad on the left instead of the right.

    Returns:
      `TokenBatch` on the host.

    Raises:
      ValueError: If there are no sequences, or one is empty or holds something else than ids; the message names its
        index.
      SequenceTooLongError: If a sequence is longer than `context_length`.

    Example:
      >>> pad([[5, 6], [7]]).mask.tolist()
      [[True, True], [True, False]]
    """
    context_length = check(Count | None, context_length, "context_length")
    multiple, left = check(Count, multiple, "multiple"), check(bool, left, "left")
    if not len(sequences):
        raise ValueError("no sequences are given: give at least one text.")
    for index, sequence in enumerate(sequences):
        if not len(sequence):
            raise ValueError(
                f"sequence {index} has no tokens: give at least one character of text."
            )
        found = np.asarray(sequence)
        if found.dtype.kind not in "iu" or not 0 <= found.min() <= found.max() <= _MOST:
            raise ValueError(
                f"sequence {index} is {shown(sequence)}: give token ids, whole numbers of 0 or more."
            )
        if context_length is not None and len(sequence) > context_length:
            raise SequenceTooLongError(
                f"sequence {index} has {len(sequence)} tokens, more than the model's context of "
                f"{context_length}: shorten the text."
            )
    length = round_up(max(map(len, sequences)), multiple)
    if context_length is not None:
        length = min(length, context_length)
    ids = np.zeros((len(sequences), length), np.int32)
    mask = np.zeros((len(sequences), length), bool)
    for row, sequence in enumerate(sequences):
        columns = slice(length - len(sequence), None) if left else slice(0, len(sequence))
        ids[row, columns] = sequence
        mask[row, columns] = True
    return TokenBatch(ids, mask)


def encode(tokenizer: Any, texts: Sequence[str], **padding: Any) -> TokenBatch:
    """Tokenizes prompts or documents and pads them; see `rome_jax.data.tokenization`.

    Args:
      tokenizer: A tokenizer of `transformers`.
      texts: B texts, none of them empty.
      **padding: Options of `pad`.

    Returns:
      `TokenBatch` on the host.

    Raises:
      ValueError: If there are no texts, or one has no tokens, is no text or is not valid Unicode.
      SequenceTooLongError: If `context_length` is given and a text has more tokens.

    Example:
      >>> encode(model.tokenizer, ["Gothulf Punby plays the sport of"]).ids.shape
      (1, 7)
    """
    return pad(prompt_ids(tokenizer, texts), **padding)


def token_span(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """Finds the tokens that overlap the characters [start, end).

    A token overlaps if it shares at least one character. It may also hold a space, another word or part of a character.

    Args:
      offsets: Character range of each token, as given by fast tokenizers.
      start: First character.
      end: One more than the last character; the range must not be empty.

    Returns:
      The first token and one more than the last token.

    Raises:
      ValueError: If no token overlaps.

    Example:
      >>> token_span([(0, 3), (3, 8), (8, 9)], 4, 8)
      (1, 2)
    """
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
    if not inside:
        raise ValueError(f"no token covers the characters {start} to {end}.")
    return inside[0], inside[-1] + 1
