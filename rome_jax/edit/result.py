"""The result that every editing method returns."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rome_jax.models.interventions import Delta, DenseUpdate


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
    """

    deltas: Delta
    losses: jax.Array | None = None
    steps: jax.Array | None = None
    keys: tuple[jax.Array, ...] = ()
    neurons: jax.Array | None = None
    was_answer: jax.Array | None = None
    is_answer: jax.Array | None = None
    layers: tuple[Any, ...] = ()

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
