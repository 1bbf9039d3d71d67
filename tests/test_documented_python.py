"""The Python of README and docs runs as a reader would run it: block after block, in an empty folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
# `expression` now gives `result`
CLAIM = re.compile(r"`([^`]*)` now gives\s+`([^`]*)`")


def pages_with_python() -> list[Path]:
    """README and the pages of docs that have a Python block."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [page for page in pages if BLOCK.search(page.read_text())]


SLOW = {"python.md", "memit.md"}  # They compile edits of several requests.


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.slow] * (page.name in SLOW))
        for page in pages_with_python()
    ],
)
def test_the_python_of_a_page_does_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    text = page.read_text()
    # A claim is checked after the block that it follows: a later block may redefine its names.
    for match in re.finditer(f"{BLOCK.pattern}|{CLAIM.pattern}", text, re.M | re.S):
        block, expression, result = match.groups()
        if block is not None:
            exec(compile(block, str(page), "exec"), names)
        else:
            assert repr(eval(expression, names)) == result, expression


def test_readme_and_the_page_on_python_make_claims():
    assert CLAIM.search((ROOT / "README.md").read_text())
    assert len(CLAIM.findall((ROOT / "docs" / "python.md").read_text())) >= 4
