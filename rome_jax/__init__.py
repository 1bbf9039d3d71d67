"""rome_jax: locate and edit factual associations in GPT models, in JAX.

model = rome_jax.load_model("factworld-gpt2")
deltas = rome_jax.rome.compute_deltas(model, requests, config, second_moments=moments, key=key)
edited = model.replace(params=rome_jax.apply_delta(model.params, deltas[0]))
"""

from rome_jax.data.positions import FactToken
from rome_jax.data.request import EditRequest, EditWarning
from rome_jax.edit.baseline_config import FTConfig, FTVariant, KEConfig, KNConfig, MENDConfig
from rome_jax.edit.config import KeyMode, MEMITConfig, ROMEConfig
from rome_jax.edit.delta import apply_delta, merge_deltas, revert_delta
from rome_jax.edit.edit_files import load_edits, save_edits
from rome_jax.edit.methods import fine_tune, ke, knowledge_neurons, memit, mend, rome
from rome_jax.edit.saved_edits import Provenance, SavedEdit, apply_edits, record_edits, revert_edits
from rome_jax.models.config import ModelConfig
from rome_jax.models.forward import logits
from rome_jax.models.generate import Sampling, generate_text
from rome_jax.models.interventions import Delta
from rome_jax.models.orbax import load_orbax, save_orbax
from rome_jax.models.registry import LanguageModel, load_model, save_hf
from rome_jax.moments.files import SecondMoment, load_shipped
from rome_jax.version import __version__

__all__ = [
    "Delta",
    "EditRequest",
    "EditWarning",
    "FTConfig",
    "FTVariant",
    "FactToken",
    "KEConfig",
    "KNConfig",
    "KeyMode",
    "LanguageModel",
    "MEMITConfig",
    "MENDConfig",
    "ModelConfig",
    "Provenance",
    "ROMEConfig",
    "Sampling",
    "SavedEdit",
    "SecondMoment",
    "__version__",
    "apply_delta",
    "apply_edits",
    "fine_tune",
    "generate_text",
    "ke",
    "knowledge_neurons",
    "load_edits",
    "load_model",
    "load_orbax",
    "load_shipped",
    "logits",
    "memit",
    "mend",
    "merge_deltas",
    "record_edits",
    "revert_delta",
    "revert_edits",
    "rome",
    "save_edits",
    "save_hf",
    "save_orbax",
]
