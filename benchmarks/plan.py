"""Measured peaks of memory compared with those that `eval.plan` counts from shapes.

    python -m benchmarks.plan                                        # gpt2, float32
    python -m benchmarks.plan --model gpt2-xl --dtype bfloat16 --jobs edit:8 trace:256 scoring:4096
    python -m benchmarks.plan --model gpt2-xl --jobs edit:1 --steps 3

Each job runs in a process of its own, with random weights and the requests of `benchmarks.edit_case`. On a CPU the peak
is the anonymous resident memory of the process, and the counted peak includes the 0.2 GB of the process itself. The job
runs once for its compilation, whose memory is given back before the run that counts. On another device it is the peak
that the device reports.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import command_line
from benchmarks.edit_case import SUBJECT_LAST, make_inputs
from benchmarks.evaluate_cases import EDIT_LAYERS
from benchmarks.gpu.sizes import second_moment
from benchmarks.gpu.weights import random_params
from benchmarks.real_size.memory import anonymous_memory
from benchmarks.trace_case import NOISE, PROMPT, SPAN, make_prompt
from rome_jax.data.tokens import TokenBatch
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.delta import apply_delta
from rome_jax.edit.methods import rome
from rome_jax.evaluation.scoring import Query, score_queries
from rome_jax.models.devices import memory_figure
from rome_jax.models.families import PRESETS
from rome_jax.models.forward import Params
from rome_jax.models.generate import generate
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.key_sums import KeySums
from rome_jax.scaling import memory
from rome_jax.scaling.device import PROCESS, platform_here
from rome_jax.scaling.memory import Lengths, Peak
from rome_jax.scaling.setup import Setup
from rome_jax.trace import sweep

JOBS = (
    *("edit:1", "edit:8", "trace:64", "trace:256", "scoring:4096", "scoring:16384"),
    *("statistics:4096", "generation:1024", "merging:1"),
)
LENGTHS = Lengths(prefix=16, suffix=5, prompt=PROMPT, target=2)
_INTERVAL = 0.005  # seconds between samples
_SAMPLES, _NEW_TOKENS = 10, 112


def counted(setup: Setup, job: str, size: int, layer: int) -> Peak:
    """Returns the peak that the plan counts for a job.

    Args:
      setup: The model and its device.
      job: Name of the job.
      size: Its size: a number of requests, columns, or tokens.
      layer: Edited layer.

    Example:
      >>> counted(Setup(PRESETS["gpt2"]), "merging", 1, 5).kept
      113246208
    """
    match job:
        case "edit":
            return memory.edit_peak(setup, ROMEConfig((layer,)), size, LENGTHS)
        case "trace":
            return memory.trace_peak(setup, size, LENGTHS)
        case "scoring":
            return memory.scoring_peak(setup, size, LENGTHS)
        case "statistics":
            return memory.statistics_peak(setup, size)
        case "generation":
            return memory.generation_peak(setup, size)
    return memory.merging_peak(setup)


def prepare(model: LanguageModel, job: str, size: int, layer: int, steps: int) -> Callable:
    """Returns a function without arguments that does a job.

    Args:
      model: The model, without a tokenizer.
      job, size, layer: As in `counted`.
      steps: Evaluations of the loss of an edit. The memory does not depend on them.
    """
    config, generator = model.config, np.random.default_rng(0)

    def tokens(*shape: int) -> np.ndarray:
        return generator.integers(config.vocab_size, size=shape, dtype=np.int32)

    match job:
        case "edit":
            inputs = make_inputs(size, config.vocab_size)
            method = ROMEConfig((layer,), v_num_grad_steps=steps, loss_threshold=0.0)
            moments = {layer: second_moment(config.mlp_width)}
            return lambda: (
                rome.compute_from_inputs(model.params, config, inputs, method, moments).deltas
            )
        case "trace":
            prompt = make_prompt(tokens(PROMPT))
            noise = jnp.asarray(
                NOISE * generator.standard_normal((_SAMPLES, SPAN[1] - SPAN[0], config.width)),
                jnp.float32,
            )
            # One chunk: as many places of the lowest layers as fill the columns.
            columns = PROMPT - SUBJECT_LAST
            count = min(max(1, size // columns), config.num_layers)
            places = np.full(count, SUBJECT_LAST), np.arange(count)
            return lambda: sweep.scores(
                sweep.start(model, prompt, noise), *places, chunk_columns=size
            )
        case "scoring":
            rows = size // LENGTHS.scored
            queries = [
                Query(tuple(tokens(LENGTHS.scored).tolist()), ((1,), (2,))) for _ in range(rows)
            ]
            return lambda: score_queries(model, queries, max_tokens=size)
        case "statistics":
            length = min(size, config.context_length)
            rows = size // length
            batch = TokenBatch(tokens(rows, length), np.ones((rows, length), bool))
            sums = KeySums(model.params, config, [layer])
            return lambda: sums.add(batch)
        case "generation":
            rows = size // 128
            batch = TokenBatch(tokens(rows, 16), np.ones((rows, 16), bool))
            return lambda: generate(model.params, config, batch, max_new_tokens=_NEW_TOKENS)
        case "merging":
            factors = (jnp.ones((width, 1)) for width in (config.mlp_width, config.width))
            update = LowRankUpdate(Leaf.MLP_DOWN, jnp.int32(layer), *factors)
            return lambda: apply_delta(model.params, Delta((update,)))
    raise ValueError(f"job {job!r}: give one of {', '.join(name.split(':')[0] for name in JOBS)}.")


@contextlib.contextmanager
def watching() -> Iterator[list[int]]:
    """Samples the anonymous memory of this process; yields a list whose item becomes the peak."""
    peak, done = [anonymous_memory()], threading.Event()

    def watch() -> None:
        while not done.wait(_INTERVAL):
            peak[0] = max(peak[0], anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _make_params(name: str, dtype: str) -> Params:
    """Makes the random weights of a model, and returns what that took on the way."""
    params = jax.block_until_ready(random_params(PRESETS[name], dtype))
    _give_back()
    return params


def _give_back() -> None:
    """Returns freed memory to the system, where the C library can do so."""
    jax.effects_barrier()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def measure(name: str, dtype: str, job: str, size: int, steps: int) -> dict[str, int]:
    """Runs a job in this process; returns the measured and the counted bytes."""
    jax.block_until_ready(jnp.zeros(1))  # starts the runtime
    layer = EDIT_LAYERS[name]
    params = _make_params(name, dtype)
    model = LanguageModel(name, PRESETS[name], params, None, "random weights")
    run = prepare(model, job, size, layer, steps)
    jax.block_until_ready(run())
    _give_back()
    with watching() as peak:
        jax.block_until_ready(run())
    found, process = peak[0], PROCESS
    if (peak_on_device := memory_figure("peak_bytes_in_use")) is not None:
        found, process = peak_on_device, 0
    setup = Setup(PRESETS[name], dtype, platform_here())
    return {
        "measured": found,
        "counted": counted(setup, job, size, layer).total + process,
        "weights": setup.weights,
    }


def main() -> None:
    """Prints a Markdown table, row by row."""
    parser = command_line.parser(__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="gpt2", choices=list(EDIT_LAYERS))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--jobs", nargs="+", default=JOBS, help="Jobs with their sizes.")
    parser.add_argument("--steps", type=int, default=2, help="Evaluations of the loss of an edit.")
    parser.add_argument("--measure", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        job, size = args.measure.split(":")
        print(json.dumps(measure(args.model, args.dtype, job, int(size), args.steps)))
        return
    print("| model | dtype | job | size | weights, GB | measured, GB | counted, GB | ratio |")
    print("|---" * 8 + "|", flush=True)
    for job in args.jobs:
        command = [sys.executable, "-m", "benchmarks.plan", "--measure", job, "--model", args.model]
        command += ["--dtype", args.dtype, "--steps", str(args.steps)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        sizes = [f"{found[key] / 1e9:.3f}" for key in ("weights", "measured", "counted")]
        ratio = f"{found['counted'] / found['measured']:.2f}"
        cells = [args.model, args.dtype, *job.split(":"), *sizes, ratio]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
