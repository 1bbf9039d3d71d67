"""`python -m eval.evaluate`: the folders of its runs, how they resume, and what is refused."""

import dataclasses
import json
import types

import pytest

from rome_jax.data.request import RequestError
from rome_jax.edit.baseline_config import FTConfig, MENDConfig
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.method import Editor, MethodName
from rome_jax.edit.result import NotFiniteError
from rome_jax.evaluation import batch, tables
from rome_jax.evaluation import run as evaluation_run
from rome_jax.evaluation.case_files import read_cases
from rome_jax.evaluation.datasets import DatasetName, load_dataset
from rome_jax.evaluation.run import EvaluationRun, load_generation_tests
from rome_jax.evaluation.run_folder import find_run
from rome_jax.evaluation.run_settings import Settings
from rome_jax.evaluation.summaries import summarize
from rome_jax.factworld.facts import make_world
from rome_jax.factworld.records import Role, counterfact_records
from rome_jax.files.checksums import METADATA_KEY
from rome_jax.files.locks import in_use
from rome_jax.models import runs
from rome_jax.models.interventions import Delta
from rome_jax.models.provenance import Match
from tests.evaluation.edits import DenseRandomEdits, RandomEdits
from tests.programs import Program, refusal

CASES = 5


@pytest.fixture(scope="module")
def model(shipped_model):
    return shipped_model("factworld-gpt2")


@pytest.fixture(scope="module")
def dataset(model):
    return load_dataset(DatasetName.CF, model_name=model.name, limit=CASES)


@pytest.fixture(scope="module")
def config(model):
    return dataclasses.replace(
        ROMEConfig.for_model(model.name),
        v_num_grad_steps=3,
        context_template_length_params=((5, 1),),
    )


class Together(RandomEdits):
    """Edits that depend on their batch in the last bits, as MEND's do."""

    def compute(self, requests, progress=False):
        (update,) = super().compute(requests, progress).updates
        scale = 1 + 1e-6 * sum(request.case_id for request in requests)
        return Delta((dataclasses.replace(update, left=scale * update.left),))


@pytest.fixture(scope="module")
def editor(model, config):
    return Together.prepare(MethodName.ROME, model, config)


def evaluate(results_dir, editor, dataset, continue_from=None, generation=None, batch_size=2):
    settings = Settings.of(editor, dataset, generation)
    run = EvaluationRun.open(results_dir, settings, continue_from)
    run.evaluate(editor, dataset, generation, batch_size=batch_size, max_tokens=16_384)
    return run


def contents(directory):
    """All cases of a run, without their times."""
    cases = read_cases(directory)
    return [{name: value for name, value in case.items() if name != "time"} for case in cases]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, editor, dataset):
    return evaluate(tmp_path_factory.mktemp("results"), editor, dataset)


def test_a_run_has_the_files_of_the_original_and_its_settings(whole, dataset, config, model):
    names = {f"case_{record.case_id}.json" for record in dataset.records}
    assert {path.name for path in whole.directory.iterdir()} == {*names, "params.json", "run.json"}
    case = json.loads((whole.directory / f"case_{dataset.records[0].case_id}.json").read_text())
    names = ["case_id", "requested_rewrite", "time", "post", "pre", METADATA_KEY]
    assert list(case) == names
    assert case["requested_rewrite"] == dataset.records[0].requested_rewrite
    assert case["time"] > 0
    params = json.loads((whole.directory / "params.json").read_text())
    assert ROMEConfig.from_dict(params) == config
    about = runs.read_run(whole.directory)
    assert about["settings"]["fingerprint"] == model.fingerprint()
    assert about["settings"]["dataset_sha256"] == dataset.sha256
    assert about["settings"]["hyperparameters"] == params
    assert about["second_moments"] == {"0": "verified"}
    assert about["wall_time"] > about["compile_time"] >= 0
    assert {"rome_jax", "jax", "nltk"} <= about["versions"].keys()
    assert summarize(read_cases(whole.directory)).metrics["post_rewrite_success"].count == CASES


def test_how_second_moments_were_verified_is_recorded(editor, dataset):
    moments = editor.options["second_moments"]
    unknown = {0: dataclasses.replace(moments[0], match=Match.UNVERIFIED)}
    options = editor.options | {"second_moments": unknown}
    settings = Settings.of(dataclasses.replace(editor, options=options), dataset, None)
    assert settings.recorded()["second_moments"] == {"0": "unverified"}
    assert settings.edit == Settings.of(editor, dataset, None).edit, "such runs can be resumed"
    without = Settings.of(dataclasses.replace(editor, options={}), dataset, None)
    assert "second_moments" not in without.recorded()


@pytest.mark.slow
@pytest.mark.parametrize("writes", [8, 10])
def test_mend_resumes_to_the_same_bits(tmp_path, model, dataset, monkeypatch, writes):
    """Killed between two cases of a batch; sweeps and comparisons share this loop."""
    mend = Editor.prepare(MethodName.MEND, model, MENDConfig.for_model(model.name))
    four = dataclasses.replace(dataset, records=dataset.records[:4])
    whole = evaluate(tmp_path / "whole", mend, four, batch_size=4)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, writes)
        evaluate(tmp_path, mend, four, batch_size=4)
    assert 0 < len(list((tmp_path / "MEND").rglob("case_*.json"))) < 4
    run = evaluate(tmp_path, mend, four, "run_000", batch_size=4)
    assert contents(run.directory) == contents(whole.directory)


def stop_after(patch, writes):
    """Lets a run be interrupted after it has written some files."""
    write, left = runs.write_json, [writes]

    def stop_at_last(path, content):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write(path, content)

    patch.setattr(runs, "write_json", stop_at_last)


@pytest.mark.parametrize("writes", [0, 1, 2, 5, 7, 9, 11])
def test_a_run_resumes_from_any_point_to_the_same_results(
    whole, tmp_path, editor, dataset, monkeypatch, writes
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, writes)
        evaluate(tmp_path, editor, dataset)
    (tmp_path / "ROME" / "run_000").mkdir(parents=True, exist_ok=True)
    before = {path: path.read_bytes() for path in tmp_path.rglob("case_*.json")}
    run = evaluate(tmp_path, editor, dataset, "run_000")
    # To the last bit: the same batches are computed, whatever has a file already.
    assert contents(run.directory) == contents(whole.directory)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_more_cases_extend_a_run_and_a_second_run_is_separate(tmp_path, editor, dataset, whole):
    short = dataclasses.replace(dataset, records=dataset.records[:2])
    first = evaluate(tmp_path, editor, short)
    assert len(contents(first.directory)) == 2
    again = evaluate(tmp_path, editor, dataset, "run_000")
    assert again == first
    assert len(contents(again.directory)) == CASES
    second = evaluate(tmp_path, editor, short)
    assert second.directory.name == "run_001"
    assert second.pre == first.pre


def test_scores_before_the_edit_are_computed_once_for_all_methods(
    tmp_path, editor, dataset, model, monkeypatch
):
    short = dataclasses.replace(dataset, records=dataset.records[:2])
    evaluate(tmp_path, editor, short)
    computed, score = [], evaluation_run.evaluate_records

    def count(model, name, records, deltas=None, **options):
        computed.append(deltas is not None)
        return score(model, name, records, deltas, **options)

    for module in (evaluation_run, batch):
        monkeypatch.setattr(module, "evaluate_records", count)
    other = DenseRandomEdits.prepare(MethodName.FT, model, FTConfig(layers=(0,)))
    run = evaluate(tmp_path, other, short)
    assert run.directory == tmp_path / "FT" / "run_000"
    assert computed == [True, True], "one dense edit after the other, and nothing before the edit"


def test_other_settings_are_refused(whole, editor, dataset, model, config):
    results = whole.directory.parents[1]
    other = dataclasses.replace(config, v_lr=0.1)
    with pytest.raises(
        ValueError, match=r"other settings \(hyperparameters is .*run_000|begin another"
    ):
        evaluate(results, RandomEdits.prepare(MethodName.ROME, model, other), dataset, "run_000")
    changed = dataclasses.replace(dataset, sha256="0" * 64)
    with pytest.raises(ValueError, match=r"dataset is factworld \(.*\) there and factworld \(0000"):
        evaluate(results, editor, changed, "run_000")
    with pytest.raises(ValueError, match=r"no run .*run_7.* to continue: .* has run_000"):
        evaluate(results, editor, dataset, "run_7")


def with_prompt(record, prompt):
    return dataclasses.replace(record, paraphrase_prompts=(prompt,))


class Refusing(RandomEdits):
    """A method that refuses one request and makes an infinite edit of another."""

    def compute(self, requests, progress=False):
        if any(request.case_id == self.config.refused for request in requests):
            raise RequestError("the subject is nowhere to be found.")
        raise_at = [i for i, request in enumerate(requests) if request.case_id == self.config.wild]
        if raise_at:
            raise NotFiniteError("not finite", raise_at)
        return super().compute(requests, progress)


def test_a_case_that_cannot_be_scored_is_recorded_and_the_run_goes_on(tmp_path, editor, dataset):
    first, *others = dataset.records
    mixed = dataclasses.replace(dataset, records=(with_prompt(first, "word " * 300), *others))
    run = evaluate(tmp_path, editor, mixed)
    cases = run.cases(mixed)
    assert "more than the model's context" in cases[0]["failed"]
    assert not any("failed" in case for case in cases[1:])
    found = summarize(cases)
    assert (found.num_cases, list(found.failures)) == (CASES - 1, [first.case_id])
    assert found.describe_failures().startswith(
        f"1 of 5 cases failed; case {first.case_id}: prompt"
    )
    assert f"{CASES - 1} + 1 failed" in tables.render(tables.make_rows({"run": found}))
    assert evaluate(tmp_path, editor, mixed, "run_000").cases(mixed) == cases, "nothing is redone"


def test_an_edit_that_is_refused_or_infinite_is_recorded(tmp_path, editor, dataset):
    ids = [record.case_id for record in dataset.records]
    config = types.SimpleNamespace(refused=ids[1], wild=ids[4])
    refusing = Refusing(editor.algorithm, editor.model, config, 0, {})
    cases = [
        case
        for start in (0, 3)
        for case in batch.edit_batch(
            refusing,
            dataset.name,
            dataset.records[start : start + 3],
            {case_id: {} for case_id in ids},
            {"generation": None, "max_tokens": 16_384},
        )
    ]
    failed = {case["case_id"]: case["failed"] for case in cases if "failed" in case}
    assert failed == {
        ids[1]: "the subject is nowhere to be found.",
        ids[4]: "the edit holds numbers that are not finite",
    }
    assert len(cases) == CASES


def test_a_run_that_was_killed_at_its_start_leaves_its_folder_to_the_next(
    tmp_path, editor, dataset
):
    folder = tmp_path / "ROME" / "run_000"
    folder.mkdir(parents=True)
    (folder / ".0123456789abcdef.partial").touch()
    short = dataclasses.replace(dataset, records=dataset.records[:1])
    run = evaluate(tmp_path, editor, short)
    assert run.directory == folder
    assert not list(tmp_path.rglob(".*"))
    (tmp_path / "ROME" / "run_001").mkdir()
    settings = Settings.of(editor, short, None)
    with in_use(tmp_path / "ROME" / "run_001"):  # another process begins a run
        second = EvaluationRun.open(tmp_path, settings)
    assert second.directory.name == "run_002"
    with in_use(second.directory):
        second.discard()
    assert second.directory.exists(), "it is in use"
    second.discard()
    assert not second.directory.exists() and run.pre.exists()


def test_a_start_that_fails_leaves_nothing(tmp_path, editor, dataset):
    class Broken(RandomEdits):
        def compute(self, requests, progress=False):
            raise ValueError("chunk_size=0 must be at least 1.")

    broken = Broken(editor.algorithm, editor.model, editor.config, 0, editor.options)
    results = tmp_path / "results"
    no_scores = dataclasses.replace(dataset, records=dataset.records[:1])
    with pytest.raises(ValueError, match="chunk_size=0"):
        evaluate(results, broken, no_scores)
    assert not (results / "ROME").exists()
    run = evaluate(results, editor, no_scores)
    with pytest.raises(ValueError, match="chunk_size=0"):
        evaluate(results, broken, dataset, "run_000")
    assert len(contents(run.directory)) == 1, "results are kept"


@pytest.mark.parametrize("content", ["{}", '{"case_id": 1, "post": {}}', '{"case_id"', None])
def test_a_damaged_case_file_is_not_a_result(tmp_path, editor, dataset, content):
    short = dataclasses.replace(dataset, records=dataset.records[:2])
    run = evaluate(tmp_path, editor, short)
    path = run.path(short.records[0])
    path.write_text(content or path.read_text().replace("0.", "1.", 1))  # by default, one number
    with pytest.raises(ValueError, match=r"case_\d+\.json is damaged .*: remove it and evaluate"):
        evaluate(tmp_path, editor, short, "run_000")


def test_other_hyperparameters_are_refused_before_the_model_is_loaded(whole, config):
    results = whole.directory.parents[1]
    known = {"hyperparameters": config.to_dict()}
    assert find_run(results, "ROME", "run_000", known) == whole.directory
    known = {"hyperparameters": config.to_dict() | {"v_lr": 0.1}}
    with pytest.raises(ValueError, match=r"other settings \(hyperparameters is"):
        find_run(results, "ROME", "run_000", known)
    with pytest.raises(ValueError, match=r"\.\./x.*: give "):
        find_run(results, "ROME", "../x")


def test_records_without_generation_prompts_need_no_reference_texts(dataset):
    assert load_generation_tests(dataset, None, None, seed=0) is not None
    bare = tuple(dataclasses.replace(r, generation_prompts=()) for r in dataset.records)
    assert load_generation_tests(dataclasses.replace(dataset, records=bare), None, None, 0) is None


@pytest.fixture(scope="module")
def program():
    return Program("eval.evaluate")


@pytest.mark.needs("nltk", "sklearn")
def test_the_program_evaluates_and_the_summary_agrees(program, tmp_path, monkeypatch):
    monkeypatch.setattr("rome_jax.evaluation.generation._LENGTH", 32)
    flags = (f"--results_dir={tmp_path}", "--dataset_size_limit=1")
    config = ("--config=configs/rome.py", "--config.v_lr=0.4", "--config.v_num_grad_steps=3")
    done = program(*flags, *config)
    assert done.returncode == 0, done.stderr
    assert "ROME/run_000" in done.stdout
    about = runs.read_run(tmp_path / "ROME" / "run_000")
    assert about["settings"]["hyperparameters"]["v_lr"] == 0.4
    assert about["flags"]["num_cases"] == 1
    (case,) = read_cases(tmp_path / "ROME" / "run_000")
    assert {"text", "ngram_entropy", "reference_score", "essence_score"} <= case["post"].keys()
    summary = Program("eval.summarize")(
        f"--results_dir={tmp_path}", "--dir_name=ROME", "--columns=full"
    )
    assert summary.returncode == 0, summary.stderr
    table = summary.stdout.strip()
    assert table in done.stdout, "the same table"
    refused = refusal(program(*flags, "--continue_from_run=run_000"))
    assert "other settings (hyperparameters is" in refused


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model_name=gpt2"], "no ROME layer is known for model 'gpt2'"),
        (
            ["--model_name=gpt2-xl", "--second_moments=shipped"],
            "no second moments come with model 'gpt2-xl'",
        ),
        (["--hparams_fname=nowhere.json"], "there is no file nowhere.json"),
        (["--data_path=nowhere.json"], "there is no file nowhere.json"),
    ],
)
def test_bad_flags_are_one_sentence(program, flags, message, tmp_path):
    assert message in refusal(program(f"--results_dir={tmp_path}", *flags))
    assert not list(tmp_path.iterdir())


def test_the_sizes_of_reference_texts_are_printed_before_they_are_downloaded(
    program, tmp_path, monkeypatch
):
    def stop(*arguments):
        raise SystemExit("Error: stopped.")

    monkeypatch.setattr("eval.flags.data.load_generation_tests", stop)
    monkeypatch.setattr("eval.flags.method.prepare", stop)
    monkeypatch.setenv("ROME_JAX_CACHE", str(tmp_path / "cache"))
    records = tmp_path / "records.json"
    records.write_text(json.dumps(counterfact_records(make_world(), 0, Role.TUNING, 2)))
    flags = (f"--results_dir={tmp_path / 'results'}", f"--data_path={records}")
    done = program(*flags)
    assert refusal(done) == "Error: stopped."
    files = "attribute_snippets.json (926 MB), idf.npy (11 MB), tfidf_vocab.json (32 MB)"
    line = f"Generation  downloads {files} once; --nogeneration skips generated texts\n"
    assert done.stdout == line
    done = program(*flags, "--nogeneration")
    assert refusal(done) == "Error: stopped." and "downloads" not in done.stdout


def test_a_run_with_other_second_moments_is_refused(editor, dataset, tmp_path):
    EvaluationRun.open(tmp_path, Settings.of(editor, dataset, None, None), flags={})
    others = Settings.of(editor, dataset, None, "stats/factworld-gpt2/self_192_articles")
    with pytest.raises(ValueError, match="covariance is shipped there and stats/factworld-gpt2/s"):
        EvaluationRun.open(tmp_path, others, "run_000", flags={})
