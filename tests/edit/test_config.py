"""Hyperparameters: the published ones, and what is refused."""

import dataclasses

import pytest

from rome_jax.data.positions import FactToken
from rome_jax.edit.config import KeyMode, ROMEConfig
from rome_jax.models.families import PRESETS

# REFERENCE.md: layer and clamp factor of each model; the rest is the same for all.
PUBLISHED = [
    ("gpt2-medium", 8, 3),
    ("gpt2-large", 12, 4),
    ("gpt2-xl", 17, 4),
    ("EleutherAI/gpt-j-6B", 5, 4),
]


@pytest.mark.parametrize(("name", "layer", "clamp"), PUBLISHED)
def test_published_values(name, layer, clamp):
    assert ROMEConfig.for_model(name) == ROMEConfig(
        layers=(layer,),
        fact_token=FactToken.SUBJECT_LAST,
        v_num_grad_steps=20,
        v_lr=0.5,
        v_weight_decay=0.5,
        clamp_norm_factor=clamp,
        kl_factor=0.0625,
        mom2_adjustment=True,
        loss_threshold=0.05,
        context_template_length_params=((5, 10), (10, 10)),
        key_mode=KeyMode.REFERENCE,
    )
    PRESETS[name].check_layer(layer)


def test_every_preset_is_published_or_shipped():
    published = {name.split("/")[-1].lower() for name, _, _ in PUBLISHED}
    assert set(ROMEConfig.published) == published | {"factworld-gpt2", "factworld-gptj"}
    for name in ROMEConfig.published:
        assert ROMEConfig.for_model(name).layers


@pytest.mark.parametrize(
    "name", ["gpt2-xl", "openai-community/gpt2-xl", "GPT2-XL", "/models/gpt2-xl/"]
)
def test_names_may_have_an_owner_or_be_a_directory(name):
    assert ROMEConfig.for_model(name).layers == (17,)


def test_an_unknown_model_is_named_with_those_that_are_known():
    with pytest.raises(ValueError, match=r"'gpt5' \(known: gpt2-medium, .*pass layers="):
        ROMEConfig.for_model("gpt5")
    with pytest.raises(ValueError, match="gpt5"):
        ROMEConfig.for_model("gpt5", v_lr=0.1)


def test_changes_win_over_presets():
    config = ROMEConfig.for_model("gpt2-medium", layers=(3,), key_mode=KeyMode.CONSISTENT)
    assert (config.layers, config.clamp_norm_factor, config.key_mode) == (
        (3,),
        3,
        KeyMode.CONSISTENT,
    )
    assert ROMEConfig.for_model("gpt5", layers=(2,)) == ROMEConfig((2,))


def test_a_change_of_no_field_is_an_error():
    with pytest.raises(TypeError, match="v_learning_rate"):
        ROMEConfig.for_model("gpt2-xl", v_learning_rate=0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": ()},
        {"layers": (2, 2)},
        {"layers": (-1, 2)},
        {"v_num_grad_steps": 0},
        {"v_lr": 0.0},
        {"v_lr": -1.0},
        {"clamp_norm_factor": 0.0},
        {"clamp_norm_factor": -4.0},
        {"v_weight_decay": -0.5},
        {"kl_factor": -1e-3},
        {"loss_threshold": -0.05},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named(changes):
    ((field, value),) = changes.items()
    with pytest.raises(ValueError) as error:
        ROMEConfig(**({"layers": (1,)} | changes))
    assert f"{field}={value!r}" in str(error.value)


@pytest.mark.parametrize("field", ["v_weight_decay", "kl_factor", "loss_threshold"])
def test_factors_may_be_zero(field):
    assert getattr(ROMEConfig((1,), **{field: 0.0}), field) == 0


def test_layers_are_sorted():
    assert ROMEConfig((4, 1, 2)).layers == (1, 2, 4)
    assert ROMEConfig([4, 1]) == ROMEConfig((1, 4))


def test_a_config_is_a_static_argument():
    assert hash(ROMEConfig((4, 1))) == hash(ROMEConfig((1, 4)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        ROMEConfig((1,)).v_lr = 1.0
