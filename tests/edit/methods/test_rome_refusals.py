"""Arguments that ROME refuses."""

import dataclasses

import pytest

from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import SequenceTooLongError
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.methods import rome

CONFIG = ROMEConfig((1,), v_num_grad_steps=4)


def test_no_requests_is_an_error(model, moments, templates):
    with pytest.raises(ValueError, match="requests is empty"):
        rome.compute(model, [], CONFIG, second_moments=moments, templates=templates)


def test_a_layer_that_the_model_lacks_is_named(model, requests, moments, templates):
    config = dataclasses.replace(CONFIG, layers=(1, 3))
    with pytest.raises(ValueError, match=r"layers=3 does not exist.*0 to 2"):
        rome.compute(model, requests, config, second_moments=moments, templates=templates)


@pytest.mark.parametrize("layers", [None, (0, 2)])
def test_a_missing_second_moment_is_named(model, requests, moments, templates, layers):
    second_moments = layers and {layer: moments[layer] for layer in layers}
    with pytest.raises(ValueError, match=r"no second moment of layer 1.*mom2_adjustment=False"):
        rome.compute(model, requests, CONFIG, second_moments=second_moments, templates=templates)


def test_neither_templates_nor_key_is_an_error(model, requests, moments):
    with pytest.raises(ValueError, match="templates and key are both None"):
        rome.compute(model, requests, CONFIG, second_moments=moments)


@pytest.mark.parametrize("wrong", [(), ("A. {}", "{}"), (" {}", "A. {}")])
def test_templates_begin_with_the_bare_prompt(model, requests, moments, wrong):
    with pytest.raises(ValueError, match=r"the first template must be '\{\}'"):
        rome.compute(model, requests, CONFIG, second_moments=moments, templates=wrong)


def test_a_template_without_its_slot_is_named(model, requests, moments):
    with pytest.raises(ValueError, match=r"'A\. ' must end in"):
        rome.compute(model, requests, CONFIG, second_moments=moments, templates=("{}", "A. "))


@pytest.mark.parametrize("size", [0, -1])
def test_a_chunk_holds_at_least_one_request(model, requests, moments, templates, size):
    with pytest.raises(ValueError, match=f"chunk_size={size}"):
        rome.compute(
            model, requests, CONFIG, second_moments=moments, templates=templates, chunk_size=size
        )


def test_a_request_beyond_the_context_is_an_error(model, requests, moments, templates):
    long = EditRequest("The city " * 40 + "of {} is", "Rome", "the")
    with pytest.raises(SequenceTooLongError, match="context of 64"):
        rome.compute(model, [*requests, long], CONFIG, second_moments=moments, templates=templates)
