"""Reference texts that are read from a file in parts, and the TF-IDF vocabulary."""

import dataclasses
import json
import os
import tracemalloc

import numpy as np
import pytest

from rome_jax.data import published
from rome_jax.evaluation import snippets
from rome_jax.evaluation.snippets import AttributeSnippets, Snippet, load_snippets, load_tfidf
from rome_jax.factworld.facts import make_world
from rome_jax.factworld.records import attribute_snippets
from rome_jax.files.downloads import DownloadError
from rome_jax.files.records import DataError


def group(relation_id, target_id, *texts):
    samples = [{"name": f"About {text[:3]}", "text": text, "target": "x"} for text in texts]
    return {"relation_id": relation_id, "target_id": target_id, "samples": samples}


# Everything that could be mistaken for the end of a string or of an element.
GROUPS = [
    group("P1", "Q1", 'He said: "} ] {" \\', "\\\\", 'ends in a quote"', "{[", "}]"),
    group("P1", "Q2", "Ł – 漢字 🎻 \x7f\n\t\u2028", "\\u0022]}", '"'),
    {**group("P2", "Q1", "plain"), "nested": [[], {}, [{"a": ["]", "}"]}], None, 1.5e3, True]},
    group("P1", "Q1", "the same attribute again"),
    group("P3", "Q9"),
    group("P4", "Q1", ""),
]
LAYOUTS = {
    "compact": {"separators": (",", ":"), "ensure_ascii": False},
    "escaped": {},
    "pretty": {"indent": 4, "ensure_ascii": False},
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROME_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dsets"


@pytest.fixture
def scans(monkeypatch):
    """The files that were read to be indexed."""
    seen = []
    scan = snippets._scan
    monkeypatch.setattr(
        snippets, "_scan", lambda path, size: (seen.append(path), scan(path, size))[1]
    )
    return seen


def write(path, groups=GROUPS, **layout):
    path.write_text(json.dumps(groups, **layout), encoding="utf-8")
    return path


def expected(groups, relation_id, target_id):
    return tuple(
        Snippet(sample["name"], sample["text"])
        for one in groups
        if (one["relation_id"], one["target_id"]) == (relation_id, target_id)
        for sample in one["samples"]
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chunk_size", [1, 2, 7, 64, 1 << 20])
def test_snippets_of_a_file_are_found_in_every_layout_and_chunk_size(tmp_path, layout, chunk_size):
    path = write(tmp_path / "snippets.json", **LAYOUTS[layout])
    opened = AttributeSnippets.open(path, chunk_size=chunk_size)
    again = AttributeSnippets.open(path)  # by its index
    in_memory = AttributeSnippets.from_groups(GROUPS)
    for one in GROUPS:
        attribute = one["relation_id"], one["target_id"]
        right = expected(GROUPS, *attribute)
        assert opened.texts(*attribute) == again.texts(*attribute) == right
        assert in_memory.texts(*attribute) == right
    for source in (opened, in_memory):
        assert len(source.texts("P1", "Q1")) == 6
        assert (
            source.texts("P3", "Q9") == source.texts("P2", "Q2") == source.texts(None, None) == ()
        )


def test_a_chunk_may_end_anywhere(tmp_path):
    """Chunks of every size put a border between any two bytes of the file."""
    content = json.dumps(GROUPS, ensure_ascii=False).encode()
    path = tmp_path / "snippets.json"
    path.write_bytes(content)
    with open(path, "rb") as file:
        ranges = list(snippets._elements(file, len(content)))
        assert [json.loads(content[start:stop]) for start, stop in ranges] == GROUPS
        for size in range(1, len(content)):
            file.seek(0)
            assert list(snippets._elements(file, size)) == ranges


def test_a_file_is_never_loaded_as_a_whole(tmp_path):
    path = write(
        tmp_path / "snippets.json", [group("P1", f"Q{i}", "x" * 20_000) for i in range(200)]
    )
    tracemalloc.start()
    try:
        opened = AttributeSnippets.open(path, chunk_size=1 << 14)
        assert len(opened.texts("P1", "Q150")[0].text) == 20_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 4_000_000 > 8 * peak


def test_the_index_is_written_once_and_belongs_to_one_file(tmp_path, cache, scans):
    path = write(tmp_path / "snippets.json")
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other" / "snippets.json", [group("P1", "Q1", "of the other file")])
    for _ in range(2):
        assert len(AttributeSnippets.open(path).texts("P1", "Q1")) == 6
        assert AttributeSnippets.open(other).texts("P1", "Q1")[0].text == "of the other file"
    assert scans == [path, other]
    assert len(list(cache.iterdir())) == 2  # no partial files


@pytest.mark.parametrize("longer", [True, False])
def test_a_stale_index_is_written_again(tmp_path, scans, longer):
    path = write(tmp_path / "snippets.json", [group("P1", "Q1", "old"), group("P2", "Q2", "new")])
    AttributeSnippets.open(path)
    texts = ["a much longer text", "x"] if longer else ["new", "old"]
    write(path, [group("P2", "Q2", texts[0]), group("P1", "Q1", texts[1])])
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert AttributeSnippets.open(path).texts("P1", "Q1")[0].text == texts[1]
    assert len(scans) == 2


@pytest.mark.parametrize("content", [b"", b'{"file": ', b"[]", b'{"file": 1}'])
def test_a_damaged_index_is_written_again(tmp_path, cache, scans, content):
    path = write(tmp_path / "snippets.json")
    AttributeSnippets.open(path)
    (index,) = cache.iterdir()
    index.write_bytes(content)
    assert len(AttributeSnippets.open(path).texts("P1", "Q1")) == 6
    assert len(scans) == 2


def test_a_file_cut_short_anywhere_is_an_error(tmp_path, cache):
    content = json.dumps(GROUPS[:2], ensure_ascii=False).encode()
    path = tmp_path / "snippets.json"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=rf"snippets.json: it ends early, after {length} bytes"):
            AttributeSnippets.open(path, chunk_size=50)
    assert not cache.exists()  # no index of a part


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"groups": []}', "snippets.json: it is not a JSON list"),
        (b'[{"relation_id": "P1" "x"}]', r"the group at byte 1 is not JSON \(.*\): correct it"),
        (b'[["P1"]]', r"the group at byte 1=\['P1'\]: give a mapping"),
        (
            b'[{"target_id": "Q1", "samples": []}]',
            "at byte 1: relation_id is missing: give it",
        ),
        (b'[{"relation_id": "P1", "target_id": 3}]', "at byte 1: target_id=3: give a text"),
        (
            b'[{"relation_id": "P1", "target_id": "Q1", "samples": [{"name": "x"}]}]',
            r"at byte 1: samples\[0\].text is missing",
        ),
        (
            b'[{"relation_id": "P1", "target_id": "Q1", "samples": [{"name": "x", "text": 3}]}]',
            r"at byte 1: samples\[0\].text=3: give a text\.",
        ),
        *(
            (content, r"snippets.json: it is not a JSON list of objects")
            for content in (
                *(b"[null]", b"[-1]", b'["text"]', b"layers: []", b"[] []", b"[]]", b"// none\n[]"),
                *(b"[%s,]", b"[,%s]", b"[%s %s]", b"[%s,,%s]", b"[%s, null]", b"[%s] [%s]"),
            )
        ),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, content, message):
    path = tmp_path / "snippets.json"
    path.write_bytes(content.replace(b"%s", json.dumps(GROUPS[0]).encode()))
    for chunk_size in (3, 1000):
        with pytest.raises(DataError, match=message):
            AttributeSnippets.open(path, chunk_size=chunk_size)


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = write(tmp_path / "snippets.json")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    for chunk_size in (1, 1000):
        assert AttributeSnippets.open(path, chunk_size=chunk_size).texts("P1", "Q1")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*none.json: give the path"):
        load_snippets(tmp_path / "none.json")


def test_a_malformed_group_is_named():
    with pytest.raises(DataError, match="group 1: samples is missing"):
        AttributeSnippets.from_groups([GROUPS[0], {"relation_id": "P1", "target_id": "Q1"}])


def test_a_file_that_changes_while_in_use_is_refused(tmp_path):
    path = write(tmp_path / "snippets.json")
    opened = AttributeSnippets.open(path)
    write(path, [GROUPS[1]])
    with pytest.raises(
        DataError, match=r"snippets.json has changed while it was in use: start the"
    ):
        opened.texts("P2", "Q1")


def test_snippets_of_factworld_are_found_by_the_ids_of_its_records():
    groups = attribute_snippets(make_world(), 0)
    loaded = load_snippets(factworld=True)
    assert len(groups) > 100
    for one in groups:
        attribute = one["relation_id"], one["target_id"]
        assert loaded.texts(*attribute) == expected(groups, *attribute) != ()


def test_published_snippets_are_checked_by_size_and_not_hashed(cache, monkeypatch):
    monkeypatch.setattr(published, "ROOT", "http://127.0.0.1:9/")
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(DownloadError, match=r"curl .*attribute_snippets.json"):
        load_snippets()
    cache.mkdir(parents=True, exist_ok=True)
    path = write(cache / "attribute_snippets.json")
    with pytest.raises(DownloadError, match="instead of 926285719"):
        load_snippets()
    smaller = dataclasses.replace(published.ATTRIBUTE_SNIPPETS, size=path.stat().st_size)
    monkeypatch.setattr(published, "ATTRIBUTE_SNIPPETS", smaller)
    monkeypatch.setattr(published, "_LARGE", 1)
    assert len(load_snippets().texts("P1", "Q1")) == 6


def save_tfidf(folder, idf, vocabulary):
    np.save(folder / "idf.npy", idf)
    (folder / "tfidf_vocab.json").write_text(json.dumps(vocabulary))
    return folder


def test_tfidf_files_are_read_from_a_folder(tmp_path):
    save_tfidf(tmp_path, np.array([1.5, 2.0], np.float32), {"rome": 1, "italy": 0})
    idf, vocabulary = load_tfidf(str(tmp_path), factworld=True)
    assert (idf.dtype, idf.tolist()) == (np.float64, [1.5, 2.0])
    assert vocabulary == {"rome": 1, "italy": 0}


def test_tfidf_of_factworld():
    idf, vocabulary = load_tfidf(factworld=True)
    assert (idf.dtype, idf.ndim) == (np.float64, 1)
    assert sorted(vocabulary.values()) == list(range(len(idf)))
    assert idf[vocabulary["kalina"]] > idf[vocabulary["the"]] >= 1


@pytest.mark.parametrize(
    ("idf", "vocabulary", "message"),
    [
        (
            [1.0, 2.0],
            {"rome": 0},
            "do not belong together: the words' columns must be 0 to 1, each",
        ),
        ([1.0, 2.0], {"rome": 0, "italy": 0}, "do not belong together"),
        ([1.0, 2.0], {"rome": 0, "italy": 2}, "do not belong together"),
        ([1.0, 2.0], {"rome": False, "italy": 1}, "tfidf_vocab.json: rome=False: give an integer"),
        ([1.0], ["rome"], r"tfidf_vocab.json=\['rome'\]: give a mapping"),
        ([[1.0]], {"rome": 0}, r"idf.npy holds float64 \[1, 1\]: it must be finite floats \[V\]"),
        ([np.nan], {"rome": 0}, "must be finite floats"),
        ([1], {"rome": 0}, r"idf.npy holds int64 \[1\]: it must be finite floats"),
    ],
)
def test_tfidf_files_that_do_not_belong_together_are_refused(tmp_path, idf, vocabulary, message):
    with pytest.raises(DataError, match=message):
        load_tfidf(save_tfidf(tmp_path, np.array(idf), vocabulary))


def test_tfidf_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*tfidf_vocab.json"):
        load_tfidf(tmp_path)
    save_tfidf(tmp_path, np.array([1.0]), {"rome": 0})
    (tmp_path / "idf.npy").write_bytes(b"PK no array")
    with pytest.raises(DataError, match=r"idf.npy is not an array of NumPy: download it again"):
        load_tfidf(tmp_path)
    (tmp_path / "idf.npy").unlink()
    with pytest.raises(DataError, match=r"there is no file .*idf.npy: give the path"):
        load_tfidf(tmp_path)
    (tmp_path / "tfidf_vocab.json").write_text('{"rome": ')
    with pytest.raises(DataError, match=r"tfidf_vocab.json ends within a value"):
        load_tfidf(tmp_path)
