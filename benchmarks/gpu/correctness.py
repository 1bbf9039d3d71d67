"""Correctness on this device: golden numbers within the tolerances of the CPU tests, and invariants.

The golden files are those of the tests (tests/golden). Cases run in parallel threads, because most of the time is
compilation.
"""

from __future__ import annotations

import dataclasses
import functools
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.child import Context
from benchmarks.timing import relative_error
from rome_jax.data.tokens import TokenBatch, encode
from rome_jax.edit.config import MethodName, ROMEConfig
from rome_jax.edit.delta import apply_delta, dense
from rome_jax.edit.method import METHODS
from rome_jax.edit.methods import rome
from rome_jax.edit.resources import Resources
from rome_jax.edit.sequential import make_editor
from rome_jax.evaluation.datasets import DatasetName, load_dataset
from rome_jax.models import forward
from rome_jax.models.interventions import Delta, Site
from rome_jax.models.registry import LanguageModel, load_model
from rome_jax.moments.key_sums import KeySums
from rome_jax.moments.shipped import load_shipped
from rome_jax.trace import sweep
from rome_jax.trace.prompt import TracePrompt
from tests import golden_cases as golden

_ROME = ("rome_gpt2_subject_end", "rome_gptj_subject_end", "rome_gpt2_clamp", "rome_gptj_early")
_EDITORS = (
    *("memit_gpt2_batch4", "memit_gptj_batch4", "emmet_gptj_batch4"),
    *("pmet_gpt2_batch2", "alphaedit_gpt2_seq"),
)
# Methods without numbers of their authors.
_UNVERIFIED = (MethodName.ENCORE, MethodName.ULTRAEDIT, MethodName.LOCFT_BF)
_TRACES = ("trace_gpt2_mid", "trace_gptj_start")
_MOVED = ("rome_gpt2_subject_end", "trace_gpt2_mid")  # also computed in other precisions
_THREADS = 8


@dataclasses.dataclass(frozen=True)
class Check:
    """Error of one figure, and its tolerance.

    Attributes:
      name: Name of the case.
      figure: Name of the figure.
      error: Error of the figure.
      tolerance: Largest error allowed, as in the tests.
    """

    name: str
    figure: str
    error: float
    tolerance: float

    @property
    def right(self) -> bool:
        """Whether the error is within the tolerance. False if the error is NaN."""
        return self.error <= self.tolerance


def run(context: Context) -> None:
    """Writes one row per check, and the change of an edit and a trace in other precisions.

    Raises:
      SystemExit: If a figure is out of tolerance.
    """
    tiny = context.tiny
    rome_cases, traces = (_ROME[:1], ()) if tiny else (_ROME, _TRACES)
    editors, unverified = ((), ()) if tiny else (_EDITORS, _UNVERIFIED)
    families = ("gpt2",) if tiny else ("gpt2", "gptj")
    checks: list[Callable[[], Iterable[Check]]] = [
        # This check takes the longest, so it starts first.
        functools.partial(check_independence, (1, 3) if tiny else (1, 3, 8)),
        *(functools.partial(check_rome, name) for name in rome_cases),
        *(functools.partial(check_editor, name) for name in editors),
        *(functools.partial(check_chunks, name) for name in unverified),
        *(functools.partial(check_trace, name) for name in traces),
        *(functools.partial(check_forward, family) for family in families),
        check_moments,
    ]
    settings = [("bfloat16 weights", {"dtype": "bfloat16"})]
    if not tiny:
        settings.append(("TF32 (default precision of NVIDIA GPUs)", {"precision": "default"}))
    # Load the models here, because several threads cannot import transformers at once.
    for options in ({}, *(options for _, options in settings)):
        for family in families:
            golden_model(family, **options)
    wrong = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        running = {pool.submit(attempt, check) for check in checks}
        moved = {pool.submit(precision_row, *setting) for setting in settings}
        for done in as_completed(running | moved):
            if done in moved:
                context.emit("change of one edit and one trace in other precisions", done.result())
                continue
            for check in done.result():
                row = dataclasses.asdict(check) | {"right": check.right}
                context.emit("float32 at highest precision", row)
                wrong += not check.right
    if wrong:
        raise SystemExit(f"{wrong} figures are out of tolerance; see the table.")


def attempt(check: Callable[[], Iterable[Check]]) -> list[Check]:
    """Runs a check.

    If the check raises an error, prints the traceback and returns one failed figure, so that other checks continue.
    """
    try:
        return list(check())
    except Exception as error:  # a device can cause errors of any type
        traceback.print_exc()
        name = getattr(check, "func", check).__name__
        arguments = ", ".join(map(str, getattr(check, "args", ())))
        return [Check(f"{name}({arguments})", f"{type(error).__name__}", float("nan"), 0.0)]


def largest(actual: jax.typing.ArrayLike, expected: jax.typing.ArrayLike) -> float:
    """Computes max |actual − expected| / max |expected|."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@functools.cache
def golden_model(family: str, **options: str) -> LanguageModel:
    """Loads the random model of the golden numbers."""
    return load_model(golden.GOLDEN / "ckpt" / family, **options)


def rome_errors(name: str, **options: str) -> dict[str, float]:
    """Computes the errors of u, v*, and ΔW for the first request and layer of a golden ROME run.

    Args:
      name: Name of the golden case.
      **options: Dtype or precision, as for `load_model`.
    """
    case = golden.read_case(name)
    model = golden_model(case.info["model"], **options)
    config = golden.rome_config(case)
    result = rome.compute(
        model,
        golden.rome_requests(case)[:1],
        config,
        second_moments=golden.rome_moments(model, config.layers),
        templates=case.info["context_templates"],
    )
    edit, (update, *_) = result.layers[0], result.deltas.updates
    change = np.asarray(update.left[0] @ update.right[0].T)
    prefix = f"r0_l{edit.layer}_"
    return {
        "u": largest(edit.u[0], case.arrays[prefix + "u"]),
        "v*": largest(edit.value[0], case.arrays[prefix + "target"]),
        "ΔW": largest(change, golden.rome_delta(case, model, 0, edit.layer)),
    }


def trace_errors(name: str, tables: Sequence[str], **options: str) -> Iterator[tuple[str, float]]:
    """Yields (table, largest absolute error) for some tables of a golden trace.

    Args:
      name: Name of the golden case.
      tables: Keys of `golden_cases.TRACE_TABLES`.
      **options: Dtype or precision, as for `load_model`.
    """
    case = golden.read_case(name)
    model = golden_model(case.info["model"], **options)
    prompt = TracePrompt.of(model.tokenizer, case.info["prompt"], case.info["subject"])
    noise = (case.arrays["noise_unit"] * case.info["noise"]).astype(np.float32)
    runs = sweep.start(model, prompt, jnp.asarray(noise))
    for table in tables:
        scores = sweep.trace(runs, **golden.TRACE_TABLES[table])
        yield table, float(np.abs(scores - case.arrays[f"{table}_scores"]).max())


def check_rome(name: str) -> Iterator[Check]:
    """Checks a ROME run, from the text of the request to ΔW."""
    for figure, error in rome_errors(name).items():
        yield Check(name, figure, error, golden.rome_tolerance(name))


def check_editor(name: str) -> Iterator[Check]:
    """Checks the updates of an editor, batch after batch, from the texts of the requests to ΔW."""
    case = golden.read_case(name)
    model, config = golden_model(case.info["model"]), golden.editor_config(case)
    editor = make_editor(golden.editor_method(case), config)
    resources = Resources(golden.rome_moments(model, config.layers))
    state = editor.init(model, resources, templates=golden.editor_templates(case))
    for prefix, requests in golden.editor_batches(case):
        delta, state = editor.update(state, model, requests)
        model = model.replace(params=apply_delta(model.params, delta))
        for update in delta.updates:
            figure = f"{prefix}l{int(update.layer)}_upd"
            error = largest(dense(update), case.arrays[figure])
            yield Check(name, f"ΔW, {figure}", error, golden.editor_tolerance(case))


def check_chunks(name: MethodName) -> Iterator[Check]:
    """Checks that a joint update of an editor does not depend on the chunk size."""
    model = load_model("factworld-gpt2")
    dataset = load_dataset(DatasetName.CF, model_name=model.name, limit=3)
    requests = [record.request for record in dataset.records]
    config = METHODS[name].for_model(model.name)
    changes = []
    for size in (1, 3):
        editor = make_editor(name, config, chunk_size=size)
        resources = Resources(load_shipped(model.name))
        state = editor.init(model, resources, templates=["{}", "The truth is. {}"])
        delta, _ = editor.update(state, model, requests)
        changes.append([np.asarray(dense(update)) for update in delta.updates])
    error = max(map(relative_error, *changes))
    yield Check(name, "ΔW of 3 requests in chunks of 3 and alone", error, 1e-3)


def check_trace(name: str) -> Iterator[Check]:
    """Checks the tables of restored states and windows."""
    for table, error in trace_errors(name, tuple(golden.TRACE_TABLES)):
        yield Check(name, table, error, golden.TRACE_TOLERANCE)


def check_forward(family: str) -> Iterator[Check]:
    """Checks the logits and the captured states of all layers."""
    arrays = golden.read_case(f"forward_{family}").arrays
    model = golden_model(family)
    mask = arrays["attention_mask"].astype(bool)
    batch = TokenBatch(arrays["input_ids"].astype(np.int32), mask)
    logits = np.asarray(forward.logits(model.params, model.config, batch))
    sites = {Site.MLP_KEY: "mlp_key", Site.MLP_OUT: "mlp_out", Site.RESIDUAL: "block_out"}
    captured = forward.capture(model.params, model.config, batch, tuple(sites))
    found = {"logits": logits[mask]} | {n: captured[s][:, mask] for s, n in sites.items()}
    for figure, actual in found.items():
        expected = arrays[figure][mask] if figure == "logits" else arrays[figure][:, mask]
        error = largest(actual, expected)
        yield Check(f"forward_{family}", figure, error, golden.FORWARD_TOLERANCE)


def check_moments() -> Iterator[Check]:
    """Checks the sums of outer products of keys against float64 sums of the same keys on the host."""
    model = golden_model("gpt2")
    ids = np.random.default_rng(0).integers(model.config.vocab_size, size=(8, 64))
    batch = TokenBatch(ids.astype(np.int32), np.ones(ids.shape, bool))
    sums = KeySums(model.params, model.config, [4])
    sums.add(batch)
    captured = forward.capture(model.params, model.config, batch, (Site.MLP_KEY,), stop=5)
    keys = np.asarray(captured[Site.MLP_KEY][4], np.float64).reshape(-1, model.config.mlp_width)
    error = relative_error(np.triu(sums.totals[4]), np.triu(keys.T @ keys))
    yield Check("second moment", "Σ k kᵀ of layer 4", error, 1e-6)


def check_independence(chunk_sizes: Sequence[int]) -> Iterator[Check]:
    """Checks that an edit does not depend on the chunk size, nor on whether it is factored or merged into the weights.

    Args:
      chunk_sizes: Chunk sizes to compare; the first is the reference.
    """
    model = load_model("factworld-gpt2")
    dataset = load_dataset(DatasetName.CF, model_name=model.name, limit=max(chunk_sizes))
    requests = [record.request for record in dataset.records]
    moments = load_shipped(model.name)

    def compute(size: int) -> Delta:
        return rome.compute_deltas(
            model,
            requests,
            ROMEConfig.for_model(model.name),
            second_moments=moments,
            templates=["{}", "The truth is. {}"],
            chunk_size=size,
        )

    with ThreadPoolExecutor() as pool:
        computed = dict(zip(chunk_sizes, pool.map(compute, chunk_sizes), strict=True))
    changes = {size: _matrices(deltas) for size, deltas in computed.items()}
    alone = changes[chunk_sizes[0]]
    for size in chunk_sizes[1:]:
        error = max(map(relative_error, changes[size], alone))
        yield Check("chunk size", f"ΔW in chunks of {size} and alone", error, 1e-4)

    deltas = computed[chunk_sizes[-1]]
    batch = encode(model.tokenizer, [request.text for request in requests])
    last = batch.mask.sum(1, keepdims=True).astype(np.int32) - 1
    together = forward.logits(model.params, model.config, batch, positions=last, deltas=deltas)
    for case in (0, len(requests) - 1):
        row = TokenBatch(batch.ids[case : case + 1], batch.mask[case : case + 1])
        params = apply_delta(model.params, deltas[case])
        merged = forward.logits(params, model.config, row, positions=last[case : case + 1])
        error = largest(together[case], merged[0])
        yield Check("factored", f"logits in a batch and merged alone, edit {case}", error, 1e-5)


def _matrices(deltas: Delta) -> list[np.ndarray]:
    """Returns the full ΔW of each edit."""
    (update,) = deltas.updates
    return [np.asarray(a @ b.T) for a, b in zip(update.left, update.right, strict=True)]


def precision_row(label: str, options: dict[str, str]) -> dict[str, object]:
    """Computes how far one edit and one trace move from the golden numbers in another precision.

    Args:
      label: Name of the precision in the table.
      options: Dtype or precision, as for `load_model`.
    """
    edit, trace = _MOVED
    moved = rome_errors(edit, **options)
    ((_, error),) = trace_errors(trace, ["default"], **options)
    row = {f"{figure}, max |a − b| / max |b|": value for figure, value in moved.items()}
    return {"arithmetic": label, **row, "trace table, largest difference": error}
