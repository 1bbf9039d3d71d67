"""Readers of the golden numbers for tests and `benchmarks.gpu`; tests/golden/README.md explains the files."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from rome_jax.data.positions import FactToken
from rome_jax.data.request import EditRequest
from rome_jax.edit.config import MethodName, ROMEConfig
from rome_jax.edit.method import METHODS
from rome_jax.edit.spread_config import SpreadConfig
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


# The hyperparameters of editors by their published names: those of all, and those of each.
_EDITOR_FIELDS = ("v_num_grad_steps", "v_lr", "v_weight_decay", "clamp_norm_factor", "kl_factor")
_OWN_FIELDS = {
    MethodName.MEMIT: ("mom2_update_weight",),
    MethodName.EMMET: ("mom2_update_weight", "update_norm_lambda", "emmet_lambda"),
    MethodName.PMET: ("mom2_update_weight", "nll_loss_factor"),
    MethodName.ALPHAEDIT: ("nullspace_threshold", "L2"),
}


def editor_method(case: SimpleNamespace) -> MethodName:
    """Returns the method of an editor's run, without its modifier."""
    return MethodName(case.info["method"].partition(" with ")[0])


def editor_config(case: SimpleNamespace, **changes: object) -> SpreadConfig:
    """Returns the hyperparameters of an editor's run, with changes."""
    method, hparams = editor_method(case), case.info["hparams"]
    config = METHODS[method].config_type(
        layers=tuple(hparams["layers"]),
        fact_token=FactToken(hparams["fact_token"]),
        **{name: hparams[name] for name in (*_EDITOR_FIELDS, *_OWN_FIELDS[method])},
        **changes,
    )
    assert isinstance(config, SpreadConfig)
    return config


def editor_templates(case: SimpleNamespace) -> list[str]:
    """Returns the context templates of an editor's run, the bare prompt first."""
    return [template for group in case.info["context_templates"] for template in group]


def editor_batches(case: SimpleNamespace) -> list[tuple[str, list[EditRequest]]]:
    """Returns the batches of an editor's run, each with the prefix of its arrays."""
    batches = case.info.get("batches") or [case.info["requests"]]
    prefixes = [f"b{index}_" for index in range(len(batches))]
    if not any(array.startswith("b0_") for array in case.arrays):
        prefixes = [""] * len(batches)
    return [
        (
            prefix,
            [EditRequest(r["prompt"], r["subject"], r["target_new"]["str"]) for r in batch],
        )
        for prefix, batch in zip(prefixes, batches, strict=True)
    ]


def editor_tolerance(case: SimpleNamespace) -> float:
    """Returns the tolerance of max |a - b| / max |b| of ΔW; the authors of AlphaEdit solve in float32."""
    return 1.5e-3 if editor_method(case) is MethodName.ALPHAEDIT else 2e-4
