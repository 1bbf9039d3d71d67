"""EMMET: many facts written exactly (Gupta et al., 2024, "A Unified Framework for Model Editing", arXiv 2403.14236).

A = λ C + ν I in the closed form of `rome_jax.edit.methods.closed_form`, and s = 0 for one request, which makes it an
edit with equality constraints like ROME:

    ΔW = A⁻¹ K (Kᵀ A⁻¹ K + ε I)⁻¹ Rᵀ  (section 3.3)

For several requests, the authors' code adds s = ε, which bounds the change if keys are similar.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from rome_jax.edit.config import MethodName
from rome_jax.edit.methods.closed_form import ClosedForm
from rome_jax.edit.penalty import Penalty
from rome_jax.edit.spread_config import SPREAD_FACTWORLD, MEMITConfig
from rome_jax.files.checked import NonNegativeFloat, PositiveFloat
from rome_jax.moments.second_moment import SecondMoment

_EMMET: Mapping[str, Mapping[str, Any]] = {
    "gpt2-xl": {"layers": (17,), "v_num_grad_steps": 20, "mom2_update_weight": 1000.0},
    "gpt-j-6b": {"layers": (5,)},
    "smollm2-135m": {"layers": (2, 3, 4), "mom2_update_weight": 100.0, "emmet_lambda": 10.0},
    "factworld-gpt2": {**SPREAD_FACTWORLD, "mom2_update_weight": 10.0, "emmet_lambda": 10.0},
    "factworld-gptj": {**SPREAD_FACTWORLD, "mom2_update_weight": 10.0, "emmet_lambda": 10.0},
}


@dataclasses.dataclass(frozen=True)
class EMMETConfig(MEMITConfig):
    """Hyperparameters of EMMET. Names follow its hyperparameter files.

    Attributes:
      mom2_update_weight: λ, the weight of what a layer already stores.
      update_norm_lambda: ν, the weight of ‖ΔW‖².
      emmet_lambda: ε, the slack if several requests are written at once.

    The other attributes are those of `MEMITConfig`.

    Raises:
      ValueError: If a value has another type or is out of range.

    Example:
      >>> EMMETConfig.for_model("gpt2-xl").layers
      (17,)
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = _EMMET

    mom2_update_weight: PositiveFloat = 1.0
    update_norm_lambda: NonNegativeFloat = 0.0
    emmet_lambda: NonNegativeFloat = 0.1


def _penalty(config: EMMETConfig, moment: SecondMoment | None) -> Penalty:
    """Returns λ C + ν I."""
    return Penalty.of(moment, config.mom2_update_weight, config.update_norm_lambda)


def _slack(config: EMMETConfig, num_requests: int) -> float:
    """Returns ε, or 0 for one request."""
    return config.emmet_lambda if num_requests > 1 else 0.0


EMMET = ClosedForm(MethodName.EMMET, _penalty, _slack)

compute = EMMET.compute
compute_deltas = EMMET.compute_deltas
compute_joint_delta = EMMET.compute_joint_delta
make_editor = EMMET.make_editor
