"""The reader of texts and records: every format by its content, and a sentence for everything else."""

import codecs
import gzip
import json
import os
import pickle

import numpy as np
import pytest

from rome_jax.files import memory
from rome_jax.files.extras import MissingPackageError
from rome_jax.files.records import (
    DataError,
    find,
    parse_json,
    read_document,
    read_json,
    read_records,
    read_text,
)

ROWS = [{"id": 3, "text": "Léon", "more": {"a": [1, None]}}, {"id": 5, "text": "", "more": None}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def table():
    return pytest.importorskip("pyarrow").Table.from_pylist(ROWS)


def write_parquet(path):
    pytest.importorskip("pyarrow.parquet").write_table(table(), path)


def write_arrow(path):
    pa = pytest.importorskip("pyarrow")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table().schema) as writer:
        writer.write_table(table())


def write_stream(path):
    pa = pytest.importorskip("pyarrow")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table().schema) as writer:
        writer.write_table(table())


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text(json.dumps(ROWS)),
        lambda path: path.write_text(json.dumps(ROWS, indent=1, ensure_ascii=False)),
        lambda path: path.write_text(LINES),
        lambda path: path.write_text(LINES.replace("\n", "\r\n\n")),
        lambda path: path.write_bytes(codecs.BOM_UTF8 + json.dumps(ROWS).encode()),
        lambda path: path.write_bytes(codecs.BOM_UTF8 + LINES.encode()),
        write_parquet,
        write_arrow,
        write_stream,
    ],
)
@pytest.mark.parametrize("name", ["rows.json", "rows.parquet"])
def test_records_are_read_by_content_and_not_by_extension(tmp_path, write, name):
    write(tmp_path / name)
    rows, sha256 = read_records(tmp_path / name)
    assert rows == ROWS and len(sha256) == 64


@pytest.mark.needs("datasets")
def test_folders_of_datasets(tmp_path):
    import datasets

    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one")
    assert read_records(tmp_path / "one")[0] == ROWS
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "dict")
    assert read_records(tmp_path / "dict")[0] == ROWS
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "two")
    with pytest.raises(
        DataError, match=r"two holds 2 splits: give the folder of one \(.*two/test,"
    ):
        read_records(tmp_path / "two")


def test_one_object_is_one_record_and_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "one.json").write_text('{"a": 1}')
    assert read_records("~/one.json")[0] == [{"a": 1}]
    (tmp_path / "bom.txt").write_bytes(codecs.BOM_UTF8 + b"one\n")
    assert read_text("~/bom.txt") == "one\n"
    (tmp_path / "hparams.yaml").write_text("layers: [17]\nv_lr: 5e-1\n")
    assert read_document("~/hparams.yaml") == {"layers": [17], "v_lr": "5e-1"}
    with pytest.raises(
        DataError, match=r"there is no file ~no\.such\.user/x: give the path of a file"
    ):
        find("~no.such.user/x")


def test_a_field_may_be_repeated_with_the_same_value(tmp_path):
    (tmp_path / "one.json").write_text('{"a": [1], "a": [1]}')
    assert read_records(tmp_path / "one.json")[0] == [{"a": [1]}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\na: 2", r"\(it has the field a twice, line 2\): correct it"),
        ("a: {b: 1, b: 1}", r"\(it has the field b twice, line 1\)"),
        ("a: &x [1]\nb: *x", r"\(it has an alias \(\*NAME\), line 2\)"),
        ("a:\n\tb: 1", "cannot start any token"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("[" * 600, "is nested too deeply: give fewer levels"),
        ("a: " + "9" * 5000, "is not YAML that is read"),
        ("x" * (1 << 16) + "y", "has 65,537 characters of YAML: give it as JSON"),
    ],
)
def test_yaml_that_is_not_read(tmp_path, content, message):
    (tmp_path / "hparams.yaml").write_text(content)
    with pytest.raises(DataError, match=rf"hparams\.yaml .*{message}"):
        read_document(tmp_path / "hparams.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: copy it again"),
        (b" \n", "is empty: copy it again"),
        (b'[{"a": "b', r"ends within a value \(column 8\): it was cut short; copy it again"),
        (b'{"a": 1}\n{"a": \n', r"line 2, ends within a value"),
        (b'{"a": 1}\n{"b" 2}\n', r"line 2, is not JSON \(Expecting ':' delimiter, column 6\)"),
        (b"[1, 2,\n x]", r"is not JSON \(Expecting value, line 2, column 2\): correct it"),
        (b"layers: [17]", "is not JSON"),
        (b"[" * 100_000, "is nested too deeply: give fewer levels"),
        (b'{"a":' * 100_000, "is nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", "holds an integer of too many digits"),
        ('["Léon"]'.encode("latin-1"), r"is not UTF-8 \(byte 0xe9 in line 1\) .*such as Latin-1"),
        ('["Léon"]'.encode("utf-16"), "is text in UTF-16: convert it to UTF-8 with iconv"),
        ('["Léon"]'.encode("utf-16-be"), "is text in UTF-16: .* -f UTF-16BE"),
        ('["Léon"]'.encode("utf-32"), "is text in UTF-32"),
        ("Léon"[:2].encode()[:-1], "is not UTF-8 .* ends within a character, so it was cut short"),
        (gzip.compress(b"[]", mtime=0), "is compressed by gzip: unpack it with gunzip"),
        (b"PK\x03\x04rest", "is a zip archive"),
        (b"BZh9", "is compressed by bzip2"),
        (pickle.dumps([1]), "is a pickle, which is not read because it can run code"),
        (b"\x93NUMPY\x01\x00", "is an array of NumPy"),
        (b"<!DOCTYPE html>\n<html>", "is an HTML page, .*: download the file itself"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
            "is a Git LFS pointer .*pull",
        ),
        (b'["\0\1\2", "\0\0"]', "is not a text: it has NUL bytes"),
        (b'[{"a": 1, "a": 2}]', "has the field 'a' twice: leave one of them out"),
        (b'{"b": {"a": [], "a": {}}}', "has the field 'a' twice"),
    ],
)
def test_what_a_file_is_instead_is_said(tmp_path, content, message):
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"rows\.json,? ?{message}" if content else message):
        read_records(path)


@pytest.mark.needs("pyarrow")
@pytest.mark.parametrize("write", [write_parquet, write_stream])
def test_a_damaged_table_is_named_wherever_it_is_damaged(tmp_path, write):
    path = tmp_path / "rows.parquet"
    write(path)
    content = path.read_bytes()
    for place in np.linspace(4, len(content) - 1, 40).astype(int):
        path.write_bytes(content[:place])
        with pytest.raises(DataError, match=r"rows\.parquet is damaged or is not a parquet"):
            read_records(path)
        path.write_bytes(content[:place] + b"\xff" * 8 + content[place + 8 :])
        try:
            read_records(path)  # some bytes are padding, or text
        except DataError as error:
            assert "rows.parquet" in str(error)


def test_sizes_are_compared_with_the_memory_of_the_machine(tmp_path, monkeypatch):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS))
    monkeypatch.setattr(memory, "machine_memory", lambda: 500)
    with pytest.raises(DataError, match=r"rows\.json, parsed, needs about 0\.0 GB of memory, and"):
        read_records(path)
    monkeypatch.setattr(memory, "machine_memory", lambda: None)
    assert read_records(path)[0] == ROWS


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert find(tmp_path / "pipe") == tmp_path / "pipe"
    for path, message in [
        ("a\0b", "has a NUL character: leave it out"),
        ("/dev/zero", "/dev/zero is a device: give the path of a file"),
        (tmp_path, "is a folder: give a file of records, or a folder of save_to_disk"),
    ]:
        with pytest.raises(DataError, match=message):
            read_records(path)
    with pytest.raises(DataError, match="is a folder: give the path of a file"):
        read_json(tmp_path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r"needs pyarrow: pip install 'rome_jax\[data\]'"):
        read_records(tmp_path / "rows.parquet")


def test_the_error_is_of_the_callers_class():
    class OwnError(ValueError):
        pass

    with pytest.raises(OwnError, match="the index is not JSON"):
        parse_json("x", "the index", error=OwnError)
