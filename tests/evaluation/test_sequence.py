"""What a model with many edits is measured with: numbers of edits, texts, prompts, and scores before any edit."""

import dataclasses

import numpy as np
import pytest

from rome_jax.data.tokens import encode
from rome_jax.evaluation import sequence as sequential
from rome_jax.evaluation.datasets import DatasetName, load_dataset, parse_counterfact
from rome_jax.evaluation.scoring import perplexity
from rome_jax.evaluation.sequence_measurement import measure
from rome_jax.factworld.facts import make_world
from rome_jax.factworld.records import Role, counterfact_records
from rome_jax.models import forward


@pytest.fixture(scope="module")
def model(shipped_model):
    return shipped_model("factworld-gpt2")


@pytest.fixture
def few_texts(monkeypatch):
    """Computes perplexity over a tenth of the texts."""
    monkeypatch.setattr(sequential, "TEXTS", sequential.TEXTS // 10)


@pytest.fixture(scope="module")
def world():
    return make_world()


def held_out(world, count):
    return parse_counterfact(counterfact_records(world, 0, Role.HELD_OUT, count))


def measured(model, world, records, texts):
    size = len(records)
    settings = {"world": world, "texts": texts, "batch_size": size, "sample": size, "seed": 0}
    return measure(model, model, [], records, size, **settings)


def test_perplexity_is_that_of_each_text_alone(model):
    texts = ["Gothulf Punby plays the sport of fencing.", "It is a city.", "one two three four"]
    nlls = []
    for text in texts:
        batch = encode(model.tokenizer, [text])
        logits = np.asarray(forward.logits(model.params, model.config, batch), np.float64)[0, :-1]
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        nlls += (-log_probs[np.arange(len(logits)), batch.ids[0, 1:]]).tolist()
    assert perplexity(model, texts) == pytest.approx(np.exp(np.mean(nlls)), rel=1e-5)


def test_perplexity_needs_two_tokens(model):
    with pytest.raises(ValueError, match="no text has two tokens"):
        perplexity(model, ["a"])


@pytest.mark.usefixtures("few_texts")
def test_an_unedited_model_holds_no_edit_and_all_neighbors(model, world):
    records = held_out(world, 20)
    texts = sequential.unedited_texts(world, records, 0)
    found = measured(model, world, records, texts)
    assert found["edits"] == found["newest"]["records"] == 20
    assert found["newest"]["efficacy"] <= 5
    assert found["newest"]["neighborhood"] >= 95
    assert found["perplexity"] == perplexity(model, texts)


def test_neighbors_that_are_edited_themselves_do_not_count(world):
    (record,) = held_out(world, 1)
    prompts = sequential.edited_prompts(world, [record])
    assert record.request.text in prompts
    assert all(record.request.subject in prompt for prompt in prompts)
    assert len(prompts) == 6
    assert not prompts & set(record.neighborhood_prompts)


def test_records_of_a_file_are_measured_with_their_own_prompts(model):
    dataset = load_dataset(DatasetName.CF, path="sample", limit=3)
    records = dataset.records
    first = records[0]
    texts = sequential.unedited_texts(None, records, 0)
    assert texts[0] == f"{first.neighborhood_prompts[0]} {first.target_true}" and len(texts) == 3
    edited = sequential.edited_prompts(None, records)
    assert edited == {p for r in records for p in (r.request.text, *r.paraphrase_prompts)}
    found = measured(model, None, records, texts)
    assert found["edits"] == 3 and found["perplexity"] == perplexity(model, texts)

    bare = dataclasses.replace(first, paraphrase_prompts=())
    assert measured(model, None, [bare], texts)["newest"]["paraphrase"] is None
    own = dataclasses.replace(first, neighborhood_prompts=(first.request.text,))
    scores = measured(model, None, [own], texts)["newest"]
    assert (scores["neighborhood"], scores["neighbors"], scores["neighbors_edited"]) == (None, 0, 1)


def test_texts_mention_no_edited_subject(world):
    records = held_out(world, 200)
    texts = sequential.unedited_texts(world, records, 0)
    assert len(texts) == sequential.TEXTS
    subjects = [record.request.subject for record in records]
    assert not any(subject in text for subject in subjects for text in texts)


def test_counts_are_whole_numbers_up_to_a_thousand():
    assert sequential.read_counts(["30", "1", "1000", "1"], 1000) == [1, 30, 1000]
    for wrong in ([], ["0"], ["1001"], ["1", "x"], ["-3"], ["1.5"]):
        with pytest.raises(ValueError, match=r"--counts=.*give whole numbers from 1 to 1000"):
            sequential.read_counts(wrong, 1000)
