"""Peak memory of loading a checkpoint.

The benchmark writes a random checkpoint, loads it in a new process, and samples the memory of that process. It counts
anonymous resident memory (RssAnon in /proc/self/status). Pages of mapped files are not counted, because the kernel
can reclaim them. The goal is a peak of at most 1.2 times the weights.

    python -m benchmarks.load_memory                        # gpt2-xl, float32: needs 6.2 GB of disk and of memory
    python -m benchmarks.load_memory --dtype float16 --load_dtype bfloat16
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np

from benchmarks import command_line

_SHARD = 2 << 30  # bytes
_INTERVAL = 0.005  # seconds between samples


def write_checkpoint(directory: Path, preset: str, dtype: np.dtype) -> int:
    """Writes a sharded checkpoint of a preset with random weights, one tensor at a time.

    Args:
      directory: Existing directory of the checkpoint.
      preset: A key of `PRESETS`.
      dtype: Dtype of the weights.

    Returns:
      Size of the weight files in bytes.
    """
    from rome_jax.files.safetensors_io import write
    from rome_jax.models.families import PRESETS, to_hf
    from rome_jax.models.huggingface import checkpoint_shapes

    config = PRESETS[preset]
    generator = np.random.default_rng(0)
    shards, filled = [{}], 0
    for name, shape in checkpoint_shapes(config).items():
        size = math.prod(shape) * dtype.itemsize
        if filled and filled + size > _SHARD:
            shards.append({})
            filled = 0
        shards[-1][name] = (dtype, shape)
        filled += size
    weight_map = {}
    for number, specs in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = (
            (0.02 * generator.standard_normal(shape, np.float32)).astype(dtype)
            for _, shape in specs.values()
        )
        write(directory / file, specs, tensors, {"format": "pt"})
        weight_map |= dict.fromkeys(specs, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps(to_hf(config)))
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def anonymous_memory() -> int:
    """Returns the anonymous resident memory of this process in bytes.

    Raises:
      OSError: If /proc/self/status has no RssAnon, as on systems other than Linux.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon; run this benchmark on Linux.")


def measure(directory: Path, load_dtype: str | None) -> dict[str, float]:
    """Loads a checkpoint in this process and samples its memory meanwhile.

    Args:
      directory: Directory of the checkpoint.
      load_dtype: Dtype of the params; None keeps the dtype of the checkpoint.

    Returns:
      The sizes "weights", "baseline" (before loading), "peak", and "after" in bytes, and the time "seconds".
    """
    import jax

    from rome_jax.models.families import from_hf
    from rome_jax.models.huggingface import load_params

    config = from_hf(json.loads((directory / "config.json").read_text()))
    jax.block_until_ready(
        jax.numpy.zeros(1)
    )  # starts the runtime, so that its memory is in the baseline
    baseline = anonymous_memory()
    peak, done = baseline, threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(_INTERVAL):
            peak = max(peak, anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    params = jax.block_until_ready(load_params(directory, config, load_dtype))
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return {
        "weights": weights,
        "baseline": baseline,
        "peak": peak,
        "after": anonymous_memory(),
        "seconds": seconds,
    }


def main() -> None:
    """Prints the memory before, during, and after loading."""
    parser = command_line.parser(__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--preset", default="gpt2-xl", help="Model, a key of rome_jax.models.families.PRESETS."
    )
    parser.add_argument(
        "--dtype", default="float32", help="Dtype of the checkpoint: float32, float16, or bfloat16."
    )
    parser.add_argument(
        "--load_dtype",
        default=None,
        help="Dtype of the loaded params; by default that of the checkpoint.",
    )
    parser.add_argument(
        "--directory",
        default=None,
        help="Directory for the temporary checkpoint; by default the system's.",
    )
    parser.add_argument("--measure", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.measure), args.load_dtype)))
        return
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        size = write_checkpoint(Path(directory), args.preset, np.dtype(args.dtype))
        print(f"{args.preset}, {args.dtype}: {size / 1e9:.2f} GB on disk", flush=True)
        command = [sys.executable, "-m", "benchmarks.load_memory", "--measure", directory]
        command += ["--load_dtype", args.load_dtype] if args.load_dtype else []
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures = json.loads(done.stdout)
    weights, baseline = figures["weights"], figures["baseline"]
    print(f"weights in memory         {weights / 1e9:.3f} GB, loaded in {figures['seconds']:.1f} s")
    print(f"process before loading    {baseline / 1e9:.3f} GB")
    print(
        f"process at its peak       {figures['peak'] / 1e9:.3f} GB = {figures['peak'] / weights:.3f} x weights"
    )
    print(f"  minus memory before     {(figures['peak'] - baseline) / weights:.3f} x weights")
    print(f"process after loading     {figures['after'] / 1e9:.3f} GB")


if __name__ == "__main__":
    main()
