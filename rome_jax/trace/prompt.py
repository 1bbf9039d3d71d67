"""A prompt to trace: its tokens, where the subject is, and what it should say."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.data.tokens import SequenceTooLongError, round_up, token_span
from rome_jax.trace.restore import Tokens

_LENGTH_MULTIPLE = 8  # few shapes, few programs


@dataclasses.dataclass(frozen=True)
class TracePrompt:
    """A prompt in tokens.

    Attributes:
      text: of the prompt.
      subject: text of the subject.
      ids: the prompt's tokens.
      input_tokens: the text of each.
      span: (first, last + 1) token of the subject.
      target: tokens whose probability is measured; None for the model's own answer.
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
        tokenizer,
        text: str,
        subject: str,
        *,
        characters: tuple[int, int] | None = None,
        target: str | None = None,
    ) -> TracePrompt:
        """Tokenises a prompt and finds its subject.

        Args:
          tokenizer: with character offsets.
          text: without white space at its end.
          subject: must stand in it.
          characters: (start, end) of the subject, where it stands more than once.
          target: what to measure the probability of, with a space put before it if it has none.

        Raises:
          ValueError: a subject that is empty, not there, or there more than once without `characters`; a prompt of
            one token; an empty target.

        Example:
          >>> TracePrompt.of(tokenizer, "The Space Needle is in", "The Space Needle").span  # doctest: +SKIP
          (0, 4)
        """
        places = [match.span() for match in re.finditer(re.escape(subject), text)]
        if not subject.strip() or not places:
            raise ValueError(
                f"subject={subject!r} is not in the prompt {text!r}: write it as it stands there."
            )
        if characters is None:
            if len(places) > 1:
                raise ValueError(
                    f"subject={subject!r} stands {len(places)} times in the prompt {text!r}: say which by its "
                    f"characters, one of {places}."
                )
            characters = places[0]
        elif text[slice(*characters)] != subject:
            raise ValueError(
                f"characters={characters} of the prompt are {text[slice(*characters)]!r}, not the subject {subject!r}."
            )
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = tuple(encoded["input_ids"])
        if len(ids) < 2:
            raise ValueError(
                f"the prompt {text!r} is a single token: there is nothing to trace between subject and answer."
            )
        target_ids = None
        if target is not None:
            if not target.strip():
                raise ValueError("target is empty: give the text whose probability is measured.")
            spaced = target if target[0].isspace() else f" {target}"
            target_ids = tuple(tokenizer(spaced, add_special_tokens=False)["input_ids"])
        pieces = tuple(tokenizer.decode([token]) for token in ids)
        span = token_span(encoded["offset_mapping"], *characters)
        return cls(text, subject, ids, pieces, span, target_ids)

    @property
    def answer_columns(self) -> np.ndarray:
        """int [M], the columns whose predictions are the answer's tokens."""
        return len(self.ids) - 1 + np.arange(len(self.target or (0,)))

    def arrays(self, context_length: int) -> Tokens:
        """For the device, in few sizes.

        Raises:
          SequenceTooLongError: longer than the model's context.
        """
        ids = self.ids + (self.target or (0,))[:-1]
        if len(ids) > context_length:
            raise SequenceTooLongError(
                f"the prompt {self.text!r} has {len(ids)} tokens with its target, more than the model's context of "
                f"{context_length}: shorten it."
            )
        length = min(round_up(len(ids), _LENGTH_MULTIPLE), context_length)
        column = np.arange(length)
        return Tokens(
            np.pad(np.array(ids, np.int32), (0, length - len(ids))),
            column < len(ids),
            (self.span[0] <= column) & (column < self.span[1]),
            np.int32(len(self.ids) - 1),
            None if self.target is None else np.array(self.target, np.int32),
        )

    def spread(self, noise: jax.Array, length: int) -> jax.Array:
        """Noise of the subject's tokens [S, n, D] -> [S, T, D].

        Raises:
          ValueError: noise for another number of tokens.
        """
        first, stop = self.span
        if noise.shape[1] != stop - first:
            raise ValueError(
                f"noise has shape {noise.shape}, but the subject {self.subject!r} has {stop - first} tokens: its "
                "second axis must be as long."
            )
        return jnp.pad(noise, ((0, 0), (first, length - stop), (0, 0)))
