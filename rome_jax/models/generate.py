"""Text generation with a key-value cache: greedy or top-k, many rows at once, each under its own edit.

Prompts are aligned on the right, so that all rows write the same cache column at each step; the prompt goes through
the layers once, then one compiled loop adds a token at a time. What a row becomes depends on its prompt, its edit
and its random key alone: not on padding, nor on the other rows.

Axes: B rows, P prompt columns, C cache columns, T tokens, N new tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import unicodedata
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rome_jax.data.tokens import SequenceTooLongError, TokenBatch, encode, round_up
from rome_jax.models.config import ModelConfig
from rome_jax.models.forward import Params, embed, plain_attention, run_layers, unembed
from rome_jax.models.interventions import Delta
from rome_jax.models.layers import Attention, Interventions

# Prompts and caches come in few sizes, so that few programs are compiled.
_PROMPT_MULTIPLE = 16
_CACHE_MULTIPLE = 32
_NO_STOP = -1  # no token has this id


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits.

    Attributes:
      temperature: divides the logits; 0 takes the most likely token and ignores the key.
      top_k: draw among the k most likely tokens only; None, or more than there are, means all.

    Raises:
      ValueError: a temperature below 0 or not finite, a top_k below 1.

    Example:
      >>> Sampling(top_k=5)  # what the original draws its context templates and evaluation texts with
      Sampling(temperature=1.0, top_k=5)
    """

    temperature: float = 1.0
    top_k: int | None = None

    def __post_init__(self):
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(
                f"temperature={self.temperature}: it must be 0 (greedy) or a positive number."
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: it must be at least 1, or None for all tokens.")

    @classmethod
    def greedy(cls) -> Sampling:
        """The most likely token at each step."""
        return cls(temperature=0.0)

    def draw(self, logits: jax.Array, keys: jax.Array) -> jax.Array:
        """Float logits [B, V] and B keys -> int32 token ids [B]; row i depends on row i and key i alone."""
        if self.temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        top_k = min(self.top_k or logits.shape[-1], logits.shape[-1])
        candidates = None
        if top_k < logits.shape[-1]:
            logits, candidates = jax.lax.top_k(logits, top_k)
        # The maximum becomes 0 first: a temperature close to 0 then gives -inf elsewhere and never NaN.
        scaled = (logits - logits.max(axis=-1, keepdims=True)) / self.temperature
        drawn = jax.vmap(jax.random.categorical)(keys, scaled)
        if candidates is not None:
            drawn = jnp.take_along_axis(candidates, drawn[:, None], axis=-1)[:, 0]
        return drawn.astype(jnp.int32)


@struct.dataclass
class GeneratedBatch:
    """Prompts and their continuations, each row contiguous and padded on the right, on the host.

    Attributes:
      ids: int32 [B, T].
      mask: bool [B, T], True for real tokens.
      prompt_lengths: int32 [B], how many of them are the prompt's.
    """

    ids: np.ndarray
    mask: np.ndarray
    prompt_lengths: np.ndarray

    def tokens(self, *, with_prompt: bool = True) -> list[list[int]]:
        """The ids of each row without padding, from its prompt or from its first new token on."""
        starts = np.zeros_like(self.prompt_lengths) if with_prompt else self.prompt_lengths
        ends = self.mask.sum(axis=-1)
        return [row[a:b].tolist() for row, a, b in zip(self.ids, starts, ends, strict=True)]

    def texts(self, tokenizer, *, with_prompt: bool = True) -> list[str]:
        """Each row decoded, special tokens included; see `tokens`."""
        return [
            tokenizer.decode(row, clean_up_tokenization_spaces=False)
            for row in self.tokens(with_prompt=with_prompt)
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

    The randomness of a token comes from the row's key and the token's place in its own sequence. So row i of 5 draws
    what row i of 10 draws, and generating from a generated text continues as one longer run would have.

    Args:
      params, config: the model.
      batch: B prompts, padded on either side; `batch.case` says which delta each row sees.
      max_length: fill each row up to this many tokens, ITS PROMPT INCLUDED, as the original does; a row whose prompt
        is that long already stays as it is. (The original then adds nothing to any row.)
      max_new_tokens: add this many tokens to each row. Give this or `max_length`.
      sampling: greedy by default.
      key: one PRNG key, of which row i takes `fold_in(key, i)`, or B keys, one a row. Greedy needs none.
      deltas: one edit, or N with a case axis: N edited models generate in one batch.
      stop_token: a row ends after this token, which is kept; None never stops early, as in the original.

    Returns:
      `GeneratedBatch` with B rows in the order given.

    Raises:
      ValueError: both or neither of the two limits, a limit below 1, sampling without a key, a number of keys other
        than B, a `case` that names no delta, or a mask that is not one run of real tokens in each row.
      SequenceTooLongError: a row would outgrow the model's context; raised before anything is compiled.

    Example:
      >>> prompts = encode(model.tokenizer, ["The Space Needle is in"])  # doctest: +SKIP
      >>> out = generate(model.params, model.config, prompts, max_new_tokens=5)  # doctest: +SKIP
      >>> out.texts(model.tokenizer)  # doctest: +SKIP

    Source: top-k sampling is from Fan et al., "Hierarchical Neural Story Generation" (2018); top_k=5 and a
    `max_length` that counts the prompt are what the ROME paper's evaluation uses (Meng et al., 2022).
    """
    prompts, lengths = _align_right(batch, config.context_length)
    num_rows, width = prompts.ids.shape
    limits = _new_tokens(lengths, max_length, max_new_tokens, config.context_length)
    keys = _row_keys(key, num_rows, sampling)
    if deltas is not None and deltas.batched and batch.case is not None:
        case = np.asarray(batch.case)
        if case.min() < 0 or case.max() >= len(deltas):
            raise ValueError(
                f"batch.case holds {case.min()} to {case.max()}, but the deltas are 0 to {len(deltas) - 1}."
            )
    new, counts = np.zeros((num_rows, 0), np.int32), np.zeros(num_rows, np.int32)
    if limits.max() > 0:
        half = params["wte"]["embedding"].dtype.itemsize < 4
        run = _compiled_half_on_cpu if half and jax.default_backend() == "cpu" else _compiled
        new, counts = run(
            params,
            config,
            prompts,
            limits,
            keys,
            np.int32(_NO_STOP if stop_token is None else stop_token),
            deltas,
            sampling=sampling,
            # Padding may push this beyond the context: it is columns, not positions.
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


def generate_text(model, prompts: Sequence[str], **options) -> list[str]:
    """Prompts and their continuations as text, of a model with `.params`, `.config` and `.tokenizer`.

    Args:
      model: what `load_model` returns.
      prompts: B texts, none empty.
      **options: as for `generate`; deltas are one edit or B, one a prompt.

    Returns:
      B texts, each beginning with its prompt.

    Example:
      >>> generate_text(model, ["The Space Needle is in"], max_new_tokens=5)  # doctest: +SKIP
    """
    batch = encode(model.tokenizer, prompts, context_length=model.config.context_length)
    return generate(model.params, model.config, batch, **options).texts(model.tokenizer)


def clean_text(text: str) -> str:
    r"""Generated text as the original keeps it: NFKD, paragraph breaks to spaces, no `<|endoftext|>`.

    Example:
      >>> clean_text("<|endoftext|>One.\n\nTwo.")
      'One. Two.'
    """
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
    """Right-aligned prompts [B, P], limits [B], keys [B] -> new tokens [B, columns - P] and how many count [B]."""
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
        # What is written after a row has ended is nobody's: `counts` leaves it out.
        new = new.at[:, step].set(token)
        return new, counts + alive, alive & (token != stop_token) & (step + 1 < limits)

    def add_token(state):
        step, cache, new, counts, alive = state
        newest = width + step - 1  # the column that goes in now
        earlier = is_prompt | ((column >= width) & (column < newest))  # [B, C]
        # Rows that have ended run on, with positions that may not exist.
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


_jit = functools.partial(jax.jit, _continue, static_argnames=("config", "sampling", "columns"))
_compiled = _jit()
# CPUs multiply half precision in float32, and XLA would move that conversion of ALL weights and the whole cache out of
# the loop: three times the memory. Measured on a small GPT-2, the temporaries fall from 205 to 65 MB without this pass.
_compiled_half_on_cpu = _jit(
    compiler_options={"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}
)


def _align_right(batch: TokenBatch, context_length: int) -> tuple[TokenBatch, np.ndarray]:
    """The same prompts, on the host, with their padding on the left and a width from few sizes; their lengths [B]."""
    ids, mask = np.asarray(batch.ids), np.asarray(batch.mask, bool)
    lengths = mask.sum(axis=-1, dtype=np.int32)
    for row, (length, real) in enumerate(zip(lengths, mask, strict=True)):
        first = int(real.argmax())
        if not length or not real[first : first + length].all():
            raise ValueError(
                f"row {row} of the mask must be one run of real tokens, at least one long."
            )
    width = max(lengths.max(), min(round_up(lengths.max(), _PROMPT_MULTIPLE), context_length))
    aligned = np.arange(width) >= width - lengths[:, None]
    moved = np.zeros(aligned.shape, np.int32)
    moved[aligned] = ids[mask]  # both in row-major order, with as many tokens in each row
    return TokenBatch(moved, aligned, batch.case), lengths


def _new_tokens(
    lengths: np.ndarray, max_length: int | None, max_new_tokens: int | None, context_length: int
) -> np.ndarray:
    """How many tokens each row [B] may gain."""
    if (max_length is None) == (max_new_tokens is None):
        raise ValueError(
            f"max_length={max_length}, max_new_tokens={max_new_tokens}: give exactly one of the two."
        )
    limit = max_length if max_new_tokens is None else max_new_tokens
    if limit < 1:
        name = "max_length" if max_new_tokens is None else "max_new_tokens"
        raise ValueError(f"{name}={limit}: it must be at least 1.")
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
    """One typed key a row, [B]."""
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
        raise ValueError(f"key has shape {key.shape}: give one key, or {num_rows}, one a row.")
    return key
