"""Fine-tuning against the numbers of the original implementation: tokens, losses, changes of the weights, logits.

The tolerances are those of tests/golden/README.md: max |a - b| / max |b| per array is at most 2e-3, or 1e-2 if the
norm constraint is active.
"""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import TokenBatch
from rome_jax.edit.baseline_config import FTConfig, TargetScoring
from rome_jax.edit.delta import apply_delta
from rome_jax.edit.methods import fine_tune
from rome_jax.edit.stages.targets import tokenize_request_targets
from rome_jax.models import forward
from rome_jax.models.huggingface import layer_name
from rome_jax.models.interventions import Part

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("ft_gpt*.npz"))
KEPT = 4  # the file has every fourth row of each kernel


def assert_close(actual, expected, tolerance, what):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, what
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"{what}: {error:.2e}"


def hyperparameters(case) -> FTConfig:
    hparams = case.info["hparams"]
    bound = hparams["norm_constraint"]
    return FTConfig(
        layers=tuple(hparams["layers"]),
        num_steps=hparams["num_steps"],
        lr=hparams["lr"],
        weight_decay=hparams["weight_decay"],
        # The original looks at the type: False and integers mean no constraint.
        norm_constraint=bound if isinstance(bound, float) else None,
        batch_size=hparams.get("batch_size", 64),
        scoring=TargetScoring.REFERENCE,
    )


def requests_of(case) -> list[EditRequest]:
    return [
        EditRequest(r["prompt"], r["subject"], r["target_new"]["str"])
        for r in case.info["requests"]
    ]


def check_tokens(inputs, arrays):
    """Compares the tokens except the padding, which the original fills with another token."""
    real, ids = np.asarray(inputs.batch.mask), np.asarray(inputs.batch.ids)
    expected = arrays["attention_mask"] > 0
    assert real[real].size == expected[expected].size
    np.testing.assert_array_equal(ids[real], arrays["input_ids"][expected])
    scored = np.asarray(inputs.target_mask)
    np.testing.assert_array_equal(scored.sum(-1), arrays["loss_mask"].sum(-1))
    np.testing.assert_array_equal(
        np.asarray(inputs.target_ids)[scored], arrays["target_ids"][arrays["loss_mask"]]
    )
    last = np.broadcast_to(expected.sum(-1, keepdims=True) - 1, scored.shape)
    np.testing.assert_array_equal(inputs.read, last)


@pytest.mark.parametrize("name", CASES)
def test_results_equal_those_of_the_original(name, golden, golden_model):
    case = golden(name)
    model, arrays, config = golden_model(case.info["model"]), case.arrays, hyperparameters(case)
    tolerance = 1e-2 if case.info["norm_constraint_active"] else 2e-3
    inputs = tokenize_request_targets(model.tokenizer, requests_of(case), 1024, config.scoring)
    check_tokens(inputs, arrays)
    result = fine_tune.compute_from_inputs(
        model.params, model.config, fine_tune.minibatches(inputs, config.batch_size), config
    )

    loss = np.asarray(result.loss[0])
    ran = int(result.steps[0])
    assert np.isnan(loss[ran:]).all() and loss.shape[0] == config.num_steps
    assert_close(loss[:ran].reshape(-1), arrays["batch_loss"], 1e-5, "loss")

    delta = result.deltas[0]
    assert len(delta.updates) == sum(key.startswith("wdelta.") for key in arrays)
    for update in delta.updates:
        kind = "weight" if update.part is Part.KERNEL else "bias"
        key = f"wdelta.{layer_name(model.config, update.leaf, int(update.layer))}.{kind}"
        change = update.change
        if update.part is Part.KERNEL:  # [F, D]; transposed in the file of GPT-J
            change = change[::KEPT]
            change = change.T if case.info["model"] == "gptj" else change
        assert_close(change, arrays[key], tolerance, key)

    edited = apply_delta(model.params, delta)
    prompts = TokenBatch(arrays["input_ids"].astype(np.int32), arrays["attention_mask"] > 0)
    last = jnp.asarray(arrays["attention_mask"].sum(-1, keepdims=True) - 1)
    logits = forward.logits(edited, model.config, prompts, positions=last)[:, 0]
    assert_close(logits, arrays["post_logits"], 1e-5, "logits")
