"""ROME against the numbers of the original implementation, stage by stage and end to end.

Tolerances are those of tests/golden/README.md: max |a - b| / max |b| per array, 1e-4, and 1e-3 for the edit of several
layers, where the original's own float32 and float64 runs differ by 5e-4.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.tokens import TokenBatch, encode
from rome_jax.edit.delta import apply_delta, rank_one_update
from rome_jax.edit.methods import rome
from rome_jax.edit.stages.inputs import EditInputs, tokenize_requests
from rome_jax.edit.stages.key import layer_states, whitened_direction
from rome_jax.edit.stages.value import optimize_value
from rome_jax.models.interventions import Delta
from tests.golden_cases import (
    GOLDEN,
    rome_config,
    rome_delta,
    rome_moments,
    rome_requests,
    rome_tolerance,
)

CASES = sorted(path.stem for path in GOLDEN.glob("rome_gpt*.npz"))
# "last" of the original means column -1 of the padded batch, so δ lands on padding: only the stages can repeat that.
END_TO_END = [case for case in CASES if not case.endswith("_last") or case.endswith("after_last")]


def assert_close(actual, wanted, case, what):
    actual, wanted = np.asarray(actual, np.float64), np.asarray(wanted, np.float64)
    assert actual.shape == wanted.shape, what
    error = np.abs(actual - wanted).max() / np.abs(wanted).max()
    assert error <= rome_tolerance(case), f"{what}: {error:.2e}"


def check_losses(case, prefix, result):
    for name, actual in (
        ("loss", result.loss),
        ("nll", result.nll),
        ("kl", result.kl),
        ("wd", result.weight_decay),
    ):
        wanted = case.arrays[f"{prefix}step_{name}"]
        actual = np.asarray(actual[0])
        assert np.isnan(actual[len(wanted) :]).all(), f"{name} went on after the original stopped"
        # The terms start at 0, and the loss is what they are parts of: its size is the scale of all four.
        scale = np.abs(case.arrays[f"{prefix}step_loss"]).max()
        assert np.abs(actual[: len(wanted)] - wanted).max() / scale <= rome_tolerance(case.name), (
            name
        )


@pytest.mark.parametrize("name", CASES)
def test_stages_repeat_the_original(name, golden, golden_model):
    """Every stage, fed with the original's own token arrays; all of its requests and layers, in its order."""
    case = golden(name)
    model = golden_model(case.info["model"])
    config = rome_config(case)
    stats = rome_moments(model, config.layers)
    params, arrays = model.params, case.arrays
    for index, request in enumerate(rome_requests(case)):
        updates = []
        for layer in config.layers:
            prefix = f"r{index}_l{layer}_"
            earlier = Delta(tuple(updates))[0] if updates else None
            batch = TokenBatch(
                arrays[prefix + "u_input_ids"], arrays[prefix + "u_attention_mask"] > 0
            )
            keys = layer_states(
                params, model.config, batch, jnp.asarray(arrays[prefix + "u_idxs"]), layer, earlier
            ).key
            assert_close(keys, arrays[prefix + "k_each"], name, "k_each")
            moment = stats[layer] if config.mom2_adjustment else None
            u = whitened_direction(keys.mean(0), moment)
            assert_close(u, arrays[prefix + "u"], name, "u")

            inputs = value_inputs(case, prefix)
            states = layer_states(
                params, model.config, inputs.batch, inputs.lookup[0], layer, earlier
            )
            start = states.value[:1]
            assert_close(start[0], arrays[prefix + "target_init"], name, "v_0")
            result = optimize_value(
                params, model.config, config, inputs, states.hidden, start, layer
            )
            check_losses(case, prefix, result)
            assert_close(result.delta[0], arrays[prefix + "delta_final"], name, "delta")
            assert_close(start + result.delta, arrays[prefix + "target"][None], name, "v*")

            bare = encode(model.tokenizer, [request.text])
            lookup = bare_lookup(model.tokenizer, request, config.fact_token)
            now = layer_states(params, model.config, bare, lookup, layer, earlier)
            update, _ = rank_one_update(layer, u[None], now.key, now.value, start + result.delta)
            assert_close(update.right[0, :, 0], arrays[prefix + "v"], name, "right")
            updates.append(update)
        edited = apply_delta(params, Delta(tuple(updates))[0])
        for layer in config.layers:
            difference = (
                edited["blocks"]["mlp"]["down"]["kernel"][layer]
                - params["blocks"]["mlp"]["down"]["kernel"][layer]
            )
            assert_close(difference, rome_delta(case, model, index, layer), name, "ΔW")
        params = edited  # the original's requests of one call build on each other


@pytest.mark.parametrize("name", END_TO_END)
def test_compute_repeats_the_original(name, golden, golden_model):
    """From the request's text to ΔW, tokenisation and positions included."""
    case = golden(name)
    model = golden_model(case.info["model"])
    config = rome_config(case)
    for index, request in enumerate(rome_requests(case)):
        result = rome.compute(
            model,
            [request],
            config,
            second_moments=rome_moments(model, config.layers),
            templates=case.info["context_templates"],
        )
        for edit in result.layers:
            prefix = f"r{index}_l{edit.layer}_"
            assert_close(edit.u[0], case.arrays[prefix + "u"], name, "u")
            assert_close(edit.value[0], case.arrays[prefix + "target"], name, "v*")
            check_losses(case, prefix, edit.optimization)
            stored = case.info["results"][index]["edits"]
            wanted = next(e["division_factor"] for e in stored if e["layer"] == edit.layer)
            assert_close(edit.division_factor[0], wanted, name, "division factor")
        edited = apply_delta(model.params, result.deltas[0])
        for layer in config.layers:
            kernel = ("blocks", "mlp", "down", "kernel")
            difference = _at(edited, kernel)[layer] - _at(model.params, kernel)[layer]
            assert_close(difference, rome_delta(case, model, index, layer), name, "ΔW")
        model = model.replace(params=edited)


def test_token_arrays_are_those_of_the_original(golden, golden_model):
    for name in END_TO_END:
        case = golden(name)
        model = golden_model(case.info["model"])
        config = rome_config(case)
        inputs = tokenize_requests(
            model.tokenizer,
            rome_requests(case),
            case.info["context_templates"],
            config.fact_token,
            model.config.context_length,
            multiple=1,
        )
        num_rows = inputs.lookup.shape[1]
        for index in range(len(case.info["requests"])):
            wanted = value_inputs(case, f"r{index}_l{config.layers[0]}_")
            rows = slice(index * num_rows, (index + 1) * num_rows)
            length = wanted.batch.ids.shape[1]
            np.testing.assert_array_equal(inputs.batch.mask[rows, :length], wanted.batch.mask)
            mask = wanted.batch.mask
            np.testing.assert_array_equal(
                inputs.batch.ids[rows, :length][mask], wanted.batch.ids[mask]
            )
            np.testing.assert_array_equal(inputs.lookup[index], wanted.lookup[0])


def _at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def value_inputs(case, prefix) -> EditInputs:
    """The original's padded rows as `EditInputs` of one request."""
    arrays = case.arrays
    targets = arrays[
        prefix + "v_targets"
    ]  # [K, T], -100 where nothing is scored; logits of that column count
    scored = targets != -100
    count = int(scored[0].sum())
    columns = np.stack([np.flatnonzero(row) for row in scored])
    ids = jnp.asarray(arrays[prefix + "v_input_ids"], jnp.int32)
    return EditInputs.of(
        batch=TokenBatch(
            ids, arrays[prefix + "v_attention_mask"] > 0, np.zeros(len(ids), np.int32)
        ),
        lookup=jnp.asarray(arrays[prefix + "v_lookup_idxs"] % ids.shape[1], jnp.int32)[None],
        target_columns=jnp.asarray(columns)[None],
        target_ids=jnp.asarray(arrays[prefix + "target_ids"])[None],
        target_mask=np.ones((1, count), bool),
    )


def bare_lookup(tokenizer, request, fact_token) -> jax.Array:
    inputs = tokenize_requests(tokenizer, [request], ["{}"], fact_token, 256)
    return jnp.asarray(inputs.lookup[0, :1])
