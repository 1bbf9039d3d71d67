"""The line that `eval.layer_stats` prints for a layer."""

import numpy as np

from rome_jax.moments.second_moment import MomentProvenance, SecondMoment
from rome_jax.moments.shipped import load_shipped
from rome_jax.terminal.statistics_report import moment_line


def test_a_line_says_how_much_was_collected_and_how_well_it_can_be_solved_with():
    moment = load_shipped("factworld-gpt2")[2]
    line = moment_line(2, moment)
    assert line.startswith("layer  2   width 512   ")
    assert f"{moment.count:,} tokens of 20,000 articles" in line
    assert f"condition number {moment.condition_number():8.2e}" in line
    assert f"rows filled {100 * moment.fill_rate:.2f} %" in line


def test_a_line_says_how_large_the_error_is():
    known = MomentProvenance(error=0.03217)
    assert "articles   error 0.0322" in moment_line(0, SecondMoment(np.eye(3), 9, known))
    assert "error" not in moment_line(0, SecondMoment(np.eye(3), 9))


def test_a_matrix_that_is_not_positive_definite_is_named():
    line = moment_line(0, SecondMoment(np.ones((3, 3)), 2))
    assert "condition number not positive definite" in line
    assert "rows filled" not in line
