"""`python -m eval.statistics_table` as a user runs it."""

import pytest

from tests.programs import Program, refusal


@pytest.fixture(scope="module")
def program():
    return Program("eval.statistics_table")


@pytest.mark.slow
def test_a_table_has_a_row_for_each_number_of_tokens(program):
    result = program("--num_tokens=0,100,2000", "--num_cases=2")
    assert result.returncode == 0, result.stderr
    title, header, line, *rows = result.stdout.splitlines()
    assert title == "factworld-gpt2, layer 0, width 512, 2 requests"
    assert header.count("|") == line.count("|") == 7
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [row[:2] for row in cells[:2]] == [["none", "1"], ["100", "not positive definite"]]
    assert cells[1][2:] == [""] * 4
    assert cells[2][0] == "2,000" and float(cells[2][1]) > 1
    for row in (cells[0], cells[2]):
        assert row[3].startswith("100.0") and 0 <= float(row[2]) <= 100


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--num_tokens=1,many",
            "--num_tokens='many': give a whole number of 0 or more, or all",
        ),
        (
            "--model_name=gpt2-xl",
            "--model_name=gpt2-xl: this program is only for factworld-gpt2, factworld-gptj, smollm2-135m",
        ),
    ],
)
def test_bad_flags_are_one_sentence(program, flag, message):
    result = program(flag)
    assert result.stdout == "" and message in refusal(result)
