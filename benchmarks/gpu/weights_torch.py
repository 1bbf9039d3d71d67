"""A Hugging Face GPT-2 with the weights of `weights.random_params`, made where torch computes. Imports no jax."""

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

# Our leaf by the name of GPT-2's tensor in a layer; Conv1D stores [in, out] as we do.
_LAYER = {
    "attn.c_attn": "blocks/attn/qkv/kernel",
    "attn.c_proj": "blocks/attn/out/kernel",
    "mlp.c_fc": "blocks/mlp/up/kernel",
    "mlp.c_proj": "blocks/mlp/down/kernel",
}


def take_over(context: Context, kind: str) -> tuple[dict[str, np.ndarray], GPT2LMHeadModel]:
    """What the part of rome_jax has handed on, and the model that it belongs to.

    Args:
      context: of PyTorch's part.
      kind: "edit" or "trace".
    """
    path = context.handed(f"{kind}_{context.size}_{context.dtype}.npz")
    if not path.is_file():
        raise SystemExit(f"rome_jax left no {kind} to compare with: see its part.")
    with np.load(path) as file:
        handed = dict(file)
    config = json.loads(str(handed["config"]))
    return handed, random_gpt2(config, context.dtype, torch_device())


def random_gpt2(hf_config: Mapping[str, Any], dtype: str, device: torch.device) -> GPT2LMHeadModel:
    """The model, for inference.

    Args:
      hf_config: the content of a `config.json`.
      dtype: of the weights.
      device: of the weights.

    Example:
      >>> random_gpt2(to_hf(config), "bfloat16", torch_device()).dtype  # doctest: +SKIP
      torch.bfloat16
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
    index = torch.arange(
        weight.numel(), device=weight.device
    )  # int64: products keep their low bits
    unit = (scramble((index + seed) & 0xFFFFFFFF) >> 8).float() * 2.0**-23 - 1
    weight.copy_((unit * HALF_WIDTH).reshape(weight.shape))
