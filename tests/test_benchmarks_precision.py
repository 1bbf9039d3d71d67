"""Tests of the table of precisions: a tiny model moves more the fewer digits its products have."""

import pytest

from benchmarks import precision


@pytest.mark.slow
def test_fewer_digits_move_results_further():
    case = precision.make_case(precision.RANDOM, edits=1, samples=2, tiny=True)
    settings = ("float32, highest", "tf32 products", "bfloat16 products")
    exact, tf32, bfloat16 = precision.rows(case, settings)
    for column in (
        "logits, largest change / σ",
        "v*, median",
        "ΔW, median",
        "effects, largest change",
    ):
        assert exact[column] == 0 < tf32[column] < bfloat16[column] < 0.2, column
    assert exact["same place"] and tf32["setting"] == "tf32 products (emulated)"


def test_settings_are_those_that_a_model_can_be_loaded_in():
    assert [precision.label(name).endswith("(emulated)") for name in precision.SETTINGS] == [
        "products" in name for name in precision.SETTINGS
    ]
