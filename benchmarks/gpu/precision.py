"""How far logits, edits, and traces move in other precisions on this device; see `benchmarks.precision`.

factworld-gpt2 is a trained model; the random model has the size of GPT-2.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from benchmarks import precision
from benchmarks.gpu.child import Context

TABLE = "change against float32 weights and products at highest precision"
_EDITS, _SAMPLES = 16, 10


def run(context: Context) -> None:
    """Writes one row per model and setting."""
    settings = list(precision.SETTINGS.items())[1:]
    if context.tiny:
        settings = [("bfloat16 weights", precision.SETTINGS["bfloat16 weights"])]
    for name in ("factworld-gpt2", precision.RANDOM):
        edits = 2 if context.tiny else _EDITS
        case = precision.make_case(name, edits, _SAMPLES, tiny=context.tiny)
        with ThreadPoolExecutor() as pool:
            options: list[Mapping[str, str]] = [{}, *(own for _, own in settings)]
            measure = functools.partial(precision.measure, case)
            exact, *others = pool.map(lambda own, measure=measure: measure(**own), options)
        for (setting, _), other in zip(settings, others, strict=True):
            row = {"model": case.name, "arithmetic": precision.label(setting)}
            context.emit(TABLE, row | precision.changes(other, exact))
