"""`python -m eval.sequential_edits` with a few edits, and what it measures."""

import dataclasses
import json

import numpy as np
import pytest

from rome_jax.data.tokens import encode
from rome_jax.edit.config import ROMEConfig
from rome_jax.evaluation import sequence as sequential
from rome_jax.evaluation.datasets import DatasetName, load_dataset, parse_counterfact
from rome_jax.evaluation.scoring import perplexity
from rome_jax.factworld.facts import make_world
from rome_jax.factworld.records import Role, counterfact_records
from rome_jax.models import forward
from tests.programs import Program, refusal


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
    found = sequential.measure(model, world, records, texts)
    assert found.edits == 20
    assert found.retention <= 5
    assert found.neighborhood >= 95
    assert found.perplexity == perplexity(model, texts)


def test_neighbors_that_are_edited_themselves_do_not_count(world):
    (record,) = held_out(world, 1)
    prompts = sequential.edited_prompts(world, [record])
    assert record.request.text in prompts
    assert all(record.request.subject in prompt for prompt in prompts)
    assert len(prompts) == 6
    assert not prompts & set(record.neighborhood_prompts)


def test_records_of_a_file_are_measured_with_their_own_prompts(model):
    dataset = load_dataset(DatasetName.CF, path="sample", limit=3)
    records = sequential.check_records(dataset, 1)
    assert records == dataset.records
    first = records[0]
    texts = sequential.unedited_texts(None, records, 0)
    assert texts[0] == f"{first.neighborhood_prompts[0]} {first.target_true}" and len(texts) == 3
    edited = sequential.edited_prompts(None, records)
    assert edited == {p for r in records for p in (r.request.text, *r.paraphrase_prompts)}
    found = sequential.measure(model, None, records, texts)
    assert found.edits == 3 and found.perplexity == perplexity(model, texts)

    bare = dataclasses.replace(
        dataset, records=(dataclasses.replace(first, paraphrase_prompts=()),)
    )
    with pytest.raises(ValueError, match="the first 1 records have no paraphrase prompts that are"):
        sequential.check_records(bare, 1)
    own = dataclasses.replace(first, neighborhood_prompts=(first.request.text,))
    with pytest.raises(ValueError, match="have no neighborhood prompts that are not edited: give"):
        sequential.check_records(dataclasses.replace(dataset, records=(own,)), 1)
    with pytest.raises(ValueError, match=r"layers=\(0, 1\): give one layer"):
        sequential.run_modes(model, ROMEConfig(layers=(0, 1)), num_edits=1, dataset=dataset)


def test_texts_mention_no_edited_subject(world):
    records = held_out(world, 200)
    texts = sequential.unedited_texts(world, records, 0)
    assert len(texts) == sequential.TEXTS
    subjects = [record.request.subject for record in records]
    assert not any(subject in text for subject in subjects for text in texts)


@pytest.mark.needs("matplotlib")
def test_the_program_edits_the_records_of_a_file(world, tmp_path, monkeypatch):
    def steps(model, world, records, config, *_):
        assert world is None and config.v_num_grad_steps == 2
        after = {"edits": 1, "retention": 100.0, "neighborhood": 80.0, "perplexity": 2.1}
        return [{"edit": record.case_id, "norm_ratio": 0.1, "after": after} for record in records]

    monkeypatch.setattr(sequential, "run", steps)
    path = tmp_path / "cf.json"
    records = counterfact_records(world, 0, Role.HELD_OUT, 2)
    path.write_text(json.dumps(records))
    program = Program("eval.sequential_edits")
    flags = (f"--data_path={path}", f"--output_dir={tmp_path}", "--config.v_num_grad_steps=2")
    assert "--num_cases asks for 3 edits, but cf.json has 2 records: give at most 2" in refusal(
        program(*flags, "--num_cases=3")
    )
    done = program(*flags)
    assert done.returncode == 0, done.stderr
    first, second, third, *_ = done.stdout.splitlines()
    assert first == "Edits       2, the number of records of cf.json"
    assert second.startswith("Statistics  shipped: ")
    assert (
        third == "Data        cf.json; perplexity of neighborhood prompts with their true targets"
    )
    report = json.loads((tmp_path / "sequential.json").read_text())
    assert report["dataset"] == "cf.json" and len(report["dataset_sha256"]) == 64
    assert report["configuration"]["v_num_grad_steps"] == 2
    edited = [step["edit"] for step in report["runs"]["consistent"]]
    assert edited == [record["case_id"] for record in records]


@pytest.mark.needs("matplotlib")
@pytest.mark.usefixtures("few_texts")
def test_the_program_writes_numbers_and_a_figure(tmp_path):
    flags = ("--num_edits=3", "--every=2", f"--output_dir={tmp_path}")
    done = Program("eval.sequential_edits")(*flags)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "sequential.json").read_text())
    assert set(report["runs"]) == {"reference", "consistent"}
    for steps in report["runs"].values():
        assert [step["edit"] for step in steps] == [1, 2, 3]
        assert [step["after"]["edits"] for step in steps if "after" in step] == [2, 3]
        assert steps[-1]["after"]["retention"] == 100
        assert all(0.001 < step["norm_ratio"] < 10 for step in steps)
    assert (tmp_path / "sequential.png").read_bytes().startswith(b"\x89PNG")
