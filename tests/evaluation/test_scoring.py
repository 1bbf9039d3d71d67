"""Scores of targets that are packed into shared rows, against scoring each target alone with merged weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import SequenceTooLongError, pad
from rome_jax.edit.delta import apply_delta
from rome_jax.evaluation import counterfact, scoring
from rome_jax.evaluation.datasets import CounterFactRecord
from rome_jax.evaluation.scoring import Query, make_queries, score_queries, target_nlls
from rome_jax.models import forward
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate

forward_pass = jax.jit(forward.logits, static_argnums=1)
PROMPTS = ["The file", "The mother tongue of Danielle Darrieux is", "A new window"]
TARGETS = [["is open", "English"], ["French", "English", "the system of a window"], ["is"]]


@pytest.fixture(scope="module", params=["gpt2", "gptj"])
def model(request, golden_model):
    return golden_model(request.param)


@pytest.fixture(scope="module")
def deltas(model):
    left, right = jax.random.split(jax.random.key(0))
    config = model.config
    return Delta(
        (
            LowRankUpdate(
                Leaf.MLP_DOWN,
                jnp.array([1, 4]),
                0.3 * jax.random.normal(left, (2, config.mlp_width, 1)),
                0.3 * jax.random.normal(right, (2, config.width, 1)),
            ),
        )
    )


def alone(model, prompt, target):
    """Log-probabilities and hits of a target's tokens, with no other prompt and no other target."""
    batch = pad([[*prompt, *target[:-1]]], multiple=32)  # one program for rows of all lengths
    logits = forward_pass(model.params, model.config, batch)[0]
    places = np.arange(len(prompt) - 1, len(prompt) - 1 + len(target))
    target = np.array(target)
    log_probs = jax.nn.log_softmax(logits)[places, target]
    return np.asarray(log_probs), np.asarray(logits.argmax(-1)[places] == target)


def check(model, queries, scores, deltas=None, rtol=1e-5):
    assert len(scores) == len(queries)
    for query, found in zip(queries, scores, strict=True):
        own = model
        if deltas is not None:
            own = model.replace(params=apply_delta(model.params, deltas[query.case]))
        for target, score in zip(query.targets, found, strict=True):
            log_probs, hits = alone(own, query.prompt, target)
            np.testing.assert_allclose(score.log_probs, log_probs, rtol=rtol)
            assert score.hits.tolist() == hits.tolist()
            assert score.nll == pytest.approx(-log_probs.mean(), rel=rtol)


def test_targets_that_share_a_prompt_score_as_alone(model):
    queries = make_queries(model, PROMPTS, TARGETS)
    check(model, queries, score_queries(model, queries))


def test_a_hit_is_a_hit(model):
    """Random targets are never the most likely token; the model's own choice is."""
    (prompt,) = scoring.prompt_ids(model, PROMPTS[:1])
    logits = forward_pass(model.params, model.config, pad([prompt], multiple=32))
    best = int(logits[0, len(prompt) - 1].argmax())
    ((score,),) = score_queries(model, [Query(prompt, ((best, best),))])
    assert score.hits[0]


def test_factored_edits_score_as_merged_ones(model, deltas):
    cases = [1, 0, 1]
    queries = make_queries(model, PROMPTS, TARGETS, cases)
    assert [query.case for query in queries] == cases
    check(model, queries, score_queries(model, queries, deltas), deltas, rtol=1e-4)


def test_one_edit_serves_all_queries(model, deltas):
    queries = make_queries(model, PROMPTS, TARGETS, [0, 0, 0])
    check(model, queries, score_queries(model, queries, deltas[0]), deltas, rtol=1e-4)


LENGTHS = [(1,), (5, 2), (3, 1, 4)]  # of the targets of a prompt


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_scores_depend_neither_on_the_batch_nor_on_the_order(golden_model, seed):
    model = golden_model("gpt2")
    rng = np.random.default_rng(seed)

    def ids(size):
        return tuple(rng.integers(0, model.config.vocab_size, size).tolist())

    # The tokens differ between examples, and the lengths do not: all examples share their programs.
    queries = [
        Query(ids(prompt), tuple(map(ids, targets)))
        for prompt, targets in zip(
            (1, 2, 3, 5, 7, 8, 11, 13, 14, 17, 19, 20), 4 * LENGTHS, strict=True
        )
    ]
    expected = score_queries(model, queries)
    order = rng.permutation(len(queries))
    for max_tokens in (64, 16_384):
        found = score_queries(model, [queries[i] for i in order], max_tokens=max_tokens)
        for place, index in enumerate(order):
            for one, other in zip(found[place], expected[index], strict=True):
                np.testing.assert_allclose(one.log_probs, other.log_probs, rtol=1e-5)


def test_targets_may_fill_the_context_side_by_side(golden_model):
    model = golden_model("gpt2")
    context = model.config.context_length
    query = Query((5,) * (context - 3), ((7, 8, 9, 10), (11, 12, 13, 14), (1,)))
    assert len(query) > context
    check(model, [query], score_queries(model, [query]))


def record(case_id, neighbors):
    request = EditRequest(
        "The mother tongue of {} is", "Danielle Darrieux", "English", "French", case_id
    )
    return CounterFactRecord(request, ("Danielle Darrieux speaks",), tuple(neighbors))


def test_records_are_scored_by_their_own_edit(model, deltas):
    records = [record(0, ["The file"]), record(1, ["A new window", "The file is"])]
    scores = counterfact.score(model, records, deltas)
    prefers = []
    for case, one in enumerate(records):
        merged = model.replace(params=apply_delta(model.params, deltas[case]))
        texts = [one.request.text, *one.paraphrase_prompts, *one.neighborhood_prompts]
        new, true = (target_nlls(merged, texts, [t] * len(texts)) for t in ("English", "French"))
        prefers.append((new < true).astype(float))
    assert scores.efficacy.mean == 50 * (prefers[0][0] + prefers[1][0])
    assert scores.paraphrase.mean == 50 * (prefers[0][1] + prefers[1][1])
    kept = [np.mean(1 - case[2:]) for case in prefers]
    assert scores.neighborhood.mean == pytest.approx(50 * sum(kept))


def test_prompts_that_cannot_be_scored_are_named(model):
    with pytest.raises(ValueError, match=r"prompt 1, '', has no tokens"):
        target_nlls(model, ["The file", ""], ["is", "is"])
    context = model.config.context_length
    long = " the" * context
    with pytest.raises(SequenceTooLongError, match=r"prompt 2, .* with .*more than the model's"):
        target_nlls(model, ["The file", long, long], ["is", "is", "open the window"])


def test_no_queries_have_no_scores(model):
    assert score_queries(model, []) == []


def test_few_programs_are_compiled_for_few_rows(golden_model):
    model = golden_model("gpt2")
    before = scoring._score._cache_size()
    for count in (5, 6, 7, 8):
        target_nlls(model, [PROMPTS[0] + " is" * i for i in range(count)], ["is"] * count)
    assert scoring._score._cache_size() <= before + 1


def test_a_query_counts_the_tokens_that_run():
    query = Query((1, 2, 3), ((4,), (5, 6, 7)))
    assert len(query) == 5
    assert len(dataclasses.replace(query, targets=((4,),))) == 3
