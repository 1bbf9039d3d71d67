"""k*: the states at the edited layer and the whitened key (Meng et al., 2022, section 3.1, step 1).

Nothing up to the edited layer depends on the edit. One forward pass to that layer gives the keys, the present values,
and the residual stream from which the optimization of v* continues.

Axes: R rows, T columns, D width, F MLP width.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import struct

from rome_jax.data.tokens import TokenBatch
from rome_jax.edit.stages.shared_contexts import SharedContexts
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Delta, Site
from rome_jax.models.layers import Interventions
from rome_jax.moments.second_moment import SecondMoment


@struct.dataclass
class LayerStates:
    """States of one layer in R rows.

    Attributes:
      hidden: [R, T, D] residual stream after the layer.
      key: float32 [R, F] input of the down-projection at the fact token.
      value: float32 [R, D] output of the down-projection there, W k + b.
      attention: float32 [R, D] output of the attention there, or None if it was not asked for.
    """

    hidden: jax.Array
    key: jax.Array
    value: jax.Array
    attention: jax.Array | None = None


@functools.partial(jax.jit, static_argnames=("config", "layer", "with_attention"))
def layer_states(
    params: forward.Params,
    config: ModelConfig,
    batch: TokenBatch,
    fact: jax.Array,
    layer: int,
    deltas: Delta | None = None,
    shared: SharedContexts | None = None,
    with_attention: bool = False,
) -> LayerStates:
    """Runs rows through the layers up to and including `layer`.

    Args:
      params: Weights of the model.
      config: Configuration of the model (static).
      batch: [R, T] rows. `batch.case` selects the delta of each row.
      fact: int32 [R] column of the fact token.
      layer: Layer to return the states of (static).
      deltas: Edits already in force, with a case axis.
      shared: Packed forms of the rows, which run instead of them. They cannot be combined with `deltas`, under which
        the rows of different requests have different states.
      with_attention: Whether to return the output of the attention, too (static).
    """
    num_rows, num_columns = batch.ids.shape
    ran = batch if shared is None else shared.rows.batch
    attention = forward.plain_attention(ran)
    run = functools.partial(
        forward.run_layers,
        params,
        config,
        attention=attention,
        interventions=Interventions(
            (), None if deltas is None else deltas.rows(batch.case, num_rows)
        ),
    )
    hidden = forward.embed(params, config, jnp.asarray(ran.ids), attention.positions)
    hidden = run(hidden, start=0, stop=layer).hidden
    # The edited layer runs in float32 whatever the weights are: C⁻¹ magnifies the rounding of half-precision keys.
    sites = (Site.MLP_KEY, Site.MLP_OUT, *((Site.ATTN_OUT,) if with_attention else ()))
    out = run(hidden.astype(jnp.float32), start=layer, stop=layer + 1, capture=sites)
    # The place of each column of `batch` among all columns that ran.
    place = (
        jnp.arange(num_rows * num_columns).reshape(num_rows, num_columns)
        if shared is None
        else jnp.asarray(shared.rows.place)
    )
    at_fact = place[jnp.arange(num_rows), fact]
    found = [_join_rows(out.captures[site][0])[at_fact] for site in sites]
    return LayerStates(_join_rows(out.hidden.astype(hidden.dtype))[place], *found)


def _join_rows(rows: jax.Array) -> jax.Array:
    """Reshapes [rows, columns, ...] to [rows · columns, ...]."""
    return rows.reshape(-1, *rows.shape[2:])


def whitened_direction(
    key: jax.Array, second_moment: SecondMoment | jax.typing.ArrayLike | None
) -> jax.Array:
    """Computes u = C⁻¹ k* / ‖C⁻¹ k*‖, or k* / ‖k*‖ without a second moment.

    Args:
      key: [..., F] keys k*.
      second_moment: Either C itself, with which the host solves in float64 between compiled programs, or its factor
        `SecondMoment.factor`, [F, F], with which the device solves in float32. Inside a `jit` only the factor works.

    Returns:
      float32 [..., F], with norm 1.

    Raises:
      TypeError: If C itself is given inside a `jit`.

    Example:
      >>> whitened_direction(jnp.array([3.0, 4.0]), None).tolist()
      [0.6000000238418579, 0.800000011920929]
    """
    if isinstance(second_moment, SecondMoment):
        if isinstance(key, jax.core.Tracer):
            raise TypeError(
                "second_moments holds a SecondMoment, which a jit cannot use: give SecondMoment.factor, its array."
            )
        key = jnp.asarray(second_moment.solve(key))
    elif second_moment is not None:
        factor = jnp.asarray(second_moment, jnp.float32)
        with jax.default_matmul_precision("highest"):
            flat = key.astype(jnp.float32).reshape(-1, key.shape[-1])
            key = jax.scipy.linalg.cho_solve((factor, True), flat.T).T.reshape(key.shape)
    return key / jnp.linalg.norm(key, axis=-1, keepdims=True)
