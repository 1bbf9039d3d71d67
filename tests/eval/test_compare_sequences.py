"""`python -m eval.compare_sequences`: several runs of eval.sequence in one table and one figure."""

import json

import pytest

from rome_jax.evaluation.sequence_reports import KINDS, WAYS, markdown, names_of, read_report
from tests.programs import Program, refusal


def scores(value):
    """Scores of a group of edits."""
    rates = {kind + way: value for kind in KINDS for way in WAYS}
    return {"records": 10, "of": 10, **rates, "neighbors": 10, "neighbors_edited": 0}


def measured(edits, earlier=None, **changes):
    """A measurement as eval.sequence writes it."""
    row = {"edits": edits, "newest": None, "earlier": None, "requests": None, "perplexity": 2.5}
    row |= {"kl": 0.25, "norm_ratios": {"3": 0.5, "4": None}, "seconds_per_edit": 1.0}
    row |= {"residual": None, "finished": None, "stopped": None}
    groups = {"newest": scores(80.0), "earlier": earlier} if edits else {"requests": scores(10.0)}
    return row | groups | changes


@pytest.fixture
def folder(tmp_path):
    """Makes the folder of a run: `folder(name, rows, **settings)`."""

    def make(name, rows, **settings):
        path = tmp_path / name
        path.mkdir()
        known = {"alg_name": name, "batch_size": 1, "model": "m", "newest": 10, **settings}
        (path / "run.json").write_text(json.dumps({"settings": known}))
        for row in rows:
            (path / f"edits_{row['edits']:05d}.json").write_text(json.dumps(row))
        return path

    return make


def test_a_row_has_the_earlier_edits_or_else_the_newest(folder):
    rows = [measured(20, scores(60.0), kl=None), measured(0), measured(10)]
    lines = markdown({"ROME": read_report(folder("ROME", rows))}).splitlines()[2:]
    numbers = " | 2.50 | 0.250 | 0.50 | 1.00 |"
    assert lines == [
        f"| ROME | 10 |{' 80 |' * 6}{numbers[2:]}",
        f"|  | 20 |{' 60 |' * 6}{numbers[2:].replace('0.250', '–')}",
    ]


def test_a_name_says_what_differs():
    reports = [
        {"model": model, "settings": {"alg_name": name, "batch_size": size}}
        for model, name, size in (("a", "ROME", 1), ("b", "ROME", 1), ("b", "MEMIT", 20))
    ]
    assert names_of(reports, ["x", "y", "z"]) == [
        "ROME, batches of 1, a",
        "ROME, batches of 1, b",
        "MEMIT, batches of 20, b",
    ]
    assert names_of(reports[:1], ["x"]) == ["ROME"]
    other = {"model": "a", "settings": reports[0]["settings"] | {"ds_name": "zsre"}}
    known = {"model": "a", "settings": reports[0]["settings"] | {"ds_name": "cf"}}
    assert names_of([known, other], ["x", "y"]) == ["ROME, cf", "ROME, zsre"]
    assert names_of(reports[:1] * 2, ["x", "y"]) == ["ROME, x", "ROME, y"]
    with pytest.raises(ValueError, match="two of the sequences are ROME, x: give each folder once"):
        names_of(reports[:1] * 2, ["x", "x"])


@pytest.mark.needs("matplotlib")
def test_every_run_has_its_own_line_in_every_panel(folder):
    from rome_jax.plots.sequence_comparison import plot_comparison

    rows = [measured(0), measured(1), measured(100, scores(60.0))]
    names = [f"M{number}" for number in range(14)]
    reports = {name: read_report(folder(name, rows)) for name in names}
    figure = plot_comparison(reports)
    assert [text.get_text() for text in figure.legends[0].texts] == [*names, "unedited"]
    for index, axes in enumerate(figure.axes):
        lines = axes.lines[: len(names)]
        assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(names)
        expected = [80, 60] if index < 6 else {6: [2.5] * 2, 7: [0.25] * 2, 8: [0.5] * 2}[index]
        assert all(list(line.get_ydata()) == expected for line in lines)
        assert len(axes.lines) == len(names) + (index in (2, 5, 6)), "the unedited model"
    assert figure.axes[0].get_xscale() == "log"
    with pytest.raises(ValueError, match="room for 14 sequences, and 15 are given"):
        plot_comparison({**reports, "M14": reports["M0"]})


@pytest.mark.needs("matplotlib")
def test_the_program_writes_the_table_and_the_figure(folder, tmp_path):
    runs = [str(folder(name, [measured(0), measured(10)])) for name in ("ROME", "MEMIT")]
    table, plot = tmp_path / "table.md", tmp_path / "figure.png"
    program = Program("eval.compare_sequences")
    done = program(f"--sequences={','.join(runs)}", f"--output={table}", f"--plot={plot}")
    assert done.returncode == 0, done.stderr
    expected = {name: read_report(run) for name, run in zip(("ROME", "MEMIT"), runs, strict=True)}
    assert table.read_text() == markdown(expected) + "\n"
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_what_is_no_sequence_is_refused(folder, tmp_path):
    program = Program("eval.compare_sequences")
    assert "--sequences is missing" in refusal(program())
    other = folder("ROME", [])
    (other / "run.json").write_text(json.dumps({"settings": {"alg_name": "ROME", "model": "m"}}))
    assert "holds no sequence of edits" in refusal(program(f"--sequences={other}"))
    assert "run.json cannot be read" in refusal(program(f"--sequences={tmp_path}/none"))


@pytest.mark.parametrize(
    ("settings", "row", "said"),
    [
        ({}, {"kl": "much"}, "edits_00010.json"),
        ({}, {"newest": None}, "edits_00010.json lacks scores of newest or earlier"),
        ({}, {"earlier": {"efficacy": 3.0}}, "edits_00010.json lacks scores"),
        ({}, {"edits": 0}, "edits_00010.json lacks scores of requests"),
        ({"batch_size": "one"}, {}, "settings.batch_size"),
        ({"model": None}, {}, "settings.model"),
        ({"alg_name": 3}, {}, "settings.alg_name"),
    ],
)
def test_what_is_damaged_is_named(folder, settings, row, said):
    damaged = folder("MEMIT", [])
    (damaged / "edits_00010.json").write_text(json.dumps(measured(10) | row))
    about = json.loads((damaged / "run.json").read_text())
    (damaged / "run.json").write_text(json.dumps({"settings": about["settings"] | settings}))
    with pytest.raises(ValueError, match=said):
        read_report(damaged)


def test_settings_that_are_no_object_are_named(folder):
    path = folder("MEMIT", [])
    (path / "run.json").write_text('{"settings": [1]}')
    with pytest.raises(ValueError, match=r"run\.json: settings"):
        read_report(path)
