"""Lists, applies, reverts, merges and exports edits that eval.edit has saved.

    python -m eval.edits --inspect=edits
    python -m eval.edits --apply=edits/sport.safetensors --apply=edits/city.safetensors --export_hf=edited
    python -m eval.edits --apply=edits/sport.safetensors --apply=edits/city.safetensors --merge_to=both.safetensors
    python -m eval.edits --model_name=edited --revert=edits/sport.safetensors --interactive

For each request in the files it shows the probability of the target before and after. With --prompt, --subject and
--target_new it reports on that request instead, as eval.edit does.
"""

from __future__ import annotations

from eval import cli
from eval.flags import model, request, saved_edits
from rome_jax.terminal import edit_files
from rome_jax.terminal.edit_report import print_report, talk
from rome_jax.terminal.waiting import waiting


def main() -> None:
    """Describes files; or applies and reverts edits, writes the files that the flags ask for, and reports."""
    edit_files.check_flags(cli.given())
    if saved_edits.INSPECT.value:
        edit_files.inspect(saved_edits.INSPECT.value)
        return
    if not (saved_edits.APPLY.value or saved_edits.REVERT.value):
        raise ValueError(
            "no saved edits are named: give --inspect, --apply or --revert with a file."
        )
    model.check()
    exports = (saved_edits.EXPORT_HF.value, saved_edits.EXPORT_ORBAX.value)
    overwrite = saved_edits.OVERWRITE.value
    edit_files.check_places(saved_edits.MERGE_TO.value, *exports, overwrite)
    fact = request.from_flags()
    applied = edit_files.read(saved_edits.APPLY.value)
    reverted = edit_files.read(saved_edits.REVERT.value)
    loaded, force = model.load(), saved_edits.FORCE.value
    changed, comparison = edit_files.change(loaded, applied, reverted, force)
    edit_files.write(applied, changed, saved_edits.MERGE_TO.value, *exports, overwrite)
    with waiting("compiling and comparing the models"):
        if fact is None:
            edit_files.print_overview(comparison, [*applied, *reverted])
        else:
            print_report(comparison, fact, request.prompts())
    if saved_edits.INTERACTIVE.value:
        talk(comparison)


TAKES = (
    "model_name dtype precision mesh inspect apply revert merge_to force export_hf export_orbax overwrite interactive "
    "prompt subject target_new target_true paraphrase neighbor revision"
).split()
PROGRAM = cli.Program(main, takes=TAKES)

if __name__ == "__main__":
    PROGRAM.run()
