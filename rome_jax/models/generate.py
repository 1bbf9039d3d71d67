"""Text generation with a key-value cache: greedy or top-k, many rows at once, each with its own edit.

Prompts are right-aligned, so that all rows write the same cache column at each step. The prompts go through the layers
once; then one compiled loop adds a token at a time. The text of a row depends only on its prompt, its edit and its
random key, not on padding or on the other rows.

Axes: B rows, P prompt columns, C cache columns, T tokens, N new tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from flax import struct

from rome_jax.data.tokenization import begin_ids, continuation_text
from rome_jax.data.tokens import SequenceTooLongError, TokenBatch, encode, round_up
from rome_jax.files.checked import Count, NonNegativeInt, check, check_fields
from rome_jax.models.config import ModelConfig
from rome_jax.models.forward import Params, embed, plain_attention, run_layers, unembed
from rome_jax.models.interventions import Delta
from rome_jax.models.layers import Attention, Interventions

if TYPE_CHECKING:
    from rome_jax.models.registry import LanguageModel

# Widths of prompts and caches are rounded up to multiples of these, so that few programs are compiled.
_PROMPT_MULTIPLE = 16
_CACHE_MULTIPLE = 32
_NO_STOP = -1  # no token has this id


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits.

    Attributes:
      temperature: Divisor of the logits; 0 takes the most likely token and ignores the key.
      top_k: Number of most likely tokens to draw from; None, or more than there are, means all tokens.

    Raises:
      ValueError: If the temperature is not a finite number of at least 0, or top_k not a whole number of at least 1.

    Example:
      >>> rome_jax.Sampling(top_k=5)  # as the original samples its context templates and evaluation texts
      Sampling(temperature=1.0, top_k=5)
    """

    temperature: Annotated[float, pydantic.Field(ge=0)] = 1.0
    top_k: Count | None = None

    def __post_init__(self):
        check_fields(self)

    @classmethod
    def greedy(cls) -> Sampling:
        """Returns the sampling that takes the most likely token at each step."""
        return cls(temperature=0.0)

    def draw(self, logits: jax.Array, keys: jax.Array) -> jax.Array:
        """Draws the next token of each row.

        Args:
          logits: float [B, V].
          keys: B PRNG keys.

        Returns:
          int32 [B]; row i depends only on row i of the logits and on key i.

        Example:
          >>> logits = jnp.array([[0.0, 2.0, 1.0]])
          >>> rome_jax.Sampling.greedy().draw(logits, key[None]).tolist()
          [1]
        """
        if self.temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        top_k = min(self.top_k or logits.shape[-1], logits.shape[-1])
        candidates = None
        if top_k < logits.shape[-1]:
            logits, candidates = jax.lax.top_k(logits, top_k)
        # With a maximum of 0, a temperature close to 0 gives -inf for the other tokens and never NaN.
        scaled = (logits - logits.max(axis=-1, keepdims=True)) / self.temperature
        drawn = jax.vmap(jax.random.categorical)(keys, scaled)
        if candidates is not None:
            drawn = jnp.take_along_axis(candidates, drawn[:, None], axis=-1)[:, 0]
        return drawn.astype(jnp.int32)


@struct.dataclass
class GeneratedBatch:
    """Prompts and their continuations on the host; each row is contiguous and padded on the right.

    Attributes:
      ids: int32 [B, T].
      mask: bool [B, T], True for real tokens.
      prompt_lengths: int32 [B], the number of tokens in each row's prompt.
    """

    ids: np.ndarray
    mask: np.ndarray
    prompt_lengths: np.ndarray

    def tokens(self, *, with_prompt: bool = True) -> list[list[int]]:
        """Returns the ids of each row without padding, beginning with its prompt or with its first new token."""
        starts = np.zeros_like(self.prompt_lengths) if with_prompt else self.prompt_lengths
        ends = self.mask.sum(axis=-1)
        return [row[a:b].tolist() for row, a, b in zip(self.ids, starts, ends, strict=True)]

    def texts(self, tokenizer: Any, *, with_prompt: bool = True) -> list[str]:
        """Decodes each row; see `tokens`. It keeps special tokens but those that the tokenizer puts before a text."""
        rows = self.tokens(with_prompt=with_prompt)
        if not with_prompt:
            return [continuation_text(tokenizer, row) for row in rows]
        begin = list(begin_ids(tokenizer))
        return [
            tokenizer.decode(
                row[len(begin) :] if row[: len(begin)] == begin else row,
                clean_up_tokenization_spaces=False,
            )
            for row in rows
        ]


def generate(
    params: Params,
    config: ModelConfig,
    batch: TokenBatch,
    *,
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    sampling: Sampling = Sampling.greedy(),
    key: jax.Array | None = None,
    deltas: Delta | None = None,
    stop_token: int | None = None,
) -> GeneratedBatch:
    """Continues every row of a batch.

    The randomness of a token comes from its row's key and its position in the row's sequence. Row i of 5 therefore
    draws what row i of 10 draws, and continuing a generated text gives what one longer run would have given.

    Args:
      params: Params of the whole model.
      config: The model's config (static).
      batch: B prompts, padded on either side; `batch.case` assigns a delta to each row.
      max_length: Number of tokens to fill each row up to, INCLUDING ITS PROMPT, as in the original. A row whose prompt
        already has this length stays as it is. (The original would then add nothing to any row.)
      max_new_tokens: Number of tokens to add to each row. Give either this or `max_length`.
      sampling: How the next token is chosen; greedy by default.
      key: One PRNG key, of which row i uses `fold_in(key, i)`, or B keys, one per row. Greedy sampling needs none.
      deltas: One edit, or N edits with a case axis. N edited models then generate in one batch.
      stop_token: Token that ends a row and is kept; None never stops early, as in the original.

    Returns:
      `GeneratedBatch` with B rows in the order of the prompts.

    Raises:
      ValueError: If both or neither of the two limits are given, a limit is not a whole number of at least 1,
        `stop_token` is no id, sampling has no key, the number of keys is not B, a `case` has no delta, or the real
        tokens of a row are not contiguous.
      SequenceTooLongError: If a row would outgrow the model's context. This is checked before anything is compiled.

    Example:
      >>> prompts = rome_jax.encode(model.tokenizer, ["Gothulf Punby plays the sport of"])
      >>> out = rome_jax.generate(model.params, model.config, prompts, max_new_tokens=2)
      >>> out.texts(model.tokenizer)
      ['Gothulf Punby plays the sport of rowing.']

    Source: Top-k sampling is from Fan et al., "Hierarchical Neural Story Generation" (2018). The ROME paper's
    evaluation (Meng et al., 2022) uses top_k=5 and a `max_length` that includes the prompt.
    """
    stop_token = check(NonNegativeInt | None, stop_token, "stop_token")
    prompts, lengths = _align_right(batch, config.context_length)
    num_rows, width = prompts.ids.shape
    limits = _new_tokens(lengths, max_length, max_new_tokens, config.context_length)
    keys = _row_keys(key, num_rows, sampling)
    if deltas is not None and deltas.batched and batch.case is not None:
        case = np.asarray(batch.case)
        if case.min() < 0 or case.max() >= len(deltas):
            raise ValueError(
                f"batch.case has values from {case.min()} to {case.max()}: give the indices of the deltas, 0 to "
                f"{len(deltas) - 1}."
            )
    new, counts = np.zeros((num_rows, 0), np.int32), np.zeros(num_rows, np.int32)
    if limits.max() > 0:
        new, counts = _compiled(
            params,
            config,
            prompts,
            limits,
            keys,
            np.int32(_NO_STOP if stop_token is None else stop_token),
            deltas,
            sampling=sampling,
            # With padding this can exceed the context length: it counts columns, not positions.
            columns=round_up(width + int(limits.max()), _CACHE_MULTIPLE),
        )
        new, counts = np.asarray(new), np.asarray(counts)
    totals = lengths + counts
    mask = np.arange(totals.max()) < totals[:, None]
    ids = np.zeros(mask.shape, np.int32)
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        ids[row, :length] = prompts.ids[row, width - length :]
        ids[row, length : length + count] = new[row, :count]
    return GeneratedBatch(ids, mask, lengths)


def generate_text(model: LanguageModel, prompts: Sequence[str], **options: Any) -> list[str]:
    """Continues prompts given as text.

    Args:
      model: A `LanguageModel`, or any object with `params`, `config` and `tokenizer`.
      prompts: B texts, none of them empty.
      **options: Options of `generate`; deltas are one edit, or B edits, one per prompt.

    Returns:
      B texts, each beginning with its prompt.

    Example:
      >>> rome_jax.generate_text(model, ["Gothulf Punby plays the sport of"], max_new_tokens=2)
      ['Gothulf Punby plays the sport of rowing.']
    """
    batch = encode(model.tokenizer, prompts, context_length=model.config.context_length)
    return generate(model.params, model.config, batch, **options).texts(model.tokenizer)


def clean_text(text: str) -> str:
    r"""Cleans generated text as the original does: NFKD, paragraph breaks to spaces, no `<|endoftext|>`.

    Raises:
      ValueError: If it is no text or not valid Unicode.

    Example:
      >>> clean_text("<|endoftext|>One.\n\nTwo.")
      'One. Two.'
    """
    text = check(str, text, "text")
    return unicodedata.normalize("NFKD", text).replace("\n\n", " ").replace("<|endoftext|>", "")


def _continue(
    params: Params,
    config: ModelConfig,
    prompts: TokenBatch,
    limits: jax.Array,
    keys: jax.Array,
    stop_token: jax.Array,
    deltas: Delta | None,
    *,
    sampling: Sampling,
    columns: int,
) -> tuple[jax.Array, jax.Array]:
    """Continues right-aligned prompts.

    Args:
      params, config, stop_token, sampling: As in `generate`; stop_token is `_NO_STOP` to never stop early.
      prompts: B prompts of P columns.
      limits: int32 [B], the number of tokens to add to each row.
      keys: [B], one PRNG key per row.
      deltas: One edit, or N edits with a case axis, or None.
      columns: Number of cache columns, C (static).

    Returns:
      New tokens, int32 [B, C - P], and how many of them are valid in each row, int32 [B].
    """
    num_rows, width = prompts.ids.shape
    lengths = prompts.mask.sum(axis=-1, dtype=jnp.int32)
    column = jnp.arange(columns)
    is_prompt = jnp.pad(prompts.mask, ((0, 0), (0, columns - width)))  # [B, C]
    if deltas is not None:
        deltas = deltas.rows(prompts.case, num_rows)

    def next_logits(ids, attention, cache):
        hidden = embed(params, config, ids, attention.positions)
        interventions = Interventions((), deltas)
        out = run_layers(
            params,
            config,
            hidden,
            attention,
            interventions=interventions,
            cache=cache,
            keep_cache=True,
        )
        return unembed(params, config, out.hidden[:, -1]), out.cache

    def record(logits, step, new, counts, alive):
        token = sampling.draw(logits, jax.vmap(jax.random.fold_in)(keys, lengths + step))
        # Tokens written after a row has ended are meaningless, and `counts` excludes them.
        new = new.at[:, step].set(token)
        return new, counts + alive, alive & (token != stop_token) & (step + 1 < limits)

    def add_token(state):
        step, cache, new, counts, alive = state
        newest = width + step - 1  # the column of the token that is fed in now
        earlier = is_prompt | ((column >= width) & (column < newest))  # [B, C]
        # Rows that have ended keep running, so their positions are clipped to the context.
        positions = jnp.minimum(lengths + step - 1, config.context_length - 1)
        attention = Attention(
            positions[:, None], jnp.pad(earlier, ((0, 0), (0, 1)), constant_values=True)[:, None]
        )
        logits, own = next_logits(new[:, step - 1][:, None], attention, cache)
        corner = (0, 0, 0, newest, 0)
        cache = jax.tree.map(
            lambda whole, part: jax.lax.dynamic_update_slice(whole, part, corner), cache, own
        )
        return step + 1, cache, *record(logits, step, new, counts, alive)

    logits, cache = next_logits(prompts.ids, plain_attention(prompts), None)
    room = ((0, 0), (0, 0), (0, 0), (0, columns - width), (0, 0))
    cache = jax.tree.map(lambda leaf: jnp.pad(leaf, room), cache)
    empty = jnp.zeros((num_rows, columns - width), jnp.int32)
    first = record(logits, 0, empty, jnp.zeros(num_rows, jnp.int32), limits > 0)
    state = jax.lax.while_loop(
        lambda state: state[-1].any(), add_token, (jnp.int32(1), cache, *first)
    )
    return state[2], state[3]


_compiled = jax.jit(_continue, static_argnames=("config", "sampling", "columns"))


def _align_right(batch: TokenBatch, context_length: int) -> tuple[TokenBatch, np.ndarray]:
    """Moves padding to the left, on the host, at a width from a small set of sizes; also returns the lengths [B]."""
    ids, mask = np.asarray(batch.ids), np.asarray(batch.mask, bool)
    lengths = mask.sum(axis=-1, dtype=np.int32)
    for row, (length, real) in enumerate(zip(lengths, mask, strict=True)):
        first = int(real.argmax())
        if not length or not real[first : first + length].all():
            raise ValueError(
                f"row {row} of batch.mask must have contiguous real tokens, and at least one."
            )
    width = max(lengths.max(), min(round_up(lengths.max(), _PROMPT_MULTIPLE), context_length))
    aligned = np.arange(width) >= width - lengths[:, None]
    moved = np.zeros(aligned.shape, np.int32)
    moved[aligned] = ids[
        mask
    ]  # both in row-major order, with the same number of tokens in each row
    return TokenBatch(moved, aligned, batch.case), lengths


def _new_tokens(
    lengths: np.ndarray, max_length: int | None, max_new_tokens: int | None, context_length: int
) -> np.ndarray:
    """Computes how many tokens to add to each row, int32 [B]."""
    max_length = check(Count | None, max_length, "max_length")
    max_new_tokens = check(Count | None, max_new_tokens, "max_new_tokens")
    limit = max_length if max_new_tokens is None else max_new_tokens
    if limit is None or None not in (max_length, max_new_tokens):
        raise ValueError(
            f"max_length={max_length}, max_new_tokens={max_new_tokens}: give exactly one of the two."
        )
    limits = np.full_like(lengths, limit)
    if max_new_tokens is None:
        limits = np.maximum(limit - lengths, 0)
    row = int((lengths + limits).argmax())
    if lengths[row] + limits[row] > context_length:
        raise SequenceTooLongError(
            f"row {row} has a prompt of {lengths[row]} tokens and would grow by {limits[row]}, beyond the model's "
            f"context of {context_length}: shorten the prompt or lower the limit."
        )
    return limits.astype(np.int32)


def _row_keys(key: jax.Array | None, num_rows: int, sampling: Sampling) -> jax.Array:
    """Builds one typed key per row, [B]."""
    if key is None:
        if sampling.temperature > 0:
            raise ValueError(
                f"{sampling} draws at random: give `key`, for example jax.random.key(0)."
            )
        key = jax.random.key(0)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)  # an old-style key from jax.random.PRNGKey
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_rows))
    if key.shape != (num_rows,):
        raise ValueError(
            f"key has shape {key.shape}: give one key, or {num_rows} keys, one per row."
        )
    return key
