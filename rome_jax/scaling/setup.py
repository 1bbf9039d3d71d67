"""A model on a device, as far as the memory of its programs depends on it.

Axes: L layers, D width, F MLP width, H heads, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from rome_jax.models.config import ModelConfig
from rome_jax.models.placement import DATA_AXIS, MODEL_AXIS
from rome_jax.models.registry import as_dtype
from rome_jax.models.sharding import param_shardings, split_axes
from rome_jax.models.transformer import param_shapes

_FLOAT32 = 4  # bytes


class Platform(enum.StrEnum):
    """Kinds of devices that XLA compiles differently for."""

    CPU = "cpu"
    GPU = "gpu"
    TPU = "tpu"


@dataclasses.dataclass(frozen=True)
class Setup:
    """A model, the dtype of its weights, and the devices that it is split over. All sizes are per device.

    Attributes:
      config: Shapes of the model.
      dtype: dtype of the weights: float32, bfloat16, or float16.
      platform: Kind of the devices. XLA's CPU backend computes half precision in float32, so that its intermediate
        results take twice the memory of the weights' dtype.
      data: Number of devices that requests and rows are split over.
      model: Number of devices that weights are split over.

    Raises:
      ValueError: If weights cannot have this dtype, or `model` does not divide the MLP's width.

    Example:
      >>> from rome_jax.models.families import PRESETS
      >>> Setup(PRESETS["gpt2-xl"]).weights, Setup(PRESETS["gpt2-xl"], "bfloat16").weights
      (6230444800, 3115222400)
    """

    config: ModelConfig
    dtype: str = "float32"
    platform: Platform = Platform.GPU
    data: int = 1
    model: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", str(as_dtype(self.dtype)))
        object.__setattr__(self, "platform", Platform(self.platform))
        split_axes(self.config, self.model)

    @property
    def itemsize(self) -> int:
        """Bytes per weight, and per number that one program hands to the next."""
        return jnp.dtype(self.dtype).itemsize

    @property
    def computed(self) -> int:
        """Bytes per intermediate number of a program."""
        return _FLOAT32 if self.platform is Platform.CPU else self.itemsize

    @property
    def is_widened(self) -> bool:
        """Whether programs convert weights to float32 before they multiply; see `rome_jax.models.precision`."""
        return self.platform is Platform.CPU and self.dtype == "float16"

    @property
    def is_split(self) -> bool:
        """Whether programs split float32 inputs instead of converting weights; see `rome_jax.models.cpu_products`."""
        return self.platform is Platform.CPU and self.dtype == "bfloat16"

    @functools.cached_property
    def _counts(self) -> tuple[int, int]:
        """Numbers of weights on one device: all, and those of one layer."""
        mesh = AbstractMesh((self.data, self.model), (DATA_AXIS, MODEL_AXIS))
        counts = jax.tree.map(
            lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)),
            param_shapes(self.config),
            param_shardings(self.config, mesh),
        )
        layers = sum(jax.tree.leaves(counts["blocks"])) // self.config.num_layers
        return sum(jax.tree.leaves(counts)), layers

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the whole model."""
        return sum(leaf.size for leaf in jax.tree.leaves(param_shapes(self.config)))

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return self._counts[0] * self.itemsize

    @property
    def layer(self) -> int:
        """Bytes of one layer's weights as programs multiply with them."""
        return self._counts[1] * (_FLOAT32 if self.is_widened else self.itemsize)

    @property
    def wide_layer(self) -> int:
        """Bytes of one layer's weights in float32."""
        return self._counts[1] * _FLOAT32

    @property
    def head(self) -> int:
        """Bytes of the head if programs convert it to float32, and otherwise 0, because they read it in place."""
        return self.width * self.vocabulary * _FLOAT32 if self.is_widened else 0

    @property
    def width(self) -> int:
        """D; the residual stream is not split."""
        return self.config.width

    @property
    def mlp_width(self) -> int:
        """Width of the MLP, F."""
        return self.config.mlp_width // self.model

    @property
    def heads(self) -> int:
        """Heads of attention, H."""
        return self._part("heads", self.config.num_heads)

    @property
    def qkv_width(self) -> int:
        """Widths of queries, keys, and values together."""
        return self._part("heads", self.config.attention_width + 2 * self.config.kv_width)

    @property
    def kv_width(self) -> int:
        """Widths of keys and values together."""
        return self._part("heads", 2 * self.config.kv_width)

    @property
    def vocabulary(self) -> int:
        """Number of logits per token, V."""
        return self._part("vocabulary", self.config.vocab_size)

    def _part(self, axis: str, size: int) -> int:
        """Divides a size if its logical axis is split."""
        return size // self.model if axis in split_axes(self.config, self.model) else size

    def rows(self, count: int) -> int:
        """Returns how many of some rows, requests, or tokens one device computes."""
        return -(-count // self.data)

    @property
    def down_stack(self) -> int:
        """Bytes of the stacked down-projections, the leaf that ROME and MEMIT change."""
        kernels = self.config.num_layers * self.mlp_width * self.width
        return kernels * self.itemsize

    @property
    def moment(self) -> int:
        """Bytes of one second moment in float32, [F, F], as a file holds it and a device sums it."""
        return _FLOAT32 * self.config.mlp_width**2

    @property
    def host_moment(self) -> int:
        """Bytes of one second moment on the host in an edit: C and its Cholesky factor, in float64."""
        return 2 * 8 * self.config.mlp_width**2
