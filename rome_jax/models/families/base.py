"""What a family consists of: presets of options, a reader and a writer of `config.json`, and a table of weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

import pydantic

from rome_jax.files.checked import check, shown
from rome_jax.models.config import (
    Activation,
    Family,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    Rotary,
    RotaryPairs,
    UnsupportedConfigError,
)

ACTIVATION_NAMES = {
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu": Activation.GELU,
    "relu": Activation.RELU,
    "silu": Activation.SILU,
    "swish": Activation.SILU,
}
# Larger sizes do not occur, and would be work without bound for everything that goes through layers or dimensions.
_Layers = Annotated[int, pydantic.Field(ge=1, le=10_000)]
_Size = Annotated[int, pydantic.Field(ge=1, le=1 << 24)]
# Attributes for which null means the default.
_NULLABLE = frozenset(
    """
    n_inner num_key_value_heads head_dim rope_scaling rope_parameters sliding_window layer_types use_sliding_window
    """.split()
)
_Positive = Annotated[float, pydantic.Field(gt=0)]
# The parameters of each rotary scaling, by its name in `config.json`.
_SCALING_PARAMETERS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


@dataclasses.dataclass(frozen=True)
class Weight:
    """One row of a family's table.

    Attributes:
      path: Path of our leaf, joined by "/"; leaves below `blocks` have a leading axis [L]. Checkpoints have no tensor
        of a leaf that the config does not have, such as the kernel of a tied head.
      name: Name of the checkpoint's tensor, in which `{}` is the layer.
      transposed: Whether the checkpoint stores [out, in]. Our kernels are [in, out].
      by_head: Whether a fused projection is stored as [heads, 3, K, ...]. Ours is [3, heads, K].
    """

    path: str
    name: str
    transposed: bool = False
    by_head: bool = False


class Attributes(Mapping[str, Any]):
    """The content of a `config.json`, whose attributes are checked when they are read.

    Attributes:
      source: Name of the file in messages.
    """

    def __init__(self, content: Mapping[str, Any], source: str = "config.json"):
        self._content = content
        self.source = source

    def __getitem__(self, name: str) -> Any:
        return self._content[name]

    def __iter__(self):
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    def read(self, kind: Any, name: str, default: Any) -> Any:
        """Returns an attribute as a type; a missing one gives the default, as null does where transformers allows it.

        Raises:
          UnsupportedConfigError: If the attribute has another type.
        """
        if name not in self or (self[name] is None and name in _NULLABLE):
            return default
        return check(kind, self[name], f"{self.source}: {name}", error=UnsupportedConfigError)

    def size(self, name: str, default: int | None = None) -> int:
        """Returns a positive integer.

        Raises:
          UnsupportedConfigError: If it is missing without a default, or is not a positive integer.
        """
        return self._required(_Size, name, default)

    def layers(self, name: str) -> int:
        """Returns a number of layers; errors are as in `size`."""
        return self._required(_Layers, name)

    def positive(self, name: str, default: float | None = None) -> float:
        """Returns a positive number; errors are as in `size`."""
        return self._required(_Positive, name, default)

    def child(self, name: str) -> Attributes:
        """Returns an attribute that is an object, which is empty if it is missing."""
        return Attributes(self.read(dict[str, Any], name, {}), f"{self.source}: {name}")

    def _required(self, kind: Any, name: str, default: Any = None) -> Any:
        found = self.read(kind, name, default)
        if found is None:
            raise UnsupportedConfigError(f"{self.source} lacks {name}.")
        return found

    def activation(self, name: str, default: str) -> Activation:
        """Returns an activation.

        Raises:
          UnsupportedConfigError: If it is not supported.
        """
        found = self.read(str, name, default)
        if found not in ACTIVATION_NAMES:
            raise UnsupportedConfigError(
                f"{self.source} sets {name}={shown(found)}; supported: {', '.join(ACTIVATION_NAMES)}."
            )
        return ACTIVATION_NAMES[found]

    def rope(self) -> Attributes:
        """Returns rope_parameters, which transformers 5 writes, or rope_scaling, which transformers 4 writes.

        Raises:
          UnsupportedConfigError: If both have content, one of which transformers would ignore.
        """
        new, old = self.child("rope_parameters"), self.child("rope_scaling")
        if new and old:
            raise UnsupportedConfigError(
                f"{self.source} sets both rope_parameters and rope_scaling: remove one of them from the file."
            )
        return new or old

    def rotary(
        self, dim: int, base: str = "rope_theta", other_parameters: Collection[str] = ()
    ) -> Rotary:
        """Reads the rotary embedding, in the attributes of transformers 4 (rope_theta, rope_scaling) or 5.

        Args:
          dim: Number of rotated dimensions.
          base: Name of the attribute of transformers 4 that holds the base.
          other_parameters: Further parameters in the object of `rope`, which the caller reads.

        Raises:
          UnsupportedConfigError: If the scaling or one of its parameters is not supported.
        """
        rope = self.rope()
        theta = rope.read(_Positive, "rope_theta", self.read(_Positive, base, 10_000.0))
        kind = rope.read(str, "rope_type", rope.read(str, "type", "default"))
        if kind not in _SCALING_PARAMETERS:
            raise UnsupportedConfigError(
                f"{self.source} asks for rotary scaling {shown(kind)}; supported: {', '.join(_SCALING_PARAMETERS)}."
            )
        known = ("rope_type", "type", "rope_theta", *_SCALING_PARAMETERS[kind], *other_parameters)
        for name in rope:
            if name not in known:
                raise UnsupportedConfigError(
                    f"{rope.source} sets {shown(name)} to {shown(rope[name])}, which is not supported for the rotary "
                    f"scaling {kind!r} of this model; supported: {', '.join(known)}."
                )
        scaling: LinearScaling | Llama3Scaling | None = None
        if kind == "linear":
            scaling = LinearScaling(rope.positive("factor"))
        elif kind == "llama3":
            scaling = Llama3Scaling(
                rope.positive("factor"),
                rope.positive("low_freq_factor"),
                rope.positive("high_freq_factor"),
                rope.size("original_max_position_embeddings"),
            )
        return Rotary(dim, RotaryPairs.HALVES, theta, scaling)


def rotary_attributes(rotary: Rotary, base: str = "rope_theta") -> dict[str, Any]:
    """Returns the attributes that `Attributes.rotary` reads back, as all versions of transformers read them."""
    found: dict[str, Any] = {base: rotary.base, "rope_scaling": None}
    if isinstance(rotary.scaling, LinearScaling):
        found["rope_scaling"] = {"rope_type": "linear", "factor": rotary.scaling.factor}
    elif isinstance(rotary.scaling, Llama3Scaling):
        found["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": rotary.scaling.factor,
            "low_freq_factor": rotary.scaling.low_frequency_factor,
            "high_freq_factor": rotary.scaling.high_frequency_factor,
            "original_max_position_embeddings": rotary.scaling.original_context_length,
        }
    return found


@dataclasses.dataclass(frozen=True)
class FamilySpec:
    """A family: a preset of options and its files.

    Attributes:
      family: The family.
      options: Options of `ModelConfig` that all models of the family share.
      read: Builds the config from the attributes of a `config.json`.
      write: Returns the attributes of a config.
      handled: Attributes that `read` reads.
      required: Attributes with the values that are implemented; the first is the one that transformers assumes.
      weights: The table of weights.
      prefix: Prefix of tensor names that some files lack.
      buffers: Names of tensors that are not weights and are ignored.
      architecture: Name of the class in transformers.
      exact_tokenizer: Whether tokenizer.json alone decides how texts become tokens. If not, the class that the files
        name adds its defaults, such as the special tokens of GPT-2, which its files on the hub leave out. For newer
        families transformers would rebuild the tokenizers of some classes (LlamaTokenizer) differently from the file.
    """

    family: Family
    options: Mapping[str, Any]
    read: Callable[[Attributes], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    handled: frozenset[str]
    required: Mapping[str, tuple[Any, ...]]
    weights: tuple[Weight, ...]
    prefix: str
    buffers: tuple[str, ...]
    architecture: str
    exact_tokenizer: bool = True


def norms(ours: str, theirs: str) -> tuple[Weight, ...]:
    """Builds the rows of a norm: its scale and, for LayerNorm, its bias."""
    return (Weight(f"{ours}/scale", f"{theirs}.weight"), Weight(f"{ours}/bias", f"{theirs}.bias"))


def linear(ours: str, theirs: str, *, by_head: bool = False) -> tuple[Weight, ...]:
    """Builds the rows of a projection that is stored [out, in]: its kernel and, if the config has one, its bias."""
    return (
        Weight(f"{ours}/kernel", f"{theirs}.weight", transposed=True, by_head=by_head),
        Weight(f"{ours}/bias", f"{theirs}.bias", by_head=by_head),
    )
