"""The config of a GPT model in one frozen record, and its conversion from and to Hugging Face's `config.json`.

`ModelConfig` is hashable: it is the static argument of every compiled function. `from_hf` is strict: every attribute of
`config.json` is used, known not to change the forward pass, or refused by name. A model that does not load does less
harm than one that is computed wrongly.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, NotRequired

import jax
import pydantic
import typing_extensions

from rome_jax.files.checked import check, shown


class Family(enum.Enum):
    """Architectures, named by the `model_type` of their `config.json`."""

    GPT2 = "gpt2"  # learned positions, attention then MLP, fused query-key-value projection
    GPTJ = "gptj"  # rotary positions, attention and MLP in parallel, untied head with a bias


class Activation(enum.Enum):
    """Non-linearities of the MLP, named by one of their names in `config.json`."""

    GELU_TANH = "gelu_new"  # tanh approximation; GPT-2 and GPT-J were trained with it
    GELU = "gelu"  # exact, through erf
    RELU = "relu"
    SILU = "silu"


_ACTIVATION_NAMES = {
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu": Activation.GELU,
    "relu": Activation.RELU,
    "silu": Activation.SILU,
    "swish": Activation.SILU,
}


class UnsupportedConfigError(ValueError):
    """A config asks for something that this library does not implement, or its sizes do not fit together."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shapes and choices of one model.

    Attributes:
      family: Architecture.
      num_layers: Number of blocks, L.
      width: Width of the residual stream, D.
      num_heads: Number of attention heads, H, each of width D / H.
      mlp_width: Width of the MLP's hidden layer, F.
      vocab_size: Number of rows of the embedding, V. GPT-J has 50,400, which is more than its 50,257 tokens.
      context_length: Largest number of positions in a sequence.
      rotary_dim: Number of leading dimensions of each head that are rotated; 0 means learned positions.
      activation: Non-linearity of the MLP.
      layer_norm_epsilon: Constant that LayerNorm adds to the variance.
      tie_embeddings: Whether the head is the transposed embedding.
      scale_scores: Whether scores of attention are divided by the root of the head width.
      scale_by_layer: Whether scores of attention are also divided by the number of the layer, which starts at 1.
      upcast_attention: Whether `transformers` computes attention in float32 in half precision. It always is here.
      precision: Precision of every matrix product. `HIGHEST` is true float32; GPUs and TPUs use less by default.

    Raises:
      UnsupportedConfigError: If the sizes do not fit together.

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
    rotary_dim: int = 0
    activation: Activation = Activation.GELU_TANH
    layer_norm_epsilon: float = 1e-5
    tie_embeddings: bool = True
    scale_scores: bool = True
    scale_by_layer: bool = False
    upcast_attention: bool = False
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST

    def __post_init__(self):
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
        if self.width % self.num_heads:
            raise UnsupportedConfigError(
                f"width {self.width} is not divisible by num_heads {self.num_heads}."
            )
        if self.rotary_dim % 2 or not 0 <= self.rotary_dim <= self.head_dim:
            raise UnsupportedConfigError(
                f"rotary_dim {self.rotary_dim} must be even and at most the head width {self.head_dim}."
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head, D / H."""
        return self.width // self.num_heads

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


# Attributes that do not affect the forward pass at inference: training, bookkeeping, defaults of generation.
_IGNORED = frozenset(
    """
    _name_or_path _num_labels architectures attn_pdrop bos_token_id chunk_size_feed_forward dtype embd_pdrop
    eos_token_id finetuning_task generation_config gradient_checkpointing id2label initializer_range label2id
    max_length model_type n_ctx n_special name_or_path output_attentions output_hidden_states output_past
    pad_token_id predict_special_tokens prefix problem_type resid_pdrop return_dict sep_token_id
    summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    task_specific_params tokenizer_class torch_dtype transformers_version unk_token_id use_cache
    begin_suppress_tokens bad_words_ids decoder_start_token_id diversity_penalty do_sample
    early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id is_composition length_penalty min_length no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_scores remove_invalid_values repetition_penalty return_dict_in_generate
    suppress_tokens temperature tf_legacy_loss tie_encoder_decoder top_k top_p torchscript typical_p use_bfloat16
    """.split()
)

# Attributes that change the computation, with the one value that is implemented here.
_REQUIRED: dict[str, Any] = {
    "add_cross_attention": False,
    "is_decoder": True,
    "is_encoder_decoder": False,
    "cross_attention_hidden_size": None,
    "pruned_heads": {},
    "quantization_config": None,
    "rotary": True,
    "rope_scaling": None,
    "rope_parameters": None,
}
# Other values that mean the same as those above.
_HARMLESS: dict[str, tuple[Any, ...]] = {"is_decoder": (False,), "pruned_heads": (None, [])}

# Larger sizes do not occur, and would be work without bound for everything that goes through layers or dimensions.
_Layers = Annotated[int, pydantic.Field(ge=1, le=10_000)]
_Size = Annotated[int, pydantic.Field(ge=1, le=1 << 24)]


class _Attributes(typing_extensions.TypedDict):
    """The attributes of a config.json that are used."""

    n_layer: _Layers
    n_embd: _Size
    n_head: _Size
    vocab_size: _Size
    n_positions: _Size
    n_inner: NotRequired[Annotated[int, pydantic.Field(ge=0, le=1 << 24)] | None]
    rotary_dim: NotRequired[Annotated[int, pydantic.Field(ge=0, le=1 << 24)] | None]
    activation_function: NotRequired[str]
    layer_norm_epsilon: NotRequired[Annotated[float, pydantic.Field(gt=0)]]
    tie_word_embeddings: NotRequired[bool]
    scale_attn_weights: NotRequired[bool]
    scale_attn_by_inverse_layer_idx: NotRequired[bool]
    reorder_and_upcast_attn: NotRequired[bool]


_HANDLED = frozenset(_Attributes.__annotations__)
# Attributes of attention that only GPT-2 has, with their usual values.
_GPT2_ATTENTION = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}


def from_hf(config: Mapping[str, Any], name: str = "config.json") -> ModelConfig:
    """Reads the content of a Hugging Face `config.json`.

    Args:
      config: The parsed file.
      name: Name of the file in messages, such as its path.

    Returns:
      The `ModelConfig` of the same model.

    Raises:
      UnsupportedConfigError: If `model_type` is unknown, a size is missing, or an attribute is unknown or has a value
        that changes the forward pass in a way that is not implemented here.

    Example:
      >>> from_hf({"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 9,
      ...          "n_positions": 16}).mlp_width
      32
    """
    model_type = config.get("model_type")
    known = [family.value for family in Family]
    if model_type not in known:
        raise UnsupportedConfigError(
            f"{name} has model_type {shown(model_type)}; supported: {', '.join(known)}."
        )
    family = Family(model_type)
    gptj = family is Family.GPTJ
    required = _REQUIRED | (_GPT2_ATTENTION if gptj else {})
    for attribute, value in config.items():
        if attribute in required:
            usual = required[attribute]
            if value != usual and value not in _HARMLESS.get(attribute, ()):
                raise UnsupportedConfigError(
                    f"{name} sets {attribute}={shown(value)}, which changes the model's output and is not "
                    f"supported; only {usual!r} is."
                )
        elif attribute not in _HANDLED and attribute not in _IGNORED:
            raise UnsupportedConfigError(
                f"{name} sets {attribute}={shown(value)}, which this library does not know; if it does not "
                "change the model's output, remove it from the file."
            )
    missing = [
        a
        for a in ("n_embd", "n_layer", "n_head", "vocab_size", "n_positions")
        if config.get(a) is None
    ]
    if missing:
        raise UnsupportedConfigError(f"{name} lacks {', '.join(missing)}.")
    used = {name: value for name, value in config.items() if name in _HANDLED}
    config = check(_Attributes, used, name, error=UnsupportedConfigError)
    activation = config.get("activation_function", "gelu_new")
    if activation not in _ACTIVATION_NAMES:
        raise UnsupportedConfigError(
            f"{name} sets activation_function={shown(activation)}; supported: {', '.join(_ACTIVATION_NAMES)}."
        )
    width = config["n_embd"]
    rotary_dim = config.get("rotary_dim", 64 if gptj else 0)
    if bool(rotary_dim) != gptj:
        raise UnsupportedConfigError(
            f"{name} sets rotary_dim={rotary_dim!r}: GPT-J needs a positive number, GPT-2 has none."
        )
    try:
        return ModelConfig(
            family=family,
            num_layers=config["n_layer"],
            width=width,
            num_heads=config["n_head"],
            mlp_width=config.get("n_inner") or 4 * width,
            vocab_size=config["vocab_size"],
            context_length=config["n_positions"],
            rotary_dim=rotary_dim or 0,
            activation=_ACTIVATION_NAMES[activation],
            layer_norm_epsilon=config.get("layer_norm_epsilon", 1e-5),
            tie_embeddings=config.get("tie_word_embeddings", not gptj),
            scale_scores=config.get("scale_attn_weights", True),
            scale_by_layer=config.get("scale_attn_by_inverse_layer_idx", False),
            upcast_attention=config.get("reorder_and_upcast_attn", False) and not gptj,
        )
    except UnsupportedConfigError as error:
        raise UnsupportedConfigError(f"{name}: {error}") from None


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """Builds the `config.json` with which `transformers` computes the same model; `from_hf` reads it back.

    Example:
      >>> from_hf(to_hf(model.config)) == model.config
      True
    """
    gptj = config.family is Family.GPTJ
    hf: dict[str, Any] = {
        "activation_function": config.activation.value,
        "architectures": ["GPTJForCausalLM" if gptj else "GPT2LMHeadModel"],
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "model_type": config.family.value,
        "n_embd": config.width,
        "n_head": config.num_heads,
        "n_inner": config.mlp_width,
        "n_layer": config.num_layers,
        "n_positions": config.context_length,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": config.tie_embeddings,
        "vocab_size": config.vocab_size,
    }
    if gptj:
        hf["rotary_dim"] = config.rotary_dim
    others = {
        "scale_attn_weights": (config.scale_scores, True),
        "scale_attn_by_inverse_layer_idx": (config.scale_by_layer, False),
        "reorder_and_upcast_attn": (config.upcast_attention, False),
    }
    return hf | {name: value for name, (value, usual) in others.items() if value != usual}


def _gpt2(num_layers: int, width: int, num_heads: int) -> ModelConfig:
    """Builds the config of a GPT-2 of any size."""
    return ModelConfig(Family.GPT2, num_layers, width, num_heads, 4 * width, 50257, 1024)


# Configs of published models by their names on the hub, for work with random weights and for tests.
PRESETS: Mapping[str, ModelConfig] = {
    "distilgpt2": _gpt2(6, 768, 12),
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
    "EleutherAI/gpt-j-6B": ModelConfig(
        Family.GPTJ, 28, 4096, 16, 16384, 50400, 2048, rotary_dim=64, tie_embeddings=False
    ),
}
