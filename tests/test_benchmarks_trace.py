"""Tests that both sides of the benchmark of tracing compute the same table, and of its count of the work."""

import functools

import jax
import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from benchmarks import trace as benchmark
from benchmarks import trace_case
from rome_jax.models.config import Family
from rome_jax.trace import sweep
from rome_jax.trace.restore import TraceKind
from tests.models.checkpoints import FAMILIES, random_params, tiny_config

pytestmark = pytest.mark.parity

LAYERS, SAMPLES = 12, 4  # windows of ten layers are cut at both ends of the model
COLUMNS = 20  # small enough that a table takes several programs


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Runs torch on one thread, since matrix products this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def setup():
    """Returns a function that builds a small random model of a family, with a prompt and noise, on both sides."""

    @functools.cache
    def make(family):
        config = tiny_config(family, num_layers=LAYERS)
        generator = np.random.default_rng(3)
        prompt = benchmark.make_prompt(generator.integers(config.vocab_size, size=benchmark.PROMPT))
        noise = generator.standard_normal((SAMPLES, 3, config.width)).astype(np.float32)
        return benchmark.Setup.of(random_params(config), config, prompt, noise)

    return make


@pytest.mark.parametrize(
    ("family", "kind"), [*(("gpt2", kind) for kind in TraceKind), ("gptj", TraceKind.ATTN)]
)
def test_torch_and_jax_give_one_table(setup, family, kind):
    table, corrupted = setup(family).jax_table(kind, COLUMNS)
    places = benchmark.every_place(benchmark.PROMPT, LAYERS)
    wanted = setup(family).torch_scores(kind, places).reshape(table.shape)
    np.testing.assert_allclose(table, wanted, rtol=0, atol=1e-6)
    assert np.abs(wanted - corrupted).max() > 1e-3  # otherwise any two tables would agree


def count_by_hand(family, width, mlp_width, vocab_size):
    """Counts the operations for two layers, two noise samples, and three tokens of which token 1 is the subject.

    There are six restorations, and the two at token 0 change nothing. The other four start at the last layer and run in
    one program, with 2 + 2 columns for token 1 and 1 + 1 for token 2, padded to the 16 columns of a chunk.
    """
    layer = 2 * (4 * width * width + 2 * width * mlp_width)
    head = 2 * width * vocab_size
    keys_values = 2 * width * width * {Family.GPT2: 3, Family.GPTJ: 2}[family]
    runs = 3 * (8 * 2 * layer + head)  # one clean and two corrupted runs of 3 columns, padded to 8
    restorations = 2 * (16 * keys_values + 4 * layer + 4 * head)
    return runs + restorations, 6 * 3 * 3 * (2 * layer + head)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_count_of_work_is_that_by_hand(family):
    config = tiny_config(family, num_layers=2)
    prompt = benchmark.make_prompt(np.arange(3), (1, 2))
    work = benchmark.count_work(config, prompt, 2, TraceKind.HIDDEN, chunk_columns=16)
    assert (work.rome_jax, work.torch) == count_by_hand(
        config.family, config.width, config.mlp_width, config.vocab_size
    )


@pytest.mark.parametrize("kind", TraceKind)
def test_the_programs_counted_are_those_that_run(setup, kind, monkeypatch):
    run, setup = [], setup("gpt2")

    def watched(params, config, runs, places, **options):
        run.append((int(places.start), len(places.owner), len(places.token)))
        return np.zeros(len(places.token), np.float32)

    monkeypatch.setattr(sweep, "restore", watched)
    setup.jax_table(kind, COLUMNS)
    counted = trace_case.programs(setup.model.config, setup.prompt, kind, COLUMNS)
    assert counted == run
    assert len({start for start, *_ in run}) > 1


def test_it_runs_from_the_command_line(monkeypatch, capsys):
    config = tiny_config("gpt2", num_layers=LAYERS)
    monkeypatch.setenv(
        "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
    )  # restored after the test, because main sets it
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # keeps the programs of other tests
    monkeypatch.setitem(benchmark.MODELS, "tiny", "tiny")
    monkeypatch.setattr(benchmark, "PRESETS", {"tiny": config})
    monkeypatch.setattr(benchmark, "ceiling", lambda *_: 1.0)
    monkeypatch.setattr(benchmark, "torch_ceiling", lambda *_: 1.0)
    arguments = f"--models tiny --kinds hidden --samples {SAMPLES} --chunk_columns {COLUMNS}"
    monkeypatch.setattr("sys.argv", f"trace {arguments} --naive_fraction 0.25".split())
    benchmark.main()
    printed = capsys.readouterr().out
    work = benchmark.count_work(
        config, benchmark.make_prompt(np.arange(8)), SAMPLES, TraceKind.HIDDEN, COLUMNS
    )
    assert "hidden, PyTorch, 24 of 96 scaled" in printed
    assert f"{work.rome_jax / work.torch:.1%}" in printed
    assert printed.count("largest difference of the tables") == 1


@pytest.mark.parametrize("flags", ["--naive_fraction 0", "--samples 0", "--chunk_columns 0"])
def test_a_flag_out_of_range_is_an_error_that_names_it(flags, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["trace", *flags.split()])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert flags.replace(" ", "=") in capsys.readouterr().err.replace("=0.0", "=0")
