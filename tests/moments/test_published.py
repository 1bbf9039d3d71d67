"""The original's statistics files."""

import numpy as np
import pytest

from rome_jax.files import artifacts
from rome_jax.models.registry import LanguageModel
from rome_jax.moments import published as reference_stats
from rome_jax.moments.published import load_reference
from tests.golden_cases import GOLDEN
from tests.models.checkpoints import tiny_config

STATS = "stats_files/gpt2/transformer.h.1.mlp.c_proj_float32_mom2_500.npz"


def test_a_file_of_the_original_is_divided_by_its_count(request):
    path = GOLDEN / STATS
    moment = load_reference(path)
    with np.load(path) as file:
        total, count = file["mom2.mom2"], int(file["mom2.count"])
    assert moment.count == count > 1
    assert moment.provenance.articles == 500
    np.testing.assert_array_equal(moment.mean, total.astype(np.float64) / count)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"layer_0": np.eye(2)}, r"holds \['layer_0'\], not the original's 'mom2.mom2'"),
        ({"mom2.mom2": np.eye(2)}, "not the original's"),
        ({"mom2.mom2": np.eye(2), "mom2.count": 0}, "0 tokens"),
        ({"mom2.mom2": np.full((2, 2), np.nan), "mom2.count": 3}, "or NaN"),
        ({"mom2.mom2": np.ones((2, 3)), "mom2.count": 3}, "square"),
    ],
)
def test_a_file_of_another_kind_is_an_error(tmp_path, arrays, message):
    np.savez(tmp_path / "stats.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_reference(tmp_path / "stats.npz")


@pytest.mark.parametrize("size", [0, 100, 100_000])
def test_a_truncated_file_is_an_error(request, tmp_path, size):
    content = (GOLDEN / STATS).read_bytes()
    assert len(content) > size
    (tmp_path / "stats.npz").write_bytes(content[:size])
    with pytest.raises(ValueError, match=r"damaged or not an \.npz file"):
        load_reference(tmp_path / "stats.npz")


def named(name, family):
    return LanguageModel(name, tiny_config(family, num_layers=20), None, None, "hub")


@pytest.mark.parametrize(
    ("name", "family", "layer", "place"),
    [
        (
            "gpt2-xl",
            "gpt2",
            17,
            "gpt2-xl/wikipedia_stats/transformer.h.17.mlp.c_proj_float32_mom2_100000.npz",
        ),
        (
            "EleutherAI/gpt-j-6B",
            "gptj",
            5,
            "EleutherAI_gpt-j-6B/wikipedia_stats/transformer.h.5.mlp.fc_out_float32_mom2_100000.npz",
        ),
    ],
)
def test_published_files_have_the_names_of_the_original(
    name, family, layer, place, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setenv("ROME_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(artifacts, "download", lambda *args: asked.append(args) or args[1])
    path = reference_stats.download(named(name, family), layer)
    assert path == tmp_path / "stats" / place
    assert asked == [(f"https://rome.baulab.info/data/stats/{place}", path)]


def test_a_layer_must_exist():
    with pytest.raises(ValueError, match="layer=20 does not exist"):
        reference_stats.download(named("gpt2-xl", "gpt2"), 20)


def test_published_files_go_by_a_name_on_the_hub():
    local = named("models/xl", "gpt2").replace(source="directory models/xl")
    with pytest.raises(ValueError, match="models/xl is a local directory"):
        reference_stats.download(local, 17)
