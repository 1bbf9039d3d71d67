import numpy as np
import pytest
import scipy.special
import scipy.stats

from rome_jax.data.tokens import TokenBatch
from rome_jax.evaluation.metrics import (
    accuracy,
    essence_perplexity,
    estimate,
    exact,
    harmonic_mean,
    magnitude,
    success,
)
from rome_jax.models import forward


def test_success_prefers_the_lower_loss_and_a_tie_fails():
    assert success(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])).tolist() == [1, 0, 0]


def test_magnitude_is_a_difference_of_probabilities():
    desired, other = -np.log([0.5, 0.25, 1.0]), -np.log([0.125, 0.75, 1.0])
    np.testing.assert_allclose(magnitude(desired, other), [0.375, -0.5, 0], rtol=1e-12)


def test_estimate_is_mean_spread_and_interval_in_percent():
    result = estimate(np.array([1.0, 0.0, 0.0, 0.0]), interval=(0.05, 0.7))  # σ = √(1/4 · 3/4)
    assert (result.mean, result.count) == (25, 4)
    assert result.spread == pytest.approx(100 * np.sqrt(3) / 4, rel=1e-15)
    assert (result.low, result.high) == pytest.approx((5, 70))
    assert str(result) == "25.0 [5.0, 70.0]"


def test_an_estimate_without_an_interval_is_a_mean_alone():
    result = estimate([1.0])
    assert np.isnan([result.low, result.high]).all() and not result.has_interval
    assert str(result) == "100.0"


def test_estimate_in_other_units():
    result = estimate([3.0, 5.0], scale=1)  # for instance seconds
    assert (result.mean, result.spread) == (4, 1)


def test_an_estimate_needs_a_case():
    with pytest.raises(ValueError, match="values is empty: give the value of at least one case"):
        estimate([])


def test_score_is_the_harmonic_mean():
    assert harmonic_mean(100, 100, 100) == 100
    assert harmonic_mean(90, 45, 90) == pytest.approx(3 / (2 / 90 + 1 / 45))
    assert harmonic_mean(100, 100, 0) == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "values", [(99.8, 88.1, 42.1), (0, 50, 50), (0, 0, 0), (np.nan, 50, 50), (0, np.nan, 50)]
)
def test_score_is_scipys_as_in_the_original(values):
    np.testing.assert_allclose(harmonic_mean(*values), scipy.stats.hmean(values), rtol=1e-15)


def test_accuracy_is_the_share_of_tokens():
    assert accuracy([True, False, True]) == pytest.approx(2 / 3, rel=1e-15)


def test_exact_requires_every_token():
    assert exact([True, True]) is True
    assert exact([True, False]) is False


@pytest.mark.parametrize("metric", [accuracy, exact])
def test_a_target_without_tokens_is_refused(metric):
    with pytest.raises(ValueError, match="hits is empty: give every target at least one token"):
        metric([])


def test_essence_perplexity_divides_by_all_tokens():
    log_probs = -np.log([4.0, 2.0])  # tokens 2 and 3 of three
    assert essence_perplexity(log_probs) == pytest.approx(2, rel=1e-15)


def test_essence_perplexity_is_the_originals(golden, golden_model):
    case, model = golden("eval_gpt2"), golden_model("gpt2")
    ids = case.arrays["ppl_input_ids"]  # [1, 35]
    batch = TokenBatch(ids, np.ones_like(ids, bool))
    logits = np.asarray(forward.logits(model.params, model.config, batch), np.float64)[0, :-1]
    log_probs = logits - scipy.special.logsumexp(logits, axis=-1, keepdims=True)
    log_probs = log_probs[np.arange(len(log_probs)), ids[0, 1:]]
    expected = case.info["pre"]["with_snips"]["essence_score"]
    assert essence_perplexity(log_probs) == pytest.approx(expected, rel=1e-5)
