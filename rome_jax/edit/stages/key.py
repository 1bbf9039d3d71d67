"""k*: the states at the edit layer, read once, and the whitened key (paper, section 3.1, step 1).

Nothing below the edit layer depends on the edit, so one forward pass to that layer gives the keys, the present
values and the residual stream from which the value optimization continues.
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
    """What the edit needs of one layer, for R rows.

    Attributes:
      hidden: [R, T, D], the residual stream after the layer.
      key: [R, F], MLP_KEY at the looked-up column.
      value: [R, D], MLP_OUT there: W key + b.
    """

    hidden: jax.Array
    key: jax.Array
    value: jax.Array


@functools.partial(jax.jit, static_argnames=("config", "layer"))
def layer_states(
    params: forward.Params,
    config: ModelConfig,
    batch: TokenBatch,
    lookup: jax.Array,
    layer: int,
    deltas: Delta | None = None,
    contexts: SharedContexts | None = None,
) -> LayerStates:
    """Runs a batch of R rows up to `layer`.

    Args:
      params, config: the model.
      batch: R rows; `batch.case` picks the delta of each row.
      lookup: int32 [R], the column of the fact token.
      layer: static.
      deltas: edits that are in force already.
      contexts: what the rows share and what is run once; not together with deltas, which make them differ.
    """
    num_rows, length = batch.ids.shape
    ids, attention = jnp.asarray(batch.ids), forward.plain_attention(batch)
    looked_up = jnp.arange(num_rows), lookup
    if contexts is not None:
        ids = contexts.pack(ids, contexts.num_own)
        attention = contexts.attention(attention, contexts.num_own)
        looked_up = contexts.place(lookup, contexts.num_own)
    deltas = None if deltas is None else deltas.rows(batch.case, num_rows)
    run = functools.partial(
        forward.run_layers,
        params,
        config,
        attention=attention,
        interventions=Interventions((), deltas),
    )
    hidden = forward.embed(params, config, ids, attention.positions)
    hidden = run(hidden, start=0, stop=layer).hidden
    # The edit layer itself in float32, whatever the weights are: C⁻¹ magnifies the rounding of half-precision keys.
    out = run(
        hidden.astype(jnp.float32),
        start=layer,
        stop=layer + 1,
        capture=(Site.MLP_KEY, Site.MLP_OUT),
    )
    key, value = (out.captures[site][0][looked_up] for site in (Site.MLP_KEY, Site.MLP_OUT))
    hidden = out.hidden.astype(hidden.dtype)
    if contexts is not None:
        columns = jnp.broadcast_to(jnp.arange(length), (num_rows, length))
        hidden = hidden[contexts.place(columns, contexts.num_own)]
    return LayerStates(hidden, key, value)


def whitened_direction(
    key: jax.Array, second_moment: SecondMoment | jax.typing.ArrayLike | None
) -> jax.Array:
    """u = C⁻¹ k* / ‖C⁻¹ k*‖; without a second moment, u = k* / ‖k*‖.

    Args:
      key: [..., F].
      second_moment: C, solved in float64 on the host between compiled programs; or, inside a `jit`, its factor L [F, F]
        (`SecondMoment.factor`), solved in float32 where the program runs.

    Returns:
      float32 [..., F], of norm 1.

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
