"""The program that says what fits, and --chunk_size=auto."""

import json

import pytest

from eval.flags import method
from tests.programs import Program, refusal

PLAN, EDIT = Program("eval.plan"), Program("eval.edit")


def test_a_plan_is_printed_without_loading(monkeypatch):
    from rome_jax.models import registry

    monkeypatch.setattr(registry, "load_params", lambda *_: pytest.fail("weights were loaded"))
    done = PLAN("--model_name=gpt2-xl", "--device_memory=80GB")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "1,557,611,200 parameters, float32, 6.23 GB of weights" in lines[0]
    flags = [line.split("--")[1].split()[0] for line in lines if "  --" in line and "GB" in line]
    assert flags[-4:] == ["chunk_columns", "max_tokens", "max_tokens", "batch_tokens"]
    assert any(line.startswith("Suggested   --chunk_size=64 ") for line in lines)


def test_a_small_device_gets_other_weights():
    done = PLAN("--model_name=EleutherAI/gpt-j-6B", "--device_memory=24GB")
    assert (
        "none fits" in done.stdout and "Suggested   --dtype=bfloat16 --chunk_size=" in done.stdout
    )
    split = PLAN("--model_name=EleutherAI/gpt-j-6B", "--device_memory=24GB", "--mesh=model:4")
    assert "float32, 6.05 GB of weights per device" in split.stdout
    tiny = PLAN("--model_name=gpt2-xl", "--device_memory=10MB")
    assert "Suggested   none" in tiny.stdout


def test_a_plan_of_this_machine_and_a_directory(tmp_path):
    config = {"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 9}
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_positions": 16}))
    done = PLAN(f"--model_name={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "parameters, float32, " in done.stdout and "Suggested   --chunk_size=8 " in done.stdout


def test_seconds_are_a_table():
    done = PLAN("--model_name=gpt2-xl", "--dtype=bfloat16", "--seconds")
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()]
    assert rows[0][0] == "gpt2-xl, bfloat16" and len({len(row) for row in rows}) == 1
    assert all(float(row[3].replace(",", "")) > 0 for row in rows[2:])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model_name=foo/bar"], "unknown model 'foo/bar'"),
        (["--device_memory=80QB"], "--device_memory='80QB': give a size"),
        (["--platform=cpu"], "--platform=cpu: give --device_memory"),
        (["--mesh=model:-1"], "--mesh=model:-1: a plan knows no devices"),
        (["--dtype=float64"], "dtype='float64': give float32"),
    ],
)
def test_a_refusal_is_one_sentence(arguments, said):
    assert refusal(PLAN(*arguments)).startswith(f"Error: {said}")


def test_auto_is_replaced_by_a_number(monkeypatch, tmp_path):
    prepare, prepared = method.Editor.prepare, []

    def stop_after(*arguments, **options):
        prepared.append(prepare(*arguments, **options))
        raise SystemExit("Error: stopped.")

    monkeypatch.setattr(method.plan, "chunk_size", lambda *_: 3)
    monkeypatch.setattr(method.Editor, "prepare", stop_after)
    done = EDIT("--chunk_size=auto", f"--save={tmp_path / 'edit.safetensors'}")
    assert refusal(done) == "Error: stopped."
    assert "Chunk size  3: what --chunk_size=auto takes on this device\n" in done.stdout
    assert [editor.options["chunk_size"] for editor in prepared] == [3]


@pytest.mark.parametrize("value", ["0", "1.5", "automatic", ""])
def test_another_word_is_refused(value):
    assert refusal(EDIT(f"--chunk_size={value}")).startswith(f"Error: --chunk_size={value}: give ")
