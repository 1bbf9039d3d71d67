"""Generation compared with the original's golden text, with whole forward passes, and with itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rome_jax.data.tokens import SequenceTooLongError, TokenBatch, encode, pad
from rome_jax.models import forward, generate
from rome_jax.models.generate import Sampling, clean_text, generate_text
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate, Site
from rome_jax.models.layers import Attention
from tests.models.checkpoints import FAMILIES, tiny_model

PROMPTS = [[5, 6, 7, 8, 9], [11], [3, 1, 4, 1, 5, 9, 2, 6], [40, 41]]
DRAW = Sampling(top_k=7)


@pytest.fixture(params=FAMILIES)
def tiny(request):
    return tiny_model(request.param)


@pytest.fixture
def gpt2():
    return tiny_model("gpt2")


def rows(out):
    return out.tokens()


def slowly(params, config, prompt, count, deltas=None):
    """Generates greedily with one whole forward pass per token."""
    ids = list(prompt)
    for _ in range(count):
        batch = pad([ids], multiple=config.context_length)
        column = jnp.array([[len(ids) - 1]])
        logits = forward.logits(params, config, batch, positions=column, deltas=deltas)
        ids.append(int(logits[0, 0].argmax()))
    return ids


# The original's text


def test_greedy_is_token_for_token_the_originals(golden, golden_model):
    model, numbers = golden_model("gpt2"), golden("generate_gpt2")
    batch = encode(model.tokenizer, numbers.info["prompts"])
    mask = numbers.arrays["prompt_attention_mask"]
    np.testing.assert_array_equal(batch.mask, mask)
    np.testing.assert_array_equal(batch.ids, numbers.arrays["prompt_input_ids"] * mask)
    out = generate.generate(model.params, model.config, batch, max_length=30)
    np.testing.assert_array_equal(out.ids, numbers.arrays["greedy_ids"])
    assert out.mask.all()
    texts = [clean_text(text) for text in out.texts(model.tokenizer)]
    assert texts == numbers.info["cases"]["greedy"]["texts"]


def test_several_texts_per_prompt_are_several_rows(golden, golden_model):
    model, numbers = golden_model("gpt2"), golden("generate_gpt2")
    prompts = [prompt for prompt in numbers.info["prompts"] for _ in range(2)]
    texts = generate_text(
        model, prompts, max_length=22, sampling=Sampling(top_k=1), key=jax.random.key(3)
    )
    assert [clean_text(text) for text in texts] == numbers.info["cases"]["greedy_2each"]["texts"]


def test_max_length_counts_the_prompt_and_each_row_for_itself(golden, golden_model):
    # The original generates nothing for any row here, since one prompt has 19 tokens.
    model, numbers = golden_model("gpt2"), golden("generate_gpt2")
    batch = encode(model.tokenizer, numbers.info["prompts"])
    out = generate.generate(model.params, model.config, batch, max_length=14)
    lengths = batch.mask.sum(-1)
    np.testing.assert_array_equal(out.prompt_lengths, lengths)
    np.testing.assert_array_equal(out.mask.sum(-1), np.maximum(lengths, 14))
    for row, want in zip(rows(out), numbers.arrays["greedy_ids"].tolist(), strict=True):
        assert row == want[: len(row)]


def test_the_originals_top_5_are_the_candidates(golden, golden_model):
    model, numbers = golden_model("gpt2"), golden("generate_gpt2")
    batch = encode(model.tokenizer, numbers.info["prompts"][2:3] * 100)
    draw = {"max_new_tokens": 1, "sampling": Sampling(top_k=5), "key": jax.random.key(0)}
    out = generate.generate(model.params, model.config, batch, **draw)
    assert set(out.ids[:, -1]) == set(numbers.arrays["top5_seed0_step_tk"][0, 2])


# Agreement with whole forward passes


def test_cache_equals_recomputing_everything(tiny):
    params, config = tiny
    out = generate.generate(params, config, pad(PROMPTS), max_new_tokens=9)
    assert rows(out) == [slowly(params, config, prompt, 9) for prompt in PROMPTS]


def test_cache_serves_any_columns_and_any_range_of_layers(tiny):
    params, config = tiny
    batch = pad(PROMPTS)
    want = forward.capture(params, config, batch, (Site.RESIDUAL,))[Site.RESIDUAL][-1]
    attention = forward.plain_attention(batch)
    ranges = [(0, 1), (1, config.num_layers)]

    @functools.partial(jax.jit, static_argnames=("first", "last"))
    def run(ids, caches, first, last):
        mine = Attention(attention.positions[:, first:last], attention.mask[:, first:last, :last])
        hidden = forward.embed(params, config, ids[:, first:last], mine.positions)
        written = []
        for (start, stop), cache in zip(ranges, caches, strict=True):
            out = forward.run_layers(
                params,
                config,
                hidden,
                mine,
                start=start,
                stop=stop,
                cache=cache,
                keep_cache=True,
            )
            hidden = out.hidden
            written.append(out.cache)
        return hidden, written

    early, caches = run(batch.ids, [None, None], 0, 4)
    late, _ = run(batch.ids, caches, 4, batch.ids.shape[1])
    got = jnp.concatenate([early, late], axis=1)
    np.testing.assert_allclose(got[batch.mask], want[batch.mask], rtol=1e-4, atol=1e-4)


def test_whole_context_can_be_filled(gpt2):
    params, config = gpt2
    out = generate.generate(params, config, pad(PROMPTS), max_length=config.context_length)
    assert out.mask.shape == (4, config.context_length) and out.mask.all()
    assert rows(out)[1] == slowly(params, config, PROMPTS[1], config.context_length - 1)


def test_deltas_per_row_equal_merged_weights(tiny):
    params, config = tiny
    layer = np.array([0, 2, 1])
    updates = []
    for seed, leaf in enumerate([Leaf.MLP_UP, Leaf.MLP_DOWN, Leaf.ATTN_OUT]):
        _, inputs, outputs = kernel(params, leaf).shape
        numbers = np.random.default_rng(seed).normal(size=(2, 3, config.mlp_width, 1))
        left, right = numbers.astype(np.float32)
        updates.append(LowRankUpdate(leaf, layer, left[:, :inputs] / 2, right[:, :outputs] / 2))
    deltas = Delta(tuple(updates))
    case = np.array([2, 0, 1, 0])
    batch = pad(PROMPTS).replace(case=case)
    out = rows(generate.generate(params, config, batch, max_new_tokens=9, deltas=deltas))
    plain = rows(generate.generate(params, config, pad(PROMPTS), max_new_tokens=9))
    assert sum(a != b for a, b in zip(out, plain, strict=True)) >= 2
    for row, which in enumerate(case):
        merged = jax.tree.map(lambda leaf: leaf, params)
        for update in updates:
            module, name = update.leaf.value
            change = update.left[which] @ update.right[which].T
            edited = np.array(kernel(params, update.leaf))
            edited[layer[which]] += change
            merged["blocks"][module][name]["kernel"] = edited
        assert out[row] == slowly(merged, config, PROMPTS[row], 9)


def kernel(params, leaf):
    module, name = leaf.value
    return params["blocks"][module][name]["kernel"]  # [L, in, out]


def test_half_precision_generates(gpt2):
    params, config = gpt2
    half = jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.bfloat16), params)
    out = generate.generate(half, config, pad(PROMPTS), max_new_tokens=3)
    assert (out.mask.sum(-1) == np.array([8, 4, 11, 5])).all()


# Independence of padding and of the other rows


@settings(max_examples=10, deadline=None)
@given(
    order=st.permutations(range(4)),
    left=st.booleans(),
    multiple=st.integers(1, 20),
    case=st.sampled_from(
        [("gpt2", Sampling.greedy()), ("gptj", Sampling.greedy()), ("gpt2", DRAW)]
    ),
)
def test_a_row_depends_on_nothing_but_itself(order, left, multiple, case):
    family, sampling = case
    params, config = tiny_model(family)
    keys = jax.random.split(jax.random.key(1), 4)
    options = {"max_new_tokens": 6, "sampling": sampling}
    want = rows(generate.generate(params, config, pad(PROMPTS), key=keys, **options))
    batch = pad([PROMPTS[i] for i in order], left=left, multiple=multiple)
    got = rows(generate.generate(params, config, batch, key=keys[jnp.array(order)], **options))
    assert got == [want[i] for i in order]


def test_row_i_draws_the_same_in_a_larger_batch(gpt2):
    params, config = gpt2
    draw = {"max_new_tokens": 6, "sampling": DRAW, "key": jax.random.key(4)}
    few = generate.generate(params, config, pad(PROMPTS[:2]), **draw)
    many = generate.generate(params, config, pad(PROMPTS, left=True), **draw)
    assert rows(few) == rows(many)[:2]


def test_continuing_a_generated_text_is_one_longer_run(gpt2):
    params, config = gpt2
    draw = {"sampling": DRAW, "key": jax.random.key(4)}
    first = generate.generate(params, config, pad(PROMPTS), max_new_tokens=4, **draw)
    second = generate.generate(
        params, config, TokenBatch(first.ids, first.mask), max_new_tokens=5, **draw
    )
    assert rows(second) == rows(
        generate.generate(params, config, pad(PROMPTS), max_new_tokens=9, **draw)
    )


# Sampling


def test_keys_decide_what_is_drawn(gpt2):
    params, config = gpt2

    def draw(key):
        batch = pad([[1, 2, 3]] * 4)
        out = generate.generate(params, config, batch, max_new_tokens=12, sampling=DRAW, key=key)
        return rows(out)

    assert draw(jax.random.key(0)) == draw(jax.random.key(0)) == draw(jax.random.PRNGKey(0))
    assert draw(jax.random.key(0)) != draw(jax.random.key(1))
    assert len({tuple(row) for row in draw(jax.random.key(0))}) > 1


def test_draw_takes_top_k_tokens_in_proportion():
    logits = np.log(np.array([0.5, 0.05, 0.3, 0.05, 0.1], np.float32))
    keys = jax.random.split(jax.random.key(0), 4000)
    many = jnp.asarray(np.broadcast_to(logits, (4000, 5)))
    counts = np.bincount(Sampling(top_k=2).draw(many, keys), minlength=5) / 4000
    np.testing.assert_allclose(counts, [0.625, 0, 0.375, 0, 0], atol=0.03)
    counts = np.bincount(Sampling(temperature=0.5).draw(many, keys), minlength=5) / 4000
    want = np.exp(2 * logits) / np.exp(2 * logits).sum()
    np.testing.assert_allclose(counts, want, atol=0.03)
    everything = Sampling(top_k=10**6).draw(many, keys)
    np.testing.assert_array_equal(everything, Sampling().draw(many, keys))


@pytest.mark.parametrize(
    "sampling", [Sampling.greedy(), Sampling(0.0, 4), Sampling(top_k=1), Sampling(1e-30)]
)
def test_the_limits_of_sampling_are_greedy(sampling):
    logits = 5 * jax.random.normal(jax.random.key(0), (20, 50))
    keys = jax.random.split(jax.random.key(1), 20)
    np.testing.assert_array_equal(sampling.draw(logits, keys), logits.argmax(-1))


# Ends


def test_a_row_stops_after_the_stop_token(gpt2):
    params, config = gpt2
    free = generate.generate(params, config, pad(PROMPTS), max_new_tokens=10)
    new = free.tokens(with_prompt=False)
    stop = new[0][4]
    out = generate.generate(params, config, pad(PROMPTS), max_new_tokens=10, stop_token=stop)
    for got, want in zip(out.tokens(with_prompt=False), new, strict=True):
        end = want.index(stop) + 1 if stop in want else None
        assert got == want[:end]
    assert not out.ids[~out.mask].any()


def test_nothing_to_generate_returns_the_prompts(gpt2):
    params, config = gpt2
    out = generate.generate(params, config, pad(PROMPTS, left=True), max_length=1)
    assert rows(out) == PROMPTS


# Compilation


def test_prompts_of_one_bucket_share_one_program(gpt2):
    params, config = gpt2

    def run(prompts, **more):
        generate.generate(params, config, pad(prompts), max_new_tokens=5, **more)

    run([[1, 2, 3], [4], [5], [6]])
    before = generate._compiled._cache_size()
    run([[1, 2, 3, 4, 5, 6, 7], [4, 5], [6], [7, 8]])
    run([[9] * 16, [1], [2], [3]], stop_token=3)
    run([[9], [1], [2], [3]], key=jax.random.key(2))
    assert generate._compiled._cache_size() == before


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one"),
        ({"max_length": 9, "max_new_tokens": 9}, "exactly one"),
        ({"max_length": 0}, "max_length=0"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"max_new_tokens": 2, "sampling": Sampling()}, "give `key`"),
        ({"max_new_tokens": 2, "key": jax.random.split(jax.random.key(0), 3)}, r"shape \(3,\)"),
    ],
)
def test_bad_options_are_named(gpt2, options, message):
    params, config = gpt2
    with pytest.raises(ValueError, match=message):
        generate.generate(params, config, pad(PROMPTS), **options)


@pytest.mark.parametrize("limit", [{"max_length": 33}, {"max_new_tokens": 25}])
def test_beyond_the_context_is_an_error_before_compiling(gpt2, limit):
    params, config = gpt2
    before = generate._compiled._cache_size()
    with pytest.raises(SequenceTooLongError, match="context of 32"):
        generate.generate(params, config, pad(PROMPTS), **limit)
    assert generate._compiled._cache_size() == before


def test_a_case_without_a_delta_is_an_error(gpt2):
    params, config = gpt2
    ones = jnp.ones((2, 18, 1))
    deltas = Delta((LowRankUpdate(Leaf.MLP_DOWN, jnp.zeros(2, int), jnp.ones((2, 40, 1)), ones),))
    batch = pad(PROMPTS).replace(case=np.array([0, 1, 2, 0]))
    with pytest.raises(ValueError, match="values from 0 to 2"):
        generate.generate(params, config, batch, max_new_tokens=1, deltas=deltas)


@pytest.mark.parametrize("mask", [[[True, False, True]], [[False, False, False]]])
def test_a_mask_with_holes_is_an_error(gpt2, mask):
    params, config = gpt2
    batch = TokenBatch(np.ones((1, 3), np.int32), np.array(mask))
    with pytest.raises(ValueError, match=r"row 0 of batch\.mask"):
        generate.generate(params, config, batch, max_new_tokens=1)


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": 0}]
)
def test_bad_sampling_is_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Sampling(**options)
