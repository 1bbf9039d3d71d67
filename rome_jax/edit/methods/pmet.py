"""PMET: precise targets from attention and MLP together (Li et al., 2024, "PMET: Precise Model Editing in a
Transformer", arXiv 2308.08742, section 4).

A = λ C and s = 1 as in MEMIT, in the closed form of `rome_jax.edit.methods.closed_form`. Two vectors are optimized, one
at the output of the last edited layer's attention and one at its MLP's, so that the target of the MLP need not carry
what attention can supply; only the MLPs are written. A layer takes 1 / √(layers left) of the missing output.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from rome_jax.edit.config import MethodName
from rome_jax.edit.methods.closed_form import ClosedForm
from rome_jax.edit.methods.memit import MEMIT
from rome_jax.edit.spread_config import SPREAD_FACTWORLD, SPREAD_J, MEMITConfig
from rome_jax.edit.stages.inputs import EditInputs
from rome_jax.edit.stages.states import optimize_outputs, read_outputs
from rome_jax.edit.stages.value import ValueResult
from rome_jax.edit.warm_start import FindStarts
from rome_jax.files.checked import NonNegativeFloat, PositiveFloat
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Delta

_PMET: Mapping[str, Mapping[str, Any]] = {
    "gpt-j-6b": {**SPREAD_J, "v_num_grad_steps": 30, "mom2_update_weight": 6000.0},
    "smollm2-135m": {
        "layers": (2, 3, 4),
        "v_lr": 0.5,
        "clamp_norm_factor": 4.0,
        "kl_factor": 0.0625,
        "mom2_update_weight": 300.0,
    },
    # The MLP outputs of these models are short compared with the residual stream, so the targets need a wide ball.
    "factworld-gpt2": {**SPREAD_FACTWORLD, "clamp_norm_factor": 20.0, "mom2_update_weight": 100.0},
    "factworld-gptj": {**SPREAD_FACTWORLD, "clamp_norm_factor": 20.0, "mom2_update_weight": 100.0},
}


@dataclasses.dataclass(frozen=True)
class PMETConfig(MEMITConfig):
    """Hyperparameters of PMET. Names follow its hyperparameter files.

    Attributes:
      nll_loss_factor: Factor of the negative log-likelihood in the loss. While the target is the answer in all
        contexts, the factor is 0.1, and the optimization stops once the KL term is at most 0.01.

    The other attributes are those of `MEMITConfig`.

    Raises:
      ValueError: If a value has another type or is out of range.

    Example:
      >>> PMETConfig.for_model("gpt-j-6b").kl_factor
      1.0
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = _PMET

    v_lr: PositiveFloat = 0.2
    kl_factor: NonNegativeFloat = 1.0
    nll_loss_factor: PositiveFloat = 1.0


def _optimize(
    params: forward.Params,
    model_config: ModelConfig,
    inputs: EditInputs,
    config: PMETConfig,
    layer: int | None = None,
    deltas: Delta | None = None,
    starts: FindStarts | None = None,
) -> tuple[jax.Array, ValueResult]:
    """Finds the target outputs of the MLP."""
    return optimize_outputs(
        *(params, model_config, inputs, config, layer, deltas, config.nll_loss_factor, starts)
    )


PMET = ClosedForm(
    MethodName.PMET, MEMIT.penalty, divisor=math.sqrt, optimize=_optimize, read=read_outputs
)

compute = PMET.compute
compute_deltas = PMET.compute_deltas
compute_joint_delta = PMET.compute_joint_delta
make_editor = PMET.make_editor
