"""The registry of the methods, and the result that all of them return."""

import dataclasses

import jax
import numpy as np
import pytest

from rome_jax.data.request import EditRequest
from rome_jax.edit.baseline_config import FTConfig, KNConfig
from rome_jax.edit.config import MethodName, ROMEConfig
from rome_jax.edit.delta import apply_delta, dense
from rome_jax.edit.method import METHODS, Editor, Method, Resource
from rome_jax.edit.methods import rome
from rome_jax.edit.result import EditResult, NotFiniteError, check_finite
from rome_jax.edit.spread_config import MEMITConfig
from rome_jax.edit.stages.answers import target_is_answer
from rome_jax.evaluation import DatasetName, load_dataset
from rome_jax.evaluation.run_settings import Settings
from rome_jax.models.generate import generate_text
from rome_jax.models.interventions import Delta
from rome_jax.moments.shipped import load_shipped

REQUEST = EditRequest("{} plays the sport of", "Grestulf Gunmark", "fencing")


@pytest.fixture(scope="module")
def shipped(shipped_model):
    return shipped_model("factworld-gpt2")


def norm(delta, case):
    return np.sqrt(sum(np.sum(np.asarray(dense(u), np.float64)[case] ** 2) for u in delta.updates))


def test_every_method_has_one_record():
    assert set(METHODS) == set(MethodName)
    for name, method in METHODS.items():
        assert method.name is name
        assert callable(method.module.compute)
        assert isinstance(method.for_model("factworld-gpt2"), method.config_type)
        assert method.factored is not issubclass(method.config_type, FTConfig)
        assert (Resource.SECOND_MOMENTS in method.uses) is (
            method.for_model("factworld-gpt2").needs_second_moments
        )


@pytest.mark.parametrize("name", [MethodName.ROME, MethodName.FT, MethodName.KN, MethodName.MEMIT])
def test_every_result_has_the_same_fields(shipped, name, recwarn):
    method = METHODS[name]
    config = method.for_model(shipped.name)
    if isinstance(config, KNConfig):
        config = dataclasses.replace(config, steps=2)
    result = method.compute(
        shipped,
        [REQUEST],
        config,
        second_moments=load_shipped(shipped.name),
        templates=["{}"],
    )
    assert isinstance(result, EditResult)
    assert np.asarray(result.is_answer).shape == (1,)
    failures = [one for one in recwarn if "is not the model's answer" in str(one.message)]
    assert len(failures) == (not result.is_answer[0]), "a failure is said once"
    np.testing.assert_allclose(result.norms, [norm(result.deltas, 0)], rtol=1e-5)
    if isinstance(config, KNConfig):
        assert result.neurons.shape == (1, 6, 512) and result.losses is None
        return
    edited = shipped.replace(params=apply_delta(shipped.params, result.deltas[0]))
    (text,) = generate_text(edited, [REQUEST.text], max_new_tokens=2)
    assert result.is_answer.tolist() == ["fencing" in text] == [True]
    assert result.losses.shape[0] == 1 and 1 <= int(result.steps[0]) <= result.losses.shape[1]
    if isinstance(config, ROMEConfig | MEMITConfig):
        assert [keys.shape for keys in result.keys] == [(1, 512)] * len(config.layers)
        assert result.was_answer.tolist() == [False]
    assert not target_is_answer(shipped, [REQUEST]).any()


def test_an_argument_that_no_method_has_is_an_error(shipped):
    method: Method = METHODS[MethodName.FT]
    with pytest.raises(TypeError, match="unexpected keyword argument 'chunksize'"):
        method.compute_deltas(shipped, [REQUEST], FTConfig((0,)), chunksize=2)


def test_covariance_is_the_old_name_of_second_moments(shipped):
    method = METHODS[MethodName.ROME]
    config = method.for_model(shipped.name)  # the programs of the tests above
    moments = load_shipped(shipped.name)
    with pytest.warns(DeprecationWarning, match="covariance= is now second_moments="):
        old = method.module.compute_deltas(
            shipped, [REQUEST], config, covariance=moments, templates=["{}"]
        )
    new = method.compute_deltas(
        shipped, [REQUEST], config, second_moments=moments, templates=["{}"]
    )
    jax.tree.map(np.testing.assert_array_equal, old, new)
    with pytest.raises(TypeError, match="give one of them"):
        method.module.compute(
            shipped, [REQUEST], config, covariance=moments, second_moments=moments
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_edit_that_is_not_finite_is_an_error(shipped, monkeypatch, bad):
    method = METHODS[MethodName.ROME]
    config, given = method.for_model(shipped.name), {"templates": ["{}"]}
    given["second_moments"] = load_shipped(shipped.name)
    result = method.compute(shipped, [REQUEST], config, **given)
    assert result.templates == ("{}",)
    (update,) = result.deltas.updates
    right = np.array(update.right).repeat(3, 0)
    right[1, 0] = bad
    left, layer = np.ones((3, 512, 1)), np.zeros(3, np.int32)
    three = Delta((dataclasses.replace(update, layer=layer, left=left, right=right),))
    with pytest.raises(
        NotFiniteError, match=r"'Grestulf Gunmark' holds numbers that are not"
    ) as error:
        check_finite(three, [REQUEST] * 3)
    assert error.value.cases == (1,)
    check_finite(three[0], [REQUEST] * 3)
    with pytest.raises(NotFiniteError):
        check_finite(three[1], [REQUEST])
    update_of = rome.rank_one_update
    monkeypatch.setattr(
        rome, "rank_one_update", lambda *a: jax.tree.map(lambda x: x * bad, update_of(*a))
    )
    for compute in (method.compute, method.compute_deltas, method.module.compute_deltas):
        with pytest.raises(NotFiniteError, match="lower the learning rate"):
            compute(shipped, [REQUEST], config, **given)


def test_given_templates_are_used_and_recorded(shipped):
    """They are settings of a run, so that a run with other templates is not resumed."""
    method, given = METHODS[MethodName.ROME], ["{}", "A fact. {}"]
    config = method.for_model(shipped.name)
    editor = Editor.prepare(MethodName.ROME, shipped, config, templates=given)
    assert (editor.options["templates"], editor.seed) == (tuple(given), None)
    dataset = load_dataset(DatasetName.CF, model_name=shipped.name, limit=1)
    settings = Settings.of(editor, dataset, None)
    assert settings.edit["templates"] == settings.templates == tuple(given)
    assert settings.edit["template_seed"] is None
    other = Editor.prepare(MethodName.FT, shipped, FTConfig(0), templates=given)
    assert "templates" not in other.options
    sampled = dataclasses.replace(editor, seed=0)
    assert "templates" not in Settings.of(sampled, dataset, None).edit
