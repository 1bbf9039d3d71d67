"""Names of methods with modifiers."""

import pytest

from configs._method import config_function
from rome_jax.edit.config import MethodName, ROMEConfig
from rome_jax.edit.method import read_config
from rome_jax.edit.methods.alphaedit import AlphaEditConfig
from rome_jax.edit.spread_config import Modifier
from rome_jax.edit.variant import MethodVariant
from rome_jax.evaluation.comparison import model_config


@pytest.mark.parametrize("name", MethodName)
def test_a_name_alone_is_the_method(name):
    variant = MethodVariant.parse(name.lower())
    assert variant == name and variant.method is name and variant.modifiers == ()
    assert {name: 1}[variant] == 1, "results are looked up by either"


def test_modifiers_keep_their_order_and_reach_the_configuration():
    variant = MethodVariant.parse(" alphaedit + nas+BLUE")
    assert variant == "AlphaEdit+NAS+BLUE"
    assert variant.modifiers == (Modifier.NAS, Modifier.BLUE)
    config = variant.modify(AlphaEditConfig((1, 2, 3)))
    assert config.modifiers == variant.modifiers
    assert MethodVariant.of(MethodName.ALPHAEDIT, config) == variant
    assert MethodVariant("AlphaEdit").modify(config) is config, "a file may name them, too"


@pytest.mark.parametrize(
    ("model", "ridge", "layers"), [("gpt2-xl", 80, (13, 17)), ("gpt-j-6B", 95, (3, 8))]
)
def test_what_was_published_for_a_modified_method_is_known(model, ridge, layers):
    variant = MethodVariant("AlphaEdit+NAS+BLUE")
    config = variant.modify(read_config(variant.method, model, modifiers=variant.modifiers))
    assert (config.L2, config.written_layers) == (ridge, layers)
    assert model_config(variant, model, "wikipedia") == config
    file = config_function(MethodName.ALPHAEDIT)(f"{model},NAS+BLUE")
    assert variant.modify(read_config(variant.method, model, file)) == config
    plain = read_config(MethodName.ALPHAEDIT, model)
    assert variant.modify(plain).L2 == plain.L2 == 10, "given values are kept"


@pytest.mark.parametrize("text", ["MEMIT+", "MEMIT+X", "X", "", "+RECT", "RECT"])
def test_unknown_names_are_refused(text):
    with pytest.raises(ValueError, match=r"give one of ROME, .* any of BLUE, NAS, RECT, PRUNE"):
        MethodVariant.parse(text)


def test_a_modifier_is_given_once():
    with pytest.raises(ValueError, match="give each modifier once"):
        MethodVariant.parse("MEMIT+RECT+rect")


def test_only_methods_that_spread_edits_take_modifiers():
    with pytest.raises(ValueError, match=r"ROME\+RECT: ROME takes no modifiers"):
        MethodVariant("ROME+RECT").modify(ROMEConfig(1))
