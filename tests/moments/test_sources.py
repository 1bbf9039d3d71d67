"""The front door: where second moments are found, and which are refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.files.downloads import DownloadError, UnreachableError
from rome_jax.moments import own_texts, published
from rome_jax.moments.files import file_of, save
from rome_jax.moments.second_moment import SecondMoment
from rome_jax.moments.shipped import load_shipped
from rome_jax.moments.sources import Source, choose, collect_own, find_cached, read
from tests.moments.examples import (
    moments_for,
    original_file,
    positive_definite,
    relative_error,
    tiny_model,
)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_a_directory_or_a_file_of_rome_jax_is_read(tmp_path, model):
    save(tmp_path, moments_for(model))
    assert list(read(tmp_path, [2], model)) == [2]
    assert list(read(file_of(tmp_path, 0), [0], model)) == [0]
    with pytest.raises(FileNotFoundError, match="not of 1"):
        read(tmp_path, [1, 2], model)
    with pytest.raises(ValueError, match="not on other"):
        other = model.replace(
            name="other",
            params={**model.params, "ln_f": {"scale": jnp.ones(18), "bias": jnp.ones(18)}},
        )
        read(tmp_path, [2], other)


def test_files_of_the_original_are_read(tmp_path, model):
    paths = {layer: original_file(tmp_path, layer) for layer in (0, 1)}
    (one,) = read(paths[1], [1], model).values()
    both = read(tmp_path, [0, 1], model)
    assert list(both) == [0, 1] and both[1].count == one.count == 70
    np.testing.assert_array_equal(both[1].mean, one.mean)
    assert relative_error(both[0].mean, positive_definite(40, 0)) <= 1e-6
    anonymous = paths[1].rename(tmp_path / "mine.npz")
    np.testing.assert_array_equal(read(anonymous, [2], model)[2].mean, one.mean)


def test_files_of_the_original_that_do_not_fit_are_refused(tmp_path, model):
    path = original_file(tmp_path, 1)
    with pytest.raises(ValueError, match=r"one layer, but layers=\(0, 1\) are requested"):
        read(path, [0, 1], model)
    with pytest.raises(
        ValueError, match="belongs to layer 1 by its name, but layer 2 is requested"
    ):
        read(path, [2], model)
    with pytest.raises(FileNotFoundError, match=r"holds 0 files transformer\.h\.2\.mlp\.c_proj_"):
        read(tmp_path, [2], model)
    original_file(tmp_path, 1, articles=9)
    with pytest.raises(FileNotFoundError, match=r"holds 2 files .*: give the path of the file"):
        read(tmp_path, [1], model)
    with pytest.raises(ValueError, match="has width 7 and the model has 40"):
        read(original_file(tmp_path, 0, width=7), [0], model)
    with pytest.raises(FileNotFoundError, match="absent"):
        read(tmp_path / "absent", [0], model)


def test_published_files_are_downloaded(tmp_path, model, monkeypatch):
    served = original_file(tmp_path, 1)
    monkeypatch.setattr(published, "download", lambda model, layer: served)
    assert read("published", [1], model)[1].count == 70


def test_without_a_source_the_shipped_ones_are_read(shipped_model, model):
    shipped = shipped_model("factworld-gpt2")
    found = read(None, [3, 1], shipped)
    assert list(found) == [1, 3]
    np.testing.assert_array_equal(found[3].mean, load_shipped("factworld-gpt2")[3].mean)
    with pytest.raises(ValueError, match="layers=6 does not exist"):
        read(None, [6], shipped)
    with pytest.raises(ValueError, match="no second moments come with model 'tiny'"):
        read(None, [0], model)


def with_tokens(model, tokens, layers=(0, 2), **fields):
    """Second moments that average a number of tokens, for the default folder of a model."""
    return {
        layer: SecondMoment(moment.mean, tokens, moment.provenance)
        for layer, moment in moments_for(model, layers, **fields).items()
    }


def test_of_several_collections_the_largest_that_fits_is_cached(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "stats" / "tiny"
    assert find_cached([0], model) is None
    save(folder / "one_layer", with_tokens(model, 900, layers=(0,)))
    save(folder / "small", with_tokens(model, 90))
    save(folder / "large", with_tokens(model, 500))
    save(folder / "singular", with_tokens(model, 30))  # fewer than the width
    save(folder / "other", with_tokens(model, 990, fingerprint="0" * 64, base="base1:0"))
    save(folder / "damaged", with_tokens(model, 990))
    for path in (folder / "damaged").iterdir():
        path.write_bytes(b"damaged")
    (folder / "notes.txt").write_text("mine")
    assert find_cached([0], model).name == "one_layer"
    assert find_cached([0, 2], model).name == "large"
    assert find_cached([0, 1], model) is None
    assert choose(None, [2], model).place == "stats/tiny/large"
    assert read("cached", [2], model)[2].count == 500
    with pytest.raises(FileNotFoundError, match=r"no usable second moments of layers 0, 1 of tiny"):
        choose("cached", [0, 1], model)


def test_without_a_word_the_first_source_with_all_layers_is_taken(
    tmp_path, model, shipped_model, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_texts, "_openings", lambda tokenizer: {})  # tiny has no tokenizer
    served = original_file(tmp_path, 1)
    answers = {1: served}

    def download(model, layer):
        answer = answers.get(layer, UnreachableError("no file.", "HTTP 404 Not Found"))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(published, "download", download)
    shipped, xl = shipped_model("factworld-gpt2"), model.replace(name="gpt2-xl")
    assert choose(None, [5], shipped).source is Source.SHIPPED
    assert choose(None, [1], xl).source is Source.PUBLISHED
    assert choose(None, [0, 1], xl).reason.endswith("be downloaded (HTTP 404 Not Found)")
    own = choose(None, [0, 1], xl)
    assert (own.source, own.place, own.documents) == (
        "self",
        "stats/gpt2-xl/self_192_articles",
        192,
    )
    # No server is asked about other models.
    answers[1] = AssertionError("asked")
    assert choose(None, [1], model).source is Source.SELF and not choose(None, [1], model).reason
    answers[1] = DownloadError("it stopped after 3 of 5 bytes: run the same command again.")
    with pytest.raises(DownloadError, match="run the same command again"):
        choose(None, [1], xl)
    save(tmp_path / "stats/factworld-gpt2/mine", {0: load_shipped("factworld-gpt2")[0]})
    assert choose(None, [0], shipped).source is Source.CACHED
    assert choose("shipped", [0], shipped).place is None


def test_every_word_and_path_can_be_chosen(model, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_texts, "_openings", lambda tokenizer: {})
    assert choose("published", [0], model).place == "published"
    assert choose("self", [0], model).documents == 192
    save(tmp_path / "stats" / "tiny" / "self_192_articles", moments_for(model))
    assert choose("self", [0], model).documents == 0, "it has been collected"
    assert choose(tmp_path, [0], model).place == str(tmp_path)
    with pytest.raises(ValueError, match="layers=9 does not exist"):
        choose(None, [9], model)


def test_more_texts_are_sampled_for_wider_models():
    assert [own_texts.default_documents(width) for width in (40, 3072, 3073)] == [192, 192, 384]


def test_a_model_without_statistics_collects_its_own_once(tmp_path, shipped_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in {"_ROWS": 8, "DOCUMENT_TOKENS": 24, "TEMPERATURES": (0.85,)}.items():
        monkeypatch.setattr(own_texts, name, value)
    monkeypatch.setattr(own_texts, "DEFAULT_DOCUMENTS", 16)
    monkeypatch.setattr(own_texts, "_TOKENS_PER_DIMENSION", 0)
    model = shipped_model("factworld-gpt2")
    directory = collect_own(model, [0], command="eval.layer_stats", progress=False)
    assert str(directory) == choose("self", [0], model).place
    (moment,) = read("self", [0], model).values()
    known = moment.provenance
    assert (known.corpus, known.articles, known.command) == ("self", 16, "eval.layer_stats")
    monkeypatch.setattr(own_texts, "_write_documents", None)  # nothing is sampled again
    assert collect_own(model, [0], progress=False) == directory


def test_shipped_files_belong_to_their_models():
    for name in ("factworld-gpt2", "factworld-gptj"):
        for layer, moment in load_shipped(name).items():
            known = moment.provenance
            assert (known.model, known.layer, known.corpus) == (name, layer, "factworld")
            assert (known.limit, known.articles) == ("all", 20_000)
            assert moment.fill_rate >= 0.99
