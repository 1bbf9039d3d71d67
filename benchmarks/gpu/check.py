"""The stages of a check and their shares of the time, the environment they run in, and the head of the page."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.gpu import child, page
from benchmarks.gpu.runner import PAGE, ROWS, Part, Stage, read_rows, run_stages

_GPT2 = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
_GPTJ = ("gpt-j-6B",)
ROOT = Path(__file__).resolve().parents[2]
# By default XLA tries many variants of each fusion and matrix product, which adds tens of seconds to each program of an
# edit.
XLA_FLAGS = (
    "--xla_gpu_experimental_enable_fusion_autotuner=false --xla_gpu_enable_triton_gemm=false"
)


def make_stages(
    sizes: Sequence[str], with_torch: bool, modules: Sequence[str] | None = None
) -> list[Stage]:
    """Builds the stages of a check. The seconds of a part are its share of the time budget.

    Args:
      sizes: Models to check, as `--sizes` names them.
      with_torch: Whether the PyTorch side runs.
      modules: Kinds of parts to run, such as "edits" and "edits_torch". By default all kinds run.

    Raises:
      ValueError: If `sizes` is empty, or a size or kind is unknown.

    Example:
      >>> stages = make_stages(["gpt2-xl"], True, ["moments"])
      >>> [part.name for stage in stages for part in stage.parts]
      ['moments gpt2-xl float32']
    """
    unknown = sorted(set(sizes) - {*_GPT2, *_GPTJ})
    if unknown or not sizes:
        known = ", ".join((*_GPT2, *_GPTJ))
        raise ValueError(f"--sizes={','.join(sizes)} must name one or more of {known}.")
    gpt2 = [size for size in _GPT2 if size in sizes]
    gptj = [size for size in _GPTJ if size in sizes]

    def part(module: str, seconds: float, size: str = "", dtype: str = "") -> Part:
        options = {"module": module, "size": size, "dtype": dtype or "float32"}
        if not module.endswith("_torch"):
            options["xla_flags"] = XLA_FLAGS
        return Part(" ".join(filter(None, (module, size, dtype))), seconds, options)

    stages = [
        Stage(
            "1. The device",
            "Matrix products of 8192 × 8192, the least time of ten; the ceilings that later tables refer to.",
            [part("card", 16), part("card_torch", 9)],
        ),
        Stage(
            "2. Correctness",
            "The golden numbers of the original implementation, with the tolerances of the tests on CPUs.",
            [part("correctness", 90), part("texts", 40), part("precision", 60)],
        ),
        Stage(
            "3. ROME edits",
            "Random weights, 21 contexts, a prompt of 8 tokens, 20 evaluations of the loss. Medians of three, warm. "
            "PyTorch has the same weights and tokens: a Hugging Face model with forward hooks and whole forward "
            "passes.",
            [
                part(module, seconds, size, dtype)
                for size in gpt2
                for dtype, ours, theirs in (("float32", 90, 26), ("bfloat16", 70, 26))
                for module, seconds in (("edits", ours), ("edits_torch", theirs))
            ],
        ),
        Stage(
            "4. Causal traces",
            "A prompt of 8 tokens, 10 noise samples, every layer restored at every token. Medians of three, warm. "
            "PyTorch runs one forward pass of 11 rows per restoration, for a tenth of the restorations, and its time "
            "is scaled.",
            [
                part(module, seconds, size, "float32")
                for size in gpt2
                for module, seconds in (("traces", 60), ("traces_torch", 45))
            ],
        ),
        Stage(
            "5. Evaluation",
            "Cases with the lengths of CounterFact's, edited and scored before and after the edit; and generated "
            "texts.",
            [part("evaluation", 75, size, "bfloat16") for size in gpt2],
        ),
        Stage(
            "6. GPT-J",
            "bfloat16 weights, edit arithmetic in float32.",
            [part("gptj", 85, size, "bfloat16") for size in gptj],
        ),
        Stage(
            "7. Second moments",
            "Full rows of random tokens, run through the layers up to the edit layer.",
            [
                *(part("moments", 20, size, "float32") for size in gpt2),
                *(part("moments", 20, size, "bfloat16") for size in gptj),
            ],
        ),
    ]
    known_modules = {part.options["module"] for stage in stages for part in stage.parts}
    chosen = known_modules if modules is None else set(modules)
    if chosen - known_modules:
        raise ValueError(
            f"--parts={','.join(modules)} must name one or more of {', '.join(sorted(known_modules))}."
        )
    if not with_torch:
        chosen = {module for module in chosen if not module.endswith("_torch")}
    kept = [
        dataclasses.replace(
            stage, parts=[part for part in stage.parts if part.options["module"] in chosen]
        )
        for stage in stages
    ]
    return [stage for stage in kept if stage.parts]


def run_check(
    stages: Sequence[Stage], directory: Path, budget_s: float, about: Mapping[str, str], tiny: bool
) -> None:
    """Runs the stages and rewrites the page after each part.

    Args:
      stages: Stages to run.
      directory: Directory of the rows, the page, and the log.
      budget_s: Time budget of all stages, in seconds.
      about: Entries of the page's head, by label.
      tiny: Whether the parts use tiny shapes.
    """
    from rome_jax.files.artifacts import cache_directory, write_whole

    start = datetime.datetime.now()

    def write_page() -> None:
        elapsed = (datetime.datetime.now() - start).total_seconds()
        head = about | {"so far": f"{elapsed:.0f} s of {budget_s:.0f}"}
        text = page.render(stages, read_rows(directory / ROWS), head)
        write_whole(directory / PAGE, text.encode())

    environment = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_COMPILATION_CACHE_DIR": str(cache_directory() / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        # Fails if there is no CUDA device, instead of checking the CPU. Host callbacks also need the CPU backend.
        "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "" if tiny else "cuda,cpu"),
        "TRANSFORMERS_VERBOSITY": "error",
    }
    if tiny:  # compilation takes almost all of the time
        from tests import quick_compile

        environment |= quick_compile.variables()
    with tempfile.TemporaryDirectory() as scratch:
        command = functools.partial(
            child.command, directory=directory, scratch=Path(scratch), tiny=tiny
        )
        run_stages(
            stages, budget_s, directory, command, write_page, environment=os.environ | environment
        )


@contextlib.contextmanager
def missing_wheels(folder: str | None) -> Iterator[list[str]]:
    """Installs missing packages from a directory of wheels inside a `with` block.

    Args:
      folder: Directory of wheels, or None to install nothing.

    Yields:
      Names of the packages that were installed.

    Raises:
      ValueError: If the directory holds no wheel.
    """
    if folder is None:
        yield []
        return
    wheels = {path.name.split("-")[0]: path for path in sorted(Path(folder).glob("*.whl"))}
    if not wheels:
        raise ValueError(f"--wheels={folder} holds no wheel (*.whl).")
    installed = {
        distribution.name.lower().replace("-", "_")
        for distribution in importlib.metadata.distributions()
    }
    missing = [name for name in wheels if name.lower() not in installed]
    with tempfile.TemporaryDirectory() as target:
        if missing:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
            files = [str(wheels[name]) for name in missing]
            subprocess.run([*pip, "--target", target, *files], check=True)
        sys.path.insert(0, target)
        paths = [target, os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        yield missing


def commit() -> str:
    """Returns the commit of the checkout and whether files have changed since, or "not known" without git."""
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        status = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "not known"
    return commit.stdout.strip()[:12] + (", with changes" if status.stdout.strip() else "")
