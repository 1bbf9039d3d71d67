"""Safetensors files: headers, damage, alignment, and writing that is complete or nothing."""

import numpy as np
import pytest

from rome_jax.files.safetensors_io import CheckpointError, read_header, write


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[1, 2]",
        b'{"a": 3}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        b"\xff\xfe",
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
