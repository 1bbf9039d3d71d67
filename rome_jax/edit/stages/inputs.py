"""Token arrays of edit requests.

A request is run in every context template, followed by its target. It is also run once as "{subject} is a", and the
edit must not change the prediction there (the KL term of the loss). The rows are ordered by context:

    rows 0 to N − 1       the bare prompts, which are the first template       TargetRows
    ...                   the prompts in the other contexts                    TargetRows
    the last N rows       "{subject} is a"                                     EssenceRows

Every row is padded so that column P is the first column that its edit changes. By the causal mask, an edit changes
nothing before that column:

    column        0    ...    P − 1 | P    ...        T − 1
                  ·    ·      Space | Needle is in Rome   ·
    file  is open .    The    Space | Needle is in Rome   ·
                  ·    ·      Space | Needle is  ·   ·    ·
                        prefix      |       suffix

Axes: N requests, K context templates, R = (K + 1)·N rows, T columns, P prefix columns, M target tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rome_jax.data.positions import FactToken, fact_token_index
from rome_jax.data.request import SLOT, EditRequest, fill
from rome_jax.data.tokenization import continuation_ids, encode_prompts
from rome_jax.data.tokens import SequenceTooLongError, TokenBatch, bucket, pad, round_up, token_span
from rome_jax.edit.stages.shared_contexts import SharedContexts
from rome_jax.files.checked import Count, check, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ESSENCE_TEMPLATE = "{} is a"

Array = jax.Array | np.ndarray


@struct.dataclass
class TargetRows:
    """Columns of the prompts, and the targets that they should predict.

    Attributes:
      fact: int32 [K, N] column of the fact token.
      read: int32 [K, N, M] columns that should predict the m-th token of the target.
      ids: int32 [N, M] target tokens.
      mask: bool [N, M], False beyond the end of a target.
    """

    fact: Array
    read: Array
    ids: Array
    mask: Array

    def shift(self, columns: int | np.ndarray) -> Self:
        """Moves all columns by a number, or by numbers of shape [K, N]."""
        columns = np.asarray(columns, np.int32)
        return dataclasses.replace(
            self, fact=self.fact + columns, read=self.read + columns[..., None]
        )


@struct.dataclass
class EssenceRows:
    """Columns of the rows "{subject} is a".

    Attributes:
      fact: int32 [N] column of the fact token, which is also the column that is read.
    """

    fact: Array

    def shift(self, columns: int | np.ndarray) -> Self:
        """Moves all columns by a number, or by numbers of shape [N]."""
        return dataclasses.replace(self, fact=self.fact + columns)


@struct.dataclass
class EditInputs:
    """Token arrays of N requests; `tokenize_requests` builds them.

    Attributes:
      batch: [R, T] target rows, then essence rows. `batch.case` is the index of the request.
      targets: Columns and targets of the target rows.
      essence: Columns of the essence rows.
      shared: Packed forms of the rows, or None if the requests share nothing. Only valid while all requests run on
        the same weights.
      num_prefix: P (static).
    """

    batch: TokenBatch
    targets: TargetRows
    essence: EssenceRows
    shared: SharedContexts | None
    num_prefix: int = struct.field(pytree_node=False)

    @classmethod
    def of(
        cls,
        batch: TokenBatch,
        targets: TargetRows,
        essence: EssenceRows,
        num_prefix: int | None = None,
        num_suffix: int | None = None,
    ) -> EditInputs:
        """Aligns concrete rows at the first column that their edit changes, and packs what they share.

        Args:
          batch: [R, any length] rows in the order above, with padding on the left or right.
          targets, essence: Columns in `batch`.
          num_prefix: P. Defaults to `prefix_size`.
          num_suffix: T − P. Defaults to `suffix_size`.

        Raises:
          ValueError: If `num_prefix` is too small to hold every prefix.
        """
        first, last = first_columns(targets, essence), last_columns(targets, essence)
        num_prefix = prefix_size(first) if num_prefix is None else num_prefix
        num_suffix = suffix_size(first, last) if num_suffix is None else num_suffix
        num_contexts, num_requests = first.shape
        case = np.tile(np.arange(num_requests, dtype=np.int32), num_contexts)
        aligned = align(batch, first.reshape(-1), num_prefix, num_suffix)
        return cls(
            dataclasses.replace(aligned, case=case),
            targets.shift(num_prefix - first[:-1]),
            essence.shift(num_prefix - first[-1]),
            SharedContexts.find(aligned, num_requests, num_prefix),
            num_prefix,
        )

    @property
    def num_requests(self) -> int:
        """Number of requests, N."""
        return len(self.essence.fact)

    @property
    def fact(self) -> jax.Array:
        """int32 [R] column of the fact token in each row."""
        return jnp.concatenate([jnp.ravel(self.targets.fact), self.essence.fact])

    def by_context(self, rows: jax.Array) -> jax.Array:
        """Splits rows by context and drops the essence rows: [R, ...] -> [K, N, ...]."""
        return rows.reshape(-1, self.num_requests, *rows.shape[1:])[:-1]


def first_columns(targets: TargetRows, essence: EssenceRows) -> np.ndarray:
    """Returns the first column of each row that its edit changes or the loss reads, int [K + 1, N]."""
    return np.stack([*np.minimum(targets.fact, np.min(targets.read, axis=-1)), essence.fact])


def last_columns(targets: TargetRows, essence: EssenceRows) -> np.ndarray:
    """Returns the last column of each row that the loss reads, int [K + 1, N]."""
    return np.stack([*np.max(targets.read, axis=-1), essence.fact])


def prefix_size(first: np.ndarray) -> int:
    """Returns a number of columns that holds every prefix; a multiple of 8, so that few programs are compiled.

    Example:
      >>> prefix_size(np.array([[3, 9]]))
      16
    """
    return round_up(max(int(first.max()), 1), 8)


def suffix_size(first: np.ndarray, last: np.ndarray) -> int:
    """Returns a number of columns that holds every suffix; one of the sizes of `bucket`.

    Example:
      >>> suffix_size(np.array([[3, 9]]), np.array([[11, 14]]))
      10
    """
    return bucket(int((last - first).max()) + 1)


def align(batch: TokenBatch, first: np.ndarray, num_prefix: int, num_suffix: int) -> TokenBatch:
    """Pads rows on both sides so that column `first` of each becomes column `num_prefix`.

    Args:
      batch: [R, any length] concrete rows.
      first: int [R] columns to align.
      num_prefix: Number of columns before the aligned one; at least the largest of `first`.
      num_suffix: Number of columns from the aligned one on. Later tokens are dropped, since nothing reads them.

    Returns:
      A batch of num_prefix + num_suffix columns.

    Raises:
      ValueError: If `num_prefix` is too small.

    Example:
      >>> align(pad([[1, 2, 3], [4, 5]]), np.array([2, 0]), 2, 2).ids.tolist()
      [[1, 2, 3, 0], [0, 0, 4, 5]]
    """
    if num_prefix < first.max():
        raise ValueError(
            f"num_prefix={num_prefix} is too small: the longest prefix has {first.max()} columns."
        )
    columns = first[:, None] + np.arange(-num_prefix, num_suffix)
    inside = (columns >= 0) & (columns < batch.ids.shape[1])
    columns = np.where(inside, columns, 0)
    ids, mask = (np.take_along_axis(np.asarray(x), columns, 1) for x in (batch.ids, batch.mask))
    return TokenBatch(np.where(inside, ids, 0), mask & inside)


def prefix_of(template: str) -> str:
    """Returns the text of a template before its slot.

    Raises:
      ValueError: If the template does not end in "{}".

    Example:
      >>> prefix_of("A fact. {}")
      'A fact. '
    """
    if not template.endswith(SLOT):
        raise ValueError(
            f"context template {shown(template)} must end in '{{}}', where the prompt goes."
        )
    return template[: -len(SLOT)]


def tokenize_requests(
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    templates: Sequence[str],
    fact_token: FactToken,
    context_length: int,
) -> EditInputs:
    """Builds the token arrays of requests in all context templates.

    Args:
      tokenizer: Tokenizer of the model.
      requests: N edit requests.
      templates: K context templates. Each ends in "{}", and the first is "{}".
      fact_token: Which token of the prompt counts as the fact token.
      context_length: Context length of the model, in tokens.

    Returns:
      Numpy arrays in shapes that come in buckets, so that few programs are compiled.

    Raises:
      SequenceTooLongError: If a prompt with its target does not fit the context.
      ValueError: If there are no templates, one does not end in "{}", or a prompt does not have the fact token.

    Example:
      >>> inputs = tokenize_requests(
      ...     model.tokenizer, [request], ["{}", "A fact. {}"], config.fact_token, 256)
      >>> inputs.targets.read.shape, inputs.essence.fact.shape, inputs.batch.ids.shape
      ((2, 1, 1), (1,), (3, 13))
    """
    templates = check(tuple[str, ...], templates, "templates")
    context_length = check(Count, context_length, "context_length")
    if not templates:
        raise ValueError("templates is empty: give at least '{}', the bare prompt.")
    answers = continuation_ids(tokenizer, [request.target_text for request in requests])
    rows = [
        (prefix, request.prompt, request, answer[:-1])
        for prefix in map(prefix_of, templates)
        for request, answer in zip(requests, answers, strict=True)
    ]
    rows += [("", ESSENCE_TEMPLATE, request, []) for request in requests]
    texts = [prefix + fill(prompt, request.subject) for prefix, prompt, request, _ in rows]
    sequences, facts, ends = [], [], []
    for (prefix, prompt, request, answer), text in zip(
        rows, encode_prompts(tokenizer, texts), strict=True
    ):
        start = len(prefix) + prompt.index(SLOT)
        subject = token_span(text.offsets, start, start + len(request.subject))
        facts.append(fact_token_index(fact_token, subject, len(text.ids)))
        ends.append(len(text.ids) - 1)
        sequences.append(text.ids + answer)
        if len(sequences[-1]) > context_length:
            raise SequenceTooLongError(
                f"the prompt about {shown(request.subject)} with its target takes {len(sequences[-1])} tokens after "
                f"the prefix {shown(prefix)}, more than the model's context of {context_length}: shorten the prompt."
            )

    longest = max(map(len, answers))
    target = pad(answers, multiple=longest if longest <= 2 else 4)
    offsets = np.where(target.mask, np.arange(target.mask.shape[1], dtype=np.int32), 0)  # [N, M]
    fact, last = np.array([facts, ends], np.int32).reshape(2, -1, len(requests))  # [K + 1, N]
    targets = TargetRows(fact[:-1], last[:-1, :, None] + offsets, target.ids, target.mask)
    return EditInputs.of(pad(sequences), targets, EssenceRows(fact[-1]))
