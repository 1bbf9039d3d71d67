"""Records evaluated in batches with factored deltas, against merging each delta and evaluating it alone."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from rome_jax.data.tokens import SequenceTooLongError
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.delta import apply_delta
from rome_jax.edit.method import MethodName
from rome_jax.evaluation import datasets
from rome_jax.evaluation.datasets import DatasetName, load_dataset
from rome_jax.evaluation.evaluate import check_record, evaluate_records
from rome_jax.evaluation.generation import EssenceTarget, GenerationTests
from rome_jax.evaluation.snippets import load_snippets, load_tfidf
from rome_jax.evaluation.summaries import State, summarize
from rome_jax.evaluation.text_metrics import tfidf_vectorizer
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import SHIPPED
from tests.evaluation.edits import DenseRandomEdits, RandomEdits, assert_same

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CASES = 20


@pytest.fixture(scope="module")
def gpt2(shipped_model):
    return shipped_model("factworld-gpt2")


@pytest.fixture(scope="module")
def generation():
    vectorizer = tfidf_vectorizer(*load_tfidf(factworld=True))
    return GenerationTests(load_snippets(factworld=True), vectorizer, 3, EssenceTarget.TRUE)


def records_of(name, model, count=CASES):
    return load_dataset(name, model_name=model.name, limit=count).records


def random_edits(model, records, kind=RandomEdits):
    editor = kind.prepare(
        MethodName.ROME, model, ROMEConfig(layers=(0,), context_template_length_params=())
    )
    return editor.compute([record.request for record in records])


def merged(model, delta):
    return model.replace(params=apply_delta(model.params, delta))


@pytest.mark.slow
@pytest.mark.parametrize("name", DatasetName)
@pytest.mark.parametrize("model_name", SHIPPED)
def test_a_batch_of_factored_edits_is_each_edit_merged_and_scored_alone(
    shipped_model, model_name, generation, name
):
    model = shipped_model(model_name)
    records = records_of(name, model)
    deltas = random_edits(model, records)
    texts = generation if name is DatasetName.CF else None
    batch = evaluate_records(model, name, records, deltas, generation=texts)
    assert len(batch) == CASES
    for case, (record, found) in enumerate(zip(records, batch, strict=True)):
        (alone,) = evaluate_records(merged(model, deltas[case]), name, [record], generation=texts)
        assert_same(found, alone)
    if texts:
        names = {"ngram_entropy", "reference_score", "text", "essence_score", "essence_text"}
        assert all(names <= found.keys() for found in batch)
        assert any("portability_prompts_exact" in found for found in batch)


@pytest.mark.slow
def test_neither_batch_size_nor_order_changes_a_case(gpt2, generation):
    records = records_of(DatasetName.CF, gpt2, 32)
    deltas = random_edits(gpt2, records)
    whole = evaluate_records(gpt2, DatasetName.CF, records, deltas, generation=generation)
    order = np.random.default_rng(0).permutation(8)
    for size in (1, 7):
        for start in range(0, 8, size):
            cases = order[start : start + size]
            part = evaluate_records(
                gpt2,
                DatasetName.CF,
                [records[case] for case in cases],
                jax.tree.map(lambda leaf, cases=cases: leaf[cases], deltas),
                generation=generation,
                max_tokens=300,
            )
            for case, found in zip(cases, part, strict=True):
                assert_same(found, whole[case])


def test_a_dense_edit_is_merged_and_scored_alone(gpt2, generation, monkeypatch):
    monkeypatch.setattr("rome_jax.evaluation.generation._LENGTH", 32)
    records = records_of(DatasetName.CF, gpt2, 2)
    deltas = random_edits(gpt2, records, DenseRandomEdits)
    assert not deltas.factored
    batch = evaluate_records(gpt2, DatasetName.CF, records, deltas, generation=generation)
    for case, record in enumerate(records):
        (alone,) = evaluate_records(
            merged(gpt2, deltas[case]), DatasetName.CF, [record], generation=generation
        )
        assert_same(batch[case], alone)
    (before,) = evaluate_records(gpt2, DatasetName.CF, records[:1])
    assert before["rewrite_prompts_probs"] != batch[0]["rewrite_prompts_probs"]


def test_as_many_edits_as_records_are_needed(gpt2):
    records = records_of(DatasetName.CF, gpt2, 2)
    with pytest.raises((ValueError, TypeError), match=r"case axis|1 deltas for 2 records"):
        evaluate_records(gpt2, DatasetName.CF, records, Delta(()))


def test_locality_and_portability_prompts_are_scored(gpt2):
    known = ("Gothulf Punby plays the sport of", "rowing")
    unknown = ("Gothulf Punby plays the sport of", "Rome")
    probes = {"locality_prompts": (known, unknown), "portability_prompts": (known,)}
    (fact,) = records_of(DatasetName.CF, gpt2, 1)
    (result,) = evaluate_records(gpt2, DatasetName.CF, [dataclasses.replace(fact, **probes)])
    assert result["neighborhood_prompts_correct"][0] is True
    assert not all(result["neighborhood_prompts_correct"][1:])
    assert result["portability_prompts_exact"] == [True]
    (question,) = records_of(DatasetName.ZSRE, gpt2, 1)
    (result,) = evaluate_records(gpt2, DatasetName.ZSRE, [dataclasses.replace(question, **probes)])
    assert result["neighborhood_prompts_correct"][0] is True
    assert result["portability_prompts_exact"] == result["portability_prompts_correct"] == [True]
    metrics = summarize([{"case_id": 0, "post": result}]).state(State.POST)
    assert metrics["portability_acc"].mean == metrics["portability_exact"].mean == 100
    assert metrics["neighborhood_acc"].mean < 100


@pytest.mark.parametrize("name", DatasetName)
def test_a_record_that_does_not_fit_the_context_is_refused_before_it_is_scored(gpt2, name):
    (record,) = records_of(name, gpt2, 1)
    check_record(gpt2, name, record)
    words = "word " * gpt2.config.context_length
    request = dataclasses.replace(record.request, target_new=words.rstrip())
    for changes in ({"paraphrase_prompts": (words,)}, {"request": request}):
        with pytest.raises(SequenceTooLongError, match="more than the model's context"):
            check_record(gpt2, name, dataclasses.replace(record, **changes))


def test_records_of_the_other_data_set_are_refused(gpt2):
    questions = records_of(DatasetName.ZSRE, gpt2, 1)
    with pytest.raises(ValueError, match="not all records are of type CounterFactRecord"):
        evaluate_records(gpt2, DatasetName.CF, questions)


@pytest.mark.parametrize(
    ("file", "name"),
    [("counterfact_sample_100.json", DatasetName.CF), ("zsre_sample_100.json", DatasetName.ZSRE)],
)
def test_real_records_are_scored(gpt2, file, name):
    """Real records have unusual characters and long subjects; the scores of this model mean nothing."""
    if not DATA.is_dir():
        pytest.skip("the real records are not beside the checkout")
    records = load_dataset(name, path=DATA / file).records
    results = evaluate_records(gpt2, name, records)
    assert len(results) == 100
    json.dumps(results, allow_nan=False)
    if name is DatasetName.CF:
        assert all(result["neighborhood_prompts_probs"] for result in results)
        assert not any("text" in result for result in results)


def test_all_embedded_records_have_the_references_that_the_metrics_need(generation):
    for record in load_dataset(DatasetName.CF, model_name="factworld-gpt2").records:
        assert generation.snippets.texts(record.relation_id, record.target_new_id)
        true = generation.snippets.texts(record.relation_id, record.target_true_id)
        assert record.request.subject in {snippet.name for snippet in true}
    assert datasets.FACTWORLD == "factworld"
