"""Longer steps of Adam that are taken back if the loss rises, and starts at the δ of an earlier edit.

Plain Adam accepts every step. A search of this module tries a step and accepts it only if the loss does not rise:

    trial = δ + scale · (Adam's step from δ)   while scale > 1, a trial with a larger loss is rejected and scale halves;
                                               at scale 1, every trial is accepted, which is plain Adam;
                                               it is 1 once the target has been the model's answer
    first trial = δ of an earlier edit         if there is one; if it is rejected, Adam's first step follows

Axes: N requests, P = 1 or 2 vectors, D width.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from flax import struct


def safe_norm(vectors: jax.Array) -> jax.Array:
    """Computes ‖·‖ over the last axis, with gradient 0 at 0, where the gradient of a plain norm is NaN.

    Example:
      >>> jax.grad(safe_norm)(jnp.zeros(2)).tolist()
      [0.0, 0.0]
    """
    square = jnp.sum(vectors**2, axis=-1)
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def project_to_ball(vectors: jax.Array, radius: jax.Array) -> jax.Array:
    """Scales vectors [N, D] that are longer than `radius` [N] down to it.

    Example:
      >>> projected = project_to_ball(jnp.array([[3.0, 4.0], [0.3, 0.4]]), jnp.array([1.0, 1.0]))
      >>> np.asarray(projected, float).round(3).tolist()
      [[0.6, 0.8], [0.3, 0.4]]
    """
    norm = safe_norm(vectors)
    scale = jnp.where(norm > radius, radius / jnp.where(norm > 0, norm, 1.0), 1.0)
    return vectors * scale[:, None]


@struct.dataclass
class Search:
    """The δ that N requests have accepted, and the steps that they try from there.

    Attributes:
      delta: float32 [N, P, D] the accepted δ.
      terms: float32 [4, N] the loss there and its terms.
      bound: float32 [N] loss that a trial must not exceed; infinite before the first evaluation.
      step: float32 [N, P, D] Adam's step from there.
      scale: float32 [N] factor of that step in the present trial.
      adam: Adam's state, with leading axis N; it advances only when a trial is accepted.
      start: float32 [N, P, D] δ of an earlier edit; 0 if there is none.
      at_start: bool [N], whether the present trial is `start`.
    """

    delta: jax.Array
    terms: jax.Array
    bound: jax.Array
    step: jax.Array
    scale: jax.Array
    adam: optax.OptState
    start: jax.Array
    at_start: jax.Array

    @classmethod
    def begin(
        cls, adam: optax.GradientTransformation, start: jax.Array, scale: jax.Array
    ) -> Search:
        """Returns the search before its first evaluation, which is at δ = 0.

        Args:
          adam: The optimizer.
          start: float32 [N, P, D] δ of earlier edits, or 0.
          scale: Factor of the first step, at least 1.
        """
        zeros, requests = jnp.zeros_like(start), len(start)
        return cls(
            delta=zeros,
            terms=jnp.zeros((4, requests)),
            bound=jnp.full(requests, jnp.inf),
            step=zeros,
            scale=jnp.full(requests, scale),
            adam=jax.vmap(adam.init)(zeros),
            start=start,
            at_start=jnp.zeros(requests, bool),
        )

    def accepts(self, terms: jax.Array) -> jax.Array:
        """Returns bool [N], whether trials with these terms of the loss [4, N] are accepted."""
        return (terms[0] <= self.bound) | ((self.scale <= 1) & ~self.at_start)

    def accept(self, accepted: jax.Array, trial: jax.Array, terms: jax.Array) -> Search:
        """Returns the search at those trials [N, P, D] that are accepted."""
        return dataclasses.replace(
            self,
            delta=_choose(accepted, trial, self.delta),
            terms=jnp.where(accepted, terms, self.terms),
        )

    def advance(
        self,
        adam: optax.GradientTransformation,
        accepted: jax.Array,
        gradient: jax.Array,
        weight: jax.Array,
        answered: jax.Array,
    ) -> tuple[jax.Array, Search]:
        """Chooses the next trials, after `accept`.

        Args:
          adam: The optimizer.
          accepted: bool [N], whether the present trials are accepted.
          gradient: float32 [N, P, D] gradient of the loss at the present trials.
          weight: float32 [N] change of the weight of the negative log-likelihood, relative to that in `terms`.
          answered: bool [N], whether the target has been the model's answer; all further steps are plain then.

        Returns:
          The trials [N, P, D], not projected yet, and the search.
        """
        first = jnp.isinf(self.bound)
        # Adam begins anew at an earlier δ, where the gradient at 0 says little.
        before = jax.tree.map(
            lambda leaf: _choose(self.at_start, jnp.zeros_like(leaf), leaf), self.adam
        )
        step, after = jax.vmap(adam.update)(gradient, before)
        choose = functools.partial(_choose, accepted)
        step, state = choose(step, self.step), jax.tree.map(choose, after, self.adam)
        halved = jnp.maximum(self.scale / 2, 1.0)
        scale = jnp.where(accepted | self.at_start, self.scale, halved)
        scale = jnp.where(answered, 1.0, scale)
        at_start = first & (self.start != 0).any((1, 2))
        trial = _choose(at_start, self.start, self.delta + scale[:, None, None] * step)
        bound = jnp.where(accepted, self.terms[0] + weight * self.terms[1], self.bound)
        changes = {
            "bound": bound,
            "step": step,
            "scale": scale,
            "adam": state,
            "at_start": at_start,
        }
        return trial, dataclasses.replace(self, **changes)


def _choose(condition: jax.Array, one: jax.Array, other: jax.Array) -> jax.Array:
    """Chooses between arrays [N, ...] by a condition [N]."""
    return jnp.where(condition.reshape(-1, *[1] * (one.ndim - 1)), one, other)
