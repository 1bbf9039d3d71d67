"""Saved edits on the command line: which flags can be combined, what a file contains, and what applying it does."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from pathlib import Path

import jax

from rome_jax.data.request import EditRequest
from rome_jax.edit.delta import dense, merge_deltas, negate_delta, weight_name
from rome_jax.edit.edit_files import SUFFIX, check_edit_path, load_edits, save_edits
from rome_jax.edit.method import METHODS, Editor
from rome_jax.edit.result import EditResult
from rome_jax.edit.saved_edits import SavedEdit, apply_edits, record_edits, revert_edits
from rome_jax.models.export import check_hf_directory, save_hf
from rome_jax.models.interventions import LowRankUpdate
from rome_jax.models.orbax import check_orbax_directory, save_orbax
from rome_jax.models.registry import LanguageModel
from rome_jax.terminal.edit_report import Comparison, shorten

_NEW_EDIT = (
    "alg_name",
    "save",
    "config",
    "config_field",
    "hparams_fname",
    "templates",
    "second_moments",
    "hypernetwork",
    "seed",
    "chunk_size",
)
_REPORT = ("target_true", "paraphrase", "neighbor")


def check_flags(given: Collection[str]) -> None:
    """Refuses combinations of flags that make no sense.

    Args:
      given: Names of the flags on the command line.

    Raises:
      ValueError: If flags cannot be combined; the message names them.

    Example:
      >>> check_flags({"apply", "export_hf"})
      >>> check_flags({"merge_to"})
      Traceback (most recent call last):
      ValueError: --merge_to writes the edits of --apply into one file: give --apply, and no --revert.
    """
    others = sorted(set(given) - {"inspect"})
    changes = {"apply", "revert"} & set(given)
    if "inspect" in given and others:
        raise ValueError(f"--inspect only reads files: leave out {_listed(others)}.")
    if wrong := [name for name in _NEW_EDIT if changes and name in given]:
        raise ValueError(
            f"{_listed(wrong)} cannot be combined with {_listed(sorted(changes))}, which does not compute an edit: "
            "leave out one of them, and use --merge_to to write applied edits into one file."
        )
    if wrong := [name for name in _REPORT if changes and name in given and "prompt" not in given]:
        raise ValueError(
            f"{_listed(wrong)} needs a request: give also --prompt, --subject and --target_new, or leave it out."
        )
    if "merge_to" in given and changes != {"apply"}:
        raise ValueError(
            "--merge_to writes the edits of --apply into one file: give --apply, and no --revert."
        )
    if "force" in given and not changes:
        raise ValueError(
            "--force ignores the fingerprints of saved edits: give it with --apply or --revert."
        )


def check_places(
    edits: str | None,
    export_hf: str | None,
    export_orbax: str | None,
    overwrite: bool = False,
) -> None:
    """Refuses places that hold something else, before anything is computed.

    Args:
      edits: File for edits.
      export_hf, export_orbax: Directories for the edited model.
      overwrite: Whether earlier exports in these directories are replaced.

    Raises:
      ValueError: If the file for edits does not end in .safetensors, or one place is inside of another.
      FileExistsError: If a directory contains something else.
    """
    if edits:
        check_edit_path(edits)
    if export_hf:
        check_hf_directory(export_hf, overwrite=overwrite)
    if export_orbax:
        check_orbax_directory(export_orbax, overwrite=overwrite)
    places = [Path(place).resolve() for place in (edits, export_hf, export_orbax) if place]
    for one, other in itertools.permutations(places, 2):
        if one.is_relative_to(other):
            raise ValueError(
                f"{one} is the same as {other}, or inside of it: write edits and exports to places of their own."
            )


def compute(editor: Editor, request: EditRequest) -> EditResult:
    """Computes one edit.

    Args:
      editor: The method, prepared for its model.
      request: The fact to write.

    Raises:
      ValueError: If the method cannot use the request or its configuration.
    """
    method = METHODS[editor.algorithm]
    return method.compute(editor.model, [request], editor.config, **editor.options)


def record(
    editor: Editor, request: EditRequest, result: EditResult
) -> tuple[Sequence[SavedEdit], LanguageModel]:
    """Returns the edit with the provenance that its file contains, and the edited model.

    Args:
      editor, request: The arguments of `compute`.
      result: The result of `compute`.
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
        second_moments=editor.options.get("second_moments"),
    )
    return edits, apply_edits(editor.model, edits, force=True)


def write(
    edits: Sequence[SavedEdit],
    model: LanguageModel,
    path: str | None,
    export_hf: str | None,
    export_orbax: str | None,
    overwrite: bool = False,
) -> None:
    """Writes the edits and the edited model to the places that are given.

    Args:
      edits: The edits.
      model: The edited model.
      path: File for the edits.
      export_hf, export_orbax: Directories for the edited model.
      overwrite: Whether earlier exports in these directories are replaced.
    """
    if path:
        print(f"Saved   {save_edits(path, edits)}")
    if export_hf:
        save_hf(export_hf, model, overwrite=overwrite)
        print(f"Saved   {export_hf}, a Hugging Face directory")
    if export_orbax:
        save_orbax(export_orbax, model, overwrite=overwrite)
        print(f"Saved   {export_orbax}, an Orbax checkpoint")


def read(paths: Sequence[str]) -> list[SavedEdit]:
    """Reads the edits of several files, in order.

    Args:
      paths: The files.

    Raises:
      ValueError: If a file is not a saved edit.
      OSError: If a file cannot be read.
    """
    return [edit for path in paths for edit in load_edits(path)]


def change(
    model: LanguageModel, applied: Sequence[SavedEdit], reverted: Sequence[SavedEdit], force: bool
) -> tuple[LanguageModel, Comparison]:
    """Applies some edits, then reverts others.

    Args:
      model: The model to change.
      applied, reverted: The edits.
      force: Whether to ignore fingerprints.

    Returns:
      The changed model, and its comparison with the old one.

    Raises:
      ValueError: If an edit does not belong to the model.
    """
    changed = apply_edits(model, applied, force=force)
    changed = revert_edits(changed, reverted, force=force)
    deltas = [edit.delta for edit in applied]
    deltas += [negate_delta(edit.delta) for edit in reversed(reverted)]
    return changed, Comparison(model, merge_deltas(deltas))


def print_overview(comparison: Comparison, edits: Sequence[SavedEdit]) -> None:
    """Prints the probability of the target of each request, before and after the edits.

    Args:
      comparison: The model before and after.
      edits: The edits.
    """
    # Each request is shown once, although an edit may be both applied and reverted.
    requests = list(dict.fromkeys(r for edit in edits for r in edit.provenance.requests))
    before, after = comparison.probabilities(
        [request.text for request in requests], [request.target_new for request in requests]
    )
    print(f"Model   {comparison.model!r}\n")
    print(f"{'probability of the target of each edit':75s}   {'before':>7s}  {'after':>7s}")
    for request, old, new in zip(requests, before, after, strict=True):
        print(f"  {shorten(_said(request), 73):73s}   {old:7.3f}  {new:7.3f}")


def inspect(path: str | Path) -> None:
    """Prints the provenance of each edit in a file, or one line for each edit in a folder.

    Args:
      path: A file or a folder.

    Raises:
      FileNotFoundError: If the file does not exist, or the folder contains no .safetensors file.
      ValueError: If the file is not a saved edit, or the folder has none.
    """
    path = Path(path)
    if not path.is_dir():
        for number, edit in enumerate(load_edits(path), start=1):
            print(f"Edit {number} of {path}")
            _print_details(edit)
        return
    files = sorted(path.glob(f"*{SUFFIX}"))
    if not files:
        raise FileNotFoundError(
            f"{path} contains no {SUFFIX} file: name a folder with saved edits."
        )
    unread = 0
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
            unread += 1
            print(f"{file.name}   cannot be read: {error}")
    if unread == len(files):
        raise ValueError(f"{path} contains no saved edit that can be read: give another folder.")


def _print_details(edit: SavedEdit) -> None:
    """Prints the provenance of an edit."""
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
    """Returns a request on one line."""
    return f"{request.text!r} -> {request.target_new!r}"


def _listed(names: Sequence[str]) -> str:
    """Returns names of flags as a list."""
    return ", ".join(f"--{name}" for name in names)
