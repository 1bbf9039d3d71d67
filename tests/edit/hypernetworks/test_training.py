"""Training of hypernetworks: the losses, the steps, and how runs end, resume and are refused."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.request import EditRequest
from rome_jax.edit.baseline_config import KEConfig, MENDConfig
from rome_jax.edit.config import MethodName
from rome_jax.edit.delta import apply_delta
from rome_jax.edit.hypernetworks import networks as hypernetworks
from rome_jax.edit.hypernetworks import training
from rome_jax.edit.hypernetworks.losses import Losses, TrainingExample, tokenize_examples
from rome_jax.edit.hypernetworks.steps import TrainState, make_optimizer
from rome_jax.edit.hypernetworks.training import FILE, REPORT, TrainingConfig
from rome_jax.edit.stages.gradients import gradient_factors
from rome_jax.models import forward
from rome_jax.models.interventions import Leaf
from tests.edit.networks import random_hypernetwork
from tests.models.checkpoints import with_begin_token

# One layer and weight, because most of the time goes into compiling a step.
MEND_CONFIG = MENDConfig((2,), (Leaf.MLP_DOWN,), rank=4)
KE_CONFIG = KEConfig((2,), (Leaf.MLP_DOWN,), lstm_width=5, condition_width=6, hidden_width=7)
# One configuration of each kind for all tests, because it is static in the compiled step.
MEND = TrainingConfig.for_kind(
    MethodName.MEND,
    batch_size=4,
    max_steps=6,
    validate_every=2,
    num_validation=4,
    rate_learning_rate=1e-2,
)
KE = TrainingConfig.for_kind(MethodName.KE, batch_size=4, learning_rate=3e-2)
DATA = {"source": "a test"}


class Killed(Exception):
    """Simulates the end of a process."""


class Pool:
    """Draws from a few examples, and raises `Killed` instead of the `dies`-th draw."""

    def __init__(self, dies=None):
        self.dies, self.draws = dies, 0

    def draw(self, rng, count):
        self.draws += 1
        if self.draws == self.dies:
            raise Killed
        subjects = ("Ann", "Bob", "Eve", "Linux", "Ann Lee", "Bob Lee")
        examples = []
        for index in rng.permutation(len(subjects))[:count]:
            who, other = subjects[index], subjects[index - 1]
            target = ("Rome", "the", "Paris")[rng.integers(3)]
            request = EditRequest("{} lives in", who, target)
            examples.append(TrainingExample(request, f"{who} is in", f"{other} is in", " of"))
        return examples


def run(model, directory, examples=None, settings=MEND, config=MEND_CONFIG, **options):
    kind = MethodName.KE if config is KE_CONFIG else MethodName.MEND
    arguments = (examples or Pool(), Pool(), settings, directory)
    return training.train(kind, model, config, *arguments, **{"data": DATA} | options)


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def history_of(directory):
    return json.loads((directory / REPORT).read_text())["history"]


# The losses


@pytest.fixture(scope="module")
def batch(model):
    return tokenize_examples(model, Pool().draw(np.random.default_rng(1), 4))


def test_batches_hold_edits_paraphrases_and_other_facts(model, batch):
    examples = Pool().draw(np.random.default_rng(1), 4)
    texts = [
        *((e.request.text, e.request.target_text) for e in examples),
        *((e.paraphrase, e.request.target_text) for e in examples),
        *((e.other_prompt, e.other_target) for e in examples),
    ]
    for row, (prompt, target) in enumerate(texts):
        ids, expected = model.tokenizer([prompt, target])["input_ids"]
        found = batch.rows.batch.ids[row][batch.rows.batch.mask[row]].tolist()
        assert found == ids + expected[:-1]
        assert batch.rows.target_ids[row][batch.rows.target_mask[row]].tolist() == expected
        if row < 4:
            found = batch.condition.ids[row][batch.condition.mask[row]].tolist()
            assert found == model.tokenizer(prompt + target)["input_ids"]
    # All draws have the same shapes, so the step is compiled once.
    assert batch.rows.batch.ids.shape == (12, 16) and batch.rows.target_ids.shape == (12, 4)
    assert batch.condition.ids.shape == (4, 20)


def test_losses_equal_those_of_models_with_merged_edits(model, batch):
    """The losses equal those of separate models with merged edits."""
    own = random_hypernetwork(MEND_CONFIG, model.config)
    network = training.make_network(MEND_CONFIG, model.config)
    found, variables = training.evaluate(
        network, own.variables, model.params, model.config, batch, False
    )
    assert_same(variables, own.variables)  # evaluation does not change the statistics

    edits = jax.tree.map(lambda leaf: leaf[:4], batch.rows)
    shape = (MEND_CONFIG.layers, MEND_CONFIG.leaves)
    factors = gradient_factors(model.params, model.config, edits, *shape)
    deltas = jax.jit(network.apply)(own.variables, factors)

    def log_p(params):
        logits = forward.logits(params, model.config, batch.rows.batch)
        return np.asarray(jax.nn.log_softmax(logits), np.float64)

    before = log_p(model.params)
    edit, kl, success, kept = [], [], [], []
    for case in range(4):
        after = log_p(apply_delta(model.params, deltas[case]))
        for row in (4 + case, 8 + case):
            keep = batch.rows.target_mask[row]
            columns, expected = batch.rows.read[row][keep], batch.rows.target_ids[row][keep]
            new, old = after[row][columns], before[row][columns]
            if row < 8:
                edit.append(-new[np.arange(len(expected)), expected].mean())
                success.append((new.argmax(-1) == expected).all())
            else:
                kl.append((np.exp(old) * (old - new)).sum(-1).mean())
                kept.append((new.argmax(-1) == old.argmax(-1)).all())
    expected = [np.mean(values) for values in (edit, kl, success, kept)]
    got = [found.edit, found.kl, found.success, found.kept]
    np.testing.assert_allclose(got, expected, rtol=2e-5)
    assert found.kl > 1e-3


# Steps


@pytest.fixture(scope="module")
def ke(model, batch):
    """(step, state): a training step of KE on the batch, and the initial state."""
    network = training.make_network(KE_CONFIG, model.config)
    state = training.initial_state(network, model, batch, KE)
    step = functools.partial(
        training.train_step,
        network=network,
        params=model.params,
        model_config=model.config,
        config=KE,
        batch=batch,
    )
    return step, state


def test_ke_learns_and_starts_with_the_embedding_of_the_model(model, ke):
    step, state = ke
    embedding = state.variables["params"]["condition"]["embedding"]["embedding"]
    np.testing.assert_array_equal(embedding, model.params["wte"]["embedding"])
    losses = []
    for _ in range(6):
        state, found = step(state)
        losses.append(float(found.edit))
    assert losses[-1] < losses[0] - 0.05
    assert (np.diff(losses) < 0).all()


def test_the_multiplier_follows_the_constraint(ke):
    step, state = ke
    assert (state.multiplier, state.margin) == (1.0, np.float32(1e-2))
    for multiplier, margin in ((1.0, 0.0), (0.5, 1e-3), (2.0, 5.0), (0.1, 5.0)):
        given = state.replace(multiplier=jnp.float32(multiplier), margin=jnp.float32(margin))
        moved, found = step(given)
        expected = max(0.0, multiplier + KE.multiplier_rate * (float(found.kl) - margin))
        np.testing.assert_allclose(moved.multiplier, expected, rtol=1e-6)
        if margin < found.kl:
            assert moved.multiplier > multiplier
        assert moved.margin == given.margin  # only validations change it
    assert expected == 0.0  # in the last case: never negative


def test_rates_have_their_own_learning_rate():
    config = dataclasses.replace(MEND, learning_rate=1e-3, rate_learning_rate=1e-1)
    optimizer = make_optimizer(config)
    params = {"rates": jnp.ones(2), "MLP_UP": {"u": jnp.ones(2)}}
    gradient = jax.tree.map(lambda leaf: jnp.array([1.0, -1.0]), params)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["rates"], [-1e-1, 1e-1], rtol=1e-4)
    np.testing.assert_allclose(updates["MLP_UP"]["u"], [-1e-3, 1e-3], rtol=1e-4)


# Runs


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """(directory, network) of an uninterrupted run."""
    directory = tmp_path_factory.mktemp("finished")
    return directory, run(model, directory)


@pytest.fixture(scope="module")
def killed(model, tmp_path_factory):
    """The directory of a run that died in its fourth step, after one validation."""
    directory = tmp_path_factory.mktemp("killed")
    with pytest.raises(Killed):
        run(model, directory, Pool(dies=4))
    return directory


def test_the_loss_falls(finished):
    history = history_of(finished[0])
    assert [row["step"] for row in history] == [2, 4, 6]
    assert history[-1]["loss"] < history[0]["loss"]
    for row in history:
        assert row["loss"] == pytest.approx(0.1 * row["edit"] + row["kl"])
        assert row["multiplier"] == 1.0


def test_a_finished_run_leaves_its_network_and_its_report(model, finished):
    directory, network = finished
    assert sorted(path.name for path in directory.iterdir()) == sorted([FILE, REPORT])
    read = hypernetworks.load(directory / FILE, model)
    assert_same(read.variables, network.variables)
    report = json.loads((directory / REPORT).read_text())
    assert report["best"] == min(report["history"], key=lambda row: row["loss"])
    assert read.about["best"] == report["best"] and read.about["data"] == DATA
    assert report["about"]["config"] == json.loads(json.dumps(MEND_CONFIG.to_dict()))


def test_a_finished_run_is_not_trained_again(model, finished):
    directory, network = finished
    assert_same(run(model, directory, Pool(dies=1)).variables, network.variables)


def test_a_resumed_run_ends_like_an_uninterrupted_one(model, finished, killed, tmp_path):
    assert not (killed / REPORT).exists() and not (killed / FILE).exists()
    directory, rest = tmp_path / "resumed", Pool()
    shutil.copytree(killed, directory)
    network = run(model, directory, rest)
    assert rest.draws == 4  # the third step is taken again
    assert_same(network.variables, finished[1].variables)
    assert history_of(directory) == history_of(finished[0])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": dataclasses.replace(MEND, learning_rate=1e-4)}, "training"),
        ({"config": dataclasses.replace(MEND_CONFIG, rank=3)}, "config"),
        ({"data": {"source": "another"}}, "data"),
        ({"config": KE_CONFIG, "settings": KE}, "kind, config, training"),
    ],
    ids=["settings", "rank", "data", "kind"],
)
def test_runs_with_other_settings_are_refused(model, finished, killed, change, named):
    for directory in (finished[0], killed):
        with pytest.raises(ValueError) as error:
            run(model, directory, **change)
        assert str(error.value) == (
            f"{directory} holds a training run that differs in {named}: remove it, or give another output_dir."
        )


def test_the_tokens_before_each_prompt_are_part_of_the_settings(model):
    described = [
        training._describe(MethodName.MEND, known, MEND_CONFIG, MEND, DATA, "float32")
        for known in (model, with_begin_token(model))
    ]
    assert described[1] == described[0] | {"begin_tokens": ["<|endoftext|>"]}


def test_a_layer_that_the_model_does_not_have(model, tmp_path):
    with pytest.raises(ValueError, match="layers=3 does not exist: the model has layers 0 to 2"):
        run(model, tmp_path, config=dataclasses.replace(MEND_CONFIG, layers=(3, 2)))


# Length of a run and choice of the best network, with steps that only count and scripted validations


@pytest.fixture
def script(monkeypatch):
    """script(losses, success) sets the results of the next validations."""

    def step(state, *rest):
        params = {"steps": state.variables["params"]["steps"] + 1}
        return state.replace(variables={"params": params}), Losses(*np.ones(4))

    def follow(losses, success=()):
        success = iter([*success, *np.zeros(len(losses) - len(success))])
        rows = iter([Losses(loss, 0.0, next(success), 1.0) for loss in losses])
        state = TrainState(
            {"params": {"steps": jnp.zeros(())}}, {}, jnp.float32(1), jnp.float32(0.01)
        )
        monkeypatch.setattr(training, "train_step", step)
        monkeypatch.setattr(training, "evaluate", lambda *rest: (next(rows), None))
        monkeypatch.setattr(training, "initial_state", lambda *rest: state)

    return follow


LONG = dataclasses.replace(KE, max_steps=20, validate_every=2, patience=2, num_validation=4)


def test_the_best_network_is_kept_and_patience_ends_the_run(model, tmp_path, script):
    script([3.0, 1.0, 2.0, 1.0, 0.5])
    network = run(model, tmp_path, settings=LONG, config=KE_CONFIG)
    assert [row["edit"] for row in history_of(tmp_path)] == [3.0, 1.0, 2.0, 1.0]
    assert network.variables["params"]["steps"] == 4.0
    assert network.about["best"]["step"] == 4


def test_a_better_validation_restarts_the_patience(model, tmp_path, script):
    script([3.0, 2.0, 2.5, 1.0, 1.5, 0.9, 1.0, 1.0])
    network = run(model, tmp_path, settings=LONG, config=KE_CONFIG)
    assert len(history_of(tmp_path)) == 8
    assert network.variables["params"]["steps"] == 12.0


def test_a_short_last_interval_is_validated(model, tmp_path, script):
    script([3.0, 2.0, 1.0])
    settings = dataclasses.replace(LONG, max_steps=5)
    network = run(model, tmp_path, settings=settings, config=KE_CONFIG)
    assert [row["step"] for row in history_of(tmp_path)] == [2, 4, 5]
    assert network.variables["params"]["steps"] == 5.0


def test_the_best_network_survives_a_kill(model, tmp_path, script):
    script([1.0, 2.0])
    with pytest.raises(Killed):
        run(model, tmp_path, Pool(dies=6), LONG, KE_CONFIG)
    script([3.0])
    network = run(model, tmp_path, settings=LONG, config=KE_CONFIG)
    assert [row["edit"] for row in history_of(tmp_path)] == [1.0, 2.0, 3.0]
    assert network.variables["params"]["steps"] == 2.0


def test_the_margin_shrinks_after_successes_down_to_its_minimum(model, tmp_path, script):
    settings = dataclasses.replace(LONG, margin_min=7e-3)
    script([5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.4, 0.3, 0.2, 0.1], [0.95, 0.9, 0.95, 1.0])
    run(model, tmp_path, settings=settings, config=KE_CONFIG)
    margins = [row["margin"] for row in history_of(tmp_path)]
    expected = [0.01, 0.008, 0.008, 0.007, *[0.007] * 6]
    np.testing.assert_allclose(margins, expected, rtol=1e-6)


def test_divergence_is_an_error(model, tmp_path, script):
    script([1.0, np.nan])
    with pytest.raises(ValueError, match=r"learning_rate=0.03 is too high: .* nan after 4 steps"):
        run(model, tmp_path, settings=LONG, config=KE_CONFIG)


# Settings


@pytest.mark.parametrize(
    "field",
    "learning_rate rate_learning_rate batch_size clip max_steps validate_every patience num_validation".split(),
)
def test_settings_out_of_range_are_named(field):
    with pytest.raises(ValueError, match=f"^{field}=0: give a number "):
        TrainingConfig(**{"learning_rate": 1e-3, field: 0})


def test_each_method_has_its_own_settings():
    mend, ke = (TrainingConfig.for_kind(kind) for kind in (MethodName.MEND, MethodName.KE))
    assert (mend.edit_weight, mend.locality_weight, mend.margin) == (0.1, 1.0, None)
    assert ke.margin is not None and ke.edit_weight == 1.0
    assert TrainingConfig.for_kind(MethodName.KE, seed=3).seed == 3
