"""The alarm of a sequence of edits, the number of edits until scores fall, and the criterion of generated answers."""

import pytest

from rome_jax.evaluation.sequence_alarm import Alarm, find_alarms, find_falls
from rome_jax.evaluation.sequence_measurement import measure_points
from rome_jax.evaluation.sequence_scores import answers_first, draw_sample, split_newest


def rows(kl, ratios=None):
    """Measurements with KL by the number of edits, and ‖ΔW‖ / ‖W‖ of layer 3."""
    ratios = ratios or {}
    norms = {edits: {"3": ratios[edits]} if edits in ratios else {} for edits in kl}
    return [{"edits": n, "kl": value, "norm_ratios": norms[n]} for n, value in kl.items()]


def test_growth_as_in_the_first_steps_raises_no_alarm():
    counts = (0, 1, 10, 100, 1000)
    linear = {n: 0.001 * n for n in counts}
    root = {n: 0.1 * n**0.5 for n in counts}
    assert find_alarms(rows(linear, root)) == []
    near = {n: 0.001 * n for n in (0, 1, 10, 100, 500)}
    assert find_alarms(rows(near, near)) == [], "three times the root is more than linear growth"


def test_each_quantity_has_its_first_alarm_in_the_order_of_edits():
    kl = {10: 0.1, 20: 0.2, 30: 0.3, 40: 1.1, 50: 1.6, 60: 7.0}
    norm = {10: 1.0, 20: 1.4, 30: 1.7, 40: 25.0, 50: 99.0, 60: 99.0}
    first, second = find_alarms(rows(kl, norm))
    assert first.quantity == "norm_ratio of layer 3" and first.edits == 40
    assert first.expected == pytest.approx(2, rel=0.02)
    assert second == Alarm("kl", 50, 1.6, pytest.approx(0.5))
    assert str(second) == "kl is 1.6 at 50 edits, where 0.5 was expected"


def test_the_first_three_measurements_only_raise_an_alarm_without_a_number():
    assert find_alarms(rows({1: 0.001, 2: 5.0, 3: 9.0})) == []
    (alarm,) = find_alarms(rows({1: 0.001, 2: None}))
    assert str(alarm) == "kl is not a number at 2 edits"


def test_negligible_values_raise_no_alarm():
    assert find_alarms(rows({1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0099})) == []
    assert [alarm.edits for alarm in find_alarms(rows({1: 0.0, 2: 0.0, 3: 0.0, 4: 0.011}))] == [4]


def test_a_score_falls_when_it_is_below_a_share_of_its_first_value():
    def row(edits, forced, generated):
        scores = {"efficacy": forced, "efficacy_generated": generated}
        return {"edits": edits, "earlier": None if forced is None else scores}

    found = find_falls([row(0, 0, 0), row(10, None, None), row(20, 100, 50), row(30, 80, 39)])
    assert found["efficacy"] == {"first": 100, "edits": None, "held_until": 30}
    assert found["efficacy_generated"] == {"first": 50, "edits": 30, "held_until": 20}
    assert find_falls([row(10, None, None)])["efficacy"] is None
    assert find_falls([row(20, 100, 50), row(30, 89, 50)], 0.9)["efficacy"]["edits"] == 30


@pytest.mark.parametrize(
    ("text", "first"),
    [
        (" tennis.", True),
        (" Tennis, and later rowing.", True),
        (" rowing and tennis", False),
        (" golf", False),
        (" rowing", False),
        ("tennis", True),
        (" tennisball", False),
        ("table-tennis", True),
        ("", False),
    ],
)
def test_the_desired_answer_comes_as_whole_words_before_the_other(text, first):
    assert answers_first(text, "tennis", "rowing") is first


def test_of_answers_that_begin_alike_the_longer_one_counts():
    assert answers_first(" New York City", "New York City", "New York")
    assert not answers_first(" New York City", "New York", "New York City")
    assert answers_first(" New\nYork State", "New York", "New York City")


def test_the_newest_edits_are_the_last_batch_and_at_least_ten():
    for batch_size, newest in ((1, 10), (10, 10), (25, 25), (200, 100)):
        split = split_newest(range(100), batch_size)
        assert [len(part) for part in split] == [newest, 100 - newest]
        assert [*split[1], *split[0]] == list(range(100))


def test_samples_depend_on_the_seed_alone():
    drawn = draw_sample(range(100), 10, (0, 100))
    assert drawn == draw_sample(range(100), 10, (0, 100)) == sorted(set(drawn))
    assert len(drawn) == 10 and drawn != draw_sample(range(100), 10, (1, 100))
    assert draw_sample(range(3), 10, (0, 3)) == range(3)


def test_measurements_are_at_the_ends_of_batches():
    assert measure_points(7, 3) == (3, 6, 7)
    assert measure_points(7, 3, every=2) == (6, 7)
    assert measure_points(7, 3, every=9) == (7,)
    assert measure_points(7, 100) == (7,)
    assert measure_points(7, 3, counts=[7, 2, 1, 4]) == (3, 6, 7)
    with pytest.raises(
        ValueError, match=r"no measurement at 8 of 7 edits: give counts from 1 to 7"
    ):
        measure_points(7, 3, counts=[8])
