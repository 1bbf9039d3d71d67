"""Edit requests: the model should produce `target_new` after `prompt` about `subject`."""

from __future__ import annotations

import dataclasses

from rome_jax.files.checked import check_fields, shown

SLOT = "{}"


class RequestError(ValueError):
    """An edit request is incomplete or ambiguous."""


class EditWarning(UserWarning):
    """Edits were computed as requested but will probably not work well.

    One warning covers all edits of a call that have the same fault. Its sentence is about the worst of them.

    Attributes:
      sentence: What is wrong with the worst edit.
      fault: The fault in two or three words, such as "are too large"; empty for a warning about something else.
      count: Number of edits with this fault.
      total: Number of edits that were computed.
      severity: How bad the worst edit is, to compare warnings of the same fault.

    Example:
      >>> print(EditWarning("the edit of 'Rome' is too large.", "are too large", count=2, total=8))
      2 of 8 edits are too large: the edit of 'Rome' is too large.
      >>> import warnings
      >>> with warnings.catch_warnings():
      ...     warnings.simplefilter("ignore", EditWarning)
    """

    def __init__(
        self,
        sentence: str,
        fault: str = "",
        *,
        count: int = 1,
        total: int = 1,
        severity: float = 0.0,
    ):
        super().__init__(f"{count} of {total} edits {fault}: {sentence}" if total > 1 else sentence)
        self.sentence, self.fault = sentence, fault
        self.count, self.total, self.severity = count, total, severity


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
        check_fields(self, error=RequestError)
        count = self.prompt.count(SLOT)
        if count != 1:
            raise RequestError(
                f"prompt={shown(self.prompt)} has {count} '{{}}': write exactly one, in the place of the subject."
            )
        if not self.subject.strip():
            raise RequestError(
                f"subject={shown(self.subject)} is empty: name what the fact is about."
            )
        if not self.target_new.strip():
            raise RequestError(
                f"target_new={shown(self.target_new)} is empty: give the target the model should produce."
            )
        if self.subject != self.subject.strip():
            raise RequestError(
                f"subject={shown(self.subject)} has white space around it, which would become part of the name: "
                "remove it."
            )
        if self.target_new != self.target_new.rstrip():
            raise RequestError(
                f"target_new={shown(self.target_new)} ends in white space, which the model would have to produce: "
                "remove it."
            )
        if self.prompt != self.prompt.rstrip():
            raise RequestError(
                f"prompt={shown(self.prompt)} ends in white space, but targets begin with a space: remove it."
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
