"""How far ROME edits and trace tables move when matrix products or weights have fewer digits.

Every row is compared with float32 weights and products at `highest` precision on the same device. factworld-gpt2 is a
trained model; the random model has the size of GPT-2.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.edit_case import STEPS, make_inputs
from benchmarks.gpu import sizes, weights
from benchmarks.gpu.child import Context
from benchmarks.timing import relative_error
from benchmarks.trace_case import NOISE, PROMPT, make_prompt
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.methods import rome
from rome_jax.edit.result import EditResult
from rome_jax.evaluation.datasets import DatasetName, load_dataset
from rome_jax.models.registry import LanguageModel, load_model
from rome_jax.moments.shipped import load_shipped
from rome_jax.trace import sweep
from rome_jax.trace.prompt import TracePrompt

TABLE = "change against float32 weights and products at highest precision"
# Settings of `load_model` by name. TF32 is what NVIDIA GPUs use at the default precision.
ARITHMETICS: Mapping[str, Mapping[str, str]] = {
    "float32 products at default precision": {"precision": "default"},
    "bfloat16 weights": {"dtype": "bfloat16"},
}
_EDITS, _SAMPLES = 16, 10


@dataclasses.dataclass(frozen=True)
class Measured:
    """The edits and the trace table of one arithmetic.

    Attributes:
      edits: The edits, one per request.
      table: float [places], probabilities with one state restored.
    """

    edits: EditResult
    table: np.ndarray


def run(context: Context) -> None:
    """Writes one row per model and arithmetic."""
    arithmetics = dict(list(ARITHMETICS.items())[-1:] if context.tiny else ARITHMETICS)
    measure = {
        "factworld-gpt2": functools.partial(measure_factworld, 2 if context.tiny else _EDITS),
        "random weights, GPT-2's size": functools.partial(measure_random, context.tiny),
    }
    settings = [{}, *arithmetics.values()]
    for model, one in measure.items():
        with ThreadPoolExecutor() as pool:
            exact, *others = pool.map(lambda options, one=one: one(**options), settings)
        for name, other in zip(arithmetics, others, strict=True):
            context.emit(TABLE, {"model": model, "arithmetic": name, **changes(other, exact)})


def measure_factworld(count: int, **options: str) -> Measured:
    """Edits held-out facts of factworld-gpt2, and traces the first one's prompt.

    Args:
      count: Number of edits.
      **options: Dtype and precision, as for `load_model`.
    """
    model = load_model("factworld-gpt2", **options)
    dataset = load_dataset(DatasetName.CF, model_name=model.name, limit=count)
    requests = [record.request for record in dataset.records]
    edits = rome.compute(
        model,
        requests,
        ROMEConfig.for_model(model.name),
        second_moments=load_shipped(model.name),
        templates=["{}", "The truth is. {}"],
        chunk_size=count,
    )
    prompt = TracePrompt.of(model.tokenizer, requests[0].text, requests[0].subject)
    return Measured(edits, trace(model, prompt))


def measure_random(tiny: bool, **options: str) -> Measured:
    """Makes one edit and one trace table of a random model.

    Args:
      tiny: Whether the model is tiny.
      **options: Dtype and precision, as for `load_model`.
    """
    size = sizes.Size.of("gpt2", tiny)
    precision = jax.lax.Precision(options.get("precision", "highest"))
    config = dataclasses.replace(size.config, precision=precision)
    params = weights.random_params(config, options.get("dtype", "float32"))
    inputs = make_inputs(1, config.vocab_size)
    settings = ROMEConfig((size.layer,), v_num_grad_steps=STEPS, loss_threshold=0.0)
    moments = {size.layer: sizes.second_moment(config.mlp_width)}
    edits = rome.compute_from_inputs(params, config, inputs, settings, moments)
    ids = np.random.default_rng(0).integers(config.vocab_size, size=PROMPT)
    model = LanguageModel("gpt2", config, params, None, "random weights")
    return Measured(edits, trace(model, make_prompt(ids)))


def trace(model: LanguageModel, prompt: TracePrompt) -> np.ndarray:
    """Computes the table of restored hidden states with seeded noise."""
    start, stop = prompt.span
    shape = (_SAMPLES, stop - start, model.config.width)
    noise = NOISE * np.random.default_rng(0).standard_normal(shape, np.float32)
    return np.asarray(sweep.trace(sweep.start(model, prompt, jnp.asarray(noise))))


def changes(other: Measured, exact: Measured) -> dict[str, object]:
    """Compares two results: relative changes of each edit's vectors and ΔW, and the largest change in the table."""
    (edit,), (wanted,) = other.edits.layers, exact.edits.layers
    (update,), (exact_update,) = other.edits.deltas.updates, exact.edits.deltas.updates
    pairs = {
        "u": (edit.u, wanted.u),
        "v*": (edit.value, wanted.value),
        "ΔW": (
            products(update.left, update.right),
            products(exact_update.left, exact_update.right),
        ),
    }
    row: dict[str, object] = {}
    for name, (actual, expected) in pairs.items():
        errors = [relative_error(*pair) for pair in zip(actual, expected, strict=True)]
        row[f"{name}, median ‖a − b‖ / ‖b‖"] = float(np.median(errors))
        row[f"{name}, largest"] = max(errors)
    return row | {
        "edits": len(edit.u),
        "trace table, largest difference": float(np.abs(other.table - exact.table).max()),
        "largest entry": float(exact.table.max()),
    }


def products(left: jax.Array, right: jax.Array) -> list[np.ndarray]:
    """Returns the full ΔW of each edit, in float64."""
    factors = zip(np.asarray(left, np.float64), np.asarray(right, np.float64), strict=True)
    return [a @ b.T for a, b in factors]
