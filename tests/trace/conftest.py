"""Small random models of both families, and a prompt with the subject near its end."""

import jax
import pytest

from rome_jax.models.registry import LanguageModel
from rome_jax.trace import sweep
from rome_jax.trace.prompt import TracePrompt
from tests.models.checkpoints import random_params, tiny_config

SAMPLES = 3


@pytest.fixture(scope="session")
def model(request, golden_model):
    """A model of three layers with the 2,000 tokens of the golden tokenizer; GPT-2 unless parametrized."""
    family = getattr(request, "param", "gpt2")
    config = tiny_config(family, vocab_size=2000, context_length=64)
    tokenizer = golden_model("gpt2").tokenizer
    return LanguageModel("tiny", config, random_params(config), tokenizer, "random")


@pytest.fixture(scope="session")
def prompt(model):
    return TracePrompt.of(model.tokenizer, "The mother tongue of Linux is", "Linux")


@pytest.fixture(scope="session")
def noise(model, prompt):
    first, stop = prompt.span
    return jax.random.normal(jax.random.key(0), (SAMPLES, stop - first, model.config.width))


@pytest.fixture(scope="session")
def runs(model, prompt, noise):
    return sweep.start(model, prompt, noise)
