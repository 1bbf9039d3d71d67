"""Requests to token arrays: every request in every context, with the columns that the edit looks at.

Context templates are explained in `contexts`.

Axes: N requests, K templates, T tokens, M target tokens. Row K of a request is "{subject} is a", whose prediction the
edit must not move.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rome_jax.data.positions import FactToken, columns, fact_token_index
from rome_jax.data.request import SLOT, EditRequest, fill
from rome_jax.data.tokens import SequenceTooLongError, TokenBatch, bucket, pad, round_up, token_span
from rome_jax.edit.stages.shared_contexts import SharedContexts

ESSENCE_TEMPLATE = "{} is a"


@struct.dataclass
class EditInputs:
    """Arrays of N requests.

    Attributes:
      batch: N·(K + 1) rows, request by request: K templates with prompt and target but its last token, then the
        essence row; `case` is the request's index.
      lookup: int32 [N, K + 1], column of the fact token.
      target_columns: int32 [N, K, M], columns whose next token is the target's m-th.
      target_ids: int32 [N, M].
      target_mask: bool [N, M], False beyond a target's end.
      num_prefix: columns (static) that hold everything before the first column that matters, `start`, of every row.
      num_suffix: columns (static) that hold everything from `start` to the last one that is read.
      contexts: what the rows of the requests share, None if nothing.
    """

    batch: TokenBatch
    lookup: jax.Array
    target_columns: jax.Array
    target_ids: jax.Array
    target_mask: jax.Array
    num_prefix: int = struct.field(pytree_node=False)
    num_suffix: int = struct.field(pytree_node=False)
    contexts: SharedContexts | None = None

    @classmethod
    def of(
        cls,
        batch: TokenBatch,
        lookup: np.ndarray,
        target_columns: np.ndarray,
        target_ids: np.ndarray,
        target_mask: np.ndarray,
    ) -> EditInputs:
        """Measures the static sizes, in buckets, of concrete arrays; see the attributes."""
        unmeasured = cls(batch, lookup, target_columns, target_ids, target_mask, 1, 1)
        start, last = np.asarray(unmeasured.start), np.asarray(unmeasured.read.max(axis=-1))
        length = batch.ids.shape[1]
        return unmeasured.replace(
            num_prefix=min(round_up(max(int(start.max()), 1), 8), length),
            num_suffix=min(bucket(int((last - start).max()) + 1), length),
            contexts=SharedContexts.find(batch, start),
        )

    @property
    def read(self) -> jax.Array:
        """int32 [N, K + 1, M], the columns whose predictions the loss reads; the essence row's fact token M times."""
        essence = jnp.broadcast_to(
            self.lookup[:, -1:, None], (len(self.lookup), 1, self.target_columns.shape[-1])
        )
        return jnp.concatenate([self.target_columns, essence], axis=1)

    @property
    def start(self) -> jax.Array:
        """int32 [N, K + 1], the first column of each row that an edit changes or the loss reads."""
        return jnp.minimum(self.lookup, self.read.min(axis=-1))


def prefix_of(template: str) -> str:
    """The text before the slot, which ends the template.

    Raises:
      ValueError: the template does not end in "{}".
    """
    if not template.endswith(SLOT):
        raise ValueError(
            f"context template {template!r} must end in '{{}}', where the prompt goes."
        )
    return template[: -len(SLOT)]


def tokenize_requests(
    tokenizer,
    requests: Sequence[EditRequest],
    templates: Sequence[str],
    fact_token: FactToken,
    context_length: int,
    multiple: int = 4,
) -> EditInputs:
    """Builds the arrays of `EditInputs`, padded on the right.

    Raises:
      SequenceTooLongError: a row beyond the model's context.
      ValueError: a template that does not end in "{}", or a fact token that is not there.
    """
    prefixes = [prefix_of(template) for template in templates]
    rows, lookup, ends, targets = [], [], [], []
    target_lists = tokenizer([r.target_text for r in requests], add_special_tokens=False)[
        "input_ids"
    ]
    for request, target in zip(requests, target_lists, strict=True):
        prompts = [(prefix, request.prompt) for prefix in prefixes] + [("", ESSENCE_TEMPLATE)]
        texts = [prefix + fill(prompt, request.subject) for prefix, prompt in prompts]
        encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        for row, (prefix, prompt) in enumerate(prompts):
            ids, offsets = encoded["input_ids"][row], encoded["offset_mapping"][row]
            start = len(prefix) + prompt.index(SLOT)
            subject = token_span(offsets, start, start + len(request.subject))
            lookup.append(fact_token_index(fact_token, subject, len(ids)))
            ends.append(len(ids) - 1)
            rows.append(ids + (target[:-1] if row < len(prefixes) else []))
            if len(rows[-1]) > context_length:
                raise SequenceTooLongError(
                    f"the prompt about {request.subject!r} with its target takes {len(rows[-1])} tokens behind the "
                    f"context {prefix!r}, more than the model's context of {context_length}: shorten the prompt."
                )
        targets.append(target)

    batch = pad(rows, context_length=context_length, multiple=multiple)
    num_requests, num_rows = len(requests), len(prefixes) + 1
    most = max(map(len, targets))
    target = pad(targets, multiple=most if most <= 2 else 4)
    last_prompt = columns(batch.mask, np.array(ends)).reshape(num_requests, num_rows)[:, :-1]
    offsets = np.where(target.mask, np.arange(target.mask.shape[1]), 0)  # [N, M]
    return EditInputs.of(
        batch=TokenBatch(batch.ids, batch.mask, np.repeat(np.arange(num_requests), num_rows)),
        lookup=columns(batch.mask, np.array(lookup)).reshape(num_requests, num_rows),
        target_columns=last_prompt[:, :, None] + offsets[:, None, :],
        target_ids=target.ids,
        target_mask=target.mask,
    )
