"""The parts of the report on small untrained models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.request import EditRequest
from rome_jax.edit.delta import apply_delta, dense
from rome_jax.models.generate import generate_text
from rome_jax.models.interventions import Delta, DenseUpdate, Leaf, LowRankUpdate, Part
from rome_jax.terminal import edit_report
from rome_jax.terminal.edit_report import Comparison, Outcome, Prompts, present_answer

REQUEST = EditRequest("{} plays the sport of", "Gothulf Punby", "tennis")


@pytest.fixture(scope="module")
def comparison(golden_model):
    model = golden_model("gpt2")
    left, right = jax.random.split(jax.random.key(0))
    update = LowRankUpdate(
        Leaf.MLP_DOWN,
        jnp.array(1),
        jax.random.normal(left, (model.config.mlp_width, 1)),
        jax.random.normal(right, (model.config.width, 1)),
    )
    return Comparison(model, Delta((update,)))


def words(model, count):
    """Returns a text of `count` tokens."""
    text = " the" * count
    assert len(model.tokenizer(text)["input_ids"]) == count
    return text


def test_continuations_are_those_of_the_model_and_of_the_merged_one(comparison):
    model = comparison.model
    edited = model.replace(params=apply_delta(model.params, comparison.delta))
    prompts = ["The file", "A new window is"]
    for actual, of in zip(comparison.continuations(prompts), (model, edited), strict=True):
        texts = generate_text(of, prompts, max_new_tokens=edit_report.CONTINUATION)
        end = model.tokenizer.eos_token
        expected = [t[len(p) :].split(end)[0] for p, t in zip(prompts, texts, strict=True)]
        assert actual == expected


def test_a_dense_delta_is_merged_for_every_part_of_the_report(comparison, capsys):
    """A factored edit and the same edit as a dense matrix give the same report."""
    (update,) = comparison.delta.updates
    whole = DenseUpdate(update.leaf, Part.KERNEL, update.layer, dense(update))
    merged = Comparison(comparison.model, Delta((whole,)))
    prompts, targets = ["The file", "A new window is"], ["open", "here now"]
    for one, other in zip(
        comparison.probabilities(prompts, targets),
        merged.probabilities(prompts, targets),
        strict=True,
    ):
        assert one == pytest.approx(other, rel=1e-4)
    assert merged.continuations(prompts) == comparison.continuations(prompts)
    shown = []
    for each in (comparison, merged):
        edit_report.print_lens(each, "The file")
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]


@pytest.mark.parametrize(("kind", "rank"), [("FT-L", "dense"), ("KN", "rank 1")])
def test_the_report_names_what_a_method_changed(comparison, capsys, kind, rank):
    (update,) = comparison.delta.updates
    if kind == "FT-L":
        update = DenseUpdate(update.leaf, Part.KERNEL, update.layer, dense(update))
    edit = Comparison(comparison.model, Delta((update,)))
    request = EditRequest("{} is", "The file", "open", "here")
    edit_report.print_report(edit, request, Prompts(), kind)
    kernel = comparison.model.params["blocks"]["mlp"]["down"]["kernel"][1]
    ratio = float(jnp.linalg.norm(dense(update)) / jnp.linalg.norm(kernel))
    line = capsys.readouterr().out.splitlines()[2]
    assert line == f"{kind:7s} mlp/down of layer 1: ‖ΔW‖/‖W‖ {ratio:.3f}, {rank}"


def test_continuations_end_with_the_context(comparison):
    model = comparison.model
    context = model.config.context_length
    almost, full = words(model, context - 1), words(model, context)
    before, _ = comparison.continuations([almost, full])
    assert len(model.tokenizer(before[0])["input_ids"]) <= 1
    assert before[1] == edit_report.NO_ROOM
    assert comparison.continuations([full])[1] == [edit_report.NO_ROOM]
    with pytest.raises(ValueError, match=r"^prompt 1, .*more than the model's context"):
        comparison.continuations(["The file", words(model, context + 1)])


def test_an_unknown_subject_or_model_has_no_known_prompts():
    stranger = EditRequest(REQUEST.prompt, "Barack Obama", "tennis")
    assert edit_report.known_prompts("factworld-gpt2", stranger) == Prompts()
    assert edit_report.known_prompts("gpt2-xl", REQUEST) == Prompts()
    known = edit_report.known_prompts("factworld-gpt2", REQUEST)
    assert len(known.paraphrases) == 5
    assert known.neighbors and REQUEST.text not in known.neighbors


@pytest.mark.parametrize(
    ("continuation", "answer"),
    [(" rowing. The", "rowing"), (' "Paris", in', "Paris"), (" ... no", "..."), ("", "(nothing)")],
)
def test_present_answer_is_the_first_word(continuation, answer):
    assert present_answer(continuation) == answer


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        (" rowing.", " tennis.", "What changed: about Gothulf Punby, the model now says 'tennis'"),
        (" rowing.", " judo.", "Not changed: about Gothulf Punby, the model says 'judo', not 'te"),
        (" tennis.", " tennis.", "Not changed: about Gothulf Punby, the model said 'tennis' befo"),
    ],
)
def test_the_summary_states_what_changed_and_what_did_not(capsys, before, after, changed):
    paraphrases = Outcome(5, 0, 4, 5, 1, 0.9, 0.1)
    neighbors = Outcome(3, 0, 1, 3, 2, 0.98, 0.65)
    edit_report._print_summary(REQUEST, "rowing", before, after, paraphrases, neighbors)
    first, second = capsys.readouterr().out.strip().splitlines()
    assert first.startswith(changed)
    assert first.endswith("on 4 of 5 paraphrases (before: 0).")
    assert second == (
        "What did not: 2 of 3 neighbors still prefer 'rowing' (before: 3); "
        "its mean probability fell from 0.98 to 0.65."
    )


def test_summary_without_neighbors(capsys):
    nothing = Outcome.of(np.zeros((0, 4)))
    edit_report._print_summary(REQUEST, "rowing", " rowing", " tennis", nothing, nothing)
    first, second = capsys.readouterr().out.strip().splitlines()
    assert first.endswith("instead of 'rowing'.")
    assert second == (
        "What did not: unknown, because there are no neighbors; name some with --neighbor."
    )


def test_an_outcome_counts_preferences_and_averages_the_true_target():
    table = np.array([[0.1, 0.7, 0.8, 0.2], [0.0, 0.3, 0.9, 0.3], [0.5, 0.6, 0.4, 0.5]])
    outcome = Outcome.of(table)
    assert (outcome.count, outcome.new_before, outcome.new_after) == (
        3,
        1,
        2,
    )  # a tie is no preference
    assert (outcome.kept_before, outcome.kept_after) == (2, 1)
    assert outcome.true_before == pytest.approx(0.7)
    assert outcome.true_after == pytest.approx(1 / 3)


def test_a_probability_that_is_not_a_number_counts_as_neither():
    outcome = Outcome.of(np.array([[0.1, np.nan, 0.8, np.nan], [0.1, 0.9, 0.8, np.nan]]))
    assert (outcome.new_before, outcome.new_after) == (0, 0)
    assert (outcome.kept_before, outcome.kept_after) == (2, 0)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (0.98, 0.65, "fell from 0.98 to 0.65"),
        (0.2, 0.3, "rose from 0.20 to 0.30"),
        (0.981, 0.979, "stayed at 0.98"),
    ],
)
def test_a_change_is_described_in_words(before, after, words):
    assert edit_report._change(before, after) == words


def test_talk_survives_a_line_that_is_too_long_and_ends_on_ctrl_c(comparison, capsys):
    lines = iter([words(comparison.model, comparison.model.config.context_length + 1), "The file"])

    def read(_):
        for line in lines:
            return line
        raise KeyboardInterrupt

    edit_report.talk(comparison, read)
    output = capsys.readouterr().out
    assert "more than the model's context" in output
    assert f"layer {comparison.model.config.num_layers - 1:2d}" in output
