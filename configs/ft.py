"""Fine-tuning's hyperparameters by model and variant (unconstr is FT, constr is FT-L, attn is FT-attn):
--config=configs/ft.py:gpt2-xl,constr, any field overridden by --config.FIELD=VALUE."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from rome_jax.edit.baseline_config import FT_VARIANTS, FTConfig


def get_config(argument: str = "factworld-gpt2,unconstr") -> ConfigDict:
    """The published (factworld: shipped) configuration of MODEL,VARIANT; an unknown one is an error."""
    model_name, _, variant = argument.partition(",")
    if variant not in FT_VARIANTS:
        raise ValueError(
            f"variant={variant!r} is none of {', '.join(FT_VARIANTS)}: give MODEL,VARIANT."
        )
    values = FTConfig.for_model(model_name, FT_VARIANTS[variant]).to_dict()
    if values["norm_constraint"] is None:
        values["norm_constraint"] = placeholder(float)  # a flag can still set it
    return ConfigDict(values, convert_dict=False)
