"""The settings of a hypernetwork's training, with those that the shipped networks were trained with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic

from rome_jax.edit.config import MethodName
from rome_jax.files.checked import Count, NonNegativeFloat, PositiveFloat, Seed, check_fields


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a hypernetwork is trained.

    Attributes:
      learning_rate: The learning rate of Adam.
      rate_learning_rate: The learning rate of Adam for MEND's rates.
      batch_size: The number of edits per step.
      edit_weight: The weight of the edit loss in training and validation.
      locality_weight: The weight of the KL in training and validation. In KE's training it is only the initial value
        of the Lagrange multiplier.
      margin: The largest KL that KE's constraint allows, in nats; None for MEND.
      margin_min: The value below which the margin does not shrink, in nats.
      margin_decay: The factor by which the margin shrinks after each successful validation.
      margin_success: The share of validation edits above which a validation is successful.
      multiplier_rate: The step size of the Lagrange multiplier's ascent.
      clip: The largest global norm of a gradient; larger gradients are scaled down.
      max_steps: The number of steps after which training ends at the latest.
      validate_every: The number of steps between validations. Each validation writes a checkpoint.
      patience: The number of validations without a better loss after which training ends.
      num_validation: The number of edits in a validation, the same edits each time.
      seed: The seed of the initialization and of the examples.

    Raises:
      ValueError: If a value has another type or is out of range; the message names it.
    """

    learning_rate: PositiveFloat
    rate_learning_rate: PositiveFloat = 1e-4
    batch_size: Count = 32
    edit_weight: NonNegativeFloat = 0.1
    locality_weight: NonNegativeFloat = 1.0
    margin: PositiveFloat | None = None
    margin_min: NonNegativeFloat = 1e-5
    margin_decay: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.8
    margin_success: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.9
    multiplier_rate: NonNegativeFloat = 0.1
    clip: PositiveFloat = 100.0
    max_steps: Count = 4000
    validate_every: Count = 200
    patience: Count = 5
    num_validation: Count = 128
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def for_kind(cls, kind: MethodName, **changes: Any) -> TrainingConfig:
        """Returns the settings that the shipped networks were trained with.

        Args:
          kind: The method, MEND or KE.
          **changes: Fields to set differently.

        Example:
          >>> TrainingConfig.for_kind(MethodName.MEND).edit_weight
          0.1
        """
        return cls(**(_TRAINING[kind] | changes))


_TRAINING: Mapping[MethodName, dict[str, Any]] = {
    MethodName.MEND: {"learning_rate": 3e-4, "rate_learning_rate": 1e-3, "max_steps": 1000},
    MethodName.KE: {
        "learning_rate": 1e-3,
        "edit_weight": 1.0,
        "margin": 1e-2,
        "max_steps": 3000,
    },
}
