"""Tests that both sides of the benchmark of edits compute the same edit."""

import numpy as np
import pytest

pytest.importorskip("torch")

from transformers import GPT2LMHeadModel

from benchmarks import rome_torch
from benchmarks.edit_case import first_case, make_inputs
from benchmarks.timing import relative_error
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.methods import rome
from rome_jax.models.huggingface import save_params
from rome_jax.moments.second_moment import SecondMoment
from tests.models.checkpoints import random_params, tiny_config

pytestmark = pytest.mark.parity


def test_torch_and_jax_give_one_edit(tmp_path):
    model_config = tiny_config("gpt2", vocab_size=200, context_length=64)
    params = random_params(model_config)
    save_params(tmp_path, params, model_config)
    model = GPT2LMHeadModel.from_pretrained(tmp_path).eval().requires_grad_(False)
    config = ROMEConfig((1,), loss_threshold=0.0, v_weight_decay=0.01)
    root = np.random.default_rng(1).standard_normal((model_config.mlp_width,) * 2)
    matrix = root @ root.T / len(root) + np.eye(len(root))
    inputs = make_inputs(3, model_config.vocab_size)

    result = rome.compute_from_inputs(
        params, model_config, inputs, config, {1: SecondMoment(matrix, 100)}
    )
    case = rome_torch.Case.of(first_case(inputs, config), np.linalg.inv(matrix))
    assert case.ids.shape == (22, 19)  # 10 tokens of prefix, 8 of prompt, and 1 of the target
    u, right = rome_torch.edit(model, case)
    (update,) = result.deltas[0].updates
    assert relative_error(np.asarray(update.left[:, 0]), u.numpy()) <= 1e-4
    assert relative_error(np.asarray(update.right[:, 0]), right.numpy()) <= 1e-4
    assert result.layers[0].optimization.steps.tolist() == [20] * 3
    assert np.linalg.norm(result.layers[0].optimization.delta[0]) > 0.1
