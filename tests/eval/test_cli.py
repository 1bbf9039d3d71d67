import sys

import pytest

from eval import cli


@pytest.mark.parametrize("error", [ValueError("the sky is red."), OSError("the sky is red.")])
def test_bad_input_is_one_sentence(monkeypatch, error):
    def main():
        raise error

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit, match=r"^Error: the sky is red\.$"):
        cli.run(main)


def test_unknown_arguments_are_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program", "stray"])
    with pytest.raises(SystemExit, match="unknown arguments: stray"):
        cli.run(lambda: pytest.fail("not reached"))


def test_other_errors_keep_their_traceback(monkeypatch):
    def main():
        raise KeyError("a bug")

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(KeyError):
        cli.run(main)
