"""Tests against the golden numbers, run again with the models on a mesh of eight simulated devices.

With ROME_JAX_TEST_MESH=data:2,model:4 and XLA_FLAGS=--xla_force_host_platform_device_count=8, pytest runs any other
test of the golden models in this way.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# One test of each program, in both families. tests/edit/test_mesh.py compares all methods with one device.
TESTS = [
    "edit/methods/test_rome_golden.py::test_compute_repeats_the_original[rome_gpt2_multilayer]",
    "edit/methods/test_rome_golden.py::test_compute_repeats_the_original[rome_gptj_first]",
    "edit/methods/test_fine_tune_golden.py::test_results_equal_those_of_the_original[ft_gpt2_constr]",
    "edit/methods/test_knowledge_neurons.py::test_results_equal_those_of_the_original[single]",
    "trace/test_restore_golden.py::test_every_table[gpt2_one_token]",
    "trace/test_restore_golden.py::test_every_table[gptj_one_token]",
    "trace/test_restore_golden.py::test_severed_modules[gpt2_one_token-mlp-mlp_out]",
    "evaluation/test_evaluate_golden.py::test_counterfact_has_the_originals_numbers[pre]",
    "models/test_generate.py::test_greedy_is_token_for_token_the_originals",
]


@pytest.mark.slow
def test_golden_numbers_on_a_mesh():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = {
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "ROME_JAX_TEST_MESH": "data:2,model:4",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        + [f"tests/{test}" for test in TESTS],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert f"{len(TESTS)} passed" in done.stdout
