"""`python -m eval.edit` and `python -m eval.edits`."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest

from eval.flags import method
from rome_jax import (
    FTConfig,
    apply_edits,
    load_edits,
    load_orbax,
    logits,
    save_edits,
)
from rome_jax.data.tokens import encode
from rome_jax.edit.config import MethodName
from rome_jax.files import extras
from rome_jax.models.registry import load_model
from tests.models.checkpoints import assert_same_params
from tests.programs import ROOT, Program, refusal
from tests.saved import assert_same_edits, random_edit

# Both subjects have as many tokens as that of the default example, so that all edits share compiled programs.
FACT = ("--prompt={} plays the sport of", "--subject=Rirock Windby", "--target_new=tennis")
STRANGER = ("--prompt={} plays the sport of", "--subject=Gothulf Windby", "--target_new=tennis")


@pytest.fixture(scope="module")
def program():
    return Program("eval.edit")


@pytest.mark.slow
def test_it_runs_as_a_process_of_its_own():
    command = [sys.executable, "-m", "eval.edit"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "\nWhat changed: " in result.stdout


def test_the_default_example_reports_what_changed(program):
    result = program()
    assert result.returncode == 0, result.stderr
    for line in result.stderr.splitlines():  # what took more than two seconds
        assert re.fullmatch(r"(loading|compiling and) [\w\s*-]+ \.\.\.", line)
    changed, kept = result.stdout.strip().splitlines()[-2:]
    assert changed.startswith("What changed: about Gothulf Punby, the model now says 'tennis'")
    assert "of 5 paraphrases" in changed
    assert kept.startswith("What did not: ") and "neighbors still prefer" in kept


def test_an_unknown_subject_can_be_edited(program):
    result = program(*STRANGER)
    assert result.returncode == 0, result.stderr
    changed, kept = result.stdout.strip().splitlines()[-2:]
    assert "about Gothulf Windby, the model" in changed
    assert (
        kept == "What did not: unknown, because there are no neighbors; name some with --neighbor."
    )


def test_save_and_export_keep_the_edit_and_interactive_shows_both_models(program, tmp_path):
    path = tmp_path / "edits" / "job.safetensors"
    result = program(
        *FACT,
        "--seed=3",
        f"--save={path}",
        f"--export_hf={tmp_path / 'hf'}",
        f"--export_orbax={tmp_path / 'orbax'}",
        "--interactive",
        stdin="Rirock Windby plays the sport of\n\n",
    )
    assert result.returncode == 0, result.stderr
    assert "orbax" not in result.stderr, "messages of Orbax are hidden"
    source, *written = result.stdout.splitlines()[:4]
    assert source.startswith(
        "Statistics  shipped: second moments in the package; --second_moments="
    )
    assert [line.split()[1].rstrip(",") for line in written] == [
        str(path),
        str(tmp_path / "hf"),
        str(tmp_path / "orbax"),
    ]
    (edit,) = load_edits(path)
    model = load_model("factworld-gpt2")
    about = edit.provenance
    assert about.model.fingerprint == model.fingerprint()
    assert (about.model.dtype, about.model.precision) == ("float32", "HIGHEST")
    assert about.requests[0].target_new == "tennis"
    assert about.seed == 3 and len(about.templates) > 1 and about.templates[0] == "{}"
    (layer,) = about.layers
    assert 0 < layer.norm_ratio < 10 and layer.division_factor > 0
    batch = encode(model.tokenizer, ["Rirock Windby plays the sport of"])
    edited = apply_edits(model, [edit])
    answer = logits(edited.params, model.config, batch)[0, -1].argmax()
    assert model.tokenizer.decode([int(answer)]) == " tennis"
    assert_same_params(load_model(tmp_path / "hf").params, edited.params)
    assert_same_params(load_orbax(tmp_path / "orbax").params, edited.params)
    talk = result.stdout.split("Type a prompt")[1]
    assert "logit lens" in talk
    assert f"layer {model.config.num_layers - 1:2d}" in talk
    assert "tennis" in talk.split("after:")[1].splitlines()[0]


def test_a_dense_edit_is_saved_applied_and_reverted(program, tmp_path):
    path, directory = tmp_path / "ft.safetensors", tmp_path / "hf"
    result = program("--alg_name=FT-L", *FACT, f"--save={path}", f"--export_hf={directory}")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("FT-L ")]
    assert len(lines) == 2 and lines[0].startswith("FT-L    mlp/down of layer 0: ‖ΔW‖/‖W‖ 0.")
    assert all(line.endswith(", dense") for line in lines)
    assert "the model now says 'tennis'" in result.stdout
    (edit,) = load_edits(path)
    model = load_model("factworld-gpt2")
    assert edit.provenance.method == "FT-L" and edit.provenance.seed is None
    config = FTConfig.for_model(model.name, MethodName.FT_L)
    assert FTConfig.from_dict(edit.provenance.config) == config
    exported = load_model(directory)
    assert_same_params(exported.params, apply_edits(model, [edit]).params)

    before, after = (
        program(*arguments).stdout.splitlines()[-1].split()[-2:]
        for arguments in (
            (f"--apply={path}",),
            (f"--model_name={directory}", f"--revert={path}"),
        )
    )
    assert float(before[0]) < 0.01 and float(before[1]) > 0.5
    assert after == before[::-1]


@pytest.mark.slow
def test_a_factored_edit_with_hyperparameters_of_the_original(program, tmp_path):
    hyperparameters, path = tmp_path / "hparams.json", tmp_path / "kn.safetensors"
    hyperparameters.write_text(json.dumps({"model_name": "factworld-gpt2", "steps": 7}))
    result = program("--alg_name=KN", f"--hparams_fname={hyperparameters}", *FACT, f"--save={path}")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("KN ")]
    assert lines and all(line.endswith(", rank 1") for line in lines)
    (edit,) = load_edits(path)
    assert edit.provenance.method == "KN" and edit.provenance.config["steps"] == 7
    assert len(edit.delta.updates) == len(edit.provenance.layers) == len(lines)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, shipped_model):
    """The shipped model, two edits of it, and the folder with their files."""
    model = shipped_model("factworld-gpt2")
    folder = tmp_path_factory.mktemp("edits")
    edits = [random_edit(model, seed, layers=(0,)) for seed in (1, 2)]
    for edit in edits:
        save_edits(folder / f"{edit.provenance.seed}.safetensors", [edit])
    return model, edits, folder


def test_apply_merges_files_exports_the_model_and_shows_their_requests(program, saved, tmp_path):
    model, edits, folder = saved
    merged, directory = tmp_path / "both.safetensors", tmp_path / "hf"
    result = program(
        f"--apply={folder / '1.safetensors'}",
        f"--apply={folder / '2.safetensors'}",
        f"--merge_to={merged}",
        f"--export_hf={directory}",
        "--interactive",
        stdin="\n",
    )
    assert result.returncode == 0, result.stderr
    assert_same_edits(load_edits(merged), edits)
    assert_same_params(load_model(directory).params, apply_edits(model, edits).params)
    table, talk = result.stdout.split("\nType a prompt")
    rows = table.splitlines()[-2:]
    for row, edit in zip(rows, edits, strict=True):
        assert f"'{edit.provenance.requests[0].text}' -> 'Rome'" in row
    assert talk.endswith("> ")


def test_apply_refuses_another_model_unless_forced(program, saved):
    _, edits, folder = saved
    arguments = ("--model_name=factworld-gptj", f"--apply={folder / '1.safetensors'}")
    refused = program(*arguments)
    assert refused.returncode != 0
    assert refused.stderr.startswith("Error: the edit of 'Žižek 1' was made for factworld-gpt2 (")
    assert "this is factworld-gptj (" in refused.stderr and "--force" in refused.stderr
    forced = program(*arguments, "--force")
    assert forced.returncode == 0, forced.stderr
    assert "LanguageModel('factworld-gptj'" in forced.stdout
    assert f"'{edits[0].provenance.requests[0].text}' -> 'Rome'" in forced.stdout


def test_revert_reports_on_a_request_and_exports(program, saved, tmp_path):
    model, edits, folder = saved
    result = program(
        f"--apply={folder / '1.safetensors'}",
        f"--revert={folder / '2.safetensors'}",
        *STRANGER,
        "--neighbor=Gothulf Punby plays the sport of",
        f"--export_orbax={tmp_path / 'orbax'}",
    )
    assert result.returncode == 0, result.stderr
    assert "neighbors (should not change)\n" in result.stdout
    assert "\n  Gothulf Punby plays the sport of " in result.stdout
    first, second = edits
    restored = load_orbax(tmp_path / "orbax").params["blocks"]["mlp"]["down"]["kernel"]
    kernel = model.params["blocks"]["mlp"]["down"]["kernel"]
    change = sum(
        sign * np.outer(edit.delta.updates[0].left, edit.delta.updates[0].right)
        for sign, edit in ((1, first), (-1, second))
    )
    np.testing.assert_allclose(restored[0], kernel[0] + change, atol=1e-6)
    np.testing.assert_array_equal(restored[1:], kernel[1:])


def test_inspect_needs_no_model(program, saved):
    folder = saved[2]
    result = program(f"--inspect={folder}")
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        "1.safetensors",
        "2.safetensors",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt={} is in",), "--prompt, --subject and --target_new together"),
        (("--prompt=It is in", *FACT[1:]), "write exactly one"),
        ((*FACT[:2], "--target_new= "), "target_new"),
        (("--model_name=gpt5", "--prompt={} is in"), "unknown model 'gpt5'"),
        ((*FACT, "--config=configs/rome.py", "--config.layers=(99,)"), "layers=99 does not exist"),
        ((*FACT, "--second_moments=nowhere.npz"), "nowhere.npz"),
        ((*FACT, "--hypernetwork=nowhere"), "nowhere"),
        (("--alg_name=FT", "--second_moments=published"), "FT does not use second moments"),
        (
            ("--alg_name=FT-L", "--model_name=gpt2", *FACT),
            "no FT-L layer is known for model 'gpt2'",
        ),
        ((*FACT, "--model_name=gpt2"), '--config.layers="(5,)"'),
        (
            (*FACT, "--model_name=gpt2-xl", "--second_moments=shipped"),
            "no second moments come with model 'gpt2-xl': leave out --second_moments=shipped",
        ),
        (
            (*FACT, "--revision=main"),
            "revision='main' is a version of a model on the Hugging Face hub, and factworld-gpt2 is not there",
        ),
        (
            (*FACT, "--model_name=tests/golden/ckpt/gpt2", "--revision=main"),
            "and tests/golden/ckpt/gpt2 is not there: leave it out",
        ),
        (
            (*FACT, "--model_name=gpt2-xl", "--revision=../main"),
            "revision='../main': give a branch",
        ),
        (("--apply=nowhere.safetensors",), "nowhere.safetensors is not a file"),
        (("--inspect=edits", "--apply=x.safetensors"), "leave out --apply"),
    ],
)
def test_bad_input_is_one_sentence(program, arguments, message):
    result = program(*arguments)
    assert result.returncode != 0
    assert message in result.stderr
    error = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(error) == 1 and result.stderr.strip().endswith(error[0]), result.stderr


def test_missing_torch_is_reported_before_a_download(program, monkeypatch):
    files = SimpleNamespace(siblings=[SimpleNamespace(rfilename="pytorch_model.bin")])
    monkeypatch.setattr(huggingface_hub, "model_info", lambda name, *, revision, timeout: files)
    monkeypatch.setattr(extras, "is_installed", lambda package: False)
    error = refusal(program("--model_name=EleutherAI/gpt-j-6B", "--revision=main", *FACT))
    assert "whose weights on the hub are pytorch_model.bin, needs torch: pip install 'rome" in error


def test_a_line_says_where_second_moments_come_from_before_they_are_computed(
    program, tmp_path, monkeypatch
):
    collected = []

    def stop(*arguments):
        raise SystemExit("Error: stopped.")

    def collect(model, layers, *, command):
        collected.append((layers, command))

    monkeypatch.setattr(method, "prepare", stop)
    monkeypatch.setattr(method.sources, "collect_own", collect)
    directory = ROOT / "tests" / "golden" / "ckpt" / "gpt2"
    edited = [f"--config={ROOT}/configs/rome.py", "--config.layers=1", *FACT]
    model_name = f"--model_name={directory}"
    lines = {
        (): "shipped: second moments in the package; --second_moments=cached|published|self|PATH takes others",
        ("--second_moments=shipped",): "shipped: second moments in the package",
        (
            model_name,
            *edited,
        ): "self: samples 192 texts, up to 24,576 tokens, and keeps their second moments in "
        "stats/gpt2/self_192_articles; --second_moments=cached|shipped|published|PATH takes others",
    }
    for arguments, line in lines.items():
        result = program(*arguments, cwd=tmp_path)
        assert refusal(result) == "Error: stopped."
        assert result.stdout == f"Statistics  {line}\n"
    assert collected == [
        (
            [1],
            f"python -m eval.layer_stats {model_name} --dataset=self --layers=1",
        )
    ]
    cached = refusal(program("--second_moments=cached", cwd=tmp_path))
    assert "stats/factworld-gpt2 holds no usable second moments of layer 0" in cached
    ends = refusal(program("--alg_name=MEMIT+BLUE", "--second_moments=cached", cwd=tmp_path))
    assert "holds no usable second moments of layers 0, 2 of" in ends, "layer 1 is not edited"


def test_a_file_of_the_original_serves_one_layer(program, tmp_path):
    path = tmp_path / "stats.npz"
    np.savez(path, **{"mom2.mom2": np.eye(4), "mom2.count": 2})
    result = program(
        "--config=configs/rome.py", "--config.layers=(1,2)", f"--second_moments={path}"
    )
    assert result.returncode != 0
    assert "one layer, but layers=(1, 2)" in result.stderr
