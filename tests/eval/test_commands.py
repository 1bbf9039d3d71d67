"""Every command line in README, docs, Makefile and the programs' own descriptions is one that its program accepts.

The flags are parsed and checked as the program does it; then it stops. `test_documented_commands.py` runs commands.
"""

import dataclasses
import importlib
import re
import runpy
import shlex
import sys

import pytest
from absl.testing import flagsaver

from tests.programs import ROOT

# Command lines of earlier versions of README and docs, with former names of flags.
EARLIER = """
python -m eval.edit --inspect=edits
python -m eval.edit --apply=edits/sport.safetensors --apply=edits/fencing.safetensors --export_hf=exports/edited
python -m eval.edit --apply=edits/a.safetensors --apply=edits/b.safetensors --merge_to=both.safetensors --force
python -m eval.edit --model_name=exports/edited --revert=edits/sport.safetensors --export_orbax=exports/base
python -m eval.edit --model_name=gpt2-xl --covariance=STATS.npz --interactive
python -m eval.causal_trace --num_prompts=20
python -m eval.causal_trace --model_name=gpt2-xl --fact_file=published --num_prompts=1000 --severed
python -m eval.evaluate --alg_name=FT-L --dataset_size_limit=20
python -m eval.evaluate --model_name=gpt2-xl --second_moments=published --skip_generation_tests
python -m eval.compare --model_name=factworld-gptj --skip_generation_tests
python -m eval.compare --algs=FT-L,ROME --dataset_size_limit=20
python -m eval.sweep --sweep=layers=0,1,2 --sweep=clamp_norm_factor=4,20 --num_records=20
python -m eval.sweep --alg_name=FT-L --sweep=norm_constraint=None,1e-3,7e-3 --generation_tests
python -m eval.screening_report --model_name=factworld-gpt2 --num_prompts=30 --top=20
python -m eval.sequential_edits --model_name=factworld-gptj --num_edits=100 --output_dir=sequential
python -m eval.statistics_table --num_tokens=0,100,2000 --num_cases=2
""".strip().splitlines()
# Flags of the original code's programs, as its scripts and notebooks use them.
ORIGINAL = """
python -m eval.evaluate --alg_name=ROME --model_name=gpt2-xl --hparams_fname=gpt2-xl.json --ds_name=cf
python -m eval.evaluate --alg_name FT --model_name EleutherAI/gpt-j-6B --dataset_size_limit 10 --conserve_memory
python -m eval.evaluate --continue_from_run=run_000 --skip_generation_tests
python -m eval.summarize --dir_name=ROME --runs=run_000 --first_n_cases=100
python -m eval.causal_trace --model_name gpt2-xl --fact_file facts.json --output_dir DIR --noise_level s3 --replace 1
python -m eval.layer_stats --model_name gpt2-xl --dataset wikipedia --layers 17 --to_collect mom2 --sample_size 100000
python -m eval.layer_stats --layers=17 --batch_tokens=4096 --precision=float64 --stats_dir=DIR --download=1
""".strip().splitlines()


def shown(text):
    """The command lines of a text, on lines of their own (continued ones joined) or between backticks."""
    text = text.replace("\\\n", " ")
    lines = re.findall(r"^[ $]*(python -m eval\.\w.*)$", text, re.M)
    lines += re.findall(r"`(python -m eval\.\w[^`]*)`", text)
    return [line.split(" #")[0].replace("`", "").strip() for line in lines]


def documented():
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    paths += sorted((ROOT / "eval").glob("*.py"))
    return sorted({line for path in paths for line in shown(path.read_text())})


def in_makefile():
    """The command lines of the Makefile, its variables replaced by their values."""
    text = (ROOT / "Makefile").read_text()
    values = dict(re.findall(r"^(\w+) [:?]= *(.*)$", text, re.M)) | {"PY": "python"}
    text = re.sub(r"\$\((\w+)\)", lambda found: values.get(found[1], found[0]), text)
    return shown(text.replace("\t", " "))


def test_commands_are_found():
    assert {line.split()[2] for line in in_makefile()} == {
        *("eval.edit", "eval.causal_trace", "eval.evaluate", "eval.compare"),
    }
    assert shown("a\n    python -m eval.edit --a=1 \\\n  --b  # c\nand `python -m eval.x`") == [
        "python -m eval.edit --a=1    --b",
        "python -m eval.x",
    ]
    assert len(documented()) > 50


@pytest.mark.parametrize("command", [*documented(), *in_makefile(), *EARLIER, *ORIGINAL])
def test_a_command_is_accepted(command, monkeypatch):
    _, _, name, *arguments = shlex.split(command)
    program = importlib.import_module(name).PROGRAM
    reached = []
    parsed = dataclasses.replace(program, main=lambda: reached.append(name))
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
        parsed.run()
    assert not end.value.code and reached == [name] * ("--help" not in arguments)


def test_the_training_of_the_factworld_models_has_its_former_name(monkeypatch):
    importlib.import_module("eval.train_factworld")
    monkeypatch.setattr(sys, "argv", ["rome_jax.factworld.train", "--output_dir=DIR"])
    with (
        flagsaver.flagsaver(),
        pytest.raises(SystemExit, match=r"^Error: --family is missing: give it\."),
        pytest.warns(RuntimeWarning, match="found in sys.modules"),
    ):
        runpy.run_module("rome_jax.factworld.train", run_name="__main__")
