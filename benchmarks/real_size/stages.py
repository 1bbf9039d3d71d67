"""The jobs that are measured, each in a process of its own: `python -m benchmarks.real_size.stages STAGE JSON`.

Everything is loaded through the library's own code from the files of the run. A stage prints one JSON object.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rome_jax
from benchmarks import trace_case
from benchmarks.evaluate_cases import make_records, make_templates
from benchmarks.gpu.evaluation import no_edits
from benchmarks.gpu.measure import compile_seconds
from benchmarks.real_size.files import write_files
from benchmarks.real_size.run import Run
from rome_jax import moments
from rome_jax.data.tokens import TokenBatch
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.delta import apply_delta
from rome_jax.edit.methods import rome
from rome_jax.evaluation.datasets import DatasetName
from rome_jax.evaluation.evaluate import evaluate_records
from rome_jax.models import forward
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate
from rome_jax.models.registry import LanguageModel
from rome_jax.trace import sweep

ROWS, TOKENS = 2, 16  # of the forward pass
STEPS = 3  # evaluations of the loss, with a gradient step after each but the last
SAMPLES = 10  # noise samples of the trace
CASES = 4  # of the scored batch
_EDITED = "blocks/mlp/down/kernel"

Checksums = dict[tuple[str, int], int]


def load(run: Run) -> LanguageModel:
    """Loads the model and waits until its weights are in place."""
    model = rome_jax.load_model(run.checkpoint, dtype=run.load_dtype or None)
    jax.block_until_ready(model.params)
    return model


def run_forward(run: Run, model: LanguageModel) -> None:
    """Computes the logits of two rows of 16 tokens."""
    ids = np.random.default_rng(0).integers(model.config.vocab_size, size=(ROWS, TOKENS))
    batch = TokenBatch(ids.astype(np.int32), np.ones((ROWS, TOKENS), bool))
    logits = forward.logits(model.params, model.config, batch)
    _require(bool(jnp.isfinite(logits).all()), "the logits are not finite")


def edit(run: Run, model: LanguageModel) -> None:
    """Computes one ROME edit with two gradient steps, including reading C and factoring it."""
    layer, vocab_size = run.size.layer, model.config.vocab_size
    config = ROMEConfig((layer,), v_num_grad_steps=STEPS, loss_threshold=0.0)
    rome.compute(
        model,
        [make_records(1, vocab_size)[0].request],
        config,
        second_moments=moments.read(run.statistics, [layer], model),
        templates=make_templates(vocab_size),
    )


def trace(run: Run, model: LanguageModel) -> None:
    """Computes the clean and the corrupted runs of a prompt, and restores one hidden state."""
    generator = np.random.default_rng(0)
    prompt = trace_case.make_prompt(
        generator.integers(model.config.vocab_size, size=trace_case.PROMPT)
    )
    first, last = trace_case.SPAN
    shape = (SAMPLES, last - first, model.config.width)
    runs = sweep.start(
        model, prompt, trace_case.NOISE * generator.standard_normal(shape, np.float32)
    )
    found = sweep.scores(runs, np.array([last - 1]), np.array([run.size.layer]))
    _require(bool(np.isfinite(found).all()), "the scores are not finite")


def score(run: Run, model: LanguageModel) -> None:
    """Scores four CounterFact-shaped cases in one batch, each under an edit of its own."""
    records = make_records(CASES, model.config.vocab_size)
    evaluate_records(model, DatasetName.CF, records, no_edits(model, run.size.layer, CASES))


def merge(run: Run, model: LanguageModel) -> None:
    """Merges an edit into a copy of the changed leaf, and checks that it changed one layer of it."""
    _merge(run, model, donate=False)


def merge_donated(run: Run, model: LanguageModel) -> None:
    """Merges an edit in place, and checks that it changed one layer of one leaf."""
    _merge(run, model, donate=True)


def _merge(run: Run, model: LanguageModel, donate: bool) -> None:
    """Merges a random rank-one edit and compares all weights, layer by layer."""
    before = checksums(model.params)
    edited = jax.block_until_ready(
        apply_delta(model.params, _random_delta(run, model), donate=donate)
    )
    changed = differences(before, checksums(edited))
    _require(changed == [(_EDITED, run.size.layer)], f"the edit changed {changed}")
    if not donate:
        _require(checksums(model.params) == before, "the original model was changed")


def _random_delta(run: Run, model: LanguageModel) -> Delta:
    """Draws an edit of the shape of ROME's."""
    generator, config = np.random.default_rng(0), model.config
    left = generator.standard_normal((config.mlp_width, 1), np.float32) / config.mlp_width**0.5
    right = generator.standard_normal((config.width, 1), np.float32)
    layer = jnp.int32(run.size.layer)
    return Delta((LowRankUpdate(Leaf.MLP_DOWN, layer, jnp.asarray(left), jnp.asarray(right)),))


def checksums(params: forward.Params) -> Checksums:
    """Computes the CRC-32 of each layer of each leaf; a leaf outside of the blocks counts as one layer.

    Args:
      params: Params of the whole model. One layer at a time is copied to the host.

    Returns:
      Checksums by the path of the leaf and the layer.

    Example:
      >>> found = checksums(model.params)
      >>> len(found), ("blocks/mlp/down/kernel", 5) in found
      (76, True)
    """
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = "/".join(key.key for key in path)
        parts = leaf if name.startswith("blocks/") else [leaf]
        for layer in range(len(parts)):
            part = np.ascontiguousarray(parts[layer])
            found[name, layer] = zlib.crc32(part.reshape(-1).view(np.uint8).data)
    return found


def differences(before: Checksums, after: Checksums) -> list[tuple[str, int]]:
    """Returns the leaves and layers in which two models differ.

    Example:
      >>> differences({("wte", 0): 1, ("wpe", 0): 2}, {("wte", 0): 1, ("wpe", 0): 3})
      [('wpe', 0)]
    """
    return sorted(key for key in before | after if before.get(key) != after.get(key))


def _require(right: bool, message: str) -> None:
    """Ends the process with a message if something is wrong."""
    if not right:
        raise SystemExit(message)


# The jobs in the order of the table, by name.
STAGES: dict[str, Callable[[Run, LanguageModel], Any]] = {
    "load": lambda run, model: None,
    "forward": run_forward,
    "edit": edit,
    "trace": trace,
    "score": score,
    "merge": merge,
    "merge, donated": merge_donated,
}
WRITE = "write"  # writes the files that the others read


def main() -> None:
    """Runs the stage that the command line names and prints its figures."""
    name, run = sys.argv[1], Run(**json.loads(sys.argv[2]))
    if name == WRITE:
        write_files(run)
        return
    started = time.perf_counter()
    model = load(run)
    loaded = time.perf_counter()
    with compile_seconds() as compiled:
        STAGES[name](run, model)
    figures = {
        "load_s": loaded - started,
        "seconds": time.perf_counter() - (started if name == "load" else loaded),
        "compile_s": sum(compiled),
        "weights": sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
        if name == "load"
        else None,
        **dataclasses.asdict(run),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
