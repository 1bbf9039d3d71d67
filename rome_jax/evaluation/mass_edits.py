"""Up to a thousand edits in one embedded model: by MEMIT at once, by ROME one after another, measured at some counts.

    OUTPUT_DIR/run.json             settings and versions
    OUTPUT_DIR/METHOD_COUNT.json    a `Measurement` of the model with COUNT edits, and the seconds that these took

What is there is not computed again.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rome_jax.edit.delta import apply_delta
from rome_jax.edit.method import METHODS, Editor, MethodName
from rome_jax.edit.methods import memit, rome
from rome_jax.evaluation.datasets import CounterFactRecord, parse_counterfact
from rome_jax.evaluation.sequence import measure, unedited_texts
from rome_jax.factworld.facts import World
from rome_jax.factworld.records import Role, counterfact_records
from rome_jax.files.progress import tqdm
from rome_jax.models import runs
from rome_jax.models.registry import LanguageModel

MOST = 1000


def read_counts(values: Sequence[str]) -> list[int]:
    """The numbers of edits that --counts names, ascending.

    Raises:
      ValueError: none, or one that is no number from 1 to 1,000.
    """
    wrong = [value for value in values if not (value.isdecimal() and 1 <= int(value) <= MOST)]
    if wrong or not values:
        raise ValueError(f"--counts={','.join(values)}: give whole numbers from 1 to {MOST}.")
    return sorted(set(map(int, values)))


def choose_records(world: World, seed: int) -> list[CounterFactRecord]:
    """A thousand edit requests: the held-out ones, which are fewer, and then tuning ones."""
    parts = (counterfact_records(world, seed, role) for role in (Role.HELD_OUT, Role.TUNING))
    return parse_counterfact(list(itertools.chain(*parts))[:MOST])


def prepare_editors(model: LanguageModel, *, seed: int = 0, chunk_size: int = 8) -> list[Editor]:
    """ROME and MEMIT, made ready for an embedded model.

    Args:
      model: an embedded one.
      seed: of the context templates.
      chunk_size: requests that MEMIT optimises side by side.
    """
    return [
        Editor.prepare(
            name, model, METHODS[name].for_model(model.name), seed=seed, chunk_size=chunk_size
        )
        for name in (MethodName.ROME, MethodName.MEMIT)
    ]


def memit_models(
    editor: Editor, records: Sequence[CounterFactRecord], counts: Sequence[int]
) -> Iterator[LanguageModel]:
    """For each count, the model that holds the first requests, all written at once."""
    for count in counts:
        requests = [record.request for record in records[:count]]
        delta = memit.compute_joint_delta(editor.model, requests, editor.config, **editor.options)
        yield editor.model.replace(params=apply_delta(editor.model.params, delta))


def rome_models(
    editor: Editor, records: Sequence[CounterFactRecord], counts: Sequence[int]
) -> Iterator[LanguageModel]:
    """For each count, in ascending order, the model that holds the first requests, written one after another.

    A model is written over when the next one is asked for.
    """
    requests = [record.request for record in records[: max(counts, default=0)]]
    options = {name: editor.options[name] for name in ("second_moments", "templates")}
    sequence = rome.compute_sequence(editor.model, requests, editor.config, **options)
    sequence = tqdm(sequence, total=len(requests), unit="edit", desc="ROME")
    for done, (model, _) in enumerate(sequence, 1):
        if done in counts:
            yield model


_MODELS = {MethodName.ROME: rome_models, MethodName.MEMIT: memit_models}


@dataclasses.dataclass(frozen=True)
class MassEdits:
    """Measurements of two methods on one model, in a folder.

    Attributes:
      directory: see above.
      editors: of ROME and MEMIT, on the same model.
      world: of the facts.
      records: the edit requests, in their order.
      texts: about subjects that none of them names.
    """

    directory: Path
    editors: tuple[Editor, ...]
    world: World = dataclasses.field(repr=False)
    records: Sequence[CounterFactRecord] = dataclasses.field(repr=False)
    texts: Sequence[str] = dataclasses.field(repr=False)

    @classmethod
    def open(
        cls, directory: str | Path, editors: Sequence[Editor], world: World, seed: int
    ) -> MassEdits:
        """Begins a run, or resumes one of the same settings.

        Args:
          directory: new, or that of a run.
          editors: of ROME and MEMIT, on the same model.
          world: of the facts.
          seed: of the requests and texts.

        Raises:
          ValueError: a run of other settings, which are named.
        """
        settings = {
            **runs.describe_model(editors[0].model),
            **{editor.algorithm: editor.config.to_dict() for editor in editors},
            "template_seeds": [editor.seed for editor in editors],
            "seed": seed,
        }
        runs.open_run(directory, settings, cases="*_*.json", remedy="give another --output_dir")
        records = choose_records(world, seed)
        texts = unedited_texts(world, records, seed)
        return cls(Path(directory), tuple(editors), world, records, texts)

    def path(self, algorithm: MethodName, count: int) -> Path:
        """The file of a measurement."""
        return self.directory / f"{algorithm}_{count:04d}.json"

    def measure(self, counts: Sequence[int]) -> None:
        """Measures both methods at the counts that are not there yet."""
        for editor in self.editors:
            algorithm = editor.algorithm
            todo = sorted({c for c in counts if not self.path(algorithm, c).exists()})
            models, seconds = _MODELS[algorithm](editor, self.records, todo), 0.0
            for count in todo:
                begun = time.monotonic()
                model = next(models)
                # A sequence continues where it was; MEMIT begins anew.
                seconds = time.monotonic() - begun + seconds * (algorithm is MethodName.ROME)
                runs.write_json(self.path(algorithm, count), self._look(model, count, seconds))

    def report(self, counts: Sequence[int]) -> dict[str, Any]:
        """All measurements at some counts, by method, with the unedited model's and the settings."""
        about = runs.read_run(self.directory)
        return {
            "model": about["settings"]["model"],
            **about,
            "before": self._look(self.editors[0].model, max(counts), 0.0),
            "runs": {
                editor.algorithm.value: [
                    _read(self.path(editor.algorithm, count)) for count in sorted(set(counts))
                ]
                for editor in self.editors
            },
        }

    def _look(self, model: LanguageModel, count: int, seconds: float) -> dict[str, Any]:
        found = measure(model, self.world, self.records[:count], self.texts)
        return dataclasses.asdict(found) | {"seconds": seconds}


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it and run again.") from error
