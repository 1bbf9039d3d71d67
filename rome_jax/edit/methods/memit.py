"""MEMIT: many facts written at once, over a range of layers (Meng et al., 2023, "Mass-Editing Memory in a Transformer",
arXiv 2210.07229, section 4 and algorithm 1).

A = λ C and s = 1 in the closed form of `rome_jax.edit.methods.closed_form`:

    ΔW = (λ C + K Kᵀ)⁻¹ K Rᵀ  (equation 14)

λ C stands for what a layer already stores. The larger λ, the less an edit changes, both the new facts and others.
"""

from __future__ import annotations

from rome_jax.edit.config import MethodName
from rome_jax.edit.methods.closed_form import ClosedForm
from rome_jax.edit.penalty import Penalty
from rome_jax.edit.spread_config import MEMITConfig
from rome_jax.moments.second_moment import SecondMoment


def _penalty(config: MEMITConfig, moment: SecondMoment | None) -> Penalty:
    """Returns λ C."""
    return Penalty.of(moment, config.mom2_update_weight)


MEMIT = ClosedForm(MethodName.MEMIT, _penalty)

compute = MEMIT.compute
compute_deltas = MEMIT.compute_deltas
compute_joint_delta = MEMIT.compute_joint_delta
make_editor = MEMIT.make_editor
