"""The result that every editing method returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rome_jax.data.request import EditRequest
from rome_jax.files.checked import shown
from rome_jax.models.interventions import Delta, DenseUpdate


class NotFiniteError(ValueError):
    """The error for an edit that holds NaN or an infinite number, which would destroy the model.

    Attributes:
      cases: Indices of these edits.
    """

    def __init__(self, message: str, cases: Sequence[int] = ()):
        super().__init__(message)
        self.cases = tuple(cases)


@struct.dataclass
class EditResult:
    """N edits and their intermediate results. Fields that a method does not have are None or empty.

    Attributes:
      deltas: The edits, with case axis N.
      losses: float32 [N, S] loss at each evaluation; NaN once a request is done.
      steps: int32 [N] number of evaluations.
      keys: float32 [N, F] k* for each edited layer: the keys that the edit changes the values of.
      neurons: bool [N, L, F] neurons that are changed.
      was_answer: bool [N], whether the target was the model's answer before the edit.
      is_answer: bool [N], whether greedy decoding of the edited model gives the target.
      layers: Intermediate results for each layer, if the method has them; see `rome_jax.edit.methods.rome.LayerEdit`.
      templates: Context templates that the edits were computed with (static).
    """

    deltas: Delta
    losses: jax.Array | None = None
    steps: jax.Array | None = None
    keys: tuple[jax.Array, ...] = ()
    neurons: jax.Array | None = None
    was_answer: jax.Array | None = None
    is_answer: jax.Array | None = None
    layers: tuple[Any, ...] = ()
    templates: tuple[str, ...] = struct.field(pytree_node=False, default=())

    @property
    def norms(self) -> jax.Array:
        """float32 [N] ‖ΔW‖ (Frobenius) of each edit over all weights that it changes."""
        squares = jnp.zeros(())
        for update in self.deltas.updates:
            if isinstance(update, DenseUpdate):
                change = update.change.astype(jnp.float32)
                squares += (change**2).sum(tuple(range(1, change.ndim)))
            else:  # ‖L Rᵀ‖² = Σ (Lᵀ L) ∘ (Rᵀ R), which needs no matrix as large as the weight
                left, right = (
                    jnp.einsum("nfr,nfs->nrs", x, x, precision="highest")
                    for x in (update.left, update.right)
                )
                squares += (left * right).sum((1, 2))
        return jnp.sqrt(jnp.maximum(squares, 0.0))

    def finite(self, requests: Sequence[EditRequest]) -> EditResult:
        """Returns the result if all numbers of its edits are finite.

        Args:
          requests: The N requests, for the message.

        Raises:
          NotFiniteError: If an edit holds NaN or an infinite number.
        """
        check_finite(self.deltas, requests)
        return self


def check_finite(deltas: Delta, requests: Sequence[EditRequest]) -> None:
    """Refuses edits that hold NaN or an infinite number.

    Args:
      deltas: N edits, one per request, or one edit of all requests without a case axis.
      requests: The N requests, for the message.

    Raises:
      NotFiniteError: If there are such edits; it names the first.
    """
    batched = deltas.batched
    finite = np.ones(len(deltas) if batched else 1, bool)
    for update in deltas.updates:
        if isinstance(update, DenseUpdate):
            arrays = [update.change]
        else:
            arrays = [update.left, update.right]
        for array in arrays:
            axes = tuple(range(1, array.ndim)) if batched else None
            finite &= np.asarray(array.__array_namespace__().isfinite(array).all(axes))
    if cases := np.flatnonzero(~finite).tolist():
        raise NotFiniteError(
            f"the edit of {shown(requests[cases[0]].subject)} holds numbers that are not finite: lower the learning "
            "rate, or choose other hyperparameters, a layer or second moments that suit the model.",
            cases,
        )
