"""Text to padded token batches, and character spans to token spans.

Positions come from offsets and masks, never from counting the tokens of a prefix: they stay right when a tokenizer
merges across words, adds a begin-of-text token or pads on the left.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from flax import struct


@struct.dataclass
class TokenBatch:
    """Token ids of B sequences.

    Attributes:
      ids: int32 [B, T]; anything in the padding.
      mask: bool [B, T], True for real tokens, which are contiguous; padding may be left or right.
      case: int32 [B] or None: which of N deltas each row sees.
      segments: int32 [B, T] or None: which document of its row each token belongs to, where several are packed into
        one. Documents do not see each other and their positions begin at 0.
      branches: int32 [B, T] or None; with `segments` only. 0 is what a document begins with; tokens of branch 1, 2, ...
        continue it, and do not see each other's branch. Alternative continuations so share one run of the beginning.
    """

    ids: jax.Array
    mask: jax.Array
    case: jax.Array | None = None
    segments: jax.Array | None = None
    branches: jax.Array | None = None


class SequenceTooLongError(ValueError):
    """A sequence has more tokens than the model has positions."""


def round_up(length: int, multiple: int) -> int:
    """The least multiple of `multiple` that is at least `length`: shapes from few sizes compile few programs.

    Example:
      >>> round_up(17, 8)
      24
    """
    return -(-length // multiple) * multiple


def bucket(length: int, sizes: int = 4) -> int:
    """The least size of 1, 2, ..., 8, 10, 12, 14, 16, 20, 24, ... that is at least `length`.

    Four sizes an octave: few programs, and never more than a quarter of a shape is padding. `round_up` wastes more of
    short lengths and makes more programs of long ones.

    Args:
      length: at least 1.
      sizes: an octave, 1, 2 or 4; half as many halve the programs and double the padding.

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
    """Stacks id sequences of unequal length.

    Args:
      sequences: B lists of ids, none empty.
      context_length: of the model; None does not check.
      multiple: the padded length is rounded up to it, though never above `context_length`.
      left: pad on the left instead of the right.

    Raises:
      ValueError: no sequences, or an empty one, named by its index.
      SequenceTooLongError: a sequence longer than `context_length`.

    Example:
      >>> pad([[5, 6], [7]]).mask.tolist()
      [[True, True], [True, False]]
    """
    if not len(sequences):
        raise ValueError("no sequences: give at least one text.")
    for index, sequence in enumerate(sequences):
        if not len(sequence):
            raise ValueError(
                f"sequence {index} has no tokens: give at least one character of text."
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


def encode(tokenizer, texts: Sequence[str], **padding) -> TokenBatch:
    """Tokenises texts without special tokens and pads them; `padding` as for `pad`."""
    return pad(tokenizer(list(texts), add_special_tokens=False)["input_ids"], **padding)


def token_span(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The tokens that overlap the characters [start, end).

    A token that holds a space and a word, or part of a character, counts as soon as one character is shared.

    Args:
      offsets: character range of each token, as fast tokenizers give.
      start, end: character range, not empty.

    Returns:
      (first, last + 1).

    Raises:
      ValueError: no token overlaps.

    Example:
      >>> token_span([(0, 3), (3, 8), (8, 9)], 4, 8)
      (1, 2)
    """
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
    if not inside:
        raise ValueError(f"no token covers the characters {start} to {end}.")
    return inside[0], inside[-1] + 1
