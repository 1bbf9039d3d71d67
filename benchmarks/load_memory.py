"""Peak memory of loading a model: writes a random checkpoint, loads it in a fresh process, watches that process.

What is counted is anonymous resident memory (RssAnon of /proc/self/status): pages of mapped files belong to the file
and the kernel can take them back. The aim is at most 1.2 x the weights.

    python -m benchmarks.load_memory                        # gpt2-xl, float32: 6.2 GB of disk and memory
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

import ml_dtypes  # noqa: F401  (numpy learns the name bfloat16)
import numpy as np
from absl.flags import argparse_flags

_SHARD = 2 << 30  # bytes
_INTERVAL = 0.005  # seconds between samples


def write_checkpoint(directory: Path, preset: str, dtype: np.dtype) -> int:
    """Writes a sharded checkpoint of a preset with random weights, a tensor at a time; returns its bytes."""
    from rome_jax.files.safetensors_io import write
    from rome_jax.models.config import PRESETS, to_hf
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
    """Bytes of anonymous resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon: this measurement needs Linux.")


def measure(directory: Path, load_dtype: str | None) -> dict[str, float]:
    """Loads a directory in this process and returns sizes in bytes and the time in seconds."""
    import jax

    from rome_jax.models.config import from_hf
    from rome_jax.models.huggingface import load_params

    config = from_hf(json.loads((directory / "config.json").read_text()))
    jax.block_until_ready(jax.numpy.zeros(1))  # the runtime's own memory is not the loader's
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
    parser = argparse_flags.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--preset", default="gpt2-xl", help="name in rome_jax.models.config.PRESETS"
    )
    parser.add_argument(
        "--dtype", default="float32", help="of the checkpoint: float32, float16, bfloat16"
    )
    parser.add_argument("--load_dtype", default=None, help="of the params; as stored by default")
    parser.add_argument("--directory", default=None, help="where to put the temporary checkpoint")
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
    print(f"weights in memory     {weights / 1e9:.3f} GB, loaded in {figures['seconds']:.1f} s")
    print(f"process before        {baseline / 1e9:.3f} GB anonymous")
    print(
        f"process at the peak   {figures['peak'] / 1e9:.3f} GB = {figures['peak'] / weights:.3f} x weights"
    )
    print(f"  without the former  {(figures['peak'] - baseline) / weights:.3f} x weights")
    print(f"process afterwards    {figures['after'] / 1e9:.3f} GB")


if __name__ == "__main__":
    main()
