"""A prompt to trace: its tokens, its subject, and the answer that is measured."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rome_jax.data.tokenization import continuation_ids, encode_prompts
from rome_jax.data.tokens import SequenceTooLongError, round_up, token_span
from rome_jax.files.checked import check, shown

_LENGTH_MULTIPLE = 8  # Prompts are padded to few lengths, so that few programs are compiled.


@struct.dataclass
class TraceTokens:
    """The input of the runs: the prompt and all target tokens but the last, padded on the right.

    Attributes:
      ids: int32 [T].
      mask: bool [T], True for real tokens.
      subject: bool [T], True for the subject's tokens.
      last: int32 [] column of the prompt's last token.
      target: int32 [M] tokens of the answer; None for the most likely next token of the clean run.
    """

    ids: jax.Array
    mask: jax.Array
    subject: jax.Array
    last: jax.Array
    target: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class TracePrompt:
    """A prompt in tokens.

    Attributes:
      text: Text of the prompt.
      subject: Text of the subject.
      ids: Tokens of the prompt.
      input_tokens: Text of each token.
      span: (first, last + 1) token of the subject.
      target: Tokens of the answer that is measured; None for the model's own answer.
    """

    text: str
    subject: str
    ids: tuple[int, ...]
    input_tokens: tuple[str, ...]
    span: tuple[int, int]
    target: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        text: str,
        subject: str,
        *,
        characters: tuple[int, int] | None = None,
        target: str | None = None,
    ) -> TracePrompt:
        """Tokenizes a prompt and finds the tokens of its subject.

        Args:
          tokenizer: Fast tokenizer of `transformers`, which knows the characters that each token covers.
          text: Prompt without white space at its end.
          subject: Part of the prompt that is corrupted.
          characters: (start, end) of the subject in `text`; needed only if the subject occurs more than once.
          target: Answer to measure; a space is put before it unless it begins with white space. None for the model's
            own answer.

        Returns:
          The prompt in tokens.

        Raises:
          ValueError: If the subject is empty, is not in the prompt, or occurs more than once and `characters` is None;
            if `characters` do not select it; if the prompt is a single token; if the target is empty; or if one of them
            is no text or not valid Unicode.

        Example:
          >>> text = "Gothulf Punby plays the sport of"
          >>> prompt = TracePrompt.of(model.tokenizer, text, "Gothulf Punby")
          >>> prompt.input_tokens[slice(*prompt.span)]
          ('Gothulf', ' P', 'unby')
        """
        text, subject = check(str, text, "prompt"), check(str, subject, "subject")
        target = check(str | None, target, "target")
        characters = check(tuple[int, int] | None, characters, "characters")
        occurrences = [match.span() for match in re.finditer(re.escape(subject), text)]
        if not subject.strip() or not occurrences:
            raise ValueError(
                f"subject={shown(subject)} is not in the prompt {shown(text)}: give it exactly as the prompt spells it."
            )
        if characters is None:
            if len(occurrences) > 1:
                raise ValueError(
                    f"subject={shown(subject)} occurs {len(occurrences)} times in the prompt {shown(text)}: choose one "
                    f"with characters, from {occurrences}."
                )
            characters = occurrences[0]
        elif text[slice(*characters)] != subject:
            raise ValueError(
                f"characters={characters} of the prompt are {shown(text[slice(*characters)])}, not the subject "
                f"{shown(subject)}: give one of {occurrences}."
            )
        (encoded,) = encode_prompts(tokenizer, [text])
        ids = tuple(encoded.ids)
        if len(ids) < 2:
            raise ValueError(
                f"the prompt {shown(text)} is a single token: give a longer one, with text after the subject."
            )
        target_ids = None
        if target is not None:
            if not target.strip():
                raise ValueError(
                    f"target is empty ({shown(target)}): give the text whose probability is measured."
                )
            spaced = target if target[0].isspace() else f" {target}"
            target_ids = tuple(continuation_ids(tokenizer, [spaced])[0])
        pieces = tuple(tokenizer.decode([token]) for token in ids)
        span = token_span(encoded.offsets, *characters)
        return cls(text, subject, ids, pieces, span, target_ids)

    @property
    def answer_columns(self) -> np.ndarray:
        """The columns whose predictions are the answer's tokens, int [M]."""
        return len(self.ids) - 1 + np.arange(len(self.target or (0,)))

    def arrays(self, context_length: int) -> TraceTokens:
        """Returns the input of the runs, padded to one of a few lengths.

        Args:
          context_length: Most tokens that the model can read.

        Raises:
          SequenceTooLongError: If the prompt and its target are longer than the context.
        """
        ids = self.ids + (self.target or (0,))[:-1]
        if len(ids) > context_length:
            raise SequenceTooLongError(
                f"the prompt {shown(self.text)} has {len(ids)} tokens with its target, more than the model's context "
                f"of {context_length}: shorten it."
            )
        length = min(round_up(len(ids), _LENGTH_MULTIPLE), context_length)
        column = np.arange(length)
        return TraceTokens(
            jnp.asarray(np.pad(np.array(ids, np.int32), (0, length - len(ids)))),
            jnp.asarray(column < len(ids)),
            jnp.asarray((self.span[0] <= column) & (column < self.span[1])),
            jnp.asarray(np.int32(len(self.ids) - 1)),
            None if self.target is None else jnp.asarray(np.array(self.target, np.int32)),
        )

    def spread(self, noise: jax.Array, length: int) -> jax.Array:
        """Puts the noise of the subject's tokens at their columns.

        Args:
          noise: [S, n, D] noise for the n tokens of the subject.
          length: T, columns of the result.

        Returns:
          [S, T, D], zero outside of the subject.

        Raises:
          ValueError: If the noise is for another number of tokens.
        """
        first, stop = self.span
        if noise.shape[1] != stop - first:
            raise ValueError(
                f"noise has shape {noise.shape}, but the subject {shown(self.subject)} has {stop - first} tokens: give "
                f"noise of shape [samples, {stop - first}, width]."
            )
        return jnp.pad(noise, ((0, 0), (first, length - stop), (0, 0)))
