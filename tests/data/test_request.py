"""Edit requests: which are refused, and which braces are literal text."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rome_jax.data.request import EditRequest, RequestError, fill, target_text

GOOD = {"prompt": "{} is in", "subject": "The Space Needle", "target_new": "Rome"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prompt": "It is in"}, "prompt='It is in' has 0 '{}'"),
        ({"prompt": ""}, "prompt='' has 0 '{}'"),
        ({"prompt": "{name} is in"}, "has 0 '{}'"),
        ({"prompt": "{0} is in"}, "has 0 '{}'"),
        ({"prompt": "{} met {} in"}, "has 2 '{}'"),
        ({"prompt": "{}{} is in"}, "has 2 '{}'"),
        ({"prompt": "{} is in "}, "ends in white space"),
        ({"prompt": "{} is in\n"}, "ends in white space"),
        ({"subject": ""}, "subject='' is empty"),
        ({"subject": " \t"}, "subject=' \\t' is empty"),
        ({"target_new": ""}, "target_new='' is empty"),
        ({"target_new": " \n"}, "target_new=' \\n' is empty"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused_by_name(changes, named):
    with pytest.raises(RequestError) as error:
        EditRequest(**(GOOD | changes))
    assert named in str(error.value)
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize("field", ["prompt", "subject", "target_new", "target_true"])
@pytest.mark.parametrize("value", [3, b"L\xe9on", ["Rome"], "Rome \ud83d"])
def test_a_text_that_is_no_text_is_refused_by_name(field, value):
    with pytest.raises(RequestError, match=rf"^{field}=.*: give (a text|valid Unicode)"):
        EditRequest(**(GOOD | {field: value}))


def test_only_the_true_target_and_the_case_id_may_be_left_out():
    for field in GOOD:
        with pytest.raises(RequestError, match=f"^{field}=None: give a text"):
            EditRequest(**(GOOD | {field: None}))
    with pytest.raises(RequestError, match="case_id='x': give an integer"):
        EditRequest(**GOOD, case_id="x")


def test_a_good_request_is_kept_as_given():
    request = EditRequest(**GOOD, target_true="Seattle", case_id=7)
    assert dataclasses.asdict(request) == GOOD | {"target_true": "Seattle", "case_id": 7}
    assert request.text == "The Space Needle is in"
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.subject = "Big Ben"


@pytest.mark.parametrize(
    ("prompt", "subject", "text"),
    [
        ("{}", "x", "x"),
        ("In {a} the {} of {0} is", "set", "In {a} the set of {0} is"),
        ("f(x) = {x, {}} is", "y", "f(x) = {x, y} is"),
        ("{{}} is", "y", "{y} is"),
        ("The {} is", "{x}", "The {x} is"),
        ("The {} is", "{}", "The {} is"),
        ("The {} is", "{", "The { is"),
        ("The {} is 5 % of }{", "%s", "The %s is 5 % of }{"),
    ],
)
def test_other_braces_are_literal(prompt, subject, text):
    assert EditRequest(prompt, subject, "Rome").text == text


@pytest.mark.parametrize("target", ["Rome", " Rome", "   Rome", "\n Rome"])
def test_a_target_gets_exactly_one_leading_space(target):
    assert target_text(target) == " Rome"
    assert EditRequest("{} is in", "It", target).target_text == " Rome"


def test_a_target_keeps_its_other_spaces():
    assert target_text("New  York ") == " New  York "


plain = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(deadline=None, max_examples=50)
@given(before=plain, after=plain, subject=plain)
def test_fill_puts_the_text_between_what_surrounds_the_slot(before, after, subject):
    before, after = before.replace("{", "("), after.replace("}", ")")  # no second slot
    assert fill(before + "{}" + after, subject) == before + subject + after
