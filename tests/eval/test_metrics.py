import numpy as np
import pytest

from eval.metrics import estimate, harmonic_mean, success


def test_success_prefers_the_lower_loss_and_a_tie_fails():
    assert success(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])).tolist() == [1, 0, 0]


def test_estimate_is_mean_and_interval_times_100():
    result = estimate(np.array([1.0, 0.0, 1.0, 0.0]))  # σ = 0.5, n = 4
    assert result.mean == 50
    assert result.half_width == pytest.approx(196 * 0.5 / 2)


def test_score_is_the_harmonic_mean():
    assert harmonic_mean(100, 100, 100) == 100
    assert harmonic_mean(90, 45, 90) == pytest.approx(3 / (2 / 90 + 1 / 45))
    assert harmonic_mean(100, 100, 0) == 0
