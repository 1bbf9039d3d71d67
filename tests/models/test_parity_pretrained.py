"""Whole models of transformers compared with ours: GGUF files, and tokenizers of SentencePiece with a begin token."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rome_jax.data.tokenization import begin_ids, prompt_ids
from rome_jax.data.tokens import TokenBatch, encode
from rome_jax.files.wheels import SMOLLM2
from rome_jax.models import forward
from rome_jax.models.export import save_hf
from rome_jax.models.generate import generate
from rome_jax.models.registry import load_model
from tests.data.test_tokenization import make
from tests.models.gguf_models import tiny_config, write_gguf

pytestmark = pytest.mark.parity

TEXTS = ["The mother tongue of Léon is", "1984 was written\n in 1948; he's", " two  spaces"]


def theirs(folder, **options):
    """Loads the model and the tokenizer of transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    return model, AutoTokenizer.from_pretrained(folder, **options)


def assert_same_logits(ours, model, ids):
    with torch.no_grad():
        want = model(torch.tensor([ids])).logits[0].numpy()
    batch = TokenBatch(np.array([ids], np.int32), np.ones((1, len(ids)), bool))
    got = np.asarray(forward.logits(ours.params, ours.config, batch))[0]
    assert np.abs(got - want).max() <= 1e-4 * want.std()


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.needs("gguf", "accelerate")
def test_a_gguf_file_gives_the_same_logits(tie, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", tiny_config(tie_embeddings=tie), tmp_path / "x", kind="Q8_0")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf").eval()
    assert_same_logits(load_model(tmp_path / "tiny.gguf"), model, [0, 5, 9, 40, 41, 3, 3])


@pytest.mark.skipif(not SMOLLM2.path.is_file(), reason="smollm2-135m is not in the cache")
@pytest.mark.needs("gguf", "accelerate")
def test_smollm2_is_the_model_that_transformers_reads_and_can_be_exported(tmp_path):
    ours = load_model("smollm2-135m", offline=True)
    model, tokenizer = theirs(SMOLLM2.path.parent, gguf_file=SMOLLM2.path.name)
    save_hf(tmp_path, ours)
    exported, exported_tokenizer = theirs(tmp_path)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids == prompt_ids(ours.tokenizer, [text])[0] == exported_tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == ours.tokenizer.decode(ids) == text
    assert_same_logits(ours, model, ids)
    assert_same_logits(ours, exported, ids)


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "LlamaTokenizerFast", None])
def test_prompts_are_tokenized_and_continued_as_in_transformers(kind, begin, name, tmp_path):
    """Also after an export, whatever class the tokenizer's files name."""
    tokenizer = make(kind, begin)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "theirs")
    tokenizer.save_pretrained(tmp_path / "theirs")
    settings = tmp_path / "theirs" / "tokenizer_config.json"
    if name is None:
        settings.unlink()
    else:
        settings.write_text(settings.read_text().replace("PreTrainedTokenizerFast", name))
    ours = load_model(tmp_path / "theirs")
    assert begin_ids(ours.tokenizer) == (1,) * begin
    save_hf(tmp_path / "ours", ours)
    exported = load_model(tmp_path / "ours")
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert prompt_ids(ours.tokenizer, [text]) == prompt_ids(exported.tokenizer, [text]) == [ids]
    batch = encode(ours.tokenizer, TEXTS, left=True)
    with torch.no_grad():
        want = model.generate(
            torch.tensor(batch.ids, dtype=torch.long),
            attention_mask=torch.tensor(batch.mask, dtype=torch.long),
            do_sample=False,
            max_new_tokens=8,
            pad_token_id=0,
        )
    made = generate(ours.params, ours.config, batch, max_new_tokens=8).tokens(with_prompt=False)
    np.testing.assert_array_equal(made, want[:, batch.ids.shape[1] :].numpy())
