"""BLUE and NAS against the algorithm in float64 NumPy, from the tokens to the changes, over two batches each.

There are no numbers of their authors' code. `tests.edit.methods.plain_spread` follows the definitions and shares no
step with the library: it runs the model, optimizes z, and inverts matrices by itself.
"""

import numpy as np
import pytest

from rome_jax.data.request import EditRequest
from rome_jax.edit.config import MethodName
from rome_jax.edit.delta import apply_delta
from rome_jax.edit.modifiers import anchor_norm, anchored
from rome_jax.edit.resources import Resources
from rome_jax.edit.sequential import make_editor
from rome_jax.models.registry import LanguageModel
from tests.edit.methods.plain_spread import Editor, nas, trimmed_mean
from tests.edit.methods.test_editors import changes_of, config_of
from tests.models.checkpoints import random_params, tiny_config

# BLUE leaves out the one in the middle, and one layer above the last lets z reach the answer.
LAYERS = (0, 1, 2)
SUBJECTS = ("Linux", "Rome", "Windows", "The Space Needle", "Paris", "Ann")
ENDINGS = {
    "{} is in the city of": "Rome",
    "The mother tongue of {}": "English",
    "{} is written in": "the",
    "The home of {}": "city",
}
MANY = tuple(
    EditRequest(prompt, subject, target)
    for subject in SUBJECTS
    for prompt, target in ENDINGS.items()
)


@pytest.fixture(scope="module")
def deep(tokenizer):
    """The model of the other tests with one more layer."""
    config = tiny_config("gpt2", vocab_size=2000, context_length=64, num_layers=4)
    return LanguageModel("deep", config, random_params(config), tokenizer, "random")


def assert_equals_the_definition(name, model, moments, templates, batches, chunk_size=8, **changes):
    """Compares each ΔW of consecutive updates; returns the plain editor and the last state."""
    config = config_of(name, **{"layers": LAYERS, **changes})
    editor = make_editor(name, config, chunk_size=chunk_size)
    state, edited = editor.init(model, Resources(moments), templates=templates), model
    plain = Editor.of(model, config, moments)
    for batch in batches:
        delta, state = editor.update(state, edited, batch)
        edited = edited.replace(params=apply_delta(edited.params, delta))
        found, expected = changes_of(delta), plain.update(batch, templates)
        assert found.keys() == expected.keys()
        for layer, change in expected.items():
            error = np.linalg.norm(found[layer] - change) / np.linalg.norm(change)
            assert error < 1e-4, layer
    return plain, state


@pytest.mark.parametrize(
    ("name", "modifiers"),
    [
        (MethodName.MEMIT, ("BLUE",)),
        (MethodName.ALPHAEDIT, ("BLUE",)),
        (MethodName.ENCORE, ("BLUE",)),
        # RECT writes less than the solve of the last layer saw, and AlphaEdit keeps the keys of what was written.
        (MethodName.ALPHAEDIT, ("BLUE", "RECT")),
    ],
)
def test_blue_equals_its_definition(name, modifiers, deep, requests, templates, moments):
    plain, _ = assert_equals_the_definition(
        *(name, deep, moments, templates, (requests[:2], requests[2:])), modifiers=modifiers
    )
    assert plain.past.keys() == {0, 2}  # the layer between them is not edited


def test_nas_equals_its_definition(deep, requests, moments):
    """The norm is that of 24 requests without the longest output; some δ are dropped and some are not."""
    plain, state = assert_equals_the_definition(
        *(MethodName.MEMIT, deep, moments, ("{}",), (MANY, requests), 24), modifiers=("NAS",)
    )
    assert 0 < plain.dropped < len(MANY)
    assert state.anchors == pytest.approx(plain.anchors, rel=1e-5)


def test_nas_with_blue_equals_its_definition(deep, requests, moments):
    """Each layer of z has a norm of its own, and both are those of the unedited model."""
    plain, state = assert_equals_the_definition(
        *(MethodName.ALPHAEDIT, deep, moments, ("{}",), (MANY, requests), 24),
        modifiers=("BLUE", "NAS"),
    )
    assert 0 < plain.dropped < 2 * len(MANY)
    assert state.anchors == pytest.approx(plain.anchors, rel=1e-5)
    assert state.anchors.keys() == {0, 2}


@pytest.mark.parametrize("count", [1, 19, 20, 39, 40, 61])
def test_the_norm_of_nas_leaves_out_the_largest_of_twenty(count):
    generator = np.random.default_rng(count)
    outputs = generator.standard_normal((count, 6)) * generator.lognormal(0, 2, (count, 1))
    norms = np.sort(np.sqrt((outputs**2).sum(1)))
    dropped = {1: 0, 19: 0, 20: 1, 39: 1, 40: 2, 61: 3}[count]
    assert anchor_norm(outputs) == pytest.approx(norms[: count - dropped].mean(), rel=1e-12)
    assert trimmed_mean(norms) == pytest.approx(anchor_norm(outputs), rel=1e-12)


def test_nas_drops_what_is_beyond_twice_the_norm():
    generator = np.random.default_rng(0)
    outputs = generator.standard_normal((50, 6))
    delta = generator.standard_normal((50, 6)) * generator.lognormal(0, 1, (50, 1))
    found, norm = anchored(outputs, delta, 1.5), np.linalg.norm(outputs + delta, axis=1)
    far = norm > 3.0
    assert 5 < far.sum() < 45
    assert not found[far].any()
    np.testing.assert_allclose(np.linalg.norm((outputs + found)[~far], axis=1), 1.5, rtol=1e-12)
    np.testing.assert_allclose(found, nas(outputs, delta, 1.5), atol=1e-12)
