"""Collection over a corpus: what is counted, what is kept, and that a killed run resumes."""

import dataclasses
import itertools
import json

import jax
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from rome_jax.data.corpus import Corpus
from rome_jax.data.tokens import pad
from rome_jax.factworld.corpus import documents
from rome_jax.factworld.facts import make_world
from rome_jax.files.locks import in_use
from rome_jax.moments import collect as statistics
from rome_jax.moments import files as moment_files
from rome_jax.moments.collect import collect, default_directory
from rome_jax.moments.key_sums import KeySums, accumulate
from rome_jax.moments.limits import Limit
from rome_jax.moments.state import UNFINISHED
from tests.models.checkpoints import with_begin_token
from tests.moments.examples import relative_error, tiny_model

NUM_TEXTS = 160
NUM_ARTICLES = 144  # texts that are not empty


@pytest.fixture(scope="module")
def model(golden_model):
    return tiny_model("some/tiny").replace(tokenizer=golden_model("gpt2").tokenizer)


@pytest.fixture(scope="module")
def texts():
    """Articles, every tenth of them empty and some longer than the context."""
    written = [document.text for document in documents(make_world(), 3, NUM_TEXTS + 3)]
    joined = [" ".join(written[i : i + 1 + i % 4]) for i in range(NUM_TEXTS)]
    return ["" if i % 10 == 5 else text for i, text in enumerate(joined)]


@pytest.fixture(scope="module")
def corpus(texts):
    return Corpus("texts", "sha256:1", len(texts), lambda first: iter(texts[first:]))


def run(model, corpus, directory, layers=(0, 2), **changes):
    options = {"batch_tokens": 200, "sequence_length": 48, "progress": False} | changes
    collect(model, corpus, layers, directory, **options)


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def whole(model, corpus, tmp_path_factory):
    """The files of a run that was not interrupted."""
    directory = tmp_path_factory.mktemp("whole")
    run(model, corpus, directory)
    return contents(directory)


def test_every_article_counts_once_cut_to_the_length(model, texts, corpus, tmp_path):
    run(model, corpus, tmp_path, limit=Limit(articles=40))
    ids = model.tokenizer(texts, add_special_tokens=False)["input_ids"]
    ids = [one[:48] for one in ids if one][:40]
    assert any(len(one) == 48 for one in ids)
    batches = [pad(ids[i : i + 4], multiple=48) for i in range(0, 40, 4)]
    wanted = accumulate(model.params, model.config, batches)
    moments = moment_files.load(tmp_path, model)
    assert list(moments) == [0, 2]
    for layer, moment in moments.items():
        assert moment.count == wanted[layer].count == sum(map(len, ids))
        assert relative_error(wanted[layer].mean, moment.mean) <= 1e-6


def test_files_say_where_they_come_from(model, corpus, whole, tmp_path):
    (tmp_path / "layer_2.safetensors").write_bytes(whole["layer_2.safetensors"])
    (moment,) = moment_files.load(tmp_path, model).values()
    known = moment.provenance
    assert (known.model, known.fingerprint) == ("some/tiny", model.fingerprint())
    assert (known.layer, known.corpus, known.revision) == (2, "texts", "sha256:1")
    assert (known.limit, known.articles, known.sequence_length) == ("all", NUM_ARTICLES, 48)
    assert 0.95 <= moment.fill_rate <= 1
    assert set(whole) == {"layer_0.safetensors", "layer_2.safetensors"}


@pytest.mark.parametrize("tokens", [1, 1000, 1237])
def test_a_limit_on_tokens_is_exact(model, corpus, tmp_path, tokens):
    run(model, corpus, tmp_path, [0], limit=Limit(tokens=tokens))
    assert moment_files.load(tmp_path)[0].count == tokens


def test_a_batch_has_as_many_rows_as_fit(model, corpus, tmp_path, monkeypatch):
    shapes = []

    def count(self, batch):
        shapes.append(batch.ids.shape)
        self.tokens += int(batch.mask.sum())

    monkeypatch.setattr(KeySums, "add", count)
    for length in (16, 48):
        run(model, corpus, tmp_path / str(length), [0], sequence_length=length)
        assert set(shapes) == {(200 // length, length)}
        shapes.clear()


class Killed(BaseException):
    """An exception that no code catches."""


@pytest.mark.parametrize("batches", [1, 2, 17])
def test_a_killed_run_ends_with_the_same_bits(model, corpus, whole, tmp_path, monkeypatch, batches):
    add, added = KeySums.add, itertools.count()

    def killed(self, batch):
        if next(added) == batches:
            raise Killed
        add(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(KeySums, "add", killed)
        with pytest.raises(Killed):
            run(model, corpus, tmp_path, checkpoint_seconds=0)
    assert [file.name for file in tmp_path.iterdir()] == [UNFINISHED]
    (tmp_path / ".0123456789abcdef.partial").write_bytes(b"half")  # killed while writing
    again = []
    with monkeypatch.context() as patched:
        patched.setattr(KeySums, "add", lambda self, b: again.append(1) or add(self, b))
        run(model, corpus, tmp_path)
    assert contents(tmp_path) == whole
    rows = moment_files.read_provenance(tmp_path / "layer_0.safetensors")[0].rows
    assert batches + len(again) == -(-rows // 4)  # No batch is done twice.


def test_without_a_saved_state_a_run_starts_again(model, corpus, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(statistics, "_write", lambda *args: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(model, corpus, tmp_path)
    assert list(tmp_path.iterdir()) == []
    run(model, corpus, tmp_path)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("written", [0, 1, 2])
def test_killed_between_its_files_a_run_ends_with_the_same_bits(
    model, corpus, whole, tmp_path, monkeypatch, written
):
    save, saved = moment_files.save, itertools.count()

    def killed(*args):
        if next(saved) == written:
            raise Killed
        save(*args)

    def no_end(*args):
        write(*args)
        raise Killed

    write = statistics._write
    with monkeypatch.context() as patched:
        patched.setattr(moment_files, "save", killed)
        patched.setattr(statistics, "_write", no_end)
        with pytest.raises(Killed):
            run(model, corpus, tmp_path, checkpoint_seconds=0)
    assert len(moment_files.files_in(tmp_path)) == written
    run(model, corpus, tmp_path)
    assert contents(tmp_path) == whole


def test_layers_with_files_are_not_collected_again(model, corpus, whole, tmp_path, monkeypatch):
    run(model, corpus, tmp_path, [0])
    run(model, corpus, tmp_path, [0, 2])
    both = contents(tmp_path)
    assert set(both) == set(whole)
    assert both["layer_0.safetensors"] == whole["layer_0.safetensors"]
    monkeypatch.setattr(KeySums, "add", None)
    run(model, corpus, tmp_path, [2])
    assert contents(tmp_path) == both


def test_a_state_is_kept_when_only_finished_layers_are_requested(
    model, corpus, whole, unfinished, tmp_path
):
    run(model, corpus, tmp_path, [1])
    (tmp_path / UNFINISHED).write_bytes(unfinished)
    run(model, corpus, tmp_path, [1])
    assert (tmp_path / UNFINISHED).read_bytes() == unfinished
    run(model, corpus, tmp_path, [0, 1, 2])
    files = contents(tmp_path)
    assert {name: files[name] for name in whole} == whole and len(files) == 3


def other_model(model):
    return model.replace(name="other", params=jax.tree.map(lambda leaf: leaf * 2, model.params))


DIFFERENCES = {
    "model": (
        lambda model, corpus: (other_model(model), corpus, {}),
        r"model is some/tiny \([0-9a-f]{12}\) there and other \([0-9a-f]{12}\) here",
    ),
    "corpus": (
        lambda model, corpus: (model, dataclasses.replace(corpus, name="others"), {}),
        "corpus is texts there and others here",
    ),
    "revision": (
        lambda model, corpus: (model, dataclasses.replace(corpus, revision="sha256:2"), {}),
        "revision is sha256:1 there and sha256:2 here",
    ),
    "limit": (
        lambda model, corpus: (model, corpus, {"limit": Limit(articles=7)}),
        "limit is all there and 7 articles here",
    ),
    "sequence_length": (
        lambda model, corpus: (model, corpus, {"sequence_length": 16}),
        "sequence_length is 48 there and 16 here",
    ),
}
OF_A_STATE = {
    "batch_tokens": (
        lambda model, corpus: (model, corpus, {"batch_tokens": 100}),
        "batch_tokens is 200 there and 100 here",
    ),
    "layers": (
        lambda model, corpus: (model, corpus, {"layers": [1, 2]}),
        r"layers is \[0, 2\] there and \[1, 2\] here",
    ),
}


@pytest.fixture(scope="module")
def unfinished(model, corpus, tmp_path_factory):
    """The state of a run after its first batch."""
    directory = tmp_path_factory.mktemp("unfinished")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(statistics, "_write", lambda *args: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(model, corpus, directory, checkpoint_seconds=0)
    return (directory / UNFINISHED).read_bytes()


@pytest.mark.parametrize("name", [*DIFFERENCES, *OF_A_STATE])
def test_a_state_of_other_settings_is_refused(model, corpus, unfinished, tmp_path, name):
    change, message = (DIFFERENCES | OF_A_STATE)[name]
    (tmp_path / UNFINISHED).write_bytes(unfinished)
    another, texts, options = change(model, corpus)
    with pytest.raises(ValueError, match=message + r".*: give another output_dir, or remove it"):
        run(another, texts, tmp_path, **options)
    assert contents(tmp_path) == {UNFINISHED: unfinished}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_files_of_other_settings_are_refused(model, corpus, whole, tmp_path, name):
    change, message = DIFFERENCES[name]
    for file, content in whole.items():
        (tmp_path / file).write_bytes(content)
    another, texts, options = change(model, corpus)
    with pytest.raises(ValueError, match=r"layer_0\.safetensors comes from other .*" + message):
        run(another, texts, tmp_path, [1], **options)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("size", [0, 100, -9])
def test_a_damaged_state_is_an_error(model, corpus, unfinished, tmp_path, size):
    (tmp_path / UNFINISHED).write_bytes(unfinished[:size])
    with pytest.raises(ValueError, match=r"is damaged .*: remove it to start again"):
        run(model, corpus, tmp_path)


def test_a_corpus_without_text_is_an_error(model, tmp_path):
    empty = Corpus("empty", "sha256:0", 3, lambda first: iter(["", "", ""][first:]))
    with pytest.raises(ValueError, match="corpus 'empty' holds no text"):
        run(model, empty, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sequence_length": 65},
            "sequence_length=65 does not fit the model: give 1 to 64, the model's context length",
        ),
        ({"sequence_length": 0}, "sequence_length=0 does not fit the model: give 1 to 64"),
        ({"batch_tokens": 47}, "batch_tokens=47 is less than one row of 48"),
        ({"layers": [3]}, "layers=3 does not exist"),
        ({"layers": []}, "layers is empty"),
    ],
)
def test_bad_arguments_are_errors(model, corpus, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(model, corpus, tmp_path, **options)


@pytest.mark.parametrize("wrong", [{"articles": 0}, {"tokens": -1}, {"articles": 1, "tokens": 1}])
def test_bad_limits_are_errors(wrong):
    with pytest.raises(ValueError, match=r"give (at most one of them|a number of 1 or more)"):
        Limit(**wrong)


@pytest.mark.parametrize(
    ("limit", "total"),
    [(Limit(articles=40), "/40.0"), (Limit(tokens=500), "/500"), (Limit(), f"/{NUM_TEXTS}")],
)
def test_the_bar_ends_at_its_end(model, corpus, tmp_path, capfd, limit, total):
    run(model, corpus, tmp_path, [0], limit=limit, progress=True)
    last = capfd.readouterr().err.rsplit("\r", 1)[-1]
    assert total in last and "tokens" in last
    assert ("100%" in last) == (limit != Limit())  # Some of the texts are empty.


def test_each_limit_has_its_own_default_directory(model, corpus):
    assert str(default_directory(model, corpus, Limit())) == "stats/some_tiny/texts_all"
    wikipedia = dataclasses.replace(corpus, name="wikimedia/wikipedia 20231101.en")
    local = model.replace(name="../models/mine", source="directory elsewhere")
    assert str(default_directory(local, wikipedia, Limit(articles=9))) == (
        "stats/mine/wikimedia_wikipedia_20231101.en_9_articles"
    )


def test_a_folder_in_use_is_refused_by_name(model, corpus, tmp_path):
    with in_use(tmp_path), pytest.raises(OSError, match=f"output_dir={tmp_path} is in use"):
        run(model, corpus, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_collection_stops_at_the_requested_error(model, corpus, whole, tmp_path, monkeypatch):
    (tmp_path / "all.safetensors").write_bytes(whole["layer_0.safetensors"])
    error = moment_files.read_provenance(tmp_path / "all.safetensors")[0].error
    assert 0 < error < 0.5
    limit = Limit(error=2 * error)
    run(model, corpus, tmp_path / "short", [0], limit=limit)
    moment = moment_files.load(tmp_path / "short", model)[0]
    assert moment.count < moment_files.load(tmp_path / "all.safetensors")[0].count
    assert moment.provenance.error <= 2 * error and moment.provenance.articles < NUM_ARTICLES
    assert moment.provenance.limit == f"all or error {2 * error:g}"

    # Killed in the last batch before it stops, it ends with the same bits.
    add, added = KeySums.add, itertools.count(1)
    last = -(-moment.provenance.rows // 4)

    def killed(self, batch):
        if next(added) == last:
            raise Killed
        add(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(KeySums, "add", killed)
        with pytest.raises(Killed):
            run(model, corpus, tmp_path / "killed", [0], limit=limit, checkpoint_seconds=0)
    run(model, corpus, tmp_path / "killed", [0], limit=limit)
    assert contents(tmp_path / "killed") == contents(tmp_path / "short")


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (0, "a number above 0"),
        (1, "a number below 1"),
        (-0.5, "a number above 0"),
        (float("nan"), "a finite number"),
    ],
)
def test_an_error_that_cannot_be_reached_is_refused(error, wanted):
    with pytest.raises(ValueError, match=f"error={error}: give {wanted}"):
        Limit(error=error)


def test_a_state_of_an_earlier_version_is_refused(model, corpus, unfinished, tmp_path):
    path = tmp_path / UNFINISHED
    path.write_bytes(unfinished)
    with safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()["rome_jax"])
    save_file(load_file(path), path, {"rome_jax": json.dumps(header | {"tokens": 400})})
    with pytest.raises(
        ValueError, match=r"unfinished\.safetensors was written by an earlier version of rome_jax: "
    ):
        run(model, corpus, tmp_path)


def test_files_record_the_tokens_before_each_text(model, corpus, whole, tmp_path):
    begun = with_begin_token(model)
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    assert moment_files.read_provenance(tmp_path / "layer_0.safetensors")[0].begin_tokens == []
    with pytest.raises(ValueError, match=r"begin_tokens is \[\] there and \[.*\] here"):
        run(begun, corpus, tmp_path)
    for again in ("written", "found"):
        run(begun, corpus, tmp_path / "begin", limit=Limit(tokens=300))
        path = tmp_path / "begin" / "layer_0.safetensors"
        assert moment_files.read_provenance(path)[0].begin_tokens == ["<|endoftext|>"], again


@pytest.mark.parametrize(
    "changes", [{"layers": [0, -1]}, {"counts": {"texts": "many"}}, {"tokens": 1e99}]
)
def test_a_state_that_lies_is_refused(model, corpus, tmp_path, monkeypatch, changes):
    with monkeypatch.context() as patched:
        patched.setattr(statistics, "_write", lambda *args: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(model, corpus, tmp_path, checkpoint_seconds=0)
    path = tmp_path / UNFINISHED
    tensors = load_file(path)
    with safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()["rome_jax"])
    save_file(tensors, path, {"rome_jax": json.dumps(header | changes)})
    with pytest.raises(ValueError, match=r"unfinished\.safetensors, metadata: ") as error:
        run(model, corpus, tmp_path)
    assert "\n" not in str(error.value)
