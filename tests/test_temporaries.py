"""No program over half-precision weights keeps a float32 copy of the stack of layers.

Products on CPUs need float32 weights, unless they are bfloat16. XLA would convert all layers before the loop over them,
which for GPT-J takes 22 GiB. The models here are only shapes, with many layers and few tokens, so that such a copy
would exceed the bounds several times.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import trace_case
from benchmarks.edit_case import make_inputs
from benchmarks.gpu.sizes import Size
from rome_jax.data.tokens import TokenBatch
from rome_jax.edit import delta as deltas
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.stages.key import layer_states
from rome_jax.edit.stages.value import optimize_value
from rome_jax.evaluation import scoring
from rome_jax.models import forward, generate, transformer
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Leaf, LowRankUpdate, Site
from rome_jax.trace.corruption import run_clean_and_corrupted
from rome_jax.trace.restore import pack_restorations, restore

LAYERS, WIDTH = 24, 1024
EDIT_LAYER = LAYERS - 3
ROWS, TOKENS = 2, 8
ACTIVATIONS = 0.75  # the bound of activations and logits, in layers
# A float32 copy of the head or of the embedding, 2.7 layers as in GPT-2 XL, would exceed all bounds. Programs over
# float16 weights hold one.
VOCABULARY = {"bfloat16": 32_768, "float16": 64}
BATCH = TokenBatch(np.ones((ROWS, TOKENS), np.int32), np.ones((ROWS, TOKENS), bool))


@functools.cache
def config_of(name: str, dtype: str) -> ModelConfig:
    config = Size.of(name, tiny=True).config
    return dataclasses.replace(
        config,
        num_layers=LAYERS,
        width=WIDTH,
        mlp_width=4 * WIDTH,
        vocab_size=VOCABULARY[dtype],
        head_dim=0,
        num_kv_heads=0,
    )


def shapes_of(config, dtype):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), transformer.param_shapes(config)
    )


def zeros(tree):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)


def run_forward(params, config):
    return forward.logits(params, config, BATCH)


def capture(params, config):
    return forward.capture(params, config, BATCH, (Site.MLP_KEY, Site.RESIDUAL))


def edit_inputs(config):
    return make_inputs(1, config.vocab_size)


def states(params, config):
    inputs = edit_inputs(config)
    found = layer_states(
        params, config, inputs.batch, inputs.fact, EDIT_LAYER, shared=inputs.shared
    )
    return found


def value(params, config):
    inputs = edit_inputs(config)
    hidden = zeros(jax.eval_shape(functools.partial(states, config=config), params).hidden)
    rome = ROMEConfig((EDIT_LAYER,), v_num_grad_steps=3)
    v0 = jnp.ones((1, WIDTH))
    return optimize_value(params, config, rome, inputs, hidden, v0, EDIT_LAYER, inputs.shared)


PROMPT = trace_case.make_prompt(np.arange(TOKENS))


def corrupted(params, config):
    tokens = PROMPT.arrays(config.context_length)
    return run_clean_and_corrupted(params, config, tokens, jnp.ones((ROWS, TOKENS, WIDTH)))


def restored(params, config):
    runs = zeros(jax.eval_shape(functools.partial(corrupted, config=config), params))
    packed = pack_restorations(np.array([4]), np.array([9]), PROMPT.answer_columns, 9, 8, 1)
    return restore(params, config, runs, packed)


def score(params, config):
    read, at, tokens = np.zeros((ROWS, 8)), np.zeros((16, 2)), np.zeros((16, 1))
    arrays = (array.astype(np.int32) for array in (read, at, tokens))
    return scoring._score(params, config, BATCH, *arrays, None)


def continued(params, config):
    keys = jax.random.split(jax.random.key(0), ROWS)
    limits, stop = np.full(ROWS, 4, np.int32), np.int32(-1)
    return generate._compiled(
        params,
        config,
        BATCH,
        limits,
        keys,
        stop,
        None,
        sampling=generate.Sampling.greedy(),
        columns=16,
    )


# The weights that a program holds at once, in layers of float32. With bfloat16 a program takes a layer out of the
# stack, which is half of that, and converts nothing. It takes two if the last or the edited layer runs apart.
AT_ONCE = {
    run_forward: 0.5,
    capture: 0.5,
    states: 1,
    value: 1,
    corrupted: 0.5,
    restored: 1,
    score: 1,
    continued: 0.5,
}
CONVERTED = {"bfloat16": 1, "float16": 2}  # float16 weights are converted to float32


def check_temporaries(run, name, dtype):
    """Compiles a program and compares its temporaries with a bound."""
    config = config_of(name, dtype)
    params = shapes_of(config, dtype)
    layer = 4 * sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(params["blocks"]))
    program = jax.jit(functools.partial(run, config=config)).lower(params).compile()
    temporaries = program.memory_analysis().temp_size_in_bytes
    bound = (CONVERTED[dtype] * AT_ONCE[run] + ACTIVATIONS) * layer
    assert temporaries < bound, f"{temporaries / layer:.2f} layers"


@pytest.mark.parametrize(("run", "name"), [(run_forward, "gpt-j-6B"), (score, "gpt2-xl")])
def test_no_program_converts_all_layers_or_a_head(run, name):
    check_temporaries(run, name, "bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("run", AT_ONCE)
@pytest.mark.parametrize(("name", "dtype"), [("gpt2-xl", "bfloat16"), ("gpt-j-6B", "float16")])
def test_no_program_of_another_family_or_dtype_converts_all_layers(run, name, dtype):
    check_temporaries(run, name, dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_merge_in_place_takes_one_layer_of_the_kernel(dtype):
    width, mlp_width = WIDTH, 4 * WIDTH
    weight = jax.ShapeDtypeStruct((LAYERS, mlp_width, width), dtype)
    factors = jnp.zeros((mlp_width, 1)), jnp.zeros((width, 1))
    update = LowRankUpdate(Leaf.MLP_DOWN, jnp.int32(EDIT_LAYER), *factors)
    layer = jax.ShapeDtypeStruct(weight.shape[1:], dtype)
    size = 4 * mlp_width * width
    added = deltas._edited_layer.lower(weight, update).compile().memory_analysis()
    assert added.temp_size_in_bytes <= 3 * size
    put = deltas._replace_layer_in_place.lower(weight, layer, update.layer, axis=0).compile()
    found = put.memory_analysis()
    assert (
        found.temp_size_in_bytes <= size
        and found.alias_size_in_bytes == 2 * LAYERS * mlp_width * width
    )
