"""A suggestion for models whose weights would take most of a device's memory in float32."""

from __future__ import annotations

import math
import os
from pathlib import Path

from rome_jax.files.safetensors_io import read_header
from rome_jax.models import gguf_files
from rome_jax.models.devices import device_memory
from rome_jax.models.locate import is_local, read_config
from rome_jax.models.registry import known_config
from rome_jax.models.weights import leaf_shapes

_FLOAT32_BYTES = 4
# A model on the hub that has a branch with half-precision weights, and the name of that branch.
_GPTJ, _GPTJ_BRANCH = "eleutherai/gpt-j-6b", "float16"


def suggestion(
    name: str, revision: str | None = None, *, memory: int | None = None, devices: int = 1
) -> str | None:
    """Suggests a half-precision dtype for a model that is about to be loaded in float32.

    Only GPT-J on the hub and models with more than half of the device's memory get one. Nothing is downloaded, so other
    models on the hub than those that `known_config` knows get none.

    Args:
      name: Name of the model, as in `rome_jax.load_model`.
      revision: Branch, tag, or commit on the hub.
      memory: Memory of a device in bytes; that of the first device by default.
      devices: Number of devices that share the weights.

    Returns:
      One sentence without a full stop, or None.

    Example:
      >>> from rome_jax.models import half_precision
      >>> print(half_precision.suggestion("gpt2-xl", memory=10**10))
      gpt2-xl has 6.2 GB of float32 weights, and this device has 10.0 GB: --dtype=bfloat16 or float16 halves them
      >>> half_precision.suggestion("gpt2-xl", memory=10**11) is None
      True
    """
    config = known_config(name)
    if config is None or revision is not None or stored_dtype(name) != "float32":
        return None
    size = _FLOAT32_BYTES * sum(math.prod(shape) for shape in leaf_shapes(config).values())
    one = device_memory() if memory is None else memory
    have = None if one is None else devices * one
    owner = "this device has" if devices == 1 else f"these {devices} devices have"
    is_gptj = name.lower() == _GPTJ
    if not is_gptj and (have is None or 2 * size <= have):
        return None
    about = "" if have is None else f", and {owner} {have / 1e9:.1f} GB"
    remedy = "--dtype=bfloat16 or float16 halves them"
    if is_gptj:
        remedy += f", and --revision={_GPTJ_BRANCH} halves the download too"
    return f"{name} has {size / 1e9:.1f} GB of float32 weights{about}: {remedy}"


def stored_dtype(name: str) -> str:
    """Returns the dtype in which a model's weights load by default."""
    place = Path(os.path.expanduser(name))
    if not is_local(name) or gguf_files.is_gguf(place):
        return "float32"  # the presets on the hub, and GGUF files, which are dequantized
    files = sorted(place.glob("model*.safetensors"))
    if not files:
        stored = read_config(place)
        return str(stored.get("dtype") or stored.get("torch_dtype") or "float32")
    return str(max(read_header(files[0]).values(), key=lambda one: math.prod(one.shape)).dtype)
