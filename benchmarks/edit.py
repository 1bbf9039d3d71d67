"""Time of ROME edits, alone and in a batch, compared with a straightforward PyTorch implementation.

The weights are random, because the time depends only on shapes. Both sides run in the same process, get the same
weights and token arrays (see `edit_case`), evaluate the loss exactly 20 times, take 19 optimizer steps, and must find
the same ΔW.

    python -m benchmarks.edit                        # gpt2 and gpt2-medium, 1 request and 32 requests
    python -m benchmarks.edit --models gpt2 --batch 8
"""

from __future__ import annotations

import tempfile

import jax
import numpy as np
from transformers import GPT2LMHeadModel

from benchmarks import command_line, rome_torch
from benchmarks.edit_case import LAYERS, STEPS, count_work, first_case, make_inputs
from benchmarks.timing import ceiling, relative_error, timed
from benchmarks.timing_torch import torch_ceiling
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.methods import rome
from rome_jax.edit.stages.inputs import EditInputs
from rome_jax.models import transformer
from rome_jax.models.families import PRESETS
from rome_jax.models.huggingface import save_params
from rome_jax.moments.second_moment import SecondMoment


def compare(name: str, batch: int, chunk_size: int, repeats: int) -> None:
    """Prints the table of one model.

    Args:
      name: A key of `PRESETS` and `LAYERS`.
      batch: Number of requests in the batch, a multiple of `chunk_size`.
      chunk_size: Number of requests optimized together.
      repeats: Number of timed runs of a single edit; the shortest time counts.
    """
    model_config = PRESETS[name]
    config = ROMEConfig((LAYERS[name],), v_num_grad_steps=STEPS, loss_threshold=0.0)
    params = transformer.init_params(model_config, jax.random.key(0))
    with tempfile.TemporaryDirectory() as directory:
        save_params(directory, params, model_config)
        model = GPT2LMHeadModel.from_pretrained(directory).eval().requires_grad_(False)
    root = np.random.default_rng(1).standard_normal((model_config.mlp_width,) * 2)
    matrix = root @ root.T / len(root) + np.eye(len(root))
    moments = {config.layers[0]: SecondMoment(matrix, len(root))}
    moments[config.layers[0]].solve(root[0])  # factors C outside the timed code, once per layer

    def run(inputs: EditInputs):
        result = rome.compute_from_inputs(params, model_config, inputs, config, moments)
        return jax.block_until_ready(result)

    one = make_inputs(1, model_config.vocab_size)
    # The chunks that `rome.compute` makes of `batch` requests.
    chunks = [
        make_inputs(chunk_size, model_config.vocab_size, n) for n in range(batch // chunk_size)
    ]
    work = count_work(model_config, one, config.layers[0])
    shared_work = count_work(model_config, chunks[0], config.layers[0])
    case = rome_torch.Case.of(first_case(one, config), np.linalg.inv(matrix))
    theirs_cold, _ = timed(lambda: rome_torch.edit(model, case))
    theirs, (u, right) = timed(lambda: rome_torch.edit(model, case), repeats)
    cold, result = timed(lambda: run(one))
    warm, result = timed(lambda: run(one), repeats)
    many_cold, _ = timed(lambda: run(chunks[0]))
    many_warm, results = timed(lambda: [run(chunk) for chunk in chunks])

    expected = np.outer(u.numpy(), right.numpy())
    errors = []
    for deltas in (result.deltas, results[0].deltas):
        (update,) = deltas[0].updates
        errors.append(relative_error(np.asarray(update.left @ update.right.T), expected))

    print(f"\n{name}, edit layer {config.layers[0]}, {STEPS} evaluations of the loss")
    print(
        f"{'':30s}{'s per edit':>11s}{'ratio':>8s}{'GFLOP':>9s}{'GFLOP/s':>9s}{'compile, s':>12s}"
    )
    each = many_warm / batch
    compiling_many = many_cold - many_warm / len(chunks)
    for label, seconds, operations, compiling in (
        ("PyTorch", theirs, work.torch, max(0.0, theirs_cold - theirs)),
        ("rome_jax, one request", warm, work.rome_jax, cold - warm),
        (
            f"rome_jax, {batch} in chunks of {chunk_size}",
            each,
            shared_work.rome_jax,
            compiling_many,
        ),
    ):
        print(
            f"{label:30s}{seconds:11.2f}{theirs / seconds:8.1f}{operations / 1e9:9.0f}"
            f"{operations / 1e9 / seconds:9.0f}{compiling:12.1f}"
        )
    print(
        f"‖ΔW − ΔW of PyTorch‖ / ‖ΔW‖: one request {errors[0]:.1e}, {batch} requests {errors[1]:.1e}"
    )


def main() -> None:
    """Prints the peak rates of matrix products and one table per model."""
    parser = command_line.parser(__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--batch", type=int, default=32, help="Number of requests in the batch.")
    parser.add_argument(
        "--chunk_size", type=int, default=8, help="Number of requests optimized together."
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="Number of timed runs of a single edit; the shortest time counts.",
    )
    arguments = parser.parse_args()
    if arguments.batch % arguments.chunk_size:
        parser.error("--batch must be a multiple of --chunk_size.")
    print(
        f"float32 matrix product: jax {ceiling():.0f} GFLOP/s, torch {torch_ceiling():.0f} GFLOP/s"
    )
    for name in arguments.models:
        compare(name, arguments.batch, arguments.chunk_size, arguments.repeats)


if __name__ == "__main__":
    main()
