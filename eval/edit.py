"""Edits one fact of a model and shows what changed and what did not.

    python -m eval.edit
    python -m eval.edit --alg_name=FT-L
    python -m eval.edit --prompt="{} works as a" --subject="Grestulf Tuldmark" --target_new=painter --interactive
    python -m eval.edit --save=edits/sport.safetensors
    python -m eval.edit --model_name=smollm2-135m
    python -m eval.edit --model_name=gpt2-xl --prompt=... --subject=... --target_new=...
    python -m eval.edit --model_name=EleutherAI/gpt-j-6B --revision=float16 --prompt=... --subject=... --target_new=...

Without further flags it applies ROME to an example fact of a factworld model or of smollm2-135m. Paraphrases and
neighbors are known for the facts of factworld; for other facts give them with --paraphrase and --neighbor.

The flags --inspect, --apply and --revert work on saved edits, as in eval.edits.
"""

from __future__ import annotations

from eval import cli, edits
from eval.flags import method, model, request, saved_edits
from rome_jax.terminal import edit_files
from rome_jax.terminal.edit_report import Comparison, print_report, talk
from rome_jax.terminal.waiting import waiting


def main() -> None:
    """Computes an edit, writes the files that the flags ask for, and reports; or hands over to eval.edits."""
    edit_files.check_flags(cli.given())
    if cli.given() & {"inspect", "apply", "revert"}:
        edits.main()
        return
    name = model.check()
    places = (saved_edits.SAVE.value, saved_edits.EXPORT_HF.value, saved_edits.EXPORT_ORBAX.value)
    edit_files.check_places(*places, saved_edits.OVERWRITE.value)
    fact = request.from_flags() or request.example(name, request.TARGET_TRUE.value)
    prompts = request.prompts()
    algorithm, config = method.read()
    method.check_second_moments(config)
    loaded = model.load()
    moments = method.find_second_moments(loaded, [config])
    editor = method.prepare(loaded, algorithm, config, moments)
    with waiting(f"compiling and computing the edit with {algorithm}"):
        result = edit_files.compute(editor, fact)
    if any(places):
        edited = edit_files.record(editor, fact, result)
        edit_files.write(*edited, *places, saved_edits.OVERWRITE.value)
    comparison = Comparison(loaded, result.deltas[0])
    with waiting("compiling and comparing the models"):
        print_report(comparison, fact, prompts, editor.name, result.layers)
    if saved_edits.INTERACTIVE.value:
        talk(comparison)


PROGRAM = cli.Program(
    main,
    takes=(
        *"alg_name config config_field hparams_fname templates hypernetwork second_moments".split(),
        *"seed chunk_size save".split(),
        *edits.TAKES,
    ),
)

if __name__ == "__main__":
    PROGRAM.run()
