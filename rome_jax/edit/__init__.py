"""Editing of facts. A method computes deltas from a model and requests; it never changes the model.

The methods are modules with the same functions, such as `rome.compute_deltas(model, requests, config, ...)`.
"""

from typing import TYPE_CHECKING

from rome_jax import _lazy

if TYPE_CHECKING:
    from rome_jax.data.positions import FactToken
    from rome_jax.data.request import EditRequest, EditWarning, RequestError
    from rome_jax.edit.baseline_config import (
        FTConfig,
        KEConfig,
        KNConfig,
        MENDConfig,
        RateOrder,
        RowVectors,
        TargetEncoding,
        TargetScoring,
    )
    from rome_jax.edit.config import Hyperparameters, KeyMode, MethodName, ROMEConfig, SolverDevice
    from rome_jax.edit.delta import (
        WeightChange,
        apply_delta,
        merge_deltas,
        negate_delta,
        revert_delta,
        weight_changes,
    )
    from rome_jax.edit.edit_files import load_edits, save_edits
    from rome_jax.edit.editor import EditorState, SequentialEditor
    from rome_jax.edit.editor_files import load_state, save_state
    from rome_jax.edit.hf_delta import to_hf
    from rome_jax.edit.hypernetworks.networks import Hypernetwork
    from rome_jax.edit.hypernetworks.training import TrainingConfig
    from rome_jax.edit.method import METHODS, Editor, Method, Resource, read_config
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
    from rome_jax.edit.methods.alphaedit import AlphaEditConfig
    from rome_jax.edit.methods.emmet import EMMETConfig
    from rome_jax.edit.methods.encore import ENCOREConfig
    from rome_jax.edit.methods.locft_bf import LocFTConfig
    from rome_jax.edit.methods.pmet import PMETConfig
    from rome_jax.edit.methods.ultra_edit import UltraEditConfig
    from rome_jax.edit.resources import Resources
    from rome_jax.edit.result import EditResult, NotFiniteError
    from rome_jax.edit.saved_edits import (
        EditedLayer,
        EditedModel,
        Provenance,
        SavedEdit,
        WrongModelError,
        apply_edits,
        record_edits,
        revert_edits,
    )
    from rome_jax.edit.sequential import make_editor
    from rome_jax.edit.solver import DuplicateKeysError
    from rome_jax.edit.spread_config import MEMITConfig, Modifier
    from rome_jax.edit.stages.contexts import sample_templates
    from rome_jax.edit.stages.inputs import EditInputs, tokenize_requests
    from rome_jax.models.interventions import Delta, DenseUpdate, LowRankUpdate

# Methods, one module each
__all__ = [
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
# Methods by name
__all__ += [
    "METHODS",
    "EditResult",
    "Editor",
    "Method",
    "MethodName",
    "NotFiniteError",
    "Resource",
    "read_config",
]
# Editors that carry state from batch to batch
__all__ += [
    "DuplicateKeysError",
    "EditorState",
    "Resources",
    "SequentialEditor",
    "load_state",
    "make_editor",
    "save_state",
]
# Requests and their tokenization
__all__ += [
    "EditInputs",
    "EditRequest",
    "EditWarning",
    "FactToken",
    "RequestError",
    "sample_templates",
    "tokenize_requests",
]
# Hyperparameters
__all__ += [
    "AlphaEditConfig",
    "EMMETConfig",
    "ENCOREConfig",
    "FTConfig",
    "Hyperparameters",
    "KEConfig",
    "KNConfig",
    "KeyMode",
    "LocFTConfig",
    "MEMITConfig",
    "MENDConfig",
    "Modifier",
    "PMETConfig",
    "ROMEConfig",
    "RateOrder",
    "RowVectors",
    "SolverDevice",
    "TargetEncoding",
    "TargetScoring",
    "UltraEditConfig",
]
# Hypernetworks
__all__ += [
    "Hypernetwork",
    "TrainingConfig",
]
# Deltas
__all__ += [
    "Delta",
    "DenseUpdate",
    "LowRankUpdate",
    "WeightChange",
    "apply_delta",
    "merge_deltas",
    "negate_delta",
    "revert_delta",
    "to_hf",
    "weight_changes",
]
# Saved edits
__all__ += [
    "EditedLayer",
    "EditedModel",
    "Provenance",
    "SavedEdit",
    "WrongModelError",
    "apply_edits",
    "load_edits",
    "record_edits",
    "revert_edits",
    "save_edits",
]

_HOMES = {
    # Methods, one module each
    "fine_tune": "rome_jax.edit.methods",
    "ke": "rome_jax.edit.methods",
    "knowledge_neurons": "rome_jax.edit.methods",
    "memit": "rome_jax.edit.methods",
    "mend": "rome_jax.edit.methods",
    "rome": "rome_jax.edit.methods",
    # Methods by name
    "METHODS": "rome_jax.edit.method",
    "EditResult": "rome_jax.edit.result",
    "Editor": "rome_jax.edit.method",
    "Method": "rome_jax.edit.method",
    "MethodName": "rome_jax.edit.config",
    "NotFiniteError": "rome_jax.edit.result",
    "Resource": "rome_jax.edit.method",
    "read_config": "rome_jax.edit.method",
    # Requests and their tokenization
    "EditInputs": "rome_jax.edit.stages.inputs",
    "EditRequest": "rome_jax.data.request",
    "EditWarning": "rome_jax.data.request",
    "FactToken": "rome_jax.data.positions",
    "RequestError": "rome_jax.data.request",
    "sample_templates": "rome_jax.edit.stages.contexts",
    "tokenize_requests": "rome_jax.edit.stages.inputs",
    # Hyperparameters
    "FTConfig": "rome_jax.edit.baseline_config",
    "Hyperparameters": "rome_jax.edit.config",
    "KEConfig": "rome_jax.edit.baseline_config",
    "KNConfig": "rome_jax.edit.baseline_config",
    "KeyMode": "rome_jax.edit.config",
    "MEMITConfig": "rome_jax.edit.spread_config",
    "MENDConfig": "rome_jax.edit.baseline_config",
    "ROMEConfig": "rome_jax.edit.config",
    "RateOrder": "rome_jax.edit.baseline_config",
    "RowVectors": "rome_jax.edit.baseline_config",
    "SolverDevice": "rome_jax.edit.config",
    "TargetEncoding": "rome_jax.edit.baseline_config",
    "TargetScoring": "rome_jax.edit.baseline_config",
    # Hypernetworks
    "Hypernetwork": "rome_jax.edit.hypernetworks.networks",
    "TrainingConfig": "rome_jax.edit.hypernetworks.training",
    # Deltas
    "Delta": "rome_jax.models.interventions",
    "DenseUpdate": "rome_jax.models.interventions",
    "LowRankUpdate": "rome_jax.models.interventions",
    "WeightChange": "rome_jax.edit.delta",
    "apply_delta": "rome_jax.edit.delta",
    "merge_deltas": "rome_jax.edit.delta",
    "negate_delta": "rome_jax.edit.delta",
    "revert_delta": "rome_jax.edit.delta",
    "to_hf": "rome_jax.edit.hf_delta",
    "weight_changes": "rome_jax.edit.delta",
    # Saved edits
    "EditedLayer": "rome_jax.edit.saved_edits",
    "EditedModel": "rome_jax.edit.saved_edits",
    "Provenance": "rome_jax.edit.saved_edits",
    "SavedEdit": "rome_jax.edit.saved_edits",
    "WrongModelError": "rome_jax.edit.saved_edits",
    "apply_edits": "rome_jax.edit.saved_edits",
    "load_edits": "rome_jax.edit.edit_files",
    "record_edits": "rome_jax.edit.saved_edits",
    "revert_edits": "rome_jax.edit.saved_edits",
    "save_edits": "rome_jax.edit.edit_files",
    "alphaedit": "rome_jax.edit.methods",
    "emmet": "rome_jax.edit.methods",
    "encore": "rome_jax.edit.methods",
    "locft_bf": "rome_jax.edit.methods",
    "pmet": "rome_jax.edit.methods",
    "ultra_edit": "rome_jax.edit.methods",
    "AlphaEditConfig": "rome_jax.edit.methods.alphaedit",
    "EMMETConfig": "rome_jax.edit.methods.emmet",
    "ENCOREConfig": "rome_jax.edit.methods.encore",
    "LocFTConfig": "rome_jax.edit.methods.locft_bf",
    "PMETConfig": "rome_jax.edit.methods.pmet",
    "UltraEditConfig": "rome_jax.edit.methods.ultra_edit",
    "Modifier": "rome_jax.edit.spread_config",
    "DuplicateKeysError": "rome_jax.edit.solver",
    "EditorState": "rome_jax.edit.editor",
    "SequentialEditor": "rome_jax.edit.editor",
    "Resources": "rome_jax.edit.resources",
    "make_editor": "rome_jax.edit.sequential",
    "load_state": "rome_jax.edit.editor_files",
    "save_state": "rome_jax.edit.editor_files",
}

__getattr__, __dir__ = _lazy.attach(__name__, _HOMES)
