"""`python -m eval.causal_trace` and the folders of its runs."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from rome_jax.data.corpus import Corpus
from rome_jax.moments import own_texts
from rome_jax.terminal.trace_report import report_run
from rome_jax.terminal.trace_text import text_heatmap
from rome_jax.trace.averages import TokenClass
from rome_jax.trace.best_states import agreement, best_states, best_table
from rome_jax.trace.facts import FactsError, KnownFact, open_facts, parse_facts
from rome_jax.trace.folder import RunFolder
from rome_jax.trace.inputs import read_facts, read_noise, read_prompt
from rome_jax.trace.noise import (
    Distribution,
    Noise,
    fit_noise,
    parse_noise,
    subject_embedding_std,
)
from rome_jax.trace.protocol import Protocol, Series, find_prompt, subtract
from rome_jax.trace.restore import TraceKind
from rome_jax.trace.result import SkippedCase, TraceResult, load_trace, save_trace
from tests.programs import ROOT, Program, refusal

SAMPLES = ROOT.parent / "shared" / "data"
CASES = ["Gothulf Punby plays rowing.", "It is a city.", "Rome is old."]
SERIES = [Series.HIDDEN, Series.SEVERED_MLP]
SETTINGS = {"model": "m", "fingerprint": "f" * 64, "samples": 2, "measure": "probability"}
SETTINGS |= {"window": 2, "tokens": "all", "facts": "a.json", "facts_sha256": "a" * 64}


@pytest.fixture(scope="module")
def model(shipped_model):
    return shipped_model("factworld-gpt2")


@pytest.fixture(scope="module")
def facts(model):
    """Three facts with prompts and subjects of the same length, so that one compiled program traces them all."""
    every = open_facts("factworld").facts[:60]
    found = [(fact, find_prompt(model, fact)) for fact in every]
    return [fact for fact, prompt in found if len(prompt.ids) == 7 and prompt.span == (0, 4)][:3]


@pytest.fixture(scope="module")
def protocol():
    return Protocol(Noise(Distribution.GAUSSIAN, 0.5), samples=2, window=2)


@pytest.fixture(scope="module")
def traced(tmp_path_factory, model, facts, protocol):
    """A finished run in two series."""
    folder = RunFolder.open(tmp_path_factory.mktemp("run"), SETTINGS)
    folder.run(model, facts, protocol, SERIES)
    report_run(folder, facts, SERIES, "svg")
    return folder


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.directory.glob("cases/*.npz")}


@pytest.mark.needs("matplotlib")
def test_files_are_named_and_filled_as_the_originals(traced, facts):
    suffixes = ("", "_severed_mlp")
    names = {f"knowledge_{fact.known_id}{suffix}.npz" for fact in facts for suffix in suffixes}
    assert {path.name for path in stamps(traced)} == names
    case = load_trace(traced.path(facts[0], Series.HIDDEN))
    assert case.kind is TraceKind.HIDDEN and case.scores.shape == (7, 6)
    assert facts[0].attribute.startswith(case.answer.strip())
    assert case.provenance["known_id"] == facts[0].known_id and case.provenance["samples"] == 2
    ordinary, severed = (
        load_trace(traced.path(facts[0], one)) for one in (Series.HIDDEN, Series.SEVERED_MLP)
    )
    last = ordinary.subject_range[1] - 1
    assert severed.tokens == (last,) and severed.low_score == ordinary.low_score
    # No module after the last layer is severed; after the first layer, some are.
    assert severed.scores[0, -1] == pytest.approx(ordinary.scores[last, -1], abs=1e-6)
    assert abs(severed.scores[0, 0] - ordinary.scores[last, 0]) > 1e-4


@pytest.mark.needs("matplotlib")
def test_a_stopped_run_resumes_to_the_same_results(traced, facts, model, protocol, capsys):
    averages = traced.directory / "averages.json"
    before, old = averages.read_text(), stamps(traced)
    lost = traced.path(facts[1], Series.HIDDEN)
    scores = load_trace(lost).scores
    lost.unlink()
    again = RunFolder.open(traced.directory, SETTINGS | {"model": "another name of it"})
    again.run(model, facts[::-1], protocol, SERIES)
    report_run(again, facts, SERIES, "svg")
    np.testing.assert_array_equal(load_trace(lost).scores, scores)
    assert {path: time for path, time in stamps(traced).items() if path != lost} == {
        path: time for path, time in old.items() if path != lost
    }
    assert averages.read_text() == before
    assert "3 prompts traced, 0 skipped" in capsys.readouterr().out


@pytest.mark.needs("matplotlib")
def test_averages_are_those_of_the_cases(traced, facts):
    found = json.loads((traced.directory / "averages.json").read_text())
    assert list(found) == ["hidden", "severed_mlp"]
    cases = [load_trace(traced.path(fact, Series.HIDDEN)) for fact in facts]
    rows = [case.indirect_effect[case.subject_range[1] - 1] for case in cases]
    last_subject = found["hidden"]["indirect_effect"]["last_subject"]
    np.testing.assert_allclose(last_subject["mean"], np.mean(rows, 0), atol=1e-6)
    assert last_subject["count"] == 3
    severed = found["severed_mlp"]["indirect_effect"]
    assert severed["last_subject"]["count"] == 3
    assert severed["last"] == {"count": 0, "mean": [None] * 6, "band": [None] * 6}
    figures = {path.name for path in traced.directory.glob("*.svg")}
    assert figures == {"average_lines.svg", "severed_bars.svg", "average_heatmap_hidden.svg"}


@pytest.mark.needs("matplotlib")
def test_averages_of_the_last_subject_token_alone(tmp_path, traced, facts, capsys):
    """The token of a one-token subject also counts as its first token, but not if only last tokens were requested."""
    case = load_trace(traced.path(facts[0], Series.HIDDEN))
    folder = RunFolder.open(tmp_path, SETTINGS | {"tokens": "subject_last"})
    one = dataclasses.replace(case, scores=case.scores[:1], tokens=(0,), subject_range=(0, 1))
    save_trace(folder.path(facts[0], Series.HIDDEN), one)
    report_run(folder, facts[:1], [Series.HIDDEN], "svg")
    found = json.loads((tmp_path / "averages.json").read_text())["hidden"]["indirect_effect"]
    counts = {place: of["count"] for place, of in found.items()}
    assert counts == {place.name.lower(): 0 for place in TokenClass} | {"last_subject": 1}


@pytest.mark.needs("matplotlib")
def test_another_configuration_is_refused(traced):
    other = SETTINGS | {"samples": 10, "facts_sha256": "b" * 64, "window": 3}
    with pytest.raises(ValueError) as error:
        RunFolder.open(traced.directory, other)
    for part in (
        "samples is 2 there and 10 here",
        "window is 2 there and 3 here",
        "facts is a.json (aaaaaaaaaaaa) there and a.json (bbbbbbbbbbbb) here",
        "give another output_dir",
    ):
        assert part in str(error.value)
    assert "model" not in str(error.value)


def test_cases_of_unknown_origin_and_damaged_settings_are_refused(tmp_path):
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "knowledge_0.npz").touch()
    with pytest.raises(ValueError, match=r"no run\.json"):
        RunFolder.open(tmp_path, SETTINGS)
    (tmp_path / "run.json").write_text('{"sett')
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        RunFolder.open(tmp_path, SETTINGS)


@pytest.mark.needs("matplotlib")
def test_facts_that_cannot_be_traced_are_skipped_and_counted(
    tmp_path, model, facts, protocol, capsys
):
    known = facts[0]
    binder = next(fact for fact in open_facts("factworld").facts if fact.attribute == "book binder")
    bad = {
        "the clean answer to": dataclasses.replace(known, known_id=900, attribute="zebra"),
        "is ' book', not 'books'": dataclasses.replace(binder, known_id=905, attribute="books"),
        "is not in the prompt": KnownFact(901, "Nobody", "tennis", "Somebody plays"),
        "is a single token": KnownFact(902, "a", "tennis", "a"),
        "ends in white space": KnownFact(903, "Somebody", "tennis", "Somebody plays "),
        "more than the model's context": KnownFact(904, "Rome", "x", "Rome" + " is" * 300),
    }
    everything = [known, *bad.values()]
    folder = RunFolder.open(tmp_path, SETTINGS)
    folder.run(model, everything, protocol, SERIES)
    for reason, fact in bad.items():
        for one in SERIES:
            case = load_trace(folder.path(fact, one))
            assert isinstance(case, SkippedCase) and reason in case.reason
    report_run(folder, everything, SERIES, "svg")
    printed = capsys.readouterr().out
    assert "1 prompts traced, 6 skipped" in printed
    assert "skipped known_id 900: the clean answer to" in printed and "and 3 more" in printed
    with pytest.raises(ValueError, match="none of 6 prompts could be traced"):
        report_run(folder, list(bad.values()), [Series.HIDDEN])


@pytest.fixture
def result():
    """A trace with scores written by hand."""
    scores = np.array([[0.1, 0.1, 0.05], [0.1, 0.9, 0.5], [0.1, 0.1, 0.3]], np.float32)
    tokens = ("A", " very long token indeed", " is")
    about = np.arange(3), tokens, (0, 2), " x", TraceKind.HIDDEN, 10, (0, 1, 2)
    return TraceResult(scores, 0.1, 0.95, *about)


def test_a_contrast_is_the_difference_of_two_traces(result):
    other = dataclasses.replace(result, scores=result.scores / 2, low_score=0.3, answer=" y")
    contrast = subtract(result, other)
    np.testing.assert_allclose(contrast.scores, result.scores / 2)
    assert (contrast.low_score, contrast.high_score) == pytest.approx((-0.2, 0.0))
    assert contrast.answer == " x − y"


def test_the_text_heatmap_marks_the_subject_and_the_highest_score(result):
    header, *rows, legend = text_heatmap(result).splitlines()
    assert header.split() == ["layer", "0", "1", "2"]
    assert [row[0] for row in rows] == ["*", "*", " "]
    assert rows[0].split() == ["*", "A"] and rows[1].endswith("  ██▒▒")
    assert rows[2].endswith("    ░░") and "0.1 or less" in legend and "0.9" in legend


def test_the_text_heatmap_shows_states_that_were_not_restored(result):
    scores = result.scores.copy()
    scores[0], scores[1, 0] = np.nan, np.nan
    _, *rows, legend = text_heatmap(dataclasses.replace(result, scores=scores)).splitlines()
    assert rows[0].endswith(" · · ·") and rows[1].endswith(" · ██▒▒")
    assert "·: not restored" in legend and "0.9" in legend


def test_the_best_of_the_verified_states(result):
    nan = np.nan
    tables = (
        [[nan, nan, 0.3], [nan, 0.9, nan], [0.2, nan, nan]],  # last subject token, layer 1
        [[nan, nan, nan], [nan, nan, 0.5], [0.2, nan, 0.4]],  # last subject token, layer 2
        [[0.2, nan, nan], [nan, nan, nan], [nan, nan, 0.8]],  # the prompt's last, layer 2
        [
            [0.05, nan, nan],
            [nan, nan, nan],
            [nan, nan, 0.04],
        ],  # the first, although its effect is negative
    )
    cases = [dataclasses.replace(result, scores=np.float32(table)) for table in tables]
    best = best_states([*cases, SkippedCase("unknown")])
    counts = {place.name: count for place, count in best.count.items() if count}
    # The last token of the prompt is also the first one after the subject.
    assert counts == {"LAST_SUBJECT": 2, "LAST": 1, "FIRST_SUBSEQUENT": 1, "FIRST_SUBJECT": 1}
    assert best.layer[TokenClass.LAST_SUBJECT] == 1.5 and best.median_layer == 1.5
    assert best.layer[TokenClass.MIDDLE_SUBJECT] is None
    assert (best.num_cases, best.num_skipped) == (4, 1)
    assert best.effect == pytest.approx((0.8 + 0.4 + 0.7 - 0.05) / 4)
    assert best.total == pytest.approx(0.85)
    table = best_table({Series.HIDDEN: best}, "probability")
    assert "50 % layer  1.5" in table and "4 prompts traced, 1 skipped" in table
    with pytest.raises(ValueError, match="none of 1 cases"):
        best_states([SkippedCase("unknown")])


def test_the_agreement_of_a_screening_with_the_full_trace():
    effect = np.array([[0.1, 0.5, 0.2], [0.0, -0.1, 0.4]])
    estimate = np.array([[3.0, 2.0, 1.0], [0.0, -1.0, 4.0]])
    verified = np.where(estimate >= 3, effect, np.nan)
    found = agreement(estimate, verified, effect)
    # Ranks 5 4 3 2 1 6 and 3 6 4 2 1 5: 1 − 6 Σd² / (n³ − n).
    assert found.rank == pytest.approx(1 - 6 * (4 + 4 + 1 + 0 + 0 + 1) / (6**3 - 6))
    assert not found.best and found.found == 0.5 and found.reach == pytest.approx(0.8)
    assert np.isnan(agreement(np.zeros((2, 3)), effect, effect).rank)


def test_relative_noise_is_measured_on_all_subjects(model):
    facts = read_facts(None, "factworld-gpt2")
    noise, corpus = read_noise(model, "s3", facts.subjects, None)
    assert noise.value == pytest.approx(3 * subject_embedding_std(model, facts.subjects))
    assert len(facts.subjects) > 1000 and corpus is None
    assert read_facts(None, "gpt2-xl") is None


def test_noise_of_a_pretrained_model_is_fitted_to_its_own_texts(model, monkeypatch):
    texts = Corpus("self", "sha256:1", 9, lambda first: iter(CASES[first:]), default_articles=2)
    monkeypatch.setattr(own_texts, "self_corpus", lambda model: texts)
    expected = fit_noise(model, parse_noise("m"), texts=CASES[:2])
    for name, corpus_name in (("smollm2-135m", None), ("factworld-gpt2", "self")):
        noise, corpus = read_noise(model.replace(name=name), "m", [], corpus_name)
        assert corpus is texts
        np.testing.assert_array_equal(noise.mean, expected.mean)


def test_the_report_on_screenings_has_no_facts_for_every_model():
    refused = refusal(Program("eval.screening_report")("--model_name=gpt2-xl"))
    assert "no facts come with model 'gpt2-xl': give --fact_file" in refused


def test_the_published_layout_is_read():
    path = SAMPLES / "known_sample_200.json"
    if not path.exists():
        pytest.skip("the sample of real records is not here")
    facts = open_facts(path)
    assert facts.name == path.name and len(facts.facts) == 200
    first = facts.facts[0]
    assert (first.known_id, first.subject, first.attribute) == (0, "Vinson Massif", "Antarctica")
    for fact in facts.facts:
        assert fact.prompt[slice(*fact.characters)] == fact.subject


GOOD = {"known_id": 3, "subject": "Rome", "attribute": "Italy", "prompt": "Rome is in"}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([GOOD, {**GOOD, "known_id": 4, "subject": None}], "record 1: subject=None: give a text"),
        ([{**GOOD, "attribute": " "}], "record 0: attribute=' ': give a text that is not empty"),
        ([{k: v for k, v in GOOD.items() if k != "prompt"}], "record 0: prompt is missing"),
        ([{**GOOD, "known_id": "three"}], "record 0: known_id='three': give an integer"),
        ([{**GOOD, "known_id": -1}], "record 0: known_id=-1: give a number of 0 or more"),
        ([GOOD, GOOD], "record 1: known_id 3 is that of an earlier record"),
        ([{**GOOD, "template": 5}], "record 0: template=5: give a text"),
        ([GOOD, "Rome"], "record 1='Rome': give a mapping"),
        ([], "at least one record"),
        ({"facts": [GOOD]}, "at least one record"),
    ],
)
def test_malformed_facts_are_named_by_index_and_field(records, message):
    with pytest.raises(FactsError, match=message):
        parse_facts(records)


def test_the_template_says_which_occurrence_is_the_subject():
    fact = KnownFact(0, "Rome", "Italy", "Rome, or New Rome, is in", "Rome, or New {}, is in")
    assert fact.characters == (13, 17)
    assert read_prompt("In {} they", "Rome").characters == (3, 7)
    assert KnownFact(0, "Rome", "Italy", "Rome is in", "Old {}").characters is None


@pytest.mark.needs("matplotlib")
def test_the_command_line(tmp_path, model, facts):
    # All lines trace the same prompt with the same sizes, so that few programs are compiled.
    fact, other = facts[:2]
    known = tmp_path / "known.json"
    known.write_text(json.dumps([dataclasses.asdict(each) for each in (fact, other)]))
    common = ["--samples=2", "--figure_format=svg"]
    many = [f"--fact_file={known}", "--num_prompts=1"]
    run = [*common, *many, "--kinds=hidden", f"--output_dir={tmp_path / 'run'}"]
    mlp = [*common, "--kinds=mlp", "--screen=5", f"--output_dir={tmp_path / 'screened'}"]
    screened = [*mlp, *many, "--measure=log_probability"]
    prompt = [f"--prompt={fact.template}", f"--subject={fact.subject}"]
    malformed = tmp_path / "facts.json"
    malformed.write_text(json.dumps([GOOD, {**GOOD, "known_id": 4, "subject": ""}]))
    answers = [*mlp, *prompt, "--target=the", "--contrast=of"]
    best = ["1 prompts traced, 0 skipped", "best of the verified states", "best_states.json"]
    lines = [
        (run, ["1 prompts traced, 0 skipped", "average_lines.svg"]),
        (screened, best),
        ([*common, *prompt, "--kinds=hidden", run[-1]], ["\nClean       0.9", "\n* ", ".svg\n"]),
        (answers, ["log-probability, difference of ' the − of'", "·: not restored"]),
    ]
    refused = [
        ([*run, "--seed=1"], ["seed is 0 there and 1 here"]),
        ([*run, "--screen=5"], ["screen is 0 there and 5 here"]),
        (["--screen=5", "--severed"], ["--screen chooses among", "leave --severed out"]),
        (["--screen=5", "--tokens=all"], ["leave --tokens out"]),
        (["--screen=-1"], ["--screen=-1: give an integer from 0 to"]),
        (["--kinds=hiden,mlp"], ["'hiden' is no kind", "hidden, mlp, attn"]),
        (["--kinds="], ["give some of hidden, mlp, attn"]),
        (["--kinds=mlp", "--severed"], ["add hidden to --kinds"]),
        (["--window=13"], ["window=13", "twice the model's 6 layers"]),
        (["--noise_level=x3"], ["noise_level='x3'", "u0.1 (uniform)"]),
        (["--num_prompts=0"], ["=0: give an integer from 1 to"]),
        (["--fact_file=absent.json"], ["there is no file absent.json"]),
        ([f"--fact_file={malformed}"], ["facts.json: record 1: subject='': give"]),
        (["--model_name=gpt2-xl"], ["no facts come with", "give --fact_file"]),
        ([prompt[0]], ["--prompt needs --subject"]),
        ([prompt[1]], ["--subject belongs to one prompt"]),
        ([*prompt, "--severed"], ["--severed is for many prompts"]),
        ([*answers, "--measure=probability"], ["leave --measure out"]),
        (["--prompt=Rome is in", "--subject=Paris"], ["'Paris' is not in the prompt"]),
        (["--prompt=a", "--subject=a"], ["is a single token"]),
        ([*prompt, "--target= "], ["target is empty"]),
    ]
    program = Program("eval.causal_trace")
    said = [program(*line) for line, _ in lines]
    for result, (line, expected) in zip(said, lines):
        assert result.returncode == 0, result.stderr
        assert all(part in result.stdout for part in expected), f"{line}: {result.stdout}"
    assert "case/s" in said[0].stderr or "s/case" in said[0].stderr  # the bar
    for line, expected in refused:
        error = refusal(program(*line))
        assert all(part in error for part in expected), f"{line}: {error}"
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    std = subject_embedding_std(model, [fact.subject, other.subject])  # of all, traced or not
    assert written["noise_value"] == pytest.approx(3 * std)
    assert written["settings"]["facts_sha256"] == hashlib.sha256(known.read_bytes()).hexdigest()
    assert written["settings"]["window"] == 3  # half of the layers
    assert len(list((tmp_path / "run" / "prompts").iterdir())) == 2  # a trace and a figure
    verified = tmp_path / "screened" / "cases" / f"knowledge_{fact.known_id}_mlp.npz"
    contrast = next((tmp_path / "screened" / "prompts").glob("*_mlp.npz"))
    for case in map(load_trace, (verified, contrast)):
        assert case.kind is TraceKind.MLP and case.scores.shape == (7, 6)
        assert np.isfinite(case.scores).sum() == 5  # of both answers the same states
    found = json.loads((tmp_path / "screened" / "best_states.json").read_text())["mlp"]
    assert found["num_cases"] == 1 and found["total_effect"] > 0
    assert not list((tmp_path / "screened").glob("average*"))


def test_token_classes_have_names_for_json():
    """They are keys of averages.json, so renaming one would break its readers."""
    names = [place.name.lower() for place in TokenClass]
    assert names == [
        "first_subject",
        "middle_subject",
        "last_subject",
        "first_subsequent",
        "further",
        "last",
    ]
