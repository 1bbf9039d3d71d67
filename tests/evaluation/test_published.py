"""Published files: records from the cache, and downloads that are checked."""

import email.message
import hashlib
import io
import json
import urllib.error

import pytest

from rome_jax.data import published
from rome_jax.data.published import PublishedFile, fetch
from rome_jax.evaluation.datasets import DatasetName, load_dataset, parse_zsre
from rome_jax.evaluation.snippets import missing_downloads
from rome_jax.files import downloads
from rome_jax.files.downloads import DownloadError, UnreachableError
from rome_jax.trace import inputs as trace_inputs

QUESTION = {
    "subject": "Rome",
    "src": "Is Rome the Rome of old?",
    "rephrase": "Is this still Rome?",
    "answers": ["yes"],
    "loc": "nq question: who wrote emma",
    "loc_ans": "Jane Austen",
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no server to download from."""
    monkeypatch.setenv("ROME_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(published, "ROOT", "http://127.0.0.1:9/dsets/")
    (tmp_path / "cache" / "dsets").mkdir(parents=True)
    return tmp_path / "cache" / "dsets"


def test_published_records_are_taken_from_the_cache(cache):
    (cache / "zsre_mend_eval.json").write_text(json.dumps([QUESTION]))
    dataset = load_dataset(DatasetName.ZSRE, model_name="gpt2-xl")
    assert (dataset.source, dataset.records) == ("published", parse_zsre([QUESTION]))
    (cache / "counterfact.json").write_text(json.dumps([QUESTION]))
    with pytest.raises(DownloadError, match=r"counterfact.json has \d+ bytes instead of 45108470"):
        load_dataset(DatasetName.CF, model_name="gpt2-xl")


def test_published_records_without_a_network(cache):
    with pytest.raises(DownloadError, match=r"curl .*dsets/counterfact.json` and copy the file to"):
        load_dataset(DatasetName.CF)


def test_a_server_that_cannot_be_reached_differs_from_a_transfer_that_stops(cache, monkeypatch):
    with pytest.raises(UnreachableError, match="curl") as error:
        fetch(published.IDF)
    assert "refused" in error.value.reason

    class Answer(io.BytesIO):
        status, headers = 200, email.message.Message()

        def read(self, size):
            if self.tell():
                raise ConnectionResetError("reset by peer")
            return super().read(2)

    monkeypatch.setattr(downloads, "_open", lambda url, have: Answer(b"[1, 2]"))
    with pytest.raises(DownloadError, match=r"\(reset by peer\)") as stopped:
        fetch(published.IDF)
    assert not isinstance(stopped.value, UnreachableError)
    assert (cache / "idf.npy.part").read_bytes() == b"[1"

    def absent(url, have):
        raise urllib.error.HTTPError(url, 404, "Not Found", email.message.Message(), None)

    monkeypatch.setattr(downloads, "_open", absent)
    with pytest.raises(UnreachableError, match=r"idf.npy cannot be downloaded") as error:
        fetch(published.IDF)
    assert error.value.reason == "HTTP 404 Not Found"


def test_what_generated_texts_would_download_is_known_before(cache):
    names = [file.name for file in missing_downloads(None, None)]
    assert names == ["attribute_snippets.json", "idf.npy", "tfidf_vocab.json"]
    assert [file.name for file in missing_downloads("mine.json", None)] == names[1:]
    assert [file.name for file in missing_downloads(None, "mine")] == names[:1]
    (cache / "idf.npy").touch()
    assert [file.name for file in missing_downloads("mine.json", None)] == names[2:]
    assert missing_downloads(None, None, factworld=True) == []


def test_a_download_is_checked(cache, tmp_path, monkeypatch):
    content = b"[1, 2]"
    (tmp_path / "small.json").write_bytes(content)
    monkeypatch.setattr(published, "ROOT", f"{tmp_path.as_uri()}/")
    right = hashlib.sha256(content).hexdigest()
    with pytest.raises(DownloadError, match=r"instead of 0000.*: it was removed"):
        fetch(PublishedFile("small.json", 6, "0" * 64))
    path = fetch(PublishedFile("small.json", 6, right))
    assert (path, path.read_bytes()) == (cache / "small.json", content)
    # A cached file is hashed again, unless it is large.
    path.write_bytes(b"[3, 4]")
    with pytest.raises(DownloadError, match=r"small.json has SHA-256 .*: remove it"):
        fetch(PublishedFile("small.json", 6, right))
    monkeypatch.setattr(published, "_LARGE", 5)
    assert fetch(PublishedFile("small.json", 6, right)) == path
    with pytest.raises(DownloadError, match=r"small.json has 6 bytes instead of 7: remove it"):
        fetch(PublishedFile("small.json", 7, right))


def test_known_facts_are_downloaded_when_requested(tmp_path, monkeypatch):
    monkeypatch.setenv("ROME_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(published, "ROOT", "http://127.0.0.1:9/")
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(DownloadError, match=r"curl .*known_1000.json"):
        trace_inputs.read_facts("published", "gpt2-xl")
    (tmp_path / "dsets").mkdir(exist_ok=True)
    facts = [{"known_id": 3, "subject": "Rome", "attribute": "Italy", "prompt": "Rome is in"}]
    (tmp_path / "dsets" / "known_1000.json").write_text(json.dumps(facts))
    assert trace_inputs.read_facts("published", "gpt2-xl").facts[0].known_id == 3
