"""Warnings about edits: one for all edits with the same fault, of a call and of a run."""

import warnings

import numpy as np
import pytest

from rome_jax.data.request import EditWarning
from rome_jax.edit.edit_warnings import collected, summarized, warn


def warn_of(*sizes, fault="are too large"):
    severity = np.array(sizes)
    warn(fault, severity > 10, severity, lambda index: f"edit {index} is too large.", 2)


def test_a_warning_names_the_worst_edit():
    with pytest.warns(EditWarning) as caught:
        warn_of(20.0, 5.0, 50.0)
    (warning,) = caught
    assert str(warning.message) == "2 of 3 edits are too large: edit 2 is too large."
    assert (warning.message.count, warning.message.total) == (2, 3)
    assert warning.filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of(1.0, 2.0)


def test_a_lone_edit_is_not_counted():
    with pytest.warns(EditWarning, match=r"^edit 0 is too large\.$"):
        warn_of(20.0)


def test_a_run_gives_one_warning_for_each_fault():
    with pytest.warns(UserWarning) as caught, summarized(1000):
        for size in (20.0, 70.0, 30.0):
            warn_of(1.0, size)
        warn_of(20.0, fault="failed")
        warnings.warn("another program speaks.", UserWarning, stacklevel=2)
        for _ in range(2):
            warnings.warn("rome.json: ROME does not use alg_name.", EditWarning, stacklevel=2)
    assert [str(warning.message) for warning in caught] == [
        "another program speaks.",
        "3 of 1000 edits are too large: edit 1 is too large.",
        "1 of 1000 edits failed: edit 0 is too large.",
        "rome.json: ROME does not use alg_name.",
    ]


def test_an_interrupted_run_gives_its_warnings():
    with (
        pytest.warns(EditWarning, match=r"^1 of 8 edits"),
        pytest.raises(KeyboardInterrupt),
        summarized(8),
    ):
        warn_of(20.0)
        raise KeyboardInterrupt


def test_filters_of_the_caller_apply_to_the_summary():
    with warnings.catch_warnings(), collected() as found:
        warnings.simplefilter("ignore", EditWarning)
        with summarized(8):
            warn_of(20.0)
    assert not found
