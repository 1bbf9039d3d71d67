"""UltraEdit: the closed form and running statistics against float64 NumPy, pure states, order, refused arguments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import SequenceTooLongError, TokenBatch
from rome_jax.edit.delta import dense
from rome_jax.edit.editor_files import load_state, save_state
from rome_jax.edit.methods import ultra_edit
from rome_jax.edit.methods.ultra_edit import UltraEditConfig
from rome_jax.edit.normalizer import Normalizer
from rome_jax.edit.resources import Resources
from rome_jax.models import forward
from rome_jax.models.interventions import Leaf, Site
from rome_jax.models.patches import Patch, PatchMode
from rome_jax.models.registry import LanguageModel
from tests.models.checkpoints import random_params, tiny_config

SITES = {Leaf.MLP_UP: (Site.MLP_IN, Site.MLP_PRE), Leaf.MLP_DOWN: (Site.MLP_KEY, Site.MLP_OUT)}
# Both shapes of a projection, each in two layers.
CONFIG = UltraEditConfig((1, 2), leaves=(Leaf.MLP_UP, Leaf.MLP_DOWN), lr=1e-3)
PLACES = [(leaf, layer) for leaf in CONFIG.leaves for layer in CONFIG.layers]
# Two lengths; targets of one token and of several.
REQUESTS = (
    EditRequest("{} lives in", "Ann", "Rome"),
    EditRequest("{} lives in", "Bob", "city"),
    EditRequest("{} speaks", "Eve", "Rome"),
)


@pytest.fixture(scope="module")
def read(model):
    """read(request) -> K [T, X] and g [T, Y] of each place, at all tokens of prompt and target, without padding."""
    found = {}

    @jax.jit
    def gradients(ids, target):
        batch = TokenBatch(ids[None], np.ones((1, len(ids)), bool))

        def nll(probes):
            patches = tuple(
                Patch(SITES[leaf][1], PatchMode.ADD, jnp.int32(layer), batch.mask, probe)
                for (leaf, layer), probe in zip(PLACES, probes, strict=True)
            )
            logits = forward.logits(model.params, model.config, batch, patches=patches)[0]
            start = len(ids) - len(target) - 1
            chosen = jax.nn.log_softmax(logits[start:-1])
            return -jnp.take_along_axis(chosen, target[:, None], 1).mean()

        config = model.config
        widths = {Leaf.MLP_UP: config.mlp_width, Leaf.MLP_DOWN: config.width}
        probes = [jnp.zeros((1, len(ids), widths[leaf])) for leaf, _ in PLACES]
        sites = tuple(site for site, _ in SITES.values())
        return forward.capture(model.params, config, batch, sites), jax.grad(nll)(probes)

    def of(request):
        if request not in found:
            tokenize = model.tokenizer
            prompt, target = tokenize([request.text, request.target_text])["input_ids"]
            keys, slopes = gradients(np.array(prompt + target), np.array(target))
            found[request] = {
                (leaf, layer): (
                    np.asarray(keys[SITES[leaf][0]][layer, 0], np.float64),
                    np.asarray(slope[0], np.float64),
                )
                for (leaf, layer), slope in zip(PLACES, slopes, strict=True)
            }
        return found[request]

    return of


def solved(batches, lr):
    """ΔW of the last batch by the formulas, with statistics of all rows of all batches computed at once."""
    changes = {}
    for leaf, layer in PLACES:
        rows = [
            np.concatenate(own[leaf, other], 1)
            for batch in batches
            for own in batch
            for other in CONFIG.layers
        ]
        rows = np.concatenate(rows)
        mean, deviation = rows.mean(0), rows.std(0, ddof=1)
        keys, gradients = (
            np.concatenate(parts)
            for parts in zip(*(own[leaf, layer] for own in batches[-1]), strict=True)
        )
        hat = (np.concatenate([keys, gradients], 1) - mean) / (deviation + 2.0**-23)
        size = keys.shape[1]
        right = -lr * (hat[:, :size] ** 2).sum(1)[:, None] * hat[:, size:]
        changes[leaf, layer] = np.linalg.solve(keys.T @ keys + np.eye(size), keys.T @ right)
    return changes


def changes_of(delta):
    return {(update.leaf, int(update.layer)): np.asarray(dense(update)) for update in delta.updates}


def assert_close(found, expected, tolerance=2e-4):
    assert found.keys() == expected.keys()
    for place, change in expected.items():
        error = np.linalg.norm(found[place] - change) / np.linalg.norm(change)
        assert error < tolerance, (place, error)


@pytest.fixture(scope="module")
def started(model):
    editor = ultra_edit.make_editor(CONFIG, chunk_size=1)
    return editor, editor.init(model, Resources())


def test_two_batches_equal_the_formulas(model, read, started):
    editor, state = started
    first, after = editor.update(state, model, REQUESTS[:1])
    # Both batches see the same weights, so that only the statistics tell the second one from a first one.
    second, last = editor.update(after, model, REQUESTS[1:])
    batches = [[read(r) for r in REQUESTS[:1]], [read(r) for r in REQUESTS[1:]]]
    assert_close(changes_of(first), solved(batches[:1], CONFIG.lr))
    assert_close(changes_of(second), solved(batches, CONFIG.lr))
    alone = ultra_edit.compute_joint_delta(model, REQUESTS[1:], CONFIG, check_answers=False)
    assert_close(changes_of(alone), solved(batches[1:], CONFIG.lr))
    carried, fresh = (changes_of(delta)[Leaf.MLP_UP, 1] for delta in (second, alone))
    assert np.linalg.norm(carried - fresh) > 1e-2 * np.linalg.norm(fresh)
    assert last.num_edits == 3 and set(last.residuals) == {1, 2}
    assert max(last.residuals.values()) < 1e-6
    rows = 2 * sum(len(read(r)[Leaf.MLP_UP, 1][0]) for r in REQUESTS)  # of two layers
    counts = {shape: seen.count for shape, seen in last.normalizers.items()}
    assert counts == {"18x40": rows, "40x18": rows}


def test_independent_edits_are_edits_of_one_request(model, read):
    deltas = ultra_edit.compute_deltas(model, REQUESTS, CONFIG, chunk_size=1, check_answers=False)
    for index, request in enumerate(REQUESTS):
        assert_close(changes_of(deltas[index]), solved([[read(request)]], CONFIG.lr))


def test_a_state_stays_as_it_is(model, started):
    editor, state = started
    _, after = editor.update(state, model, REQUESTS[:2])
    kept = {shape: dataclasses.astuple(seen) for shape, seen in after.normalizers.items()}
    once, _ = editor.update(after, model, REQUESTS[2:])
    again, _ = editor.update(after, model, REQUESTS[2:])
    for place, change in changes_of(once).items():
        np.testing.assert_array_equal(changes_of(again)[place], change)
    for shape, seen in after.normalizers.items():
        for before, now in zip(kept[shape], dataclasses.astuple(seen), strict=True):
            np.testing.assert_array_equal(now, before)
    assert not state.normalizers and state.num_edits == 0
    assert editor.finish(after, model) is None


def test_a_state_resumes_from_its_file(model, started, tmp_path):
    editor, fresh = started
    _, after = editor.update(fresh, model, REQUESTS[:2])
    path = save_state(tmp_path / "state.safetensors", after)
    expected, _ = editor.update(after, model, REQUESTS[2:])
    found, _ = editor.update(load_state(path, fresh), model, REQUESTS[2:])
    for place, change in changes_of(expected).items():
        np.testing.assert_array_equal(changes_of(found)[place], change)


def test_editors_of_two_models_do_not_disturb_each_other(model, tokenizer, started):
    config = tiny_config("gpt2", vocab_size=2000, context_length=64)
    params = jax.tree.map(lambda leaf: 1.5 * leaf, random_params(config))
    other = LanguageModel("other", config, params, tokenizer, "random")
    editor, state = started
    _, after = editor.update(state, model, REQUESTS[:2])
    expected, _ = editor.update(after, model, REQUESTS[2:])

    second = ultra_edit.make_editor(dataclasses.replace(CONFIG, layers=(0,)), chunk_size=1)
    theirs = second.init(other, Resources())
    _, theirs = second.update(theirs, other, REQUESTS[:2])
    found, _ = editor.update(after, model, REQUESTS[2:])
    second.update(theirs, other, REQUESTS[2:])
    for place, change in changes_of(expected).items():
        np.testing.assert_array_equal(changes_of(found)[place], change)


def test_a_joint_edit_does_not_depend_on_order_or_chunks(model):
    expected = ultra_edit.compute_joint_delta(model, REQUESTS, CONFIG, check_answers=False)
    for order, chunk_size in (((2, 0, 1), 8), ((0, 1, 2), 1)):
        permuted = [REQUESTS[index] for index in order]
        found = ultra_edit.compute_joint_delta(
            model, permuted, CONFIG, chunk_size=chunk_size, check_answers=False
        )
        assert_close(changes_of(found), changes_of(expected), 1e-4)


def test_running_statistics_do_not_depend_on_the_groups():
    generator = np.random.default_rng(0)
    rows = 5 + generator.standard_normal((30, 4)) * [1e-6, 1.0, 100.0, 0.0]
    normalizer = Normalizer.of_size(4)
    for part in np.split(rows, [1, 3, 3, 17]):  # one of them is empty
        normalizer = normalizer.add(part)
    assert normalizer.count == 30
    np.testing.assert_allclose(normalizer.mean, rows.mean(0), rtol=1e-12)
    deviation = rows.std(0, ddof=1)
    expected = (rows - rows.mean(0)) / (deviation + 2.0**-23)
    np.testing.assert_allclose(normalizer.normalize(rows), expected, atol=1e-6)
    assert not normalizer.normalize(rows)[:, 3].any()  # a constant has no deviation


def test_refused_arguments(model):
    with pytest.raises(ValueError, match="requests is empty"):
        ultra_edit.compute_joint_delta(model, [], CONFIG)
    with pytest.raises(ValueError, match=r"leaves=\(ATTN_QKV\): name at least one of MLP_UP"):
        UltraEditConfig((0,), leaves=(Leaf.ATTN_QKV,))
    with pytest.raises(ValueError, match="lr=0"):
        UltraEditConfig((0,), lr=0)
    with pytest.raises(ValueError, match="layers=3 does not exist"):
        ultra_edit.make_editor(UltraEditConfig((3,))).init(model, Resources())
    long = EditRequest("{} " + "is written in " * 20 + "is", "Linux", "C")
    with pytest.raises(SequenceTooLongError, match="context of 64: shorten"):
        ultra_edit.compute_deltas(model, [long], CONFIG)


def test_published_hyperparameters():
    config = UltraEditConfig.for_model("EleutherAI/gpt-j-6B")
    assert (config.layers, config.leaves) == (tuple(range(18, 27)), (Leaf.MLP_DOWN,))
    assert config.lr == 1e-6
