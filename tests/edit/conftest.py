"""A small random model for the tests of edits, and requests that share one padded shape."""

import numpy as np
import pytest

from rome_jax.data.request import EditRequest
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.second_moment import SecondMoment
from tests.models.checkpoints import random_params, tiny_config


@pytest.fixture(scope="session")
def tokenizer(golden_model):
    return golden_model("gpt2").tokenizer


@pytest.fixture(scope="session")
def model(tokenizer):
    """Three layers, width 18, MLP 40, and the 2,000 tokens of the golden tokenizer."""
    config = tiny_config("gpt2", vocab_size=2000, context_length=64)
    return LanguageModel("tiny", config, random_params(config), tokenizer, "random")


@pytest.fixture(scope="session")
def templates():
    return ("{}", "The file is open. {}", "A. {}")


@pytest.fixture(scope="session")
def requests():
    """With the templates above: rows of 6 to 29 tokens, targets of 1 to 4."""
    return (
        EditRequest("{} is in the city of", "The Space Needle", "Rome"),
        EditRequest("The mother tongue of {} is", "Slavoj Žižek", "English"),
        EditRequest("{} is written in", "Linux", "the"),
    )


@pytest.fixture(scope="session")
def moments(model):
    """A positive definite second moment for each layer; all are different."""
    generator = np.random.default_rng(5)
    width = model.config.mlp_width
    roots = generator.standard_normal((model.config.num_layers, width, width))
    return {
        layer: SecondMoment(root @ root.T / width + 0.1 * np.eye(width), 1000)
        for layer, root in enumerate(roots)
    }
