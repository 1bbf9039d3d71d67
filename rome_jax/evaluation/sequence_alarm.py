"""When a model collapses under edits: an alarm on what should grow slowly, and the number of edits until scores fall.

Edits that do not disturb each other add up like the steps of a random walk: ‖ΔW‖ grows as the square root of their
number, and KL, which is quadratic in small changes, as the number itself. The first three measurements show how fast,
by the largest value so far divided by that power of the number of edits. A later measurement that is more than three
times what they extrapolate to raises an alarm, and so does a number that is not finite. Values of less than 0.01 raise
none. A collapse before the fourth measurement is only seen if it gives numbers that are not finite: measure more often.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

FIRST = 3
"""Number of measurements that show how fast a quantity grows."""
FACTOR = 3.0
"""Multiple of the extrapolated value above which there is an alarm."""
NEGLIGIBLE = 0.01
"""KL in nats per token, and ‖ΔW‖ / ‖W‖, below which there is no alarm."""
SHARE = 0.8
"""Share of its first value below which a score has fallen."""

_SCORES = ("efficacy", "efficacy_generated")


@dataclasses.dataclass(frozen=True)
class Alarm:
    """The first measurement at which a quantity has left what the first ones showed.

    Attributes:
      quantity: "kl", or "norm_ratio of layer 5".
      edits: Number of edits at that measurement.
      value: The value; None if it is not finite.
      expected: What the first measurements extrapolate to; None if there were fewer than three.
    """

    quantity: str
    edits: int
    value: float | None
    expected: float | None

    def __str__(self) -> str:
        """Returns the alarm as a sentence."""
        value = "is not a number" if self.value is None else f"is {self.value:.3g}"
        expected = "" if self.expected is None else f", where {self.expected:.3g} was expected"
        return f"{self.quantity} {value} at {self.edits} edits{expected}"


def find_alarms(rows: Sequence[Mapping[str, Any]]) -> list[Alarm]:
    """Finds the first alarm of each quantity by the rule above.

    Args:
      rows: Measurements in the order of their edits, with `edits`, `kl` and `norm_ratios` by layer. Those of the
        unedited model are ignored.

    Returns:
      The alarms in the order of their edits.

    Example:
      >>> kl = {10: 0.1, 20: 0.2, 30: 0.3, 40: 0.5, 50: 7.0}
      >>> for alarm in find_alarms([{"edits": n, "kl": x, "norm_ratios": {}} for n, x in kl.items()]):
      ...     print(alarm)
      kl is 7 at 50 edits, where 0.5 was expected
    """
    rows = [row for row in rows if row["edits"]]
    layers = dict.fromkeys(layer for row in rows for layer in row["norm_ratios"])
    found = [_first_alarm("kl", 1.0, [(row["edits"], row["kl"]) for row in rows])]
    for layer in layers:
        values = [(row["edits"], row["norm_ratios"].get(layer, 0.0)) for row in rows]
        found.append(_first_alarm(f"norm_ratio of layer {layer}", 0.5, values))
    alarms = [alarm for alarm in found if alarm is not None]
    return sorted(alarms, key=lambda alarm: alarm.edits)


def _first_alarm(
    quantity: str, power: float, values: Sequence[tuple[int, float | None]]
) -> Alarm | None:
    """Finds the first alarm of one quantity, which grows as a power of the number of edits."""
    first = [value / edits**power for edits, value in values[:FIRST] if value is not None]
    for number, (edits, value) in enumerate(values):
        expected = max(first) * edits**power if number >= FIRST and len(first) == FIRST else None
        if value is None:
            return Alarm(quantity, edits, None, expected)
        if expected is not None and value > max(FACTOR * expected, NEGLIGIBLE):
            return Alarm(quantity, edits, value, expected)
    return None


def find_falls(
    rows: Sequence[Mapping[str, Any]], share: float = SHARE
) -> dict[str, dict[str, Any] | None]:
    """Finds when the efficacy of all earlier edits falls below a share of its first value.

    Args:
      rows: Measurements in the order of their edits; `earlier` of each is None or has the scores of earlier edits.
      share: The share, from 0 to 1.

    Returns:
      For both kinds of efficacy, the first value, the number of edits at the first measurement below the share of it,
      and the last measurement before; `edits` is None if the score does not fall, and the whole if it was not measured.

    Example:
      >>> scores = {20: 100.0, 30: 90.0, 40: 70.0}
      >>> rows = [{"edits": n, "earlier": dict.fromkeys(_SCORES, x)} for n, x in scores.items()]
      >>> find_falls(rows)["efficacy"]
      {'first': 100.0, 'edits': 40, 'held_until': 30}
    """
    return {name: _first_fall(rows, name, share) for name in _SCORES}


def _first_fall(
    rows: Sequence[Mapping[str, Any]], name: str, share: float
) -> dict[str, Any] | None:
    """Finds when one score falls."""
    values = [
        (row["edits"], row["earlier"][name]) for row in rows if row["edits"] and row["earlier"]
    ]
    if not values:
        return None
    first, held = values[0][1], values[0][0]
    for edits, value in values:
        if value < share * first:
            return {"first": first, "edits": edits, "held_until": held}
        held = edits
    return {"first": first, "edits": None, "held_until": held}
