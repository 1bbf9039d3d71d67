"""What a user asks for: make the model say `target_new` after `prompt` about `subject`."""

from __future__ import annotations

import dataclasses

SLOT = "{}"


class RequestError(ValueError):
    """A request that cannot be meant as it stands."""


class EditWarning(UserWarning):
    """An edit that was computed as asked and will probably disappoint.

    Example:
      >>> warnings.simplefilter("ignore", EditWarning)  # doctest: +SKIP
    """


@dataclasses.dataclass(frozen=True)
class EditRequest:
    """One fact to write.

    Attributes:
      prompt: text with exactly one `{}` where the subject stands; any other brace is literal text.
      subject: what the fact is about; braces are literal text.
      target_new: the target the model should produce; one leading space is added if there is none.
      target_true: what it says now, if known; only reports use it.
      case_id: number of the record in its data set; seeds of independent edits are derived from it.

    Raises:
      RequestError: no slot or several, an empty subject or target, white space around the subject or at the end of
        prompt or target.

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
        count = self.prompt.count(SLOT)
        if count != 1:
            raise RequestError(
                f"prompt={self.prompt!r} has {count} '{{}}'; write exactly one, where the subject stands."
            )
        if not self.subject.strip():
            raise RequestError(f"subject={self.subject!r} is empty: name what the fact is about.")
        if not self.target_new.strip():
            raise RequestError(
                f"target_new={self.target_new!r} is empty: give the target the model should produce."
            )
        if self.subject != self.subject.strip():
            raise RequestError(
                f"subject={self.subject!r} has white space around it, which would be taken for a part of the name: "
                "remove it."
            )
        if self.target_new != self.target_new.rstrip():
            raise RequestError(
                f"target_new={self.target_new!r} ends in white space, which the model would have to say: remove it."
            )
        if self.prompt != self.prompt.rstrip():
            raise RequestError(
                f"prompt={self.prompt!r} ends in white space, but targets bring their own leading space: "
                "remove it."
            )

    @property
    def text(self) -> str:
        """The prompt with the subject in it."""
        return fill(self.prompt, self.subject)

    @property
    def target_text(self) -> str:
        """The target as it is tokenised, with exactly one leading space."""
        return target_text(self.target_new)


def fill(template: str, text: str) -> str:
    """Puts `text` in the place of the one `{}`; unlike `str.format`, other braces mean nothing.

    Example:
      >>> fill("f(x) = {x, {}}", "{}")
      'f(x) = {x, {}}'
    """
    before, _, after = template.partition(SLOT)
    return before + text + after


def target_text(target: str) -> str:
    """A target with one leading space, as GPT tokenizers want words that continue a text."""
    return " " + target.lstrip()
