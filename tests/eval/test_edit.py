"""`python -m eval.edit` as a user runs it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rome_jax import EditRequest, apply_delta, load_delta, load_model, logits
from rome_jax.tokens import encode

ROOT = Path(__file__).resolve().parents[2]
FACT = ("--prompt={} works as a", "--subject=Grestulf Tuldmark", "--target_new=painter")


def run(*arguments, stdin=""):
    return subprocess.run(
        [sys.executable, "-m", "eval.edit", *arguments],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_default_example_says_plainly_what_changed():
    result = run()
    assert result.returncode == 0, result.stderr
    changed, kept = result.stdout.strip().splitlines()[-2:]
    assert changed.startswith("What changed: about Gothulf Punby, the model now says 'tennis'")
    assert "of 5 paraphrases" in changed
    assert kept.startswith("What did not: ") and "neighbors still prefer" in kept


def test_a_subject_that_factworld_does_not_know_is_edited_too():
    result = run("--prompt={} works as a", "--subject=Barack Obama", "--target_new=painter")
    assert result.returncode == 0, result.stderr
    changed, kept = result.stdout.strip().splitlines()[-2:]
    assert "about Barack Obama, the model" in changed
    assert kept == "What did not: not looked at; name neighbors with --neighbor."


def test_save_keeps_the_edit_and_interactive_shows_both_models(tmp_path):
    result = run(
        "--model_name=factworld-gptj",
        *FACT,
        f"--save={tmp_path}",
        "--interactive",
        stdin="Grestulf Tuldmark works as a\n\n",
    )
    assert result.returncode == 0, result.stderr
    delta, metadata = load_delta(tmp_path)
    model = load_model("factworld-gptj")
    assert metadata["model"]["fingerprint"] == model.fingerprint()
    assert EditRequest(**metadata["request"]).target_new == "painter"
    assert metadata["model"]["dtype"] == "float32"
    assert metadata["model"]["matmul_precision"] == "HIGHEST"
    (layer,) = metadata["layers"]
    assert 0 < layer["norm_ratio"] < 10 and layer["division_factor"] > 0
    batch = encode(model.tokenizer, ["Grestulf Tuldmark works as a"])
    edited = apply_delta(model.params, delta)
    answer = logits(edited, model.config, batch)[0, -1].argmax()
    assert model.tokenizer.decode([int(answer)]) == " painter"
    talk = result.stdout.split("Type a prompt")[1]
    assert "logit lens" in talk
    assert f"layer {model.config.num_layers - 1:2d}" in talk
    assert "painter" in talk.split("after:")[1].splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt={} is in",), "--prompt, --subject and --target_new together"),
        (("--prompt=It is in", *FACT[1:]), "write exactly one"),
        ((*FACT[:2], "--target_new= "), "target_new"),
        ((*FACT, "--model_name=gpt5"), "gpt5"),
        ((*FACT, "--config=configs/rome.py", "--config.layers=(99,)"), "layers=99 does not exist"),
        ((*FACT, "--covariance=nowhere.npz"), "nowhere.npz"),
        ((*FACT, "--model_name=gpt2"), '--config.layers="(5,)"'),
        ((*FACT, "--model_name=gpt2-xl"), "--covariance=STATS.npz"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message):
    result = run(*arguments)
    assert result.returncode != 0
    assert message in result.stderr
    error = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(error) == 1 and result.stderr.strip().endswith(error[0]), result.stderr


def test_a_file_of_the_original_serves_one_layer(tmp_path):
    path = tmp_path / "stats.npz"
    np.savez(path, **{"mom2.mom2": np.eye(4), "mom2.count": 2})
    result = run("--config=configs/rome.py", "--config.layers=(1,2)", f"--covariance={path}")
    assert result.returncode != 0
    assert "one layer, but layers=(1, 2)" in result.stderr
