"""How far logits, edits, and traces move when matrix products or weights have fewer digits.

Each setting is compared with float32 weights and products at `highest` precision on the same device. On a device that
lacks TF32 or bfloat16 products, such as a CPU, they are emulated (see `rome_jax.models.precision`), and the table says
so.

    python -m benchmarks.precision                                # four models
    python -m benchmarks.precision --models factworld-gpt2 --memit

The models are the two that come with the package, smollm2-135m, and "random": random weights of GPT-2's size, which
read the prompts of factworld-gpt2. Most of the time is compilation, because each setting has its own programs.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from benchmarks import command_line
from benchmarks.gpu import page, sizes, weights
from benchmarks.timing import relative_error
from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import encode
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.delta import dense
from rome_jax.edit.methods import memit, rome
from rome_jax.edit.result import EditResult
from rome_jax.edit.spread_config import MEMITConfig
from rome_jax.edit.stages.answers import target_answers
from rome_jax.evaluation.datasets import DatasetName, load_dataset
from rome_jax.models import forward
from rome_jax.models.interventions import Delta
from rome_jax.models.precision import WORDS, is_emulated
from rome_jax.models.registry import LanguageModel, load_model
from rome_jax.moments.second_moment import SecondMoment
from rome_jax.moments.shipped import load_shipped
from rome_jax.trace import sweep
from rome_jax.trace.noise import fit_noise, parse_noise
from rome_jax.trace.prompt import TracePrompt
from rome_jax.trace.protocol import Protocol

RANDOM = "random"
MODELS = ("factworld-gpt2", "factworld-gptj", "smollm2-135m", RANDOM)
# Options of `load_model` by the name of the setting. The first is what the others are compared with.
SETTINGS: Mapping[str, Mapping[str, str]] = {
    "float32, highest": {},
    "tf32 products": {"precision": "tf32"},
    "bfloat16 products": {"precision": "bfloat16"},
    "bfloat16 weights": {"dtype": "bfloat16"},
    "float16 weights": {"dtype": "float16"},
}
_TEMPLATES = ("{}", "The truth is. {}")


@dataclasses.dataclass(frozen=True)
class Case:
    """A model that can be loaded in any setting, and the work that is measured.

    Attributes:
      name: Name of the model in the table.
      load: Loads the model with options of `load_model`.
      requests: Requests to edit; the prompt of the first is traced.
      config: Configuration of ROME.
      moments: Second moments.
      memit: Configuration of a MEMIT edit of all requests together, or None.
      samples: Number of noise samples of the trace.
    """

    name: str
    load: Callable[..., LanguageModel]
    requests: Sequence[EditRequest]
    config: ROMEConfig
    moments: Mapping[int, SecondMoment]
    memit: MEMITConfig | None
    samples: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """The results of one setting.

    Attributes:
      logits: float32 [N, V] logits after each prompt.
      edits: ROME edits, one per request.
      probabilities: float32 [N] probability of each target after its edit.
      total_effect: Total effect of the corruption.
      effects: float32 [tokens, layers] indirect effects of the hidden states.
      joint: MEMIT's edit, or None.
    """

    logits: np.ndarray
    edits: EditResult
    probabilities: np.ndarray
    total_effect: float
    effects: np.ndarray
    joint: Delta | None


def make_case(
    name: str, edits: int, samples: int, *, with_memit: bool = False, tiny: bool = False
) -> Case:
    """Builds the case of a model.

    Args:
      name: One of `MODELS`.
      edits: Number of requests; the random model gets one.
      samples: Number of noise samples of the trace.
      with_memit: Whether to make a MEMIT edit too, except of the random model.
      tiny: Whether the random model is tiny.
    """
    if name == RANDOM:
        size = sizes.Size.of("gpt2", tiny)
        return Case(
            "random weights, GPT-2's size",
            functools.partial(_random_model, size),
            _requests("factworld-gpt2", 1),
            ROMEConfig((size.layer,)),
            {size.layer: sizes.second_moment(size.config.mlp_width)},
            None,
            samples,
        )
    return Case(
        name,
        functools.partial(load_model, name),
        _requests(name, edits),
        ROMEConfig.for_model(name),
        load_shipped(name),
        MEMITConfig.for_model(name) if with_memit else None,
        samples,
    )


def _requests(name: str, count: int) -> list[EditRequest]:
    """Returns the first requests of a model's records."""
    records = load_dataset(DatasetName.CF, model_name=name, limit=count).records
    return [record.request for record in records]


def _random_model(
    size: sizes.Size, *, precision: str = "highest", dtype: str = "float32"
) -> LanguageModel:
    """Builds a model with random weights and the tokenizer of factworld-gpt2."""
    tokenizer = load_model("factworld-gpt2").tokenizer
    vocab_size = max(size.config.vocab_size, len(tokenizer))
    config = dataclasses.replace(size.config, precision=precision, vocab_size=vocab_size)
    params = weights.random_params(config, dtype)
    return LanguageModel("gpt2", config, params, tokenizer, "random weights")


def measure(case: Case, **options: str) -> Measured:
    """Runs a case in one setting.

    Args:
      case: The case.
      **options: Dtype and precision, as for `load_model`.
    """
    model, requests = case.load(**options), case.requests
    edits = rome.compute(
        model,
        requests,
        case.config,
        second_moments=case.moments,
        templates=_TEMPLATES,
        chunk_size=len(requests),
    )
    _, probabilities = target_answers(model, requests, edits.deltas)
    joint = case.memit and memit.compute_joint_delta(
        model, requests, case.memit, second_moments=case.moments, templates=_TEMPLATES
    )
    subjects = [request.subject for request in requests]
    noise = fit_noise(model, parse_noise("s3"), subjects=subjects)
    prompt = TracePrompt.of(model.tokenizer, requests[0].text, requests[0].subject)
    runs = Protocol(noise, samples=case.samples).begin(model, prompt)
    batch = encode(model.tokenizer, [request.text for request in requests], left=True)
    last = np.full((len(requests), 1), batch.ids.shape[1] - 1)
    return Measured(
        np.asarray(forward.logits(model.params, model.config, batch, positions=last))[:, 0],
        edits,
        probabilities,
        runs.clean_score - runs.corrupted_score,
        np.asarray(sweep.trace(runs)) - runs.corrupted_score,
        joint,
    )


def changes(other: Measured, exact: Measured) -> dict[str, object]:
    """Compares two results.

    Returns:
      The cells of one row by column. A relative change is ‖a − b‖ / ‖b‖; of several edits the median and the largest
      are given.
    """
    (edit,), (wanted,) = other.edits.layers, exact.edits.layers
    deltas = other.edits.deltas, exact.edits.deltas
    values = _errors(edit.value, wanted.value)
    updates = _errors(*map(_change, deltas))
    cosines = [_cosine(*pair) for pair in zip(*map(_change, deltas), strict=True)]
    place, wanted_place = (
        np.unravel_index(one.effects.argmax(), one.effects.shape) for one in (other, exact)
    )
    row: dict[str, object] = {
        "logits, largest change / σ": float(
            (np.abs(other.logits - exact.logits).max(1) / exact.logits.std(1)).max()
        ),
        "v*, median": float(np.median(values)),
        "v*, largest": max(values),
        "ΔW, median": float(np.median(updates)),
        "ΔW, largest": max(updates),
        "1 − cosine of ΔW, largest": 1 - min(cosines),
        "p(target), mean": float(other.probabilities.mean()),
        "p(target), largest change": float(np.abs(other.probabilities - exact.probabilities).max()),
        "total effect": other.total_effect,
        "effects, largest change": float(np.abs(other.effects - exact.effects).max()),
        "largest effect at (token, layer)": f"({', '.join(map(str, place))})",
        "same place": place == wanted_place,
    }
    if exact.joint is not None:
        pair = (_change(one.joint)[None] for one in (other, exact))
        row["MEMIT's ΔW"] = max(_errors(*pair))
    return row


def _change(delta: Delta) -> np.ndarray:
    """Returns ΔW of all layers together, in float64: [N, elements], or [elements] of a joint edit."""
    parts = [np.asarray(dense(update), np.float64) for update in delta.updates]
    lead = parts[0].shape[:-2]
    return np.concatenate([part.reshape(*lead, -1) for part in parts], axis=-1)


def _errors(actual: np.ndarray, expected: np.ndarray) -> list[float]:
    """Computes the relative change of each row."""
    pairs = zip(np.asarray(actual), np.asarray(expected), strict=True)
    return [relative_error(*pair) for pair in pairs]


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Computes the cosine of the angle between two arrays."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def label(setting: str) -> str:
    """Returns the name of a setting, with a note if this device emulates it."""
    word = SETTINGS[setting].get("precision", "highest")
    return f"{setting} (emulated)" if is_emulated(WORDS[word]) else setting


def rows(case: Case, settings: Sequence[str]) -> list[dict[str, object]]:
    """Measures a case in some settings, one after another.

    Args:
      case: The case.
      settings: Keys of `SETTINGS`.

    Returns:
      One row per setting, all compared with the first setting of `SETTINGS`.
    """
    exact = measure(case)
    first, *_ = SETTINGS
    return [
        {
            "model": case.name,
            "setting": label(setting),
            "edits": len(case.requests),
            **changes(exact if setting == first else measure(case, **SETTINGS[setting]), exact),
        }
        for setting in settings
    ]


def main() -> None:
    """Prints one table of all models."""
    parser = command_line.parser(__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--edits", type=int, default=4, help="edits of each model")
    parser.add_argument("--samples", type=int, default=5, help="noise samples of each trace")
    parser.add_argument("--memit", action="store_true", help="also write all edits with MEMIT")
    arguments = parser.parse_args()
    found = []
    for name in arguments.models:
        case = make_case(name, arguments.edits, arguments.samples, with_memit=arguments.memit)
        found += rows(case, arguments.settings)
        print(f"{name} is measured", flush=True)
    print(f"\n{jax.devices()[0].device_kind}, jax {jax.__version__}\n")
    print("\n".join(page.table(found)))


if __name__ == "__main__":
    main()
