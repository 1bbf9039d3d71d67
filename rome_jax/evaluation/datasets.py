"""CounterFact, zsRE and data sets like them: records from a file, from factworld or from the published files.

The layouts that are read are in `rome_jax.evaluation.layouts`: counterfact.json of Meng et al. 2022, the zsRE questions
of MEND (Mitchell et al. 2022), KnowEdit (Zhang et al. 2024), MQuAKE (Zhong et al. 2023), and flat ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from rome_jax.data import published, samples
from rome_jax.data.published import PUBLISHED
from rome_jax.data.samples import SAMPLE
from rome_jax.evaluation import layouts
from rome_jax.evaluation.record_types import CounterFactRecord, DatasetName, Record, ZsRERecord
from rome_jax.factworld import records as factworld
from rome_jax.factworld.facts import make_world
from rome_jax.factworld.records import Role
from rome_jax.files.checked import Count, Seed, check
from rome_jax.files.records import DataError, find, read_records
from rome_jax.models.registry import IN_WHEELS, SHIPPED

__all__ = [
    "FACTWORLD",
    "CounterFactRecord",
    "Dataset",
    "DatasetName",
    "Record",
    "ZsRERecord",
    "load_dataset",
    "parse_counterfact",
    "parse_one_paraphrase",
    "parse_zsre",
]

FACTWORLD = "factworld"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Records and where they come from.

    Attributes:
      name: Which of the two data sets.
      source: "factworld", "sample", the name of a file or folder, or "published".
      sha256: Checksum of the content, or of all of factworld's records as JSON; a limit does not change it.
      records: Records of one type, in the order of the file.
    """

    name: DatasetName
    source: str
    sha256: str
    records: tuple[CounterFactRecord, ...] | tuple[ZsRERecord, ...]


def load_dataset(
    name: DatasetName,
    *,
    path: str | Path | None = None,
    model_name: str | None = None,
    limit: int | None = None,
    role: Role = Role.HELD_OUT,
    seed: int = 0,
) -> Dataset:
    """Loads records: from `path` if given, else those that come with the model, else from the published file.

    Args:
      name: How the records are scored: by probabilities against a true target, as CounterFact, or by accuracies, as
        zsRE.
      path: "sample", 20 records of CounterFact that come with the package; or a file with a JSON list, JSON Lines,
        parquet or arrow, or a folder of `Dataset.save_to_disk`, in one of the layouts of `rome_jax.evaluation.layouts`.
      model_name: Name of the model. A factworld model gets factworld's own requests, and a pretrained one that loads
        without the Hugging Face hub gets the sample of CounterFact.
      limit: Load only the first `limit` records; by default all. Further records are not checked.
      role: Which of factworld's requests to load.
      seed: Seed of factworld's split and targets; it has no effect on a file.

    Raises:
      DataError: If a file cannot be read or a record is malformed; the message names its case id and field.
      DownloadError: If the published file cannot be downloaded.
      ValueError: If the limit is below 1, or an argument has another type.

    Example:
      >>> load_dataset(DatasetName.CF, model_name="factworld-gpt2", limit=2).records[0].request.prompt
      '{} plays the sport of'
    """
    name, role = check(DatasetName, name, "name"), check(Role, role, "role")
    limit, seed = check(Count | None, limit, "limit"), check(Seed, seed, "seed")
    if path is None and model_name in SHIPPED:
        world = make_world()
        if name is DatasetName.CF:
            records = factworld.counterfact_records(world, seed, role)
        else:
            records = factworld.zsre_records(world, seed, role)
        canonical = json.dumps(records, sort_keys=True, ensure_ascii=False).encode()
        sha256 = hashlib.sha256(canonical).hexdigest()
        parsed = layouts.recognize(records).parse(records[:limit], name)
        return Dataset(name, FACTWORLD, sha256, parsed)
    if path is None and model_name in IN_WHEELS and name is DatasetName.CF:
        path = SAMPLE
    if str(path) == SAMPLE:
        path, source = samples.COUNTERFACT, SAMPLE
    elif path is None:
        file = published.COUNTERFACT if name is DatasetName.CF else published.ZSRE
        path, source = published.fetch(file), PUBLISHED
    else:
        path = find(path)
        source = path.name
    records, sha256 = read_records(path)
    try:
        parsed = layouts.recognize(records).parse(records[:limit], name)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return Dataset(name, source, sha256, parsed)


def parse_counterfact(records: Any) -> tuple[CounterFactRecord, ...]:
    """Parses records in the layout of counterfact.json.

    Ids may be missing or null, and lists of prompts may be empty. A record without `case_id` gets its index.

    Args:
      records: The list that was read from JSON.

    Raises:
      DataError: If `records` is not a list with at least one record, or a record is malformed; the message names its
        case id or index and the field.

    Example:
      >>> rewrite = {"prompt": "{} is in", "subject": "Rome", "target_new": {"str": "France"}}
      >>> rewrite["target_true"] = {"str": "Italy"}
      >>> prompts = {"paraphrase_prompts": ["Rome is a city in"], "neighborhood_prompts": []}
      >>> parse_counterfact([{"case_id": 3, "requested_rewrite": rewrite, **prompts}])[0].request.text
      'Rome is in'
    """
    return layouts.COUNTERFACT.parse(records, DatasetName.CF)


def parse_one_paraphrase(records: Any) -> tuple[CounterFactRecord, ...]:
    """Parses records in the flat layout.

    The required fields are `prompt`, which contains the subject or `{}` in its place, `subject`, `target_new` and
    `ground_truth`. `rephrase_prompt`, `locality_prompt`, `locality_ground_truth`, `locality`, `portability` and
    `case_id` are optional; the default case id is the index. Of a list of aliases the first is taken. The first
    occurrence of the subject in `prompt` becomes `{}`. A locality prompt is a neighborhood prompt if its answer is the
    true target or not given; otherwise it is scored with its own answer, as those of `locality` are.

    Args:
      records: The list that was read from JSON.

    Raises:
      DataError: As for `parse_counterfact`.

    Example:
      >>> record = {"prompt": "Rome is in", "subject": "Rome", "target_new": "France", "ground_truth": ["Italy"]}
      >>> record |= {"rephrase_prompt": "Rome is a city in", "locality_prompt": "Milan is in"}
      >>> parse_one_paraphrase([record])[0].request.prompt
      '{} is in'
    """
    return layouts.FLAT.parse(records, DatasetName.CF)


def parse_zsre(records: Any) -> tuple[ZsRERecord, ...]:
    """Parses records in MEND's zsRE layout.

    The prompt is `src` with the first occurrence of the subject replaced by `{}`, and the new target is the first of
    `answers`. A record without `case_id`, as in the published file, gets its index.

    Args:
      records: The list that was read from JSON.

    Raises:
      DataError: As for `parse_counterfact`.

    Example:
      >>> record = {"subject": "Rome", "src": "Where is Rome?", "rephrase": "What country is Rome in?"}
      >>> record |= {"answers": ["Italy"], "loc": "nq question: who wrote emma", "loc_ans": "Jane Austen"}
      >>> parse_zsre([record])[0].locality_prompt
      'nq question: who wrote emma?'
    """
    return layouts.ZSRE.parse(records, DatasetName.ZSRE)
