"""Tests of the check on one device: isolated parts, rows that survive a kill, the page, and equal weights."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.gpu import check, measure, moment, page, sizes, weights
from benchmarks.gpu.runner import LOG, PAGE, ROWS, Part, Stage, append_row, read_rows, run_stages
from rome_jax.models.families import PRESETS, to_hf
from rome_jax.models.transformer import param_shapes

ROOT = Path(__file__).resolve().parents[1]


def stub(name, code, seconds=1.0):
    return Part(name, seconds, {"code": code})


def python(stage, part, seconds):
    return [sys.executable, "-S", "-c", part.options["code"]]


def outcomes(directory):
    return {row["part"]: row for row in read_rows(directory / ROWS) if "status" in row}


def test_a_part_that_fails_or_hangs_ends_alone(tmp_path):
    """A part that raises, one that crashes, and one that hangs with a child process do not stop the next part."""
    row = json.dumps({"stage": "first", "table": "numbers", "row": {"n": 1}})
    write = f"open({str(tmp_path / ROWS)!r}, 'a').write({row!r} + chr(10))\n"
    child = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])
open({str(tmp_path / "child")!r}, 'w').write(str(child.pid))
"""
    stages = [
        Stage(
            "first",
            "About it.",
            [
                stub("raises", "print('before'); raise MemoryError('RESOURCE_EXHAUSTED')"),
                stub("crashes", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"),
                stub("hangs", write + child + "import time; time.sleep(60)"),
            ],
        ),
        Stage("second", "And this.", [stub("works", "print('fine')")]),
    ]
    pages = []
    begun = time.monotonic()
    run_stages(
        stages,
        4.0,
        tmp_path,
        python,
        lambda: pages.append(page.render(stages, read_rows(tmp_path / ROWS), {"commit": "abc"})),
        least_s=0.1,
    )
    assert time.monotonic() - begun < 30
    found = outcomes(tmp_path)
    assert {name: row["status"] for name, row in found.items()} == {
        "raises": "failed",
        "crashes": "failed",
        "hangs": "stopped",
        "works": "done",
    }
    assert "MemoryError: RESOURCE_EXHAUSTED" in found["raises"]["message"]
    assert "exit status -11" in found["crashes"]["message"]
    # A part may use the time that earlier parts have left.
    assert found["hangs"]["limit_s"] > 2 and found["hangs"]["seconds"] < 10
    assert len(pages) == 4
    assert "| n |\n|---|\n| 1 |" in pages[-1] and "RESOURCE_EXHAUSTED" in pages[-1]
    assert "- commit: abc" in pages[-1] and "- works: done" in pages[-1]
    assert "===== raises" in (tmp_path / LOG).read_text()
    left = Path("/proc", (tmp_path / "child").read_text(), "cmdline")
    assert (
        not left.exists() or not left.read_bytes()
    )  # stopped, though its exit status may not have been collected


def test_what_gets_no_time_is_skipped_with_a_line(tmp_path):
    stages = [Stage("one", "", [stub("a", "raise SystemExit(9)"), stub("b", "", 0.01)])]
    run_stages(stages, 0.1, tmp_path, python)
    found = outcomes(tmp_path)
    assert [row["status"] for row in found.values()] == ["skipped", "skipped"]
    assert "a: skipped, 0 s (no time left)" in page.render(stages, found.values(), {})


def test_rows_are_there_after_a_kill(tmp_path):
    """Kills the whole check during its second part."""
    code = f"""
from pathlib import Path
from benchmarks.gpu.runner import Part, Stage, run_stages
parts = [Part("a", 1, {{"code": "pass"}}), Part("b", 50, {{"code": "import time; time.sleep(20)"}})]
import sys
run_stages([Stage("one", "", parts)], 100, Path({str(tmp_path)!r}),
           lambda stage, part, seconds: [sys.executable, "-S", "-c", part.options["code"]], least_s=0)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / ROWS).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert outcomes(tmp_path)["a"]["status"] == "done"


def test_a_row_that_was_cut_short_is_left_out(tmp_path):
    append_row(tmp_path / ROWS, {"n": 1})
    with (tmp_path / ROWS).open("a") as file:
        file.write('{"n": ')
    assert read_rows(tmp_path / ROWS) == [{"n": 1}]
    assert read_rows(tmp_path / "none") == []


def test_tables_of_a_page():
    stages = [Stage("one", "About.", [])]
    row = {"|what|": "a|b", "share": 0.123456, "right": False, "none": None}
    rows = [{"stage": "one", "table": "t", "row": row}, {"stage": "one", "table": "t", "row": {}}]
    lines = page.render(stages, rows, {}).splitlines()
    assert lines[-4:] == [
        "| \\|what\\| | share | right | none |",
        "|---|---|---|---|",
        "| a\\|b | 0.1235 | **no** |  |",
        "|  |  |  |  |",
    ]


@pytest.mark.parametrize("names", [[], ["gpt3"], ["gpt2-xl", "gptj"]])
def test_sizes_are_checked(names):
    with pytest.raises(
        ValueError, match=f"--sizes={','.join(names)} must name one or more of gpt2, "
    ):
        check.make_stages(names, True)


def test_stages_are_those_that_sizes_and_torch_allow():
    def modules(*arguments):
        stages = check.make_stages(*arguments)
        return [part.options["module"] for stage in stages for part in stage.parts]

    everything = modules(["gpt2-xl", "gpt-j-6B"], True)
    assert everything.count("edits_torch") == 2 and "gptj" in everything
    plain = modules(["gpt2-xl", "gpt-j-6B"], False)
    assert plain == [name for name in everything if not name.endswith("_torch")]
    assert set(modules(["gpt-j-6B"], False)) == {
        "card",
        "correctness",
        "texts",
        "precision",
        "gptj",
        "moments",
    }
    parts = [part for stage in check.make_stages(["gpt2", "gpt2-xl"], True) for part in stage.parts]
    assert len({part.name for part in parts}) == len(parts)
    for part in parts:
        assert (ROOT / "benchmarks" / "gpu" / f"{part.options['module']}.py").is_file()


def test_tiny_models_are_of_their_family():
    for name in sizes.NAMES:
        real, tiny = sizes.Size.of(name), sizes.Size.of(name, tiny=True)
        assert real.config == PRESETS[sizes.NAMES[name]]
        assert tiny.config.family is real.config.family and tiny.config.width == 32
        assert bool(tiny.config.rotary) == bool(real.config.rotary)


def test_the_inverse_belongs_to_the_second_moment():
    made = sizes.second_moment(40)
    inverse = moment.inverse(moment.moment_root(40))
    np.testing.assert_allclose(made.mean @ inverse, np.eye(40), atol=1e-9)
    key = np.arange(40.0)
    np.testing.assert_allclose(made.solve(key), inverse @ key, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2-xl", "gpt-j-6B"])
def test_random_params_are_spread_as_gpts(name):
    config = sizes.Size.of(name, tiny=True).config
    params = weights.random_params(config)
    assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(
        lambda leaf: leaf.shape, param_shapes(config)
    )
    kernel = np.asarray(params["blocks"]["mlp"]["up"]["kernel"])
    embedding = np.asarray(params["wte"]["embedding"])
    for leaf in (kernel, embedding):
        assert leaf.std() == pytest.approx(0.02, rel=0.03) and abs(leaf.mean()) < 1e-3
    assert len(np.unique(kernel)) > 0.99 * kernel.size
    assert abs(np.corrcoef(kernel[0].ravel(), kernel[1].ravel())[0, 1]) < 0.1
    assert (np.asarray(params["ln_f"]["scale"]) == 1).all()
    half = weights.random_params(config, "bfloat16")["wte"]["embedding"]
    np.testing.assert_array_equal(half, embedding.astype(half.dtype))


def test_compile_seconds_are_counted_apart():
    with measure.compile_seconds() as compiled:
        results, seconds, total = measure.warm_up([lambda: jax.jit(lambda x: x * 3.5)(2.0)])
    assert results == [7.0] and 0 < total <= seconds + 1
    assert sum(compiled) == pytest.approx(total)
    median, result = measure.median_seconds(lambda: jax.numpy.ones(3))
    assert median > 0 and result.sum() == 3


def wheel(folder, name):
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        info = f"{name}-1.0.dist-info"
        file.writestr(f"{name}.py", "answer = 42\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


def test_missing_wheels_are_installed_for_the_check_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    for name in ("rome_jax_never_installed", "numpy"):
        wheel(tmp_path, name)
    with check.missing_wheels(str(tmp_path)) as installed:
        assert installed == ["rome_jax_never_installed"]  # numpy is already installed
        found = subprocess.run(
            [sys.executable, "-c", "import rome_jax_never_installed as m; print(m.answer)"],
            capture_output=True,
            text=True,
        )
        assert found.stdout.strip() == "42", found.stderr
    with check.missing_wheels(None) as installed:
        assert installed == []
    (tmp_path / "empty").mkdir()
    with (
        pytest.raises(ValueError, match="holds no wheel"),
        check.missing_wheels(str(tmp_path / "empty")),
    ):
        pass


@pytest.mark.parity
def test_torch_gets_the_same_weights():
    torch = pytest.importorskip("torch")
    from benchmarks.gpu.edits_torch import rank_one_difference
    from benchmarks.gpu.weights_torch import random_gpt2
    from rome_jax.models.families import FAMILIES

    config = sizes.Size.of("gpt2-xl", tiny=True).config
    for dtype in ("float32", "bfloat16"):
        params = weights.random_params(config, dtype)
        state = random_gpt2(to_hf(config), dtype, torch.device("cpu")).state_dict()
        for weight in FAMILIES[config.family].weights:
            if weight.path.startswith("lm_head"):
                continue
            leaf = params
            for part in weight.path.split("/"):
                leaf = leaf[part]
            layered = weight.path.startswith("blocks/")
            for layer in range(config.num_layers if layered else 1):
                ours = np.asarray((leaf[layer] if layered else leaf).astype("float32"))
                theirs = state[weight.name.format(layer)].float().numpy()
                # A fused kernel is [D, 3, H·K] here and [D, 3·H·K] in torch, with the same order in memory.
                np.testing.assert_array_equal(
                    ours.reshape(theirs.shape), theirs, err_msg=weight.path
                )
    generator = np.random.default_rng(0)
    (a, b), (c, d) = (generator.standard_normal((2, 7)) for _ in range(2))
    wanted = np.linalg.norm(np.outer(a, b) - np.outer(c, d)) / np.linalg.norm(np.outer(c, d))
    assert rank_one_difference((a, b), (c, d)) == pytest.approx(wanted)


@pytest.mark.parity
def test_neither_framework_is_imported_where_the_other_computes():
    pytest.importorskip("torch")
    jax_side, torch_side = [], []
    for stage in check.make_stages(["gpt2-xl", "gpt-j-6B"], True):
        for part in stage.parts:
            module = part.options["module"]
            (torch_side if module.endswith("_torch") else jax_side).append(module)
    for modules, other in ((jax_side, "torch"), (torch_side, "jax")):
        imports = "".join(f"import benchmarks.gpu.{module}\n" for module in sorted(set(modules)))
        code = f"{imports}import sys\nprint({other!r} in sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )
        assert done.stdout.strip() == "False", done.stderr or f"{other} is imported by {modules}"


@pytest.mark.slow
@pytest.mark.parity
def test_every_stage_runs_with_tiny_shapes(tmp_path):
    """All parts finish, and both sides agree."""
    pytest.importorskip("torch")
    line = ["-m", "benchmarks.gpu", "--tiny", "--budget_s=3600", f"--output_dir={tmp_path}"]
    done = subprocess.run([sys.executable, *line], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = (tmp_path / PAGE).read_text()
    assert {name: row["status"] for name, row in outcomes(tmp_path).items()} == dict.fromkeys(
        outcomes(tmp_path), "done"
    ), written
    assert len(outcomes(tmp_path)) == 15 and len(list(tmp_path.iterdir())) <= 8
    tables = {}
    for row in read_rows(tmp_path / ROWS):
        if "table" in row:
            tables.setdefault(row["table"], []).append(row["row"])
    assert all(row["right"] for row in tables["float32 at highest precision"])
    assert all(row["the same edit"] for row in tables["gpt2-xl, edits against PyTorch"])
    assert all(row["the same table"] for row in tables["gpt2-xl, traces against PyTorch"])
    assert tables["eval.edit, here and on the CPU"][0]["the same texts"]
    moved = tables["change against float32 weights and products at highest precision"]
    assert all(0 < row["ΔW, largest"] < 0.1 for row in moved)
    again = subprocess.run([sys.executable, *line], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 1 and "holds a check already" in again.stderr
