"""`python -m eval.train_hypernetwork`, its examples and its figure, and the networks of the package."""

import json

import numpy as np
import pytest

from rome_jax.edit.baseline_config import MENDConfig
from rome_jax.edit.hypernetworks import networks as hypernetworks
from rome_jax.edit.hypernetworks.networks import CONFIG_TYPES
from rome_jax.edit.method import METHODS, Editor, MethodName, read_config
from rome_jax.edit.stages.targets import tokenize_request_targets
from rome_jax.evaluation.datasets import DatasetName, load_dataset
from rome_jax.evaluation.hypernetwork_examples import split_records
from rome_jax.evaluation.run_settings import Settings
from rome_jax.factworld.records import Role
from rome_jax.models import forward
from rome_jax.models.registry import SHIPPED, load_model
from tests.programs import ROOT, Program, refusal

RECORDS = load_dataset(DatasetName.CF, model_name="factworld-gpt2", limit=40).records
SMALL = ("--batch_size=4", "--max_steps=2", "--validate_every=1")
CONFIG = """
from ml_collections import ConfigDict
from rome_jax.edit.baseline_config import MENDConfig
def get_config():
    return ConfigDict(MENDConfig((5,), rank=4).to_dict(), convert_dict=False)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """The folder of a first run, and the results of that run, of the same command again, and with another seed."""
    directory = tmp_path_factory.mktemp("mend")
    config = tmp_path_factory.mktemp("config") / "small.py"
    config.write_text(CONFIG)
    run = [*SMALL, f"--config={config}", f"--output_dir={directory}"]
    program = Program("eval.train_hypernetwork")
    return directory, [program(*line) for line in (run, run, [*run, "--seed=1"])]


@pytest.mark.needs("matplotlib")
@pytest.mark.slow
def test_it_trains_reports_and_draws(said):
    directory, (first, *_) = said
    assert first.returncode == 0, first.stderr
    assert "Best at step " in first.stdout and " of 2: " in first.stdout
    files = {path.name for path in directory.iterdir()}
    assert files == {"hypernetwork.safetensors", "training.json", "training.png"}
    network = hypernetworks.load(directory / "hypernetwork.safetensors")
    assert network.config == MENDConfig((5,), rank=4) and network.model == "factworld-gpt2"
    assert network.about["data"] == {"source": "factworld, tuning facts"}
    report = json.loads((directory / "training.json").read_text())
    assert [row["step"] for row in report["history"]] == [1, 2]
    assert report["about"]["fingerprint"] == network.fingerprint


@pytest.mark.needs("matplotlib")
@pytest.mark.slow
def test_a_finished_training_is_only_reported_again(said):
    _, (first, second, other_seed) = said
    assert second.returncode == 0, second.stderr
    assert first.stdout.splitlines()[-1] == second.stdout.splitlines()[-1]
    assert (
        "a training run that differs in training: remove it, or give another output_dir"
        in refusal(other_seed)
    )


@pytest.mark.needs("matplotlib")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model_name=gpt2-xl"],
            "MEND has no defaults to train with for model 'gpt2-xl': give --data_path with a file",
        ),
        (
            ["--model_name=smollm2-135m"],
            "for model 'smollm2-135m': give --config.layers with the layers to edit and --data_path with a file of "
            "CounterFact records to train on.",
        ),
        (["--model_name=gpt2-xl", f"--data_path={ROOT / 'absent.json'}"], "absent"),
        (
            ["--alg_name=KE", "--model_name=EleutherAI/gpt-j-6B", f"--data_path={ROOT / 'absent'}"],
            "KE has no defaults to train with for model 'EleutherAI/gpt-j-6B': give --config.layers with the layers to "
            "edit.",
        ),
    ],
)
def test_bad_input_is_one_sentence(arguments, message):
    assert message in refusal(Program("eval.train_hypernetwork")(*arguments))


# Records of other models


def test_records_are_split_and_serve_as_each_others_neighbors():
    training, validation = split_records(RECORDS, seed=0)
    ids = [{record.case_id for record in part.records} for part in (training, validation)]
    assert (len(training.records), len(validation.records)) == (35, 5)
    assert not ids[0] & ids[1]
    by_request = {record.request: record for record in training.records}
    for example in training.draw(np.random.default_rng(0), 50):
        record = by_request[example.request]
        assert example.paraphrase in (example.request.text, *record.paraphrase_prompts)
        (other,) = [r for r in by_request if r.text == example.other_prompt]
        assert other != example.request and example.other_target == f" {other.target_true}"


def test_too_few_records():
    with pytest.raises(ValueError, match="15 records are too few to train on: give at least 16"):
        split_records(RECORDS[:15], seed=0)


# The networks of the package


@pytest.fixture(scope="module", params=SHIPPED)
def model(request, shipped_model):
    return shipped_model(request.param)


@pytest.mark.parametrize("kind", CONFIG_TYPES)
def test_shipped_networks_edit_facts_that_they_have_not_seen(model, kind):
    records = load_dataset(DatasetName.CF, model_name=model.name, limit=16, role=Role.HELD_OUT)
    requests = [record.request for record in records.records]
    config = METHODS[MethodName(kind)].for_model(model.name)
    editor = Editor.prepare(MethodName(kind), model, config, chunk_size=16)
    inputs = tokenize_request_targets(model.tokenizer, requests, model.config.context_length)
    said = []
    for deltas in (None, editor.compute(requests)):
        logits = forward.logits(
            model.params, model.config, inputs.batch, positions=inputs.read, deltas=deltas
        )
        said.append(((logits.argmax(-1) == inputs.target_ids) | ~inputs.target_mask).all(-1).sum())
    assert said[0] == 0 and said[1] >= 8
    assert Settings.of(editor, records, None).edit["hypernetwork"] == (
        editor.options["hypernetwork"].digest()
    )


def test_a_network_of_the_other_model_is_refused(model):
    (other,) = set(SHIPPED) - {model.name}
    source = hypernetworks.load_shipped(MethodName.MEND, load_model(other))
    with pytest.raises(ValueError, match=f"was trained for {other} .* not for {model.name}"):
        source.check(model)


@pytest.mark.parametrize(("algorithm", "other"), [(MethodName.MEND, "ke"), (MethodName.KE, "mend")])
def test_a_network_of_the_other_method_is_refused(model, algorithm, other):
    source = f"rome_jax/factworld/assets/hypernetworks/{other}_{SHIPPED[model.name]}.safetensors"
    with pytest.raises(
        ValueError,
        match=f"was trained for {other.upper()}: give one that was trained for {algorithm}",
    ):
        read_config(algorithm, model.name, hypernetwork=str(ROOT / source))


def test_methods_without_a_network_take_none(model):
    with pytest.raises(
        ValueError, match=r"--hypernetwork=x\.pt is only for MEND, KE: leave it out"
    ):
        Editor.prepare(
            MethodName.FT,
            model,
            METHODS[MethodName.FT].for_model(model.name),
            hypernetwork_source="x.pt",
        )


@pytest.mark.needs("matplotlib")
@pytest.mark.slow
def test_a_network_brings_its_own_hyperparameters(said):
    path = str(said[0] / "hypernetwork.safetensors")
    found = read_config(MethodName.MEND, "a model nobody knows", hypernetwork=path)
    assert found == MENDConfig((5,), rank=4)
