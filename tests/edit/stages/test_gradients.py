"""Gradient factors: they are the gradients of the plain loss by the weights, each request's own."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.tokens import pad
from rome_jax.edit.stages.gradients import GradientFactors, gradient_factors
from rome_jax.edit.stages.targets import tokenize_targets
from rome_jax.models import forward
from rome_jax.models.interventions import Leaf, Site
from rome_jax.models.layers import norm
from rome_jax.models.patches import Patch, PatchMode
from rome_jax.models.registry import LanguageModel
from tests.models.checkpoints import FAMILIES, random_params, tiny_config

LEAVES = (Leaf.MLP_UP, Leaf.MLP_DOWN)
LAYERS = {"gpt2": (1, 2), "gptj": (0, 2)}


def tokens_of(model, request):
    ids = model.tokenizer([request.text, request.target_text], add_special_tokens=False)
    return ids["input_ids"]


def inputs_of(model, requests, **options):
    texts = [r.text for r in requests], [r.target_text for r in requests]
    return tokenize_targets(model.tokenizer, *texts, 64, **options)


@pytest.fixture(scope="module", params=FAMILIES)
def setup(request, model, requests, tokenizer):
    """A model with its factors of three requests of 7 to 24 tokens."""
    if request.param == "gptj":
        config = tiny_config("gptj", vocab_size=2000, context_length=64)
        model = LanguageModel("tiny", config, random_params(config), tokenizer, "random")
    layers = LAYERS[request.param]

    def compute(chosen, **options):
        inputs = inputs_of(model, chosen, **options)
        return gradient_factors(model.params, model.config, inputs, layers, LEAVES)

    return SimpleNamespace(model=model, layers=layers, compute=compute, factors=compute(requests))


@pytest.fixture(scope="module")
def plain(setup, requests):
    """plain(i) -> the gradient of request i's loss by all weights."""
    model = setup.model
    ids = [tokens_of(model, request) for request in requests]
    batch = pad([prompt + target[:-1] for prompt, target in ids])
    # One entry for each target token: its request, where it is predicted, and its share of the mean.
    rows, columns, tokens, shares = (
        np.array(column)
        for column in zip(
            *(
                (row, len(prompt) - 1 + k, token, 1 / len(target))
                for row, (prompt, target) in enumerate(ids)
                for k, token in enumerate(target)
            ),
            strict=True,
        )
    )

    @jax.jit
    def gradient(params, chosen):
        def loss(params):
            found = jax.nn.log_softmax(forward.logits(params, model.config, batch))
            nll = -found[rows, columns, tokens]
            return (nll * shares * (rows == chosen)).sum()

        return jax.grad(loss)(params)

    return lambda index: gradient(model.params, index)


def close(got, want, tolerance=1e-5):
    return np.abs(np.asarray(got) - np.asarray(want)).max() <= tolerance * np.abs(want).max()


def test_factors_rebuild_the_gradients_of_the_weights(setup, plain, requests):
    for index in range(len(requests)):
        mlp = plain(index)["blocks"]["mlp"]
        for leaf in LEAVES:
            found = setup.factors[leaf.name]
            for row, layer in enumerate(setup.layers):
                want = np.asarray(mlp[leaf.value[1]]["kernel"][layer])
                x, delta = (np.asarray(a[index, row], np.float64) for a in (found.x, found.delta))
                assert close(x.T @ delta, want)
                assert close(delta.sum(0), mlp[leaf.value[1]]["bias"][layer])


def test_padding_and_what_the_loss_does_not_see_give_nothing(setup, requests):
    for index, request in enumerate(requests):
        prompt, target = tokens_of(setup.model, request)
        length = len(prompt) + len(target) - 1
        for found in setup.factors.values():
            assert found.mask.shape == (3, 2, 24)
            assert (found.delta[index, :, length:] == 0).all()
            assert not found.mask[index, :, length:].any()
            assert found.mask[index, 0, :length].all()  # attention of the layers above sees all
            # Of the last layer only the columns that are read.
            assert found.mask[index, -1, :length].tolist() == [
                column >= len(prompt) - 1 for column in range(length)
            ]


def test_a_request_does_not_depend_on_the_others(setup, requests):
    _, second, third = requests
    other = setup.compute((third, second, second))
    for name, found in setup.factors.items():
        for field in ("x", "delta"):
            mine, theirs = getattr(found, field), getattr(other[name], field)
            assert close(theirs[1], mine[1], 1e-6)
            # x of padding is what the padding's ids make of it: only tokens count.
            keep = found.mask[2]
            assert close(theirs[0][keep], mine[2][keep], 1e-6)
            assert not close(theirs[2][keep], mine[2][keep], 1e-2)


@pytest.mark.parametrize("setup", ["gpt2"], indirect=True)  # a program more, of the same code
def test_more_padding_changes_nothing(setup, requests):
    long = setup.compute(requests, multiples=(28, 6))
    for name, found in setup.factors.items():
        assert long[name].delta.shape[2] == 28
        assert (long[name].delta[:, :, 24:] == 0).all()
        assert close(long[name].delta[:, :, :24], found.delta, 1e-6)
        keep = found.mask
        assert close(long[name].x[:, :, :24][keep], found.x[keep], 1e-6)


def test_a_token_counts_if_it_has_an_input_and_a_gradient():
    x = jnp.array([[[[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]]]])
    delta = jnp.array([[[[0.0], [1.0], [-1.0]]]])
    assert GradientFactors(x, delta).mask.tolist() == [[[False, False, True]]]


def test_bfloat16_models_give_float32_factors(setup, requests):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), setup.model.params)
    inputs = inputs_of(setup.model, requests)

    def compute(params):
        return gradient_factors(params, setup.model.config, inputs, setup.layers, LEAVES)

    for name, found in jax.eval_shape(compute, half).items():
        assert found.x.dtype == found.delta.dtype == jnp.float32
        assert found.x.shape == setup.factors[name].x.shape


# Site.MLP_IN, where the up-projection's x is seen


def test_the_input_of_the_up_projection_is_captured_and_patched(setup, requests):
    model, config = setup.model, setup.model.config
    batch = inputs_of(model, requests).batch
    sites = (Site.MLP_IN, Site.MLP_PRE, Site.RESIDUAL, Site.ATTN_OUT)
    value = jax.random.normal(jax.random.key(0), (config.width,))
    nowhere = jnp.zeros(batch.ids.shape, bool)

    @jax.jit
    def run(replaced, added):
        patches = tuple(
            Patch(Site.MLP_IN, mode, jnp.int32(1), mask, value)
            for mode, mask in ((PatchMode.REPLACE, replaced), (PatchMode.ADD, added))
        )
        out = forward.hidden_states(model.params, config, batch, patches=patches, capture=sites)
        return out.captures

    clean = run(nowhere, nowhere)
    # The expected input by hand: GPT-J's MLP is parallel to attention, and GPT-2's follows it.
    name, before = "ln_1", clean[Site.RESIDUAL][1]
    if not config.parallel_residual:
        name, before = "ln_2", before + clean[Site.ATTN_OUT][2]
    scales = jax.tree.map(lambda leaf: leaf[2], model.params["blocks"][name])
    assert close(clean[Site.MLP_IN][2], norm(config, name).apply({"params": scales}, before))

    changed = run(nowhere.at[1, 3].set(True), nowhere.at[0, 5].set(True))
    assert close(changed[Site.MLP_IN][1, 1, 3], value, 1e-6)
    assert close(changed[Site.MLP_IN][1, 0, 5], clean[Site.MLP_IN][1, 0, 5] + value, 1e-6)
    untouched = np.ones(batch.ids.shape, bool)
    untouched[[1, 0], [3, 5]] = False
    up = jax.tree.map(np.asarray, model.params["blocks"]["mlp"]["up"])
    for found in (clean, changed):
        pre = np.einsum("lbtd,ldf->lbtf", found[Site.MLP_IN], up["kernel"])
        assert close(found[Site.MLP_PRE], pre + up["bias"][:, None, None])
    for site in (Site.MLP_IN, Site.MLP_PRE):
        got, want = (np.asarray(found[site])[1][untouched] for found in (changed, clean))
        assert close(got, want, 1e-6)
    assert not close(changed[Site.RESIDUAL][1], clean[Site.RESIDUAL][1], 1e-3)
