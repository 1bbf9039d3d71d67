"""Sizes in bytes, devices, the chunk size that fits, and estimated seconds."""

import dataclasses

import numpy as np
import pytest

from rome_jax.edit.baseline_config import FTConfig, KNConfig
from rome_jax.edit.config import ROMEConfig
from rome_jax.models.families import PRESETS
from rome_jax.models.transformer import param_shapes
from rome_jax.scaling import plan
from rome_jax.scaling.device import Device
from rome_jax.scaling.setup import Platform, Setup
from rome_jax.scaling.sizes import parse_bytes, shown_bytes
from rome_jax.scaling.work import Machine, jobs


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GB", 80 * 10**9),
        ("80 gb", 80 * 10**9),
        ("80G", 80 * 10**9),
        ("24GiB", 24 * 2**30),
        ("1.5TiB", 3 * 2**39),
        ("16e9", 16 * 10**9),
        ("16e+9B", 16 * 10**9),
        ("512kb", 512_000),
        ("7", 7),
    ],
)
def test_a_size_is_parsed(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "80XB", "-1GB", "1e400", "nan", "0", "0.1", "8 0GB", "٣GB"]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match=r"^memory=.*: give "):
        parse_bytes(text, "memory")


def test_sizes_are_shown_in_the_unit_that_fits():
    assert [shown_bytes(size) for size in (10**6, 10**9, 10**12)] == [
        "1.0 MB",
        "1.00 GB",
        "1.00 TB",
    ]


def test_jax_uses_a_share_of_a_gpu(monkeypatch):
    monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION", raising=False)
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    usable = {platform: Device.of(platform, 10**10).usable for platform in Platform}
    assert usable == {"cpu": 98 * 10**8, "gpu": 75 * 10**8, "tpu": 10**10}
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.5")
    assert Device.of(Platform.GPU, 10**10).usable == 5 * 10**9
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "half")
    with pytest.raises(ValueError, match="XLA_CLIENT_MEM_FRACTION='half': set it"):
        Device.of(Platform.GPU, 10**10)


@pytest.fixture
def choose(monkeypatch):
    """Chooses the chunk size of GPT-2 for a device with some memory."""

    def chosen(gigabytes, *methods, platform=Platform.GPU):
        memory = None if gigabytes is None else int(gigabytes * 10**9)
        monkeypatch.setattr(plan, "platform_here", lambda: platform)
        monkeypatch.setattr(plan.devices, "device_memory", lambda: memory)
        monkeypatch.setattr(plan, "available_memory", lambda: memory)
        config = PRESETS["gpt2"]
        params = {"one": np.zeros(1, np.float32)}
        return plan.chunk_size(config, params, methods)

    return chosen


def test_auto_takes_what_fits(choose):
    rome, tuning = ROMEConfig((5,)), FTConfig((5,))
    sizes = [choose(memory, rome) for memory in (0.01, 1, 2, 4, 80)]
    assert sizes == sorted(sizes) and sizes[0] == 1 < sizes[2] < sizes[3] and sizes[-1] == 64
    setup = Setup(PRESETS["gpt2"])
    assert plan.edit_peak(setup, rome, sizes[2]).total <= 0.9 * 2e9
    assert plan.edit_peak(setup, rome, sizes[2] + 1).total > 0.9 * 2e9
    assert choose(2, rome, tuning) == min(choose(2, rome), choose(2, tuning))


def test_auto_stays_at_the_default_where_it_cannot_know(choose):
    assert choose(80, ROMEConfig((5,)), platform=Platform.CPU) == 8  # a CPU is not faster beyond
    assert choose(80, ROMEConfig((5,)), KNConfig((0, 1))) == 8
    assert choose(None, ROMEConfig((5,))) == 8
    assert choose(80) == 64


def test_seconds_follow_the_rates():
    setup = Setup(PRESETS["gpt2-xl"])
    slow, fast = Machine(), Machine(rates={"float32": 134e12}, bandwidth=6.7e12)
    for one in jobs(setup, 17):
        assert one.seconds(fast, "float32") < one.seconds(slow, "float32") or one.job == "load"
    eight = dataclasses.replace(slow, devices=8)
    found = {work.job: work for work in jobs(setup, 17, devices=8)}
    single = found["one ROME edit"]
    assert single.seconds(eight, "float32") == single.seconds(slow, "float32")
    texts = found["64 texts of 100 tokens"]
    assert texts.seconds(slow, "float32") == pytest.approx(7.2 * texts.seconds(eight, "float32"))


@pytest.mark.parametrize(
    ("name", "dtype", "layer", "job", "seconds"),
    [
        ("gpt2-xl", "float32", 17, "one ROME edit", 0.6239),
        ("gpt2-xl", "bfloat16", 17, "32 ROME edits in one chunk", 32 * 0.04962),
        ("gpt2-xl", "float32", 17, "trace of one prompt, hidden states", 0.5114),
        ("EleutherAI/gpt-j-6B", "bfloat16", 5, "trace of one prompt, hidden states", 0.1296),
    ],
)
def test_estimates_are_near_what_an_h200_took(name, dtype, layer, job, seconds):
    """Within a factor of two of the figures in docs/gpu.md; the estimates are not tuned to each job."""
    found = {work.job: work for work in jobs(Setup(PRESETS[name], dtype), layer)}
    assert seconds / 2 < found[job].seconds(Machine(), dtype) < 2 * seconds


def test_a_layer_takes_two_operations_per_weight():
    config = PRESETS["EleutherAI/gpt-j-6B"]
    kernels = list(_kernels(param_shapes(config)["blocks"]))
    per_layer = 2 * sum(leaf.size for leaf in kernels) / config.num_layers
    setup = Setup(config, "bfloat16")
    texts = {work.job: work for work in jobs(setup, 5)}["64 texts of 100 tokens"]
    head = 2 * config.width * config.vocab_size
    assert texts.operations == pytest.approx(6400 * (config.num_layers * per_layer + head))


def _kernels(tree):
    for name, part in tree.items():
        if isinstance(part, dict):
            yield from _kernels(part)
        elif name == "kernel":
            yield part
