"""The request that `eval.edit` is to write, from flags or by default."""

from __future__ import annotations

from rome_jax.data.request import EditRequest
from rome_jax.models.registry import SHIPPED

# A held-out fact of factworld, which both embedded models know.
EXAMPLE = ("{} plays the sport of", "Gothulf Punby", "tennis")


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
