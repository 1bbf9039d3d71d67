"""What the files around the code promise: commands, packaging, sizes, and no trace of a machine."""

from __future__ import annotations

import ast
import configparser
import functools
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import rome_jax
import rome_jax.version

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"

# A path from the root of somebody's machine: not part of a URL, of a longer path or of a pattern.
MACHINE_PATH = re.compile(r"(?<![\w.~)\]}*-])/(?:home|mnt|root|tmp|Users|work|workspace)/[\w.]")


def shell_lines(markdown: str) -> list[str]:
    """The commands in the shell blocks of a Markdown text, continued lines joined."""
    blocks = re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", markdown, re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip()]


def make_targets(makefile: str) -> set[str]:
    """The targets of a Makefile."""
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", makefile, re.M))


def repository_files() -> list[Path]:
    """Files that git tracks, or would once they are added."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip(f"git cannot list the files: {listed.stderr.decode().strip()}")
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def text_of(path: Path) -> str | None:
    """The text of a file, None for a binary one."""
    data = path.read_bytes()
    if b"\0" in data[:8192]:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


README = (ROOT / "README.md").read_text()


def test_readme_shows_demo_and_test_first():
    assert [line.split()[:2] for line in shell_lines(README)[:2]] == [
        ["make", "demo"],
        ["make", "test"],
    ]


def test_make_commands_exist():
    targets = make_targets((ROOT / "Makefile").read_text())
    documents = README + (ROOT / "CONTRIBUTING.md").read_text()
    used = {line.split()[1] for line in shell_lines(documents) if line.startswith("make ")}
    assert used, "no make command is documented"
    assert used <= targets
    assert {"demo", "test", "lint", "format", "clean"} <= targets


def test_ci_runs_lint_and_the_readme_test_command():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line for line in lines if line and not line.startswith("#")]
    assert commands == [
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")/.."',
        "rm -rf .venv .venv-lowest",
        "make lint",
        "make types",
        "time make test",
        "time make test-slow",
        "time make check-lowest",
        "time make parity",
    ]


def test_tests_that_need_torch_are_those_of_make_parity():
    """Each place that skips without torch has the marker, and each marker such a place."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        source = path.read_text()
        skips = re.findall(r'importorskip\("torch"\)', source)
        assert len(skips) == len(re.findall(r"mark\.parity", source)), path


def test_version_is_stated_once():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["metadata"]["version"] == "attr: rome_jax.version.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", rome_jax.version.__version__)


def test_wheel_carries_the_library_alone():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["options"]["packages"] == "find:"
    assert config["options.packages.find"]["include"].split() == ["rome_jax", "rome_jax.*"]
    assert config["options"]["python_requires"] == ">=3.11"
    folders = {path.parent for path in (ROOT / "rome_jax").rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_every_asset_is_package_data():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = config["options.package_data"]["rome_jax.factworld"].split()
    base = ROOT / "rome_jax" / "factworld"
    shipped = {path for pattern in patterns for path in base.glob(pattern)}
    present = {path for path in (base / "assets").rglob("*") if path.is_file()}
    assert present <= shipped


def test_golden_numbers_stay_small():
    size = sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file())
    assert size < 14_500_000


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cd /" + "work/main", True),
        ("see '/" + "root/.cache'", True),
        ("/" + "home/me/x", True),
        ("https://example.org/" + "home/me", False),
        ("src/" + "work/main", False),
        ("/usr/bin/env bash", False),
    ],
)
def test_machine_path_pattern(text, found):
    assert bool(MACHINE_PATH.search(text)) is found


def test_no_machine_paths_in_text_files():
    found = []
    for path in repository_files():
        for number, line in enumerate((text_of(path) or "").splitlines(), start=1):
            if match := MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match.group()}")
    assert not found, "\n".join(found)


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_what_is_there(path):
    """Imports of their Python, and the files and the names of the library that they mention in code."""
    text = path.read_text()
    for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
        imports = [
            node for node in ast.parse(block).body if isinstance(node, (ast.Import, ast.ImportFrom))
        ]
        exec(ast.unparse(imports), {})
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    for code in re.findall(r"`([^`\n]+)`", prose):
        if re.fullmatch(r"(?:rome_jax|eval|tests|configs|benchmarks|notebooks)/[\w/.]*", code):
            assert (ROOT / code).exists(), code
        for name in re.findall(r"\brome_jax(?:\.[a-zA-Z_]\w*)+", code):
            if name != "rome_jax.covariance":  # the old name
                functools.reduce(getattr, name.split(".")[1:], rome_jax)


PLACEHOLDER = re.compile(
    r"https?://(?:[\w-]+\.)*example\.(?:com|org|net)|<(?:user|org|owner|name|url)\w*>"
    r"|\b(?:your|my)[-_](?:org|user|name|account|repo)\w*|\b(?:FILL IN|FIXME|TODO|CHANGEME)\b"
    r"|(?:github|gitlab)\.com/(?:user|username|org|owner|example)\b",
    re.I,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("https://example.org/rome_jax.git", True),
        ("git clone https://www.example.com/x", True),
        ("https://github.com/<user>/rome_jax", True),
        ("https://github.com/your-org/rome_jax", True),
        ("REPOSITORY = ''  # FILL IN: the address", True),
        ("https://arxiv.org/abs/2202.05262", False),
        ("https://example-of-a-name.org", False),
        ("for example.", False),
    ],
)
def test_placeholder_pattern(text, found):
    assert bool(PLACEHOLDER.search(text)) is found


def test_no_placeholder_addresses():
    """What users read and run names no address that they would have to fill in."""
    files = [*ROOT.glob("*.md"), ROOT / "CITATION.cff", ROOT / "setup.cfg"]
    files += [*(ROOT / "docs").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    files += [*(ROOT / "benchmarks").glob("*.md")]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group()}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if (match := PLACEHOLDER.search(line))
    ]
    assert not found, "\n".join(found)


def test_extras_bring_what_their_users_need():
    """Notebooks and tests need what judges texts and what draws; the extra of each is a part of theirs."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = {
        name: {line for line in text.splitlines() if line and not line.startswith("#")}
        for name, text in config["options.extras_require"].items()
    }
    assert extras["eval"] | extras["plot"] | extras["gguf"] <= extras["notebooks"]
    assert extras["eval"] | extras["plot"] | extras["gguf"] | extras["data"] <= extras["test"]
    makefile = (ROOT / "Makefile").read_text()
    assert "REQUIREMENTS_table := -e '.[eval,plot]'" in makefile
    assert "REQUIREMENTS_test := -e '.[test]'" in makefile
