"""MEND's hyperparameters by model: --config=configs/mend.py:gpt2-xl, any field overridden by --config.FIELD=VALUE."""

from ml_collections import ConfigDict

from rome_jax.edit.baseline_config import MENDConfig


def get_config(model_name: str = "factworld-gpt2") -> ConfigDict:
    """The published (factworld: shipped) configuration of a model; an unknown name is an error."""
    return ConfigDict(MENDConfig.for_model(model_name).to_dict(), convert_dict=False)
