"""Wall time with compilation apart."""

import time
from types import SimpleNamespace

import jax
import jax.monitoring
import jax.numpy as jnp
import pytest

from rome_jax.evaluation import batch
from rome_jax.evaluation.record_types import DatasetName
from rome_jax.evaluation.timing import Stopwatch

TRACE, COMPILE = (f"/jax/core/compile/{step}_duration" for step in ("trace", "backend_compile"))


def test_only_the_first_run_of_a_program_compiles():
    program = jax.jit(lambda x: jnp.sin(x) * 3 + jnp.cos(x))
    x = jnp.arange(5.0)
    watches = []
    for _ in range(2):
        with Stopwatch() as watch:
            program(x).block_until_ready()
        watches.append(watch)
    first, second = watches
    assert first.seconds > first.compile_seconds > 0 == second.compile_seconds
    assert second.run_seconds == second.seconds > 0
    assert first.run_seconds == first.seconds - first.compile_seconds > 0


def test_steps_that_overlap_count_once_and_other_events_not_at_all():
    with Stopwatch() as watch:
        time.sleep(0.3)
        jax.monitoring.record_event_duration_secs(TRACE, 0.05)  # inside of the next one
        jax.monitoring.record_event_duration_secs(COMPILE, 0.25)
        jax.monitoring.record_event_duration_secs("/jax/checkpoint/write", 0.02)
    assert watch.compile_seconds == pytest.approx(0.25, abs=0.04)
    assert watch.run_seconds >= 0.04


def test_the_time_of_a_case_is_its_share_of_the_edits_without_compilation(monkeypatch):
    def compute(requests, progress):
        time.sleep(0.06)
        jax.monitoring.record_event_duration_secs(COMPILE, 0.04)

    editor = SimpleNamespace(compute=compute, model=None)
    records = [SimpleNamespace(request=None, case_id=i, requested_rewrite={}) for i in range(2)]
    monkeypatch.setattr(batch, "evaluate_records", lambda *_, **__: time.sleep(0.5) or [{}, {}])
    cases = batch.edit_batch(editor, DatasetName.CF, records, {0: {}, 1: {}}, {})
    assert [case["time"] for case in cases] == [cases[0]["time"]] * 2
    assert 0.009 < cases[0]["time"] < 0.25, "neither compilation nor scoring counts"


def test_a_step_that_began_before_the_block_counts_from_its_beginning():
    with Stopwatch() as watch:
        jax.monitoring.record_event_duration_secs(COMPILE, 60.0)
    assert watch.compile_seconds <= watch.seconds < 60


def test_stopwatches_nest_and_stop_listening():
    with Stopwatch() as outer, Stopwatch() as inner:
        jax.jit(lambda x: x * 7 + 1)(jnp.ones(2)).block_until_ready()
    assert 0 < inner.compile_seconds <= outer.compile_seconds
    before = inner.compile_seconds
    jax.jit(lambda x: x * 8 + 1)(jnp.ones(2)).block_until_ready()
    assert inner.compile_seconds == before
    with pytest.raises(RuntimeError), Stopwatch() as broken:
        raise RuntimeError
    assert broken.seconds > 0
