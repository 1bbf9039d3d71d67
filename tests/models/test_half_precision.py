"""The suggestion of half-precision weights."""

import json

import pytest

from rome_jax.models.half_precision import suggestion
from tests.models.checkpoints import GOLDEN, copy_golden

GB = 10**9


def test_it_depends_on_half_of_the_memory():
    assert suggestion("gpt2-xl", memory=13 * GB) is None
    assert suggestion("gpt2-xl", memory=12 * GB) == (
        "gpt2-xl has 6.2 GB of float32 weights, and this device has 12.0 GB: --dtype=bfloat16 or float16 halves them"
    )
    assert suggestion("gpt2-xl", memory=7 * GB, devices=2) is None
    assert "these 2 devices have 10.0 GB" in suggestion("gpt2-xl", memory=5 * GB, devices=2)


def test_gptj_has_a_branch_with_half_of_the_download():
    hint = suggestion("EleutherAI/gpt-j-6B", memory=80 * GB)
    assert "24.2 GB" in hint and "--revision=float16 halves the download too" in hint
    assert suggestion("EleutherAI/gpt-j-6B", "float16", memory=80 * GB) is None
    assert suggestion("somebody/gpt-j-6B", memory=GB) is None, "its size is unknown"


@pytest.mark.parametrize("stored", ["safetensors", "pytorch"])
def test_directories_say_how_their_weights_are_stored(stored, tmp_path):
    directory = copy_golden("gpt2", tmp_path / "model")
    size = (directory / "model.safetensors").stat().st_size
    assert suggestion(str(directory), memory=2 * size) is None
    assert "float32 weights" in suggestion(str(directory), memory=size)
    if stored == "pytorch":
        (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
        content = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(content | {"dtype": "float16"}))
        assert suggestion(str(directory), memory=size) is None


def test_the_memory_of_this_machine_is_the_default():
    assert suggestion(str(GOLDEN / "ckpt" / "gpt2")) is None
