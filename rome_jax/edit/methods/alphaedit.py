"""AlphaEdit: edits within the null space of what a layer stores (Fang et al., 2025, "AlphaEdit: Null-Space Constrained
Knowledge Editing for Language Models", arXiv 2410.02355, section 3).

A = K_p K_pᵀ + ν I on the span of Q in the closed form of `rome_jax.edit.methods.closed_form`, and infinite elsewhere;
s = 1. The columns of Q are the eigenvectors of C with an eigenvalue below a threshold: ΔW maps the keys of the corpus,
which hardly reach into their span, to almost nothing. K_p are the keys of earlier batches, so that later edits leave
earlier ones as they are. The authors solve the equivalent system with P = Q Qᵀ, which is not symmetric:

    ΔW = (P (K_p K_pᵀ + K Kᵀ) + ν I)⁻¹ P K Rᵀ  (equation 14)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from rome_jax.edit.config import MethodName, SolverDevice
from rome_jax.edit.methods.closed_form import ClosedForm
from rome_jax.edit.penalty import Penalty
from rome_jax.edit.spread_config import (
    SPREAD_FACTWORLD,
    SPREAD_J,
    SPREAD_XL,
    Modifier,
    SpreadConfig,
)
from rome_jax.files.checked import PositiveFloat
from rome_jax.moments.null_space import NullSpace
from rome_jax.moments.second_moment import SecondMoment

_ALPHAEDIT: Mapping[str, Mapping[str, Any]] = {
    "gpt2-xl": SPREAD_XL,
    "gpt-j-6b": SPREAD_J,
    "smollm2-135m": {"layers": (2, 3, 4)},
    "factworld-gpt2": {**SPREAD_FACTWORLD, "nullspace_threshold": 0.1, "L2": 3.0},
    "factworld-gptj": {**SPREAD_FACTWORLD, "nullspace_threshold": 0.1, "L2": 3.0},
}

_WITH_BLUE: Mapping[tuple[str, Modifier], Mapping[str, Any]] = {
    ("gpt2-xl", Modifier.BLUE): {"L2": 80.0},
    ("gpt-j-6b", Modifier.BLUE): {"L2": 95.0},
}


@dataclasses.dataclass(frozen=True)
class AlphaEditConfig(SpreadConfig):
    """Hyperparameters of AlphaEdit. Names follow its hyperparameter files.

    Attributes:
      nullspace_threshold: Bound of the eigenvalues of C whose eigenvectors span the null space. It is not used with a
        `NullSpace`, whose directions were chosen when it was computed.
      L2: ν, the weight of ‖ΔW‖².
      solver_device: Where the systems of past keys are factored.

    The other attributes are those of `SpreadConfig`.

    Raises:
      ValueError: If a value has another type or is out of range.

    Example:
      >>> AlphaEditConfig.for_model("gpt-j-6b").nullspace_threshold
      0.02
      >>> AlphaEditConfig.for_model("gpt-j-6b", modifiers=("BLUE",)).L2
      95.0
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = _ALPHAEDIT
    published_modified: ClassVar[Mapping[tuple[str, Modifier], Mapping[str, Any]]] = _WITH_BLUE
    takes_null_spaces: ClassVar[bool] = True

    nullspace_threshold: PositiveFloat = 0.02
    L2: PositiveFloat = 10.0
    solver_device: SolverDevice = SolverDevice.HOST

    @property
    def needs_second_moments(self) -> bool:
        """Whether it needs second moments: always."""
        return True


def _penalty(config: AlphaEditConfig, moment: SecondMoment | NullSpace | None) -> Penalty:
    """Returns ν I on the null space of C."""
    assert moment is not None  # the configuration always asks for it
    threshold = config.nullspace_threshold
    complement = moment.null_space_complement(threshold)
    return Penalty.null_space(moment.null_space(threshold), config.L2, complement)


ALPHAEDIT = ClosedForm(MethodName.ALPHAEDIT, _penalty, remembers=True, rereads=True)

compute = ALPHAEDIT.compute
compute_deltas = ALPHAEDIT.compute_deltas
compute_joint_delta = ALPHAEDIT.compute_joint_delta
make_editor = ALPHAEDIT.make_editor
