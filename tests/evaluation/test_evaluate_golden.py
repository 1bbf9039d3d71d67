"""Results of records before and after one of the original's edits, against the original's results."""

import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.request import EditRequest
from rome_jax.data.tokenization import continuation_ids, prompt_ids
from rome_jax.edit.delta import apply_delta
from rome_jax.evaluation import counterfact, zsre
from rome_jax.evaluation.datasets import DatasetName, ZsRERecord, parse_counterfact
from rome_jax.evaluation.evaluate import evaluate_records
from rome_jax.evaluation.generation import EssenceTarget, GenerationTests
from rome_jax.evaluation.metrics import essence_perplexity
from rome_jax.evaluation.scoring import score_queries, text_query
from rome_jax.evaluation.snippets import AttributeSnippets
from rome_jax.evaluation.text_metrics import fluency, reference_score, tfidf_vectorizer
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate

TOLERANCE = 1e-4  # relative; see the README of the golden files


@pytest.fixture(scope="module")
def case(golden):
    return golden("eval_gpt2")


@pytest.fixture(scope="module")
def model(golden_model):
    return golden_model("gpt2")


@pytest.fixture(scope="module")
def delta(case):
    """The golden edit, which has rank one, in factored form."""
    left, sizes, right = np.linalg.svd(case.arrays["wdelta"].astype(np.float64))
    assert sizes[1] < 1e-6 * sizes[0]
    update = LowRankUpdate(
        Leaf.MLP_DOWN,
        jnp.array([2]),
        jnp.asarray(left[None, :, :1] * sizes[0], jnp.float32),
        jnp.asarray(right[None, :1].swapaxes(1, 2), jnp.float32),
    )
    return Delta((update,))


@pytest.mark.parametrize("state", ["pre", "post"])
def test_counterfact_has_the_originals_numbers(case, model, delta, state):
    records = parse_counterfact([case.info["record"]])
    deltas = delta if state == "post" else None
    (found,) = evaluate_records(model, DatasetName.CF, records, deltas)
    for name, expected in case.info[state]["no_snips"].items():
        assert len(found[name]) == len(expected) > 0
        for one, other in zip(found[name], expected, strict=True):
            assert one == pytest.approx(other, rel=TOLERANCE)


def zsre_record(golden):
    rewrite = golden["requested_rewrite"]
    neighbors = golden["neighborhood_prompts"]
    return ZsRERecord(
        EditRequest(
            rewrite["prompt"],
            rewrite["subject"],
            rewrite["target_new"]["str"],
            rewrite["target_true"]["str"],
        ),
        tuple(golden["paraphrase_prompts"]),
        neighbors[0]["prompt"],
        "".join(neighbor["target"] for neighbor in neighbors).strip(),
    )


@pytest.mark.parametrize("state", ["pre", "post"])
def test_zsre_has_the_originals_answers(case, model, delta, state):
    record = zsre_record(case.info[state]["zsre_record"])
    deltas = delta if state == "post" else None
    (found,) = evaluate_records(model, DatasetName.ZSRE, [record], deltas)
    for name, expected in case.info[state]["zsre"].items():
        assert found[name] == expected
        assert found[f"{name}_by_token"] == expected, "no target splits a character here"


@pytest.mark.parametrize("state", ["pre", "post"])
def test_scores_of_the_originals_texts(case, golden, model, delta, state):
    expected = case.info[state]["with_snips"]
    assert fluency(expected["text"]) == pytest.approx(expected["ngram_entropy"], rel=1e-12)
    tfidf = golden("eval_tfidf")
    vectorizer = tfidf_vectorizer(tfidf.arrays["idf"], tfidf.info["vocabulary"])
    references = [sample["text"] for sample in tfidf.info["snippets"][0]["samples"]]
    actual = reference_score(vectorizer, expected["text"], references)
    assert actual == pytest.approx(expected["reference_score"], rel=1e-12)
    edited = model
    if state == "post":
        edited = model.replace(params=apply_delta(model.params, delta[0]))
    (ids,) = prompt_ids(model.tokenizer, expected["essence_text"])
    ((score,),) = score_queries(edited, [text_query(ids[:100])])
    actual = essence_perplexity(score.log_probs)
    assert actual == pytest.approx(expected["essence_score"], rel=TOLERANCE)


@pytest.mark.parametrize("essence", EssenceTarget)
def test_the_essence_text_is_looked_up_where_the_original_does(case, golden, model, essence):
    snippets = AttributeSnippets.from_groups(golden("eval_tfidf").info["snippets"])
    tests = GenerationTests(snippets, None, essence=essence)
    found = tests.essence_queries(model, parse_counterfact([case.info["record"]]))
    texts = [text for text, _ in found.values()]
    expected = [case.info["essence_text_used_for_ppl"]]
    assert texts == (expected if essence is EssenceTarget.NEW else [])
    assert GenerationTests(snippets, None).essence is EssenceTarget.NEW


def test_a_split_character_can_be_correct_by_token_but_never_as_text(model):
    """All tokens of the target count as hits, so only the comparison as text can fail."""
    target = "€"  # three bytes
    (ids,) = continuation_ids(model.tokenizer, [" " + target])
    assert len(ids) > 1
    record = ZsRERecord(
        EditRequest("What is {}?", "the file", target, "<|endoftext|>"),
        (),
        "nq question: who?",
        "is",
    )
    plan = zsre.plan(model, [record])
    texts = [query for query in plan.queries if query.prompt not in {plan.queries[0].prompt}]
    assert texts, "decoded and encoded again, the target's tokens are others"
    hits = [
        tuple(
            type(score)(score.log_probs, np.ones_like(score.hits)) if index == 0 else score
            for score in scores
        )
        for index, scores in enumerate(score_queries(model, plan.queries))
    ]
    (found,) = plan.results(hits)
    assert found["rewrite_prompts_correct_by_token"] == [True] * len(ids)
    assert found["rewrite_prompts_exact"] == [True]
    assert not all(found["rewrite_prompts_correct"])


def test_exact_is_greedy_decoding(case, model):
    from rome_jax.data.tokens import pad
    from rome_jax.models.generate import generate

    prompts = ["The file", "The Linux kernel is", "A new window"]
    ids = prompt_ids(model.tokenizer, prompts)
    said = generate(model.params, model.config, pad(ids), max_new_tokens=3).tokens(
        with_prompt=False
    )
    queries = [
        counterfact.Query(prompt, (tuple(tokens), (*tokens[:2], tokens[2] + 1)))
        for prompt, tokens in zip(ids, said, strict=True)
    ]
    for right, wrong in score_queries(model, queries):
        assert right.hits.all()
        assert wrong.hits.tolist() == [True, True, False]
