"""Hyperparameters: the published ones, and what is refused."""

import dataclasses
import math

import numpy as np
import pytest

from rome_jax.data.positions import FactToken
from rome_jax.edit.baseline_config import FTConfig, KEConfig, KNConfig, MENDConfig
from rome_jax.edit.config import KeyMode, ROMEConfig
from rome_jax.edit.hypernetworks.training_config import TrainingConfig
from rome_jax.edit.spread_config import MEMITConfig
from rome_jax.models.families import PRESETS
from rome_jax.models.registry import NAMES

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
    assert set(ROMEConfig.published) == published | set(NAMES)
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


# What JSON, YAML, flags and notebooks give for a value, and what it means.
@pytest.mark.parametrize(
    ("field", "given", "meant"),
    [
        ("mom2_adjustment", "false", False),
        ("mom2_adjustment", 0, False),
        ("v_lr", "5e-1", 0.5),
        ("v_lr", np.float32(0.5), 0.5),
        ("clamp_norm_factor", 4, 4.0),
        ("v_num_grad_steps", 20.0, 20),
        ("v_num_grad_steps", "20", 20),
        ("layers", 17, (17,)),
        ("layers", "17", (17,)),
        ("layers", ["17"], (17,)),
        ("layers", [17.0, 3], (3, 17)),
        ("context_template_length_params", [["5", 10.0]], ((5, 10),)),
        ("fact_token", "last", FactToken.LAST),
        ("key_mode", "CONSISTENT", KeyMode.CONSISTENT),
    ],
)
def test_a_value_has_the_type_of_its_field(field, given, meant):
    values = {"layers": (1,), field: given}
    for config in (ROMEConfig(**values), ROMEConfig.from_dict(values)):
        assert getattr(config, field) == meant
        assert type(getattr(config, field)) is type(meant)
        assert hash(config) == hash(ROMEConfig.from_dict(config.to_dict()))


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("mom2_adjustment", "no way", "true or false"),
        ("mom2_adjustment", None, "true or false"),
        ("v_lr", None, "a finite number"),
        ("v_lr", math.nan, "a finite number"),
        ("v_lr", "inf", "a finite number"),
        ("v_lr", 1e300, "a number of 3.4"),
        ("v_lr", 10**400, "a finite number"),
        ("v_lr", True, "a finite number"),
        ("kl_factor", math.nan, "a finite number"),
        ("v_num_grad_steps", 20.5, "an integer"),
        ("v_num_grad_steps", 10**30, "a number"),
        ("v_num_grad_steps", 10**9, "a number of 100000 or less"),
        ("layers", None, "a list"),
        ("layers", {"17": 1}, "a list"),
        ("context_template_length_params", ((5, 10**9),), "a number of 10000 or less"),
    ],
)
def test_another_value_is_refused_in_one_sentence(field, value, wanted):
    with pytest.raises(ValueError, match=rf"^{field}[^:\n]*=.*: give {wanted}[^\n]*\.$"):
        ROMEConfig(**{"layers": (1,), field: value})


def test_every_number_of_every_configuration_refuses_nan():
    tried = 0
    for config in (ROMEConfig(1), MEMITConfig(1), FTConfig(1, norm_constraint=1), KNConfig(1)) + (
        MENDConfig(1),
        KEConfig(1),
        TrainingConfig(1e-3, margin=0.1),
    ):
        for name, value in vars(config).items():
            if type(value) in (int, float):
                for bad in (
                    math.nan,
                    math.inf,
                    -math.inf,
                    "NaN",
                    None if type(value) is int else True,
                ):
                    with pytest.raises(ValueError, match=f"^{name}="):
                        dataclasses.replace(config, **{name: bad})
                tried += 1
    assert tried > 35


def test_a_list_of_templates_without_pairs_is_refused():
    with pytest.raises(ValueError, match=r"^context_template_length_params\[0\]=5: give a list\.$"):
        ROMEConfig(1, context_template_length_params=[5, 10])


def test_layers_are_sorted():
    assert ROMEConfig((4, 1, 2)).layers == (1, 2, 4)
    assert ROMEConfig([4, 1]) == ROMEConfig((1, 4))


def test_a_config_is_a_static_argument():
    assert hash(ROMEConfig((4, 1))) == hash(ROMEConfig((1, 4)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        ROMEConfig((1,)).v_lr = 1.0
