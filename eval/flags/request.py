"""The fact to edit, or the prompt to trace, and further prompts to compare."""

from __future__ import annotations

from absl import flags

from rome_jax.data import samples
from rome_jax.data.request import EditRequest
from rome_jax.files.checked import check
from rome_jax.models.registry import IN_WHEELS, SHIPPED
from rome_jax.terminal.edit_report import Prompts

# Default requests: a held-out fact of factworld, which both shipped models know, and a fact of the real world.
_FACTWORLD = ("{} plays the sport of", "Gothulf Punby", "tennis")
_REAL = (samples.EXAMPLE.prompt, samples.EXAMPLE.subject, samples.EXAMPLE.target_new)
EXAMPLES = dict.fromkeys(SHIPPED, _FACTWORLD) | dict.fromkeys(IN_WHEELS, _REAL)

PROMPT = flags.DEFINE_string(
    "prompt", None, "Prompt with {} in place of the subject, such as '{} plays the sport of'."
)
SUBJECT = flags.DEFINE_string("subject", None, "Subject of --prompt.")
TARGET_NEW = flags.DEFINE_string(
    "target_new", None, "Target that the edited model should produce after --prompt."
)
TARGET_TRUE = flags.DEFINE_string(
    "target_true",
    None,
    "Target before the edit, to compare with. Default: the greedy continuation of the unedited model.",
)
PARAPHRASES = flags.DEFINE_multi_string(
    "paraphrase",
    [],
    "Another wording of the prompt, subject included, that the edit should change too. Default: the known paraphrases "
    "of a factworld fact, or of the default request.",
)
NEIGHBORS = flags.DEFINE_multi_string(
    "neighbor",
    [],
    "A prompt about another subject that the edit should not change. Default: the known neighbors of a factworld fact, "
    "or of the default request.",
)
TARGET = flags.DEFINE_string(
    "target",
    None,
    "Answer to --prompt to measure, of any number of tokens. Default: the model's most likely next token.",
)
CONTRAST = flags.DEFINE_string(
    "contrast",
    None,
    "Second answer to --prompt; the log-probability of --target minus that of this answer is measured.",
)


def from_flags() -> EditRequest | None:
    """Returns the request that the flags describe; see `read_request`."""
    return read_request(PROMPT.value, SUBJECT.value, TARGET_NEW.value, TARGET_TRUE.value)


def prompts() -> Prompts:
    """Returns the paraphrases and neighbors that the flags name.

    Raises:
      ValueError: If one of them is not valid Unicode.
    """
    return Prompts(
        check(list[str], PARAPHRASES.value, "--paraphrase"),
        check(list[str], NEIGHBORS.value, "--neighbor"),
    )


def read_request(
    prompt: str | None, subject: str | None, target_new: str | None, target_true: str | None
) -> EditRequest | None:
    """Returns a request, or None if --prompt, --subject and --target_new are all omitted.

    Args:
      prompt, subject, target_new, target_true: The values of the flags.

    Raises:
      ValueError: If only some of the three flags are given, or one is invalid.

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
    """Returns the default request of a model that loads without the Hugging Face hub.

    Raises:
      ValueError: If the model is another one, which has no default request.
    """
    if model_name not in EXAMPLES:
        raise ValueError("give --prompt, --subject and --target_new together.")
    return EditRequest(*EXAMPLES[model_name], target_true=target_true)
