"""A sequence of edits on zsRE: its scores against a computation of each prompt alone, its texts, and its neighbors."""

import dataclasses
import math

import numpy as np
import pytest

from rome_jax.data.tokens import pad
from rome_jax.edit import METHODS, Editor, MethodName
from rome_jax.edit.editor_files import load_weights
from rome_jax.evaluation import load_dataset, sequence, sequence_scores
from rome_jax.evaluation.datasets import FACTWORLD, DatasetName, parse_zsre
from rome_jax.evaluation.evaluate import evaluate_records
from rome_jax.evaluation.metrics import accuracy
from rome_jax.evaluation.scoring import perplexity
from rome_jax.evaluation.sequence_measurement import check_requests
from rome_jax.evaluation.sequence_run import SequenceRun
from rome_jax.evaluation.sequence_scores import score_groups
from rome_jax.models import forward
from rome_jax.models.runs import read_run

BATCH = 4
KINDS = ("efficacy", "paraphrase", "neighborhood")


@pytest.fixture(scope="module")
def model(shipped_model):
    return shipped_model("factworld-gpt2")


@pytest.fixture(scope="module")
def dataset(model):
    """Questions of factworld, as those of a file: without a world."""
    found = load_dataset("zsre", model_name=model.name, limit=2 * BATCH)
    return dataclasses.replace(found, source="mine.json")


@pytest.fixture(scope="module")
def run(model, dataset, tmp_path_factory):
    """Two batches of MEMIT, in few steps of v*."""
    config = METHODS[MethodName.MEMIT].for_model(model.name)
    config = dataclasses.replace(config, v_num_grad_steps=4)
    editor = Editor.prepare(MethodName.MEMIT, model, config, templates=["{}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence_scores, "NEWEST", BATCH)
        found = SequenceRun.open(tmp_path_factory.mktemp("run"), editor, dataset, batch_size=BATCH)
        found.run()
    return found


def written(model, prompt, count=sequence_scores.NEW_TOKENS):
    """What a model writes after a prompt, one most likely token after the other."""
    ids = model.tokenizer.encode(prompt)
    start = len(ids)
    for _ in range(count):
        logits = forward.logits(model.params, model.config, pad([ids], multiple=64))
        ids = [*ids, int(np.asarray(logits)[0, len(ids) - 1].argmax())]
    return model.tokenizer.decode(ids[start:])


def test_the_scores_are_those_of_each_prompt_alone(run, model):
    params, _ = load_weights(run.state_path, model.params)
    edited = model.replace(params=params)
    last = run.rows()[-1]
    groups = {"earlier": run.records[:BATCH], "newest": run.records[BATCH:]}
    for name, records in groups.items():
        scores = last[name]
        assert (scores["records"], scores["of"], scores["neighbors"]) == (BATCH, BATCH, BATCH)
        results = evaluate_records(edited, DatasetName.ZSRE, records)
        kinds = ("rewrite", "paraphrase", "neighborhood")
        for kind, column in zip(KINDS, kinds, strict=True):
            judged = [accuracy(one[f"{column}_prompts_correct_by_token"]) for one in results]
            assert scores[kind] == pytest.approx(100 * np.mean(judged), abs=1e-9)
        asked = {
            "efficacy": [(one.request.text, one.request.target_new) for one in records],
            "paraphrase": [
                (prompt, one.request.target_new)
                for one in records
                for prompt in one.paraphrase_prompts
            ],
            "neighborhood": [pair for one in records for pair in one.unrelated],
        }
        for kind, pairs in asked.items():
            held = [answer in written(edited, prompt) for prompt, answer in pairs]
            assert scores[f"{kind}_generated"] == pytest.approx(100 * np.mean(held), abs=1e-9)
    assert last["newest"]["efficacy"] > run.rows()[0]["requests"]["efficacy"]
    assert last["perplexity"] == pytest.approx(perplexity(edited, run.texts), rel=1e-5)


def test_the_texts_are_the_locality_questions_with_their_answers(run, dataset):
    settings = read_run(run.directory)["settings"]
    assert settings["ds_name"] == "zsre" and settings["dataset"] == "mine.json"
    assert settings["perplexity_texts"] == "locality questions with their answers"
    texts = [
        f"{question} {answer}" for one in dataset.records for question, answer in one.unrelated
    ]
    assert run.texts == texts
    assert run.rows()[0]["kl"] == 0 < run.rows()[-1]["kl"]
    world = dataclasses.replace(dataset, source=FACTWORLD)
    assert check_requests(world) == world.records


def question(case_id, subject, locality, answer="Jane Austen"):
    """A record in MEND's layout."""
    found = {"case_id": case_id, "subject": subject, "src": f"Where is {subject}?"}
    found |= {"rephrase": f"In which city is {subject}?", "answers": ["Rome"]}
    return found | {"loc": f"nq question: {locality}", "loc_ans": answer}


def test_a_text_names_a_subject_in_any_case_as_whole_words():
    given = [
        ("Emma", "who wrote emma"),
        ("Persuasion", "who was persuasive"),
        ("Wessex", "who wrote it"),
    ]
    records = parse_zsre([question(i, *one) for i, one in enumerate(given)])
    texts = sequence.unedited_texts(None, records, 0)
    assert texts == [f"nq question: {one}? Jane Austen" for _, one in given[1:]]


def test_a_neighbor_whose_own_fact_was_edited_does_not_count(model):
    records = parse_zsre([question(0, "Emma", "where is the Abbey"), question(1, "Abbey", "x")])
    about_abbey = question(0, "Emma", "where is Abbey", "Rome")
    (record,) = parse_zsre([about_abbey])
    edited = sequence.edited_prompts(None, [record, records[1]])
    assert {"Where is Abbey?", "nq question: where is Abbey?"} < edited
    found = score_groups(model, {"newest": ([record], 1)}, edited)["newest"]
    assert (found.neighbors, found.neighbors_edited, found.neighborhood) == (0, 1, None)
    other = score_groups(model, {"newest": (records[:1], 1)}, edited)["newest"]
    assert (other.neighbors, other.neighbors_edited) == (1, 0)
    assert other.neighborhood is not None and math.isfinite(other.neighborhood)


def test_records_without_locality_questions_are_refused(dataset):
    bare = tuple(
        dataclasses.replace(one, locality_prompt=None, locality_prompts=())
        for one in dataset.records
    )
    with pytest.raises(ValueError, match=r"mine\.json has no locality questions with answers"):
        check_requests(dataclasses.replace(dataset, records=bare))
    with pytest.raises(ValueError, match=r"mine\.json has no records: give some"):
        check_requests(dataclasses.replace(dataset, records=()))
