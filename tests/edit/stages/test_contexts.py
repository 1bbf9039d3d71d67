"""Context templates that a model writes itself."""

from types import SimpleNamespace

import jax
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rome_jax.edit.baseline_config import FTConfig
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.stages.contexts import (
    given_or_sampled,
    read_templates,
    sample_templates,
    templates_for,
)
from rome_jax.files.records import DataError

END = "<|endoftext|>"
END_ID = 1999
LENGTHS = ((5, 10), (10, 10))  # the published ones: all tests sample with the same programs


def word_tokenizer(end, begin=None):
    """A tokenizer with one token per word, so that tokens can be counted in the text."""
    words = {f"w{i}": i for i in range(END_ID)} | {end: END_ID}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, eos_token=end)


@pytest.fixture(scope="module")
def word_model(model):
    return model.replace(tokenizer=word_tokenizer(END, begin=END))


@pytest.fixture(scope="module")
def sampled(model):
    assert model.tokenizer.bos_token == END
    return sample_templates(model, jax.random.key(0))


def prefixes(templates):
    return [template.removesuffix(". {}") for template in templates[1:]]


def test_the_bare_prompt_and_twenty_prefixes(sampled):
    assert len(sampled) == 21
    assert sampled[0] == "{}"
    assert all(template.endswith(". {}") for template in sampled[1:])
    assert len(set(sampled)) > 15, "each row is sampled independently"


def test_prefixes_are_clean(sampled):
    assert all(prefixes(sampled))
    assert not any(END in prefix or "\n\n" in prefix for prefix in prefixes(sampled))


def test_the_key_decides(model, sampled):
    assert sample_templates(model, jax.random.key(0)) == sampled
    other = sample_templates(model, jax.random.key(1))
    assert other[0] == "{}"
    assert not set(other[1:]) & set(sampled[1:])


def test_lengths_count_the_begin_of_text_token(word_model):
    templates = sample_templates(word_model, jax.random.key(0), LENGTHS)
    counts = [len(prefix.split()) for prefix in prefixes(templates)]
    # Only an end token, which is dropped, makes a text shorter. This seed draws none.
    assert counts == [4] * 10 + [9] * 10


def test_pairs_of_one_length_are_sampled_independently(word_model):
    templates = sample_templates(word_model, jax.random.key(0), ((5, 10), (5, 10)))
    first, second = set(templates[1:11]), set(templates[11:])
    assert len(first - second) > 5 and len(second - first) > 5


@pytest.mark.parametrize("end", [END, "</s>"])
def test_end_tokens_inside_are_dropped(word_model, end):
    embedding = word_model.params["wte"]["embedding"]
    # The bias of the final LayerNorm favors the end token, which is therefore sampled often, but not always.
    leaning = word_model.params["ln_f"] | {"bias": 10.0 * embedding[END_ID]}
    leaning = word_model.replace(
        params=word_model.params | {"ln_f": leaning}, tokenizer=word_tokenizer(end)
    )
    templates = sample_templates(leaning, jax.random.key(0), LENGTHS)
    counts = [len(prefix.split()) for prefix in prefixes(templates)]
    assert min(counts[:10]) < 4
    assert min(counts[10:]) < 9, "some were sampled"
    assert max(counts) > 0, "but not only those"
    assert all(end not in template for template in templates)


def test_a_tokenizer_without_a_begin_of_text_token_is_an_error():
    nameless = SimpleNamespace(bos_token=None, eos_token=None)
    with pytest.raises(ValueError, match=r"tiny has no begin-of-text token.*pass templates="):
        sample_templates(SimpleNamespace(name="tiny", tokenizer=nameless), jax.random.key(0))


def test_an_end_token_replaces_a_missing_begin_token(word_model):
    tokenizer = word_tokenizer(END)
    assert tokenizer.bos_token is None
    without = word_model.replace(tokenizer=tokenizer)
    templates = sample_templates(without, jax.random.key(0), LENGTHS)
    assert templates == sample_templates(word_model, jax.random.key(0), LENGTHS)


def test_a_configuration_says_which_templates_it_needs(model, sampled):
    assert templates_for(model, ROMEConfig((0,)), seed=0) == sampled
    assert templates_for(model, FTConfig((0,))) == ()


def test_given_templates_need_no_key_and_sampled_ones_do(model, sampled):
    given = ("{}", "A. {}")
    assert given_or_sampled(model, given, None, ()) == given
    key = jax.random.key(0)
    assert given_or_sampled(model, None, key, LENGTHS) == sampled
    with pytest.raises(ValueError, match="templates and key are both None: give one"):
        given_or_sampled(model, None, None, ())
    for bad in ((), ("A. {}", "{}")):
        with pytest.raises(ValueError, match=r"the first template must be '\{\}', the bare prompt"):
            given_or_sampled(model, bad, key, ())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '["{}", "A {b}. {}"]'),
        ("memit.json", '[["{}"], ["A {b}. {}"]]'),
        ("a.txt", "\ufeff{}\r\nA {b}. {}\r\n\r\n"),
    ],
)
def test_templates_are_read_from_a_file(tmp_path, name, content):
    (tmp_path / name).write_text(content, newline="")
    assert read_templates(tmp_path / name) == ("{}", "A {b}. {}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["A. {}"]', r"the first template must be '\{\}', the bare prompt"),
        ("[]", r"the first template must be '\{\}'"),
        ('["{}", "A."]', r"the template 'A.' must end in '\{\}'"),
        ('["{}", "A {} {}"]', "and have no other"),
        ('["{}", null]', r"a.json\[1\]=None: give a text"),
        ('{"templates": ["{}"]}', "give a text"),
        ('["{}", "\\ud800 {}"]', "valid Unicode"),
    ],
)
def test_templates_that_no_run_could_have_used_are_refused(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_templates(path)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, None])
def test_a_seed_that_is_not_one_is_refused(model, seed):
    with pytest.raises(ValueError, match=r"^seed="):
        templates_for(model, ROMEConfig((0,)), seed=seed)
