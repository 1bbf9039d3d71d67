"""The data of an evaluation: records and reference texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from absl import flags

from eval.flags import method, model, running
from rome_jax.edit.config import Hyperparameters
from rome_jax.evaluation.datasets import FACTWORLD, Dataset, DatasetName, load_dataset
from rome_jax.evaluation.generation import EssenceTarget, GenerationTests
from rome_jax.evaluation.run import has_generation_prompts, load_generation_tests
from rome_jax.evaluation.snippets import missing_downloads
from rome_jax.factworld.records import Role
from rome_jax.models.registry import SHIPPED, LanguageModel

DATASET = flags.DEFINE_enum(
    "ds_name",
    "cf",
    [d.value for d in DatasetName],
    "Data set: CounterFact (cf) or zsRE (zsre).",
    case_sensitive=False,
)
PATH = flags.DEFINE_string(
    "data_path",
    None,
    "The word sample for 20 records of CounterFact, a file of records (JSON, JSON Lines, parquet or arrow; "
    "docs/evaluation.md lists the layouts), or a folder of Dataset.save_to_disk. Default: factworld's records for the "
    "factworld models, sample for smollm2-135m, otherwise the published file, which is downloaded once.",
)
SNIPPETS = flags.DEFINE_string(
    "snippets_path",
    None,
    "The file attribute_snippets.json, whose reference texts are needed for consistency and essence. Default: as for "
    "--data_path.",
)
TFIDF = flags.DEFINE_string(
    "tfidf_dir",
    None,
    "Folder with idf.npy and tfidf_vocab.json, the word weights for consistency. Default: as for --data_path.",
)

ESSENCE = flags.DEFINE_enum(
    "essence",
    None,
    [target.value for target in EssenceTarget],
    "Target under which the reference text about the subject is looked up, whose perplexity is the column PPL. "
    "Default: true for factworld's records, and new, as in the original code, for others.",
    case_sensitive=False,
)

_EMBEDDED_CASES = 100


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The model and the data of an evaluation.

    Attributes:
      model: The model to edit.
      dataset: The records to evaluate on.
      generation: Generation prompts and reference texts; None without generated texts.
    """

    model: LanguageModel
    dataset: Dataset
    generation: GenerationTests | None


def read_requests() -> Dataset:
    """Reads the records of --num_cases edits in the data set --ds_name: from --data_path, or those of the model.

    If the default of --num_cases exceeds the number of records, a line says how many there are.

    Raises:
      ValueError: If the data are malformed, or there are fewer records than --num_cases asks for.
      OSError: If a file cannot be read or downloaded.
    """
    flag = running.CASES
    dataset = load_dataset(
        DatasetName(DATASET.value),
        path=PATH.value,
        model_name=model.NAME.value,
        limit=flag.value,
        seed=running.SEED.value,
    )
    available = len(dataset.records)
    if available < flag.value and flag.present:
        raise ValueError(
            f"--{flag.name} asks for {flag.value:,} edits, but {dataset.source} has {available} records: give at most "
            f"{available}."
        )
    if available < flag.value:
        print(f"Edits       {available}, the number of records of {dataset.source}")
    return dataset


def load(configs: Sequence[Hyperparameters], role: Role = Role.HELD_OUT) -> Inputs:
    """Reads the data, then loads the model, so that bad input is reported before a large model is loaded.

    Args:
      configs: All hyperparameters that will be used; their second moments are checked.
      role: Which of factworld's requests to use.

    Raises:
      ValueError: If second moments are missing, the data are malformed, or the model is unknown.
      OSError: If a file cannot be read or downloaded.
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
        _announce_downloads(dataset)
        texts = (SNIPPETS.value, TFIDF.value, running.SEED.value)
        essence = ESSENCE.value and EssenceTarget(ESSENCE.value)
        tests = load_generation_tests(dataset, *texts, essence)
    loaded = model.load()
    print(f"Model       {loaded!r}")
    print(f"Data        {dataset.name} of {dataset.source}, {len(dataset.records)} cases")
    if role is Role.TUNING and dataset.source != FACTWORLD:
        print(
            "            (no records are set apart for tuning: report results on others, with --data_path)"
        )
    if running.GENERATION.value and tests is None:
        print("Generation  none, because the records have no generation prompts")
    return Inputs(loaded, dataset, tests)


def _announce_downloads(dataset: Dataset) -> None:
    """Prints the sizes of the references of generated texts that will be downloaded."""
    if not has_generation_prompts(dataset):
        return
    files = missing_downloads(SNIPPETS.value, TFIDF.value, dataset.source == FACTWORLD)
    if files:
        named = ", ".join(f"{file.name} ({(file.size or 0) / 1e6:.0f} MB)" for file in files)
        print(
            f"Generation  downloads {named} once; --nogeneration skips generated texts", flush=True
        )
