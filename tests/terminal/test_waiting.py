import time

import pytest

from rome_jax.terminal.waiting import waiting


def test_what_is_quick_is_not_mentioned(capsys):
    with waiting("thinking", after=30):
        print("done")
    assert capsys.readouterr() == ("done\n", "")


def test_what_takes_a_while_is_one_line_and_its_output_follows(capsys):
    with waiting("thinking", after=0):
        print("done")
        time.sleep(0.2)
        assert capsys.readouterr() == ("", "thinking ...\n")
    assert capsys.readouterr() == ("done\n", "")


def test_an_error_passes_and_what_was_printed_is_kept(capsys):
    with pytest.raises(KeyError), waiting("thinking", after=30):
        print("half")
        raise KeyError("a bug")
    assert capsys.readouterr().out == "half\n"


def test_a_terminal_sees_the_seconds(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with waiting("thinking", after=0):
        time.sleep(0.2)
    said = capsys.readouterr().err
    assert said.startswith("\rthinking ... 0 s") and said.endswith("\r")
