"""One fact or prompt: what is edited, or traced, and what is looked at beside it."""

from __future__ import annotations

from absl import flags

from rome_jax.data.request import EditRequest
from rome_jax.models.registry import SHIPPED
from rome_jax.terminal.edit_report import Prompts

# A held-out fact of factworld, which both embedded models know.
EXAMPLE = ("{} plays the sport of", "Gothulf Punby", "tennis")

PROMPT = flags.DEFINE_string("prompt", None, "Text with {} where the subject stands.")
SUBJECT = flags.DEFINE_string("subject", None, "What --prompt is about.")
TARGET_NEW = flags.DEFINE_string("target_new", None, "Target that the model should produce next.")
TARGET_TRUE = flags.DEFINE_string("target_true", None, "What it says now, if decoding errs.")
PARAPHRASES = flags.DEFINE_multi_string("paraphrase", [], "Another way to ask; repeatable.")
NEIGHBORS = flags.DEFINE_multi_string("neighbor", [], "A prompt that must stay; repeatable.")
TARGET = flags.DEFINE_string(
    "target", None, "Answer to --prompt to measure, of any length; default: the model's own."
)
CONTRAST = flags.DEFINE_string(
    "contrast", None, "Second answer to --prompt: measures the difference of log-probabilities."
)


def from_flags() -> EditRequest | None:
    """The request of the flags; see `read_request`."""
    return read_request(PROMPT.value, SUBJECT.value, TARGET_NEW.value, TARGET_TRUE.value)


def prompts() -> Prompts:
    """The paraphrases and neighbors of the flags."""
    return Prompts(PARAPHRASES.value, NEIGHBORS.value)


def read_request(
    prompt: str | None, subject: str | None, target_new: str | None, target_true: str | None
) -> EditRequest | None:
    """The request of the flags; None if all of --prompt, --subject and --target_new are left out.

    Raises:
      ValueError: some of them without the others, or a bad one.

    Example:
      >>> read_request("{} works as a", "Barack Obama", "painter", None).text
      'Barack Obama works as a'
    """
    values = (prompt, subject, target_new)
    if all(value is None for value in values):
        return None
    if any(value is None for value in values):
        raise ValueError("give --prompt, --subject and --target_new together.")
    return EditRequest(*values, target_true=target_true)


def example(model_name: str, target_true: str | None) -> EditRequest:
    """The default request of an embedded model.

    Raises:
      ValueError: another model, which has none.
    """
    if model_name not in SHIPPED:
        raise ValueError("give --prompt, --subject and --target_new together.")
    return EditRequest(*EXAMPLE, target_true=target_true)
