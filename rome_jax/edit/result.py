"""What every editing method gives back: N edits, and what is known of each."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rome_jax.models.interventions import Delta, DenseUpdate


@struct.dataclass
class EditResult:
    """N edits and how they came about. What a method does not have is None, or empty.

    Attributes:
      deltas: the edits, with case axis N.
      losses: float32 [N, S], the loss of each evaluation; NaN once a request is done.
      steps: int32 [N], evaluations that each request took.
      keys: float32 [N, F] for each edited layer, k*: the keys at which the edit writes.
      neurons: bool [N, L, F], those whose rows are changed.
      was_answer: bool [N], whether the target was the model's answer before the edit.
      is_answer: bool [N], whether greedy decoding of the edited model gives the target.
      layers: how the update of each layer came about, where the method says; see `methods.rome.LayerEdit`.
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
        """float32 [N], ‖ΔW‖ (Frobenius) of each edit over all weights that it changes."""
        squares = 0.0
        for update in self.deltas.updates:
            if isinstance(update, DenseUpdate):
                change = update.change.astype(jnp.float32)
                squares += (change**2).sum(tuple(range(1, change.ndim)))
            else:  # ‖L Rᵀ‖² = Σ (Lᵀ L) ∘ (Rᵀ R): no matrix of the weight's size
                left, right = (
                    jnp.einsum("nfr,nfs->nrs", x, x, precision="highest")
                    for x in (update.left, update.right)
                )
                squares += (left * right).sum((1, 2))
        return jnp.sqrt(jnp.maximum(squares, 0.0))
