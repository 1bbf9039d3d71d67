"""Files of edits and of edited models."""

from __future__ import annotations

from absl import flags

SAVE = flags.DEFINE_string(
    "save", None, "File to write the edit to, such as edits/sport.safetensors."
)
INSPECT = flags.DEFINE_string(
    "inspect", None, "File of edits to describe, or folder of such files to list."
)
APPLY = flags.DEFINE_multi_string("apply", [], "File of edits to apply")
REVERT = flags.DEFINE_multi_string("revert", [], "File of edits to subtract")
MERGE_TO = flags.DEFINE_string("merge_to", None, "File to write all edits of --apply to.")
FORCE = flags.DEFINE_bool(
    "force", False, "Apply or revert an edit that was made for another model."
)
EXPORT_HF = flags.DEFINE_string(
    "export_hf", None, "Directory to write the edited model to, in the Hugging Face format."
)
EXPORT_ORBAX = flags.DEFINE_string(
    "export_orbax", None, "Directory to write the edited model to, as an Orbax checkpoint."
)
OVERWRITE = flags.DEFINE_bool(
    "overwrite",
    False,
    "Replace what an earlier run wrote to --export_hf and --export_orbax. Other directories are never replaced.",
)
INTERACTIVE = flags.DEFINE_bool(
    "interactive",
    False,
    "Read prompts from the terminal and show the continuations before and after.",
)
