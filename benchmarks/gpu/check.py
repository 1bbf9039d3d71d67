"""What a check consists of, and how it is run: the stages and their shares, missing packages, the page's head."""

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
# XLA tries many variants of each fusion and matrix product, which costs a program of an edit tens of seconds.
XLA_FLAGS = (
    "--xla_gpu_experimental_enable_fusion_autotuner=false --xla_gpu_enable_triton_gemm=false"
)


def make_stages(
    sizes: Sequence[str], with_torch: bool, modules: Sequence[str] | None = None
) -> list[Stage]:
    """The stages of a check; a part's seconds are its share of the budget.

    Args:
      sizes: some of the known models.
      with_torch: whether PyTorch's side runs.
      modules: kinds of parts to run, such as "edits" and "edits_torch"; all of them if None.

    Raises:
      ValueError: If a size or kind is unknown, or nothing is left to run.

    Example:
      >>> stages = make_stages(["gpt2-xl"], True, ["moments"])
      >>> [part.name for stage in stages for part in stage.parts]
      ['moments gpt2-xl float32']
    """
    unknown = sorted(set(sizes) - {*_GPT2, *_GPTJ})
    if unknown or not sizes:
        known = ", ".join((*_GPT2, *_GPTJ))
        raise ValueError(f"--sizes={','.join(sizes)}: name some of {known}.")
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
            "Matrix products of 8192 × 8192, the least of ten; everything below is held against them.",
            [part("card", 16), part("card_torch", 9)],
        ),
        Stage(
            "2. Is it right",
            "The golden numbers of the original implementation, with the tolerances of the tests on CPUs.",
            [part("correctness", 90), part("texts", 40)],
        ),
        Stage(
            "3. ROME edits",
            "Random weights, 21 contexts, a prompt of 8 tokens, 20 evaluations of the loss. Medians of three, warm. "
            "The same weights and tokens in PyTorch: a Hugging Face model with forward hooks, whole passes.",
            [
                part(module, seconds, size, dtype)
                for size in gpt2
                for dtype, ours, theirs in (("float32", 90, 26), ("bfloat16", 70, 26))
                for module, seconds in (("edits", ours), ("edits_torch", theirs))
            ],
        ),
        Stage(
            "4. Causal traces",
            "A prompt of 8 tokens, 10 samples of noise, every layer restored at every token. Medians of three, warm. "
            "PyTorch runs one forward pass of 11 rows for each restoration, a tenth of them, scaled.",
            [
                part(module, seconds, size, "float32")
                for size in gpt2
                for module, seconds in (("traces", 60), ("traces_torch", 45))
            ],
        ),
        Stage(
            "5. Evaluation",
            "Cases as long as those of CounterFact: edited, and scored before and after the edit; and texts.",
            [part("evaluation", 75, size, "bfloat16") for size in gpt2],
        ),
        Stage(
            "6. GPT-J",
            "Weights in bfloat16, edit arithmetic in float32.",
            [part("gptj", 85, size, "bfloat16") for size in gptj],
        ),
        Stage(
            "7. Second moments",
            "Full rows of random tokens through the layers up to the edited one.",
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
            f"--parts={','.join(modules)}: name some of {', '.join(sorted(known_modules))}."
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
    """Runs the stages; the page follows each part."""
    from rome_jax.files.artifacts import cache_directory, write_whole

    begun = datetime.datetime.now()

    def write_page() -> None:
        elapsed = (datetime.datetime.now() - begun).total_seconds()
        head = about | {"so far": f"{elapsed:.0f} s of {budget_s:.0f}"}
        text = page.render(stages, read_rows(directory / ROWS), head)
        write_whole(directory / PAGE, text.encode())

    environment = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_COMPILATION_CACHE_DIR": str(cache_directory() / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        # Without CUDA an error, not a check of the CPU; host callbacks need the CPU beside it.
        "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "" if tiny else "cuda,cpu"),
        "TRANSFORMERS_VERBOSITY": "error",
    }
    if tiny:  # compiling is all that there is to it
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
    """Installs the wheels of a folder whose packages are missing, for as long as the block lasts.

    Yields:
      Names of what was installed.

    Raises:
      ValueError: a folder without wheels.
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
    """The checkout's commit, and whether it holds more; "not known" without git."""
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
