"""ENCORE: MEMIT for long sequences of edits (Gupta et al., 2025, "Lifelong Sequential Knowledge Editing without Model
Degradation", arXiv 2502.01636).

A = λ C + K_p K_pᵀ + ν I and s = 1 in the closed form of `rome_jax.edit.methods.closed_form`. K_p are the keys of
earlier batches, and ν bounds the growth of the weights' norm. The optimization of z stops early, at the fourth
evaluation at which the target is the answer in all sampled contexts.

Not verified against the authors' code. That code stops by the number of tokens that are the argmax, and this one by
whole targets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from rome_jax.edit.config import MethodName, SolverDevice
from rome_jax.edit.methods.closed_form import ClosedForm
from rome_jax.edit.penalty import Penalty
from rome_jax.edit.spread_config import SPREAD_FACTWORLD, SPREAD_XL, MEMITConfig
from rome_jax.files.checked import NonNegativeFloat, NonNegativeInt
from rome_jax.moments.second_moment import SecondMoment

_ENCORE: Mapping[str, Mapping[str, Any]] = {
    "gpt2-xl": {**SPREAD_XL, "mom2_update_weight": 20_000.0},
    "smollm2-135m": {"layers": (2, 3, 4), "mom2_update_weight": 300.0},
    "factworld-gpt2": {**SPREAD_FACTWORLD, "mom2_update_weight": 30.0, "update_norm_lambda": 1.0},
    "factworld-gptj": {**SPREAD_FACTWORLD, "mom2_update_weight": 30.0, "update_norm_lambda": 1.0},
}


@dataclasses.dataclass(frozen=True)
class ENCOREConfig(MEMITConfig):
    """Hyperparameters of ENCORE.

    Attributes:
      argmax_evaluations: As in `SpreadConfig`; 4.
      update_norm_lambda: ν, the weight of ‖ΔW‖².
      solver_device: Where the systems of past keys are factored.

    The other attributes are those of `MEMITConfig`.

    Raises:
      ValueError: If a value has another type or is out of range.

    Example:
      >>> ENCOREConfig.for_model("gpt2-xl").mom2_update_weight
      20000.0
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = _ENCORE

    argmax_evaluations: NonNegativeInt = 4
    update_norm_lambda: NonNegativeFloat = 10.0
    solver_device: SolverDevice = SolverDevice.HOST


def _penalty(config: ENCOREConfig, moment: SecondMoment | None) -> Penalty:
    """Returns λ C + ν I."""
    return Penalty.of(moment, config.mom2_update_weight, config.update_norm_lambda)


ENCORE = ClosedForm(MethodName.ENCORE, _penalty, remembers=True)

compute = ENCORE.compute
compute_deltas = ENCORE.compute_deltas
compute_joint_delta = ENCORE.compute_joint_delta
make_editor = ENCORE.make_editor
