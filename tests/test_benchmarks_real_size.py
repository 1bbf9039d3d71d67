"""Tests of the benchmark of models of real size, with a tiny model: its files, stages, memory, and tables."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.real_size import __main__ as program
from benchmarks.real_size import memory, report, stages
from benchmarks.real_size.files import write_files
from benchmarks.real_size.run import Run
from rome_jax import moments

GIB = report.GIB


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = Run("gpt-j-6B", "bfloat16", str(tmp_path_factory.mktemp("real_size")), tiny=True)
    write_files(run)
    return run


def test_the_library_loads_the_files(run):
    model = stages.load(run)
    kernel = np.asarray(model.params["blocks"]["mlp"]["up"]["kernel"], np.float32)
    assert kernel.std() == pytest.approx(0.02, rel=0.05)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model.params)} == {"bfloat16"}
    found = moments.read(run.statistics, [run.size.layer], model)[run.size.layer]
    values = np.linalg.eigvalsh(found.mean)
    assert values[0] == pytest.approx(1, abs=1e-3) and values[-1] > 2 and found.is_definite
    half = stages.load(dataclasses.replace(run, load_dtype="float16"))
    assert half.params["wte"]["embedding"].dtype == "float16"


def test_files_that_exist_are_used_again(run):
    path = run.checkpoint / "config.json"
    before = path.stat().st_mtime_ns
    write_files(run)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["forward", "merge", "merge, donated"])
def test_a_stage_does_its_job(run, name):
    stages.STAGES[name](run, stages.load(run))


def test_a_merge_that_changes_another_leaf_is_an_error(run, monkeypatch):
    def wrong(params, delta, *, donate):
        bias = params["ln_f"]["bias"]
        return params | {"ln_f": params["ln_f"] | {"bias": bias.at[0].add(1)}}

    monkeypatch.setattr(stages, "apply_delta", wrong)
    with pytest.raises(SystemExit, match=r"changed \[\('ln_f/bias', 0\)\]"):
        stages.merge(run, stages.load(run))


def test_differences_name_the_layer():
    before = {"blocks": {"a": jnp.zeros((3, 2))}, "b": jnp.zeros(4)}
    after = {"blocks": {"a": before["blocks"]["a"].at[1, 0].set(1e-30)}, "b": before["b"]}
    found = stages.differences(stages.checksums(before), stages.checksums(after))
    assert found == [("blocks/a", 1)]


def test_the_peak_is_that_of_the_process():
    code = "import time; x = bytearray(300 << 20); x[::4096] = bytes(len(x[::4096])); time.sleep(0.3); del x; print(7)"
    ran = memory.run_sampled([sys.executable, "-S", "-c", code])
    assert ran.output == "7\n" and 300 << 20 < ran.peak < 400 << 20
    with pytest.raises(RuntimeError, match=r"status 3 after a peak of .* GiB"):
        memory.run_sampled([sys.executable, "-S", "-c", "raise SystemExit(3)"])


def test_tables_replace_those_of_the_page(tmp_path):
    row = {"title": "gpt2-xl, float32", "seconds": 2.0, "compile_s": 1.5, "peak": 3 * GIB}
    report.add_result(tmp_path, row | {"stage": "merge"})
    report.add_result(tmp_path, row | {"stage": "load", "weights": 2 * GIB})
    report.add_result(tmp_path, row | {"stage": "merge", "peak": 4 * GIB})
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_report(page, report.read_results(tmp_path))
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "**gpt2-xl, float32** (weights 2.00 GiB)" in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[1:] == [
        "| load | 2.0 | 1.5 | 3.00 |",
        "| one merge into a copy | 2.0 | 1.5 | 4.00 |",
    ]
    page.write_text("no place")
    with pytest.raises(ValueError, match="has no place for tables"):
        report.write_report(page, [])


def test_the_program_measures_and_reports(tmp_path, monkeypatch, capsys):
    ran = []

    def run_sampled(command):
        ran.append((command[3], json.loads(command[4])["dtype"]))
        return memory.Ran('{"seconds": 1.0, "compile_s": 0.5, "weights": null}', GIB)

    monkeypatch.setattr(program, "run_sampled", run_sampled)
    page = tmp_path / "page.md"
    page.write_text(f"{report.BEGIN}\n{report.END}")
    flags = f"--directory={tmp_path} --model=gpt2-xl --dtype=float32 --stages load merge --report={page}"
    monkeypatch.setattr("sys.argv", ["real_size", *flags.split()])
    program.main()
    assert ran == [("write", "float32"), ("load", "float32"), ("merge", "float32")]
    assert "gpt2-xl, float32: merge, 1.0 s, 1.00 GiB" in capsys.readouterr().out
    assert "| one merge into a copy | 1.0 | 0.5 | 1.00 |" in page.read_text()


@pytest.mark.slow
def test_every_stage_runs_in_a_process_of_its_own(tmp_path):
    run = Run("gpt2-xl", "bfloat16", str(tmp_path), tiny=True)
    program.run_stage(run, "write")
    rows = [program.run_stage(run, stage) for stage in stages.STAGES]
    assert [row["stage"] for row in rows] == list(report.WHAT)
    assert all(row["seconds"] > 0 and row["peak"] > 50 << 20 for row in rows)
