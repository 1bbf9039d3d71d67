"""Models by name: what is found, what is refused and with which message, and saving to a directory."""

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import errors

from rome_jax.files import extras
from rome_jax.files.extras import MissingPackageError
from rome_jax.files.safetensors_io import CheckpointError
from rome_jax.models import export
from rome_jax.models.config import Rotary, RotaryPairs
from rome_jax.models.export import MARKER, save_hf
from rome_jax.models.fingerprint import fingerprint
from rome_jax.models.registry import (
    LanguageModel,
    ModelNotFoundError,
    TokenizerError,
    check_revision,
    load_model,
)
from tests.models.checkpoints import (
    FAMILIES,
    GOLDEN,
    assert_same_params,
    copy_golden,
    golden_model,
    random_params,
    tiny_config,
)


@pytest.fixture(scope="module")
def gpt2() -> LanguageModel:
    return load_model(GOLDEN / "ckpt" / "gpt2")


def one_sentence(error) -> str:
    """Returns the message, which must be one line that ends with a full stop."""
    message = str(error.value)
    assert "\n" not in message and message.endswith(".")
    return message


@pytest.mark.parametrize("family", FAMILIES)
def test_a_directory_loads(family):
    directory = GOLDEN / "ckpt" / family
    model = load_model(str(directory))
    params, config = golden_model(family)
    assert_same_params(model.params, params)
    assert model.config == config
    assert model.source == f"directory {directory}"
    assert model.tokenizer.is_fast
    ids = json.loads((directory / "config.json").read_text())["eos_token_id"]
    assert model.tokenizer.eos_token_id == ids


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.float16])
def test_dtype_and_precision_are_as_asked(dtype):
    model = load_model(GOLDEN / "ckpt" / "gpt2", dtype=dtype, precision="default")
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype(dtype)}
    assert model.config.precision is jax.lax.Precision.DEFAULT


@pytest.mark.parametrize(
    "options",
    [{"dtype": "int8"}, {"dtype": "half-ish"}, {"dtype": "\udce9"}, {"precision": "best"}],
)
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}='") as error:
        load_model(GOLDEN / "ckpt" / "gpt2", **options)
    one_sentence(error)


def test_replace_changes_nothing_else(gpt2):
    other = gpt2.replace(name="edited")
    assert other.name == "edited" and gpt2.name != "edited"
    assert other.params is gpt2.params and other.tokenizer is gpt2.tokenizer


# Names


@pytest.mark.parametrize(
    "name", ["factworld-gpt3", "./not/here", "/not/here", "a/b/c", "", "gpt 2"]
)
def test_unknown_names_list_what_there_is(name, tmp_path):
    with pytest.raises(ModelNotFoundError, match="unknown model") as error:
        load_model(name, offline=True, cache_dir=tmp_path)
    message = one_sentence(error)
    assert repr(name) in message and "factworld-gpt2, factworld-gptj" in message


@pytest.mark.parametrize("name", ["gpt2-xl", "EleutherAI/gpt-j-6B"])
def test_a_hub_name_without_the_hub_says_what_to_do(name, tmp_path):
    with pytest.raises(ModelNotFoundError, match="hf download") as error:
        load_model(name, offline=True, cache_dir=tmp_path)
    assert repr(name) in one_sentence(error)


@pytest.mark.parametrize(
    "failure, words",
    [
        (OSError("no route to host"), "cannot be reached"),
        (errors.LocalEntryNotFoundError("nothing here"), "cannot be reached"),
        (errors.OfflineModeIsEnabled("offline"), "cannot be reached"),
        (type("ConnectTimeout", (Exception,), {})("slow"), "cannot be reached"),
    ],
)
def test_every_way_in_which_the_hub_fails_is_one_sentence(failure, words, monkeypatch):
    calls = []

    def download(*args, **kwargs):
        calls.append(args)
        raise failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelNotFoundError, match=words) as error:
        load_model("gpt2-xl")
    one_sentence(error)
    assert len(calls) == 1


def test_hf_hub_offline_is_respected(tmp_path, monkeypatch):
    # The hub's client reads the environment variable HF_HUB_OFFLINE when it is imported.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match="model 'gpt2-xl' is not on this machine"):
        load_model("gpt2-xl", cache_dir=tmp_path)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """The hub does not answer what files a repository has."""

    def unreachable(*args, **options):
        raise errors.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub, "model_info", unreachable)


class Hub:
    """A substitute for the hub with one repository, from which a call gets the files that match its patterns."""

    def __init__(self, repository: Path, local: Path):
        self.repository, self.local, self.calls = repository, local, []

    def __call__(self, name, *, revision, cache_dir, allow_patterns, local_files_only):
        self.calls.append((name, revision, allow_patterns))
        self.local.mkdir(exist_ok=True)
        for pattern in allow_patterns:
            for path in self.repository.glob(pattern):
                (self.local / path.name).write_bytes(path.read_bytes())
        return str(self.local)


def test_a_hub_model_loads_and_only_what_is_needed_is_fetched(tmp_path, monkeypatch, gpt2):
    repository = copy_golden("gpt2", tmp_path / "repository")
    for name in ("pytorch_model.bin", "tf_model.h5", "model.onnx"):
        (repository / name).write_bytes(b"large")
    hub = Hub(repository, tmp_path / "0123abc")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    model = load_model("someone/gpt2", revision="v1")
    assert_same_params(model.params, gpt2.params)
    assert model.source == "hub someone/gpt2 @ 0123abc"
    assert [call[:2] for call in hub.calls] == [("someone/gpt2", "v1")]
    assert {path.name for path in hub.local.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_pickles_are_fetched_only_where_there_is_nothing_else(tmp_path, monkeypatch):
    repository = copy_golden("gpt2", tmp_path / "repository")
    (repository / "model.safetensors").rename(repository / "pytorch_model.bin")
    hub = Hub(repository, tmp_path / "0123abc")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    # The file is not a pickle; without torch it is not even opened.
    with pytest.raises((CheckpointError, MissingPackageError), match=r"pytorch_model\.bin"):
        load_model("someone/gpt2")
    assert len(hub.calls) == 2


@pytest.mark.parametrize("missing", [True, False])
@pytest.mark.parametrize(
    "files", [["pytorch_model.bin"], ["pytorch_model-1.bin", "model.safetensors"]]
)
def test_missing_torch_is_reported_before_anything_is_downloaded(
    missing, files, tmp_path, monkeypatch
):
    repository = copy_golden("gpt2", tmp_path / "repository")
    hub = Hub(repository, tmp_path / "0123abc")
    asked = []

    def model_info(name, *, revision, timeout):
        asked.append((name, revision))
        names = ["config.json", "tf_model.h5", *files]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    monkeypatch.setattr(extras, "is_installed", lambda package: not missing)
    options = {"revision": "float16", "cache_dir": tmp_path / "cache"}
    if missing and len(files) == 1:
        with pytest.raises(MissingPackageError, match=r"pytorch_model.bin, needs torch") as error:
            load_model("someone/gpt2", **options)
        assert "\n" not in str(error.value) and not hub.calls
    else:
        load_model("someone/gpt2", **options)
        assert hub.calls
    assert asked == [("someone/gpt2", "float16")] * missing


def test_a_revision_is_only_for_the_hub(tmp_path):
    for name in ("factworld-gpt2", GOLDEN / "ckpt" / "gpt2"):
        with pytest.raises(
            ValueError, match="revision='v1' is a version of a model on the"
        ) as error:
            load_model(name, revision="v1")
        one_sentence(error)
    for revision in ("", "../main", "a..b", "a b", "-x", "x" * 300, "a/"):
        with pytest.raises(ValueError, match="give a branch, a tag, or a commit") as error:
            load_model("gpt2-xl", revision=revision, cache_dir=tmp_path)
        one_sentence(error)
    for revision in ("refs/pr/3", "v1.0", "float16", "47e169305d2e8376be1d31e765533382721b2cc1"):
        check_revision("gpt2-xl", revision)


def test_part_of_a_model_in_the_cache_is_not_a_model(tmp_path, monkeypatch):
    repository = copy_golden("gpt2", tmp_path / "repository")
    (repository / "model.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Hub(repository, tmp_path / "0123abc"))
    with pytest.raises(ModelNotFoundError, match="only partly") as error:
        load_model("someone/gpt2")
    one_sentence(error)


# Directories with something wrong


def damaged(tmp_path, change) -> Path:
    directory = copy_golden("gpt2", tmp_path / "model")
    change(directory)
    return directory


def test_a_directory_without_config_is_refused(tmp_path):
    directory = damaged(tmp_path, lambda path: (path / "config.json").unlink())
    with pytest.raises(ModelNotFoundError, match=r"has no config\.json") as error:
        load_model(directory)
    assert str(directory) in one_sentence(error)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_config_is_refused(content, tmp_path):
    directory = damaged(tmp_path, lambda path: (path / "config.json").write_text(content))
    with pytest.raises(CheckpointError, match=r"config\.json") as error:
        load_model(directory)
    one_sentence(error)


@pytest.mark.parametrize("change", ["mark", "text"])
def test_a_config_with_a_byte_order_mark_or_numbers_as_text_loads(change, tmp_path, gpt2):
    directory = copy_golden("gpt2", tmp_path / "model")
    path = directory / "config.json"
    if change == "mark":
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    else:
        layers = gpt2.config.num_layers
        path.write_text(json.dumps(json.loads(path.read_text()) | {"n_layer": str(layers)}))
    assert_same_params(load_model(directory).params, gpt2.params)


def test_an_adapter_is_refused_with_its_remedy(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ModelNotFoundError, match="merge_and_unload") as error:
        load_model(tmp_path)
    one_sentence(error)


def test_corrupt_weights_are_refused(tmp_path):
    directory = damaged(
        tmp_path, lambda path: (path / "model.safetensors").write_bytes(b"\x00" * 64)
    )
    with pytest.raises(CheckpointError, match=r"model\.safetensors") as error:
        load_model(directory)
    one_sentence(error)


def test_a_missing_tokenizer_is_refused(tmp_path):
    directory = damaged(tmp_path, lambda path: (path / "tokenizer.json").unlink())
    with pytest.raises(
        TokenizerError, match=r"add the model's tokenizer\.json, or its vocab\.json and merges\.txt"
    ) as error:
        load_model(directory)
    assert str(directory) in one_sentence(error)


@pytest.mark.parametrize("content", ["{", "{}"])
def test_a_damaged_tokenizer_is_refused(content, tmp_path):
    directory = damaged(tmp_path, lambda path: (path / "tokenizer.json").write_text(content))
    with pytest.raises(TokenizerError, match="does not load") as error:
        load_model(directory)
    one_sentence(error)


def to_vocabulary_and_merges(directory: Path) -> None:
    """Replaces tokenizer.json by the two files of the older format."""
    model = json.loads((directory / "tokenizer.json").read_text())["model"]
    (directory / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    (directory / "tokenizer.json").unlink()


def test_vocabulary_and_merges_are_a_tokenizer(tmp_path, gpt2):
    directory = damaged(tmp_path, to_vocabulary_and_merges)
    text = "The mother tongue of Danielle Darrieux is"
    assert load_model(directory).tokenizer(text)["input_ids"] == gpt2.tokenizer(text)["input_ids"]


def test_a_slow_tokenizer_is_refused(tmp_path):
    directory = damaged(tmp_path, to_vocabulary_and_merges)
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CTRLTokenizer"})
    )
    with pytest.raises(TokenizerError, match="CTRLTokenizer, which does not report") as error:
        load_model(directory)
    one_sentence(error)


def with_token(directory: Path, id: int, added: bool) -> None:
    """Adds a token to tokenizer.json, to the added tokens or to the vocabulary."""
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    if added:
        token = content["added_tokens"][0] | {"id": id, "content": "[PAD]"}
        content["added_tokens"].append(token)
    else:
        content["model"]["vocab"]["new"] = id
    path.write_text(json.dumps(content))


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    directory = damaged(tmp_path, lambda path: with_token(path, 2000, added=False))
    with pytest.raises(TokenizerError, match="ids up to 2000, but the model has 2000") as error:
        load_model(directory)
    one_sentence(error)


def test_an_added_token_without_an_embedding_is_refused_where_it_is_used(tmp_path, gpt2):
    directory = damaged(tmp_path, lambda path: with_token(path, 2000, added=True))
    model = load_model(directory)
    texts = ["The mother tongue of Danielle Darrieux is", "a"]
    assert model.tokenizer(texts)["input_ids"] == gpt2.tokenizer(texts)["input_ids"]
    for text in ("a [PAD]", ["a", "a [PAD]"]):
        with pytest.raises(TokenizerError, match=r"'\[PAD\]' \(id 2000\), for which") as error:
            model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        one_sentence(error)
    save_hf(tmp_path / "saved", model)
    assert (
        load_model(tmp_path / "saved").tokenizer("a")["input_ids"]
        == model.tokenizer("a")["input_ids"]
    )


# Saving


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_loads_again(family, tmp_path):
    model = load_model(GOLDEN / "ckpt" / family)
    save_hf(tmp_path / "a" / "b", model)
    again = load_model(tmp_path / "a" / "b")
    assert_same_params(again.params, model.params)
    assert again.config == model.config
    assert again.fingerprint() == model.fingerprint()
    assert again.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    config = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert config["eos_token_id"] == config["bos_token_id"] == 1999 and "pad_token_id" not in config
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [
        "config.json",
        "model.safetensors",
        "rome_jax_export.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_only_an_export_is_replaced_and_only_when_asked(tmp_path, gpt2):
    directory = tmp_path / "model"
    save_hf(directory, load_model(GOLDEN / "ckpt" / "gptj"))
    marker = json.loads((directory / MARKER).read_text())
    assert set(marker["files"]) | {MARKER} == {path.name for path in directory.iterdir()}
    with pytest.raises(FileExistsError, match=r"earlier export: set overwrite=True") as error:
        save_hf(directory, gpt2)
    one_sentence(error)
    # A file of the old export that the new one does not have, and what is left of an export that was killed.
    (directory / "model-00002-of-00002.safetensors").write_bytes(b"old")
    (directory / ".saving-1").mkdir()
    marker["files"].append("model-00002-of-00002.safetensors")
    (directory / MARKER).write_text(json.dumps(marker))
    save_hf(directory, gpt2, overwrite=True)
    assert_same_params(load_model(directory).params, gpt2.params)
    names = {path.name for path in directory.iterdir()}
    assert names == {*json.loads((directory / MARKER).read_text())["files"], MARKER}
    assert "model-00002-of-00002.safetensors" not in names


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        {"notes.txt": "mine"},
        {"config.json": '{"model_type": "llama"}', "model-00001-of-00002.safetensors": "theirs"},
        {MARKER: '{"format": 1, "files": ["config.json"]}', "config.json": "{}", "mine.txt": ""},
        {MARKER: "{", "config.json": "{}"},
    ],
    ids="notes model export damaged".split(),
)
def test_other_files_are_not_overwritten(content, overwrite, tmp_path, gpt2):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(FileExistsError, match="give another directory") as error:
        save_hf(tmp_path, gpt2, overwrite=overwrite)
    one_sentence(error)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == content


def test_a_file_is_not_a_place_for_a_model(tmp_path, gpt2):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError):
        save_hf(tmp_path / "file", gpt2)


def test_an_interrupted_save_leaves_the_old_model(tmp_path, gpt2, monkeypatch):
    directory = tmp_path / "model"
    save_hf(directory, gpt2)

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(export, "save_params", fail)
    with pytest.raises(OSError, match="disk full"):
        save_hf(directory, load_model(GOLDEN / "ckpt" / "gptj"), overwrite=True)
    assert_same_params(load_model(directory).params, gpt2.params)
    assert not [path for path in directory.iterdir() if path.name.startswith(".")]


# Fingerprints


def test_a_fingerprint_depends_on_every_bit_and_on_nothing_else():
    config = tiny_config("gptj")
    params = random_params(config)
    first = fingerprint(params, config)
    assert len(first) == 64 and int(first, 16)
    assert fingerprint(jax.tree.map(np.asarray, params), config) == first
    reordered = dict(reversed(params.items()))
    assert fingerprint(reordered, config) == first
    assert fingerprint(params, tiny_config("gptj", precision=jax.lax.Precision.DEFAULT)) == first

    kernel = np.array(params["blocks"]["mlp"]["up"]["kernel"])
    kernel[-1, -1, -1] = np.nextafter(kernel[-1, -1, -1], 9)
    mlp = params["blocks"]["mlp"] | {"up": params["blocks"]["mlp"]["up"] | {"kernel": kernel}}
    others = [
        fingerprint(params | {"blocks": params["blocks"] | {"mlp": mlp}}, config),
        fingerprint(params, tiny_config("gptj", rotary=Rotary(6, RotaryPairs.INTERLEAVED))),
        fingerprint(params, tiny_config("gptj", norm_epsilon=1e-6)),
        fingerprint(
            jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.bfloat16), params), config
        ),
    ]
    assert len({first, *others}) == 5


def test_a_fingerprint_is_the_same_in_pieces(monkeypatch):
    config = tiny_config("gpt2")
    params = random_params(config)
    whole = fingerprint(params, config)
    monkeypatch.setattr("rome_jax.models.fingerprint._CHUNK", 100)
    assert fingerprint(params, config) == whole


def test_a_fingerprint_does_not_change_between_versions(gpt2):
    want = "24e77f727df9a1ce3ae3ab6d7a735737c93d452f0830a441300b2de687407c1a"
    assert gpt2.fingerprint() == want
