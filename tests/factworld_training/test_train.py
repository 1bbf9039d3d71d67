"""Training of the factworld models, on a model too small to learn anything but quick to run."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from rome_jax.data.corpus import Corpus
from rome_jax.factworld.corpus import documents
from rome_jax.factworld.facts import make_world
from rome_jax.factworld_training import train as training
from rome_jax.factworld_training.batches import batches, part_of
from rome_jax.factworld_training.settings import CONFIGS
from rome_jax.models.registry import load_model
from rome_jax.models.sharding import parse_mesh
from rome_jax.moments import files as moment_files
from tests.factworld_training.tiny import TINY, tiny_tokenizer


@pytest.fixture(scope="module")
def world():
    return make_world()


@pytest.fixture(scope="module")
def tokenizer(world):
    return tiny_tokenizer(world)


def test_batches_are_reproducible_and_of_both_lengths(world, tokenizer):
    first, second = (list(batches(world, tokenizer, TINY)) for _ in range(2))
    assert len(first) == TINY.steps
    assert {batch.ids.shape for batch in first} == {(4, 32), (2, 64)}
    for one, two in zip(first, second, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, two)


def test_the_first_steps_see_a_part_of_the_subjects(world, tokenizer):
    part = part_of(world, 0.25, seed=0)
    assert 0.15 < len(part.facts) / len(world.facts) < 0.35
    assert set(part.facts) < set(world.facts)
    for kind in ("city_country", "company_country", "country_language"):
        assert part.facts_of(kind) == world.facts_of(kind)


@pytest.fixture
def quick(monkeypatch):
    """A small world, a tokenizer from few documents, and second moments over few texts."""
    world = part_of(make_world(), 0.05, 0)
    texts = [document.text for document in documents(world, 7, 200)]
    corpus = Corpus("texts", "sha256:1", len(texts), lambda first: iter(texts[first:]))
    monkeypatch.setattr(training, "make_world", lambda seed: world)
    monkeypatch.setattr(training, "_TOKENIZER_DOCUMENTS", 2000)
    monkeypatch.setattr(training, "factworld", lambda seed: corpus)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_model(quick, tmp_path, monkeypatch):
    whole = training.train(TINY, tmp_path / "whole", checkpoint_every=3)

    steps, step = [], training.train_step

    def killed(*args):
        if len(steps) == 5:
            raise KeyboardInterrupt
        steps.append(1)
        return step(*args)

    monkeypatch.setattr(training, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train(TINY, tmp_path / "killed", checkpoint_every=3)
    assert not (tmp_path / "killed").exists()
    monkeypatch.setattr(training, "train_step", step)
    with pytest.raises(ValueError, match="another configuration"):
        training.train(dataclasses.replace(TINY, warmup=1), tmp_path / "killed")
    damaged = tmp_path / "damaged.training"
    shutil.copytree(tmp_path / "killed.training", damaged)
    path = max((damaged / "3" / "state" / "d").iterdir(), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(
        ValueError, match=r"damaged\.training holds a damaged checkpoint: remove it"
    ):
        training.train(TINY, tmp_path / "damaged", checkpoint_every=3)
    resumed = training.train(TINY, tmp_path / "killed", checkpoint_every=3)

    assert resumed == whole
    first, second = (load_model(tmp_path / name) for name in ("whole", "killed"))
    assert first.fingerprint() == second.fingerprint() == resumed["fingerprint"]
    assert not (tmp_path / "killed.training").exists()
    moments = moment_files.load(tmp_path / "second_moments_killed", second)
    assert sorted(moments) == [0, 1]
    assert json.loads((tmp_path / "killed" / "training.json").read_text()) == resumed
    recall, losses = training.report_lines(resumed)
    assert recall.startswith("recall: ") and losses.startswith("loss by position")
    assert len(resumed["loss_by_position"]) == TINY.model.context_length - 1


def test_rows_are_split_over_the_devices_that_divide_them():
    sharding = training.data_sharding(TINY)
    assert sharding.mesh == parse_mesh(f"data:{sharding.mesh.size}")
    assert 2 % sharding.mesh.size == 0  # 4 short rows or 2 long ones
    assert sharding.shard_shape((4, 32)) == (4 // sharding.mesh.size, 32)


def test_shipped_settings_fit_the_context():
    for config in CONFIGS.values():
        assert config.model.context_length >= 256
        for length in (config.short_length, config.model.context_length):
            assert config.tokens_per_step % length == 0
