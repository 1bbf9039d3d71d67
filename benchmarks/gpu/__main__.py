"""Check of correctness and speed on one GPU, which takes about fifteen minutes and writes one page of results.

    python -m benchmarks.gpu --output_dir=DIR
    python -m benchmarks.gpu --output_dir=DIR --budget_s=360 --parts=edits,edits_torch --sizes=gpt2-xl,gpt-j-6B
    python -m benchmarks.gpu --output_dir=DIR --sizes=gpt2-large      # for a small GPU
    python -m benchmarks.gpu --output_dir=DIR --tiny                  # every stage with tiny shapes, on any machine

Stages run in order of importance. Each part runs in its own process with a share of the time budget, so a part that
fails, hangs, or runs out of memory does not stop the others. DIR receives rows.jsonl (each measurement as soon as it is
known), gpu.md (the page, rewritten after each part), and log.txt. Weights are random and created on the device. Nothing
is downloaded, and no large checkpoint is read. Run the command from the root of a checkout.

The check imports jax, jaxlib with CUDA 12 or 13, flax, optax, numpy, scipy, ml_dtypes, safetensors, tokenizers,
transformers, huggingface_hub, tqdm, absl, ml_collections (for `eval.edit`), and torch (for the PyTorch side, which is
skipped if torch is missing). --wheels=DIR installs missing packages from a directory of wheels into a temporary
directory that is removed after the check.
"""

from __future__ import annotations

import datetime
import importlib.util
import math
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from benchmarks.gpu import check
from benchmarks.gpu.runner import PAGE, ROWS

_OUTPUT = flags.DEFINE_string(
    "output_dir",
    None,
    "Directory of the rows, the page, and the log. Must not hold an earlier check.",
    required=True,
)
_BUDGET = flags.DEFINE_float(
    "budget_s", 840, "Time budget of the whole check, in seconds.", lower_bound=1
)
_SIZES = flags.DEFINE_list(
    "sizes",
    ["gpt2-xl", "gpt-j-6B"],
    "Models, by the last part of their Hub name. GPT-2 models run stages 3 to 5, GPT-J runs stage 6, both run stage 7.",
)
_TINY = flags.DEFINE_bool("tiny", False, "Use tiny shapes, to try every stage on a CPU.")
_WHEELS = flags.DEFINE_string(
    "wheels",
    None,
    "Directory of wheels. Packages that are not installed are installed for the duration of the check.",
)
_PARTS = flags.DEFINE_list(
    "parts", None, "Kinds of parts to run, such as edits,edits_torch. By default all parts run."
)
_COMMIT = flags.DEFINE_string(
    "commit",
    None,
    "Commit to name on the page, for a copy of the checkout without git. By default git is asked.",
)


def main(argv: Sequence[str]) -> None:
    """Runs the check that the flags describe."""
    if len(argv) > 1:
        raise ValueError(f"unknown arguments: {' '.join(argv[1:])}; see --help.")
    if not math.isfinite(_BUDGET.value):
        raise ValueError(f"--budget_s={_BUDGET.value} must be a finite number of seconds.")
    directory = Path(_OUTPUT.value).expanduser().resolve()
    if (directory / ROWS).exists():
        raise ValueError(
            f"--output_dir={directory} holds a check already; choose another directory."
        )
    with_torch = importlib.util.find_spec("torch") is not None
    stages = check.make_stages(_SIZES.value, with_torch, _PARTS.value)
    about = {
        "command": f"`python -m benchmarks.gpu {shlex.join(sys.argv[1:])}`",
        "date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        "commit": _COMMIT.value or check.commit(),
        "XLA flags": f"`{check.XLA_FLAGS}`",
        "shapes": "tiny, so the figures have no meaning" if _TINY.value else "real",
    }
    if not with_torch:
        about["PyTorch"] = "not installed, so its parts are skipped"
    # A normal exit on SIGTERM also stops the running part.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with check.missing_wheels(_WHEELS.value) as installed:
        if installed:
            about["installed for the check"] = ", ".join(installed)
        os.chdir(check.ROOT)
        check.run_check(stages, directory, _BUDGET.value, about, _TINY.value)
    print(f"Wrote {directory / PAGE}")


def _guarded(argv: Sequence[str]) -> None:
    """Runs `main` and reports expected errors in one line without a traceback."""
    try:
        main(argv)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    app.run(_guarded)
