"""Runs all cases of deliberate damage and prints how the library took them.

    python -m tests.fuzz
    python -m tests.fuzz --kind=file --area=data
    python -m tests.fuzz --only='file/counterfact/*'
    python -m tests.fuzz --failures=failures.txt

The cases run in a child process. If a case ends the process, a new process continues with the next case.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import fnmatch
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests import quick_compile

_ROOT = Path(__file__).resolve().parents[2]
_GRACE = 40  # seconds after which a case that cannot be stopped ends the process


def main() -> int:
    """Runs the cases that the arguments select; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--only", default="*", help="Pattern of the names of the cases.")
    parser.add_argument(
        "--kind", default="", help="Beginning of the kind: file, input, write or command."
    )
    parser.add_argument("--area", default="*", help="configs, data, models or edits.")
    parser.add_argument("--every", type=int, default=1, help="Run only every n-th case.")
    parser.add_argument("--failures", help="File to write the failures to. Default: the terminal.")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        _run(arguments, Path(arguments.run))
        return 0
    with tempfile.TemporaryDirectory(prefix="rome-jax-fuzz-") as folder:
        results = _collect(Path(folder, "results.jsonl"), folder)
    _report(results, arguments.failures)
    return int(any(not row["right"] for row in results))


def _collect(path: Path, folder: str) -> list[dict[str, Any]]:
    """Runs child processes until all cases have a result."""
    environment = os.environ | {"TMPDIR": folder, "ROME_JAX_CACHE": f"{folder}/cache"}
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".pytest_cache" / "jax"))
    environment |= {k: v for k, v in quick_compile.variables().items() if k not in os.environ}
    results: list[dict[str, Any]] = []
    while True:
        command = [sys.executable, "-m", "tests.fuzz", *sys.argv[1:]]
        command += [f"--run={path}", f"--first={len(results)}"]
        with tempfile.TemporaryFile("w+") as log:
            done = subprocess.run(command, env=environment, stdout=log, stderr=log)
            log.seek(0)
            output = log.read()
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        results = [row for row in rows if "verdict" in row]
        if done.returncode == 0 or (rows and "end" in rows[-1]):
            return results
        begun = rows[-1] if rows and "verdict" not in rows[-1] else None
        if begun is None:
            sys.exit(f"the cases could not be run, status {done.returncode}:\n{output[-3000:]}")
        detail = f"status {done.returncode}: {output.strip()[-300:]!r}"
        lost = {
            **begun,
            "verdict": "ended the process",
            "right": False,
            "detail": detail,
            "seconds": 0,
        }
        path.write_text("".join(json.dumps(row) + "\n" for row in [*results, lost]))
        results.append(lost)


def _run(arguments: argparse.Namespace, path: Path) -> None:
    """Runs the selected cases from a given one on, and appends two lines for each: that it began, and its result."""
    from tests.fuzz import cases, suite

    chosen = [
        case
        for case in suite.all_cases(re.split(r"[*?\[]", arguments.only)[0] or arguments.kind)
        if fnmatch.fnmatchcase(case.name, arguments.only)
        and case.kind.startswith(arguments.kind)
        and fnmatch.fnmatchcase(case.area, arguments.area)
    ]
    with open(path, "a", encoding="utf-8") as file:
        for case in chosen[:: arguments.every][arguments.first :]:
            about = {"name": case.name, "kind": case.kind, "area": case.area}
            print(json.dumps(about), file=file, flush=True)
            faulthandler.dump_traceback_later(cases.SECONDS + _GRACE, exit=True)
            result = cases.judge(case)
            faulthandler.cancel_dump_traceback_later()
            about |= {"verdict": result.verdict.value, "right": result.verdict.right}
            about |= {"detail": result.detail, "seconds": round(result.seconds, 3)}
            print(json.dumps(about), file=file, flush=True)
        print(json.dumps({"end": True}), file=file, flush=True)


def _report(results: list[dict[str, Any]], failures: str | None) -> None:
    """Prints the counts, and prints or writes the failures with the commands that reproduce them."""
    from tests.fuzz.cases import Verdict

    seconds: collections.Counter[str] = collections.Counter()
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for row in results:
        for group in (row["kind"], row["kind"].split(":")[0], "all"):
            counts[group][row["verdict"]] += 1
            seconds[group] += row["seconds"]
    columns = [verdict for verdict in Verdict if any(verdict.value in c for c in counts.values())]
    width = max(map(len, counts), default=0)
    print(
        f"{'':{width}} {'SECONDS':>7} {'CASES':>9} "
        + " ".join(f"{column.name:>9}" for column in columns)
    )
    for group in sorted(counts):
        numbers = " ".join(f"{counts[group][column.value]:9}" for column in columns)
        print(f"{group:{width}} {seconds[group]:7.0f} {sum(counts[group].values()):9} {numbers}")
    print("\n".join(f"{column.name:>9}: {column.value}" for column in columns))
    wrong = sorted((row for row in results if not row["right"]), key=lambda row: row["area"])
    lines = [
        f"[{row['area']}] {row['verdict']} ({row['seconds']} s)\n    {' '.join(row['detail'].split())[:600]}\n"
        f"    python -m tests.fuzz --only={shlex.quote(row['name'])}"
        for row in wrong
    ]
    if failures is None:
        print("\n".join(lines))
    else:
        Path(failures).write_text(
            "\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace"
        )
        print(f"{len(wrong)} failures written to {failures}.")


if __name__ == "__main__":
    sys.exit(main())
