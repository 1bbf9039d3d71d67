"""Tests that both sides of the benchmark of evaluation compute the same scores, and of its count of the work."""

import re

import jax
import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from benchmarks import evaluate as benchmark
from benchmarks import evaluate_cases, evaluate_memory, evaluate_torch
from benchmarks.evaluate_sides import Run, Setup, Stages, forward_work
from rome_jax.data.request import EditRequest
from rome_jax.edit.methods import rome
from rome_jax.evaluation import scoring
from rome_jax.evaluation.datasets import CounterFactRecord
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate
from tests.models.checkpoints import random_params, tiny_config

pytestmark = pytest.mark.parity

CONFIG = tiny_config("gpt2", vocab_size=200, context_length=64)
LAYER = 1


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Runs torch on one thread, since matrix products this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def setup():
    return Setup.of(random_params(CONFIG), CONFIG, LAYER, chunk_size=4)


@pytest.fixture(scope="module")
def records():
    return evaluate_cases.make_records(4, CONFIG.vocab_size)


@pytest.fixture(scope="module")
def ran(setup, records):
    return setup.run_jax(records)


def words(text):
    return len(text.split())


def test_records_are_as_long_as_those_of_counterfact():
    records = evaluate_cases.make_records(400, 50_257)
    prompts = [p for r in records for p in (*r.neighborhood_prompts, *r.attribute_prompts)]
    assert {len(r.paraphrase_prompts) for r in records} == {2}
    assert {len(r.neighborhood_prompts) for r in records} == {10}
    assert {words(prompt) for prompt in prompts} == {7, 8, 9, 10}
    assert {words(r.request.subject) for r in records} == {2, 3, 4}
    paraphrases = [words(p) for r in records for p in r.paraphrase_prompts]
    assert (min(paraphrases), max(paraphrases)) == (15 + 7, 20 + 10)
    for target in ("target_new", "target_true"):
        several = np.mean([words(getattr(r.request, target)) == 2 for r in records])
        assert several == pytest.approx(0.25, abs=0.07)
    assert len(set(prompts)) == len(prompts)
    assert evaluate_cases.make_records(3, 50_257) == records[:3]


def test_words_are_tokens():
    tokenizer = evaluate_cases.word_tokenizer(50)
    encoded = tokenizer("7 8 31", add_special_tokens=False, return_offsets_mapping=True)
    assert encoded["input_ids"] == [7, 8, 31]
    assert encoded["offset_mapping"] == [(0, 1), (2, 3), (4, 6)]


def test_torch_and_jax_give_the_same_scores(setup, records, ran):
    kept = {name: tensor.clone() for name, tensor in setup.twin.state_dict().items()}
    wanted = Run.joined([setup.run_torch(records[index]) for index in (0, 3)])
    assert wanted.before.shape == (2, 23, 2)
    np.testing.assert_allclose(ran.before[[0, 3]], wanted.before, rtol=1e-5)
    np.testing.assert_allclose(ran.after[[0, 3]], wanted.after, rtol=1e-5)
    moved = np.abs(wanted.after - wanted.before).max(axis=(1, 2))
    assert moved.min() > 0.01  # otherwise any two edits would agree
    for name, tensor in setup.twin.state_dict().items():
        assert torch.equal(tensor, kept[name]), name


def test_torch_scores_as_by_hand(setup):
    """Padding and targets of other lengths in the batch do not affect the NLL of a target."""
    rows = evaluate_torch.Rows.of([((5, 6, 7), (8, 9)), ((5,), (4,))], torch.device("cpu"))
    found = evaluate_torch.nlls(setup.twin, rows)

    def nll(prompt, token):
        with torch.no_grad():
            logits = setup.twin(torch.tensor([prompt])).logits[0, -1]
        return -logits.log_softmax(-1)[token].item()

    wanted = [(nll([5, 6, 7], 8) + nll([5, 6, 7, 8], 9)) / 2, nll([5], 4)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_count_of_scoring_is_that_by_hand(setup, monkeypatch):
    """Three prompts fit in one row of 64 columns and run twice.

    Six columns are read, padded to 8, and the positions of the logits are padded to 16. The last of three layers runs
    only for the columns that are read, and computes keys and values for all columns.
    """
    request = EditRequest("{} 3", "1 2", "4", "5 6")
    record = CounterFactRecord(request, ("7 8 9",), ("7 8",))
    update = LowRankUpdate(
        Leaf.MLP_DOWN, np.full(1, LAYER), np.zeros((1, 40, 1)), np.zeros((1, 18, 1))
    )

    def unscored(params, config, batch, read, at, tokens, deltas):
        return np.zeros(tokens.shape), np.zeros(tokens.shape, bool)

    monkeypatch.setattr(rome, "compute_deltas", lambda *_, **__: Delta((update,)))
    monkeypatch.setattr(scoring, "_score", unscored)
    layer, head = 2 * (4 * 18 * 18 + 2 * 18 * 40), 2 * 18 * 200
    keys_and_values = 2 * 3 * 18 * 18  # GPT-2's fused projection also computes queries
    work = setup.run_jax([record]).work
    assert work == Stages(0, 2 * (64 * (2 * layer + keys_and_values) + 8 * layer + 16 * head))


def test_the_count_of_pytorchs_scoring_is_that_by_hand(setup, records):
    request = records[0].request
    longest = max(map(words, records[0].paraphrase_prompts))
    longest += max(words(request.target_new), words(request.target_true))
    work = setup.run_torch(records[0]).work
    assert work.scoring == 2 * forward_work(CONFIG, *[46 * longest] * 3)


def test_runs_are_joined_in_their_order():
    runs = [
        Run(np.full((count, 1, 2), count), np.zeros((count, 1, 2)), Stages(1, count), Stages(2, 0))
        for count in (1, 2)
    ]
    joined = Run.joined(runs)
    assert joined.before[:, 0, 0].tolist() == [1, 2, 2]
    assert (joined.seconds, joined.work) == (Stages(2, 3), Stages(4, 0))


@pytest.fixture
def tiny(monkeypatch):
    """Replaces the models of both benchmarks by one tiny model."""
    sizes, layers = {"tiny": CONFIG}, {"tiny": LAYER}
    for module in (benchmark, evaluate_memory):
        monkeypatch.setattr(module, "PRESETS", sizes)
        monkeypatch.setattr(module, "EDIT_LAYERS", layers)
    monkeypatch.setattr(
        benchmark.transformer, "init_params", lambda config, _: random_params(config)
    )
    monkeypatch.setattr(benchmark, "ceiling", lambda *_: 1.0)
    monkeypatch.setattr(benchmark, "torch_ceiling", lambda *_: 1.0)
    monkeypatch.setenv(
        "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
    )  # restored after the test, because main sets it
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # keeps the programs of other tests


def test_it_runs_from_the_command_line(tiny, ran, monkeypatch, capsys):
    arguments = "--models tiny --cases 4 --torch_cases 2 --batch_size 4 --chunk_size 4"
    monkeypatch.setattr("sys.argv", f"evaluate {arguments} --peak_tflops 0.001".split())
    benchmark.main()
    printed = capsys.readouterr().out
    assert "tiny, float32, edit layer 1: 4 cases of 23 prompts with two targets" in printed
    for label in ("PyTorch, 2 of 4 cases", "rome_jax, 4, first pass", "rome_jax, 4 cases"):
        assert re.search(rf"^{label} .*\n  edit .*%\n  scoring .*%\n", printed, re.M), label
    assert "MFU" in printed
    assert re.search(r"cases per hour: PyTorch \d+, rome_jax \d+; compilation", printed)
    errors = re.search(r"before the edits (\S+), after them (\S+);", printed)
    assert max(map(float, errors.groups())) < 1e-4
    seconds = [float(line) for line in re.findall(r"^rome_jax, 4 cases +(\S+)", printed, re.M)]
    hourly = float(re.search(r"rome_jax (\d+);", printed)[1])
    assert hourly == pytest.approx(3600 / seconds[0], rel=0.2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--cases 0", "--cases=0 must be at least 1."),
        ("--chunk_size 0", "--chunk_size=0 must be at least 1."),
        ("--cases 2 --torch_cases 3", "--torch_cases=3 must be at most --cases=2."),
        ("--peak_tflops 0", "--peak_tflops=0.0 must be positive."),
    ],
)
def test_a_flag_out_of_range_is_an_error_that_names_it(flags, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["evaluate", *flags.split()])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert message in capsys.readouterr().err


def test_the_table_of_memory(tiny, records, monkeypatch, capsys):
    flags = "--models tiny --dtypes float32 --batch_sizes 1 4 --chunk_size 2"
    monkeypatch.setattr("sys.argv", f"evaluate_memory {flags}".split())
    monkeypatch.setattr(evaluate_memory, "GIB", 1)
    evaluate_memory.main()
    header, rule, row = capsys.readouterr().out.splitlines()[-3:]
    assert header == "| model | dtype | weights | scoring 1 case | scoring 4 cases | 2 edits |"
    assert rule.count("---") == 6
    name, dtype, *sizes = row.strip("| ").split(" | ")
    weights, one, four, edits = map(float, sizes)
    assert (name, dtype) == ("tiny", "float32")
    assert weights == 4 * sum(leaf.size for leaf in jax.tree.leaves(random_params(CONFIG)))
    # In addition to the weights, at least the logits of 23 prompts, and the MLP keys of 4 rows of 64 columns.
    assert weights + 23 * 200 * 4 < one < four
    assert four > weights + 4 * 4 * 64 * 40 * 4
    assert edits > weights


def test_a_batch_of_no_cases_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", "evaluate_memory --batch_sizes 8 0".split())
    with pytest.raises(SystemExit):
        evaluate_memory.main()
    assert "must be at least 1, not 0" in capsys.readouterr().err
