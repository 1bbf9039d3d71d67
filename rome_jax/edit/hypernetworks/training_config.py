"""The settings of a hypernetwork's training, with those that the shipped networks were trained with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rome_jax.edit.config import MethodName


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
      ValueError: If a value is out of range, with its name.
    """

    learning_rate: float
    rate_learning_rate: float = 1e-4
    batch_size: int = 32
    edit_weight: float = 0.1
    locality_weight: float = 1.0
    margin: float | None = None
    margin_min: float = 1e-5
    margin_decay: float = 0.8
    margin_success: float = 0.9
    multiplier_rate: float = 0.1
    clip: float = 100.0
    max_steps: int = 4000
    validate_every: int = 200
    patience: int = 5
    num_validation: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        positive = "learning_rate rate_learning_rate batch_size clip max_steps validate_every"
        for field in (*positive.split(), "patience", "num_validation"):
            if getattr(self, field) <= 0:
                raise ValueError(f"{field}={getattr(self, field)} must be positive.")
        for field in ("edit_weight", "locality_weight", "margin_min", "multiplier_rate"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field}={getattr(self, field)} must not be negative.")
        if self.margin is not None and self.margin <= 0:
            raise ValueError(f"margin={self.margin} must be positive, or None for no constraint.")
        if not 0 < self.margin_decay <= 1:
            raise ValueError(f"margin_decay={self.margin_decay} must be above 0 and at most 1.")

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
