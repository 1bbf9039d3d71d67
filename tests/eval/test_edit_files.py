"""Saved edits on the command line: flags that can be combined, descriptions of files, applying and reverting."""

import dataclasses

import pytest

from eval.flags.request import example, read_request
from rome_jax.edit.edit_files import save_edits
from rome_jax.edit.saved_edits import WrongModelError, apply_edits
from rome_jax.models.export import save_hf
from rome_jax.terminal import edit_files
from tests.models.checkpoints import assert_same_params
from tests.saved import dense_edit, random_edit


@pytest.fixture(scope="module")
def model(golden_model):
    return golden_model("gpt2")


@pytest.fixture(scope="module")
def edits(model):
    return [random_edit(model, 1), random_edit(model, 2, layers=(0, 3))]


# Flags


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("inspect apply", "--inspect only reads files: leave out --apply."),
        ("inspect model_name force", "leave out --force, --model_name."),
        ("apply save", "--save cannot be combined with --apply, which does not compute an edit"),
        ("revert config seed", "--config, --seed cannot be combined with --revert"),
        (
            "apply revert second_moments",
            "--second_moments cannot be combined with --apply, --revert",
        ),
        (
            "apply alg_name hparams_fname",
            "--alg_name, --hparams_fname cannot be combined with --ap",
        ),
        ("apply paraphrase", "--paraphrase needs a request: give also --prompt, --subject and"),
        ("revert target_true neighbor", "--target_true, --neighbor needs a request"),
        ("merge_to", "give --apply, and no --revert."),
        ("merge_to apply revert", "give --apply, and no --revert."),
        ("merge_to revert", "give --apply, and no --revert."),
        ("force", "give it with --apply or --revert."),
        ("force save", "give it with --apply or --revert."),
    ],
)
def test_flags_that_cannot_be_combined(flags, words):
    with pytest.raises(ValueError) as error:
        edit_files.check_flags(set(flags.split()))
    message = str(error.value)
    assert words in message and "\n" not in message and message.endswith(".")


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "inspect",
        "alg_name config hparams_fname second_moments hypernetwork seed",
        "save export_hf export_orbax overwrite interactive neighbor paraphrase",
        "apply revert force export_hf export_orbax interactive model_name dtype",
        "apply merge_to prompt subject target_new target_true paraphrase neighbor",
    ],
)
def test_flags_that_can_be_combined(flags):
    edit_files.check_flags(set(flags.split()))


def test_places_that_cannot_be_written_to_are_refused(model, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    notes, new = str(tmp_path / "notes"), str(tmp_path / "new")
    edit_files.check_places(None, None, None)
    edit_files.check_places(f"{notes}/edit.safetensors", new, f"{new}2")
    with pytest.raises(ValueError, match="must end in"):
        edit_files.check_places(notes, None, None)
    with pytest.raises(FileExistsError, match="notes holds files that are not an export"):
        edit_files.check_places(None, notes, None)
    with pytest.raises(FileExistsError, match="notes is not empty"):
        edit_files.check_places(None, None, notes)
    with pytest.raises(ValueError, match=r"is the same as .*, or inside of it"):
        edit_files.check_places(None, new, f"{tmp_path}/notes/../new")
    save_hf(new, model)
    edit_files.check_places(None, new, None, overwrite=True)
    with pytest.raises(ValueError, match=r"is the same as .*, or inside of it"):
        edit_files.check_places(None, new, f"{new}/inner", overwrite=True)
    with pytest.raises(ValueError, match=r"is the same as .*, or inside of it"):
        edit_files.check_places(f"{new}/edit.safetensors", new, None, overwrite=True)
    with pytest.raises(FileExistsError, match=r"earlier export.*--overwrite"):
        edit_files.check_places(None, new, None)
    with pytest.raises(FileExistsError, match="new is not empty"):
        edit_files.check_places(None, None, new)


def test_a_request_is_complete_or_the_example():
    assert read_request(None, None, None, None) is None
    assert read_request("{} is", "Ann", "Bob", "Cid").target_true == "Cid"
    with pytest.raises(ValueError, match="together"):
        read_request("{} is", None, "Bob", None)
    assert example("factworld-gpt2", "rowing").target_true == "rowing"
    with pytest.raises(ValueError, match="together"):
        example("gpt2-xl", None)


# Inspecting


def test_inspect_says_everything_about_a_file(edits, tmp_path, capsys):
    path = save_edits(tmp_path / "both.safetensors", edits)
    edit_files.inspect(path)
    text = capsys.readouterr().out
    first, second = text.split("Edit 2 of ")
    for part, edit in ((first, edits[0]), (second, edits[1])):
        about = edit.provenance
        for said in (
            f"'{about.requests[0].text}' -> 'Rome' (case {about.requests[0].case_id})",
            f"ROME, 2 context templates, sampled from seed {about.seed}",
            about.model.fingerprint,
            about.model.source,
            "float32 weights, matmul precision HIGHEST",
            "v_lr=0.5",
            "2026-01-31T12:00:00+00:00 with rome_jax 0.1.0, jax 0.10",
            "‖ΔW‖/‖W‖ 0.250, division factor 1.5",
        ):
            assert said in part
    assert "mlp/down of layer 1: 256 × 64, rank 1" in first
    assert "of layer 0:" in second and "of layer 3:" in second and "of layer 1:" not in second


def test_inspect_says_that_templates_were_given(edits, tmp_path, capsys):
    about = dataclasses.replace(edits[0].provenance, seed=None)
    given = dataclasses.replace(edits[0], provenance=about)
    edit_files.inspect(save_edits(tmp_path / "given.safetensors", [given]))
    assert "ROME, 2 context templates, given\n" in capsys.readouterr().out


def test_inspect_shows_dense_updates(model, tmp_path, capsys):
    edit_files.inspect(save_edits(tmp_path / "dense.safetensors", [dense_edit(model)]))
    text = capsys.readouterr().out
    for said in (
        "  method     FT-L\n",
        "  change     mlp/down bias of layer 0: ‖ΔW‖/‖W‖ 0.500\n",
        "  weights    mlp/down of layer 0: 256 × 64, dense\n",
        "  weights    mlp/down bias of layer 0: 64, dense\n",
    ):
        assert said in text


def test_inspect_lists_a_folder_with_files_that_are_no_edits(model, edits, tmp_path, capsys):
    save_edits(tmp_path / "b.safetensors", edits)
    save_edits(tmp_path / "c.safetensors", edits[:1])
    save_hf(tmp_path / "hf", model)
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "a.safetensors")
    (tmp_path / "d.safetensors").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    edit_files.inspect(str(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0][0] for line in lines] == ["a", "b", "b", "c", "d"]
    assert "cannot be read" in lines[0] and "is not an edit of rome_jax" in lines[0]
    assert "cannot be read" in lines[4] and "damaged" in lines[4]
    for line, edit in zip(lines[1:4], [*edits, edits[0]], strict=True):
        for said in ("2026-01-31", "ROME", model.fingerprint()[:12], "-> 'Rome'"):
            assert said in line
        assert edit.provenance.requests[0].text in line


def test_inspect_of_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"contains no \.safetensors file"):
        edit_files.inspect(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a file"):
        edit_files.inspect(tmp_path / "edit.safetensors")


# Applying and reverting


def test_change_gives_the_changed_model_and_the_comparison_of_the_same_change(model, edits):
    changed, comparison = edit_files.change(model, edits, edits[:1], force=False)
    second = apply_edits(model, edits[1:])
    prompts, targets = ["The file", "A new window is"], ["open", "here now"]
    before, after = comparison.probabilities(prompts, targets)
    of_second = dataclasses.replace(comparison, delta=edits[1].delta)
    assert after == pytest.approx(of_second.probabilities(prompts, targets)[1], rel=1e-4)
    of_changed = dataclasses.replace(comparison, model=changed)
    assert after == pytest.approx(of_changed.probabilities(prompts, targets)[0], rel=1e-4)
    assert (abs(after - before) > 0.1 * before).any()
    kernels = [one.params["blocks"]["mlp"]["down"]["kernel"] for one in (changed, second)]
    assert abs(kernels[0] - kernels[1]).max() < 1e-6
    with pytest.raises(WrongModelError):
        edit_files.change(changed, edits, [], force=False)
    forced, _ = edit_files.change(changed, edits, [], force=True)
    assert_same_params(forced.params, apply_edits(changed, edits, force=True).params)


def test_overview_has_one_line_for_each_request(model, edits, capsys):
    _, comparison = edit_files.change(model, edits, edits[:1], force=False)
    edit_files.print_overview(comparison, [*edits, edits[0]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Model   LanguageModel(")
    rows = lines[-2:]
    texts = [edit.provenance.requests[0].text for edit in edits]
    before, after = comparison.probabilities(texts, ["Rome"] * 2)
    for row, text, old, new in zip(rows, texts, before, after, strict=True):
        assert row.startswith(f"  '{text}' -> 'Rome' ")
        assert row.split()[-2:] == [f"{old:.3f}", f"{new:.3f}"]
    assert len(lines) == 5
