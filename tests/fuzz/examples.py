"""Small valid files of every kind."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import rome_jax
from rome_jax.edit.hypernetworks import networks
from rome_jax.evaluation import snippets
from rome_jax.files import safetensors_io
from rome_jax.models import runs
from rome_jax.models.registry import LanguageModel
from rome_jax.moments import files as moment_files
from rome_jax.moments import state
from rome_jax.trace import result
from tests import saved
from tests.edit.networks import MEND_CONFIG, random_hypernetwork
from tests.golden_cases import GOLDEN
from tests.models.gguf_models import tiny_config, write_gguf


@functools.cache
def tiny() -> LanguageModel:
    """The random GPT-2 of the golden numbers."""
    return rome_jax.load_model(GOLDEN / "ckpt" / "gpt2")


def json_file(name: str, content: Any) -> Callable[[Path], Path]:
    """Returns a function that writes JSON."""

    def make(folder: Path) -> Path:
        path = folder / name
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return path

    return make


def copy_of(source: Path, name: str) -> Callable[[Path], Path]:
    """Returns a function that copies a folder and names a file in it."""

    def make(folder: Path) -> Path:
        shutil.copytree(source, folder / "copy")
        return folder / "copy" / name

    return make


def write_parquet(path: Path, values: Any, column: str = "text") -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({column: values}), path)
    return path


def text_file(name: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content, encoding="utf-8")
        return folder / name

    return make


def tfidf(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.save(folder / "idf.npy", np.array([1.0, 2.0, 1.5]))
        json_file("tfidf_vocab.json", {"rome": 0, "é": 1, "city": 2})(folder)
        return folder / name

    return make


def orbax(name: str) -> Callable[[Path], Path]:
    """Returns a function that writes an Orbax checkpoint and names a file in it."""

    def make(folder: Path) -> Path:
        rome_jax.save_orbax(folder / "orbax", tiny())
        return next((folder / "orbax").rglob(name))

    return make


def shards(folder: Path) -> Path:
    """Writes a checkpoint in two files, and returns the path of their index."""
    shutil.copytree(GOLDEN / "ckpt" / "gpt2", folder / "copy")
    whole = folder / "copy" / "model.safetensors"
    tensors = safetensors_io.read_header(whole)
    weight_map = {}
    for number, names in enumerate((sorted(tensors)[:5], sorted(tensors)[5:]), 1):
        name = f"model-0000{number}-of-00002.safetensors"
        specs = {one: (tensors[one].dtype, tensors[one].shape) for one in names}
        arrays = (tensors[one].read() for one in names)
        safetensors_io.write(folder / "copy" / name, specs, arrays, {"format": "pt"})
        weight_map |= dict.fromkeys(names, name)
    whole.unlink()
    content = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    return json_file("model.safetensors.index.json", content)(folder / "copy")


def pytorch(folder: Path) -> Path:
    """Writes a checkpoint in PyTorch's format."""
    import torch
    from safetensors.torch import load_file

    shutil.copytree(GOLDEN / "ckpt" / "gpt2", folder / "copy")
    weights = folder / "copy" / "model.safetensors"
    torch.save(load_file(weights), folder / "copy" / "pytorch_model.bin")
    weights.unlink()
    return folder / "copy" / "pytorch_model.bin"


def moments(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((40, 12))
    provenance = rome_jax.moments.MomentProvenance(model="tiny", layer=3, corpus="é", articles=2)
    moment = rome_jax.SecondMoment(keys.T @ keys / 40, 40, provenance)
    moment_files.save(folder / "stats", {3: moment})
    return folder / "stats" / "layer_3.safetensors"


def gguf(folder: Path) -> Path:
    write_gguf(folder / "tiny.gguf", tiny_config(), folder / "checkpoint")
    return folder / "tiny.gguf"


def unfinished_collection(folder: Path) -> Path:
    model = tiny()
    begun = state.State.new(model, [1])
    width = model.config.mlp_width
    for half in begun.halves:
        half.totals[1] = np.arange(float(width**2)).reshape(width, width)
    begun.keys[1] = np.ones((2, width), np.float32)
    begun.waiting.append(np.arange(3, dtype=np.int32))
    path = folder / "unfinished.safetensors"
    state.write_state(path, begun, {"corpus": "é"})
    return path


def network(folder: Path) -> Path:
    network = random_hypernetwork(MEND_CONFIG, tiny().config)
    return networks.save(folder / "network.safetensors", network)


@functools.cache
def random_edit() -> rome_jax.SavedEdit:
    """A random edit of `tiny()`."""
    return saved.random_edit(tiny())


def edit(folder: Path) -> Path:
    return rome_jax.save_edits(folder / "edit.safetensors", [random_edit()])


def read_edit(path: Path) -> None:
    rome_jax.apply_edits(tiny(), rome_jax.load_edits(path), force=True)


def trace(folder: Path) -> Path:
    case = result.TraceResult(
        scores=np.array([[0.2, 0.9, 0.4], [0.1, 0.3, 0.5]], np.float32),
        low_score=0.1,
        high_score=0.9,
        input_ids=np.array([5, 7]),
        input_tokens=("Rome", " is"),
        subject_range=(0, 1),
        answer=" in",
        kind=rome_jax.TraceKind.HIDDEN,
        window=10,
        tokens=(0, 1),
    )
    result.save_trace(folder / "knowledge_0.npz", case)
    return folder / "knowledge_0.npz"


def run(folder: Path) -> Path:
    runs.open_run(folder / "run", {"seed": 0, "model": "é"})
    return folder / "run" / "run.json"


ROME_HPARAMS = {
    "layers": [17],
    "fact_token": "subject_last",
    "v_num_grad_steps": 20,
    "v_lr": 5e-1,
    "v_loss_layer": 47,
    "v_weight_decay": 0.5,
    "clamp_norm_factor": 4.0,
    "kl_factor": 0.0625,
    "mom2_adjustment": True,
    "context_template_length_params": [[5, 10], [10, 10]],
    "rewrite_module_tmp": "transformer.h.{}.mlp.c_proj",
    "layer_module_tmp": "transformer.h.{}",
    "mom2_dataset": "wikipedia",
    "mom2_n_samples": 100000,
    "mom2_dtype": "float32",
}
FT_HPARAMS = {
    "layers": [0],
    "num_steps": 25,
    "lr": 5e-4,
    "weight_decay": 0.0,
    "kl_factor": 0.0,
    "batch_size": 1,
    "max_length": 40,
    "rewrite_module_tmp": "transformer.h.{}.mlp.c_proj",
}
COUNTERFACT = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} is a café in",
        "relation_id": "P30",
        "subject": "Zoé",
        "target_new": {"str": "Rome", "id": "Q1"},
        "target_true": {"str": "Paris", "id": "Q2"},
    },
    "paraphrase_prompts": ["Zoé is in"],
    "neighborhood_prompts": ["Ana is in"],
    "attribute_prompts": ["Ida is in"],
    "generation_prompts": ["Zoé was"],
}
ZSRE = {
    "subject": "Zoé",
    "src": "Where is Zoé?",
    "rephrase": "In which city is Zoé?",
    "answers": ["Rome"],
    "loc": "nq question: who wrote emma",
    "loc_ans": "Jane Austen",
}
# The settings and the measurement of a sequence of one edit, as far as eval.compare_sequences reads them.
SEQUENCE = {"settings": {"alg_name": "ROME", "batch_size": 1, "model": "tiny", "newest": 10}}
_KINDS = ("efficacy", "paraphrase", "neighborhood")
_SCORES = {kind + way: 50.0 for kind in _KINDS for way in ("", "_generated")}
MEASURED = {
    "edits": 1,
    "newest": {"records": 1, "of": 1, **_SCORES, "neighbors": 1, "neighbors_edited": 0},
    **dict.fromkeys(("earlier", "requests", "residual", "finished", "stopped")),
    "perplexity": 2.0,
    "kl": 0.1,
    "norm_ratios": {"0": 0.1},
    "seconds_per_edit": 0.5,
}

FLAT = {
    "case_id": 7,
    "prompt": "Zoé is in",
    "subject": "Zoé",
    "target_new": "Rome",
    "ground_truth": "Paris",
    "rephrase_prompt": "Zoé is a café in",
    "locality_prompt": "Ana is in",
    "locality_ground_truth": "Paris",
}
FACT = {
    "known_id": 0,
    "subject": "Zoé",
    "attribute": "Rome",
    "template": "{} is in",
    "prediction": " Rome",
    "prompt": "Zoé is in",
    "relation_id": "P30",
}
GROUP = {
    "relation_id": "P30",
    "target_id": "Q1",
    "samples": [{"name": "Zoé", "text": "Zoé is a café."}],
}
TEXT = "Zoé is a café in Rome.\nIt is old.\n\nAna is a city.\n"
LINES = [{"text": "Zoé is a café."}, {"text": "Ana is a city."}]
TRACE_ARRAYS = (
    "scores low_score high_score input_ids input_tokens subject_range answer window".split()
)


def read_snippets(path: Path) -> None:
    found = snippets.load_snippets(path)
    for attribute in list(found.places)[:3]:
        found.texts(*attribute)
