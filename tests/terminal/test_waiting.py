"""The line about a slow step, and the step's own output."""

import time

import pytest

from rome_jax.terminal.waiting import waiting


def printed_by_now(capsys, text, seconds=60):
    """Returns standard output and standard error once the latter ends with a text, or after some seconds."""
    out = err = ""
    until = time.monotonic() + seconds
    while not err.endswith(text) and time.monotonic() < until:
        time.sleep(0.01)
        new = capsys.readouterr()
        out, err = out + new.out, err + new.err
    return out, err


def test_a_quick_step_is_not_mentioned(capsys):
    with waiting("thinking", after=30):
        print("done")
    assert capsys.readouterr() == ("done\n", "")


def test_a_slow_step_is_one_line_and_its_output_follows(capsys):
    with waiting("thinking", after=0):
        print("done")
        assert printed_by_now(capsys, "thinking ...\n") == ("", "thinking ...\n")
    assert capsys.readouterr() == ("done\n", "")


def test_an_error_passes_and_earlier_output_is_kept(capsys):
    with pytest.raises(KeyError), waiting("thinking", after=30):
        print("half")
        raise KeyError("a bug")
    assert capsys.readouterr().out == "half\n"


def test_a_terminal_sees_the_seconds(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with waiting("thinking", after=0):
        _, said = printed_by_now(capsys, " s")
    assert said.startswith("\rthinking ... 0 s")
    assert capsys.readouterr().err.endswith("\r")
