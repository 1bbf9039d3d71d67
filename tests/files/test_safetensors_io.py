"""Safetensors files: headers, damage, alignment, and writing that is complete or nothing."""

import os

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rome_jax.files import checksums
from rome_jax.files.safetensors_io import CheckpointError, open_file, read_header, write


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[1, 2]",
        b'{"a": 3}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": {"dtype": 3, "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 99999999999999999999]}}',
        b'{"__metadata__": {"a": 1}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',  # bytes of no tensor
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',  # a gap
        b'{"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]},'
        b' "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',  # an overlap
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},'
        b' "a": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}}',
        b'{"__metadata__": {"rome_jax.crc32": "{"}}',
    ],
)
def test_a_damaged_header_is_an_error(header, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read_header(path)


def test_a_quantized_dtype_is_named(tmp_path):
    header = b'{"h.0.w": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    with pytest.raises(CheckpointError, match=r"h\.0\.w as F8_E4M3"):
        read_header(path)


def test_headers_are_padded_so_that_tensors_are_aligned(tmp_path):
    path = tmp_path / "x.safetensors"
    for length in range(1, 12):
        name, value = "n" * length, np.arange(5, dtype=np.float32)
        write(path, {name: (value.dtype, value.shape)}, [value])
        stored = read_header(path)[name]
        assert stored.offset % 8 == 0
        assert np.array_equal(stored.read(), value)


def test_an_unaligned_file_of_another_writer_is_read(tmp_path):
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    for spaces in range(4):
        header = (
            b'{"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}' + b" " * spaces
        )
        path = tmp_path / "x.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + value.tobytes())
        assert np.array_equal(read_header(path)["a"].read(), value)


def test_headers_need_not_be_sorted(tmp_path):
    header = b'{"a": {"dtype": "U8", "shape": [5], "data_offsets": [3, 8]},'
    header += b' "b": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(range(8)))
    tensors = read_header(path)
    assert list(tensors) == ["a", "b"]
    assert tensors["a"].read().tolist() == [3, 4, 5, 6, 7]


def test_an_interrupted_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.safetensors"
    value = np.ones(3, np.float32)
    write(path, {"a": (value.dtype, value.shape)}, [value])
    before = path.read_bytes()

    def tensors():
        yield value
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, {"a": (value.dtype, (3,)), "b": (value.dtype, (3,))}, tensors())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def flip(path, offset=-1):
    """Changes a bit of a file."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("offset", [-1, -13])
def test_a_flipped_bit_is_noticed(tmp_path, offset):
    path = tmp_path / "x.safetensors"
    values = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), np.float16)}
    write(path, {name: (v.dtype, v.shape) for name, v in values.items()}, values.values())
    file = open_file(path)
    assert file.verified and load_file(path)["b"].shape == (2, 2)
    flip(path, offset)
    with pytest.raises(CheckpointError, match=r"x\.safetensors is truncated or damaged"):
        open_file(path)


def test_a_large_file_is_checked_when_it_is_new_or_has_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("ROME_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checksums, "_ALWAYS_CHECKED", 0)
    path, value = tmp_path / "x.safetensors", np.ones(9, np.float32)
    write(path, {"a": (value.dtype, value.shape)}, [value])
    seen = []
    monkeypatch.setattr(
        checksums, "checksum", lambda array, real=checksums.checksum: seen.append(1) or real(array)
    )
    open_file(path)  # it was checked when it was written
    assert not seen
    monkeypatch.setenv(checksums.VERIFY, "1")
    open_file(path)
    assert seen == [1]
    monkeypatch.delenv(checksums.VERIFY)
    os.utime(path, ns=(0, 0))
    for _ in range(2):
        open_file(path)
    assert seen == [1, 1]
    flip(path)
    with pytest.raises(CheckpointError):
        open_file(path)


def test_files_without_checksums_are_unverified(tmp_path):
    save_file({"a": np.ones(3)}, tmp_path / "x.safetensors", {"format": "pt"})
    assert not open_file(tmp_path / "x.safetensors").verified
