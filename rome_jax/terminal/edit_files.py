"""Saved edits on the command line: which flags go together, what a file says, and what applying it does."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import jax

from rome_jax.data.request import EditRequest
from rome_jax.edit.delta import dense, merge_deltas, negate_delta, weight_name
from rome_jax.edit.edit_files import SUFFIX, check_edit_path, load_edits, save_edits
from rome_jax.edit.method import METHODS, Editor
from rome_jax.edit.result import EditResult
from rome_jax.edit.saved_edits import SavedEdit, apply_edits, record_edits, revert_edits
from rome_jax.files.artifacts import check_writable
from rome_jax.models.interventions import LowRankUpdate
from rome_jax.models.orbax import check_orbax_directory, save_orbax
from rome_jax.models.registry import LanguageModel, check_hf_directory, save_hf
from rome_jax.terminal.edit_report import Comparison, shorten

_NEW_EDIT = (
    "alg_name",
    "save",
    "config",
    "hparams_fname",
    "second_moments",
    "hypernetwork",
    "seed",
    "chunk_size",
)
_REPORT = ("target_true", "paraphrase", "neighbor")


def check_flags(given: Collection[str]) -> None:
    """Refuses flags that make no sense together.

    Raises:
      ValueError: naming them.

    Example:
      >>> check_flags({"apply", "export_hf"})
    """
    others = sorted(set(given) - {"inspect"})
    changes = {"apply", "revert"} & set(given)
    if "inspect" in given and others:
        raise ValueError(f"--inspect only reads files: give it without {_listed(others)}.")
    if wrong := [name for name in _NEW_EDIT if changes and name in given]:
        raise ValueError(
            f"{_listed(wrong)} cannot be combined with {_listed(sorted(changes))}, which computes no edit: leave out "
            "one of them; --merge_to writes applied edits into one file."
        )
    if wrong := [name for name in _REPORT if changes and name in given and "prompt" not in given]:
        raise ValueError(
            f"{_listed(wrong)} needs a request: give --prompt, --subject and --target_new too, or leave it out."
        )
    if "merge_to" in given and changes != {"apply"}:
        raise ValueError(
            "--merge_to writes the edits of --apply into one file: give --apply, and no --revert."
        )
    if "force" in given and not changes:
        raise ValueError("--force is about fingerprints: give it with --apply or --revert.")


def check_places(edits: str | None, export_hf: str | None, export_orbax: str | None) -> None:
    """Refuses places that cannot be written to, before anything is computed.

    Raises:
      ValueError: a file of edits that does not end in .safetensors, or one directory for both exports.
      FileExistsError: a directory that holds something else.
      OSError: a folder in which this user may not write.
    """
    for place in filter(None, (edits, export_hf, export_orbax)):
        check_writable(Path(place).parent, "folder")
    if edits:
        check_edit_path(edits)
    if export_hf:
        check_hf_directory(export_hf)
    if export_orbax:
        check_orbax_directory(export_orbax)
    if export_hf and export_orbax and Path(export_hf).resolve() == Path(export_orbax).resolve():
        raise ValueError(f"--export_hf and --export_orbax both name {export_hf}: give two.")


def compute(editor: Editor, request: EditRequest) -> EditResult:
    """One edit, and how it came about.

    Raises:
      ValueError: a request or configuration that the method cannot work with.
    """
    method = METHODS[editor.algorithm]
    return method.compute(editor.model, [request], editor.config, **editor.options)


def record(
    editor: Editor, request: EditRequest, result: EditResult
) -> tuple[Sequence[SavedEdit], LanguageModel]:
    """An edit with all that its file says of it, and the edited model.

    Args:
      editor, request: what `compute` was called with.
      result: what it returned.
    """
    templates = editor.options.get("templates", ())
    network = editor.options.get("hypernetwork")
    edits = record_edits(
        editor.model,
        [request],
        editor.algorithm,
        editor.config,
        result.deltas,
        layers=result.layers,
        templates=templates,
        seed=editor.seed if templates else None,
        hypernetwork=network.digest() if network else None,
    )
    return edits, apply_edits(editor.model, edits, force=True)


def write(
    edits: Sequence[SavedEdit],
    model: LanguageModel,
    path: str | None,
    export_hf: str | None,
    export_orbax: str | None,
) -> None:
    """Writes edits and the edited model where the flags say, if they do."""
    if path:
        print(f"Saved   {save_edits(path, edits)}")
    if export_hf:
        save_hf(export_hf, model)
        print(f"Saved   {export_hf}, a Hugging Face directory")
    if export_orbax:
        save_orbax(export_orbax, model)
        print(f"Saved   {export_orbax}, an Orbax checkpoint")


def read(paths: Sequence[str]) -> list[SavedEdit]:
    """The edits of several files, in their order."""
    return [edit for path in paths for edit in load_edits(path)]


def change(
    model: LanguageModel, applied: Sequence[SavedEdit], reverted: Sequence[SavedEdit], force: bool
) -> tuple[LanguageModel, Comparison]:
    """Applies some edits, then takes others out: the changed model, and the comparison with the old one."""
    changed = apply_edits(model, applied, force=force)
    changed = revert_edits(changed, reverted, force=force)
    deltas = [edit.delta for edit in applied]
    deltas += [negate_delta(edit.delta) for edit in reversed(reverted)]
    return changed, Comparison(model, merge_deltas(deltas))


def print_overview(comparison: Comparison, edits: Sequence[SavedEdit]) -> None:
    """One line for each request of the edits: the probability of its target before and after."""
    # Once each: an edit may be applied and reverted.
    requests = list(dict.fromkeys(r for edit in edits for r in edit.provenance.requests))
    before, after = comparison.probabilities(
        [request.text for request in requests], [request.target_new for request in requests]
    )
    print(f"Model   {comparison.model!r}\n")
    print(f"{'probability of the target of each edit':75s}   {'before':>7s}  {'after':>7s}")
    for request, old, new in zip(requests, before, after, strict=True):
        print(f"  {shorten(_said(request), 73):73s}   {old:7.3f}  {new:7.3f}")


def inspect(path: str | Path) -> None:
    """Prints everything that a file says of its edits, or one line for each edit of a folder.

    Raises:
      FileNotFoundError: no such file, or a folder without one that might be an edit.
      ValueError: a file that is no edit.
    """
    path = Path(path)
    if not path.is_dir():
        for number, edit in enumerate(load_edits(path), start=1):
            print(f"Edit {number} of {path}")
            _print_details(edit)
        return
    files = sorted(path.glob(f"*{SUFFIX}"))
    if not files:
        raise FileNotFoundError(f"{path} holds no {SUFFIX} file: name a folder with saved edits.")
    for file in files:
        try:
            for edit in load_edits(file):
                requests = "; ".join(map(_said, edit.provenance.requests))
                made = edit.provenance.model
                print(
                    f"{file.name}   {edit.provenance.created[:10]}   {edit.provenance.method}   {made.name} "
                    f"{made.fingerprint[:12]}   {requests}"
                )
        except ValueError as error:
            print(f"{file.name}   cannot be read: {error}")


def _print_details(edit: SavedEdit) -> None:
    about = edit.provenance
    config = ", ".join(f"{name}={value}" for name, value in about.config.items())
    versions = ", ".join(f"{name} {version}" for name, version in about.versions.items())
    method = about.method
    if about.hypernetwork:
        method += f", hypernetwork {about.hypernetwork[:12]}"
    if about.templates:
        source = "given" if about.seed is None else f"sampled from seed {about.seed}"
        method += f", {len(about.templates)} context templates, {source}"
    for request in about.requests:
        print(f"  request    {_said(request)} (case {request.case_id})")
    print(f"  method     {method}")
    for layer in about.layers:
        factor = layer.division_factor
        print(
            f"  change     {layer.weight} of layer {layer.layer}: ‖ΔW‖/‖W‖ {layer.norm_ratio:.3f}"
            + ("" if factor is None else f", division factor {factor:.3g}")
        )
    for update in edit.delta.updates:
        shape = " × ".join(map(str, jax.eval_shape(dense, update).shape))
        kind = f"rank {update.left.shape[1]}" if isinstance(update, LowRankUpdate) else "dense"
        print(f"  weights    {weight_name(update)} of layer {int(update.layer)}: {shape}, {kind}")
    print(f"  model      {about.model.name}, {about.model.source}")
    print(f"             {about.model.dtype} weights, matmul precision {about.model.precision}")
    print(f"             fingerprint {about.model.fingerprint}")
    print(f"  config     {config}")
    print(f"  made       {about.created} with {versions}")


def _said(request: EditRequest) -> str:
    return f"{request.text!r} -> {request.target_new!r}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"--{name}" for name in names)
