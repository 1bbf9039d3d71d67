"""Readers of the golden numbers for tests and `benchmarks.gpu`; tests/golden/README.md explains the files."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from rome_jax.data.positions import FactToken
from rome_jax.data.request import EditRequest
from rome_jax.edit.config import ROMEConfig
from rome_jax.models.huggingface import layer_name
from rome_jax.models.interventions import Leaf
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.published import load_reference
from rome_jax.moments.second_moment import SecondMoment
from rome_jax.trace.restore import TraceKind

GOLDEN = Path(__file__).parent / "golden"
# The options of `sweep.trace` for each table of a golden trace.
TRACE_TABLES = {
    "default": {},
    "mlp_w10": {"kind": TraceKind.MLP},
    "attn_w10": {"kind": TraceKind.ATTN},
    "mlp_w3": {"kind": TraceKind.MLP, "window": 3},
    "attn_w4": {"kind": TraceKind.ATTN, "window": 4},
    "mlp_w1": {"kind": TraceKind.MLP, "window": 1},
}
TRACE_TOLERANCE = 1e-5  # absolute difference of probabilities
FORWARD_TOLERANCE = 1e-5  # difference relative to the largest value


@functools.cache
def read_case(name: str) -> SimpleNamespace:
    """Reads a case by its name: returns `name`, `info` (the .json file) and `arrays` (the .npz file)."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)
    info = json.loads((GOLDEN / f"{name}.json").read_text())
    return SimpleNamespace(name=name, info=info, arrays=arrays)


def rome_tolerance(case: str) -> float:
    """Returns the tolerance of max |a - b| / max |b| over an array.

    With several layers, the original's results in different precisions differ by 5e-4.
    """
    return 1e-3 if "multilayer" in case else 1e-4


def rome_config(case: SimpleNamespace) -> ROMEConfig:
    """Returns the hyperparameters of a ROME run."""
    hparams = case.info["hparams"]
    names = (
        "v_num_grad_steps v_lr v_weight_decay clamp_norm_factor kl_factor mom2_adjustment".split()
    )
    return ROMEConfig(
        layers=tuple(hparams["layers"]),
        fact_token=FactToken(hparams["fact_token"]),
        **{name: hparams[name] for name in names},
    )


def rome_moments(model: LanguageModel, layers: tuple[int, ...]) -> dict[int, SecondMoment]:
    """Loads the original's second moments of some layers."""
    folder = GOLDEN / "stats_files" / model.config.family.value
    files = {
        layer: folder / f"{layer_name(model.config, Leaf.MLP_DOWN, layer)}_float32_mom2_500.npz"
        for layer in layers
    }
    return {layer: load_reference(file) for layer, file in files.items()}


def rome_requests(case: SimpleNamespace) -> list[EditRequest]:
    """Returns the requests of a ROME run."""
    return [
        EditRequest(r["prompt"], r["subject"], r["target_new"]["str"])
        for r in case.info["requests"]
    ]


def rome_delta(case: SimpleNamespace, model: LanguageModel, request: int, layer: int) -> np.ndarray:
    """Returns the original's ΔW as [F, D]; GPT-J's file has it transposed."""
    name = f"r{request}_wdelta.{layer_name(model.config, Leaf.MLP_DOWN, layer)}.weight"
    delta = case.arrays[name]
    return delta if delta.shape == (model.config.mlp_width, model.config.width) else delta.T
