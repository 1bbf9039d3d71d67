"""Configuration files for `--config`, made from the methods of the library.

A file calls `config_function` and keeps the result under the name `get_config`, which ml_collections looks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from rome_jax.edit.config import MethodName
from rome_jax.edit.method import METHODS
from rome_jax.edit.variant import MethodVariant

_DEFAULT_MODEL = "factworld-gpt2"


def config_function(method: MethodName) -> Callable[..., ConfigDict]:
    """Returns the `get_config` of a method; the text after the colon of `--config=FILE:MODEL` names the model.

    "MODEL,MODIFIER+MODIFIER" gives what is known for the modified method.

    Example:
      >>> config_function(MethodName.ROME)("gpt2-xl").layers
      (17,)
      >>> config_function(MethodName.ALPHAEDIT)("gpt2-xl,BLUE").L2
      80.0
    """

    def get_config(argument: str = _DEFAULT_MODEL) -> ConfigDict:
        """Returns the published (for factworld: shipped) hyperparameters; raises ValueError for an unknown model."""
        model, comma, names = argument.partition(",")
        variant = MethodVariant.parse(f"{method}+{names}" if comma else method)
        return _values(variant, model)

    return get_config


def config_function_of_variants(variants: Mapping[str, MethodName]) -> Callable[..., ConfigDict]:
    """Returns the `get_config` of several methods in one file, which `--config=FILE:MODEL,VARIANT` selects.

    Args:
      variants: The methods by the names of their variants; the first is the default.

    Example:
      >>> config_function_of_variants({"constr": MethodName.FT_L})("gpt2-xl,constr").norm_constraint
      0.0005
    """

    def get_config(argument: str = f"{_DEFAULT_MODEL},{next(iter(variants))}") -> ConfigDict:
        """Returns the hyperparameters of "MODEL,VARIANT"; raises ValueError for an unknown model or variant."""
        model, _, variant = argument.partition(",")
        if variant not in variants:
            raise ValueError(
                f"variant={variant!r} must be one of {', '.join(variants)}: give MODEL,VARIANT."
            )
        return _values(MethodVariant(variants[variant]), model)

    return get_config


def _values(variant: MethodVariant, model: str) -> ConfigDict:
    """Returns the hyperparameters as a ConfigDict whose unset bounds a flag can still set to a float."""
    known = METHODS[variant.method].for_model(model, variant.modifiers)
    values = variant.modify(known).to_dict()
    typed = {name: placeholder(float) if v is None else v for name, v in values.items()}
    return ConfigDict(typed, convert_dict=False)
