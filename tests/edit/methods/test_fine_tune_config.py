"""Hyperparameters of fine-tuning: the published values, their checks, and the config files."""

import pytest

from configs import ft
from rome_jax.edit.baseline_config import FTConfig, TargetScoring
from rome_jax.edit.config import MethodName
from rome_jax.models.families import PRESETS
from rome_jax.models.interventions import Leaf

CONFIG = FTConfig((2,), num_steps=2, lr=1e-2, loss_threshold=0.0)


@pytest.mark.parametrize(
    ("name", "variant", "values"),
    [
        ("gpt2-medium", MethodName.FT_L, {"layers": (0,), "norm_constraint": 2e-3}),
        ("gpt2-large", MethodName.FT_L, {"layers": (0,), "norm_constraint": 1e-3}),
        ("gpt2-xl", MethodName.FT, {"layers": (1,)}),
        ("gpt2-xl", MethodName.FT_L, {"layers": (0,), "norm_constraint": 5e-4}),
        (
            "gpt2-xl",
            MethodName.FT_ATTN,
            {"layers": (33,), "leaves": (Leaf.ATTN_QKV,), "lr": 1e-3, "norm_constraint": 1e-3},
        ),
        ("EleutherAI/gpt-j-6B", MethodName.FT, {"layers": (21,)}),
        ("EleutherAI/gpt-j-6B", MethodName.FT_L, {"layers": (0,), "norm_constraint": 5e-5}),
    ],
)
def test_published_values(name, variant, values):
    common = {
        "leaves": (Leaf.MLP_DOWN,),
        "num_steps": 25,
        "lr": 5e-4,
        "weight_decay": 0.0,
        "norm_constraint": None,
        "loss_threshold": 1e-2,
        "batch_size": 64,
        "scoring": TargetScoring.EACH_TOKEN,
    }
    assert FTConfig.for_model(name, variant) == FTConfig(**(common | values))
    PRESETS[name].check_layer(values["layers"][0])


def test_an_unknown_model_is_named():
    with pytest.raises(
        ValueError, match=r"no FT-attn .* 'gpt2-large' \(known: gpt2-xl, .*FTConfig"
    ):
        FTConfig.for_model("gpt2-large", MethodName.FT_ATTN)
    with pytest.raises(ValueError, match="'gpt5'"):  # rather than an unbounded configuration
        FTConfig.for_model("gpt5", MethodName.FT_L, layers=(0,))


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": ()},
        {"layers": (1, 1)},
        {"num_steps": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"norm_constraint": 0.0},
        {"norm_constraint": -5e-4},
        {"weight_decay": -0.1},
        {"loss_threshold": -1e-2},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named(changes):
    ((field, value),) = changes.items()
    with pytest.raises(ValueError) as error:
        FTConfig(**({"layers": (1,)} | changes))
    assert f"{field}={value!r}" in str(error.value)


def test_weights_are_named_exactly_once():
    for leaves in ((), (Leaf.MLP_UP, Leaf.MLP_UP)):
        with pytest.raises(ValueError, match=r"leaves=\(.*name at least one weight, each once"):
            FTConfig((1,), leaves=leaves)


@pytest.mark.parametrize("config", [CONFIG, FTConfig.for_model("gpt2-xl", MethodName.FT_ATTN)])
def test_configurations_survive_the_round_trip_through_plain_values(config):
    assert FTConfig.from_dict(config.to_dict()) == config
    assert config.to_dict()["leaves"][0] in ("MLP_DOWN", "ATTN_QKV")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"leaves": ["MLP"]}, "leaves[0]='MLP': give one of ATTN_QKV, "),
        ({"scoring": "last"}, "scoring='last': give one of each_token, reference"),
        ({"kl_factor": 1.0}, "no hyperparameter kl_factor; there are batch_size, "),
    ],
)
def test_unknown_plain_values_are_named(values, message):
    with pytest.raises(ValueError) as error:
        FTConfig.from_dict({"layers": [1]} | values)
    assert message in str(error.value)


def test_the_config_file_has_every_variant():
    for argument, model_name, variant in (
        ("gpt2-xl,constr", "gpt2-xl", MethodName.FT_L),
        ("gpt-j-6b,unconstr", "gpt-j-6b", MethodName.FT),
        ("factworld-gptj,attn", "factworld-gptj", MethodName.FT_ATTN),
    ):
        read = FTConfig.from_dict(ft.get_config(argument).to_dict())
        assert read == FTConfig.for_model(model_name, variant)
    assert FTConfig.from_dict(ft.get_config().to_dict()) == FTConfig.for_model("factworld-gpt2")
    free = ft.get_config("gpt2-xl,unconstr")
    free.norm_constraint = 1e-3  # as a flag does
    assert FTConfig.from_dict(free.to_dict()).norm_constraint == 1e-3


@pytest.mark.parametrize("argument", ["gpt2-xl", "gpt2-xl,", "gpt2-xl,ft", "gpt2-xl,attn,x"])
def test_the_config_file_refuses_other_arguments(argument):
    with pytest.raises(
        ValueError, match="must be one of unconstr, constr, attn: give MODEL,VARIANT"
    ):
        ft.get_config(argument)
