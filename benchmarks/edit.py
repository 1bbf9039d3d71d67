"""Time of one ROME edit and of a batch of them, against PyTorch the straightforward way, in one run.

Random weights at the sizes of gpt2 and gpt2-medium; what is timed depends on shapes alone. Both sides get the same
weights and token arrays (`edit_case`), take exactly 20 evaluations of the loss and 19 steps, and must give the same ΔW.

    python -m benchmarks.edit                        # gpt2 and gpt2-medium, one request and 32
    python -m benchmarks.edit --models gpt2 --batch 8
"""

from __future__ import annotations

import tempfile

import jax
import numpy as np
from absl.flags import argparse_flags
from transformers import GPT2LMHeadModel

from benchmarks import rome_torch
from benchmarks.edit_case import LAYERS, STEPS, count_work, first_case, make_inputs
from benchmarks.timing import ceiling, relative_error, timed
from benchmarks.timing_torch import torch_ceiling
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.methods import rome
from rome_jax.edit.stages.inputs import EditInputs
from rome_jax.models import forward
from rome_jax.models.config import PRESETS
from rome_jax.models.huggingface import save_params
from rome_jax.moments.files import SecondMoment


def compare(name: str, batch: int, chunk_size: int, repeats: int) -> None:
    """Prints the table of one size."""
    model_config = PRESETS[name]
    config = ROMEConfig((LAYERS[name],), v_num_grad_steps=STEPS, loss_threshold=0.0)
    params = forward.init_params(model_config, jax.random.key(0))
    with tempfile.TemporaryDirectory() as directory:
        save_params(directory, params, model_config)
        model = GPT2LMHeadModel.from_pretrained(directory).eval().requires_grad_(False)
    root = np.random.default_rng(1).standard_normal((model_config.mlp_width,) * 2)
    matrix = root @ root.T / len(root) + np.eye(len(root))
    moments = {config.layers[0]: SecondMoment(matrix, len(root))}
    moments[config.layers[0]].solve(root[0])  # C is factored once a layer; so is its inverse below

    def run(inputs: EditInputs):
        result = rome.compute_from_inputs(params, model_config, inputs, config, moments)
        return jax.block_until_ready(result)

    one = make_inputs(1, model_config.vocab_size)
    # What compute does with `batch` requests; the first of all is the one above.
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

    wanted = np.outer(u.numpy(), right.numpy())
    errors = []
    for deltas in (result.deltas, results[0].deltas):
        (update,) = deltas[0].updates
        errors.append(relative_error(np.asarray(update.left @ update.right.T), wanted))

    print(f"\n{name}, edit layer {config.layers[0]}, {STEPS} evaluations of the loss")
    print(f"{'':26s}{'s an edit':>11s}{'ratio':>8s}{'GFLOP':>9s}{'GFLOP/s':>9s}{'compile, s':>12s}")
    each = many_warm / batch
    compiling_many = many_cold - many_warm / len(chunks)
    for label, seconds, operations, compiling in (
        ("PyTorch", theirs, work.torch, max(0.0, theirs_cold - theirs)),
        ("rome_jax, one request", warm, work.rome_jax, cold - warm),
        (f"rome_jax, {batch} at once", each, shared_work.rome_jax, compiling_many),
    ):
        print(
            f"{label:26s}{seconds:11.2f}{theirs / seconds:8.1f}{operations / 1e9:9.0f}"
            f"{operations / 1e9 / seconds:9.0f}{compiling:12.1f}"
        )
    print(f"‖ΔW − ΔW of PyTorch‖ / ‖ΔW‖: one {errors[0]:.1e}, of {batch} {errors[1]:.1e}")


def main() -> None:
    """Prints the ceilings and a table a size."""
    parser = argparse_flags.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--batch", type=int, default=32, help="requests at once")
    parser.add_argument("--chunk_size", type=int, default=8, help="of them optimised together")
    parser.add_argument("--repeats", type=int, default=3, help="of single edits; the least counts")
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
