"""Up to a thousand edits in one model: by MEMIT all at once, and by ROME one after another.

    OUTPUT_DIR/run.json             settings and versions
    OUTPUT_DIR/METHOD_COUNT.json    a `Measurement` of the model with COUNT edits, and the seconds that the edits took

Existing results are not computed again.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic
import typing_extensions

from rome_jax.edit import edit_warnings
from rome_jax.edit.config import Hyperparameters, ROMEConfig
from rome_jax.edit.delta import apply_delta
from rome_jax.edit.method import METHODS, Editor, MethodName
from rome_jax.edit.methods import memit, rome
from rome_jax.edit.spread_config import MEMITConfig
from rome_jax.evaluation.datasets import CounterFactRecord, Dataset, parse_counterfact
from rome_jax.evaluation.sequence import (
    check_records,
    describe_dataset,
    measure,
    unedited_texts,
)
from rome_jax.factworld.facts import World
from rome_jax.factworld.records import Role, counterfact_records
from rome_jax.files.artifacts import remove_leftovers
from rome_jax.files.checked import check, shown
from rome_jax.files.json_files import read_object
from rome_jax.files.locks import in_use
from rome_jax.files.progress import tqdm
from rome_jax.models import runs
from rome_jax.models.registry import LanguageModel
from rome_jax.moments import checks

MOST = 1000  # edits
_Counts = Annotated[
    tuple[Annotated[int, pydantic.Field(ge=1, le=MOST)], ...], pydantic.Field(min_length=1)
]


def read_counts(values: Sequence[str], most: int = MOST) -> list[int]:
    """Returns the numbers of edits given by --counts, in ascending order.

    Args:
      values: The numbers as texts.
      most: The largest number.

    Raises:
      ValueError: If there is none, or one is not a whole number from 1 to `most`.

    Example:
      >>> read_counts(["100", "10", "10"])
      [10, 100]
    """
    counts = {value: int(value) for value in values if re.fullmatch("[0-9]{1,9}", value)}
    if not values or not all(1 <= counts.get(value, 0) <= most for value in values):
        raise ValueError(
            f"--counts={shown(','.join(values))}: give whole numbers from 1 to {most}."
        )
    return sorted(set(counts.values()))


def choose_records(world: World, seed: int) -> tuple[CounterFactRecord, ...]:
    """Returns a thousand edit requests: all held-out ones, followed by tuning ones.

    Args:
      world: The world of the facts.
      seed: Seed of the requests.
    """
    parts = (counterfact_records(world, seed, role) for role in (Role.HELD_OUT, Role.TUNING))
    return parse_counterfact(list(itertools.chain(*parts))[:MOST])


def read_configs(model_name: str) -> dict[MethodName, Hyperparameters]:
    """Returns the known hyperparameters of ROME and MEMIT for a model.

    Args:
      model_name: Name of the model.

    Raises:
      ValueError: If they are not known.

    Example:
      >>> [config.layers for config in read_configs("factworld-gpt2").values()]
      [(0,), (0, 1, 2)]
    """
    names = (MethodName.ROME, MethodName.MEMIT)
    return {name: METHODS[name].for_model(model_name) for name in names}


def prepare_editors(
    model: LanguageModel,
    *,
    seed: int = 0,
    chunk_size: int = 8,
    moments_source: str | None = None,
) -> list[Editor]:
    """Prepares ROME and MEMIT for a model.

    Args:
      model: The model to edit.
      seed: Seed of the context templates.
      chunk_size: Number of requests that MEMIT optimizes together.
      moments_source: Value of the flag --second_moments. None reads those that come with the model.

    Raises:
      ValueError: If the hyperparameters are not known for the model, or the second moments do not fit it.
      OSError: If the second moments cannot be read.
    """
    options: dict[str, Any] = {"moments_source": moments_source, "chunk_size": chunk_size}
    return [
        Editor.prepare(name, model, config, seed=seed, **options)
        for name, config in read_configs(model.name).items()
    ]


def memit_models(
    editor: Editor, records: Sequence[CounterFactRecord], counts: Sequence[int]
) -> Iterator[LanguageModel]:
    """Yields the model that holds the first `count` requests, written all at once, for each count.

    Args:
      editor: MEMIT, prepared for the model.
      records: The edit requests.
      counts: Numbers of edits.
    """
    config = editor.config
    if not isinstance(config, MEMITConfig):
        raise TypeError(f"editor is of {editor.algorithm}: give one of MEMIT.")
    for count in counts:
        requests = [record.request for record in records[:count]]
        options = {**editor.options, "check_answers": False}
        delta = memit.compute_joint_delta(editor.model, requests, config, **options)
        yield editor.model.replace(params=apply_delta(editor.model.params, delta))


def rome_models(
    editor: Editor,
    records: Sequence[CounterFactRecord],
    counts: Sequence[int],
    *,
    donate: bool = False,
) -> Iterator[LanguageModel]:
    """Yields the model that holds the first `count` requests, written one after another, for each count.

    Args:
      editor: ROME, prepared for the model.
      records: The edit requests.
      counts: Numbers of edits, in ascending order.
      donate: Whether to overwrite the weights of a model when the next one is requested; see `rome.compute_sequence`.
    """
    config = editor.config
    if not isinstance(config, ROMEConfig):
        raise TypeError(f"editor is of {editor.algorithm}: give one of ROME.")
    requests = [record.request for record in records[: max(counts, default=0)]]
    options = {name: editor.options[name] for name in ("second_moments", "templates")}
    sequence = rome.compute_sequence(
        editor.model, requests, config, **options, check_answers=False, donate=donate
    )
    with tqdm(sequence, total=len(requests), unit="edit", desc="ROME") as bar:
        for done, (model, _) in enumerate(bar, 1):
            if done in counts:
                yield model


_MODELS: Mapping[MethodName, Callable[..., Iterator[LanguageModel]]] = {
    MethodName.ROME: functools.partial(rome_models, donate=True),
    MethodName.MEMIT: memit_models,
}


@dataclasses.dataclass(frozen=True)
class MassEdits:
    """Measurements of two methods on one model, stored in a folder.

    Attributes:
      directory: The folder; see the top of this module.
      editors: ROME and MEMIT, prepared for the same model.
      world: The world of the facts; None for records of a file.
      records: The edit requests, in their order.
      texts: Texts about subjects that no request mentions.
    """

    directory: Path
    editors: tuple[Editor, ...]
    world: World | None = dataclasses.field(repr=False)
    records: Sequence[CounterFactRecord] = dataclasses.field(repr=False)
    texts: Sequence[str] = dataclasses.field(repr=False)

    @classmethod
    def open(
        cls,
        directory: str | Path,
        editors: Sequence[Editor],
        facts: World | Dataset,
        seed: int,
        moments_source: str | None = None,
    ) -> MassEdits:
        """Begins a run, or resumes one with the same settings.

        Args:
          directory: A new folder, or that of a run.
          editors: ROME and MEMIT, prepared for the same model.
          facts: A world, of which all held-out requests are edited, followed by tuning ones; or the records to edit.
          seed: Seed of the requests and texts of a world.
          moments_source: Where the second moments of the editors come from; None means the package.

        Raises:
          ValueError: If the folder holds a run with other settings, which the message names, or the records cannot be
            measured with.
        """
        if isinstance(facts, Dataset):
            world, about, records = None, describe_dataset(facts), check_records(facts, 1)
        else:
            world, about, records = facts, {}, choose_records(facts, seed)
        settings = {
            **runs.describe_model(editors[0].model),
            **{str(editor.algorithm): editor.config.to_dict() for editor in editors},
            "template_seeds": [editor.seed for editor in editors],
            "seed": seed,
            "covariance": moments_source,
            **about,
        }
        recorded = {
            "model_source": editors[0].model.source,
            "second_moments": {
                str(editor.algorithm): checks.describe_matches(editor.options.get("second_moments"))
                for editor in editors
            },
        }
        runs.open_run(
            directory,
            settings,
            recorded=recorded,
            cases="*_*.json",
            remedy="give another --output_dir",
        )
        texts = unedited_texts(world, records, seed)
        return cls(Path(directory), tuple(editors), world, records, texts)

    def path(self, algorithm: MethodName, count: int) -> Path:
        """Returns the path of a measurement."""
        return self.directory / f"{algorithm}_{count:04d}.json"

    def measure(self, counts: Sequence[int]) -> None:
        """Measures both methods at the counts that have not been measured yet.

        Args:
          counts: Numbers of edits, from 1 to 1,000.

        Raises:
          FolderInUseError: If another process measures into the folder.
          ValueError: If a number is out of range, or an edited model gives scores that are not numbers.
          OSError: If a file cannot be written.
        """
        counts = check(_Counts, counts, "counts")
        with in_use(self.directory, "--output_dir"):
            remove_leftovers(self.directory)
            for editor in self.editors:
                self._measure(editor, counts)

    def _measure(self, editor: Editor, counts: Sequence[int]) -> None:
        """Measures one method at the counts that have not been measured yet."""
        algorithm = editor.algorithm
        todo = sorted({c for c in counts if not self.path(algorithm, c).exists()})
        models, seconds = _MODELS[algorithm](editor, self.records, todo), 0.0
        with edit_warnings.summarized(max(todo, default=0)):
            for count in todo:
                begun = time.monotonic()
                model = next(models)
                # A sequence continues from the previous count, and MEMIT starts from the unedited model.
                seconds = time.monotonic() - begun + seconds * (algorithm is MethodName.ROME)
                runs.write_state(self.path(algorithm, count), self._look(model, count, seconds))

    def report(self, counts: Sequence[int]) -> dict[str, Any]:
        """Returns the settings, a measurement of the unedited model, and the stored measurements by method.

        Args:
          counts: Numbers of edits, all of which must have been measured.

        Raises:
          ValueError: If there is none or one is out of range, or a file is damaged.
          OSError: If one has not been measured.
        """
        counts = check(_Counts, counts, "counts")
        about = runs.read_run(self.directory)
        before = self._look(self.editors[0].model, max(counts), 0.0)
        measured = {
            editor.algorithm.value: [
                _read(self.path(editor.algorithm, count)) for count in sorted(set(counts))
            ]
            for editor in self.editors
        }
        return {"model": about["settings"]["model"]} | about | {"before": before, "runs": measured}

    def _look(self, model: LanguageModel, count: int, seconds: float) -> dict[str, Any]:
        """Measures a model on the first `count` requests."""
        found = measure(model, self.world, self.records[:count], self.texts)
        return dataclasses.asdict(found) | {"seconds": seconds}


def _read(path: Path) -> Mapping[str, Any]:
    """Reads a measurement.

    Raises:
      ValueError: If the file is damaged.
    """
    return read_object(path, _Row, remedy="remove it and run again")


class _Row(typing_extensions.TypedDict):
    """A `Measurement` in a file, with the seconds that the edits took."""

    edits: int
    retention: float
    paraphrase: float
    neighborhood: float
    perplexity: float
    seconds: float
