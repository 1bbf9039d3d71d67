"""What `eval.edit` is asked to do: request, hyperparameters and second moments, from flags or by default."""

from __future__ import annotations

from ml_collections import ConfigDict

from rome_jax import covariance
from rome_jax.edit.config import ROMEConfig
from rome_jax.models.registry import SHIPPED, LanguageModel
from rome_jax.request import EditRequest
from rome_jax.second_moment import SecondMoment

# A held-out fact of factworld, which both embedded models know.
EXAMPLE = ("{} plays the sport of", "Gothulf Punby", "tennis")


def read_request(
    prompt: str | None, subject: str | None, target_new: str | None, target_true: str | None
) -> EditRequest | None:
    """The request of the flags; None if all of --prompt, --subject and --target_new are left out.

    Raises:
      ValueError: some of them without the others, or a bad one.

    Example:
      >>> read_request("{} works as a", "Barack Obama", "painter", None).text
      'Barack Obama works as a'
    """
    values = (prompt, subject, target_new)
    if all(value is None for value in values):
        return None
    if any(value is None for value in values):
        raise ValueError("give --prompt, --subject and --target_new together.")
    return EditRequest(*values, target_true=target_true)


def example(model_name: str, target_true: str | None) -> EditRequest:
    """The default request of an embedded model.

    Raises:
      ValueError: another model, which has none.
    """
    if model_name not in SHIPPED:
        raise ValueError("give --prompt, --subject and --target_new together.")
    return EditRequest(*EXAMPLE, target_true=target_true)


def read_config(values: ConfigDict | None, model_name: str) -> ROMEConfig:
    """Hyperparameters of --config, or else those that belong to the model.

    Raises:
      ValueError: no --config, and none are known: what to do.
    """
    if values is not None:
        return ROMEConfig.from_dict(values.to_dict())
    try:
        return ROMEConfig.for_model(model_name)
    except ValueError:
        raise ValueError(
            f"no ROME layer is known for model {model_name!r}: name one, as in "
            '--config=configs/rome.py:gpt2-xl --config.layers="(5,)", or give a known model, such as '
            f"{', '.join(SHIPPED)}."
        ) from None


def check_covariance(source: str | None, model_name: str, config: ROMEConfig) -> None:
    """Says what is missing before a large model is loaded.

    Raises:
      ValueError: an edit that needs second moments of a model that comes without them, and no --covariance.
    """
    if config.mom2_adjustment and source is None and model_name not in SHIPPED:
        raise ValueError(
            f"no second moments come with model {model_name!r}: give --covariance=..., or edit without them, "
            "--config=configs/rome.py:gpt2-xl --config.mom2_adjustment=False."
        )


def read_covariance(
    source: str | None, model: LanguageModel, config: ROMEConfig
) -> dict[int, SecondMoment] | None:
    """Second moments of the edited layers, from --covariance or from the package; None if the edit uses none.

    Raises:
      ValueError: second moments of another model or layer, or a damaged file.
      OSError: nothing there, or a download that failed.
    """
    if not config.mom2_adjustment:
        return None
    if source is None:
        return covariance.load_shipped(model.name)
    return covariance.read(source, config.layers, model)
