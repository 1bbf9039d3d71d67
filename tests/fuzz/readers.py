"""The table of readers: for each, a small valid file and how it is read.

A reader that is added here gets all damage of its format: to its bytes, its fields and its path.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import yaml

import rome_jax
from rome_jax import evaluation
from rome_jax.data.corpus import open_corpus
from rome_jax.edit.config import MethodName
from rome_jax.edit.method import METHODS, read_config
from rome_jax.edit.resources import read_hypernetwork
from rome_jax.edit.stages import contexts
from rome_jax.evaluation import datasets, snippets, summaries
from rome_jax.models import runs
from rome_jax.models.registry import known_config
from rome_jax.moments import files as moment_files
from rome_jax.moments import load_reference, state
from rome_jax.trace import facts, result
from tests.fuzz import examples
from tests.fuzz.reader import Reader
from tests.golden_cases import GOLDEN

_CF, _ZS = datasets.DatasetName


# Methods with hyperparameter files of the original code. Those of FT-attn are as those of FT-L.
_WITH_HPARAMS = tuple(
    MethodName[name] for name in ("ROME", "FT", "FT_L", "KN", "MEND", "KE", "MEMIT")
)


def _hparams(name: MethodName, in_yaml: bool = False) -> Reader:
    """Returns the reader of the original's hyperparameter files for a method, or of those of EasyEdit in YAML."""
    values = {
        MethodName.ROME: examples.ROME_HPARAMS,
        MethodName.MEMIT: examples.ROME_HPARAMS | {"layers": [1, 2], "mom2_update_weight": 15000.0},
        MethodName.FT: examples.FT_HPARAMS | {"norm_constraint": False},
        MethodName.FT_L: examples.FT_HPARAMS | {"norm_constraint": 5e-4},
        MethodName.KN: {"model_name": "gpt2-xl", "lr_scale": 1.0, "n_toks": 1, "refine": False}
        | {"batch_size": 20, "steps": 20, "adaptive_threshold": 0.2, "p": 0.5},
        MethodName.MEND: {"lr_scale": 1.0, "n_toks": 1, "model_name": "gpt2-xl"}
        | {"counterfact": False, "mini": False, "zsre": False},
        MethodName.KE: {"lr_scale": 1.0, "n_toks": 1, "model_name": "gpt2-xl"}
        | {"counterfact": False, "mini": False, "zsre": False},
    }[name]
    if name is MethodName.MEMIT:
        del values["context_template_length_params"]
        values["layer_selection"] = "all"
    fields = {field.name for field in dataclasses.fields(METHODS[name].config_type)} & set(values)
    reader = Reader(
        name=f"hparams-{name}",
        area="configs",
        form="json",
        make=examples.json_file("hparams.json", values),
        read=lambda path: read_config(name, "gpt2-xl", hparams_fname=path),
        typed=sorted(fields - {"norm_constraint"}),
        harmless=("crlf", "is-yaml", "is-jsonl", "root=*empty-object", "first-*", "flip-*"),
        whole=name is MethodName.ROME,
    )
    if not in_yaml:
        return reader
    content = yaml.safe_dump(values, allow_unicode=True)
    make = examples.text_file("hparams.yaml", content)
    return dataclasses.replace(reader, name=f"hparams-yaml-{name}", form="yaml", make=make)


READERS: tuple[Reader, ...] = (
    Reader(
        "counterfact",
        "data",
        "json",
        examples.json_file(
            "cf.json", [examples.COUNTERFACT, {**examples.COUNTERFACT, "case_id": 8}]
        ),
        lambda path: datasets.load_dataset(_CF, path=path),
        required=("root", "0", "0.requested_rewrite", "0.requested_rewrite.prompt")
        + ("0.requested_rewrite.subject", "0.requested_rewrite.target_new", "0.*.str")
        + ("0.requested_rewrite.target_true",),
        typed=("0.case_id", "0.paraphrase_prompts*", "0.neighborhood_prompts*"),
        harmless=("0.case_id=null",),
    ),
    Reader(
        "counterfact-flat",
        "data",
        "json",
        examples.json_file("flat.json", [examples.FLAT]),
        lambda path: datasets.load_dataset(_CF, path=path),
        required=("root", "0", "0.prompt", "0.subject", "0.target_new", "0.ground_truth"),
        typed=("0.case_id", "0.rephrase_prompt"),
        harmless=("0.target_new=*list", "0.ground_truth=*list", "0.rephrase_prompt=*list")
        + ("0.case_id=null", "0.rephrase_prompt=null"),
        whole=False,
    ),
    Reader(
        "zsre",
        "data",
        "json",
        examples.json_file("zsre.json", [examples.ZSRE]),
        lambda path: datasets.load_dataset(_ZS, path=path),
        required=("root", "0", "0.subject", "0.src", "0.answers*"),
        typed=("0.rephrase", "0.loc", "0.loc_ans"),
        harmless=("0.*=*list", "0.answers.0-missing"),
        whole=False,
    ),
    Reader(
        "snippets",
        "data",
        "json",
        examples.json_file("snippets.json", [examples.GROUP]),
        examples.read_snippets,
        required=("root", "0", "0.samples", "0.samples.0", "0.samples.0.text"),
        harmless=("root=empty-list", "utf-16*", "bom"),
    ),
    Reader(
        "tfidf-vocabulary",
        "data",
        "json",
        examples.tfidf("tfidf_vocab.json"),
        lambda path: snippets.load_tfidf(path.parent),
        required=("root", "rome", "é", "city"),
    ),
    Reader(
        "tfidf-weights",
        "data",
        "npy",
        examples.tfidf("idf.npy"),
        lambda path: snippets.load_tfidf(path.parent),
    ),
    Reader(
        "facts",
        "data",
        "json",
        examples.json_file("facts.json", [examples.FACT]),
        facts.open_facts,
        required=("root", "0", "0.known_id", "0.subject", "0.attribute", "0.prompt"),
    ),
    Reader(
        "templates",
        "configs",
        "json",
        examples.json_file("templates.json", ["{}", "Zoé is here. {}"]),
        contexts.read_templates,
        required=("root", "0"),
        whole=False,
    ),
    Reader(
        "corpus-text",
        "data",
        "text",
        examples.text_file("texts.txt", examples.TEXT),
        lambda path: list(open_corpus(str(path)).read(0)),
        harmless=("directory", "twice", "zeros", "is-*"),
    ),
    Reader(
        "corpus-jsonl",
        "data",
        "jsonl",
        examples.text_file(
            "texts.jsonl",
            "\n".join(json.dumps(line, ensure_ascii=False) for line in examples.LINES),
        ),
        lambda path: list(open_corpus(str(path)).read(0)),
        required=("root", "text"),
        harmless=("directory", "*=null"),
    ),
    Reader(
        "corpus-parquet",
        "data",
        "parquet",
        lambda folder: examples.write_parquet(
            folder / "texts.parquet", ["Zoé is a café.", "Ana"] * 20
        ),
        lambda path: list(open_corpus(str(path)).read(0)),
        harmless=("directory", "twice", "zeros", "column-of-bytes"),
    ),
    Reader(
        "case",
        "data",
        "json",
        lambda folder: examples.copy_of(GOLDEN / "summarize_run" / "run_000", "case_0.json")(
            folder
        ),
        lambda path: evaluation.make_rows(
            {"run": evaluation.summarize(evaluation.read_cases(path.parent))}
        ),
        required=("root", "case_id", "post"),
        typed=("post.rewrite_prompts_probs*", "time"),
        harmless=("missing", "*link*", "post.*=nan", "post.*=inf", "post.*=1e400", "time=*"),
        names=("case 0", "copy"),
    ),
    Reader(
        "run-settings",
        "data",
        "json",
        examples.run,
        lambda path: runs.open_run(path.parent, {"seed": 0, "model": "é"}),
        required=("root", "settings", "settings.seed"),
        harmless=("missing", "*link*"),
        names=("run",),
    ),
    Reader(
        "run-source",
        "data",
        "json",
        examples.run,
        lambda path: summaries.Source.read(path.parent),
        harmless=("*",),
    ),
    Reader(
        "trace",
        "edits",
        "npz",
        examples.trace,
        lambda path: result.load_trace(path).indirect_effect,
        required=examples.TRACE_ARRAYS,
        harmless=("*_tokens:texts", "answer:*", "flip-*", "twice", "zeros"),
    ),
    Reader(
        "edit",
        "edits",
        "safetensors",
        examples.edit,
        examples.read_edit,
        required=("root", "format", "edits", "edits.0", "edits.0.updates", "edits.0.provenance"),
        typed=(
            "edits.0.provenance.method",
            "edits.0.provenance.requests",
            "edits.0.provenance.model",
        ),
        checksum=True,
        harmless=("twice",),
    ),
    Reader(
        "moments",
        "models",
        "safetensors",
        examples.moments,
        lambda path: moment_files.load(path.parent),
        required=("root", "tokens"),
        typed=("fingerprint", "model", "articles", "layer", "rows"),
        checksum=True,
        names=("stats",),
        harmless=("triangle:dtype-int",),
    ),
    Reader(
        "moments-of-the-original",
        "models",
        "npz",
        lambda folder: Path(
            shutil.copy(
                next((GOLDEN / "stats_files" / "gpt2").glob("*h.1.*.npz")), folder / "c.npz"
            )
        ),
        load_reference,
        required=("mom2.mom2", "mom2.count"),
        harmless=("flip-*", "twice", "zeros"),
    ),
    Reader(
        "unfinished-collection",
        "models",
        "safetensors",
        examples.unfinished_collection,
        lambda path: state.read_state(path, examples.tiny()),
        required=("root", "layers", "counts", "tokens"),
        typed=("counts.*",),
        checksum=True,
    ),
    Reader(
        "hypernetwork",
        "models",
        "safetensors",
        examples.network,
        lambda path: read_hypernetwork(
            str(path), examples.tiny(), MethodName.MEND, examples.MEND_CONFIG
        ),
        required=("root", "format", "kind", "config", "config.layers"),
        typed=("config.rank", "config.lr_scale", "model", "about"),
        checksum=True,
        harmless=("metadata.model=null", "metadata.about=*"),
    ),
    Reader(
        "model-config",
        "models",
        "json",
        examples.copy_of(GOLDEN / "ckpt" / "gpt2", "config.json"),
        lambda path: known_config(str(path.parent)),
        required=("root", "model_type", "n_embd", "n_head", "n_layer", "vocab_size", "n_positions"),
        names=("copy",),
    ),
    Reader(
        "weights",
        "models",
        "safetensors",
        examples.copy_of(GOLDEN / "ckpt" / "gpt2", "model.safetensors"),
        lambda path: rome_jax.load_model(path.parent),
        harmless=("*:nan", "*:inf", "flip-*", "zeros", "twice", "no-metadata", "metadata*"),
        names=("copy",),
    ),
    Reader(
        "shards",
        "models",
        "json",
        examples.shards,
        lambda path: rome_jax.load_model(path.parent),
        required=("root", "weight_map"),
        harmless=("flip-*", "first-*"),
        names=("copy",),
    ),
    Reader(
        "tokenizer",
        "models",
        "json",
        examples.copy_of(GOLDEN / "ckpt" / "gpt2", "tokenizer.json"),
        lambda path: rome_jax.load_model(path.parent),
        required=("root", "model"),
        harmless=("missing", "*link*", "flip-*", "first-*", "utf-16*", "bom", "latin-1", "*-twice"),
        names=("copy",),
    ),
    Reader(
        "orbax",
        "models",
        "json",
        examples.orbax("model.json"),
        lambda path: rome_jax.load_orbax(path.parent),
        required=("root", "format", "config", "dtypes", "fingerprint"),
        names=("orbax",),
    ),
    *(
        Reader(
            f"orbax-{name}",
            "models",
            "opaque",
            examples.orbax(name),
            lambda path: rome_jax.load_orbax(path.parents[1]),
            harmless=("*",),  # some of these files only speed up reading
            names=("orbax",),
        )
        for name in ("_METADATA", "manifest.ocdbt")
    ),
    *(
        Reader(
            "weights-pytorch",
            "models",
            "opaque",
            examples.pytorch,
            lambda path: rome_jax.load_model(path.parent),
            harmless=("flip-*", "zeros", "twice"),
            names=("copy",),
        )
        for _ in range(importlib.util.find_spec("torch") is not None)
    ),
    *(
        Reader(
            "weights-gguf",
            "models",
            "opaque",
            examples.gguf,
            rome_jax.load_model,
            harmless=("flip-*", "zeros", "twice"),  # the format has no checksums
        )
        for _ in range(importlib.util.find_spec("gguf") is not None)
    ),
    *map(_hparams, _WITH_HPARAMS),
    _hparams(MethodName.ROME, in_yaml=True),
)
