"""Families beyond those of the original: their config.json, weights, and what must hold of any forward pass."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rome_jax.data.tokens import TokenBatch, pad
from rome_jax.edit.delta import apply_delta
from rome_jax.models import forward, transformer
from rome_jax.models.config import (
    Activation,
    Family,
    LinearScaling,
    Llama3Scaling,
    Norm,
    Rotary,
    UnsupportedConfigError,
)
from rome_jax.models.families import FAMILIES, family_config, from_hf, to_hf
from rome_jax.models.fingerprint import fingerprint
from rome_jax.models.generate import generate
from rome_jax.models.huggingface import load_params, save_params
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate, Site
from rome_jax.models.layers import rotate
from rome_jax.models.patches import Patch, PatchMode
from rome_jax.models.sharding import LOGICAL_AXES
from tests.models.checkpoints import (
    SEQUENCES,
    assert_same_params,
    close,
    tiny_config,
    tiny_model,
)

NEW = [Family.LLAMA, Family.QWEN3, Family.NEOX]  # each option occurs in one of them
COLUMNS = 11  # of all batches, so that each family compiles few programs
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,
    "max_position_embeddings": 32,
}


@pytest.fixture(scope="module", params=NEW, ids=lambda family: family.value)
def tiny(request):
    return tiny_model(request.param)


def batch_of(sequences, *, left=False):
    """A batch of three rows of one length, which repeats sequences if they are fewer."""
    return pad([*sequences, *sequences, *sequences][:3], multiple=COLUMNS, left=left)


# config.json


@given(
    family=st.sampled_from([family for family in Family if family is not Family.GPT2]),
    heads=st.integers(1, 8),
    shared=st.integers(1, 4),
    head_dim=st.integers(1, 64).map(lambda half: 2 * half),
    base=st.floats(1.0, 1e7),
    scaling=st.sampled_from([None, LinearScaling(2.0), Llama3Scaling(8.0, 1.0, 4.0, 8192)]),
    epsilon=st.floats(1e-12, 1e-2),
    activation=st.sampled_from(Activation),
    tie=st.booleans(),
)
def test_to_hf_and_back(family, heads, shared, head_dim, base, scaling, epsilon, activation, tie):
    llama = FAMILIES[family].options.get("norm") is Norm.RMS
    groups = heads if llama else heads * shared
    options = {"rotary": Rotary(head_dim, base=base, scaling=scaling)}
    if family is Family.GPTJ:
        options["rotary"] = dataclasses.replace(tiny_config("gptj").rotary, dim=head_dim)
    config = family_config(
        family,
        3,
        heads * shared * head_dim,
        heads * shared,
        40,
        50,
        32,
        num_kv_heads=groups,
        norm_epsilon=epsilon,
        activation=activation,
        tie_embeddings=tie,
        **options,
    )
    assert from_hf(json.loads(json.dumps(to_hf(config)))) == config


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_type": "gemma2"}, "model_type 'gemma2'"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"hidden_size": None}, "hidden_size=None: give an integer"),
        ({"hidden_size": "wide"}, "hidden_size='wide': give an integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0: give a number of 1 or more"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan: give a finite number"),
        ({"hidden_act": "tanh"}, "hidden_act='tanh'"),
        ({"pretraining_tp": 2}, "pretraining_tp=2"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rotary scaling 'yarn'"),
        (
            {"rope_scaling": {"factor": 4.0}},
            "rope_scaling sets 'factor' to 4.0, .* scaling 'default'",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "rope_parameters sets 'partial_rotary_factor' to 0.5",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            "rope_parameters sets 'full_attention'",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0, "low_freq_factor": 1.0}},
            "'low_freq_factor' to 1.0, .* supported: rope_type, type, rope_theta, factor",
        ),
        (
            {
                "rope_parameters": {"rope_theta": 1e6},
                "rope_scaling": {"type": "linear", "factor": 2.0},
            },
            "both rope_parameters and rope_scaling",
        ),
        ({"model_type": "mistral", "sliding_window": 16}, "sliding_window=16"),
        (
            {"model_type": "mistral", "use_sliding_window": False, "sliding_window": 16},
            "sliding_window=16",
        ),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8},
            "sliding_window=8",
        ),
        (
            {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]},
            "sliding_attention",
        ),
        ({"num_key_value_heads": 3}, "num_kv_heads 3"),
        ({"a_new_trick": 1}, "a_new_trick"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(changes, complaint):
    with pytest.raises(UnsupportedConfigError, match=complaint):
        from_hf(LLAMA | changes)


def test_new_and_old_attributes_of_rotary_positions_mean_the_same():
    scaling = {"rope_type": "linear", "factor": 2.0}
    old = from_hf(LLAMA | {"rope_theta": 500.0, "rope_scaling": scaling})
    new = from_hf(LLAMA | {"rope_parameters": {"rope_theta": 500.0, **scaling}})
    mixed = from_hf(LLAMA | {"rope_theta": 9.0, "rope_scaling": {"rope_theta": 500.0, **scaling}})
    assert old == new == mixed
    assert old.rotary == Rotary(16, base=500.0, scaling=LinearScaling(2.0))


@pytest.mark.parametrize(
    "model_type, assumed", [("llama", 64), ("mistral", 8), ("qwen2", 32), ("qwen3", 32)]
)
def test_missing_heads_of_keys_are_those_that_transformers_assumes(model_type, assumed):
    content = LLAMA | {"model_type": model_type, "num_attention_heads": 64}
    content |= {"head_dim": 2, "sliding_window": None, "num_key_value_heads": None}
    assert from_hf(content).num_kv_heads == 64
    del content["num_key_value_heads"]
    assert from_hf(content).num_kv_heads == assumed


def test_only_llama_has_biases_in_the_mlp():
    content = LLAMA | {"mlp_bias": True, "attention_bias": True}
    for model_type in ("llama", "qwen3"):
        config = from_hf(content | {"model_type": model_type})
        assert config.qkv_bias and config.mlp_bias == (model_type == "llama")
        assert from_hf(to_hf(config)) == config


@pytest.mark.parametrize("head_dim", [44, 46, 64, 96, 100])
def test_every_number_of_rotated_dimensions_is_written(head_dim):
    for dim in range(2, head_dim + 1, 2):
        sizes = (1, head_dim, 1, 4, 4, 4)
        config = family_config(Family.NEOX, *sizes, rotary=Rotary(dim))
        assert from_hf(to_hf(config)).rotary.dim == dim


def test_options_that_the_family_cannot_express_are_refused():
    with pytest.raises(UnsupportedConfigError, match="options that gpt2 models do not have"):
        to_hf(tiny_config("gpt2", parallel_residual=True))


@pytest.mark.parametrize("family", Family)
def test_tables_and_axes_cover_the_params(family):
    options = FAMILIES[family].options
    config = tiny_config(family, tie_embeddings=False)
    tree = transformer.param_shapes(config)
    paths = {"/".join(k.key for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
    rows = [weight.path for weight in FAMILIES[family].weights]
    assert len(rows) == len(set(rows))
    assert paths <= set(rows) and paths <= set(LOGICAL_AXES)
    assert ("blocks/mlp/gate/kernel" in paths) == options.get("gated", False)


# Weights


def test_weights_survive_a_directory(tiny, tmp_path):
    params, config = tiny
    save_params(tmp_path, params, config)
    loaded = load_params(tmp_path, from_hf(json.loads((tmp_path / "config.json").read_text())))
    assert_same_params(loaded, params)


def test_options_change_the_fingerprint(tiny):
    params, config = tiny
    other = dataclasses.replace(config, rotary=dataclasses.replace(config.rotary, base=123.0))
    assert fingerprint(params, config) != fingerprint(params, other)


def test_only_an_unusual_head_width_is_part_of_the_fingerprint():
    params = {"scale": np.ones(3, np.float32)}
    usual, explicit, other = (tiny_config("llama", head_dim=width) for width in (0, 6, 8))
    # Computed before fingerprints knew of head widths that do not divide the width.
    digest = "bfccd0c2e2d914e57853f633d6bf55d5e630a3393a3889f213838926be45a6b8"
    assert fingerprint(params, usual) == fingerprint(params, explicit) == digest
    odd = tiny_config("llama", width=20, head_dim=8)
    assert len({fingerprint(params, config) for config in (usual, other, odd)}) == 3


# Forward passes


def test_the_linen_module_computes_the_same(tiny):
    params, config = tiny
    batch = batch_of(SEQUENCES)
    want = jax.jit(transformer.Transformer(config).apply)({"params": params}, batch.ids, batch.mask)
    got = forward.logits(params, config, batch)
    assert close(np.asarray(got)[batch.mask], np.asarray(want)[batch.mask])


def test_padding_and_the_other_rows_change_nothing(tiny):
    params, config = tiny
    left, right = (
        forward.logits(params, config, batch_of(SEQUENCES, left=side)) for side in (True, False)
    )
    alone = forward.logits(params, config, batch_of(SEQUENCES[1:2]))
    length = len(SEQUENCES[1])
    assert close(left[1, -length:], alone[0, :length])
    assert close(right[1, :length], alone[0, :length])


@pytest.mark.parametrize("family", [Family.QWEN3, Family.NEOX])  # all options of attention
def test_generation_with_a_cache_is_greedy_decoding_without_one(family):
    params, config = tiny_model(family)
    made = generate(params, config, pad(SEQUENCES, left=True), max_new_tokens=4)
    rows = [list(sequence) for sequence in SEQUENCES]
    for _ in range(4):
        logits = np.asarray(forward.logits(params, config, batch_of(rows)))
        for row, predicted in zip(rows, logits, strict=True):
            row.append(int(predicted[len(row) - 1].argmax()))
    assert [list(row) for row in made.tokens()] == rows


def test_factored_and_merged_edits_agree(tiny):
    params, config = tiny
    generator = np.random.default_rng(0)
    updates = []
    for leaf in (Leaf.MLP_DOWN, Leaf.ATTN_OUT):
        kernel = params["blocks"][leaf.value[0]][leaf.value[1]]["kernel"]
        left, right = (
            jnp.asarray(generator.standard_normal((size, 1)), jnp.float32)
            for size in kernel.shape[1:]
        )
        updates.append(LowRankUpdate(leaf, jnp.int32(1), left, right))
    batch = batch_of(SEQUENCES)
    factored = forward.logits(params, config, batch, deltas=Delta(tuple(updates)))
    for kept in (updates, updates[:1], updates[1:], []):
        merged = forward.logits(apply_delta(params, Delta(tuple(kept))), config, batch)
        got, want = (np.asarray(values)[batch.mask] for values in (factored, merged))
        if kept == updates:
            assert close(got, want)
        else:  # each update counts
            assert not close(got, want, 1e-2)


def test_the_key_is_the_gated_product():
    params, config = tiny_model(Family.LLAMA)
    batch = batch_of(SEQUENCES)
    sites = (Site.MLP_IN, Site.MLP_PRE, Site.MLP_GATE, Site.MLP_KEY, Site.MLP_OUT)
    found = {
        s: np.asarray(v)[1][batch.mask]
        for s, v in forward.capture(params, config, batch, sites).items()
    }
    mlp = jax.tree.map(lambda leaf: np.asarray(leaf[1], np.float64), params["blocks"]["mlp"])
    gate = found[Site.MLP_IN] @ mlp["gate"]["kernel"]
    up = found[Site.MLP_IN] @ mlp["up"]["kernel"]
    key = gate / (1 + np.exp(-gate)) * up
    assert close(found[Site.MLP_GATE], gate) and close(found[Site.MLP_PRE], up)
    assert close(found[Site.MLP_KEY], key)
    assert close(found[Site.MLP_OUT], key @ mlp["down"]["kernel"])


def test_a_site_that_a_model_does_not_have_is_refused():
    params, config = tiny_model("gpt2")
    batch = pad(SEQUENCES)
    patch = Patch(Site.MLP_GATE, PatchMode.ADD, jnp.int32(0), batch.mask, jnp.ones(40))
    for options in ({"capture": (Site.MLP_GATE,)}, {"patches": (patch,)}):
        with pytest.raises(
            ValueError, match="gpt2 model have no site MLP_GATE: give one of ATTN_PATTERN"
        ):
            forward.hidden_states(params, config, batch, **options)


@functools.partial(jax.jit, static_argnames="rotary")
def score(query, key, at, rotary):
    """The product of a query and a key at two positions."""
    return (rotate(query, at[:1], rotary) * rotate(key, at[1:], rotary)).sum()


@settings(max_examples=20, deadline=None)
@given(position=st.integers(0, 10_000), shift=st.integers(0, 10_000))
def test_scores_depend_on_the_distance_alone(position, shift):
    generator = np.random.default_rng(0)
    query, key = generator.standard_normal((2, 1, 1, 1, 8)).astype(np.float32)
    rotary = Rotary(8, base=1e4)
    first, second = (
        float(score(query, key, np.array([[at + 5], [at]], np.int32), rotary))
        for at in (position, shift)
    )
    assert first == pytest.approx(second, abs=2e-2)


def test_llama_3_keeps_high_frequencies_and_divides_low_ones():
    plain, scaled = (
        Rotary(64, base=5e5),
        Rotary(64, base=5e5, scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192)),
    )
    ratio = plain.frequencies() / scaled.frequencies()
    assert ratio[0] == 1 and ratio[-1] == pytest.approx(8, rel=1e-6)
    assert (np.diff(ratio) >= -1e-6).all()


def test_segments_and_branches_work_with_shared_keys(tiny):
    """A packed row gives the logits of its documents."""
    params, config = tiny
    first, second = SEQUENCES[0][:4], SEQUENCES[1]
    ids = np.array([first + second], np.int32)
    segments = np.array([[0] * len(first) + [1] * len(second)], np.int32)
    packed = TokenBatch(ids, np.ones_like(ids, bool), segments=segments)
    got = np.asarray(forward.logits(params, config, packed))[0]
    want = np.asarray(forward.logits(params, config, batch_of([first, second])))
    for row, part in enumerate((slice(0, 4), slice(4, 7))):
        assert close(got[part], want[row, : part.stop - part.start])
