"""Edits and edited models in files."""

from __future__ import annotations

from absl import flags

SAVE = flags.DEFINE_string("save", None, "File for the edit, such as edits/sport.safetensors.")
INSPECT = flags.DEFINE_string("inspect", None, "Saved edit to describe, or folder to list.")
APPLY = flags.DEFINE_multi_string("apply", [], "Saved edit to apply; repeatable.")
REVERT = flags.DEFINE_multi_string("revert", [], "Saved edit to take out; repeatable.")
MERGE_TO = flags.DEFINE_string("merge_to", None, "File for all edits of --apply together.")
FORCE = flags.DEFINE_bool("force", False, "Apply or revert whatever the model's fingerprint.")
EXPORT_HF = flags.DEFINE_string("export_hf", None, "Hugging Face directory for the edited model.")
EXPORT_ORBAX = flags.DEFINE_string("export_orbax", None, "Orbax directory for the edited model.")
INTERACTIVE = flags.DEFINE_bool("interactive", False, "Type prompts against both models.")
