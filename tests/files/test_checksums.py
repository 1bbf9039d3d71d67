"""Checksums of JSON files."""

import json

import pytest

from rome_jax.files.checksums import METADATA_KEY, has_damage, with_checksum
from rome_jax.files.json_files import read_object

CONTENT = {
    "layers": (0, 5),
    "scores": {7: [0.1 + 0.2, 1e-300, float("inf")]},
    "text": "Größe \ud83c",
}


def test_a_changed_byte_is_damage(tmp_path):
    path = tmp_path / "run.json"
    text = json.dumps(with_checksum(CONTENT), ensure_ascii=True)
    path.write_text(text)
    assert read_object(path) == json.loads(json.dumps(CONTENT))
    path.write_text(text.replace("0.3", "0.4"))
    with pytest.raises(ValueError, match=r"run\.json has changed since it was written .*: copy"):
        read_object(path, remedy="copy it")
    path.write_text(text.replace(METADATA_KEY, "other"))
    assert "other" in read_object(path), "a file without a checksum is read"


def test_a_checksum_is_replaced_and_comes_last():
    content = with_checksum({METADATA_KEY: "0"} | CONTENT)
    assert list(content)[-1] == METADATA_KEY and not has_damage(content)
    assert content == with_checksum(CONTENT)
