"""New values at the sites of a forward pass, as data.

A `Patch` sets or adds values at a named `Site`; a `RunPatch` takes them from another run. Both are frozen pytrees in
which only names are static; see `rome_jax.models.interventions`.

Axes: L layers, B rows of the batch, T tokens that are run, P of these columns, C columns of a cache (0 without one), H
heads, D width of the residual stream.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rome_jax.models.interventions import Site


class PatchMode(enum.Enum):
    """What a patch does with its values."""

    REPLACE = "replace"
    ADD = "add"


@struct.dataclass
class Patch:
    """New values at one site.

    Attributes:
      site: The site that is changed (static).
      mode: Whether the values replace the site's or are added to them (static).
      layer: int32 [] or [B], the layer that is changed; ignored at `Site.EMBED`.
      mask: bool [B, T], the tokens that are changed. At `Site.ATTN_PATTERN` these are the attending tokens, in all
        heads.
      values: Values that broadcast to the site's [B, T, ...], or to [B, H, T, C + T].

    Example:
      Add a vector [D] to the MLP output of layer 5 at column 3 of every row:

      >>> from rome_jax.models.interventions import Site
      >>> from rome_jax.models.patches import Patch, PatchMode
      >>> batch = rome_jax.encode(model.tokenizer, ["Gothulf Punby plays the sport of"])
      >>> mask = jnp.arange(batch.ids.shape[1])[None] == 3
      >>> patch = Patch(Site.MLP_OUT, PatchMode.ADD, jnp.int32(5), mask, jnp.arange(128.0))
      >>> before = rome_jax.logits(model.params, model.config, batch)
      >>> after = rome_jax.logits(model.params, model.config, batch, patches=(patch,))
      >>> np.flatnonzero(np.abs(after - before)[0].max(axis=-1) > 0.1).tolist()  # layer 5 is the last layer
      [3]
    """

    site: Site = struct.field(pytree_node=False)
    mode: PatchMode = struct.field(pytree_node=False)
    layer: jax.Array
    mask: jax.Array | np.ndarray
    values: jax.Array

    def apply(self, layer: jax.Array | int | None, value: jax.Array) -> jax.Array:
        """Changes the value of the site in a layer.

        Args:
          layer: The layer that is being run; None at `Site.EMBED`.
          value: [B, T, ...], or [B, H, T, C + T] at `Site.ATTN_PATTERN`.

        Returns:
          The patched value, in the shape and dtype of `value`.
        """
        mask = jnp.asarray(self.mask)
        if layer is not None:
            mask = mask & jnp.equal(self.layer, layer).reshape(-1, 1)
        new = self.values if self.mode is PatchMode.REPLACE else value + self.values
        if self.site is Site.ATTN_PATTERN:
            mask = mask[:, None]  # all heads
        return jnp.where(mask[..., None], new.astype(value.dtype), value)


@struct.dataclass
class RunPatch:
    """Values of another run at one site; each column takes them in a range of layers of its own.

    It is not for `Site.ATTN_PATTERN`, whose rows belong to the columns of their own run.

    Axes: R rows and C columns of the other run.

    Attributes:
      site: The site that is changed (static).
      mode: Whether the values replace the site's or are added to them (static).
      start: int32 [T], the first layer that is changed in each column.
      stop: int32 [T], one more than the last layer that is changed in each column.
      mask: bool [T], the columns that are changed.
      column: int32 [T], the other run's column that each column takes its values from.
      values: [L, R, C, ...], the other run's values at the site; R is B or 1.
    """

    site: Site = struct.field(pytree_node=False)
    mode: PatchMode = struct.field(pytree_node=False)
    start: jax.Array
    stop: jax.Array
    mask: jax.Array
    column: jax.Array
    values: jax.Array

    def apply(self, layer: jax.Array | int | None, value: jax.Array) -> jax.Array:
        """Changes the value of the site in a layer.

        Args:
          layer: The layer that is being run.
          value: [B, T, ...].

        Returns:
          The patched value, in the shape and dtype of `value`.

        Raises:
          ValueError: If the site is EMBED, which has no layers, or ATTN_PATTERN.
        """
        if layer is None or self.site is Site.ATTN_PATTERN:
            raise ValueError(f"a RunPatch cannot change Site.{self.site.name}: use a Patch.")
        active = self.mask & (self.start <= layer) & (layer < self.stop)
        new = jnp.take(self.values, layer, axis=0, mode="clip")[:, self.column]
        if self.mode is PatchMode.ADD:
            new = value + new
        return jnp.where(active[:, None], new.astype(value.dtype), value)

    def take(self, columns: jax.Array) -> RunPatch:
        """Returns the patch of some columns alone, int32 [P]."""
        names = ("start", "stop", "mask", "column")
        return dataclasses.replace(self, **{name: getattr(self, name)[columns] for name in names})


def apply_patches(
    patches: Sequence[Patch | RunPatch],
    site: Site,
    layer: jax.Array | int | None,
    value: jax.Array,
) -> jax.Array:
    """Applies the patches of one site and layer in their order.

    Args:
      patches: Patches of any sites and layers.
      site: The site that `value` belongs to.
      layer: The layer that is being run; None at `Site.EMBED`.
      value: The site's value.

    Returns:
      The patched value.
    """
    for patch in patches:
        if patch.site is site:
            value = patch.apply(layer, value)
    return value
