"""The models that come with the package: size, recall, reports, and second moments."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import rome_jax.factworld
from rome_jax import load_shipped
from rome_jax.factworld.facts import make_world
from rome_jax.factworld_training.recall import recalled

ASSETS = Path(rome_jax.factworld.__file__).parent / "assets"
NAMES = ("factworld-gpt2", "factworld-gptj")


@pytest.fixture(scope="module", params=NAMES)
def model(request, shipped_model):
    return shipped_model(request.param)


def directory(model):
    return ASSETS / model.config.family.value


def test_a_model_takes_less_than_seven_megabytes(model):
    assert sum(file.stat().st_size for file in directory(model).iterdir()) <= 7_000_000


def test_every_position_of_the_context_is_trained(model):
    report = json.loads((directory(model) / "training.json").read_text())
    losses = np.array(report["loss_by_position"])
    assert model.config.context_length >= 256
    assert losses.shape == (model.config.context_length - 1,)
    # The first tokens of a text are the hardest. After them, late positions are predicted as well as early ones.
    assert losses[128:].mean() < losses[8:128].mean() * 1.1


def test_report_and_second_moments_belong_to_the_weights(model):
    report = json.loads((directory(model) / "training.json").read_text())
    moments = load_shipped(model.name)
    assert report["fingerprint"] == model.fingerprint()
    assert sorted(moments) == list(range(model.config.num_layers))
    assert {moment.fingerprint for moment in moments.values()} == {model.fingerprint()}
    assert min(moment.count for moment in moments.values()) > 100 * model.config.mlp_width


def test_facts_are_recalled_on_every_paraphrase(model):
    report = json.loads((directory(model) / "training.json").read_text())
    assert report["recall"] >= 0.97  # of all facts
    world = make_world()
    assert set(report["recall_by_relation"]) == {relation.id for relation in world.relations}
    recall = recalled(model, dataclasses.replace(world, facts=world.facts[::9]))
    assert recall.shape == (200, 6)
    assert recall.mean() >= 0.97


@pytest.mark.slow
def test_all_facts_are_recalled(model):
    recall = recalled(model, make_world())
    assert recall.shape[0] >= 1500 and recall.shape[1] >= 5
    assert recall.mean() >= 0.97


def test_shipped_moments_of_another_model_are_an_error():
    with pytest.raises(ValueError, match="gpt2-xl"):
        load_shipped("gpt2-xl")


@pytest.mark.parity
def test_transformers_loads_the_same_model(model):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rome_jax import logits
    from rome_jax.data.tokens import encode

    text = "Gothulf Punby plays the sport of"
    theirs = AutoModelForCausalLM.from_pretrained(directory(model)).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory(model))
    with torch.no_grad():
        wanted = theirs(**tokenizer(text, return_tensors="pt")).logits.numpy()
    actual = np.asarray(logits(model.params, model.config, encode(model.tokenizer, [text])))
    assert np.abs(actual - wanted).max() <= 1e-4 * wanted.std()
