"""What is asked of the models: records, reference texts, known facts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from absl import flags

from eval.flags import method, model, running
from rome_jax.edit.config import Hyperparameters
from rome_jax.evaluation.datasets import Dataset, DatasetName, load_dataset
from rome_jax.evaluation.generation import GenerationTests
from rome_jax.evaluation.run import load_generation_tests
from rome_jax.factworld.records import Role
from rome_jax.models.registry import SHIPPED, LanguageModel

DATASET = flags.DEFINE_enum(
    "ds_name", "cf", [d.value for d in DatasetName], "CounterFact or zsRE.", case_sensitive=False
)
PATH = flags.DEFINE_string(
    "data_path",
    None,
    "File of records; default: factworld's for its models, else the published file.",
)
SNIPPETS = flags.DEFINE_string(
    "snippets_path",
    None,
    "attribute_snippets.json, behind consistency and essence; default: as --data_path.",
)
TFIDF = flags.DEFINE_string(
    "tfidf_dir", None, "Folder of idf.npy and tfidf_vocab.json; default: as --data_path."
)

_EMBEDDED_CASES = 100


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is evaluated, and on what."""

    model: LanguageModel
    dataset: Dataset
    generation: GenerationTests | None


def load(configs: Sequence[Hyperparameters], role: Role = Role.HELD_OUT) -> Inputs:
    """Data first, then the model: bad input is told before a large model is loaded.

    Args:
      configs: all hyperparameters that will be used.
      role: which of factworld's requests.

    Raises:
      ValueError, OSError: missing second moments, data that cannot be read or fetched, an unknown model.
    """
    name = model.check()
    for config in configs:
        method.check_second_moments(config)
    limit = running.CASES.value
    if limit is None and PATH.value is None and name in SHIPPED:
        limit = _EMBEDDED_CASES
    kind = DatasetName(DATASET.value)
    dataset = load_dataset(kind, path=PATH.value, model_name=name, limit=limit, role=role)
    tests = None
    if running.GENERATION.value:
        texts = (SNIPPETS.value, TFIDF.value, running.SEED.value)
        tests = load_generation_tests(dataset, *texts)
    loaded = model.load()
    print(f"Model       {loaded!r}")
    print(f"Data        {dataset.name} of {dataset.source}, {len(dataset.records)} cases")
    return Inputs(loaded, dataset, tests)
