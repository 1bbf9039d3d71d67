"""Time of causal tracing of one prompt, compared with a straightforward PyTorch implementation.

The weights are random, because the time depends only on shapes. Both sides run in the same process, get the same
weights, tokens, and noise, restore every layer at every token, and must compute the same table.

    python -m benchmarks.trace                                        # gpt2 and gpt2-medium, all three kinds
    python -m benchmarks.trace --models gpt2 --kinds hidden
    python -m benchmarks.trace --models gpt2-medium --naive_fraction 0.25
    python -m benchmarks.trace --models gpt2-xl gpt-j-6B --dtype bfloat16   # for a GPU

The prompt has 8 tokens with the subject at tokens 2 to 4 (counted from 0). The kinds are hidden states, windows of 10
MLP outputs, and windows of 10 attention outputs. A GPU must hold both models at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks import command_line, trace_torch
from benchmarks.timing import ceiling, timed
from benchmarks.timing_torch import torch_ceiling, torch_device
from benchmarks.trace_case import NOISE, PROMPT, SPAN, count_work, every_place, make_prompt
from rome_jax.models import forward, transformer
from rome_jax.models.config import ModelConfig
from rome_jax.models.families import PRESETS
from rome_jax.models.huggingface import save_params
from rome_jax.models.registry import LanguageModel
from rome_jax.trace import sweep
from rome_jax.trace.prompt import TracePrompt
from rome_jax.trace.restore import DEFAULT_WINDOW, TraceKind

MODELS = {name.split("/")[-1]: name for name in PRESETS}


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """A model with random weights, a prompt, and noise, on both sides.

    Attributes:
      model: The model in rome_jax, without a tokenizer.
      prompt: Prompt as tokens.
      noise: float32 [S, n, D] noise added to the embeddings of the subject's n tokens.
      twin: Hugging Face model with the same weights and dtype.
      case: The prompt and the noise for PyTorch.
    """

    model: LanguageModel
    prompt: TracePrompt
    noise: jax.Array
    twin: torch.nn.Module
    case: trace_torch.Case

    @classmethod
    def of(
        cls, params: forward.Params, config: ModelConfig, prompt: TracePrompt, noise: np.ndarray
    ) -> Setup:
        """Places a model and its twin on the devices of jax and torch.

        Args:
          params: Weights of the model.
          config: Configuration of the model.
          prompt: Prompt as tokens.
          noise: float32 [S, n, D] noise.
        """
        device = torch_device()
        with tempfile.TemporaryDirectory() as directory:
            save_params(directory, params, config)
            twin = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
        twin = twin.to(device).eval().requires_grad_(False)
        model = LanguageModel("", config, params, tokenizer=None, source="random weights")
        ids, for_torch = torch.tensor(prompt.ids).to(device), torch.tensor(noise).to(device)
        case = trace_torch.Case(ids, prompt.span, for_torch, DEFAULT_WINDOW)
        return cls(model, prompt, jnp.asarray(noise), twin, case)

    def jax_table(
        self, kind: TraceKind, chunk_columns: int = sweep.CHUNK_COLUMNS
    ) -> tuple[np.ndarray, float]:
        """Computes (table [T, L], score of the corrupted runs), including the clean and the corrupted runs."""
        runs = sweep.start(self.model, self.prompt, self.noise)
        table = sweep.trace(runs, kind=kind, chunk_columns=chunk_columns)
        return table, runs.corrupted_score

    def torch_scores(self, kind: TraceKind, places: np.ndarray) -> np.ndarray:
        """Computes the scores [N] of PyTorch for N restorations, given as rows (token, layer) of `places` [N, 2]."""
        return trace_torch.sweep(self.twin, self.case, kind, places.tolist()).numpy()


def compare(name: str, arguments: argparse.Namespace) -> None:
    """Prints the table of one model.

    Args:
      name: A key of `MODELS`.
      arguments: Parsed command line of `main`.
    """
    config, samples = PRESETS[MODELS[name]], arguments.samples
    params = jax.tree.map(
        lambda leaf: leaf.astype(arguments.dtype),
        transformer.init_params(config, jax.random.key(0)),
    )
    generator = np.random.default_rng(0)
    prompt = make_prompt(generator.integers(config.vocab_size, size=PROMPT))
    shape = (samples, SPAN[1] - SPAN[0], config.width)
    noise = NOISE * generator.standard_normal(shape, np.float32)
    setup = Setup.of(params, config, prompt, noise)

    places = every_place(PROMPT, config.num_layers)
    run = np.arange(0, len(places), round(1 / arguments.naive_fraction))
    share = f", {len(run)} of {len(places)} scaled" if len(run) < len(places) else ""
    print(
        f"\n{name}, {arguments.dtype}: {PROMPT} tokens, subject {SPAN[0]} to {SPAN[1] - 1}, {samples} samples, "
        f"{len(places)} restorations; torch on {torch_device()}, jax on {jax.default_backend()}"
    )
    columns = ("s", 9), ("ratio", 8), ("GFLOP", 10), ("of naive", 10), ("GFLOP/s", 9)
    print(" " * 36 + "".join(f"{title:>{width}s}" for title, width in columns) + "  compile, s")
    for kind in map(TraceKind, arguments.kinds):
        chunk_columns = arguments.chunk_columns
        theirs = functools.partial(setup.torch_scores, kind, places[run])
        ours = functools.partial(setup.jax_table, kind, chunk_columns)
        setup.torch_scores(kind, places[:1])
        naive, expected = timed(theirs, arguments.repeats)
        naive *= len(places) / len(run)
        jax.clear_caches()  # each kind compiles its own programs
        cold, _ = timed(ours)
        warm, (table, corrupted) = timed(ours, arguments.repeats)
        work = count_work(config, prompt, samples, kind, chunk_columns)
        for label, seconds, operations, compiling in (
            (f"{kind}, PyTorch{share}", naive, work.torch, ""),
            (f"{kind}, rome_jax, first call", cold, work.rome_jax, f"{cold - warm:.1f}"),
            (f"{kind}, rome_jax", warm, work.rome_jax, ""),
        ):
            print(
                f"{label:36s}{seconds:9.2f}{naive / seconds:8.1f}{operations / 1e9:10.1f}"
                f"{operations / work.torch:10.1%}{operations / 1e9 / seconds:9.0f}{compiling:>12s}"
            )
        difference = np.abs(table.ravel()[run] - expected).max()
        effect = np.abs(table - corrupted).max()
        print(
            f"  largest difference of the tables {difference:.1e}, largest indirect effect {effect:.1e}"
        )


def main() -> None:
    """Prints the peak rates of matrix products and one table per model."""
    parser = command_line.parser(__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["gpt2", "gpt2-medium"])
    parser.add_argument(
        "--kinds", nargs="+", choices=list(map(str, TraceKind)), default=list(TraceKind)
    )
    parser.add_argument("--samples", type=int, default=10, help="Number of noise samples.")
    parser.add_argument(
        "--chunk_columns",
        type=int,
        default=sweep.CHUNK_COLUMNS,
        help="Columns that one program of rome_jax runs together.",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=2,
        help="Number of timed runs of each side; the shortest time counts.",
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--naive_fraction",
        type=float,
        default=1.0,
        help="Fraction of the restorations that PyTorch runs (every k-th one); its time is scaled.",
    )
    arguments = parser.parse_args()
    if not 0 < arguments.naive_fraction <= 1:
        parser.error(f"--naive_fraction={arguments.naive_fraction} must be above 0 and at most 1.")
    for name in ("samples", "chunk_columns", "repeats"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}={getattr(arguments, name)} must be at least 1.")
    # jax reads this when it creates its first array. By default it would take most of the GPU's memory from torch.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    size = 2048 if torch_device().type == "cpu" else 8192
    ours, theirs = ceiling(size, arguments.dtype), torch_ceiling(size, arguments.dtype)
    print(f"{arguments.dtype} matrix product: jax {ours:.0f} GFLOP/s, torch {theirs:.0f} GFLOP/s")
    for name in arguments.models:
        compare(name, arguments)


if __name__ == "__main__":
    main()
