"""The registry of the methods, and the result that all of them return."""

import dataclasses

import jax
import numpy as np
import pytest

from rome_jax.data.request import EditRequest
from rome_jax.edit.baseline_config import FTConfig, KNConfig
from rome_jax.edit.config import MEMITConfig, MethodName, ROMEConfig
from rome_jax.edit.delta import apply_delta, dense
from rome_jax.edit.method import METHODS, Method, Resource
from rome_jax.edit.result import EditResult
from rome_jax.edit.stages.answers import target_is_answer
from rome_jax.models.generate import generate_text
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
        assert method.factored is (method.config_type is not FTConfig)
        assert (Resource.SECOND_MOMENTS in method.uses) is (
            method.for_model("factworld-gpt2").needs_second_moments
        )


@pytest.mark.parametrize("name", [MethodName.ROME, MethodName.FT, MethodName.KN, MethodName.MEMIT])
def test_every_result_has_the_same_fields(shipped, name):
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
