"""Tokenizers of the newer families: tokenizer.json alone decides, whatever class the other files name."""

import json

import pytest

from rome_jax.data.tokenization import begin_ids
from rome_jax.models.tokenizer import load_tokenizer
from tests.data.test_tokenization import make
from tests.models.checkpoints import tiny_config

TEXTS = ["The mother tongue of Léon is", "1984 was written\n in 1948", " two  spaces"]


@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "GPT2Tokenizer", None])
@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_tokenizer_json_decides(kind, name, tmp_path):
    tokenizer = make(kind, True)
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": name}
    path.write_text(json.dumps({key: value for key, value in settings.items() if value}))
    found = load_tokenizer(tmp_path, tiny_config("llama", vocab_size=len(tokenizer)))
    assert found(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert begin_ids(found) == (1,) and found.bos_token_id == 1
    found.save_pretrained(tmp_path / "exported")
    exported = load_tokenizer(tmp_path / "exported", tiny_config("llama", vocab_size=len(found)))
    assert exported(TEXTS)["input_ids"] == found(TEXTS)["input_ids"]
