"""Time of the editors that spread an edit over layers, compared with straightforward PyTorch.

    python -m benchmarks.editors                    # both parts
    python -m benchmarks.editors --parts solve --past 1000

`memit` writes a batch of 100 requests into layers 4 to 8 of a model of GPT-2's size and splits the time into targets,
keys, and solves. PyTorch writes 5 of the requests, and its time per request is compared; its solve is counted once for
the whole batch. Both sides get the same random weights and token arrays, evaluate the loss exactly 20 times, and must
find the same ΔW for the 5 requests.

`solve` compares one layer's update of AlphaEdit with the system of the published code, which is F × F and not
symmetric: ΔW = (P (K_p K_pᵀ + K Kᵀ) + ν I)⁻¹ P K Rᵀ, with random keys at the width of GPT-2 XL, F = 6,400, and a random
null space of rank 5,000. Both sides also add the keys of the batch to those of earlier ones. The published form is
computed in float32, as its authors do, and that of rome_jax in float64 on the host.
"""

from __future__ import annotations

import tempfile
import time

import jax
import numpy as np
import scipy.linalg
import torch
from transformers import GPT2LMHeadModel

from benchmarks import command_line, memit_torch, rome_torch
from benchmarks.edit_case import first_case, make_inputs
from benchmarks.timing import relative_error, timed
from rome_jax.edit.delta import apply_delta, dense
from rome_jax.edit.methods.spread import joint_update
from rome_jax.edit.penalty import PastKeys, Penalty
from rome_jax.edit.solver import associate
from rome_jax.edit.spread_config import MEMITConfig
from rome_jax.edit.stages.inputs import EditInputs
from rome_jax.edit.stages.states import optimize_states, read_states
from rome_jax.models import forward, transformer
from rome_jax.models.families import PRESETS
from rome_jax.models.huggingface import save_params
from rome_jax.models.interventions import Delta
from rome_jax.moments.second_moment import SecondMoment

LAYERS = (4, 5, 6, 7, 8)
STEPS, WEIGHT = 20, 15_000.0
PREFIXES = (0, *[10] * 5)  # 6 templates, as MEMIT samples them
WIDTH, RANK = 6400, 5000


def write(
    params: forward.Params,
    chunks: list[EditInputs],
    config: MEMITConfig,
    penalties: dict[int, Penalty],
) -> tuple[Delta, dict[str, float]]:
    """Writes the requests of all chunks at once, as `memit.compute_joint_delta` does after tokenization.

    Args:
      params: Weights of the model.
      chunks: Token arrays.
      config: Hyperparameters.
      penalties: Penalty of each layer, factored.

    Returns:
      The edit and the seconds of each stage.
    """
    model_config = PRESETS["gpt2"]
    seconds = dict.fromkeys(("targets", "keys", "solve"), 0.0)

    def clock(stage: str, begun: float) -> float:
        now = time.perf_counter()
        seconds[stage] += now - begun
        return now

    now = time.perf_counter()
    z = [np.asarray(optimize_states(params, model_config, part, config)[0]) for part in chunks]
    now = clock("targets", now)
    updates = []
    for index, layer in enumerate(config.layers):
        read = [
            read_states(params, model_config, part, layer, config.layers[-1]) for part in chunks
        ]
        keys, h = (np.concatenate(own) for own in zip(*read, strict=True))
        now = clock("keys", now)
        left = associate(keys, penalties[layer]).left
        updates.append(joint_update(layer, left, (np.concatenate(z) - h) / (len(LAYERS) - index)))
        params = apply_delta(params, Delta((updates[-1],)), donate=index > 0)
        jax.block_until_ready(params)
        now = clock("solve", now)
    return Delta(tuple(updates)), seconds


def compare_memit(num_requests: int, num_torch: int, chunk_size: int) -> None:
    """Prints the times of a batch of MEMIT edits and the ratio per request."""
    model_config = PRESETS["gpt2"]
    config = MEMITConfig(
        LAYERS, v_num_grad_steps=STEPS, loss_threshold=0.0, mom2_update_weight=WEIGHT
    )
    params = transformer.init_params(model_config, jax.random.key(0))
    with tempfile.TemporaryDirectory() as directory:
        save_params(directory, params, model_config)
        model = GPT2LMHeadModel.from_pretrained(directory).eval().requires_grad_(False)
    width = model_config.mlp_width
    root = np.random.default_rng(1).standard_normal((width, width))
    matrix = (root @ root.T / width + np.eye(width)) * 1e-3
    penalties = {layer: Penalty.of(SecondMoment(matrix, width), WEIGHT) for layer in LAYERS}
    penalties = dict.fromkeys(LAYERS, penalties[LAYERS[0]])  # factored outside of the timed code
    chunks = [
        make_inputs(chunk_size, model_config.vocab_size, n, prefixes=PREFIXES)
        for n in range(num_requests // chunk_size)
    ]
    cases = [
        make_inputs(1, model_config.vocab_size, n, prefixes=PREFIXES) for n in range(num_torch)
    ]
    moments = dict.fromkeys(LAYERS, torch.tensor(matrix, dtype=torch.float32))
    torch_cases = [
        rome_torch.Case.of(first_case(case, config) | {"layer": LAYERS[-1]}, matrix[:1, :1])
        for case in cases
    ]

    cold, _ = timed(lambda: write(params, chunks[:1], config, penalties))
    _, (_, ours) = timed(lambda: write(params, chunks, config, penalties))
    _, (same, _) = timed(lambda: write(params, cases, config, penalties))
    memit_torch.edit(model, torch_cases[:1], LAYERS, moments, WEIGHT)
    changes, theirs = memit_torch.edit(model, torch_cases, LAYERS, moments, WEIGHT)
    error = max(
        relative_error(np.asarray(dense(update)), changes[int(update.layer)].numpy())
        for update in same.updates
    )

    scaled = {stage: theirs[stage] * num_requests / num_torch for stage in ("targets", "keys")}
    scaled["solve"] = theirs["solve"]
    print(f"\nMEMIT, {num_requests} requests, gpt2, layers {LAYERS}, chunks of {chunk_size}")
    print(f"{'stage':10s}{'rome_jax, s':>14s}{'PyTorch, s':>14s}{'ratio':>8s}")
    for stage in ours:
        ratio = scaled[stage] / ours[stage]
        print(f"{stage:10s}{ours[stage]:14.2f}{scaled[stage]:14.2f}{ratio:8.1f}")
    whole = sum(scaled.values()) / sum(ours.values())
    print(f"{'all':10s}{sum(ours.values()):14.2f}{sum(scaled.values()):14.2f}{whole:8.1f}")
    print(f"PyTorch was timed on {num_torch} requests; its targets and keys are scaled.")
    print(f"First chunk with compiling: {cold:.1f} s. ‖ΔW − ΔW of PyTorch‖ / ‖ΔW‖: {error:.1e}")


def compare_solve(num_requests: int, num_past: int, repeats: int) -> None:
    """Prints the times of one layer's solve of AlphaEdit in both forms."""
    generator = np.random.default_rng(2)
    directions = generator.standard_normal((WIDTH, RANK)).astype(np.float32)
    directions, _ = np.linalg.qr(directions, mode="complete")
    basis, complement = np.split(directions, [RANK], axis=1)
    keys, past = (
        generator.standard_normal((n, WIDTH)).astype(np.float32) for n in (num_requests, num_past)
    )
    residual = generator.standard_normal((num_requests, 1600)).astype(np.float32)
    penalty = Penalty.null_space(basis, 10.0, np.asarray(complement, np.float64))
    stored = PastKeys.none(penalty, WIDTH).add(penalty.whiten(past))

    def ours() -> np.ndarray:
        found = associate(keys, penalty, 1.0, stored)
        stored.add(found.whitened, found.below, penalty.basis)
        return scipy.linalg.blas.sgemm(1.0, found.left.T, residual.T, trans_b=True)

    projection = torch.from_numpy(basis @ basis.T)
    cache = torch.from_numpy(past.T @ past)
    theirs_keys, theirs_residual = torch.from_numpy(keys.T.copy()), torch.from_numpy(residual)

    def theirs() -> np.ndarray:
        outer = theirs_keys @ theirs_keys.T
        system = projection @ (outer + cache) + 10.0 * torch.eye(WIDTH)
        change = torch.linalg.solve(system, projection @ theirs_keys @ theirs_residual)
        cache + outer
        return change.numpy()

    fast, change = timed(ours, repeats)
    slow, expected = timed(theirs)
    print(
        f"{num_past:10d}{fast:14.2f}{slow:14.2f}{slow / fast:8.1f}"
        f"{relative_error(change, expected):12.1e}"
    )


def main() -> None:
    """Prints the tables of the chosen parts."""
    parser = command_line.parser(__doc__.split("\n")[0])
    parser.add_argument(
        "--parts", nargs="+", choices=("memit", "solve"), default=["memit", "solve"]
    )
    parser.add_argument("--requests", type=int, default=100, help="Number of requests per batch.")
    parser.add_argument("--torch", type=int, default=5, help="Number of requests for PyTorch.")
    parser.add_argument(
        "--chunk_size", type=int, default=10, help="Number of requests optimized together."
    )
    parser.add_argument(
        "--past", type=int, nargs="+", default=[1000, 5000], help="Numbers of past keys."
    )
    parser.add_argument("--repeats", type=int, default=3, help="Number of timed solves.")
    arguments = parser.parse_args()
    if arguments.requests % arguments.chunk_size:
        parser.error("--requests must be a multiple of --chunk_size.")
    if "memit" in arguments.parts:
        compare_memit(arguments.requests, arguments.torch, arguments.chunk_size)
    if "solve" in arguments.parts:
        print(f"\nAlphaEdit's solve, F = {WIDTH}, rank {RANK}, {arguments.requests} requests")
        print(
            f"{'past keys':>10s}{'rome_jax, s':>14s}{'published, s':>14s}{'ratio':>8s}{'error':>12s}"
        )
        for num_past in arguments.past:
            compare_solve(arguments.requests, num_past, arguments.repeats)


if __name__ == "__main__":
    main()
