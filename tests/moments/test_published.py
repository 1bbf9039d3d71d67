"""The original's statistics files."""

import io
import zipfile

import numpy as np
import pytest

from rome_jax.files import downloads
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


def with_header(path, shape, dtype="<f8", stored=80, packed=True):
    """Writes a file whose sum has this header and `stored` bytes of zeros."""
    header = io.BytesIO()
    about = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    count = io.BytesIO()
    np.save(count, np.array(7))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as file:
        file.writestr("mom2.mom2.npy", header.getvalue() + bytes(stored))
        file.writestr("mom2.count.npy", count.getvalue())


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((19_000, 19_000), "<f8", "would unpack .* to 2,888,000,000"),
        ((10**9, 10**9), "<f8", "would unpack"),
        ((30, 30), "<f8", "damaged or not an .npz file"),
        ((-3, -3), "<f8", "damaged or not an .npz file"),
        ((3, 3), "|O", "not a square matrix of numbers"),
        ((3, 3), "<c16", "not a square matrix of numbers"),
        ((9,), "<f8", "not a square matrix of numbers"),
    ],
)
def test_a_header_that_lies_is_refused_before_work_begins(tmp_path, shape, dtype, message):
    path = tmp_path / "x.npz"
    with_header(path, shape, dtype)
    with pytest.raises(ValueError, match=message) as error:
        load_reference(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_another_width_is_refused_before_it_is_read(tmp_path):
    with_header(tmp_path / "x.npz", (19_000, 19_000), packed=False)
    with pytest.raises(ValueError, match="has width 19000 and the model has 40"):
        load_reference(tmp_path / "x.npz", width=40)


def test_one_array_is_not_an_archive(tmp_path):
    np.save(tmp_path / "x.npy", np.eye(3))
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"x\.npz is damaged or not an \.npz file"):
        load_reference(tmp_path / "x.npz")


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
    monkeypatch.setattr(downloads, "download", lambda *args: asked.append(args) or args[1])
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
