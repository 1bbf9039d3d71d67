"""The table of files and folders whose parts are valid and do not fit together: all are refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import rome_jax
from rome_jax.data.corpus import open_corpus
from rome_jax.edit.config import MethodName
from rome_jax.edit.resources import read_hypernetwork
from rome_jax.edit.stages.contexts import read_templates
from rome_jax.evaluation import case_files, datasets, snippets
from rome_jax.files import safetensors_io
from rome_jax.moments import sources
from rome_jax.trace import facts
from tests.fuzz import examples
from tests.fuzz.cases import Attempt, Case, Expect, attempt_call
from tests.golden_cases import GOLDEN
from tests.programs import load_shipped_once

Make = Callable[[Path], object]
_CF, _ZS = datasets.DatasetName


@dataclasses.dataclass(frozen=True)
class Further:
    """Files that do not fit together.

    Attributes:
      name: What is wrong.
      area: The part of the library that has to notice it.
      make: Writes them to a folder.
      read: Reads them from the folder.
      names: Words of which the message must contain one.
    """

    name: str
    area: str
    make: Make
    read: Callable[[Path], Any]
    names: tuple[str, ...]

    def attempt(self, folder: Path) -> Attempt:
        """Writes and reads the files in an empty folder."""
        self.make(folder)
        return attempt_call(lambda: self.read(folder), *self.names)


def cases() -> Iterator[Case]:
    """Yields one case per entry of the table."""
    for one in FURTHER:
        run = functools.partial(Further.attempt, one)
        yield Case(f"file/further/{one.name}", "file: does not fit", one.area, Expect.REFUSE, run)


def _config(**changes: Any) -> Make:
    """Changes the config.json of a checkpoint."""

    def make(folder: Path) -> None:
        path = examples.copy_of(GOLDEN / "ckpt" / "gpt2", "config.json")(folder)
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return make


def _tokenizer(change: Callable[[dict[str, Any]], object]) -> Make:
    """Changes the tokenizer.json of a checkpoint."""

    def make(folder: Path) -> None:
        path = examples.copy_of(GOLDEN / "ckpt" / "gpt2", "tokenizer.json")(folder)
        content = json.loads(path.read_text())
        change(content["model"])
        path.write_text(json.dumps(content))

    return make


def _tensors(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Make:
    """Changes the weights of a checkpoint."""

    def make(folder: Path) -> None:
        path = examples.copy_of(GOLDEN / "ckpt" / "gpt2", "model.safetensors")(folder)
        read = safetensors_io.read_header(path)
        arrays = change({name: np.array(tensor.read()) for name, tensor in read.items()})
        specs = {name: (array.dtype, array.shape) for name, array in arrays.items()}
        safetensors_io.write(path, specs, arrays.values(), {"format": "pt"})

    return make


def _shards(shard: Callable[[str], str]) -> Make:
    """Changes the names of shards in an index."""

    def make(folder: Path) -> None:
        path = examples.shards(folder)
        content = json.loads(path.read_text())
        content["weight_map"] = {k: shard(v) for k, v in content["weight_map"].items()}
        path.write_text(json.dumps(content))

    return make


def _without(*names: str) -> Make:
    """Removes files of a checkpoint."""

    def make(folder: Path) -> None:
        shutil.copytree(GOLDEN / "ckpt" / "gpt2", folder / "copy")
        for name in names:
            (folder / "copy" / name).unlink()

    return make


def _adapter(folder: Path) -> None:
    (folder / "copy").mkdir()
    examples.json_file("adapter_config.json", {"peft_type": "LORA"})(folder / "copy")
    safetensors_io.write(folder / "copy" / "adapter_model.safetensors", {}, [])


def _rank_zero(folder: Path) -> None:
    """Writes an edit whose factors have no column."""
    path = examples.edit(folder)
    file = safetensors_io.open_file(path)
    arrays = {name: np.array(tensor.read()) for name, tensor in file.tensors.items()}
    arrays = {name: array[:, :0] if array.ndim else array for name, array in arrays.items()}
    specs = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    metadata = {"rome_jax": file.metadata["rome_jax"]}
    safetensors_io.write(path, specs, arrays.values(), metadata)


def _other_layer(folder: Path) -> None:
    """Names the second moments of one layer after another."""
    path = examples.moments(folder)
    path.rename(path.with_name("layer_1.safetensors"))


def _json(*records: Any) -> Make:
    return examples.json_file("mine.json", list(records))


def _load(folder: Path) -> rome_jax.LanguageModel:
    return rome_jax.load_model(folder / "copy")


def _records(name: datasets.DatasetName) -> Callable[[Path], datasets.Dataset]:
    return lambda folder: datasets.load_dataset(name, path=folder / "mine.json")


def _cases(folder: Path) -> None:
    case = json.dumps({"case_id": 0, "post": {"rewrite_prompts_exact": [True]}})
    for name in ("case_0.json", "10_edits-case_0.json"):
        (folder / name).write_text(case)


def _saved_dataset(*names: str) -> Make:
    """Writes a folder of `save_to_disk` without its tables."""

    def make(folder: Path) -> None:
        for name in names:
            (folder / "saved" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "saved" / name).write_text("{}")

    return make


_EASYEDIT = {"case_id": 0, "requested_rewrite": examples.FLAT, "post": {"rewrite_acc": [1.0]}}
_REWRITE = examples.COUNTERFACT["requested_rewrite"]
_OTHER = {**examples.COUNTERFACT, "requested_rewrite": {**_REWRITE, "subject": "Rome"}}
FURTHER: tuple[Further, ...] = (
    *(
        Further(f"config-{name}", "models", make, _load, ("copy",))
        for name, make in {
            "heads-do-not-divide": _config(n_head=5),
            "fewer-tokens": _config(vocab_size=10),
            "more-tokens": _config(vocab_size=5000),
            "fewer-positions": _config(n_positions=3),
            "more-layers": _config(n_layer=9),
            "fewer-layers": _config(n_layer=2),
            "other-family": _config(model_type="gptj", rotary_dim=4),
            "no-heads": _config(n_head=0),
            "huge-width": _config(n_embd=1 << 23),
            "untied": _config(tie_word_embeddings=False),
            "quantized": _config(quantization_config={"bits": 4}),
            "rotary": _config(rotary_dim=3),
            "absent": _without("config.json"),
        }.items()
    ),
    *(
        Further(f"weights-{name}", "models", make, _load, ("copy",))
        for name, make in {
            "absent": _without("model.safetensors"),
            "none": _tensors(lambda found: {}),
            "in-a-wrapper": _tensors(lambda found: {f"module.{n}": a for n, a in found.items()}),
            "double": _tensors(lambda found: {n: a.astype(np.float64) for n, a in found.items()}),
            "integers": _tensors(lambda found: {n: a.astype(np.int8) for n, a in found.items()}),
            "transposed": _tensors(lambda found: {n: a.T.copy() for n, a in found.items()}),
            "twice": _tensors(
                lambda found: (
                    found | {n.removeprefix("transformer."): a for n, a in found.items()}
                    if any(n.startswith("transformer.") for n in found)
                    else found | {f"transformer.{n}": a for n, a in found.items()}
                )
            ),
            "other-head": _tensors(
                lambda found: (
                    found
                    | {
                        "lm_head.weight": np.ones_like(
                            next(a for n, a in found.items() if "wte" in n)
                        )
                    }
                )
            ),
        }.items()
    ),
    *(
        Further(f"shards-{name}", "models", make, _load, ("copy",))
        for name, make in {
            "above": _shards(lambda name: f"../{name}"),
            "absolute": _shards(lambda name: f"/nowhere/{name}"),
            "absent": _shards(lambda name: f"x{name}"),
            "themselves": _shards(lambda name: "model.safetensors.index.json"),
            "one-only": _shards(lambda name: name.replace("1-of", "2-of")),
            "empty-name": _shards(lambda name: ""),
            "folder": _shards(lambda name: "."),
        }.items()
    ),
    Further(
        "model-file",
        "models",
        _without(),
        lambda folder: rome_jax.load_model(folder / "copy" / "model.safetensors"),
        ("it is a file",),
    ),
    Further("adapter", "models", _adapter, _load, ("adapter",)),
    Further("tokenizer-absent", "models", _without("tokenizer.json"), _load, ("copy",)),
    Further(
        "tokenizer-without-merges",
        "models",
        _tokenizer(lambda model: model.update(merges=[])),
        _load,
        ("merges",),
    ),
    Further(
        "tokenizer-beyond-the-embeddings",
        "models",
        _tokenizer(lambda model: model["vocab"].update({"fuzz": 100_000})),
        _load,
        ("copy",),
    ),
    Further(
        "hypernetwork-of-another-size",
        "models",
        examples.network,
        lambda folder: read_hypernetwork(
            str(folder / "network.safetensors"),
            load_shipped_once("factworld-gpt2"),
            MethodName.MEND,
            examples.MEND_CONFIG,
        ),
        ("network.safetensors",),
    ),
    Further(
        "edit-of-rank-zero",
        "edits",
        _rank_zero,
        lambda folder: rome_jax.load_edits(folder / "edit.safetensors"),
        ("edit.safetensors",),
    ),
    Further(
        "edit-of-another-model",
        "edits",
        examples.edit,
        lambda folder: rome_jax.apply_edits(
            rome_jax.load_model(GOLDEN / "ckpt" / "gptj"),
            rome_jax.load_edits(folder / "edit.safetensors"),
        ),
        ("fingerprint", "model"),
    ),
    Further(
        "moments-of-another-layer",
        "models",
        _other_layer,
        lambda folder: sources.read(folder / "stats", [1], examples.tiny()),
        ("layer",),
    ),
    Further(
        "moments-of-another-model",
        "models",
        examples.moments,
        lambda folder: sources.read(folder / "stats", [3], examples.tiny()),
        ("stats",),
    ),
    *(
        Further(f"records-{name}", "data", _json(*records), _records(kind), ("mine.json",))
        for name, kind, records in (
            ("of-a-result", _CF, [_EASYEDIT]),
            ("with-one-id", _CF, [examples.COUNTERFACT, _OTHER]),
            ("of-two-layouts", _CF, [examples.COUNTERFACT, examples.FLAT]),
            ("of-questions", _CF, [examples.ZSRE]),
            ("of-facts", _ZS, [examples.COUNTERFACT]),
            (
                "of-several-edits",
                _CF,
                [{"requested_rewrite": [_REWRITE, _REWRITE], "questions": ["Where?"]}],
            ),
            ("of-no-edit", _CF, [{"requested_rewrite": [], "questions": ["Where?"]}]),
            ("without-the-subject", _CF, [{**examples.FLAT, "prompt": "It is in"}]),
            ("of-unread-prompts", _CF, [{**examples.FLAT, "fuzz_prompts": ["Zoé is"]}]),
            ("of-ripples", _CF, [{"edit": {}, "Relation_Specificity": [{"test_queries": []}]}]),
            ("by-language", _CF, [{"en": examples.FLAT, "de": examples.FLAT}]),
        )
    ),
    Further("cases-of-two-runs", "data", _cases, case_files.read_cases, ("10_edits-case_0.json",)),
    Further(
        "cases-in-one-list",
        "data",
        examples.json_file("results.json", [_EASYEDIT]),
        case_files.read_cases,
        ("case_<id>.json",),
    ),
    Further(
        "case-of-another-program",
        "data",
        examples.json_file("case_0.json", _EASYEDIT),
        case_files.read_cases,
        ("rewrite_acc",),
    ),
    *(
        Further(
            f"saved-dataset-{name}",
            "data",
            _saved_dataset(*files),
            lambda folder: datasets.load_dataset(_CF, path=folder / "saved"),
            ("saved",),
        )
        for name, files in {
            "without-tables": ("state.json", "dataset_info.json"),
            "of-two-splits": ("dataset_dict.json", "train/state.json", "test/state.json"),
            "of-no-split": ("dataset_dict.json",),
        }.items()
    ),
    Further(
        "corpus-of-other-files",
        "data",
        examples.text_file("notes.md", "Rome"),
        lambda folder: open_corpus(str(folder)),
        ("holds no",),
    ),
    Further(
        "facts-with-one-id",
        "data",
        _json(examples.FACT, {**examples.FACT, "prompt": "Zoé was"}),
        lambda folder: facts.open_facts(folder / "mine.json"),
        ("known_id",),
    ),
    *(
        Further(
            f"templates-{name}",
            "configs",
            _json(*found),
            lambda folder: read_templates(folder / "mine.json"),
            ("mine.json", "template"),
        )
        for name, found in (
            ("none", []),
            ("without-a-slot", ["{}", "The file is open."]),
            ("with-two-slots", ["{}", "The {} is {}"]),
            ("of-numbers", ["{}", 17]),
            ("without-the-first", ["The file is open. {}"]),
        )
    ),
    Further(
        "words-and-weights",
        "data",
        lambda folder: (
            examples.tfidf("idf.npy")(folder),
            np.save(folder / "idf.npy", np.ones(5)),
        ),
        snippets.load_tfidf,
        ("belong together",),
    ),
)
