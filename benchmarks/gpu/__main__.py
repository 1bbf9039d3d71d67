"""Proves on one GPU that everything is right there, and says how fast it is: one command, fifteen minutes, one page.

    python -m benchmarks.gpu --output_dir=DIR
    python -m benchmarks.gpu --output_dir=DIR --budget_s=360 --parts=edits,edits_torch --sizes=gpt2-xl,gpt-j-6B
    python -m benchmarks.gpu --output_dir=DIR --sizes=gpt2-large      # for a small card
    python -m benchmarks.gpu --output_dir=DIR --tiny                  # every stage with tiny shapes, on any machine

Stages run in order of worth, each part in a process of its own with a share of the budget: a part that fails, runs
out of memory or hangs ends alone. DIR gets rows.jsonl (every measurement as soon as it is known), gpu.md (the page,
written anew after each part) and log.txt. Weights are random and made on the device; nothing is downloaded, no
checkpoint is read. Run it from the root of a checkout.

What is imported besides the standard library: jax, jaxlib with CUDA 12 or 13, flax, optax, numpy, scipy, ml_dtypes,
safetensors, tokenizers, transformers, huggingface_hub, tqdm, absl; ml_collections for `eval.edit`; torch for
PyTorch's side, which is left out where torch is missing. --wheels=DIR first installs those of a folder of wheels that
are missing, into a folder that lasts as long as the check.
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

_OUTPUT = flags.DEFINE_string("output_dir", None, "Directory of rows, page and log.", required=True)
_BUDGET = flags.DEFINE_float("budget_s", 840, "Seconds for everything.", lower_bound=1)
_SIZES = flags.DEFINE_list(
    "sizes",
    ["gpt2-xl", "gpt-j-6B"],
    "Models, by the last part of their hub name: GPT-2s run stages 3 to 5, GPT-Js stage 6, both stage 7.",
)
_TINY = flags.DEFINE_bool("tiny", False, "Tiny shapes, to try every stage on a CPU.")
_WHEELS = flags.DEFINE_string(
    "wheels", None, "Folder of wheels; those that are missing here are installed."
)
_PARTS = flags.DEFINE_list(
    "parts", None, "Parts to run, such as edits,edits_torch; all of them by default."
)
_COMMIT = flags.DEFINE_string(
    "commit", None, "Commit that the page names, where the checkout is a copy without git."
)


def main(argv: Sequence[str]) -> None:
    """Checks what the flags say."""
    if len(argv) > 1:
        raise ValueError(f"unknown arguments: {' '.join(argv[1:])}; see --help.")
    if not math.isfinite(_BUDGET.value):
        raise ValueError(f"--budget_s={_BUDGET.value}: give a finite number of seconds.")
    directory = Path(_OUTPUT.value).expanduser().resolve()
    if (directory / ROWS).exists():
        raise ValueError(f"--output_dir={directory} holds a check already: give another one.")
    with_torch = importlib.util.find_spec("torch") is not None
    stages = check.make_stages(_SIZES.value, with_torch, _PARTS.value)
    about = {
        "command": f"`python -m benchmarks.gpu {shlex.join(sys.argv[1:])}`",
        "date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        "commit": _COMMIT.value or check.commit(),
        "XLA flags": f"`{check.XLA_FLAGS}`",
        "shapes": "tiny: the figures mean nothing" if _TINY.value else "real",
    }
    if not with_torch:
        about["PyTorch"] = "not installed here: its side is left out"
    # Ending politely stops the part that runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with check.missing_wheels(_WHEELS.value) as installed:
        if installed:
            about["installed for the check"] = ", ".join(installed)
        os.chdir(check.ROOT)
        check.run_check(stages, directory, _BUDGET.value, about, _TINY.value)
    print(f"Wrote {directory / PAGE}")


def _guarded(argv: Sequence[str]) -> None:
    try:
        main(argv)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    app.run(_guarded)
