"""The config of a model in one frozen record of orthogonal options.

`ModelConfig` is hashable: it is the static argument of every compiled function. No code asks which family a model
belongs to: a family is a preset of these options, a reader and a writer of `config.json`, and a table of weights, all
in `rome_jax.models.families`.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterable

import jax
import numpy as np

from rome_jax.files.checked import check
from rome_jax.models.precision import MatmulPrecision, as_precision


class Family(enum.Enum):
    """Architectures, named by the `model_type` of their `config.json`."""

    GPT2 = "gpt2"
    GPTJ = "gptj"
    LLAMA = "llama"  # also SmolLM2 and TinyLlama
    MISTRAL = "mistral"
    QWEN2 = "qwen2"
    QWEN3 = "qwen3"
    NEOX = "gpt_neox"  # also Pythia


class Activation(enum.Enum):
    """Non-linearities of the MLP, named by one of their names in `config.json`."""

    GELU_TANH = "gelu_new"  # tanh approximation; GPT-2 and GPT-J were trained with it
    GELU = "gelu"  # exact, through erf
    RELU = "relu"
    SILU = "silu"


class Norm(enum.Enum):
    """Normalizations of the residual stream."""

    LAYER = "LayerNorm"
    RMS = "RMSNorm"


class RotaryPairs(enum.Enum):
    """Which two of d rotated dimensions form a pair."""

    INTERLEAVED = "interleaved"  # 2i and 2i + 1, as GPT-J was trained
    HALVES = "halves"  # i and i + d / 2, as Llama and GPT-NeoX were trained


class UnsupportedConfigError(ValueError):
    """A config asks for something that this library does not implement, or its sizes do not fit together."""


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Position interpolation (Chen et al., 2023, equation 2): positions are divided by `factor`."""

    factor: float

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        """Scales the frequencies of a rotary embedding."""
        return frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """The scaling of Llama 3.1: low frequencies are divided by `factor`, high ones are kept, those between blended.

    Attributes:
      factor: Divisor of the low frequencies.
      low_frequency_factor, high_frequency_factor: A frequency is low if it has fewer than the first of these periods in
        the original context, and high if it has more than the second.
      original_context_length: The context length before the scaling.
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context_length: int

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        """Scales the frequencies of a rotary embedding."""
        periods = self.original_context_length * frequencies / (2 * math.pi)
        span = self.high_frequency_factor - self.low_frequency_factor
        kept = np.clip((periods - self.low_frequency_factor) / span, 0.0, 1.0)
        return frequencies * (kept + (1 - kept) / self.factor)


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary position embedding (Su et al., 2021).

    Attributes:
      dim: Number of leading dimensions of each head that are rotated.
      pairs: Which dimensions are rotated together.
      base: Base of the frequencies.
      scaling: Change of the frequencies that extends the context, or None.

    Raises:
      UnsupportedConfigError: If `dim` is odd or less than 2, or `base` is not positive.
    """

    dim: int
    pairs: RotaryPairs = RotaryPairs.HALVES
    base: float = 10_000.0
    scaling: LinearScaling | Llama3Scaling | None = None

    def __post_init__(self):
        if self.dim % 2 or self.dim < 2:
            raise UnsupportedConfigError(
                f"the rotated dimensions are {self.dim}; they must be an even number of at least 2."
            )
        if not self.base > 0:
            raise UnsupportedConfigError(f"the rotary base is {self.base}; it must be positive.")

    def frequencies(self) -> np.ndarray:
        """Computes the angle per position of each pair: float32 [dim / 2].

        Example:
          >>> Rotary(4).frequencies().tolist()
          [1.0, 0.009999999776482582]
        """
        exponents = np.arange(0, self.dim, 2, dtype=np.float32) / np.float32(self.dim)
        frequencies = (1.0 / np.float32(self.base) ** exponents).astype(np.float32)
        return frequencies if self.scaling is None else self.scaling(frequencies).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shapes and options of one model.

    `rome_jax.models.families` builds it for a family; options at their defaults are those of GPT-2, except `fused_qkv`.

    Attributes:
      family: Architecture, which names the layout of checkpoints. It decides nothing in a forward pass.
      num_layers: Number of blocks, L.
      width: Width of the residual stream, D.
      num_heads: Number of attention heads, H.
      mlp_width: Width of the MLP's hidden layer, F.
      vocab_size: Number of rows of the embedding, V. GPT-J has 50,400, which is more than its 50,257 tokens.
      context_length: Largest number of positions in a sequence.
      head_dim: Width of one head, K; 0 means D / H.
      num_kv_heads: Number of heads of keys and values, each of which serves H / num_kv_heads query heads; 0 means H.
      rotary: Rotary positions; None means learned positions, which are added to the embeddings.
      norm: Normalization of the residual stream.
      norm_epsilon: Constant that the norm adds to the variance, or to the mean square.
      qk_norm: Whether the queries and keys of each head are normalized (RMSNorm) before they are rotated.
      gated: Whether the MLP multiplies the activated gate projection by the up-projection. If not, the up-projection is
        activated.
      activation: Non-linearity of the MLP.
      parallel_residual: Whether the MLP reads the block's input instead of the output of attention.
      shared_norm: Whether attention and MLP of a parallel block read the same norm (GPT-J) or one each (GPT-NeoX).
      fused_qkv: Whether one leaf projects to queries, keys and values.
      qkv_bias, out_bias, mlp_bias, head_bias: Whether the projections of attention, the MLP and the head have biases.
      tie_embeddings: Whether the head is the transposed embedding.
      scale_scores: Whether scores of attention are divided by the root of the head width.
      scale_by_layer: Whether scores of attention are also divided by the number of the layer, which starts at 1.
      upcast_attention: Whether `transformers` computes attention in float32 in half precision. It always is here.
      precision: Precision of every matrix product; see `rome_jax.models.precision`. `HIGHEST` is true float32; GPUs and
        TPUs use less by default. A word such as "tf32" is converted.

    Raises:
      UnsupportedConfigError: If the sizes or options do not fit together.
      ValueError: If there is no such precision.

    Example:
      >>> model.config.family, model.config.num_layers, model.config.head_dim
      (<Family.GPT2: 'gpt2'>, 6, 32)
    """

    family: Family
    num_layers: int
    width: int
    num_heads: int
    mlp_width: int
    vocab_size: int
    context_length: int
    _: dataclasses.KW_ONLY
    head_dim: int = 0
    num_kv_heads: int = 0
    rotary: Rotary | None = None
    norm: Norm = Norm.LAYER
    norm_epsilon: float = 1e-5
    qk_norm: bool = False
    gated: bool = False
    activation: Activation = Activation.GELU_TANH
    parallel_residual: bool = False
    shared_norm: bool = False
    fused_qkv: bool = False
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    head_bias: bool = False
    tie_embeddings: bool = True
    scale_scores: bool = True
    scale_by_layer: bool = False
    upcast_attention: bool = False
    precision: MatmulPrecision = jax.lax.Precision.HIGHEST

    def __post_init__(self):
        object.__setattr__(self, "precision", as_precision(self.precision))
        for field in (
            "num_layers",
            "width",
            "num_heads",
            "mlp_width",
            "vocab_size",
            "context_length",
        ):
            if getattr(self, field) < 1:
                raise UnsupportedConfigError(
                    f"{field} is {getattr(self, field)}; it must be at least 1."
                )
        if not self.head_dim and self.width % self.num_heads:
            raise UnsupportedConfigError(
                f"width {self.width} is not divisible by num_heads {self.num_heads}."
            )
        object.__setattr__(self, "head_dim", self.head_dim or self.width // self.num_heads)
        object.__setattr__(self, "num_kv_heads", self.num_kv_heads or self.num_heads)
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedConfigError(
                f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}."
            )
        if self.rotary is not None and self.rotary.dim > self.head_dim:
            raise UnsupportedConfigError(
                f"{self.rotary.dim} rotated dimensions are more than the head width {self.head_dim}."
            )
        if self.fused_qkv and self.num_kv_heads != self.num_heads:
            raise UnsupportedConfigError(
                f"fused_qkv needs as many heads of keys ({self.num_kv_heads}) as of queries ({self.num_heads})."
            )
        if self.shared_norm and not self.parallel_residual:
            raise UnsupportedConfigError("shared_norm needs parallel_residual.")
        if self.qk_norm and self.norm is not Norm.RMS:
            raise UnsupportedConfigError(
                f"qk_norm is only supported with norm=Norm.RMS, not with {self.norm}."
            )

    @property
    def attention_width(self) -> int:
        """Width of all query heads together, H K."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all heads of keys, or of values, together."""
        return self.num_kv_heads * self.head_dim

    def check_layer(self, layer: int, argument: str = "layer") -> int:
        """Checks that the model has a layer, and returns it.

        Raises:
          ValueError: If it is not a whole number, or the model does not have the layer; the message names `argument`
            and the layers there are.
        """
        layer = check(int, layer, argument)
        if not 0 <= layer < self.num_layers:
            raise ValueError(
                f"{argument}={layer} does not exist: the model has layers 0 to {self.num_layers - 1}."
            )
        return layer

    def check_layers(self, layers: Iterable[int], argument: str = "layers") -> tuple[int, ...]:
        """Checks that the model has some layers, and returns them in their order.

        Raises:
          ValueError: If one is not a whole number, or the model does not have it; see `check_layer`.
        """
        checked = check(tuple[int, ...], layers, argument)
        return tuple(self.check_layer(layer, argument) for layer in checked)
