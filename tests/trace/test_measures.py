"""The measure belongs to the runs: nothing can mix probabilities and log-probabilities."""

import dataclasses
import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.models.interventions import Site
from rome_jax.trace import restore, screen, sweep
from rome_jax.trace.averages import average_effects
from rome_jax.trace.best_states import best_states
from rome_jax.trace.corruption import Measure
from rome_jax.trace.facts import FactsError, KnownFact
from rome_jax.trace.folder import RunFolder
from rome_jax.trace.noise import Distribution, Noise
from rome_jax.trace.protocol import NotFiniteScoreError, Protocol, Series, subtract, trace_case
from rome_jax.trace.restore import TraceKind
from rome_jax.trace.result import SkippedCase, TraceResult, save_trace

FACT = KnownFact(3, "Linux", "English", "The mother tongue of Linux is")


@pytest.fixture(scope="module")
def protocol():
    return Protocol(Noise(Distribution.GAUSSIAN, 0.5), samples=3)


def result(measure, screened=False):
    scores = np.full((2, 3), 0.5, np.float32)
    if screened:
        scores[0] = np.nan
    about = {"measure": measure, "known_id": 3, "series": "hidden"}
    return TraceResult(
        scores, 0.1, 0.9, np.arange(2), ("a", "b"), (0, 1), " x", TraceKind.HIDDEN, 1, (0, 1), about
    )


MIXED = result("probability"), result("log_probability")


def test_only_the_start_of_a_trace_takes_a_measure(runs):
    functions = (sweep.trace, sweep.scores, screen.screen, screen.verify, restore.restore)
    for function in functions:
        assert "measure" not in inspect.signature(function).parameters
    assert runs.measure is runs.states.measure is Measure.PROBABILITY
    with pytest.raises(AttributeError):
        runs.measure = Measure.LOG_PROBABILITY


def test_a_protocol_refuses_runs_of_another_measure(runs, protocol):
    other = dataclasses.replace(protocol, measure=Measure.LOG_PROBABILITY)
    for call in (
        lambda: other.sweep(runs, Series.HIDDEN, {}),
        lambda: other.estimate(runs, Series.MLP),
    ):
        with pytest.raises(
            ValueError, match="measure probability and this protocol log_probability"
        ):
            call()
    table = protocol.sweep(runs, Series.HIDDEN, {"measure": "something else"})
    assert table.measure == table.provenance["measure"] == "probability"


def test_results_of_different_measures_are_not_summarized():
    with pytest.raises(ValueError, match=r"several sorts \(kind, measure, window, layers\)"):
        average_effects(MIXED)
    with pytest.raises(ValueError, match=r"several sorts \(kind, measure, window, layers\)"):
        best_states(MIXED)
    with pytest.raises(ValueError, match="the traces have different measures"):
        subtract(*MIXED)
    assert average_effects([MIXED[0], result(None)]).num_cases == 2, "the original's measure"


@pytest.mark.needs("matplotlib")
def test_results_of_different_measures_are_not_drawn_on_one_scale():
    from rome_jax.plots.tracing import heatmaps

    with pytest.raises(ValueError, match="answers or measures: give traces of one prompt"):
        heatmaps(MIXED)


def test_a_folder_takes_cases_of_its_own_measure_only(tmp_path, model, protocol):
    folder = RunFolder.open(tmp_path, {"measure": "log_probability"})
    with pytest.raises(ValueError, match="is for the measure log_probability"):
        folder.run(model, [FACT], protocol, [Series.HIDDEN])
    save_trace(folder.path(FACT, Series.HIDDEN), MIXED[0])
    with pytest.raises(ValueError, match=r"knowledge_3.npz has measure 'probability' instead of"):
        folder.results([FACT], Series.HIDDEN)
    save_trace(folder.path(FACT, Series.HIDDEN), MIXED[1])
    assert len(folder.results([FACT], Series.HIDDEN)) == 1


def test_averages_of_screened_cases_are_refused():
    with pytest.raises(ValueError, match="a score of the case with the answer ' x' is NaN"):
        average_effects([result("probability", screened=True)])


def test_the_number_of_a_fact_is_no_path():
    with pytest.raises(FactsError, match=r"known_id='\.\./\.\./x': give an integer"):
        dataclasses.replace(FACT, known_id="../../x")


def test_scores_that_are_not_numbers_skip_the_case(model, protocol):
    params = dict(model.params) | {
        "ln_f": {name: jnp.full_like(x, jnp.nan) for name, x in model.params["ln_f"].items()}
    }
    broken = model.replace(params=params)
    with pytest.raises(NotFiniteScoreError, match="'The mother tongue of Linux is' are not finite"):
        protocol.begin(broken, sweep.TracePrompt.of(model.tokenizer, FACT.prompt, FACT.subject))
    ((_, case),) = trace_case(broken, FACT, protocol, [Series.HIDDEN], {})
    assert isinstance(case, SkippedCase) and "are not finite" in case.reason


@pytest.mark.parametrize(
    "changes",
    [{"samples": 0}, {"samples": 2.5}, {"window": 0}, {"screen": -1}, {"chunk_columns": "many"}],
)
def test_settings_out_of_range_are_named(protocol, changes):
    ((name, _),) = changes.items()
    with pytest.raises(ValueError, match=f"^{name}=.*: give "):
        dataclasses.replace(protocol, **changes)


def test_work_without_bound_is_refused(model, prompt, runs):
    with pytest.raises(ValueError, match=r"samples=\d+ needs about .* GB of memory"):
        Protocol(Noise(Distribution.GAUSSIAN, 0.5), samples=10**12).begin(model, prompt)
    whole = sweep.trace(runs, severed=(Site.MLP_OUT,))
    tokens = np.arange(len(prompt.ids))
    unbounded = sweep.plan_chunks(
        prompt, tokens.repeat(3), np.tile(np.arange(3), len(tokens)), 3, chunk_columns=10**12
    )
    assert max(chunk.num_columns for chunk in unbounded) <= 8192
    huge = sweep.trace(runs, window=10**12, severed=(Site.MLP_OUT,))
    np.testing.assert_array_equal(huge, whole)


@pytest.mark.parametrize(
    ("text", "subject", "target"),
    [
        (None, "Linux", None),
        ("Linux \udc80 is", "Linux", None),
        ("Linux is", 5, None),
        ("Linux is", "Linux", 5),
    ],
)
def test_a_prompt_that_is_no_text_is_refused(model, text, subject, target):
    with pytest.raises(ValueError, match=r"^(prompt|subject|target)=.*: give "):
        sweep.TracePrompt.of(model.tokenizer, text, subject, target=target)
