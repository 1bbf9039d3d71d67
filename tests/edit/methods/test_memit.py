"""MEMIT: against its equations written down in float64, on a model that knows something, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import memit as config_file
from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import SequenceTooLongError, TokenBatch, pad, token_span
from rome_jax.edit.delta import apply_delta, dense
from rome_jax.edit.methods import memit
from rome_jax.edit.methods.spread import joint_update
from rome_jax.edit.spread_config import MEMITConfig
from rome_jax.edit.stages.chunks import length_from_subject
from rome_jax.edit.stages.contexts import sample_templates
from rome_jax.edit.stages.inputs import tokenize_requests
from rome_jax.edit.stages.states import optimize_states, read_states
from rome_jax.evaluation.datasets import parse_counterfact
from rome_jax.evaluation.scoring import make_queries, score_queries
from rome_jax.evaluation.sequence import unedited_texts
from rome_jax.evaluation.sequence_measurement import measure
from rome_jax.factworld.facts import make_world
from rome_jax.factworld.records import Role, counterfact_records
from rome_jax.models import forward
from rome_jax.models.families import PRESETS
from rome_jax.models.interventions import Delta, DenseUpdate, LowRankUpdate, Site
from rome_jax.models.patches import Patch, PatchMode
from rome_jax.models.registry import load_model
from rome_jax.moments.shipped import load_shipped
from tests.models.checkpoints import assert_same_params

# As many steps, at the same layer and in the same chunks, as in the tests of ROME: the same programs.
CONFIG = MEMITConfig((0, 1), v_num_grad_steps=4, loss_threshold=0.0, mom2_update_weight=2.0)


def relative_error(actual, expected):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return np.abs(actual - expected).max() / np.abs(expected).max()


def inputs_of(model, requests, templates):
    return tokenize_requests(model.tokenizer, requests, templates, CONFIG.fact_token, 64)


@pytest.fixture(scope="module")
def joint(model, requests, templates, moments):
    return memit.compute_joint_delta(
        model, requests, CONFIG, second_moments=moments, templates=templates
    )


@pytest.fixture(scope="module")
def targets(model, requests, templates):
    inputs = inputs_of(model, requests, templates)
    return np.asarray(optimize_states(model.params, model.config, inputs, CONFIG)[0])


def states_of(model, params, request, templates):
    """MLP_KEY [K, L, F] and RESIDUAL [K, L, D] at the last subject token, each text run by itself."""
    found = []
    for template in templates:
        before = template.removesuffix("{}") + request.prompt.split("{}")[0]
        text = before + request.subject + request.prompt.split("{}")[1]
        encoded = model.tokenizer(text, return_offsets_mapping=True)
        span = token_span(
            encoded["offset_mapping"], len(before), len(before) + len(request.subject)
        )
        batch = pad([encoded["input_ids"]], multiple=32)
        sites = forward.capture(params, model.config, batch, (Site.MLP_KEY, Site.RESIDUAL))
        found.append([np.asarray(x[:, 0, span[1] - 1], np.float64) for x in sites.values()])
    return map(np.stack, zip(*found, strict=True))


def plain(model, requests, templates, targets, config, moments):
    """ΔW of each layer by the equations as they stand, the layers below merged into the weights."""
    params, changes = model.params, []
    for index, layer in enumerate(config.layers):
        keys, missing = [], []
        for request, target in zip(requests, targets, strict=True):
            key, hidden = states_of(model, params, request, templates)
            keys.append((key[0, layer] + key[1:, layer].mean(axis=0)) / 2)
            missing.append(target - hidden[0, config.layers[-1]])
        key_matrix = np.stack(keys, axis=1)  # [F, N]
        right = np.stack(missing) / (len(config.layers) - index)  # [N, D]
        old = config.mom2_update_weight * moments[layer].mean
        change = np.linalg.solve(old + key_matrix @ key_matrix.T, key_matrix @ right)
        changes.append(change)
        down = params["blocks"]["mlp"]["down"]
        kernel = down["kernel"].at[layer].add(jnp.asarray(change, jnp.float32))
        mlp = params["blocks"]["mlp"] | {"down": down | {"kernel": kernel}}
        params = params | {"blocks": params["blocks"] | {"mlp": mlp}}
    return changes


# The equations


def test_a_joint_edit_is_the_equations_layer_by_layer(
    model, requests, templates, targets, moments, joint
):
    assert [int(update.layer) for update in joint.updates] == [0, 1] and not joint.batched
    expected = plain(model, requests, templates, targets, CONFIG, moments)
    for update, change in zip(joint.updates, expected, strict=True):
        assert relative_error(dense(update), change) <= 1e-4


def test_chunks_do_not_change_a_joint_edit(model, requests, templates, moments, joint):
    chunked = memit.compute_joint_delta(
        model, requests, CONFIG, second_moments=moments, templates=templates, chunk_size=2
    )
    for update, whole in zip(chunked.updates, joint.updates, strict=True):
        assert relative_error(dense(update), dense(whole)) <= 1e-4
        assert relative_error(update.left, whole.left) <= 1e-4, "request by request, in order"


def test_independent_edits_are_joint_edits_of_one_request(
    model, requests, templates, targets, moments
):
    before = jax.tree.map(np.array, model.params)
    deltas = memit.compute_deltas(
        model, requests, CONFIG, second_moments=moments, templates=templates
    )
    assert len(deltas) == 3 and deltas.factored
    for n in range(3):
        one = slice(n, n + 1)
        expected = plain(model, requests[one], templates, targets[one], CONFIG, moments)
        for update, layer, change in zip(deltas[n].updates, (0, 1), expected, strict=True):
            assert int(update.layer) == layer
            assert relative_error(dense(update), change) <= 1e-4
    assert_same_params(model.params, before)


@pytest.mark.parametrize(("count", "kind"), [(12, LowRankUpdate), (13, DenseUpdate)])
def test_an_update_takes_the_form_that_takes_less_memory(count, kind):
    generator = np.random.default_rng(3)
    left, right = (generator.standard_normal((count, size)) for size in (40, 18))
    update = joint_update(1, left, right)
    assert isinstance(update, kind) and int(update.layer) == 1
    assert sum(leaf.size for leaf in jax.tree.leaves(update)) <= 1 + min(count * 58, 720)
    assert relative_error(dense(update), left.T @ right) <= 1e-6


def test_z_stays_in_a_ball_around_the_state(model, requests, templates, targets):
    far = dataclasses.replace(CONFIG, clamp_norm_factor=1e-2)
    inputs = inputs_of(model, requests, templates)
    near, _ = optimize_states(model.params, model.config, inputs, far)
    for n, request in enumerate(requests):
        _, hidden = states_of(model, model.params, request, templates[:1])
        state = hidden[0, 1]
        moved = np.linalg.norm(near[n] - state) / np.linalg.norm(state)
        assert moved == pytest.approx(1e-2, rel=1e-3)
        assert np.linalg.norm(targets[n] - state) > 2e-2 * np.linalg.norm(state)


# On a model that knows something


@pytest.fixture(scope="module")
def known():
    """The embedded model, the world, twenty records of the tuning half, a configuration and the options of a call."""
    model = load_model("factworld-gpt2")
    config = MEMITConfig.for_model(model.name)
    world = make_world()
    records = parse_counterfact(counterfact_records(world, 0, Role.TUNING, 20))
    # In the order in which a chunk has them, so that the tests can share z.
    records = sorted(records, key=lambda record: length_from_subject(record.request))
    templates = sample_templates(model, jax.random.key(0), ((10, 2),))
    moments = load_shipped(model.name)
    options = {"second_moments": moments, "templates": templates, "chunk_size": 20}
    options["check_answers"] = False  # the tests measure more than that
    return model, world, records, config, options


@pytest.fixture(scope="module")
def known_inputs(known):
    """Token arrays of the twenty requests, and their z."""
    model, _, records, config, options = known
    inputs = tokenize_requests(
        model.tokenizer,
        [record.request for record in records],
        options["templates"],
        config.fact_token,
        model.config.context_length,
    )
    return inputs, optimize_states(model.params, model.config, inputs, config)[0]


@pytest.fixture(scope="module")
def form(known_inputs):
    """MEMIT with the z of the twenty requests, which take most of its time."""
    return dataclasses.replace(memit.MEMIT, optimize=lambda *arguments: (known_inputs[1], None))


def test_twenty_facts_at_once(known, form):
    model, world, records, config, options = known
    requests = [record.request for record in records]
    delta = form.compute_joint_delta(model, requests, config, **options)
    edited = model.replace(params=apply_delta(model.params, delta))
    texts = unedited_texts(world, records, 0)
    settings = {"world": world, "texts": texts, "batch_size": 20, "sample": 20, "seed": 0}
    before, after = (measure(model, m, [], records, 20, **settings) for m in (model, edited))
    assert before["newest"]["efficacy"] <= 5
    assert after["newest"]["efficacy"] == 100
    assert after["newest"]["paraphrase"] >= 90
    assert after["newest"]["neighborhood"] >= 85
    assert after["perplexity"] <= 1.05 * before["perplexity"]


@pytest.mark.slow
def test_each_fact_by_itself_in_one_batch(known):
    model, _, records, config, options = known
    requests = [record.request for record in records]
    deltas = memit.compute_deltas(model, requests, config, **options)
    targets = [[request.target_new] for request in requests]
    queries = make_queries(model, [r.text for r in requests], targets, range(20))
    said = [score.hits.all() for (score,) in score_queries(model, queries, deltas)]
    assert sum(said) >= 19


def test_a_model_whose_state_is_z_says_the_target(known, known_inputs):
    model, _, _, config, _ = known
    inputs, states = known_inputs
    bare = slice(inputs.num_requests)
    batch = TokenBatch(inputs.batch.ids[bare], inputs.batch.mask[bare])
    mask = np.arange(batch.ids.shape[1]) == inputs.targets.fact[0][:, None]
    layer = jnp.int32(config.layers[-1])
    patch = Patch(Site.RESIDUAL, PatchMode.REPLACE, layer, mask, states[:, None])
    logits = forward.logits(
        model.params,
        model.config,
        batch,
        positions=inputs.targets.read[0],
        patches=(patch,),
    )
    said = (logits.argmax(-1) == inputs.targets.ids) | ~inputs.targets.mask
    assert said.all()


def test_the_layers_together_move_the_state_to_z(known, known_inputs, form):
    """With little weight on what is there already, each layer does its share. Layers may be left out."""
    model, _, records, config, options = known
    inputs, target = known_inputs
    config = dataclasses.replace(config, layers=(0, 2), mom2_update_weight=1e-2)
    requests = [record.request for record in records]
    delta = form.compute_joint_delta(model, requests, config, **options)
    missing = []
    for updates in ((), delta.updates[:1], delta.updates):
        params = apply_delta(model.params, Delta(updates))
        _, state = read_states(params, model.config, inputs, 2, 2)
        missing.append(jnp.linalg.norm(target - state, axis=-1))
    shares = [float((part / missing[0]).mean()) for part in missing]
    assert shares[1] == pytest.approx(1 / 2, abs=0.1)
    assert shares[2] < 0.2, "the rest is how a bare prompt's key differs from the mean key"


# What it refuses


@pytest.mark.parametrize("compute", [memit.compute_deltas, memit.compute_joint_delta])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requests": []}, "requests is empty"),
        ({"chunk_size": 0}, "chunk_size=0: give a number of 1 or more"),
        ({"config": MEMITConfig((1, 3))}, "layers=3 does not exist: the model has layers 0 to 2"),
        ({"second_moments": None}, "second_moments has no second moment of layer 0: collect it"),
        ({"templates": None}, "templates and key are both None"),
        ({"templates": ("A. {}",)}, "templates: the first template must be '{}'"),
    ],
    ids=lambda value: None if callable(value) or isinstance(value, str) else next(iter(value)),
)
def test_what_it_cannot_work_with_is_named(
    model, requests, templates, moments, compute, changes, message
):
    values = {
        "requests": requests,
        "config": CONFIG,
        "second_moments": moments,
        "templates": templates,
    } | changes
    with pytest.raises(ValueError, match=message):
        compute(model, values.pop("requests"), values.pop("config"), **values)


def test_a_request_beyond_the_context_is_an_error(model, requests, moments, templates):
    long = EditRequest("The city " * 40 + "of {} is", "Rome", "the")
    with pytest.raises(SequenceTooLongError, match="context of 64"):
        memit.compute_joint_delta(
            model, [*requests, long], CONFIG, second_moments=moments, templates=templates
        )


# Configurations


def test_published_values():
    common = {
        "v_lr": 0.5,
        "v_weight_decay": 0.5,
        "clamp_norm_factor": 0.75,
        "kl_factor": 0.0625,
        "context_template_length_params": ((10, 5),),
    }
    for name, layers, steps, weight in (
        ("gpt2-xl", (13, 14, 15, 16, 17), 20, 20_000),
        ("EleutherAI/gpt-j-6B", (3, 4, 5, 6, 7, 8), 25, 15_000),
    ):
        config = MEMITConfig.for_model(name)
        assert config == MEMITConfig(
            layers, v_num_grad_steps=steps, mom2_update_weight=weight, **common
        )
        PRESETS[name].check_layer(layers[-1])
        assert MEMITConfig.from_dict(config_file.get_config(name).to_dict()) == config


def test_an_unknown_model_is_named_with_those_that_are_known():
    with pytest.raises(ValueError, match=r"'gpt5' \(known: gpt2-xl, .*pass layers="):
        config_file.get_config("gpt5")
    assert MEMITConfig.for_model("gpt5", layers=(2, 1)).layers == (1, 2)


@pytest.mark.parametrize(
    "changes",
    [{"layers": ()}, {"v_num_grad_steps": 0}, {"mom2_update_weight": 0.0}, {"kl_factor": -0.1}],
    ids=str,
)
def test_a_value_out_of_range_is_named(changes):
    ((field, value),) = changes.items()
    with pytest.raises(ValueError) as error:
        MEMITConfig(**({"layers": (1,)} | changes))
    assert f"{field}={value!r}" in str(error.value)
