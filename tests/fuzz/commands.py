"""Bad command lines: for every program and flag, the values that the flag cannot have.

Programs come from the modules of `eval`, flags from `PROGRAM.takes`, and the kind of a flag from its definition, so
a new program or flag is covered without a change here. Only what a text means has to be said: `command_lines.ROLES`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from absl import flags

from rome_jax.edit.config import MethodName
from rome_jax.edit.method import METHODS
from tests import saved
from tests.fuzz import command_lines as lines
from tests.fuzz import examples
from tests.fuzz.cases import (
    Attempt,
    Case,
    Expect,
    Stopped,
    Verdict,
    WorkBegan,
    limited,
    litter,
    snapshot,
    what_is_wrong,
)
from tests.fuzz.work import stopping
from tests.golden_cases import GOLDEN
from tests.programs import ROOT, Program, load_shipped_once

_SECONDS = 3  # after which a command line that may be accepted has been
BUG = "this is a bug"  # in the sentence about an error that was not foreseen


def program_names() -> list[str]:
    """Returns the modules of `eval` that are programs."""
    return sorted(
        path.stem
        for path in (ROOT / "eval").glob("*.py")
        if re.search(r"^PROGRAM\b", path.read_text(), re.M)
    )


@functools.cache
def program(name: str) -> Program:
    """Returns a program of `eval`, which runs in this process."""
    return Program(f"eval.{name}")


def cases() -> Iterator[Case]:
    """Yields all bad command lines; the same one is tried once."""
    seen = set()
    for case in itertools.chain(_of_flags(), _of_configs(), _of_programs()):
        if case.name not in seen:
            seen.add(case.name)
            yield case


def _of_flags() -> Iterator[Case]:
    """Yields bad values for each flag of each program."""
    for name in program_names():
        takes = program(name).program.takes
        for flag in takes:
            base = [
                argument
                for argument in [*lines.BASE.get(name, ()), *lines.WITH.get((name, flag), ())]
                if not re.match(rf"--(no)?{flag}(=|$)", argument)
            ]
            definition = flags.FLAGS[flag]
            for label, value, expect in _values(flag, definition):
                arguments = [*base, f"--{flag}={value}"]
                yield _case(name, f"{flag}={label}", _kind(label), expect, arguments, flag)


def _values(name: str, flag: Any) -> Iterator[tuple[str, str, Expect]]:
    """Yields values of a flag, with what may happen to them."""
    role = lines.ROLES.get(name, "other")
    kind: Mapping[str, str] = lines.OF_ROLE[role]
    odd = lines.EMPTY if role.startswith("output") else lines.ODD
    for parser, (refused, allowed) in lines.OF_PARSER.items():
        if isinstance(flag.parser, parser):
            kind, odd = refused, allowed
    if _is_config(flag):
        kind, odd = lines.OF_ROLE["input"], lines.EMPTY
    yield from ((label, value, Expect.REFUSE) for label, value in kind.items())
    yield from ((label, value, Expect.EITHER) for label, value in odd.items() if label not in kind)


def _is_config(flag: Any) -> bool:
    """Returns whether a flag is a configuration of ml_collections."""
    return type(flag).__module__.startswith("ml_collections")


def _of_configs() -> Iterator[Case]:
    """Yields bad values for each field of each method's configuration."""
    for method in MethodName:
        config = METHODS[method].for_model(lines.MODEL)
        base = [
            f"--alg_name={method}",
            f"--config={ROOT}/{METHODS[method].config_file % lines.MODEL}",
        ]
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            found = next(
                (v for kind, v in lines.CONFIG_VALUES.items() if type(value) is kind), None
            )
            if found is None:
                found = lines.CONFIG_VALUES[float if value is None else str]
            for label, bad in found.items():
                arguments = [*base, f"--config.{field.name}={bad}"]
                harmless = field.name != "layers" and label in ("none", "beyond")
                expect = Expect.EITHER if harmless else Expect.REFUSE
                name = f"{method}.{field.name}={label}"
                yield _case("edit", name, _kind(label), expect, arguments, field.name)
        yield _case(
            "edit",
            f"{method}.fuzz",
            "unknown flag",
            Expect.REFUSE,
            [*base, "--config.fuzz=1"],
            "fuzz",
        )


def _of_programs() -> Iterator[Case]:
    """Yields what is wrong whatever the flags mean: unknown, foreign, repeated and contradictory ones."""
    every = sorted({flag for name in program_names() for flag in program(name).program.takes})
    for index, name in enumerate(program_names()):
        base = list(lines.BASE.get(name, ()))
        takes = program(name).program.takes
        for label, more in {
            "unknown": ["--fuzz=1"],
            "unknown-bytes": ["--caf\udce9=1"],
            "stray": ["stray"],
            "stray-bytes": ["\udce9"],
            "dashes": ["--", "x"],
            "dash": ["-x"],
            "flagfile": ["--flagfile=nowhere"],
            "undefok": ["--undefok=fuzz", "--fuzz=1"],
            "cache": ["--compilation_cache=maybe"],
            "verbosity": ["--verbosity=abc"],
            "no-value": [f"--{takes[0]}"],
        }.items():
            refuse = Expect.EITHER if label == "undefok" else Expect.REFUSE
            yield _case(name, label, "unknown flag", refuse, [*base, *more])
        for flag in [flag for flag in every if flag not in takes][index % 5 :: 5]:
            boolean = flags.FLAGS[flag].boolean
            value = f"--no{flag}" if boolean else f"--{flag}={_plain_value(flags.FLAGS[flag])}"
            yield _case(
                name,
                f"foreign-{flag}",
                "flag of another program",
                Expect.REFUSE,
                [*base, value],
                flag,
            )
        if "seed" in takes:
            yield _case(
                name,
                "seed-twice",
                "repeated flag",
                Expect.REFUSE,
                [*base, "--seed=1", "--seed=abc"],
                "seed",
            )
        for number, arguments in enumerate(lines.CONTRADICTIONS.get(name, ())):
            yield _case(name, f"contradiction-{number}", "contradiction", Expect.REFUSE, arguments)


def _plain_value(flag: Any) -> str:
    """Returns a value that a flag accepts."""
    parser = flag.parser
    if isinstance(parser, flags.EnumParser):
        return parser.enum_values[0]
    if isinstance(parser, flags.EnumClassParser):
        return parser.enum_class.__members__[next(iter(parser.enum_class.__members__))].name.lower()
    if _is_config(flag):
        return f"{ROOT}/configs/rome.py"
    return "1" if isinstance(parser, flags.IntegerParser | flags.FloatParser) else "x"


def _kind(label: str) -> str:
    if label in lines.NAN:
        return "not finite"
    return {
        "bytes": "encoding",
        "byte": "encoding",
        "huge": "huge number",
        "digits": "huge number",
    }.get(label, "wrong value")


def _case(
    name: str, label: str, kind: str, expect: Expect, arguments: Sequence[str], *said: str
) -> Case:
    run = functools.partial(_try, name, label, tuple(arguments), said, expect)
    area = (
        "configs"
        if "config" in kind or name in ("edit", "sweep", "compare")
        else _AREAS.get(name, "configs")
    )
    return Case(f"command/{name}/{label}", f"command: {kind}", area, expect, run)


_AREAS = {
    "summarize": "data",
    "layer_stats": "models",
    "edits": "edits",
    "causal_trace": "edits",
    "train_hypernetwork": "models",
}


def _try(
    name: str,
    label: str,
    arguments: tuple[str, ...],
    said: tuple[str, ...],
    expect: Expect,
    folder: Path,
) -> Attempt:
    """Runs a command line in a folder with files of all kinds; it stops when the work begins."""
    shutil.copytree(_template(), folder, dirs_exist_ok=True, symlinks=True)
    load_shipped_once(lines.MODEL)
    before = snapshot(folder)
    done = None
    with stopping(), mock.patch.dict(os.environ, HOME=str(folder)), _limited_if(expect):
        done = program(name)(*arguments, cwd=folder)
    after = snapshot(folder)
    command = f"[{name} {' '.join(arguments)[-200:]}]"
    changed = sorted(path for path in before if after.get(path) != before[path])
    foreign = [path for path in changed if path.startswith(("foreign", "folder"))]
    left = litter(before, after)
    if done is None or done.returncode == 0:
        if lost := [*left * (done is not None), *foreign]:
            return Attempt(None, Verdict.LITTER, f"{', '.join(lost)} {command}")
        return Attempt(detail=command)
    if "jax_num_cpu_devices" in done.stderr:  # which only the first use of jax in a process can set
        return Attempt(detail=command)
    parts = [re.sub("^--?", "", argument).partition("=") for argument in arguments]
    names = [*said, *(part[:20] or "''" for name, _, value in parts for part in (name, value))]
    names += [value.split("/")[0] for _, _, value in parts if "/" in value[1:]]
    if expect is not Expect.REFUSE or label.startswith("contradiction"):
        names = []  # any sentence will do
    message, wrong = _refusal(done, *names)
    if wrong is not None:
        return Attempt(None, wrong, f"{message} {command}")
    if new := [*left, *foreign, *sorted(after.keys() - before.keys())]:
        return Attempt(None, Verdict.LITTER, f"{', '.join(new[:5])} {command}")
    return Attempt(message, None, command)


@contextlib.contextmanager
def _limited_if(expect: Expect) -> Iterator[None]:
    """Stops a command line that may be accepted, because it then works as it should."""
    if expect is not Expect.EITHER:
        yield
        return
    try:
        with limited(_SECONDS):
            yield
    except Stopped:
        raise WorkBegan from None


def _refusal(done: subprocess.CompletedProcess[str], *names: str) -> tuple[str, Verdict | None]:
    """Returns the message of a command line that failed, and what is wrong with it."""
    printed = [line for line in done.stderr.split("\n") if line.strip() and "\r" not in line]
    if "Traceback" in done.stderr:
        kept = [line for line in printed if "JAX" not in line and line.strip("- ")]
        places = [line.strip() for line in kept if "/rome_jax/" in line or "/eval/" in line]
        return f"{kept[-1][:300]} {places[-1:]}", Verdict.TRACEBACK
    errors = [line for line in printed if line.startswith("Error: ")]
    others = [line for line in printed if not line.startswith(("Error: ", "Warning: "))]
    if len(errors) != 1 or done.returncode != 1 or others:
        return f"status {done.returncode}: {done.stderr[-300:]!r}", Verdict.MESSAGE
    message = _printed(errors[0].removeprefix("Error: "))
    if BUG in message:
        return message[:300], Verdict.TRACEBACK
    if wrong := what_is_wrong(message, *map(_printed, names)):
        return f"{message[:300]!r} ({wrong})", Verdict.MESSAGE
    return message, None


def _printed(text: str) -> str:
    """Returns a text as a terminal shows it: bytes that are not UTF-8 are escaped."""
    return text.encode(errors="backslashreplace").decode()


@functools.cache
def _template() -> Path:
    """Writes the files that command lines name, once."""
    folder = Path(tempfile.mkdtemp(prefix="rome-jax-fuzz-files-"))
    model = load_shipped_once(lines.MODEL)
    import rome_jax

    rome_jax.save_edits(folder / "edit.safetensors", [saved.random_edit(model)])
    (folder / "cf.json").write_text(json.dumps([examples.COUNTERFACT]))
    (folder / "zsre.json").write_text(json.dumps([examples.ZSRE]))
    (folder / "texts.txt").write_text("Rome is a city.\n" * 3)
    (folder / "number.json").write_text("17")
    (folder / "unknown.json").write_text('{"layers": [0], "fuzz": 1}')
    (folder / "empty.json").touch()
    (folder / "junk.bin").write_bytes(bytes(range(256)))
    (folder / "foreign.txt").write_text("keep\n")
    (folder / "broken").symlink_to("broken-target")
    (folder / "loop").symlink_to("loop")
    (folder / "blank.txt").write_text(" \n\n \n")
    (folder / "blank.jsonl").write_text('{"text": ""}\n' * 3)
    (folder / "texts.jsonl").write_text('{"text": "Rome is a city."}\n')
    edited = {"case_id": 0, "requested_rewrite": examples.FLAT, "post": {"rewrite_acc": [1.0]}}
    (folder / "results.json").write_text(json.dumps([edited]))
    (folder / "easyedit" / "one").mkdir(parents=True)
    (folder / "easyedit" / "ROME_results.json").write_text(json.dumps([edited]))
    (folder / "easyedit" / "one" / "case_0.json").write_text(json.dumps(edited))
    (folder / "folder").mkdir()
    (folder / "folder" / "foreign.bin").write_text("keep\n")
    (folder / "foreign").mkdir()
    (folder / "foreign" / "config.json").write_text('{"model_type": "llama"}')
    (folder / "foreign" / "model.safetensors").write_bytes(bytes(8))
    (folder / "broken.py").write_text("def get_config(:\n")
    shutil.copytree(GOLDEN / "summarize_run", folder / "results" / "ROME")
    (folder / "sequence").mkdir()
    (folder / "sequence" / "run.json").write_text(json.dumps(examples.SEQUENCE))
    (folder / "sequence" / "edits_00001.json").write_text(json.dumps(examples.MEASURED))
    return folder
