"""ROME against the numbers of the original implementation, stage by stage and end to end.

Tolerances are those of tests/golden/README.md: max |a - b| / max |b| per array is at most 1e-4, and 1e-3 for the edit
of several layers, for which the original's own float32 and float64 runs differ by 5e-4.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import TokenBatch
from rome_jax.edit.config import KeyMode, ROMEConfig
from rome_jax.edit.delta import apply_delta, dense, rank_one_update
from rome_jax.edit.methods import rome
from rome_jax.edit.stages import inputs as inputs_stage
from rome_jax.edit.stages.inputs import EditInputs, EssenceRows, TargetRows, tokenize_requests
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
# All cases share shapes, and so programs: these numbers of columns and of target tokens hold each of them.
PREFIX, SUFFIX, TARGET = 40, 24, 4
# "last" of the original means column -1 of the padded batch, so δ lands on padding: only the stages can repeat that.
END_TO_END = [case for case in CASES if not case.endswith("_last") or case.endswith("after_last")]


def assert_close(actual, expected, case, what):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, what
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= rome_tolerance(case), f"{what}: {error:.2e}"


def check_losses(case, prefix, result):
    for name, actual in (
        ("loss", result.loss),
        ("nll", result.nll),
        ("kl", result.kl),
        ("wd", result.weight_decay),
    ):
        expected = case.arrays[f"{prefix}step_{name}"]
        actual = np.asarray(actual[0])
        assert np.isnan(actual[len(expected) :]).all(), (
            f"{name} continued after the original stopped"
        )
        # The terms start at 0, and the loss is what they are parts of: its size is the scale of all four.
        scale = np.abs(case.arrays[f"{prefix}step_loss"]).max()
        assert np.abs(actual[: len(expected)] - expected).max() / scale <= rome_tolerance(
            case.name
        ), name


@pytest.mark.parametrize("name", CASES)
def test_stages_repeat_the_original(name, golden, golden_model):
    """Every stage, fed with the original's own token arrays; all of its requests and layers, in its order."""
    case = golden(name)
    model = golden_model(case.info["model"])
    config = rome_config(case)
    stats = rome_moments(model, config.layers)
    params, arrays = model.params, case.arrays
    for index in range(len(case.info["requests"])):
        updates = []
        for layer in config.layers:
            prefix = f"r{index}_l{layer}_"
            earlier = Delta(tuple(updates))[0] if updates else None
            batch, fact = context_rows(case, prefix)
            in_contexts = layer_states(params, model.config, batch, fact, layer, earlier)
            keys = in_contexts.key[:-1]
            assert_close(keys, arrays[prefix + "k_each"], name, "k_each")
            moment = stats[layer] if config.mom2_adjustment else None
            u = whitened_direction(keys.mean(0), moment)
            assert_close(u, arrays[prefix + "u"], name, "u")

            inputs = value_inputs(case, prefix)
            states = layer_states(params, model.config, inputs.batch, inputs.fact, layer, earlier)
            start = states.value[:1]
            assert_close(start[0], arrays[prefix + "target_init"], name, "v_0")
            result = optimize_value(
                params, model.config, config, inputs, states.hidden, start, layer
            )
            check_losses(case, prefix, result)
            assert_close(result.delta[0], arrays[prefix + "delta_final"], name, "delta")
            assert_close(start + result.delta, arrays[prefix + "target"][None], name, "v*")

            k, wk = in_contexts.key[-1:], in_contexts.value[-1:]  # of the bare prompt
            update, _ = rank_one_update(layer, u[None], k, wk, start + result.delta)
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
def test_compute_repeats_the_original(name, golden, golden_model, monkeypatch):
    """From the request's text to ΔW, including tokenization and positions."""
    monkeypatch.setattr(inputs_stage, "prefix_size", lambda first: PREFIX)
    monkeypatch.setattr(inputs_stage, "suffix_size", lambda first, last: SUFFIX)
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
            check_answers=False,
        )
        for edit in result.layers:
            prefix = f"r{index}_l{edit.layer}_"
            assert_close(edit.u[0], case.arrays[prefix + "u"], name, "u")
            assert_close(edit.value[0], case.arrays[prefix + "target"], name, "v*")
            check_losses(case, prefix, edit.optimization)
            stored = case.info["results"][index]["edits"]
            expected = next(e["division_factor"] for e in stored if e["layer"] == edit.layer)
            assert_close(edit.division_factor[0], expected, name, "division factor")
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
        requests = rome_requests(case)
        templates, context = case.info["context_templates"], model.config.context_length
        for index, request in enumerate(requests):
            inputs = tokenize_requests(
                model.tokenizer, [request], templates, config.fact_token, context
            )
            expected = value_inputs(case, f"r{index}_l{config.layers[0]}_")
            for ours, theirs in zip(rows_of(inputs), rows_of(expected), strict=True):
                # What follows the last column that is read may be left out.
                assert ours == theirs[: len(ours)]
            ours, theirs = (x.targets.shift(-x.num_prefix) for x in (inputs, expected))
            np.testing.assert_array_equal(ours.fact, theirs.fact)
            np.testing.assert_array_equal(ours.ids[ours.mask], theirs.ids[theirs.mask])
            read = (x.read[:, x.mask] for x in (ours, theirs))
            np.testing.assert_array_equal(*read)


def rows_of(inputs):
    """The tokens of each row, without padding."""
    batch = inputs.batch
    return [ids[mask].tolist() for ids, mask in zip(batch.ids, batch.mask, strict=True)]


def context_rows(case, prefix):
    """The original's rows of a key and, last, the bare prompt without padding, with their fact columns.

    The shapes are those of `value_inputs`.
    """
    ids, mask = (case.arrays[prefix + name] for name in ("u_input_ids", "u_attention_mask"))
    fact = case.arrays[prefix + "u_idxs"]
    bare = fact[0] % mask[0].sum()  # -1 is the last column, with padding or without
    fact = np.append(fact % ids.shape[1], bare).astype(np.int32)
    padding = ((0, 1), (0, PREFIX + SUFFIX - ids.shape[1]))
    ids, mask = np.pad(ids, padding).astype(np.int32), np.pad(mask, padding) > 0
    ids[-1], mask[-1] = ids[0], mask[0]
    return TokenBatch(ids, mask, np.zeros(len(ids), np.int32)), jnp.asarray(fact)


def _at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def value_inputs(case, prefix) -> EditInputs:
    """The original's padded rows as `EditInputs` of one request."""
    arrays = case.arrays
    # [K, T], -100 where nothing is scored, and otherwise what the logits of that column should predict.
    targets = arrays[prefix + "v_targets"]
    columns = np.stack([np.flatnonzero(row) for row in targets != -100]).astype(np.int32)
    more = (0, TARGET - columns.shape[1])
    answer = np.pad(arrays[prefix + "target_ids"], more)[None].astype(np.int32)
    ids = arrays[prefix + "v_input_ids"].astype(np.int32)
    fact = (arrays[prefix + "v_lookup_idxs"] % ids.shape[1]).astype(np.int32)
    return EditInputs.of(
        TokenBatch(ids, arrays[prefix + "v_attention_mask"] > 0),
        TargetRows(
            fact[:-1, None],
            np.pad(columns, ((0, 0), more), mode="edge")[:, None],
            answer,
            np.arange(TARGET)[None] < columns.shape[1],
        ),
        EssenceRows(fact[-1:]),
        PREFIX,
        SUFFIX,
    )


RROME = sorted(path.stem for path in GOLDEN.glob("rrome_gpt*.npz"))


@pytest.mark.parametrize("name", RROME)
def test_the_consistent_key_is_the_averaged_one_of_r_rome(name, golden, golden_model):
    """R-ROME (Gupta et al., 2024, arXiv 2403.07175) divides by the averaged key; its prompt mode has no template."""
    case = golden(name)
    model = golden_model(case.info["model"])
    hparams, request = case.info["hparams"], case.info["request"]
    names = (
        "v_num_grad_steps v_lr v_weight_decay clamp_norm_factor kl_factor mom2_adjustment".split()
    )
    config = ROMEConfig(
        layers=tuple(hparams["layers"]),
        key_mode=KeyMode.CONSISTENT,
        **{name: hparams[name] for name in names},
    )
    edit_request = EditRequest(request["prompt"], request["subject"], request["target_new"])
    inputs = tokenize_requests(
        model.tokenizer, [edit_request], case.info["context_templates"], config.fact_token, 256
    )
    if "prompt" in name:  # the key of the bare prompt alone, with v* optimized over all templates
        (layer,) = config.layers
        states = layer_states(model.params, model.config, inputs.batch, inputs.fact, layer)
        keys, values = (inputs.by_context(x)[0] for x in (states.key, states.value))
        u = whitened_direction(keys, rome_moments(model, config.layers)[layer])
        found = optimize_value(
            model.params, model.config, config, inputs, states.hidden, values, layer
        )
        update, _ = rank_one_update(layer, u, keys, values, values + found.delta)
    else:
        moments = rome_moments(model, config.layers) if config.mom2_adjustment else None
        result = rome.compute_from_inputs(model.params, model.config, inputs, config, moments)
        (update,) = result.deltas.updates
        u = result.layers[0].u

    def close(actual, expected, what):
        tolerance = 2e-4 * np.abs(expected).max()  # that of the notes on these numbers
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance, err_msg=what)

    close(u[0], case.arrays["l2_u"], "u")
    close(update.right[0, :, 0], case.arrays["z0_v"], "v")
    (weight,) = (array for array in case.arrays if array.startswith("wdelta."))
    change = dense(update)[0]
    expected = case.arrays[weight]
    close(change, expected if expected.shape == change.shape else expected.T, "ΔW")
