"""The config.json of every preset is read correctly, and unsupported attributes are refused by name."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rome_jax.models.config import (
    Activation,
    Family,
    Rotary,
    RotaryPairs,
    UnsupportedConfigError,
)
from rome_jax.models.families import PRESETS, family_config, from_hf, to_hf
from rome_jax.models.huggingface import checkpoint_shapes
from tests.models.checkpoints import FAMILIES, tiny_config

CONFIGS = Path(__file__).parent / "configs"


# The config.json of releases as published, and their published numbers of parameters.
PARAMETERS = {
    "Llama-2-7b-hf": 6_738_415_616,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.2-1B": 1_235_814_400,
    "SmolLM2-135M": 134_515_008,
    "SmolLM2-360M": 361_821_120,
    "SmolLM2-1.7B": 1_711_376_384,
    "TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "Qwen2-0.5B": 494_032_768,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen3-0.6B": 596_049_920,
    "Mistral-7B-v0.3": 7_248_023_552,
    "pythia-70m": 70_426_624,
    "pythia-410m": 405_334_016,
    "pythia-6.9b": 6_857_302_016,
    "gpt-neox-20b": 20_554_567_680,
}


def published(name: str) -> dict:
    """Reads the config.json of a release, by its name on the hub without the owner, in any case."""
    (path,) = (path for path in CONFIGS.iterdir() if path.stem.lower() == name.lower())
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", PRESETS)
def test_the_hub_config_of_every_preset_is_the_preset(name):
    assert from_hf(published(name.split("/")[-1])) == PRESETS[name]


@pytest.mark.parametrize("name, count", PARAMETERS.items())
def test_released_models_have_the_published_number_of_parameters(name, count):
    config = from_hf(published(name))
    assert sum(map(math.prod, checkpoint_shapes(config).values())) == count
    assert from_hf(to_hf(config)) == config


@pytest.mark.parametrize(
    "attribute, value",
    [
        ("add_cross_attention", True),
        ("is_encoder_decoder", True),
        ("cross_attention_hidden_size", 64),
        ("pruned_heads", {"0": [1]}),
        ("quantization_config", {"bits": 4}),
        ("rotary", False),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("rope_parameters", {"rope_theta": 1e6}),
        ("activation_function", "tanh"),
        ("a_new_trick", 1),
        ("model_type", "gemma"),
        ("n_embd", None),
        ("n_positions", 0),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_computed_is_refused_by_name(family, attribute, value):
    hub = to_hf(tiny_config(family)) | {attribute: value}
    with pytest.raises(UnsupportedConfigError, match=attribute):
        from_hf(hub)


@pytest.mark.parametrize(
    "attribute, value", [("scale_attn_weights", False), ("scale_attn_by_inverse_layer_idx", True)]
)
def test_scaling_of_scores_belongs_to_gpt2(attribute, value):
    with pytest.raises(UnsupportedConfigError, match=attribute):
        from_hf(to_hf(tiny_config("gptj")) | {attribute: value})
    hub = to_hf(tiny_config("gpt2")) | {attribute: value, "reorder_and_upcast_attn": True}
    config = from_hf(hub)
    assert config != tiny_config("gpt2") and to_hf(config) == hub


@pytest.mark.parametrize(
    "attribute, value, want",
    [
        ("n_layer", "6", 6),
        ("n_layer", 6.0, 6),
        ("n_layer", [6], None),
        ("n_layer", 1e9, None),
        ("n_layer", True, None),
        ("n_layer", 2**70, None),
        ("n_embd", 18 * 10**9, None),
        ("vocab_size", {"a": 1}, None),
        ("n_positions", float("nan"), None),
        ("n_inner", "many", None),
        ("layer_norm_epsilon", float("inf"), None),
        ("layer_norm_epsilon", "1e-5", 1e-5),
        ("layer_norm_epsilon", 0, None),
        ("tie_word_embeddings", "false", False),
        ("tie_word_embeddings", "perhaps", None),
        ("activation_function", ["relu"], None),
        ("activation_function", None, None),
    ],
)
def test_values_are_converted_or_refused(attribute, value, want):
    hub = to_hf(tiny_config("gpt2")) | {attribute: value}
    if want is None:
        with pytest.raises(UnsupportedConfigError, match=f"x/config.json: {attribute}=") as error:
            from_hf(hub, "x/config.json")
        assert len(str(error.value)) < 300 and "\n" not in str(error.value)
    else:
        assert to_hf(from_hf(hub))[attribute] == want


@pytest.mark.parametrize("family, rotary_dim", [("gpt2", 4), ("gptj", 0), ("gptj", None)])
def test_positions_that_the_family_has_not_are_refused(family, rotary_dim):
    with pytest.raises(UnsupportedConfigError, match="rotary_dim"):
        from_hf(to_hf(tiny_config(family)) | {"rotary_dim": rotary_dim})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_model_type_is_refused(family):
    hub = to_hf(tiny_config(family))
    del hub["model_type"]
    with pytest.raises(UnsupportedConfigError, match="gpt2, gptj"):
        from_hf(hub)


@pytest.mark.parametrize(
    "attributes",
    [
        {"is_decoder": False, "pruned_heads": None, "use_cache": False},
        {"attn_pdrop": 0.5, "id2label": {"0": "A"}, "torch_dtype": "float16", "eos_token_id": 3},
        {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "n_ctx": 32},
        {"_attn_implementation_autoset": True, "attn_implementation": "sdpa"},
        {"_flash_attn_2_enabled": True},
    ],
)
def test_attributes_without_an_effect_are_ignored(attributes):
    config = tiny_config(Family.GPT2)
    assert from_hf(to_hf(config) | attributes) == config


@pytest.mark.parametrize(
    "config", [config for config in PRESETS.values() if config.family.value in FAMILIES]
)
def test_defaults_of_hugging_face_fill_in_what_the_file_leaves_out(config):
    hub = to_hf(config)
    for attribute in (
        "n_inner",
        "layer_norm_epsilon",
        "activation_function",
        "tie_word_embeddings",
    ):
        del hub[attribute]
    assert from_hf(hub) == config


@given(
    gptj=st.booleans(),
    num_layers=st.integers(1, 99),
    num_heads=st.integers(1, 40),
    head_dim=st.integers(2, 128),
    mlp_width=st.integers(1, 9999),
    vocab_size=st.integers(1, 99999),
    context_length=st.integers(1, 4096),
    rotary=st.floats(0, 1),
    activation=st.sampled_from(Activation),
    epsilon=st.floats(1e-12, 1e-2),
    tie=st.booleans(),
)
def test_to_hf_and_back(
    gptj,
    num_layers,
    num_heads,
    head_dim,
    mlp_width,
    vocab_size,
    context_length,
    rotary,
    activation,
    epsilon,
    tie,
):
    dim = max(2, int(rotary * head_dim) // 2 * 2)
    config = family_config(
        Family.GPTJ if gptj else Family.GPT2,
        num_layers,
        num_heads * head_dim,
        num_heads,
        mlp_width,
        vocab_size,
        context_length,
        rotary=Rotary(dim, RotaryPairs.INTERLEAVED) if gptj else None,
        activation=activation,
        norm_epsilon=epsilon,
        tie_embeddings=tie,
    )
    assert from_hf(json.loads(json.dumps(to_hf(config)))) == config


@pytest.mark.parametrize(
    "change, complaint",
    [
        (
            {"num_heads": 4, "head_dim": 0, "num_kv_heads": 0},
            "width 18 is not divisible by num_heads 4",
        ),
        ({"num_heads": 9, "head_dim": 2, "num_kv_heads": 2}, "not divisible by num_kv_heads 2"),
        ({"rotary": Rotary(8)}, "8 rotated dimensions are more than the head width 6"),
        ({"parallel_residual": False}, "shared_norm needs parallel_residual"),
        ({"fused_qkv": True, "num_kv_heads": 1}, "fused_qkv needs as many heads of keys"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"qk_norm": True}, "qk_norm is only supported with norm=Norm.RMS"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, complaint):
    with pytest.raises(UnsupportedConfigError, match=complaint):
        dataclasses.replace(tiny_config(Family.GPTJ), **change)


def test_a_layer_that_does_not_exist_is_named():
    config = tiny_config(Family.GPT2)
    assert [config.check_layer(i) for i in range(3)] == [0, 1, 2]
    for layer in (-1, 3):
        with pytest.raises(ValueError, match=rf"edit_layer={layer} does not exist.*0 to 2"):
            config.check_layer(layer, "edit_layer")


def test_a_config_is_hashable_and_equal_by_value():
    assert {tiny_config("gpt2"), tiny_config("gpt2")} == {tiny_config("gpt2")}
    assert tiny_config("gpt2") != tiny_config("gpt2", precision=jax.lax.Precision.DEFAULT)
