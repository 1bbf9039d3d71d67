"""Files of traces, including those of the original, and averages over cases."""

import zipfile

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


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"subject_range": [-1, 2]}, "subject_range is -1 to 2, and the prompt has 5 tokens"),
        ({"subject_range": [1, 99]}, "subject_range is 1 to 99"),
        ({"subject_range": [3, 3]}, "subject_range is 3 to 3"),
        ({"subject_range": 3}, "subject_range="),
        ({"subject_range": [1, 2, 3]}, "subject_range"),
        ({"tokens": [0, 1, 2, 3, 5]}, "it has scores of token 5, and the prompt has 5 tokens"),
        ({"tokens": [0, 1, 2, 3, -1]}, "it has scores of token -1"),
        ({"tokens": [0, 1, 2, 3, 3]}, "scores of 5 tokens and names 4"),
        ({"tokens": [0, 1]}, "scores of 5 tokens and names 2"),
        ({"tokens": [0.5, 1, 2, 3, 4]}, r"tokens\[0\]=0.5: give an integer"),
        ({"scores": np.zeros(5)}, r"its scores are float64 of shape \[5\]"),
        ({"scores": np.zeros((5, 0))}, "its scores are"),
        ({"scores": np.zeros((5, 3), int)}, "its scores are int64"),
        ({"scores": np.full((5, 3), "x")}, "its scores are <U1"),
        ({"scores": np.full((5, 3), np.nan)}, "its scores are not finite"),
        ({"scores": np.full((5, 3), np.inf)}, "its scores are not finite"),
        ({"low_score": np.nan}, "low_score=nan: give a finite number"),
        ({"high_score": [0.5, 0.6]}, "high_score="),
        ({"input_ids": [1, 2]}, "2 input_ids and 5 input_tokens"),
        ({"input_ids": [1, 2, 3, 4, -5]}, "input_ids"),
        ({"input_tokens": 7}, "input_tokens"),
        ({"kind": "residual"}, "kind='residual': give one of hidden, mlp, attn"),
        ({"window": "ten"}, "window='ten': give an integer"),
        ({"answer": 5}, "answer=5: give a text"),
        ({"provenance": "{"}, "provenance ends within a value .*trace the case again"),
        ({"provenance": "[" * 100_000}, "provenance is nested too deeply"),
        ({"provenance": "[1]"}, "provenance is not a JSON object"),
        ({"provenance": 3}, "provenance"),
        ({"correct_prediction": "maybe"}, "correct_prediction='maybe': give true or false"),
    ],
)
def test_a_part_that_is_out_of_range_is_named(tmp_path, changes, match):
    path = tmp_path / "knowledge_7.npz"
    save_trace(path, result(np.full((5, LAYERS), 0.5)))
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays | changes)
    with pytest.raises(ValueError, match=match) as error:
        load_trace(path)
    message = str(error.value)
    assert str(path) in message and message.endswith(".") and "\n" not in message


@pytest.mark.parametrize("content", ["array", "pickle", "text", "empty", "objects", "folder"])
def test_other_files_are_no_traces(tmp_path, content):
    path = tmp_path / "knowledge_7.npz"
    if content == "folder":
        path.mkdir()
    else:
        with open(path, "wb") as file:
            if content == "array":
                np.save(file, np.zeros(3))
            elif content == "objects":
                np.savez(file, scores=np.array([{}, None], object))
            else:
                file.write({"pickle": b"\x80\x04N.", "text": b"not a trace", "empty": b""}[content])
    with pytest.raises((ValueError, FileNotFoundError), match=r"knowledge_7.npz is") as error:
        load_trace(path)
    assert "\n" not in str(error.value)


def test_a_file_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path):
    path = tmp_path / "knowledge_7.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as file,
    ):
        for _ in range(300):
            file.write(bytes(1 << 20))
    with pytest.raises(ValueError, match=r"knowledge_7.npz .*unpacks to 314,572,800 bytes"):
        load_trace(path)


@pytest.mark.parametrize(
    "changes",
    [{"low": np.nan}, {"scores": np.full((5, 3), np.nan)}, {"subject": (4, 9)}, {"tokens": (1, 2)}],
)
def test_a_case_that_is_not_sound_is_not_written(tmp_path, changes):
    case = result(**{"scores": np.zeros((5, LAYERS))} | changes)
    with pytest.raises(ValueError, match=r"the trace of ' Žižek' is not written to .*a.npz: "):
        save_trace(tmp_path / "a.npz", case)
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "knowledge_7.npz"
    save_trace(path, result(np.zeros((5, LAYERS))))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"knowledge_7.npz is damaged"):
        load_trace(path)
    np.savez(path, other=1)
    with pytest.raises(ValueError, match=r"knowledge_7.npz: .* is missing"):
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
