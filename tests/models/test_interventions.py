"""Patches and deltas in a forward pass: where they act, in which order, and that one program serves many of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.tokens import TokenBatch, pad
from rome_jax.edit.delta import weight_of
from rome_jax.models.forward import (
    capture,
    embed,
    logits,
    plain_attention,
    run_layers,
    unembed,
)
from rome_jax.models.interventions import (
    Delta,
    DenseUpdate,
    Leaf,
    LowRankUpdate,
    Part,
    Site,
    sites_of,
)
from rome_jax.models.layers import Interventions
from rome_jax.models.patches import Patch, PatchMode
from tests.models.checkpoints import FAMILIES, SEQUENCES, close, rows, tiny_model

# Patches


@pytest.fixture(scope="module", params=FAMILIES)
def clean(request):
    """A model, a batch of equally long rows, its captures and logits."""
    params, config = tiny_model(request.param)
    batch = pad([[4, 17, 31, 2, 8], [9, 9, 3, 1, 0]])
    captured = capture(params, config, batch, sites_of(config))
    captured = {site: np.asarray(values) for site, values in captured.items()}
    return params, config, batch, captured, logits(params, config, batch)


def everywhere(batch):
    return batch.mask


def test_replacing_the_residual_reproduces_the_other_run(clean):
    params, config, batch, captured, want = clean
    other = TokenBatch(np.asarray(batch.ids)[::-1].copy(), batch.mask)
    assert not close(logits(params, config, other), want)
    for layer in range(config.num_layers):
        patch = Patch(
            Site.RESIDUAL,
            PatchMode.REPLACE,
            jnp.int32(layer),
            everywhere(batch),
            captured[Site.RESIDUAL][layer],
        )
        assert close(logits(params, config, other, patches=(patch,)), want)


@pytest.mark.parametrize("site", [Site.ATTN_OUT, Site.MLP_PRE, Site.MLP_KEY, Site.MLP_OUT])
def test_replacing_by_its_own_value_changes_nothing(clean, site):
    params, config, batch, captured, want = clean
    patch = Patch(site, PatchMode.REPLACE, jnp.int32(1), everywhere(batch), captured[site][1])
    assert close(logits(params, config, batch, patches=(patch,)), want)


def test_adding_to_the_mlp_output_adds_there_and_only_there(clean):
    params, config, batch, captured, _ = clean
    vector = 3 * np.random.default_rng(0).standard_normal(config.width, np.float32)
    mask = np.zeros(batch.ids.shape, bool)
    mask[0, 2] = mask[1, 4] = True
    layers = np.array([1, 2])  # one for each row
    patch = Patch(Site.MLP_OUT, PatchMode.ADD, layers, mask, vector)
    out = capture(params, config, batch, (Site.MLP_OUT, Site.RESIDUAL), patches=(patch,))
    for site in out:
        change = np.asarray(out[site]) - captured[site]  # [L, B, T, D]
        assert close(change[1, 0, 2], vector) and close(change[2, 1, 4], vector)
        assert np.abs(change[0]).max() < 1e-5 and np.abs(change[1, 1]).max() < 1e-5
        assert np.abs(change[:, 0, :2]).max() < 1e-5 and np.abs(change[:, 1, :4]).max() < 1e-5
    later = (np.asarray(out[Site.RESIDUAL]) - captured[Site.RESIDUAL])[2, 0, 3:]
    assert np.abs(later).max() > 1e-2  # attention carries it on


def test_replacing_embeddings_is_running_other_tokens(clean):
    params, config, batch, _, want = clean
    other = TokenBatch(np.asarray(batch.ids)[::-1].copy(), batch.mask)
    values = np.asarray(params["wte"]["embedding"])[batch.ids]
    patch = Patch(Site.EMBED, PatchMode.REPLACE, jnp.int32(0), everywhere(batch), values)
    assert close(logits(params, config, other, patches=(patch,)), want, 1e-6)


def test_patches_apply_in_their_order(clean):
    params, config, batch, captured, _ = clean
    one = np.ones(config.width, np.float32)
    replace = Patch(Site.MLP_OUT, PatchMode.REPLACE, jnp.int32(2), everywhere(batch), one)
    add = Patch(Site.MLP_OUT, PatchMode.ADD, jnp.int32(2), everywhere(batch), one)
    for patches, value in (((replace, add), 2.0), ((add, replace), 1.0)):
        out = capture(params, config, batch, (Site.MLP_OUT,), patches=patches)[Site.MLP_OUT]
        assert (np.asarray(out[2]) == value).all()
        assert close(out[:2], captured[Site.MLP_OUT][:2], 1e-6)


def test_patches_of_one_shape_share_one_program(clean):
    params, config, batch, _, _ = clean
    before = logits._cache_size()
    for layer in range(config.num_layers):
        mask = everywhere(batch) & (np.arange(5) == layer)
        logits(
            params,
            config,
            batch,
            patches=(Patch(Site.MLP_KEY, PatchMode.ADD, jnp.int32(layer), mask, jnp.ones(40)),),
        )
    assert logits._cache_size() == before + 1


# Deltas

LEAVES = {
    "gpt2": (Leaf.ATTN_QKV, Leaf.ATTN_OUT, Leaf.MLP_UP, Leaf.MLP_DOWN),
    "gptj": (
        Leaf.ATTN_QUERY,
        Leaf.ATTN_KEY,
        Leaf.ATTN_VALUE,
        Leaf.ATTN_OUT,
        Leaf.MLP_UP,
        Leaf.MLP_DOWN,
    ),
}


def random_deltas(params, leaves, layers, rank=2):
    """N edits of the given leaves; edit n is at layers[n]."""
    generator = np.random.default_rng(0)
    updates = []
    for leaf in leaves:
        rows, columns = weight_of(params, 0, leaf).shape
        left, right = (
            (generator.standard_normal((len(layers), size, rank)) / 2).astype(np.float32)
            for size in (rows, columns)
        )
        updates.append(LowRankUpdate(leaf, np.asarray(layers, np.int32), left, right))
    return Delta(tuple(updates))


def merged(params, delta):
    """Params with one edit added to the weights, in the plainest way."""
    params = jax.tree.map(lambda leaf: leaf, params)  # new dicts
    for update in delta.updates:
        leaf = params["blocks"][update.leaf.value[0]][update.leaf.value[1]]
        kernel = leaf["kernel"] = np.array(leaf["kernel"])
        kernel[update.layer] += (update.left @ update.right.T).reshape(kernel.shape[1:])
    return params


@pytest.mark.parametrize("family", FAMILIES)
def test_a_factored_delta_equals_merged_weights(family):
    params, config = tiny_model(family)
    batch = pad(SEQUENCES)
    clean = rows(batch, logits(params, config, batch))
    every = jax.tree.map(np.asarray, random_deltas(params, LEAVES[family], [1])[0])
    for leaf in LEAVES[family]:
        # The other leaves' terms are zero: one compiled program tests them all, one at a time.
        delta = Delta(
            tuple(u if u.leaf is leaf else u.replace(right=0 * u.right) for u in every.updates)
        )
        want = rows(batch, logits(merged(params, delta), config, batch))
        assert not close(clean, want, 1e-3), leaf
        assert close(rows(batch, logits(params, config, batch, deltas=delta)), want), leaf


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_see_their_own_edits_at_their_own_layers(family):
    params, config = tiny_model(family)
    deltas = random_deltas(params, LEAVES[family][-2:], [2, 0, 1])
    case = np.array([2, 0, 0, 1], np.int32)
    batch = pad([SEQUENCES[i] for i in (0, 1, 2, 0)]).replace(case=case)
    out = logits(params, config, batch, deltas=deltas)
    for row, n in enumerate(case):
        want = logits(merged(params, deltas[int(n)]), config, TokenBatch(batch.ids, batch.mask))
        assert close(out[row][batch.mask[row]], want[row][batch.mask[row]])


def test_one_delta_per_row_needs_no_case():
    params, config = tiny_model("gpt2")
    deltas = random_deltas(params, [Leaf.MLP_DOWN], [0, 1, 2])
    batch = pad(SEQUENCES)
    numbered = batch.replace(case=np.arange(3, dtype=np.int32))
    assert jnp.array_equal(
        logits(params, config, batch, deltas=deltas),
        logits(params, config, numbered, deltas=deltas),
    )
    with pytest.raises(ValueError, match="2 deltas and 3 rows"):
        logits(params, config, batch, deltas=deltas[:2])


def test_a_delta_counts_its_cases():
    params, _ = tiny_model("gpt2")
    deltas = random_deltas(params, [Leaf.MLP_DOWN, Leaf.MLP_UP], [0, 1, 2])
    assert len(deltas) == 3 and len(deltas[1:]) == 2 and not deltas[0].batched
    assert np.array_equal(deltas[-1].updates[0].left, deltas.updates[0].left[2])
    with pytest.raises(IndexError, match="case 3 of 3"):
        deltas[3]
    with pytest.raises(TypeError, match="single edit"):
        deltas[0][0]


def test_a_dense_delta_is_refused_in_a_forward_pass():
    params, config = tiny_model("gpt2")
    batch = pad(SEQUENCES)
    update = DenseUpdate(Leaf.MLP_DOWN, Part.KERNEL, np.int32(1), np.zeros((40, 18), np.float32))
    with pytest.raises(ValueError, match="merge it into the weights with apply_delta"):
        logits(params, config, batch, deltas=Delta((update,)))
    attention = plain_attention(batch)
    hidden = np.zeros((3, 7, 18), np.float32)
    dense = Interventions((), Delta((update,)))
    with pytest.raises(ValueError, match="the delta of MLP_DOWN is dense"):
        run_layers(params, config, hidden, attention, interventions=dense)


def test_interventions_may_be_traced():
    """Patches and deltas go through jit as arguments: only their names are static."""
    params, config = tiny_model("gpt2")
    batch = pad(SEQUENCES)
    deltas = random_deltas(params, [Leaf.MLP_DOWN], [0, 1, 2])
    attention = plain_attention(batch)

    @jax.jit
    def run(deltas):
        hidden = embed(params, config, batch.ids, attention.positions)
        out = run_layers(params, config, hidden, attention, interventions=Interventions((), deltas))
        return unembed(params, config, out.hidden)

    assert close(
        rows(batch, run(deltas)), rows(batch, logits(params, config, batch, deltas=deltas))
    )
