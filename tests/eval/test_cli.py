import subprocess
import sys
from pathlib import Path

import pytest

from eval import cli

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = sorted(
    path.stem for path in (ROOT / "eval").glob("*.py") if "cli.run(main)" in path.read_text()
)
# What the libraries below say unasked, and what is worth a line.
NOISY = """
import logging, warnings
import absl.logging
from eval import cli
from rome_jax import EditWarning

def main():
    import transformers
    for name in ("absl", "orbax", "transformers", "jax._src.compiler"):
        logging.getLogger(name).warning("noise of %s", name)
    absl.logging.warning("noise")
    transformers.utils.logging.get_logger("transformers.models.gpt2").warning("noise")
    warnings.warn("noise", UserWarning)
    warnings.warn("noise", DeprecationWarning)
    warnings.warn("the edit changes little.", EditWarning)
    logging.getLogger("jax._src.xla_bridge").info("noise")
    logging.getLogger("jax._src.xla_bridge").warning("Falling back to cpu.")
    logging.getLogger("orbax").error("worth a line")

cli.run(main)
"""
# Programs cannot be imported side by side: each in a fork of its own.
EACH = """
import importlib, os, sys, warnings
sys.modules.update(dict.fromkeys(["datasets", "matplotlib", "nbclient"]))
import rome_jax
warnings.filterwarnings("ignore", message=".*fork")
failed = []
for program in sys.argv[1:]:
    child = os.fork()
    if not child:
        importlib.import_module(f"eval.{program}")
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(program)
sys.exit(f"failed: {failed}" if failed else 0)
"""


def run_python(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)


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


def test_libraries_are_heard_only_if_asked_for():
    quiet, loud = run_python("-c", NOISY), run_python("-c", NOISY, "--verbosity=0")
    assert quiet.returncode == loud.returncode == 0
    *warnings, error = quiet.stderr.splitlines()
    assert warnings == ["Warning: the edit changes little.", "Warning: Falling back to cpu."]
    assert error.endswith("worth a line")
    assert loud.stderr.count("noise") >= 5


def test_programs_need_no_extra_to_begin():
    """All of them import, and say nothing, in a base install."""
    assert len(PROGRAMS) >= 13
    done = run_python("-c", EACH, *PROGRAMS)
    assert (done.returncode, done.stderr) == (0, "")
