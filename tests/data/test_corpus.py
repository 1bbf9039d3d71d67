"""Corpora: files, datasets, factworld; in a fixed order, from any article, and identified by their revision."""

import json
import sys

import pytest

from rome_jax.data import corpus
from rome_jax.data.corpus import CorpusError, hugging_face, local, open_corpus
from rome_jax.files.extras import MissingPackageError

TEXTS = ["One article.", "A second one,\nwith two lines.", "", "Ein Bär, и ещё.", "The last one."]


def write_jsonl(path, texts, key="text"):
    path.write_text("".join(json.dumps({"id": 1, key: text}) + "\n" for text in texts))
    return path


def write_parquet(path, texts, key="text"):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table({"id": range(len(texts)), key: texts})
    parquet.write_table(table, path)
    return path


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
@pytest.mark.parametrize("first", [0, 2, 5, 9])
def test_files_of_records(tmp_path, write, first):
    path = write(tmp_path / f"mine.{write.__name__[6:]}", TEXTS)
    texts = open_corpus(str(path))
    assert (texts.name, texts.size, texts.default_articles) == ("mine", 5, None)
    assert list(texts.read(first)) == TEXTS[first:]


@pytest.mark.parametrize(
    ("sample_by", "articles", "size"),
    [
        ("document", ["a\nb\n\nc\n"], 1),
        ("paragraph", ["a\nb", "c\n"], None),
        ("line", ["a", "b", "", "c"], 4),
    ],
)
def test_text_files(tmp_path, sample_by, articles, size):
    (tmp_path / "mine.txt").write_text("a\nb\n\nc\n")
    texts = open_corpus(str(tmp_path / "mine.txt"), sample_by=sample_by)
    assert (list(texts.read(0)), texts.size) == (articles, size)


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    folder = tmp_path / "texts"
    (folder / "b").mkdir(parents=True)
    (folder / "c.txt").write_text("last")
    write_jsonl(folder / "b" / "x.jsonl", ["second", "third"])
    write_parquet(folder / "a.parquet", ["first"])
    (folder / "README.md").write_text("not a text")
    texts = open_corpus(str(folder))
    assert (texts.name, texts.size) == ("texts", 4)
    assert list(texts.read(0)) == ["first", "second", "third", "last"]
    assert list(texts.read(2)) == ["third", "last"]


def test_another_key(tmp_path):
    for write in (write_jsonl, write_parquet):
        path = write(tmp_path / f"mine.{write.__name__[6:]}", TEXTS, key="body")
        assert list(open_corpus(str(path), text_key="body").read(0)) == TEXTS


def test_the_revision_changes_with_the_articles(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "a.jsonl", TEXTS)
    first, second = (local(tmp_path / name) for name in ("one", "two"))
    assert first.revision == second.revision
    assert first.revision.startswith("sha256:")
    revisions = {first.revision, local(tmp_path / "one", text_key="id").revision}
    revisions.add(local(tmp_path / "one", sample_by="line").revision)
    (tmp_path / "two" / "a.jsonl").rename(tmp_path / "two" / "b.jsonl")
    revisions.add(local(tmp_path / "two").revision)
    write_jsonl(tmp_path / "two" / "b.jsonl", [*TEXTS[:-1], "The lost one."])
    revisions.add(local(tmp_path / "two").revision)
    assert len(revisions) == 5


def test_factworld_has_not_changed():
    texts = open_corpus("factworld")
    assert texts.size == len(list(texts.read(0))) == 20_000
    assert list(texts.read(19_999)) == list(texts.read(0))[-1:]
    # The shipped second moments were collected on it.
    assert texts.revision.startswith("sha256:925f3c0efcfe")
    assert corpus.factworld(seed=1).revision != texts.revision


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "mine.jsonl",
            b'{"text": "a"}\n{"body": "b"}\n',
            r"line 2, has no field 'text', only \['body'\]: set text_key",
        ),
        (
            "mine.jsonl",
            b'{"text": 7}\n',
            "line 1: text=7: give a text",
        ),
        ("mine.jsonl", b'["a"]\n', "record 0, is 'a': give an object with the field 'text'"),
        ("mine.jsonl", b'{"text": "a"}\n{"text": \n', "line 2, ends within a value"),
        ("mine.txt", b"\xff\xfe", "is text in UTF-16: convert it"),
        ("mine.txt", b"a\nL\xe9on\n", r"is not UTF-8 \(byte 0xe9 in line 2\)"),
        ("mine.jsonl", b'{"text": null}\n', "line 1: text=None: give a text"),
        ("mine.jsonl", b'{"text": "\\ud83d"}\n', "line 1: text=.*: give valid Unicode"),
        ("mine.jsonl", b"\x1f\x8b\x08", "is compressed by gzip: unpack it"),
        pytest.param(
            *("mine.parquet", b"PAR1 half", "is damaged or is not a parquet"),
            marks=pytest.mark.needs("pyarrow"),
        ),
    ],
)
def test_a_damaged_file_is_an_error(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        list(open_corpus(str(tmp_path / name)).read(0))


@pytest.mark.parametrize(
    ("values", "kind"),
    [([["a"], []], "list"), ([{"en": "a"}], "struct"), ([3], "int64"), ([b"a"], "binary")],
)
def test_a_column_that_holds_no_texts_is_named(tmp_path, values, kind):
    path = write_parquet(tmp_path / "mine.parquet", values)
    with pytest.raises(CorpusError, match=rf"mine.parquet: column 'text' holds {kind}.* text_key"):
        open_corpus(str(path))
    path = write_parquet(path, ["a", None])
    with pytest.raises(CorpusError, match=r"mine.parquet, row 1: text=None: give a text"):
        list(open_corpus(str(path)).read(0))


def test_json_is_read_by_content_and_a_byte_order_mark_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    lines = [json.dumps({"text": text}) for text in TEXTS]
    for name, content in {
        "mine.json": "[" + ",\n".join(lines) + "]",
        "mine.jsonl": "[" + ",".join(lines) + "]",
        "lines.json": "\n".join(lines),
        "bom.jsonl": "\ufeff" + "\r\n".join(lines),
    }.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert list(open_corpus(f"~/{name}").read(0)) == TEXTS, name
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert list(open_corpus("~/bom.txt").read(0)) == ["a\nb"]
    assert list(open_corpus("~/bom.txt", sample_by="line").read(0)) == ["a", "b"]


@pytest.mark.needs("datasets")
def test_a_folder_of_save_to_disk(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "saved")
    assert list(open_corpus(str(tmp_path / "saved")).read(1)) == TEXTS[1:]


def test_a_table_without_the_column_is_an_error(tmp_path):
    path = write_parquet(tmp_path / "mine.parquet", TEXTS, key="body")
    with pytest.raises(CorpusError, match=r"no column 'text', only \['id', 'body'\]: .*text_key"):
        list(open_corpus(str(path)).read(0))


def test_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match=r"there is no .*absent\.jsonl"):
        open_corpus(str(tmp_path / "absent.jsonl"))
    with pytest.raises(CorpusError, match=r"there is no '\./absent'"):
        open_corpus("./absent")
    with pytest.raises(
        CorpusError, match=r"holds no \.arrow, \.json, \.jsonl, \.parquet, \.txt files"
    ):
        open_corpus(str(tmp_path))
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(CorpusError, match="sample_by='word': give one of document, line, para"):
        open_corpus(str(tmp_path), sample_by="word")


# Datasets


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder of parquet files, which `datasets` loads as it loads a dataset of the hub."""
    datasets = pytest.importorskip("datasets")
    write_parquet(tmp_path / "train-0.parquet", TEXTS[:3])
    write_parquet(tmp_path / "train-1.parquet", TEXTS[3:])
    monkeypatch.setattr(corpus, "_commit", lambda name, revision: revision or "c0ffee")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    load = datasets.load_dataset
    asked = []

    def load_dataset(name, config, *, revision, **options):
        asked.append((name, config, revision))
        return load(str(tmp_path), **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize("first", [0, 2, 4])
def test_a_dataset_is_streamed(hub, first):
    texts = open_corpus("someone/texts", config="en", revision="main")
    assert list(texts.read(first)) == TEXTS[first:]
    assert (texts.name, texts.revision) == ("someone/texts en", "main")
    assert texts.default_articles == 100_000
    assert hub == [("someone/texts", "en", "main")]


def test_wikipedia_is_todays_dump(hub):
    texts = open_corpus("wikipedia")
    assert hub == [("wikimedia/wikipedia", "20231101.en", "c0ffee")]
    assert (texts.name, texts.revision) == ("wikimedia/wikipedia 20231101.en", "c0ffee")


def test_a_dataset_needs_its_column_and_its_split(hub):
    with pytest.raises(CorpusError, match="no column 'body', only"):
        hugging_face("someone/texts", text_key="body")
    with pytest.raises(CorpusError, match=r"'someone/texts' does not load: .*split"):
        hugging_face("someone/texts", split="nowhere")


@pytest.mark.needs("datasets")
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("Dataset scripts are no longer supported, but found x"), "is a script"),
        (ConnectionError("no route"), r"`hf download a/b --repo-type=dataset --local-dir DIR`"),
        (type("RepositoryNotFoundError", (OSError,), {})(), "is neither on the Hugging Face hub"),
        (type("RevisionNotFoundError", (OSError,), {})(), "has no such revision"),
        (ValueError("Config name is missing."), "'a/b' does not load: Config name is missing"),
    ],
)
def test_a_dataset_that_does_not_load_is_one_sentence(monkeypatch, error, message):
    def fail(name, revision):
        raise error

    monkeypatch.setattr(corpus, "_commit", fail)
    with pytest.raises(CorpusError, match=message):
        open_corpus("a/b")


@pytest.mark.needs("datasets")
def test_the_command_for_wikipedia_takes_one_language(monkeypatch):
    def fail(name, revision):
        raise ConnectionError

    monkeypatch.setattr(corpus, "_commit", fail)
    with pytest.raises(CorpusError, match=r"--local-dir DIR --include '20231101\.en/\*'`"):
        open_corpus("wikipedia")


@pytest.mark.parametrize("missing", ["datasets", "pyarrow"])
def test_a_missing_package_is_an_error_that_names_the_extra(tmp_path, monkeypatch, missing):
    path = write_parquet(tmp_path / "mine.parquet", TEXTS)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        MissingPackageError, match=rf"needs {missing}: pip install 'rome_jax\[data\]'"
    ):
        open_corpus("a/b" if missing == "datasets" else str(path))
