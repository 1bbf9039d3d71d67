"""Edits one fact and shows what changed and what did not; keeps edits, applies them, takes them out.

    python -m eval.edit
    python -m eval.edit --alg_name=FT-L
    python -m eval.edit --model_name=gpt2-xl --second_moments=STATS.npz --prompt=... --subject=... --target_new=...
    python -m eval.edit --save=edits/sport.safetensors
    python -m eval.edit --inspect=edits
    python -m eval.edit --apply=edits/sport.safetensors --apply=edits/city.safetensors --export_hf=edited
    python -m eval.edit --model_name=edited --revert=edits/sport.safetensors --interactive

With no flags it edits a default example of an embedded model with ROME. Paraphrases and neighbors of factworld's
facts are known; for other models name them with --paraphrase and --neighbor. --apply and --revert compute no edit:
they show the requests of their files before and after or, with --prompt, --subject and --target_new, the report on
these.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from eval import cli
from eval.flags import request as edit_inputs
from rome_jax.data.request import EditRequest
from rome_jax.edit import method as methods
from rome_jax.edit.method import Algorithm, Editor
from rome_jax.edit.methods import rome
from rome_jax.edit.saved_edits import apply_edits, record_edits
from rome_jax.models.registry import load_model
from rome_jax.terminal import edit_files
from rome_jax.terminal.edit_report import Comparison, Prompts, print_report, talk

_ALGORITHM = flags.DEFINE_enum("alg_name", "ROME", [a.value for a in Algorithm], "The method.")
_MODEL = flags.DEFINE_string("model_name", "factworld-gpt2", "Shipped or hub name, or directory.")
_DTYPE = flags.DEFINE_string("dtype", None, "Of the weights, such as bfloat16; default: as stored.")
_PROMPT = flags.DEFINE_string("prompt", None, "Text with one {} where the subject stands.")
_SUBJECT = flags.DEFINE_string("subject", None, "What the fact is about.")
_TARGET_NEW = flags.DEFINE_string("target_new", None, "What the model shall say next.")
_TARGET_TRUE = flags.DEFINE_string("target_true", None, "What it says now, if decoding errs.")
_PARAPHRASES = flags.DEFINE_multi_string("paraphrase", [], "Another way to ask; repeatable.")
_NEIGHBORS = flags.DEFINE_multi_string("neighbor", [], "A prompt that must stay; repeatable.")
_CONFIG = config_flags.DEFINE_config_file("config", None, "Such as configs/rome.py:gpt2-xl.")
_HPARAMS = flags.DEFINE_string("hparams_fname", None, "Hyperparameter file of the original (JSON).")
SECOND_MOMENTS = flags.DEFINE_string(
    "second_moments",
    None,
    "Second moments: what eval.layer_stats wrote, the original's .npz, or published to download it.",
)
flags.DEFINE_alias("covariance", "second_moments")
_HYPERNETWORK = flags.DEFINE_string(
    "hypernetwork", None, "Of MEND or KE: what eval.train_hypernetwork wrote, or a published .pt."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the context templates.")
_SAVE = flags.DEFINE_string("save", None, "File for the edit, such as edits/sport.safetensors.")
_INSPECT = flags.DEFINE_string("inspect", None, "Saved edit to describe, or folder to list.")
_APPLY = flags.DEFINE_multi_string("apply", [], "Saved edit to apply; repeatable.")
_REVERT = flags.DEFINE_multi_string("revert", [], "Saved edit to take out; repeatable.")
_MERGE_TO = flags.DEFINE_string("merge_to", None, "File for all edits of --apply together.")
_FORCE = flags.DEFINE_bool("force", False, "Apply or revert whatever the model's fingerprint.")
_EXPORT_HF = flags.DEFINE_string("export_hf", None, "Hugging Face directory for the edited model.")
_EXPORT_ORBAX = flags.DEFINE_string("export_orbax", None, "Orbax directory for the edited model.")
_INTERACTIVE = flags.DEFINE_bool("interactive", False, "Type prompts against both models.")


def new_edit(request: EditRequest) -> Comparison:
    """Computes an edit, writes what is asked for, and reports."""
    algorithm, seed = Algorithm(_ALGORITHM.value), _SEED.value
    values = (_CONFIG.value, _HPARAMS.value, _HYPERNETWORK.value)
    config = methods.read_config(algorithm, _MODEL.value, *values)
    methods.check_second_moments(SECOND_MOMENTS.value, _MODEL.value, config)
    model = load_model(_MODEL.value, dtype=_DTYPE.value)
    editor = Editor.prepare(
        algorithm,
        model,
        config,
        moments_source=SECOND_MOMENTS.value,
        hypernetwork_source=_HYPERNETWORK.value,
        seed=seed,
    )
    layers = ()
    if algorithm is Algorithm.ROME:
        result = rome.compute(model, [request], config, **editor.options)
        deltas, layers = result.deltas, result.layers
    else:
        deltas = editor.compute([request])
    places = (_SAVE.value, _EXPORT_HF.value, _EXPORT_ORBAX.value)
    if any(places):
        templates = editor.options.get("templates", ())
        network = editor.options.get("hypernetwork")
        edits = record_edits(
            model,
            [request],
            algorithm,
            config,
            deltas,
            layers=layers,
            templates=templates,
            seed=seed if templates else None,
            hypernetwork=network.digest() if network else None,
        )
        edit_files.write(edits, apply_edits(model, edits, force=True), *places)
    comparison = Comparison(model, deltas[0])
    prompts = Prompts(_PARAPHRASES.value, _NEIGHBORS.value)
    print_report(comparison, request, prompts, algorithm, layers)
    return comparison


def saved_edits(request: EditRequest | None) -> Comparison:
    """Applies and reverts saved edits, writes what is asked for, and reports."""
    applied, reverted = edit_files.read(_APPLY.value), edit_files.read(_REVERT.value)
    model = load_model(_MODEL.value, dtype=_DTYPE.value)
    changed, comparison = edit_files.change(model, applied, reverted, _FORCE.value)
    edit_files.write(applied, changed, _MERGE_TO.value, _EXPORT_HF.value, _EXPORT_ORBAX.value)
    if request is None:
        edit_files.print_overview(comparison, [*applied, *reverted])
    else:
        print_report(comparison, request, Prompts(_PARAPHRASES.value, _NEIGHBORS.value))
    return comparison


def main() -> None:
    """Inspects files, or edits and talks if asked to."""
    edit_files.check_flags({name for name in flags.FLAGS if flags.FLAGS[name].present})
    if _INSPECT.value:
        edit_files.inspect(_INSPECT.value)
        return
    edit_files.check_places(_SAVE.value or _MERGE_TO.value, _EXPORT_HF.value, _EXPORT_ORBAX.value)
    fact = (_PROMPT.value, _SUBJECT.value, _TARGET_NEW.value, _TARGET_TRUE.value)
    request = edit_inputs.read_request(*fact)
    if _APPLY.value or _REVERT.value:
        comparison = saved_edits(request)
    else:
        comparison = new_edit(request or edit_inputs.example(_MODEL.value, _TARGET_TRUE.value))
    if _INTERACTIVE.value:
        talk(comparison)


if __name__ == "__main__":
    cli.run(main)
