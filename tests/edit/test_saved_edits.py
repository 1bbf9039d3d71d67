"""Edits with their provenance: recorded, applied to the right model only, in order, and taken out again."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.request import EditRequest
from rome_jax.edit.baseline_config import FTConfig
from rome_jax.edit.config import KeyMode, ROMEConfig
from rome_jax.edit.delta import apply_delta
from rome_jax.edit.saved_edits import (
    EditedModel,
    Provenance,
    WrongModelError,
    apply_edits,
    record_edits,
    revert_edits,
)
from rome_jax.models.interventions import Delta
from tests.models.checkpoints import assert_same_params, with_begin_token
from tests.saved import dense_edit, random_delta, random_edit


@pytest.fixture(scope="module")
def model(golden_model):
    return golden_model("gpt2")


def one_sentence(error) -> str:
    """The message, which must be one line with one full stop at its end."""
    message = str(error.value)
    assert "\n" not in message and message.endswith(".")
    return message


# Recording


REQUESTS = [EditRequest("{} lives in", name, "Rome", "Paris", 7) for name in ("Ann", "Bob")]


def test_record_edits_keeps_everything_that_is_known(model):
    config = ROMEConfig(layers=(1, 3), key_mode=KeyMode.CONSISTENT)
    parts = [random_delta(model, seed, layers=(1, 3)) for seed in (0, 1)]
    deltas = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    factors = [
        SimpleNamespace(layer=layer, division_factor=jnp.array([2.0, 4.0]) * layer)
        for layer in (1, 3)
    ]
    edits = record_edits(
        model,
        REQUESTS,
        "ROME",
        config,
        deltas,
        layers=factors,
        templates=["{}", "So. {}"],
        seed=5,
    )
    kernel = model.params["blocks"]["mlp"]["down"]["kernel"]
    for index, (edit, request) in enumerate(zip(edits, REQUESTS, strict=True)):
        about = edit.provenance
        assert about.method == "ROME" and about.requests == (request,)
        assert ROMEConfig.from_dict(about.config) == config
        assert (about.templates, about.seed) == (("{}", "So. {}"), 5)
        for layer, update in zip(about.layers, parts[index].updates, strict=True):
            at = int(update.layer)
            norm = np.linalg.norm(update.left) * np.linalg.norm(update.right)  # of rank one
            assert (layer.layer, layer.weight) == (at, "mlp/down")
            assert layer.norm_ratio == pytest.approx(norm / np.linalg.norm(kernel[at]), rel=1e-6)
            assert layer.division_factor == 2.0 * (index + 1) * at
        assert about.model.fingerprint == model.fingerprint()
        assert (about.model.name, about.model.source) == (model.name, model.source)
        assert (about.model.dtype, about.model.precision) == ("float32", "HIGHEST")
        assert set(about.versions) == {"rome_jax", "jax"}
        assert about.created.endswith("+00:00")
        jax.tree.map(np.testing.assert_array_equal, edit.delta, deltas[index])


def test_record_edits_of_a_method_without_templates(model):
    config = FTConfig(layers=(0,), norm_constraint=1e-3)
    delta = dense_edit(model).delta
    deltas = jax.tree.map(lambda leaf: leaf[None], delta)
    (edit,) = record_edits(model, REQUESTS[:1], "FT-L", config, deltas)
    about = edit.provenance
    assert FTConfig.from_dict(about.config) == config
    assert (about.method, about.templates, about.seed) == ("FT-L", (), None)
    assert [(layer.layer, layer.weight) for layer in about.layers] == [
        (0, "mlp/down"),
        (0, "mlp/down bias"),
    ]
    for layer in about.layers:
        assert layer.division_factor is None
        assert layer.norm_ratio == pytest.approx(0.5, rel=0.3)
    jax.tree.map(np.testing.assert_array_equal, edit.delta, delta)


def test_the_tokens_before_each_prompt_are_recorded(model):
    for begin, known in (([], model), (["<|endoftext|>"], with_begin_token(model))):
        about = EditedModel.of(known)
        assert about.begin_tokens == tuple(begin)
        provenance = dataclasses.replace(random_edit(model).provenance, model=about)
        values = json.loads(json.dumps(dataclasses.asdict(provenance)))
        assert Provenance.from_dict(values) == provenance
    del values["model"]["begin_tokens"]  # as in a file of an earlier version
    assert Provenance.from_dict(values).model.begin_tokens == ()


def test_record_edits_needs_an_edit_for_each_request(model):
    deltas = jax.tree.map(lambda leaf: leaf[None], random_delta(model))
    with pytest.raises(ValueError, match="deltas holds 1 edits for 2 requests") as error:
        record_edits(model, REQUESTS, "ROME", ROMEConfig(layers=(1,)), deltas)
    one_sentence(error)


# Applying


def test_applying_merges_the_delta_and_leaves_the_model(model):
    before = jax.tree.map(np.array, model.params)
    edit = random_edit(model)
    edited = apply_edits(model, [edit])
    assert_same_params(edited.params, apply_delta(model.params, edit.delta))
    assert edited.fingerprint() != model.fingerprint()
    assert_same_params(model.params, before)
    assert edited.name == model.name and edited.source == f"{model.source} + 1 edit"
    assert edited.tokenizer is model.tokenizer and edited.config == model.config


def test_nothing_to_apply_is_the_same_model(model):
    assert apply_edits(model, []) is model
    assert revert_edits(model, []) is model


def test_another_fingerprint_is_refused_unless_forced(model):
    edit = random_edit(model)
    kernel = model.params["blocks"]["mlp"]["up"]["kernel"]
    up = model.params["blocks"]["mlp"]["up"] | {"kernel": kernel.at[0, 0, 0].add(1e-3)}
    mlp = model.params["blocks"]["mlp"] | {"up": up}
    params = model.params | {"blocks": model.params["blocks"] | {"mlp": mlp}}
    other = model.replace(name="other", params=params)
    with pytest.raises(WrongModelError, match=r"^the edit of 'Žižek 0' was made for ") as error:
        apply_edits(other, [edit])
    message = one_sentence(error)
    for one in (model, other):
        assert f"{one.name} (" in message and one.fingerprint()[:12] in message
    assert "load that model, or set force=True (--force)" in message
    forced = apply_edits(other, [edit], force=True)
    assert_same_params(forced.params, apply_delta(params, edit.delta))


def test_the_same_weights_in_another_dtype_are_another_model(model):
    half = model.replace(params=jax.tree.map(lambda leaf: leaf.astype("bfloat16"), model.params))
    with pytest.raises(WrongModelError, match=r"float32, .*bfloat16, "):
        apply_edits(half, [random_edit(model)])


def test_force_does_not_help_where_the_weights_do_not_fit(model):
    edit = random_edit(model)
    short = jax.tree.map(lambda leaf: leaf[:-1] if leaf.ndim == 2 else leaf, edit.delta)
    with pytest.raises(ValueError, match="was made for another model"):
        apply_edits(model, [dataclasses.replace(edit, delta=short)], force=True)


def test_independent_edits_of_one_model_are_applied_in_order(model):
    edits = [random_edit(model, seed) for seed in (1, 2, 3)]
    together = apply_edits(model, edits)
    params = model.params
    for edit in edits:
        params = apply_delta(params, edit.delta)
    assert_same_params(together.params, params)
    assert together.source == f"{model.source} + 3 edits"


def test_a_chain_of_edits_is_applied_in_its_order_only(model):
    first = random_edit(model, 1)
    second = random_edit(apply_edits(model, [first]), 2)
    independent = random_edit(model, 3)
    third = random_edit(apply_edits(model, [first, second]), 4, layers=(0, 2))
    chain = [first, second, independent]
    assert_same_params(
        apply_edits(model, chain).params, apply_edits(model, chain, force=True).params
    )
    one_by_one = apply_edits(apply_edits(apply_edits(model, [first]), [second]), [third])
    assert_same_params(apply_edits(model, [first, second, third]).params, one_by_one.params)
    for wrong in ([second], [second, first], [first, independent, second], [first, third]):
        with pytest.raises(WrongModelError, match="load that model") as error:
            apply_edits(model, wrong)
        message = one_sentence(error)
        assert " + 1 edit, " in message or " + 2 edits, " in message, "it was made on top of others"


def test_the_same_edit_twice_is_refused_unless_forced(model):
    edit = random_edit(model)
    with pytest.raises(ValueError, match="'Žižek 0' is given twice") as error:
        apply_edits(model, [edit, random_edit(model, 1), edit])
    one_sentence(error)
    twice = apply_edits(model, [edit, edit], force=True)
    once = apply_delta(model.params, edit.delta)
    assert_same_params(twice.params, apply_delta(once, edit.delta))
    with pytest.raises(WrongModelError):
        apply_edits(apply_edits(model, [edit]), [edit])


def test_edits_with_a_case_axis_are_refused(model):
    edit = random_edit(model)
    batched = dataclasses.replace(edit, delta=jax.tree.map(lambda leaf: leaf[None], edit.delta))
    with pytest.raises(ValueError, match="1 independent edits"):
        apply_edits(model, [batched])


# Reverting


def largest_difference(one, other):
    return max(
        float(jnp.abs(a - b).max())
        for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True)
    )


def test_reverting_goes_back_up_to_rounding_and_the_base_is_still_there(model):
    fingerprint = model.fingerprint()
    edits = [random_edit(model, 1), random_edit(model, 2, layers=(0, 1))]
    edited = apply_edits(model, edits)
    reverted = revert_edits(edited, edits)
    assert largest_difference(edited, model) > 0.1
    assert largest_difference(reverted, model) < 1e-6
    assert reverted.source == f"{model.source} + 2 edits - 2 edits"
    assert model.fingerprint() == fingerprint  # bit-identical: it was kept
    assert_same_params(apply_edits(model, edits).params, edited.params)


def test_a_dense_edit_is_applied_with_others_and_reverted(model):
    dense, other = dense_edit(model), random_edit(model)
    edited = apply_edits(model, [dense, other])
    for update in dense.delta.updates:
        weight, old = (
            m.params["blocks"]["mlp"]["down"][update.part.value][0] for m in (edited, model)
        )
        np.testing.assert_array_equal(weight, old + update.change)
    assert largest_difference(revert_edits(edited, [dense]), apply_edits(model, [other])) < 1e-6
    with pytest.raises(WrongModelError):
        revert_edits(model, [dense])


def test_one_of_several_edits_can_be_reverted(model):
    first, second = random_edit(model, 1), random_edit(model, 2)
    left = revert_edits(apply_edits(model, [first, second]), [first])
    assert largest_difference(left, apply_edits(model, [second])) < 1e-6
    assert largest_difference(left, model) > 0.1


def test_a_model_that_does_not_hold_the_edit_is_refused_unless_forced(model):
    first = random_edit(model, 1)
    edited = apply_edits(model, [first])
    second = random_edit(edited, 2)
    for holder, edits in ((model, [first]), (edited, [second]), (edited, [first, second])):
        with pytest.raises(
            WrongModelError, match="does not contain the edit: load the edited"
        ) as error:
            revert_edits(holder, edits)
        one_sentence(error)
    forced = revert_edits(model, [first], force=True)
    assert largest_difference(apply_edits(forced, [first], force=True), model) < 1e-6


def test_an_edit_without_updates_changes_nothing(model):
    edit = dataclasses.replace(random_edit(model), delta=Delta(()))
    assert_same_params(apply_edits(model, [edit]).params, model.params)
