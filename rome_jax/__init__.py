"""rome_jax: locate and edit factual associations in GPT models, in JAX.

This package lists the names that most programs need. The packages edit, trace, models, moments and evaluation list the
rest.

Example:
  >>> model = rome_jax.load_model("factworld-gpt2")
  >>> request = rome_jax.EditRequest("{} plays the sport of", "Gothulf Punby", "tennis")
  >>> config = rome_jax.ROMEConfig.for_model("factworld-gpt2")
  >>> moments = rome_jax.load_shipped("factworld-gpt2")
  >>> deltas = rome_jax.rome.compute_deltas(model, [request], config, second_moments=moments, key=jax.random.key(0))
  >>> edited = model.replace(params=rome_jax.apply_delta(model.params, deltas[0]))
  >>> rome_jax.generate_text(edited, ["Gothulf Punby plays the sport of"], max_new_tokens=1)
  ['Gothulf Punby plays the sport of tennis']
"""

import warnings
from typing import TYPE_CHECKING, Any

from rome_jax import _lazy
from rome_jax.version import __version__

if TYPE_CHECKING:
    from rome_jax import data, edit, evaluation, factworld, models, moments, plots, trace
    from rome_jax.data.positions import FactToken
    from rome_jax.data.request import EditRequest, EditWarning
    from rome_jax.data.tokens import TokenBatch, encode
    from rome_jax.edit.baseline_config import FTConfig, KEConfig, KNConfig, MENDConfig
    from rome_jax.edit.config import KeyMode, MethodName, ROMEConfig
    from rome_jax.edit.delta import apply_delta, merge_deltas, revert_delta
    from rome_jax.edit.edit_files import load_edits, save_edits
    from rome_jax.edit.methods import (
        alphaedit,
        emmet,
        encore,
        fine_tune,
        ke,
        knowledge_neurons,
        locft_bf,
        memit,
        mend,
        pmet,
        rome,
        ultra_edit,
    )
    from rome_jax.edit.resources import Resources
    from rome_jax.edit.saved_edits import (
        Provenance,
        SavedEdit,
        apply_edits,
        record_edits,
        revert_edits,
    )
    from rome_jax.edit.sequential import make_editor
    from rome_jax.edit.spread_config import MEMITConfig
    from rome_jax.evaluation.datasets import DatasetName, load_dataset
    from rome_jax.evaluation.evaluate import evaluate_records
    from rome_jax.evaluation.summaries import summarize
    from rome_jax.models.config import ModelConfig
    from rome_jax.models.export import save_hf
    from rome_jax.models.forward import capture, logits
    from rome_jax.models.generate import Sampling, generate, generate_text
    from rome_jax.models.interventions import Delta, Site
    from rome_jax.models.logit_lens import logit_lens, top_tokens
    from rome_jax.models.orbax import load_orbax, save_orbax
    from rome_jax.models.patches import Patch, PatchMode
    from rome_jax.models.registry import LanguageModel, load_model
    from rome_jax.moments.second_moment import SecondMoment
    from rome_jax.moments.shipped import load_shipped
    from rome_jax.trace.corruption import Measure
    from rome_jax.trace.noise import fit_noise
    from rome_jax.trace.prompt import TracePrompt
    from rome_jax.trace.restore import TraceKind

__all__ = ["__version__"]
# Packages
__all__ += [
    "data",
    "edit",
    "evaluation",
    "factworld",
    "models",
    "moments",
    "plots",
    "trace",
]
# Models
__all__ += [
    "LanguageModel",
    "ModelConfig",
    "Sampling",
    "TokenBatch",
    "encode",
    "generate",
    "generate_text",
    "load_model",
    "load_orbax",
    "logits",
    "save_hf",
    "save_orbax",
]
# Inspecting and changing a forward pass
__all__ += [
    "Patch",
    "PatchMode",
    "Site",
    "capture",
    "logit_lens",
    "top_tokens",
]
# Locating a fact
__all__ += [
    "Measure",
    "TraceKind",
    "TracePrompt",
    "fit_noise",
]
# Editing methods, one module per method
__all__ += [
    "alphaedit",
    "emmet",
    "encore",
    "fine_tune",
    "ke",
    "knowledge_neurons",
    "locft_bf",
    "memit",
    "mend",
    "pmet",
    "rome",
    "ultra_edit",
]
# Requests, hyperparameters and second moments
__all__ += [
    "EditRequest",
    "EditWarning",
    "FTConfig",
    "FactToken",
    "KEConfig",
    "KNConfig",
    "KeyMode",
    "MEMITConfig",
    "MENDConfig",
    "MethodName",
    "ROMEConfig",
    "SecondMoment",
    "load_shipped",
]
# Edits in sequence, with state
__all__ += [
    "Resources",
    "make_editor",
]
# Applying and saving edits
__all__ += [
    "Delta",
    "Provenance",
    "SavedEdit",
    "apply_delta",
    "apply_edits",
    "load_edits",
    "merge_deltas",
    "record_edits",
    "revert_delta",
    "revert_edits",
    "save_edits",
]
# Evaluating edits
__all__ += [
    "DatasetName",
    "evaluate_records",
    "load_dataset",
    "summarize",
]

_HOMES = {
    # Models
    "LanguageModel": "rome_jax.models.registry",
    "ModelConfig": "rome_jax.models.config",
    "Sampling": "rome_jax.models.generate",
    "TokenBatch": "rome_jax.data.tokens",
    "encode": "rome_jax.data.tokens",
    "generate": "rome_jax.models.generate",
    "generate_text": "rome_jax.models.generate",
    "load_model": "rome_jax.models.registry",
    "load_orbax": "rome_jax.models.orbax",
    "logits": "rome_jax.models.forward",
    "save_hf": "rome_jax.models.export",
    "save_orbax": "rome_jax.models.orbax",
    # Inspecting and changing a forward pass
    "Patch": "rome_jax.models.patches",
    "PatchMode": "rome_jax.models.patches",
    "Site": "rome_jax.models.interventions",
    "capture": "rome_jax.models.forward",
    "logit_lens": "rome_jax.models.logit_lens",
    "top_tokens": "rome_jax.models.logit_lens",
    # Locating a fact
    "Measure": "rome_jax.trace.corruption",
    "TraceKind": "rome_jax.trace.restore",
    "TracePrompt": "rome_jax.trace.prompt",
    "fit_noise": "rome_jax.trace.noise",
    # Editing methods, one module per method
    "fine_tune": "rome_jax.edit.methods",
    "ke": "rome_jax.edit.methods",
    "knowledge_neurons": "rome_jax.edit.methods",
    "memit": "rome_jax.edit.methods",
    "mend": "rome_jax.edit.methods",
    "rome": "rome_jax.edit.methods",
    # Requests, hyperparameters and second moments
    "EditRequest": "rome_jax.data.request",
    "EditWarning": "rome_jax.data.request",
    "FTConfig": "rome_jax.edit.baseline_config",
    "FactToken": "rome_jax.data.positions",
    "KEConfig": "rome_jax.edit.baseline_config",
    "KNConfig": "rome_jax.edit.baseline_config",
    "KeyMode": "rome_jax.edit.config",
    "MEMITConfig": "rome_jax.edit.spread_config",
    "MENDConfig": "rome_jax.edit.baseline_config",
    "MethodName": "rome_jax.edit.config",
    "ROMEConfig": "rome_jax.edit.config",
    "SecondMoment": "rome_jax.moments.second_moment",
    "load_shipped": "rome_jax.moments.shipped",
    # Applying and saving edits
    "Delta": "rome_jax.models.interventions",
    "Provenance": "rome_jax.edit.saved_edits",
    "SavedEdit": "rome_jax.edit.saved_edits",
    "apply_delta": "rome_jax.edit.delta",
    "apply_edits": "rome_jax.edit.saved_edits",
    "load_edits": "rome_jax.edit.edit_files",
    "merge_deltas": "rome_jax.edit.delta",
    "record_edits": "rome_jax.edit.saved_edits",
    "revert_delta": "rome_jax.edit.delta",
    "revert_edits": "rome_jax.edit.saved_edits",
    "save_edits": "rome_jax.edit.edit_files",
    # Evaluating edits
    "DatasetName": "rome_jax.evaluation.datasets",
    "evaluate_records": "rome_jax.evaluation.evaluate",
    "load_dataset": "rome_jax.evaluation.datasets",
    "summarize": "rome_jax.evaluation.summaries",
    "alphaedit": "rome_jax.edit.methods",
    "emmet": "rome_jax.edit.methods",
    "encore": "rome_jax.edit.methods",
    "locft_bf": "rome_jax.edit.methods",
    "pmet": "rome_jax.edit.methods",
    "ultra_edit": "rome_jax.edit.methods",
    "Resources": "rome_jax.edit.resources",
    "make_editor": "rome_jax.edit.sequential",
}

_get, __dir__ = _lazy.attach(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    if name == "covariance":
        warnings.warn(
            "rome_jax.covariance is now rome_jax.moments; the next release removes the old name.",
            DeprecationWarning,
            stacklevel=2,
        )
        return _lazy.import_name("rome_jax", "moments")
    return _get(name)
