"""The comparison of artifacts with models: same weights, edits, dtypes, old artifacts, and other models."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from rome_jax.data.request import EditRequest
from rome_jax.edit.config import MethodName, ROMEConfig
from rome_jax.edit.hypernetworks import networks
from rome_jax.edit.method import METHODS, Editor
from rome_jax.edit.stages.chunks import check_moments
from rome_jax.models import export, provenance, registry
from rome_jax.models.fingerprint import base_fingerprint
from rome_jax.models.provenance import Match, Origin, WrongModelError, compare
from rome_jax.moments import sources
from rome_jax.moments.shipped import load_shipped
from tests.saved import one_sentence

NAMES = ("factworld-gpt2", "factworld-gptj")
REQUEST = EditRequest("{} plays the sport of", "Gothulf Punby", "tennis")


@pytest.fixture
def gpt2(shipped_model):
    return shipped_model(NAMES[0])


@pytest.fixture
def gptj(shipped_model):
    return shipped_model(NAMES[1])


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    """Forgets what earlier comparisons found."""
    monkeypatch.setattr(provenance, "_RELATED", set())


def edited(model):
    """Returns the model with other MLPs in all layers."""
    mlp = jax.tree.map(lambda leaf: leaf + 0.01, model.params["blocks"]["mlp"])
    blocks = {**model.params["blocks"], "mlp": mlp}
    return model.replace(
        params={**model.params, "blocks": blocks}, source=f"{model.source} + 1 edit"
    )


def rounded(model, dtype):
    """Returns the model with weights of another dtype."""
    return model.replace(params=jax.tree.map(lambda leaf: leaf.astype(dtype), model.params))


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_relations_of_models(gpt2, gptj, old):
    origin = Origin.of(gpt2)
    if old:  # an artifact of an earlier version
        origin = dataclasses.replace(origin, base="")
    expected = [
        (gpt2, Match.SAME),
        (edited(gpt2), Match.EDITED),
        (rounded(gpt2, jnp.bfloat16), Match.OTHER_DTYPE),
        (rounded(gpt2, jnp.float16), Match.OTHER_DTYPE),
        (gptj, None),
        (gptj.replace(name="factworld-gpt2", source="package"), None),
    ]
    for model, match in expected:
        provenance._RELATED.clear()
        assert compare(origin, model) is match
        assert provenance.related(origin, model) is (match is not None)
    other = {**gpt2.params, "ln_f": jax.tree.map(lambda leaf: leaf + 1, gpt2.params["ln_f"])}
    assert compare(origin, gpt2.replace(params=other)) is None
    assert compare(Origin(), gptj) is Match.UNVERIFIED


def test_a_base_fingerprint_does_not_change_between_versions(golden_model):
    model = golden_model("gpt2")
    assert base_fingerprint(model.params, model.config) == (
        "base1:b8535e62eb2e5a3f5a80338334f04cff6c490efd378ec189efcbbec909e50f2a"
    )


def test_an_exported_edit_has_the_base_of_its_model(gpt2, tmp_path):
    export.save_hf(tmp_path / "edited", edited(gpt2))
    moments = sources.read(None, [0], gpt2)
    again = registry.load_model(tmp_path / "edited")
    check_moments(again, ROMEConfig((0,)), moments)


@pytest.mark.parametrize(("own", "other"), [NAMES, NAMES[::-1]])
def test_second_moments_of_another_model_are_refused_on_every_path(own, other, shipped_model):
    model, moments = shipped_model(own), load_shipped(other)
    disguised = model.replace(name=other)
    config = ROMEConfig((0,))
    for refused in (
        lambda: check_moments(model, config, moments),
        lambda: check_moments(disguised, config, moments),
        lambda: sources.read(None, [0], disguised),
        lambda: Editor.prepare(MethodName.ROME, disguised, config),
        lambda: METHODS[MethodName.MEMIT].compute(
            model,
            [REQUEST],
            METHODS[MethodName.MEMIT].for_model(own),
            second_moments=moments,
            templates=["{}"],
        ),
    ):
        with pytest.raises(ValueError, match=r"was collected on|has width") as error:
            refused()
        one_sentence(error)


@pytest.mark.parametrize("kind", [MethodName.MEND, MethodName.KE])
def test_hypernetworks_of_another_model_are_refused_on_every_path(kind, gpt2, gptj):
    network, method = networks.load_shipped(kind, gpt2), METHODS[kind]
    for refused in (
        lambda: network.check(gptj),
        lambda: network.check_related(gptj),
        lambda: networks.load_shipped(kind, gptj.replace(name=NAMES[0])),
        lambda: Editor.prepare(kind, gptj.replace(name=NAMES[0]), network.config),
        lambda: method.compute(gptj, [REQUEST], network.config, hypernetwork=network),
    ):
        with pytest.raises(WrongModelError, match="was trained for factworld-gpt2") as error:
            refused()
        one_sentence(error)


def test_a_sequence_passes_the_statistics_of_the_unedited_model(gpt2):
    check_moments(edited(gpt2), ROMEConfig((0,)), load_shipped(NAMES[0]))
    assert sources.read(None, [0], edited(gpt2))[0].match is Match.EDITED
    assert sources.read(None, [0], gpt2)[0].match is Match.SAME


def test_second_moments_belong_to_a_layer(gpt2):
    moments = load_shipped(NAMES[0])
    with pytest.raises(ValueError, match=r"second_moments\[0\] belongs to layer 1, not to layer 0"):
        check_moments(gpt2, ROMEConfig((0,)), {0: moments[1]})


def test_second_moments_of_too_few_tokens_are_refused(gpt2):
    moment = dataclasses.replace(load_shipped(NAMES[0])[0], count=100)
    message = r"layer 0 is not positive definite \(it averages 100 tokens and its width is 512\)"
    for algorithm in (MethodName.ROME, MethodName.MEMIT):
        config = dataclasses.replace(METHODS[algorithm].for_model(gpt2.name), layers=(0,))
        with pytest.raises(ValueError, match=message) as error:
            check_moments(gpt2, config, {0: moment})
        one_sentence(error)
