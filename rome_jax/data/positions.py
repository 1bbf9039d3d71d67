"""Positions in a padded batch: the last subject token, the last prompt token, the tokens of a target.

NumPy only: positions are found once on the host and passed to the device as arrays. Spans count a text's own tokens
from 0, and `columns` converts them to columns of a padded batch, whichever side the padding is on.
"""

from __future__ import annotations

import enum

import numpy as np


class FactToken(enum.Enum):
    """The token at which a fact is edited, with the names used in the original's hyperparameter files."""

    SUBJECT_FIRST = "subject_first"
    SUBJECT_LAST = "subject_last"
    SUBJECT_FIRST_AFTER_LAST = "subject_first_after_last"
    LAST = "last"


def fact_token_index(strategy: FactToken, subject: tuple[int, int], length: int) -> int:
    """Finds the index of the fact token among a text's own tokens.

    Args:
      strategy: Which token it is.
      subject: Token span of the subject, (first, last + 1).
      length: Number of tokens in the text.

    Raises:
      ValueError: If the token after the subject is requested and the text ends with the subject.

    Example:
      >>> fact_token_index(FactToken.SUBJECT_LAST, (1, 4), 9)
      3
    """
    first, stop = subject
    index = {
        FactToken.SUBJECT_FIRST: first,
        FactToken.SUBJECT_LAST: stop - 1,
        FactToken.SUBJECT_FIRST_AFTER_LAST: stop,
        FactToken.LAST: length - 1,
    }[strategy]
    if index >= length:
        raise ValueError(
            f"fact_token={strategy.value!r} needs a token after the subject, but the prompt ends with it: "
            "use 'subject_last'."
        )
    return index


def columns(mask: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Converts indices among a row's own tokens to columns of the padded batch.

    Args:
      mask: bool [B, T], True for real tokens, which are contiguous in each row.
      indices: int [B] or [B, P]; negative indices count from the end of the real tokens.

    Returns:
      int32, in the shape of `indices`.

    Raises:
      IndexError: If an index is beyond the row's tokens.

    Example:
      >>> columns(np.array([[False, True, True]]), np.array([-1]))
      array([2], dtype=int32)
    """
    mask, indices = np.asarray(mask), np.asarray(indices)
    extra = (1,) * (indices.ndim - 1)
    first = mask.argmax(axis=1).reshape(-1, *extra)
    length = mask.sum(axis=1).reshape(-1, *extra)
    if ((indices >= length) | (indices < -length)).any():
        raise IndexError(
            f"indices {indices.tolist()} are beyond the end of rows of {length.ravel().tolist()} tokens."
        )
    return (first + np.where(indices < 0, indices + length, indices)).astype(np.int32)
