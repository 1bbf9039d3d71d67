"""The model, which is looked for before anything else is done."""

from __future__ import annotations

import re
from pathlib import Path

from absl import flags

from rome_jax.models.registry import (
    SHIPPED,
    LanguageModel,
    ModelNotFoundError,
    as_dtype,
    load_model,
)
from rome_jax.terminal.waiting import waiting

NAME = flags.DEFINE_string("model_name", "factworld-gpt2", "Shipped or hub name, or directory.")
DTYPE = flags.DEFINE_string("dtype", None, "Of the weights, such as bfloat16; default: as stored.")
PRECISION = flags.DEFINE_enum(
    "precision",
    "highest",
    ["highest", "high", "default", "float32", "float64"],
    "Of matrix products: highest is true float32 on every device, default is faster on GPUs; float32 and "
    "float64, words of the original's statistics, mean highest.",
    case_sensitive=False,
)

# What the hub has for sure: such a name is refused only when it is loaded, and then with what to do about it.
_ON_THE_HUB = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "EleutherAI/gpt-j-6B")

_SECONDS = 10  # in which the hub has to answer


def check() -> str:
    """The model's name, if there may be such a model: what can be known without its weights.

    Raises:
      ModelNotFoundError: there is none; the sentence says which there are.
      ValueError: a dtype that weights cannot have.
    """
    name = NAME.value
    as_dtype(DTYPE.value)
    if name in (*SHIPPED, *_ON_THE_HUB) or (name and Path(name).expanduser().is_dir()):
        return name
    if name.startswith("factworld") or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        raise _unknown(name, "it is neither a directory nor a possible name")
    import huggingface_hub  # slow to import
    from huggingface_hub import errors

    if isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str):
        return name
    try:  # not hf_hub_download, which tries for half a minute where there is no network
        url = huggingface_hub.hf_hub_url(name, "config.json")
        huggingface_hub.get_hf_file_metadata(url, timeout=_SECONDS)
    except (errors.GatedRepoError, errors.RemoteEntryNotFoundError):
        return name  # loading it says what is wrong
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise _unknown(name, "the hub has no such model") from error
    except Exception as error:  # clients differ in how they say that there is no connection
        why = "it is not on this machine, and the hub cannot be reached to look for it"
        raise _unknown(name, why) from error
    return name


def check_shipped() -> str:
    """The model's name, if it comes with the package.

    Raises:
      ModelNotFoundError: another model.
    """
    if NAME.value not in SHIPPED:
        raise ModelNotFoundError(
            f"unknown model {NAME.value!r} among those that come with the package: give one of {', '.join(SHIPPED)}."
        )
    return NAME.value


def load() -> LanguageModel:
    """The model of --model_name, --dtype and --precision.

    Raises:
      ValueError, OSError: as `load_model`.
    """
    precision = {"float32": "highest", "float64": "highest"}.get(PRECISION.value, PRECISION.value)
    with waiting(f"loading {NAME.value}"):
        return load_model(NAME.value, dtype=DTYPE.value, precision=precision)


def _unknown(name: str, why: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"unknown model {name!r} ({why}): give one of {', '.join(SHIPPED)}, the directory of a Hugging Face model, or "
        "a name on the hub such as gpt2-xl or EleutherAI/gpt-j-6B."
    )
