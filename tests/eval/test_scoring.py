"""Scores of targets, and records scored in one batch, against scoring alone with merged weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval import counterfact, scoring
from eval.scoring import target_nlls
from rome_jax.edit.delta import apply_delta
from rome_jax.models import forward
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate
from rome_jax.request import target_text
from rome_jax.tokens import SequenceTooLongError

PROMPTS = ["The file", "The mother tongue of Danielle Darrieux is", "A new window"]
TARGETS = ["is open", "French", "English"]


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
                jax.random.normal(left, (2, config.mlp_width, 1)),
                jax.random.normal(right, (2, config.width, 1)),
            ),
        )
    )


def nll_alone(model, prompt, target):
    """Mean NLL of a target with no batch and no padding."""
    ids = model.tokenizer(prompt)["input_ids"]
    wanted = model.tokenizer(target_text(target))["input_ids"]
    row = jnp.array([ids + wanted])
    batch = forward.TokenBatch(row, jnp.ones_like(row, bool))
    log_probs = jax.nn.log_softmax(forward.logits(model.params, model.config, batch)[0])
    places = np.arange(len(ids) - 1, len(ids) - 1 + len(wanted))
    return -float(log_probs[places, np.array(wanted)].mean())


def test_target_nlls_are_those_of_each_row_alone(model):
    wanted = [nll_alone(model, p, t) for p, t in zip(PROMPTS, TARGETS, strict=True)]
    for batch_size in (2, 256):
        actual = target_nlls(model, PROMPTS, TARGETS, batch_size=batch_size)
        np.testing.assert_allclose(actual, wanted, rtol=1e-5)


def test_factored_edits_score_as_merged_ones(model, deltas):
    case = [1, 0, 1]
    actual = target_nlls(model, PROMPTS, TARGETS, deltas=deltas, case=case)
    for row, which in enumerate(case):
        merged = model.replace(params=apply_delta(model.params, deltas[which]))
        wanted = nll_alone(merged, PROMPTS[row], TARGETS[row])
        assert actual[row] == pytest.approx(wanted, rel=2e-4), "float32, a large random edit"


def test_records_are_scored_by_their_own_edit(model, deltas):
    def record(case_id, neighbors):
        return {
            "case_id": case_id,
            "requested_rewrite": {
                "prompt": "The mother tongue of {} is",
                "subject": "Danielle Darrieux",
                "target_new": {"str": "English"},
                "target_true": {"str": "French"},
            },
            "paraphrase_prompts": ["Danielle Darrieux speaks"],
            "neighborhood_prompts": neighbors,
        }

    records = [record(0, ["The file"]), record(1, ["A new window", "The file is"])]
    scores = counterfact.score(model, records, deltas)
    merged = [model.replace(params=apply_delta(model.params, deltas[i])) for i in range(2)]
    prefers = [
        [
            nll_alone(m, p, "English") < nll_alone(m, p, "French")
            for p in (
                counterfact.to_request(r).text,
                *r["paraphrase_prompts"],
                *r["neighborhood_prompts"],
            )
        ]
        for m, r in zip(merged, records, strict=True)
    ]
    assert scores.efficacy.mean == 50 * (prefers[0][0] + prefers[1][0])
    assert scores.paraphrase.mean == 50 * (prefers[0][1] + prefers[1][1])
    kept = [np.mean([not p for p in case[2:]]) for case in prefers]
    assert scores.neighborhood.mean == pytest.approx(50 * sum(kept))


def test_prompts_that_cannot_be_scored_are_named(model):
    with pytest.raises(ValueError, match=r"prompt 1, '', has no tokens"):
        target_nlls(model, ["The file", ""], ["is", "is"])
    context = model.config.context_length
    long = " the" * context
    with pytest.raises(SequenceTooLongError, match=r"prompt 2, .* with .*more than the model's"):
        target_nlls(model, ["The file", long, long], ["is", "is", "open the window"])


def test_few_programs_are_compiled_for_few_rows(model):
    before = scoring._nlls._cache_size()
    for count in (1, 2, 3):
        target_nlls(model, PROMPTS[:1] * count, TARGETS[:1] * count)
    assert scoring._nlls._cache_size() <= before + 1
