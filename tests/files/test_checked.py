"""What `check` converts, and the sentence with which it refuses everything else."""

import enum
import math
from typing import Annotated, Literal, NotRequired, TypedDict

import numpy as np
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rome_jax.files.checked import check, shown


class Token(enum.Enum):
    FIRST = "first"
    LAST = "last"


class Target(TypedDict):
    text: str
    weight: NotRequired[float]


class Record(TypedDict):
    target: Target
    layers: tuple[int, ...]


Positive = Annotated[float, pydantic.Field(gt=0)]
Pairs = tuple[tuple[int, int], ...]


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (float, "5e-1", 0.5),
        (float, np.float32(0.5), 0.5),
        (int, 20.0, 20),
        (int, "17", 17),
        (bool, "false", False),
        (bool, np.True_, True),
        (tuple[int, ...], 17, (17,)),
        (tuple[int, ...], np.int32(17), (17,)),
        (tuple[int, ...], ["17", 3.0], (17, 3)),
        (tuple[int, ...], np.array([1, 2]), (1, 2)),
        (Pairs, [[5, 10]], ((5, 10),)),
        (Positive | None, None, None),
        (Token, "last", Token.LAST),
        (Token, "LAST", Token.LAST),
        (tuple[Token, ...], "last", (Token.LAST,)),
        (Record, {"target": {"text": "a"}, "layers": 3}, {"target": {"text": "a"}, "layers": (3,)}),
    ],
)
def test_what_is_unambiguous_is_converted(kind, value, expected):
    found = check(kind, value, "field")
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (float, None, "v_lr=None: give a finite number."),
        (float, "nan", "v_lr='nan': give a finite number."),
        (int, "0-3", "v_lr='0-3': give an integer."),
        (float, "1_0", "v_lr='1_0': give a finite number."),
        (float, math.inf, "v_lr=inf: give a finite number."),
        (float, "1e400", "v_lr='1e400': give a finite number."),
        (float, True, "v_lr=True: give a finite number."),
        (int, 20.5, "v_lr=20.5: give an integer."),
        (int, 2**63, f"v_lr={2**63}: give a number below {2**63}."),
        (bool, "maybe", "v_lr='maybe': give true or false."),
        (Positive, math.nan, "v_lr=nan: give a finite number."),
        (Positive, 0, "v_lr=0: give a number above 0."),
        (Positive | None, "x", "v_lr='x': give a finite number."),
        (int | str, [1], "v_lr=[1]: give an integer or a text."),
        (tuple[int, ...], "0,2", "v_lr[0]='0,2': give an integer."),
        (Pairs, [5, 10], "v_lr[0]=5: give a list."),
        (Pairs, ["ab"], "v_lr[0]='ab': give a list."),
        (Pairs, [[5, 10, 2]], "v_lr[0]=[5, 10, 2]: give at most 2 items."),
        (Token, "middle", "v_lr='middle': give one of first, last."),
        (Token, ["last"], "v_lr=['last']: give one of first, last."),
        (Literal["a", "b"], "c", "v_lr='c': give one of 'a' or 'b'."),
        (str, 5, "v_lr=5: give a text."),
        (str, b"a", "v_lr=b'a': give a text."),
        (
            dict[str, int | float],
            {"str": "x"},
            "v_lr: str='x': give an integer or a finite number.",
        ),
        (str, "a\ud800", "v_lr='a\\ud800': give valid Unicode, which this text is not."),
        (Record, [1], "v_lr=[1]: give a mapping of names to values."),
        (Record, {"layers": 1}, "v_lr: target is missing: give it."),
        (
            Record,
            {"target": {"text": "a", "weight": math.nan}, "layers": 1},
            "v_lr: target.weight=nan: give a finite number.",
        ),
    ],
)
def test_everything_else_is_one_sentence(kind, value, message):
    with pytest.raises(ValueError) as refused:
        check(kind, value, "v_lr")
    assert str(refused.value) == message


def test_the_caller_chooses_the_exception():
    with pytest.raises(KeyError, match="give an integer"):
        check(int, "x", "n", error=KeyError)


def test_deep_nesting_is_refused():
    value: list = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValueError, match="layers"):
        check(tuple[int, ...], value, "layers")


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(alphabet=st.characters())
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(anything)
@pytest.mark.parametrize("kind", [int, float, bool, str, tuple[int, ...], Pairs, Token, Record])
def test_any_value_is_converted_or_refused_in_one_line(kind, value):
    try:
        found = check(kind, value, "field")
    except ValueError as refused:
        message = str(refused)
        assert message.startswith("field") and message.endswith(".") and "\n" not in message
        message.encode()
        assert len(message) < 300
    else:
        assert check(kind, found, "field") == found
        assert found == found, "no NaN passes"


def test_a_long_value_is_shortened():
    assert len(shown(list(range(1000)))) < 60
    assert len(shown({str(i): "a" * 1000 for i in range(100)})) < 300
