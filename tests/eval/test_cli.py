"""What the programs of `eval` share: flags, refusals, warnings, Ctrl-C and the cache of compiled programs."""

import ast
import collections
import dataclasses
import importlib
import os
import re
import signal
import subprocess
import sys
from unittest import mock

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from eval import cli
from eval.flags import method
from rome_jax.edit.config import ROMEConfig
from rome_jax.files.checked import check
from tests.programs import ROOT, Program, refusal

PROGRAMS = sorted(
    path.stem for path in (ROOT / "eval").glob("*.py") if "\nPROGRAM = " in path.read_text()
)
COMMON = {"compilation_cache", "verify"}  # flags of all programs
# Messages of libraries that are hidden by default, and three that are not.
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

cli.Program(main).run()
"""
# Imports all programs in one process, without the packages of the extras.
SIDE_BY_SIDE = """
import importlib, sys
extras = ["datasets", "matplotlib", "nbclient", "nltk", "sklearn"]
sys.modules.update(dict.fromkeys(extras))
for program in sys.argv[1:]:
    importlib.import_module(f"eval.{program}")
"""
# Waits for Ctrl-C.
SLEEPS = """
import time
from eval import cli

def main():
    print("begun", flush=True)
    time.sleep(60)

cli.Program(main, resumable=True).run()
"""
# Compiles a function and prints how often the cache folder had it.
CACHED = """
import jax
from eval import cli

hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.split("/")[-1]))

def main():
    jax.jit(lambda x: x + 2)(jax.numpy.ones(3))
    print(hits.count("cache_hits"), hits.count("cache_misses"))

cli.Program(main).run()
"""


def run_python(*arguments, **environment):
    environment = os.environ | environment
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


def module_of(program):
    return importlib.import_module(f"eval.{program}")


def definitions():
    """Names of flags, each with the file and line that define it."""
    found = collections.defaultdict(list)
    for path in sorted((ROOT / "eval").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            renames = called in ("define.alias", "define.opposite")
            names = node.args[1:] if renames else node.args[:1]
            if ("DEFINE_" in called and path.name != "define.py") or renames:
                for name in names:
                    if isinstance(name, ast.Constant):
                        found[name.value].append(f"{path.name}:{node.lineno}")
    return found


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_bad_input_is_one_sentence(monkeypatch, error):
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit, match=r"^Error: sky='red': give an integer\.$"):
        cli.Program(lambda: check(int, "red", "sky", error=error)).run()


def test_unknown_arguments_are_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program", "stray"])
    with pytest.raises(SystemExit, match="unknown arguments: stray"):
        cli.Program(lambda: pytest.fail("not reached")).run()


def test_other_errors_name_a_file_with_their_traceback(monkeypatch, tmp_path):
    def main():
        raise KeyError("a bug")

    monkeypatch.setenv("ROME_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(
        SystemExit, match=r"^Error: KeyError: 'a bug'; [^\n]*is in [^\n]*\.$"
    ) as end:
        cli.Program(main).run()
    (path,) = tmp_path.glob("errors/*.txt")
    assert str(path) in end.value.code
    assert 'raise KeyError("a bug")' in path.read_text()


def test_a_full_disk_behind_the_output_is_one_sentence():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "eval.summarize", "--dir_name=tests/golden/summarize_run"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("Error: No space left on device")


def test_a_field_of_a_configuration_needs_no_file():
    seen = []
    evaluate = module_of("evaluate").PROGRAM
    reading = cli.Program(lambda: seen.append(method.read()[1]), evaluate.takes)
    for arguments in (["--config.v_lr=1e-1", "--config.layers", "1"], ["--config.v_lr=1"]):
        with (
            mock.patch.object(sys, "argv", ["eval.evaluate", *arguments]),
            flagsaver.flagsaver(),
            pytest.raises(SystemExit),
        ):
            reading.run()
    known = ROMEConfig.for_model("factworld-gpt2")
    assert seen[0] == dataclasses.replace(known, v_lr=0.1, layers=(1,))
    assert seen[1] == dataclasses.replace(known, v_lr=1.0)


def test_messages_of_libraries_are_hidden():
    done = run_python("-c", NOISY)
    assert done.returncode == 0
    *warnings, error = done.stderr.splitlines()
    assert warnings == ["Warning: the edit changes little.", "Warning: Falling back to cpu."]
    assert error.endswith("worth a line")


@pytest.mark.slow
def test_verbosity_shows_messages_of_libraries():
    done = run_python("-c", NOISY, "--verbosity=0")
    assert done.returncode == 0 and done.stderr.count("noise") >= 5


def test_programs_are_imported_side_by_side_and_need_no_extra():
    """All programs import in one process of a base install, and print nothing."""
    assert len(PROGRAMS) >= 15
    done = run_python("-c", SIDE_BY_SIDE, *PROGRAMS)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("program", PROGRAMS)
def test_main_is_short(program):
    """It has at most 30 lines; more belongs in the library."""
    tree = ast.parse((ROOT / "eval" / f"{program}.py").read_text())
    (main,) = [node for node in tree.body if getattr(node, "name", None) == "main"]
    assert main.end_lineno - main.lineno + 1 <= 30


def test_each_flag_is_defined_once():
    found = definitions()
    assert len(found) > 90 and {"model_name", "covariance", "skip_generation_tests"} <= set(found)
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_takes_a_flag_once(program):
    takes = list(module_of(program).PROGRAM.takes)
    assert len(takes) == len(set(takes))
    assert set(module_of(program).PROGRAM.defaults) <= set(takes)


def test_every_flag_belongs_to_a_program():
    taken = {name for program in PROGRAMS for name in module_of(program).PROGRAM.takes}
    everything = {name for name in definitions() if not flags.FLAGS[name].help.startswith("Alias")}
    assert everything - taken == COMMON


def test_choices_ignore_case():
    for program in PROGRAMS:
        module_of(program)
    parsers = {name: flags.FLAGS[name].parser for name in definitions()}
    enums = [parser for parser in parsers.values() if isinstance(parser, flags.EnumParser)]
    assert len(enums) > 10
    for parser in enums:
        for value in parser.enum_values:
            assert parser.parse(value.swapcase()) == value
    assert parsers["format"].parse("LATEX") == "latex"


def test_a_flag_of_another_program_is_refused():
    error = refusal(Program("eval.summarize")("--seed=3"))
    assert error.startswith("Error: --seed is not a flag of eval.summarize: leave it out;")


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--dataset_size_limit=7"], "num_cases", 7),
        (["--num_prompts=7"], "num_cases", 7),
        (["--num_records=7"], "num_cases", 7),
        (["--num_edits=7"], "num_cases", 7),
        (["--covariance=a.npz"], "second_moments", "a.npz"),
        (["--skip_generation_tests"], "generation", False),
        (["--noskip_generation_tests"], "generation", True),
        (["--skip_generation_tests=true"], "generation", False),
        (["--generation_tests"], "generation", True),
        (["--alg_name=ft-l"], "alg_name", "FT-L"),
        (["--ds_name=ZSRE"], "ds_name", "zsre"),
        ([], "generation", True),
    ],
)
def test_former_names_and_other_case_mean_the_same(monkeypatch, arguments, name, value):
    program = module_of("evaluate").PROGRAM
    monkeypatch.setattr(sys, "argv", ["eval.evaluate", *arguments])
    seen = []
    quiet = cli.Program(lambda: seen.append(flags.FLAGS[name].value), takes=program.takes)
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
        quiet.run()
    assert not end.value.code and seen == [value]


def test_a_program_has_defaults_of_its_own(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["eval.sweep"])
    seen = []
    sweep = module_of("sweep").PROGRAM
    quiet = cli.Program(lambda: seen.append(flags.FLAGS.num_cases), sweep.takes, sweep.defaults)
    with flagsaver.flagsaver(), pytest.raises(SystemExit):
        quiet.run()
    assert seen == [50]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config=configs/rome.py", "--config.v_lrr=0.1"], "no field v_lrr, did you mean v_lr?"),
        (["--config=configs/rome.py:gpt3"], "no ROME configuration is known for model 'gpt3'"),
        (["--config=rome.py"], "--config=rome.py does not exist in "),
        (["--config.v_lrr=0.1"], "no hyperparameter v_lrr, did you mean v_lr?"),
        (["--config.v_lr=nan"], "v_lr='nan': give a finite number."),
        (["--config.v_lr=1", "--config.v_lr=2"], "--config.v_lr=2: give each field once"),
        (["--config=configs/rome.py", "--config.v_lr=nan"], "v_lr=nan: give a finite number."),
        (["--config=configs/rome.py", "--config.layers=one"], "layers[0]='one': give an integer."),
        (["--config=README.md"], "--config=README.md: "),
        (["--hparams_fname=setup.cfg"], "setup.cfg is not JSON"),
        (["--templates=nowhere.json"], "there is no file nowhere.json"),
        (["--alg_name=FT", "--templates=nowhere.json"], "FT does not use context templates"),
        (
            ["--seed=9223372036854775808"],
            "--seed=9223372036854775808: give an integer from 0 to 4294967295.",
        ),
        (["--max_tokens=1e400"], "--max_tokens=1e400"),
        (["--config=configs/memit.py"], "no hyperparameter modifiers, mom2_update_weight"),
        (["--model_name=factworld-gpt3"], "unknown model 'factworld-gpt3' (it is neither"),
        (["--model_name=factworld-gpt3", "--config=rome.py"], "unknown model 'factworld-gpt3'"),
        (["--results_dir=setup.cfg"], "setup.cfg is a file: give a folder"),
        (["--results_dir="], "--results_dir is empty: give a path"),
        (["--data_path=" + "a" * 300], "has a name of more than 255 bytes: give a shorter one"),
        (["--flagfile=nowhere"], "--flagfile=nowhere cannot be read: give the path of a text file"),
        (["--flagfile", "results"], "--flagfile=results cannot be read"),
        (["--config=setup.cfg"], "--config=setup.cfg: a configuration is a Python file, such as"),
        (["--config", "eval/cli.py"], "--config=eval/cli.py: the file has no function get_config"),
        (["--model_name=setup.cfg"], "(it is a file without the suffix .gguf)"),
        (["--dtype=int8"], "dtype='int8'"),
        (["--sampels=3"], "--sampels is not a flag: did you mean --samples?"),
        (["--seed=x"], "--seed=x"),
        (["--alg_name=MEMIT+X"], "--alg_name=MEMIT+X: 'MEMIT+X': give one of ROME"),
        (["--alg_name=FT+RECT"], "FT+RECT: FT takes no modifiers"),
    ],
)
def test_refusals_are_one_sentence_before_a_model_loads(monkeypatch, arguments, said):
    monkeypatch.setattr(
        "rome_jax.models.registry.load_params", lambda *_: pytest.fail("loads a model")
    )
    done = Program("eval.evaluate")(*arguments)
    assert said in refusal(done) and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("    return None", r"get_config returns NoneType: return a ConfigDict"),
        ("    return {'layers': None}", r"layers=None: give a list|returns dict"),
        ("    return 1 / 0", r"ZeroDivisionError: division by zero; .* traceback is in"),
        ("    raise SystemExit(3)", r"the file of --config exits with 3"),
    ],
)
def test_a_config_file_that_gives_no_configuration_is_refused(tmp_path, body, said):
    path = tmp_path / "mine.py"
    path.write_text(f"def get_config():\n{body}\n")
    done = Program("eval.evaluate", environment={"ROME_JAX_CACHE": str(tmp_path)})
    assert re.search(said, refusal(done(f"--config={path}")))


@pytest.mark.parametrize(
    ("program", "argument", "said"),
    [
        (
            "summarize",
            "--output=results/",
            "is the path of a folder: give the path of a file in it",
        ),
        ("edit", "--save=.", "is the path of a folder"),
        ("edit", "--export_hf= ", "--export_hf is empty"),
        ("compare", "--plot=figure.bmp", "must end in one of .pdf, .svg, .png"),
        ("mass_edits", "--counts=" + "9" * 5000, "give whole numbers from 1 to 100."),
    ],
)
def test_places_and_sizes_are_checked_first(program, argument, said):
    assert said in refusal(Program(f"eval.{program}")(argument))


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "results").mkdir()
    done = Program("eval.summarize")("--results_dir=~/results", "--dir_name=ROME")
    assert f"nor a folder in {tmp_path}/results" in refusal(done)


@pytest.mark.parametrize(
    ("program", "argument"),
    [
        ("layer_stats", "--checkpoint_minutes=nan"),
        ("layer_stats", "--checkpoint_minutes=1e400"),
        ("layer_stats", "--batch_tokens=99999999999"),
        ("layer_stats", "--layers=0-999999999999"),
        ("layer_stats", "--layers=0,5-3"),
        ("train_hypernetwork", "--learning_rate=nan"),
        ("causal_trace", "--noise_level=1e400"),
        ("causal_trace", "--samples=99999999999"),
    ],
)
def test_numbers_that_no_run_can_have_are_refused_at_once(program, argument, tmp_path):
    arguments = [argument, f"--output_dir={tmp_path}"]
    name, _, value = argument.removeprefix("--").partition("=")
    error = refusal(Program(f"eval.{program}")(*arguments))
    assert name in error and value in error


def test_an_unknown_model_is_refused_first_without_a_network():
    done = Program("eval.edit")("--model_name=gpt5", "--alg_name=KN")
    assert refusal(done).startswith("Error: unknown model 'gpt5' (it is not on this machine")
    assert "factworld-gpt2, factworld-gptj" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_begins_with_the_description_and_lists_the_flags(program):
    done = Program(f"eval.{program}")("--help")
    assert done.returncode == 0
    description, flags_of_it = done.stdout.split("\nflags:\n")
    summary, example = description.split("\n\n")[:2]
    assert re.fullmatch(r"[A-Z]\w+s\b.*\.", summary, re.S), "a sentence that begins with a verb"
    assert example.startswith("    python -m eval.")
    listed = set(re.findall(r"^  --(?:\[no\])?(\w+): ", flags_of_it, re.M))
    assert listed == {*COMMON, *module_of(program).PROGRAM.takes}


def test_help_texts_are_sentences():
    for name in definitions():
        # After the choices that absl prepends, as in "<cf|zsre>: Data set."
        text = re.sub(r"^<.*?>: ", "", flags.FLAGS[name].help)
        if text.startswith("Alias for "):
            continue
        repeatable = isinstance(
            flags.FLAGS[name], flags.MultiFlag
        )  # absl appends "; repeat this ..."
        assert text[0].isupper() or text.startswith("dtype "), (name, text)
        assert text.endswith(".") is not repeatable, (name, text)


def interrupted(program, *arguments):
    """A program that Ctrl-C reaches while it works."""

    def main():
        with cli.resumes_with(*arguments):
            raise KeyboardInterrupt

    return cli.Program(main, program.takes, resumable=program.resumable)


def test_ctrl_c_prints_the_command_that_resumes(monkeypatch, capsys):
    line = ["eval.evaluate", "--results_dir=my results", "--num_cases=3"]
    monkeypatch.setattr(sys, "argv", line)
    program = interrupted(module_of("evaluate").PROGRAM, "--continue_from_run=run_007")
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
        program.run()
    assert end.value.code == 130
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("To resume: python -m ")
    assert said[-1].endswith("'--results_dir=my results' --num_cases=3 --continue_from_run=run_007")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("lost", [False, True])
def test_a_signal_stops_a_program_in_one_line(monkeypatch, capsys, number, lost):
    def main():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as error:
            if lost:  # as by a library that calls Python from its own threads
                raise RuntimeError("the callback failed") from error
            raise

    # Shells start background jobs with some signals ignored, and then they stay ignored.
    before = signal.signal(number, signal.default_int_handler)
    try:
        monkeypatch.setattr(sys, "argv", ["eval.edit"])
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
            cli.Program(main).run()
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert end.value.code == 128 + number
    assert capsys.readouterr().err == "\nStopped.\n"


@pytest.mark.parametrize(
    ("name", "place"),
    [("ROME_JAX_CACHE", "/dev/null"), ("XDG_CACHE_HOME", "/proc/1"), ("ROME_JAX_CACHE", "file")],
)
def test_a_cache_that_cannot_be_written_to_is_a_warning(tmp_path, monkeypatch, capsys, name, place):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROME_JAX_CACHE", raising=False)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.setenv(name, place)
    cli.keep_compiled_programs()
    (warning,) = capsys.readouterr().err.splitlines()
    pattern = rf"Warning: .* set ROME_JAX_CACHE .*{place}.* cannot be written .*"
    assert re.fullmatch(pattern, warning)


def test_resumable_programs():
    resumable = {program for program in PROGRAMS if module_of(program).PROGRAM.resumable}
    assert resumable == set(
        "causal_trace compare evaluate layer_stats mass_edits sequence sequential_edits sweep train_factworld "
        "train_hypernetwork".split()
    )


def test_a_signal_ends_a_program_with_130():
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPS, "--verbosity=0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Shells start background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert said.splitlines()[-2] == "Stopped."
    assert said.splitlines()[-1].endswith(" --verbosity=0")


@pytest.mark.slow
def test_the_next_process_finds_what_was_compiled(tmp_path):
    environment = {"ROME_JAX_CACHE": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": ""}
    first, second = (run_python("-c", CACHED, **environment) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    hits, misses = map(int, first.stdout.split())
    assert hits == 0 and misses > 0
    assert second.stdout.split() == [str(misses), "0"]
    assert any((tmp_path / "xla").iterdir())


@pytest.mark.parametrize(
    ("arguments", "theirs", "kept"),
    [([], "", "ours/xla"), (["--nocompilation_cache"], "", None), ([], "theirs", None)],
)
def test_the_cache_can_be_turned_off_and_placed_elsewhere(
    monkeypatch, tmp_path, arguments, theirs, kept
):
    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    monkeypatch.setenv("ROME_JAX_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", theirs)
    with flagsaver.flagsaver(), pytest.raises(SystemExit):
        cli.Program(lambda: None).run()
    assert updates.get("jax_compilation_cache_dir") == (str(tmp_path / kept) if kept else None)
    assert not (tmp_path / "theirs").exists()


def test_progress_bars_are_plain_and_do_not_mention_widgets():
    source = "from tqdm.auto import tqdm; list(tqdm(range(3)))"
    done = run_python("-W", "always", "-c", source)
    assert "3/3" in done.stderr and "Warning" not in done.stderr
