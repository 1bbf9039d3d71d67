"""Deliberate damage: a sample that takes seconds, all of it with `make fuzz`, and random damage by hypothesis."""

import importlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import commands, further, inputs, readers, suite, trees, writers
from tests.fuzz.cases import Case, Expect, Verdict, attempt_call, judge, what_is_wrong
from tests.fuzz.damage import Damage
from tests.fuzz.examples import tiny
from tests.programs import ROOT

# Readers that need no model, whose damaged files take milliseconds.
_QUICK = ("counterfact", "zsre", "snippets", "tfidf-vocabulary", "facts", "corpus-jsonl", "trace")
_QUICK += ("moments", "model-config", "hparams-ROME", "hparams-FT-L")
_BY_NAME = {reader.name: reader for reader in readers.READERS}


def right(cases):
    """Asserts that every case ends as it should, and shows those that do not."""
    results = [judge(case) for case in cases]
    wrong = [one for one in results if not one.verdict.right]
    assert not wrong, "\n".join(f"{r.case.name}: {r.verdict.value}: {r.detail}" for r in wrong)


def test_the_sizes_of_the_suite():
    """Enough cases of each sort, every program, and names that identify a case."""
    assert len({case.name for case in commands.cases()}) >= 250
    named = [case.name for name in _QUICK for case in _BY_NAME[name].cases()]
    named += [case.name for case in inputs.cases()]
    assert len(named) == len(set(named)) >= 400
    programs = {path.stem for path in (ROOT / "eval").glob("*.py")} - {"cli"}
    assert set(commands.program_names()) == {
        name for name in programs if hasattr(importlib.import_module(f"eval.{name}"), "PROGRAM")
    }


@pytest.mark.parametrize("name", _QUICK)
def test_a_sample_of_damaged_files(name):
    right(suite.sample(_BY_NAME[name].cases(), 12))


def test_a_sample_of_files_that_do_not_fit_together():
    found = list(further.cases())
    right(case for case in found if case.area != "models")
    right(suite.sample((case for case in found if case.area == "models"), 4))


def test_a_sample_of_bad_arguments():
    quick = [call for call in inputs.CALLS if call.prepare is tiny]  # others compile programs
    refused = (c for call in quick for c in call.cases() if c.expect is Expect.REFUSE)
    right(suite.sample(refused, 30))


@pytest.mark.parametrize("writer", writers.WRITERS[:5], ids=lambda writer: writer.name)
def test_bad_places_to_write_to(writer):
    right(writer.cases())


def test_a_sample_of_bad_command_lines():
    refused = (case for case in commands.cases() if case.expect is Expect.REFUSE)
    right(suite.sample(refused, 20))


def test_verdicts(tmp_path):
    """The judge tells clean refusals from everything else."""

    def verdict(error, expect=Expect.REFUSE):
        def call():
            if error is not None:
                raise error

        case = Case("x", "x", "x", expect, lambda folder: attempt_call(call, "a.json"))
        return judge(case).verdict

    assert verdict(ValueError("a.json is empty: give records.")) is Verdict.REFUSED
    assert verdict(ValueError("a.json is empty: give records."), Expect.ACCEPT) is Verdict.UNREAD
    assert verdict(None) is Verdict.SILENT
    assert verdict(None, Expect.EITHER) is Verdict.ACCEPTED
    assert verdict(KeyError("a.json")) is Verdict.TRACEBACK
    assert verdict(ValueError("b.json is empty.")) is Verdict.MESSAGE
    assert verdict(OSError(28, "No space left on device", "a.json")) is Verdict.MESSAGE
    assert verdict(UnicodeDecodeError("utf-8", b"a.json", 0, 1, "bad")) is Verdict.TRACEBACK
    assert what_is_wrong("a.json\nis empty.") == "several lines"
    assert what_is_wrong("a.json is wrong (KeyError: 'x').") == "shows 'KeyError'"


def test_an_endless_case_is_stopped():
    def run(folder):
        while True:
            pass

    assert judge(Case("x", "x", "x", Expect.EITHER, run), seconds=0.1).verdict is Verdict.HANG


def test_a_new_field_is_damaged_in_every_way():
    damaged = list(trees.json_damage([{"name": "a", "size": 1}], ["*.name"], ["*.size"]))
    by_name = {one.name: one for one in damaged}
    assert by_name["0.name=null"].expect is Expect.REFUSE
    assert by_name["0.size=digits"].expect is Expect.EITHER
    assert by_name["0.name-missing"].expect is Expect.REFUSE
    assert by_name["0.size-missing"].expect is Expect.EITHER
    assert len(damaged) == len(by_name) > 4 * len(trees.VALUES)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


def _random(name, apply):
    """Asserts that a reader takes some damage without a traceback."""
    reader = _BY_NAME[name]
    case = Case(
        "random", "random", reader.area, Expect.EITHER, lambda folder: reader.attempt(apply, folder)
    )
    result = judge(case)
    assert result.verdict.right, result.detail


@pytest.mark.fuzz
@settings(
    max_examples=600, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(st.sampled_from(sorted(_BY_NAME)), st.data())
def test_random_bytes(name, data):
    """Bytes are removed, inserted and changed at random places of any file."""
    content = _BY_NAME[name].example().read_bytes()
    place = st.integers(0, len(content) - 1)
    for _ in range(data.draw(st.integers(1, 4))):
        first, length = data.draw(place), data.draw(st.integers(0, 16))
        content = content[:first] + data.draw(st.binary(max_size=16)) + content[first + length :]
    _random(name, Damage("random", "random", Expect.EITHER, lambda path: path.write_bytes(content)))


@pytest.mark.fuzz
@settings(
    max_examples=600, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(st.sampled_from([name for name, one in _BY_NAME.items() if one.form == "json"]), st.data())
def test_random_values(name, data):
    """A random JSON value replaces a random field."""
    content = json.loads(_BY_NAME[name].example().read_bytes())
    changed = trees.replaced(
        content, data.draw(st.sampled_from(trees.paths(content))), data.draw(_JSON)
    )
    text = json.dumps(changed)
    _random(name, Damage("random", "random", Expect.EITHER, lambda path: path.write_text(text)))


@pytest.mark.fuzz
@pytest.mark.parametrize("name", sorted(_BY_NAME))
def test_all_damaged_files(name):
    right(_BY_NAME[name].cases())


@pytest.mark.fuzz
@pytest.mark.parametrize("writer", writers.WRITERS[5:], ids=lambda writer: writer.name)
def test_further_bad_places_to_write_to(writer):
    right(writer.cases())


@pytest.mark.fuzz
def test_all_files_that_do_not_fit_together():
    right(further.cases())


@pytest.mark.fuzz
def test_all_bad_arguments():
    right(inputs.cases())


@pytest.mark.fuzz
@pytest.mark.parametrize("name", commands.program_names())
def test_all_bad_command_lines(name):
    right(case for case in commands.cases() if case.name.startswith(f"command/{name}/"))
