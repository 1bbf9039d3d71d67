"""Flags of training: of hypernetworks, and of the factworld models."""

from __future__ import annotations

from typing import Any

from absl import flags

from eval.flags import define, running
from rome_jax.edit.config import MethodName
from rome_jax.edit.hypernetworks.networks import CONFIG_TYPES
from rome_jax.edit.hypernetworks.training import TrainingConfig

FAMILY = flags.DEFINE_enum(
    "family", None, ["gpt2", "gptj"], "Architecture of the model.", case_sensitive=False
)
STEPS = flags.DEFINE_integer(
    "steps",
    None,
    "Number of steps of Adam. Default: that of the shipped model.",
    lower_bound=1,
    upper_bound=define.MOST,
)
RATE = flags.DEFINE_float(
    "learning_rate", None, "Learning rate of Adam. Default: that of the shipped networks."
)
define.finite(RATE)
MAX_STEPS = flags.DEFINE_integer(
    "max_steps",
    None,
    "Number of steps of Adam after which training ends at the latest. Default: that of the shipped networks.",
    lower_bound=1,
    upper_bound=define.MOST,
)
EVERY = flags.DEFINE_integer(
    "validate_every",
    100,
    "Number of steps between validations.",
    lower_bound=1,
    upper_bound=define.MOST,
)
PATIENCE = flags.DEFINE_integer(
    "patience",
    5,
    "Number of validations without a better loss after which training ends.",
    lower_bound=1,
    upper_bound=define.MOST,
)


def read_settings(kind: MethodName) -> TrainingConfig:
    """Returns the settings of a hypernetwork's training.

    Args:
      kind: The method that the hypernetwork belongs to.

    Raises:
      ValueError: If the method has no hypernetwork, or a flag has an invalid value.
    """
    if kind not in CONFIG_TYPES:
        raise ValueError(
            f"--alg_name={kind} has no hypernetwork to train: give {' or '.join(CONFIG_TYPES)}."
        )
    given: dict[str, Any] = {"learning_rate": RATE.value, "max_steps": MAX_STEPS.value}
    return TrainingConfig.for_kind(
        kind,
        batch_size=running.BATCH.value,
        validate_every=EVERY.value,
        patience=PATIENCE.value,
        seed=running.SEED.value,
        **{name: value for name, value in given.items() if value is not None},
    )
