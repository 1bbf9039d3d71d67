"""Every method on the families beyond those of the original: shared keys and gates (Llama), two norms (GPT-NeoX)."""

import dataclasses
import functools
import re
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from jax import nn

from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import TokenBatch, pad
from rome_jax.edit.baseline_config import FTConfig
from rome_jax.edit.config import Hyperparameters, MethodName
from rome_jax.edit.delta import apply_delta
from rome_jax.edit.method import METHODS, Resource
from rome_jax.edit.spread_config import SpreadConfig
from rome_jax.edit.stages.gradients import gradient_factors
from rome_jax.edit.stages.targets import tokenize_targets
from rome_jax.models import forward
from rome_jax.models.config import Family
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate, Site, leaves_of
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.second_moment import SecondMoment
from tests.edit.networks import random_hypernetwork
from tests.models import plain_llama
from tests.models.checkpoints import close, random_params, tiny_config

REQUEST = EditRequest("{} lives in", "Ann", "Rome")
MLP = (Leaf.MLP_UP, Leaf.MLP_DOWN)
# What lets a few steps in a random model of three layers show an effect.
SPREAD = {"layers": (0, 1), "clamp_norm_factor": 5.0, "mom2_update_weight": 1e-3}
CHANGES = {
    MethodName.ROME: {"layers": (0,), "clamp_norm_factor": 50.0, "v_num_grad_steps": 40},
    MethodName.FT: {"layers": (2,), "lr": 1e-2, "leaves": MLP},
    MethodName.FT_L: {"layers": (2,), "lr": 2e-2, "norm_constraint": 0.05, "leaves": MLP},
    MethodName.FT_ATTN: {"lr": 2e-2, "norm_constraint": 0.05},
    MethodName.KN: {"layers": (0, 1), "steps": 3},
    MethodName.MEND: {"rank": 4},
    MethodName.KE: {"lstm_width": 5, "condition_width": 6, "hidden_width": 7},
    MethodName.ALPHAEDIT: {"nullspace_threshold": 2e-2, "L2": 1e-3},
    MethodName.ENCORE: {"update_norm_lambda": 1e-5},
    MethodName.ULTRAEDIT: {"leaves": MLP, "lr": 1e-2},
    MethodName.LOCFT_BF: {"layers": (2,), "lr": 1e-2},
}
# Untrained hypernetworks write anything, and three steps of attribution find any neuron.
MISSES_THE_TARGET = (MethodName.KN, MethodName.MEND, MethodName.KE)
ATTENTION = (Leaf.ATTN_QKV, Leaf.ATTN_QUERY, Leaf.ATTN_KEY, Leaf.ATTN_VALUE)


def config_of(name: MethodName, model: LanguageModel) -> Hyperparameters:
    """Builds a short configuration of any method, with all projections of the model's MLP if it trains one."""
    kind = METHODS[name].config_type
    known = {field.name for field in dataclasses.fields(kind)}
    common = SPREAD if issubclass(kind, SpreadConfig) else {"layers": (1,)}
    values = {field: value for field, value in common.items() if field in known}
    config = kind(**{**values, **CHANGES.get(name, {})})
    own = leaves_of(model.config)
    if name is MethodName.FT_ATTN:
        return dataclasses.replace(config, leaves=[leaf for leaf in ATTENTION if leaf in own])
    if Leaf.MLP_GATE in own and Leaf.MLP_UP in getattr(config, "leaves", ()):
        return dataclasses.replace(config, leaves=(*MLP, Leaf.MLP_GATE))
    return config


@pytest.fixture(scope="module")
def model_of(tokenizer):
    """model_of(family) -> a random model of three layers."""

    @functools.cache
    def build(family: Family) -> LanguageModel:
        config = tiny_config(family, vocab_size=2000, context_length=64)
        return LanguageModel("tiny", config, random_params(config), tokenizer, "random")

    return build


@pytest.fixture
def llama(model_of):
    return model_of(Family.LLAMA)


def reachable_target(model: LanguageModel, present: int) -> str:
    """Finds a word that a random model can be made to say: one with a long vector in the head."""
    lengths = np.linalg.norm(model.params["lm_head"]["kernel"], axis=0)
    lengths[present] = 0
    texts = map(model.tokenizer.decode, (-lengths).argsort())
    return next(text[1:] for text in texts if re.fullmatch(" [a-z]+", text))


def moments_of(model: LanguageModel, prompt: TokenBatch) -> dict[int, SecondMoment]:
    """Returns second moments of the keys of a prompt's tokens behind the subject, so that an edit hardly changes them.

    In all other directions, the mean square is 1 % of the mean over the keys.
    """
    keys = forward.capture(model.params, model.config, prompt, (Site.MLP_KEY,))[Site.MLP_KEY]
    rows = np.asarray(keys, np.float64)[:, prompt.mask]
    rows = rows[:, len(model.tokenizer(REQUEST.subject)["input_ids"]) :]
    return {
        layer: SecondMoment(k.T @ k / len(k) / np.mean(k**2) + 1e-2 * np.eye(k.shape[1]), 1000)
        for layer, k in enumerate(rows)
    }


@pytest.mark.slow  # compiling all of them takes more than a minute
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", [Family.LLAMA, Family.NEOX])
def test_methods_edit(family, name, model_of):
    model = model_of(family)
    prompt = pad(model.tokenizer([REQUEST.text])["input_ids"], multiple=8)
    last = prompt.mask.sum() - 1
    before = forward.logits(model.params, model.config, prompt)[0, last]
    request = dataclasses.replace(REQUEST, target_new=reachable_target(model, before.argmax()))
    method, config = METHODS[name], config_of(name, model)
    network = None
    if Resource.HYPERNETWORK in method.uses:
        network = random_hypernetwork(config, model.config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not all need succeed in a random model
        result = method.compute(
            model,
            [request],
            config,
            second_moments=moments_of(model, prompt) if config.needs_second_moments else None,
            templates=("{}",),
            hypernetwork=network,
        )
    delta = result.deltas[0]
    merged = forward.logits(apply_delta(model.params, delta), model.config, prompt)[0, last]
    (target,) = model.tokenizer(request.target_text)["input_ids"]
    assert (merged.argmax() == target) == result.is_answer[0]
    if name not in MISSES_THE_TARGET:
        gain = nn.log_softmax(merged)[target] - nn.log_softmax(before)[target]
        # The subject has little influence on the answers of a random model.
        assert result.is_answer[0] or (not isinstance(config, FTConfig) and gain > 0.2)
    assert not close(merged, before, 1e-3)
    if method.factored:
        factored = forward.logits(model.params, model.config, prompt, deltas=delta)[0, last]
        assert close(factored, merged, 1e-4)


def test_gradient_factors_of_a_gated_mlp(llama):
    """Along random directions, they are the derivatives of the loss of a forward pass in float64."""
    leaves, layers = (*MLP, Leaf.MLP_GATE), (0, 1)
    inputs = tokenize_targets(llama.tokenizer, [REQUEST.text], [REQUEST.target_text], 64)
    factors = gradient_factors(llama.params, llama.config, inputs, layers, leaves)
    prompt, target = llama.tokenizer([REQUEST.text, REQUEST.target_text])["input_ids"]
    params, ids = plain_llama.float64(llama.params), prompt + target[:-1]

    def loss(params):
        found, _ = plain_llama.run(params, llama.config, ids)
        rows = len(prompt) - 1 + np.arange(len(target))
        return -found[rows, target].mean()

    generator = np.random.default_rng(0)
    for leaf in leaves:
        kernel = params["blocks"]["mlp"][leaf.value[1]]["kernel"]
        for layer in layers:
            direction = generator.standard_normal(kernel.shape[1:])
            x, delta = (
                np.asarray(a, np.float64)[0, layer]
                for a in (factors[leaf.name].x, factors[leaf.name].delta)
            )
            losses = []
            for step in (1e-5, -2e-5):
                kernel[layer] += step * direction
                losses.append(loss(params))
            kernel[layer] += 1e-5 * direction
            want = (losses[0] - losses[1]) / 2e-5
            assert np.sum((x.T @ delta) * direction) == pytest.approx(want, rel=1e-3, abs=1e-4)


def test_knowledge_neurons_of_a_gated_mlp_are_attributed_through_the_gate(llama):
    """Scores are integrated gradients of a float64 forward pass in which the last token's gate is scaled."""
    from rome_jax.edit.baseline_config import TargetEncoding
    from rome_jax.edit.stages.attribution import attribute, tokenize_prompts

    request = dataclasses.replace(REQUEST, target_true="the")
    encoding = TargetEncoding.LEADING_SPACE
    inputs = tokenize_prompts(llama.tokenizer, [request], ("",), encoding, 64)
    found = attribute(llama.params, llama.config, inputs, (0, 1), 3).scores[0]
    ids, (answer,) = llama.tokenizer([request.text, " the"])["input_ids"]
    params = plain_llama.float64(llama.params)
    _, clean = plain_llama.run(params, llama.config, ids)

    def probability(layer, gate):
        scores, _ = plain_llama.run(params, llama.config, ids, {layer: gate})
        return np.exp(scores[-1, answer])

    for layer in (0, 1):
        for neuron in (0, 7, 39):
            unit = 1e-5 * (np.arange(40) == neuron)
            slopes = [
                probability(layer, s * clean[layer] + unit)
                - probability(layer, s * clean[layer] - unit)
                for s in (0.0, 0.5, 1.0)
            ]
            want = clean[layer][neuron] * np.mean(slopes) / 2e-5
            assert found[layer, neuron] == pytest.approx(want, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize(
    "family, leaf", [(Family.LLAMA, Leaf.ATTN_QKV), (Family.NEOX, Leaf.MLP_GATE)]
)
def test_deltas_of_weights_that_the_model_does_not_have_are_refused(family, leaf, model_of):
    model = model_of(family)
    delta = Delta((LowRankUpdate(leaf, jnp.int32(1), jnp.ones((18, 1)), jnp.ones((40, 1))),))
    with pytest.raises(ValueError, match=f"changes {leaf.name}, which this .* model does not have"):
        forward.logits(model.params, model.config, pad([[1, 2]]), deltas=delta)
    with pytest.raises(ValueError, match="which this model does not have"):
        apply_delta(model.params, delta)
    with pytest.raises(ValueError, match=f"^the configuration changes {leaf.name}"):
        METHODS[MethodName.FT].compute(model, [REQUEST], FTConfig((1,), leaves=(leaf,)))
