"""Flags that `eval.evaluate` and `eval.sweep` share, and what they ask for."""

from __future__ import annotations

import dataclasses

from absl import flags
from ml_collections import config_flags

from rome_jax.edit import method as methods
from rome_jax.edit.config import Hyperparameters
from rome_jax.edit.method import Algorithm
from rome_jax.evaluation.datasets import Dataset, DatasetName, load_dataset
from rome_jax.evaluation.generation import GenerationTests
from rome_jax.evaluation.run import load_generation_tests
from rome_jax.evaluation.scoring import MAX_TOKENS
from rome_jax.factworld.records import Role
from rome_jax.models.registry import SHIPPED, LanguageModel, load_model

_ALGORITHM = flags.DEFINE_enum("alg_name", "ROME", [a.value for a in Algorithm], "The method.")
_MODEL = flags.DEFINE_string("model_name", "factworld-gpt2", "Shipped or hub name, or directory.")
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Hyperparameters, such as configs/rome.py:gpt2-xl; default: those of the model."
)
_HPARAMS = flags.DEFINE_string("hparams_fname", None, "Hyperparameter file of the original (JSON).")
SECOND_MOMENTS = flags.DEFINE_string(
    "second_moments",
    None,
    "Second moments: what eval.layer_stats wrote, the original's .npz, or published to download it.",
)
flags.DEFINE_alias("covariance", "second_moments")
HYPERNETWORK = flags.DEFINE_string(
    "hypernetwork",
    None,
    "Of MEND or KE: what eval.train_hypernetwork wrote, or a published .pt file; default: the model's own.",
)
_DATASET = flags.DEFINE_enum(
    "ds_name", "cf", [d.value for d in DatasetName], "CounterFact or zsRE."
)
_PATH = flags.DEFINE_string(
    "data_path",
    None,
    "File of records; default: factworld's for its models, else the published file.",
)
_SNIPPETS = flags.DEFINE_string(
    "snippets_path",
    None,
    "attribute_snippets.json, behind consistency and essence; default: as --data_path.",
)
_TFIDF = flags.DEFINE_string(
    "tfidf_dir", None, "Folder of idf.npy and tfidf_vocab.json; default: as --data_path."
)
RESULTS = flags.DEFINE_string("results_dir", "results", "Holds a folder a method.")
BATCH = flags.DEFINE_integer(
    "batch_size", 32, "Cases edited and scored together; changes no result.", lower_bound=1
)
CHUNK = flags.DEFINE_integer(
    "chunk_size", 8, "Requests optimised together; bounds the memory.", lower_bound=1
)
MAX_TOKENS_FLAG = flags.DEFINE_integer(
    "max_tokens",
    MAX_TOKENS,
    "Token columns in one forward pass, or in the cache of one generation; bounds the memory.",
    lower_bound=256,
)
_DTYPE = flags.DEFINE_string("dtype", None, "Of the weights, such as bfloat16; default: as stored.")
_PRECISION = flags.DEFINE_enum(
    "precision",
    "highest",
    ["highest", "high", "default"],
    "Of matrix products: highest is true float32 on every device, default is faster on GPUs.",
)
SEED = flags.DEFINE_integer("seed", 0, "Of context templates and generated texts.", lower_bound=0)

_EMBEDDED_CASES = 100


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is evaluated, and on what."""

    model: LanguageModel
    dataset: Dataset
    generation: GenerationTests | None


def read_method() -> tuple[Algorithm, Hyperparameters]:
    """The method and its hyperparameters.

    Raises:
      ValueError: bad ones, or none are known; see `methods.read_config`.
    """
    algorithm = Algorithm(_ALGORITHM.value)
    values = (_CONFIG.value, _HPARAMS.value, HYPERNETWORK.value)
    return algorithm, methods.read_config(algorithm, _MODEL.value, *values)


def load_inputs(
    configs: list[Hyperparameters], *, limit: int | None, role: Role, generation: bool
) -> Inputs:
    """Data first, then the model: bad input is told before a large model is loaded.

    Args:
      configs: all hyperparameters that will be used.
      limit: records, at most; None means all of a file, and 100 of factworld.
      role: which of factworld's requests.
      generation: whether texts are generated.

    Raises:
      ValueError, OSError: missing second moments, data that cannot be read or fetched, an unknown model.
    """
    for config in configs:
        methods.check_second_moments(SECOND_MOMENTS.value, _MODEL.value, config)
    if limit is None and _PATH.value is None and _MODEL.value in SHIPPED:
        limit = _EMBEDDED_CASES
    dataset = load_dataset(
        DatasetName(_DATASET.value),
        path=_PATH.value,
        model_name=_MODEL.value,
        limit=limit,
        role=role,
    )
    tests = None
    if generation:
        tests = load_generation_tests(dataset, _SNIPPETS.value, _TFIDF.value, SEED.value)
    model = load_model(_MODEL.value, dtype=_DTYPE.value, precision=_PRECISION.value)
    print(f"Model       {model!r}")
    print(f"Data        {dataset.name} of {dataset.source}, {len(dataset.records)} cases")
    return Inputs(model, dataset, tests)
