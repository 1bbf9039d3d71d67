"""How large the reports on the embedded models are."""

from __future__ import annotations

from absl import flags

from rome_jax.evaluation.mass_edits import MOST

SWEEP_CASES = flags.DEFINE_integer(
    "num_sweep_cases",
    100,
    "Tuning requests for each layer of the sweep; 0 skips it.",
    lower_bound=0,
)
TRACED = flags.DEFINE_integer("num_traced", 100, "Facts traced; 0 skips it.", lower_bound=0)
COUNTS = flags.DEFINE_list(
    "counts", ["1", "10", "30", "100", "300", "1000"], f"Edits, from 1 to {MOST}."
)
EVERY = flags.DEFINE_integer("every", 10, "Edits between two measurements.", lower_bound=1)
