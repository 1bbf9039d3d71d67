"""Edit requests: the model should produce `target_new` after `prompt` about `subject`."""

from __future__ import annotations

import dataclasses

from rome_jax.files.checked import check

SLOT = "{}"


class RequestError(ValueError):
    """An edit request is incomplete or ambiguous."""


class EditWarning(UserWarning):
    """An edit was computed as requested but will probably not work well.

    Example:
      >>> import warnings
      >>> with warnings.catch_warnings():
      ...     warnings.simplefilter("ignore", EditWarning)
    """


@dataclasses.dataclass(frozen=True)
class EditRequest:
    """One fact to write into a model.

    Attributes:
      prompt: Text with exactly one `{}` in the place of the subject; any other brace is literal text.
      subject: What the fact is about; braces are literal text.
      target_new: The target the model should produce; a leading space is added if there is none.
      target_true: The target the model produces now, if known; only reports use it.
      case_id: Number of the record in its data set; the seeds of independent edits are derived from it.

    Raises:
      RequestError: If a text is no text or not valid Unicode, the prompt does not have exactly one slot, the subject or
        target is empty, or there is white space around the subject or at the end of the prompt or target.

    Example:
      >>> EditRequest("{} plays the sport of", "LeBron James", "football").text
      'LeBron James plays the sport of'
    """

    prompt: str
    subject: str
    target_new: str
    target_true: str | None = None
    case_id: int = 0

    def __post_init__(self):
        kinds = dict.fromkeys(("prompt", "subject", "target_new"), str)
        for field, kind in {**kinds, "target_true": str | None, "case_id": int}.items():
            value = check(kind, getattr(self, field), field, error=RequestError)
            object.__setattr__(self, field, value)  # the dataclass is frozen
        count = self.prompt.count(SLOT)
        if count != 1:
            raise RequestError(
                f"prompt={self.prompt!r} has {count} '{{}}': write exactly one, in the place of the subject."
            )
        if not self.subject.strip():
            raise RequestError(f"subject={self.subject!r} is empty: name what the fact is about.")
        if not self.target_new.strip():
            raise RequestError(
                f"target_new={self.target_new!r} is empty: give the target the model should produce."
            )
        if self.subject != self.subject.strip():
            raise RequestError(
                f"subject={self.subject!r} has white space around it, which would become part of the name: remove it."
            )
        if self.target_new != self.target_new.rstrip():
            raise RequestError(
                f"target_new={self.target_new!r} ends in white space, which the model would have to produce: remove it."
            )
        if self.prompt != self.prompt.rstrip():
            raise RequestError(
                f"prompt={self.prompt!r} ends in white space, but targets begin with a space: remove it."
            )

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        return fill(self.prompt, self.subject)

    @property
    def target_text(self) -> str:
        """The target as it is tokenized, with exactly one leading space."""
        return target_text(self.target_new)


def fill(template: str, text: str) -> str:
    """Replaces the one `{}` of a template by a text; unlike in `str.format`, other braces are literal text.

    Example:
      >>> fill("f(x) = {x, {}}", "{}")
      'f(x) = {x, {}}'
    """
    before, _, after = template.partition(SLOT)
    return before + text + after


def target_text(target: str) -> str:
    """Returns a target with exactly one leading space, as GPT tokenizers expect of a word that continues a text.

    Example:
      >>> target_text("football")
      ' football'
    """
    return " " + target.lstrip()
