"""Files of traces, including those of the original, and averages over cases."""

import numpy as np
import pytest

from rome_jax.trace.averages import TokenClass, average_effects
from rome_jax.trace.restore import TraceKind
from rome_jax.trace.result import SkippedCase, TraceResult, load_trace, save_trace

LAYERS = 3


def result(
    scores, subject=(1, 4), low=0.1, high=0.9, kind=TraceKind.HIDDEN, tokens=None, window=10
):
    scores = np.asarray(scores, np.float32)
    length = len(scores) if tokens is None else 8
    return TraceResult(
        scores,
        low,
        high,
        np.arange(length),
        tuple(f" token{i}" for i in range(length)),
        subject,
        " Žižek",
        kind,
        window,
        tuple(range(length)) if tokens is None else tokens,
        {"model": "tiny", "seed": 0},
    )


@pytest.mark.parametrize("kind", TraceKind)
def test_a_saved_case_loads_unchanged(tmp_path, kind):
    saved = result(np.random.default_rng(0).random((5, LAYERS)), kind=kind)
    save_trace(tmp_path / "cases" / "knowledge_0.npz", saved)
    loaded = load_trace(tmp_path / "cases" / "knowledge_0.npz")
    for name in ("scores", "input_ids"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(saved, name))
    for name in "low_score high_score input_tokens subject_range answer kind window tokens".split():
        assert getattr(loaded, name) == getattr(saved, name), name
    assert loaded.provenance == saved.provenance
    assert [path.name for path in (tmp_path / "cases").iterdir()] == ["knowledge_0.npz"]


def test_files_have_the_originals_keys_and_its_files_load(tmp_path):
    """The original writes no tokens and no provenance, and an empty kind for hidden states."""
    save_trace(tmp_path / "ours.npz", result(np.zeros((8, LAYERS))))
    keys = (
        "scores low_score high_score input_ids input_tokens subject_range answer window "
        "correct_prediction kind"
    ).split()
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in keys}
    assert arrays["kind"] == "" and arrays["correct_prediction"]
    np.savez(tmp_path / "theirs.npz", **arrays | {"input_ids": arrays["input_ids"][None]})
    loaded = load_trace(tmp_path / "theirs.npz")
    assert loaded.kind is TraceKind.HIDDEN and loaded.tokens == tuple(range(8))
    assert loaded.input_ids.shape == (8,) and loaded.provenance == {}
    np.savez(tmp_path / "wrong.npz", correct_prediction=False)
    assert isinstance(load_trace(tmp_path / "wrong.npz"), SkippedCase)


def test_a_skipped_case_keeps_its_reason(tmp_path):
    case = SkippedCase("the clean answer is 'rowing'", {"known_id": 3})
    save_trace(tmp_path / "a.npz", case)
    assert load_trace(tmp_path / "a.npz") == case


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "knowledge_7.npz"
    save_trace(path, result(np.zeros((5, LAYERS))))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"knowledge_7.npz is damaged"):
        load_trace(path)
    np.savez(path, other=1)
    with pytest.raises(ValueError, match=r"knowledge_7.npz is no trace"):
        load_trace(path)
    with pytest.raises(FileNotFoundError):
        load_trace(tmp_path / "absent.npz")


# Averages


def test_averages_pool_tokens_and_prompts():
    one = result(0.1 + np.arange(24).reshape(8, LAYERS) / 100)  # effects 0, 0.01, ...
    two = result(np.full((5, LAYERS), 0.3), subject=(0, 1), low=0.2, high=0.6)
    averages = average_effects([one, SkippedCase("wrong"), two])
    assert (averages.num_cases, averages.num_skipped) == (2, 1)
    assert averages.clean == pytest.approx(0.75) and averages.corrupted == pytest.approx(0.15)
    assert averages.total == pytest.approx(0.6)
    assert averages.total_band == pytest.approx(1.96 * 0.2 / np.sqrt(2))
    counts = {place: average.count for place, average in averages.indirect.items()}
    assert list(counts.values()) == [2, 1, 2, 2, 4, 2]  # the second prompt has no middle
    first = averages.indirect[TokenClass.FIRST_SUBJECT]  # (0.03, 0.04, 0.05) and 0.1 everywhere
    np.testing.assert_allclose(first.mean, [0.065, 0.07, 0.075], rtol=1e-5)
    np.testing.assert_allclose(
        first.band, 1.96 * np.array([0.035, 0.03, 0.025]) / 2**0.5, rtol=1e-5
    )
    assert first.peak == (2, pytest.approx(0.075))
    further = averages.indirect[TokenClass.FURTHER]
    np.testing.assert_allclose(further.mean[0], (0.15 + 0.18 + 0.1 + 0.1) / 4, rtol=1e-5)


def test_a_subject_at_the_end_of_the_prompt_has_no_token_after_it():
    averages = average_effects([result(np.zeros((4, LAYERS)), subject=(1, 4))])
    absent = (TokenClass.FIRST_SUBSEQUENT, TokenClass.FURTHER)
    for place, average in averages.indirect.items():
        assert (average.count == 0) == (place in absent)
        assert np.isnan(average.mean).all() == (place in absent)
    assert averages.indirect[TokenClass.LAST].count == 1, "it is also the last subject token"


def test_a_single_restored_token_is_averaged_in_its_class():
    averages = average_effects([result(np.full((1, LAYERS), 0.4), tokens=(3,))])
    counts = [average.count for average in averages.indirect.values()]
    assert counts == [0, 0, 1, 0, 0, 0]


def test_averages_need_traced_cases_of_one_sort():
    with pytest.raises(ValueError, match="none of 1 cases was traced"):
        average_effects([SkippedCase("wrong")])
    cases = [result(np.zeros((5, LAYERS)), kind=kind) for kind in (TraceKind.HIDDEN, TraceKind.MLP)]
    with pytest.raises(ValueError, match="several sorts"):
        average_effects(cases)
