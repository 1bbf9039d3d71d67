"""A Hugging Face GPT-2 with the weights of `weights.random_params`, created on torch's device.

This module does not import jax.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.gpu.child import Context
from benchmarks.gpu.counters import HALF_WIDTH, scramble, seed_of
from benchmarks.timing_torch import torch_device

# rome_jax's leaf by the name of GPT-2's tensor in a layer. Both store kernels as [in, out].
_LAYER = {
    "attn.c_attn": "blocks/attn/qkv/kernel",
    "attn.c_proj": "blocks/attn/out/kernel",
    "mlp.c_fc": "blocks/mlp/up/kernel",
    "mlp.c_proj": "blocks/mlp/down/kernel",
}


def load_shared(context: Context, kind: str) -> tuple[dict[str, np.ndarray], GPT2LMHeadModel]:
    """Loads the arrays that the rome_jax part has saved, and creates the model they belong to.

    Args:
      context: Context of the PyTorch part.
      kind: "edit" or "trace".

    Returns:
      (arrays by name, model).

    Raises:
      SystemExit: If the rome_jax part has saved nothing.
    """
    path = context.shared_file(f"{kind}_{context.size}_{context.dtype}.npz")
    if not path.is_file():
        raise SystemExit(f"The rome_jax part saved no {kind} to compare with; see its outcome.")
    with np.load(path) as file:
        shared = dict(file)
    config = json.loads(str(shared["config"]))
    return shared, random_gpt2(config, context.dtype, torch_device())


def random_gpt2(hf_config: Mapping[str, Any], dtype: str, device: torch.device) -> GPT2LMHeadModel:
    """Creates the model for inference.

    Args:
      hf_config: Content of a Hugging Face `config.json`.
      dtype: Dtype of the weights, such as "bfloat16".
      device: Device of the weights.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with device:
            model = GPT2LMHeadModel(GPT2Config(**hf_config))
    finally:
        torch.set_default_dtype(before)
    model = model.eval().requires_grad_(False)
    for name in ("wte", "wpe"):
        _fill(getattr(model.transformer, name).weight, seed_of(f"{name}/embedding"))
    for layer, block in enumerate(model.transformer.h):
        for name, path in _LAYER.items():
            module = block.get_submodule(name)
            _fill(module.weight, seed_of(path, layer))
            module.bias.zero_()
    return model


@torch.no_grad()
def _fill(weight: torch.Tensor, seed: int) -> None:
    """Overwrites a weight with the numbers of `weights._uniform`."""
    # torch.arange is int64, so products keep their low 32 bits.
    index = torch.arange(weight.numel(), device=weight.device)
    unit = (scramble((index + seed) & 0xFFFFFFFF) >> 8).float() * 2.0**-23 - 1
    weight.copy_((unit * HALF_WIDTH).reshape(weight.shape))
