"""Time of evaluating edits in batches, compared with a straightforward PyTorch implementation.

Each CounterFact-shaped case has 1 rewrite, 2 paraphrase, 10 neighborhood, and 10 attribute prompts. Each prompt has two
targets and is scored before and after the edit of its case. No text is generated. The weights are random, because the
time depends only on shapes. Both sides get the same weights, tokens, context templates, and second moments, evaluate
the loss exactly 20 times, and must compute the same NLLs.

    python -m benchmarks.evaluate                                     # gpt2, 64 cases, 4 of them in PyTorch
    python -m benchmarks.evaluate --models gpt2 gpt2-medium --cases 32 --torch_cases 2
    python -m benchmarks.evaluate --models gpt2-xl --dtype bfloat16 --chunk_size 32 --peak_tflops 989   # for a GPU

rome_jax edits and scores all cases twice; the first pass includes compilation. PyTorch runs a sample of the cases, one
at a time, between the batches of the second pass. A GPU must hold both models at once.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import jax
import numpy as np
import torch

from benchmarks import command_line, evaluate_cases
from benchmarks.edit_case import STEPS
from benchmarks.evaluate_cases import EDIT_LAYERS
from benchmarks.evaluate_sides import Run, Setup
from benchmarks.timing import ceiling
from benchmarks.timing_torch import torch_ceiling, torch_device
from rome_jax.models import transformer
from rome_jax.models.families import PRESETS


def compare(name: str, arguments: argparse.Namespace) -> None:
    """Prints the table of one model.

    Args:
      name: A key of `PRESETS` and `EDIT_LAYERS`.
      arguments: Parsed command line of `main`.
    """
    config, layer = PRESETS[name], EDIT_LAYERS[name]
    params = jax.tree.map(
        lambda leaf: leaf.astype(arguments.dtype),
        transformer.init_params(config, jax.random.key(0)),
    )
    setup = Setup.of(params, config, layer, arguments.chunk_size)
    count, size = arguments.cases, arguments.batch_size
    records = evaluate_cases.make_records(count, config.vocab_size)
    batches = [records[start : start + size] for start in range(0, count, size)]
    spread = np.linspace(0, count, arguments.torch_cases, endpoint=False).astype(int)
    print(
        f"\n{name}, {arguments.dtype}, edit layer {layer}: {count} cases of {evaluate_cases.NUM_PROMPTS} prompts with "
        f"two targets, {STEPS} evaluations of the loss; torch on {torch_device()}, jax on {jax.default_backend()}"
    )

    jax.clear_caches()
    cold = Run.joined([setup.run_jax(batch) for batch in batches])
    setup.twin(torch.zeros(1, 1, dtype=torch.long, device=torch_device()))
    warm, twins = [], []
    for batch, indices in zip(batches, np.array_split(spread, len(batches)), strict=True):
        twins += [setup.run_torch(records[index]) for index in indices]
        warm.append(setup.run_jax(batch))
    theirs, ours = Run.joined(twins), Run.joined(warm)

    rows = (
        (f"PyTorch, {len(twins)} of {count} cases", theirs),
        (f"rome_jax, {count}, first pass", cold),
        (f"rome_jax, {count} cases", ours),
    )
    _print_stages(rows, arguments.peak_tflops)
    hourly = [3600 * len(run.before) / run.seconds.total for run in (theirs, ours)]
    compiling = cold.seconds.total - ours.seconds.total
    print(
        f"cases per hour: PyTorch {hourly[0]:.0f}, rome_jax {hourly[1]:.0f}; compilation in the first pass: "
        f"{compiling:.1f} s"
    )
    before, after = (
        np.abs(found[spread] / expected - 1).max()
        for found, expected in ((ours.before, theirs.before), (ours.after, theirs.after))
    )
    moved = np.abs(theirs.after - theirs.before).max(axis=(1, 2)).mean()
    print(
        f"largest relative difference of NLLs: before the edits {before:.1e}, after them {after:.1e}; the largest "
        f"change of an NLL by an edit, averaged over edits: {moved:.2f} nats"
    )


def _print_stages(rows: Sequence[tuple[str, Run]], peak_tflops: float | None) -> None:
    """Prints, per case, the time and work of each run and of its stages, with ratios to the first run."""
    titles = ("s per case", 11), ("share", 8), ("ratio", 8), ("GFLOP", 9), ("GFLOP/s", 9)
    mfu = f"{'MFU':>8s}" if peak_tflops else ""
    print(" " * 32 + "".join(f"{title:>{width}s}" for title, width in titles) + mfu)
    _, reference = rows[0]
    for label, run in rows:
        for stage in ("total", "edit", "scoring"):
            baseline, seconds = (
                getattr(each.seconds, stage) / len(each.before) for each in (reference, run)
            )
            work = getattr(run.work, stage) / len(run.before)
            share = getattr(run.seconds, stage) / run.seconds.total
            mfu = f"{work / seconds / peak_tflops / 1e12:8.1%}" if peak_tflops else ""
            print(
                f"{label if stage == 'total' else '  ' + stage:32s}{seconds:11.3f}{share:8.1%}"
                f"{baseline / seconds:8.1f}{work / 1e9:9.0f}{work / seconds / 1e9:9.0f}{mfu}"
            )


def main() -> None:
    """Prints the peak rates of matrix products and one table per model."""
    parser = command_line.parser(__doc__.split("\n")[0])
    # rome_torch supports only GPT-2.
    sizes = [name for name in EDIT_LAYERS if PRESETS[name].rotary is None]
    parser.add_argument("--models", nargs="+", choices=sizes, default=["gpt2"])
    parser.add_argument("--cases", type=int, default=64, help="Number of cases for rome_jax.")
    parser.add_argument(
        "--torch_cases", type=int, default=4, help="Number of those cases that PyTorch also runs."
    )
    parser.add_argument(
        "--batch_size", type=int, default=64, help="Number of cases scored together."
    )
    parser.add_argument(
        "--chunk_size", type=int, default=8, help="Number of edits optimized together."
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--peak_tflops",
        type=float,
        default=None,
        help="Peak TFLOP/s of the device; adds the column MFU (model FLOP utilization).",
    )
    arguments = parser.parse_args()
    for name in ("cases", "torch_cases", "batch_size", "chunk_size"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}={getattr(arguments, name)} must be at least 1.")
    if arguments.torch_cases > arguments.cases:
        parser.error(
            f"--torch_cases={arguments.torch_cases} must be at most --cases={arguments.cases}."
        )
    if arguments.peak_tflops is not None and arguments.peak_tflops <= 0:
        parser.error(f"--peak_tflops={arguments.peak_tflops} must be positive.")
    # jax reads this when it creates its first array. By default it would take most of the GPU's memory from torch.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    size = 2048 if torch_device().type == "cpu" else 8192
    ours, theirs = ceiling(size, arguments.dtype), torch_ceiling(size, arguments.dtype)
    print(f"{arguments.dtype} matrix product: jax {ours:.0f} GFLOP/s, torch {theirs:.0f} GFLOP/s")
    for name in arguments.models:
        compare(name, arguments)


if __name__ == "__main__":
    main()
