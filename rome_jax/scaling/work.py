"""Floating-point operations, bytes, and estimated seconds of each job, counted from shapes.

Only matrix products are counted; a token takes two operations per weight. The seconds are estimates:

    max(operations / (peak rate · efficiency), bytes / (bandwidth · efficiency)) / devices + work of the host

The efficiencies are those that `docs/gpu.md` measured on an H200, whose chip is that of an H100.

Axes: L layers, D width, F MLP width, V vocabulary, R rows, S suffix columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.spread_config import MEMITConfig
from rome_jax.scaling.memory import Lengths
from rome_jax.scaling.setup import Setup

# A typical request, and that of the benchmarks; `Lengths()` covers longer ones, for memory.
TYPICAL = Lengths(prefix=16, suffix=5, prompt=8)
CASE_TOKENS = 260  # of a CounterFact record: 23 prompts with two targets each, with padding
CASE_PLACES = 57  # scored tokens of these targets
ARTICLE_TOKENS = 500  # assumed mean of a Wikipedia article, cut at the model's context
_STATISTICS_BATCH = 8192  # tokens per batch and device
_FLOAT64 = 8


@dataclasses.dataclass(frozen=True)
class Machine:
    """Rates of a machine. The defaults are an H100 SXM and its assumed host.

    Attributes:
      name: Name in tables.
      rates: Peak operations per second of matrix products, by dtype: NVIDIA's figures without sparsity.
      bandwidth: Bytes per second of the device's memory.
      forward, optimizing: Share of the peak rate that forward passes and the optimization of v* reach, by dtype.
      streaming: Share of the bandwidth that reading weights reaches.
      host_bandwidth: Bytes per second that one process reads or writes on the host.
      disk: Bytes per second of reading files.
      devices: Number of devices that requests and rows are split over.
      parallel: Share of linear speedup with several devices.
    """

    name: str = "H100"
    rates: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"float32": 67e12, "bfloat16": 989e12, "float16": 989e12}
    )
    bandwidth: float = 3.35e12
    forward: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"float32": 0.5, "bfloat16": 0.4, "float16": 0.4}
    )
    optimizing: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"float32": 0.4, "bfloat16": 0.2, "float16": 0.2}
    )
    streaming: float = 0.6
    host_bandwidth: float = 12e9
    disk: float = 2e9
    devices: int = 1
    parallel: float = 0.9

    @property
    def speedup(self) -> float:
        """How many times faster the devices are than one."""
        return self.devices * self.parallel if self.devices > 1 else 1.0


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of one job.

    Attributes:
      job: What is done.
      operations: Floating-point operations on the devices.
      read: Bytes that the devices read and write.
      host: Bytes that the host reads and writes, which no device shares.
      optimizes: Whether the operations are those of an optimization.
      disk: Bytes read from files.
      divides: Whether requests or rows can be split over devices.
    """

    job: str
    operations: float
    read: float
    host: float = 0.0
    optimizes: bool = False
    disk: float = 0.0
    divides: bool = True

    def seconds(self, machine: Machine, dtype: str) -> float:
        """Estimates the time of the job.

        Args:
          machine: The machine.
          dtype: dtype of the weights.

        Example:
          >>> Work("product", 33.5e12, 0.0).seconds(Machine(), "float32")
          1.0
        """
        share = (machine.optimizing if self.optimizes else machine.forward)[dtype]
        computing = self.operations / (machine.rates[dtype] * share)
        reading = self.read / (machine.bandwidth * machine.streaming)
        waiting = self.host / machine.host_bandwidth + self.disk / machine.disk
        return max(computing, reading) / (machine.speedup if self.divides else 1) + waiting


def jobs(setup: Setup, layer: int, lengths: Lengths = TYPICAL, devices: int = 1) -> list[Work]:
    """Counts the work of the usual jobs of a model.

    Args:
      setup: The model, on one device.
      layer: Edited layer, and the highest of MEMIT's five.
      lengths: Numbers of tokens of the requests.
      devices: Number of devices, each of which takes a batch of its own of the statistics.

    Example:
      >>> from rome_jax.models.families import PRESETS
      >>> [work.job for work in jobs(Setup(PRESETS["gpt2-xl"]), 17)][:2]
      ['load', 'one ROME edit']
    """
    memit = dataclasses.replace(lengths, contexts=6)
    return [
        Work("load", 0, setup.weights, disk=setup.weights),
        rome(setup, layer, 1, lengths, "one ROME edit"),
        rome(setup, layer, 32, lengths, "32 ROME edits in one chunk"),
        memit_batch(setup, layer, 1000, memit, "MEMIT of 1,000 facts in chunks of 32"),
        trace(setup, lengths, "trace of one prompt, hidden states"),
        scoring(setup, 1000, "scores of 1,000 CounterFact cases, before and after"),
        statistics(setup, layer, 100_000, "statistics of 100,000 documents", devices),
        generation(setup, 64, 100, "64 texts of 100 tokens"),
    ]


def _layer(setup: Setup) -> float:
    """Counts the operations of one layer per token."""
    config = setup.config
    attention = setup.width * (2 * config.attention_width + 2 * config.kv_width)
    return 2.0 * (attention + (2 + config.gated) * setup.width * config.mlp_width)


def _head(setup: Setup) -> float:
    """Counts the operations of the head per place."""
    return 2.0 * setup.width * setup.config.vocab_size


def _stack(setup: Setup, layers: float) -> float:
    """Counts the bytes of reading the weights of some layers and the head."""
    config = setup.config
    numbers = layers * _layer(setup) / 2 + setup.width * config.vocab_size
    return numbers * setup.itemsize


def _optimization(
    setup: Setup, layer: int, requests: int, lengths: Lengths, steps: int
) -> tuple[float, float]:
    """Counts the operations of the optimization of v* or z for some requests, and the bytes of the weights."""
    above = setup.config.num_layers - layer - 1
    rows = lengths.contexts + 1
    # Requests of a chunk share the beginnings of their contexts.
    shared = lengths.shared * (requests > 1)
    columns, prefix = lengths.prefix + lengths.suffix - shared, lengths.prefix - shared
    once = requests * rows * (columns * (layer + 1) + prefix * above) * _layer(setup)
    passes = 2 * steps - 1  # forward, and backward except after the last
    read = lengths.contexts * lengths.target + 1
    suffix = rows * lengths.suffix * max(above - 1, 0) * _layer(setup)
    last = rows * lengths.target * _layer(setup)
    step = requests * (suffix + last + read * _head(setup))
    weights = _stack(setup, setup.config.num_layers) + passes * _stack(setup, above)
    return once + passes * step, weights


def rome(setup: Setup, layer: int, requests: int, lengths: Lengths, job: str) -> Work:
    """Counts ROME edits in one chunk: v*, and one solve with C on the host per request."""
    steps = ROMEConfig((layer,)).v_num_grad_steps
    operations, read = _optimization(setup, layer, requests, lengths, steps)
    # Two triangles for one request; the factor is read once for all requests of a chunk.
    host = _FLOAT64 * setup.config.mlp_width**2
    return Work(job, operations, read, host, optimizes=True, divides=requests > 1)


def memit_batch(setup: Setup, layer: int, requests: int, lengths: Lengths, job: str) -> Work:
    """Counts a joint edit by MEMIT: z of every request, then keys and states at each of five layers."""
    steps = MEMITConfig((layer,)).v_num_grad_steps
    chunk = min(32, requests)
    operations, read = _optimization(setup, layer, chunk, lengths, steps)
    chunks, layers = -(-requests // chunk), 5
    rows = requests * (lengths.contexts + 1)
    columns = lengths.prefix + lengths.suffix - lengths.shared
    again = rows * columns * (layer + 1) * _layer(setup)
    merged = 2 * layers * setup.width * setup.mlp_width * setup.itemsize
    host = layers * requests / 64 * _FLOAT64 * setup.config.mlp_width**2  # blocks of 64 right sides
    total = chunks * operations + layers * again
    bytes_read = chunks * (read + layers * _stack(setup, layer + 1)) + merged
    return Work(job, total, bytes_read, host, optimizes=True)


def trace(setup: Setup, lengths: Lengths, job: str) -> Work:
    """Counts a table of restored hidden states: every layer at every token from the subject on."""
    depth, columns = setup.config.num_layers, lengths.prompt
    first = columns // 4  # the subject begins after a quarter of the prompt
    lengths_left = sum(columns - token for token in range(first, columns))
    layers_left = sum(depth - 1 - layer for layer in range(depth))
    restored = lengths.samples * lengths_left * layers_left * _layer(setup)
    places = lengths.samples * (columns - first) * depth
    start = (1 + lengths.samples) * columns * depth * _layer(setup)
    operations = restored + start + places * (_head(setup) + _layer(setup))
    chunks = -(-lengths_left * depth // 256)
    return Work(job, operations, chunks * _stack(setup, depth / 2), divides=False)


def scoring(setup: Setup, cases: int, job: str) -> Work:
    """Counts the scores of CounterFact cases by the unedited model and under each case's own edit."""
    depth = setup.config.num_layers
    per_case = CASE_TOKENS * depth * _layer(setup) + CASE_PLACES * _head(setup)
    passes = -(-cases * CASE_TOKENS // 16_384)
    return Work(job, 2 * cases * per_case, 2 * passes * _stack(setup, depth))


def statistics(setup: Setup, layer: int, documents: int, job: str, devices: int = 1) -> Work:
    """Counts the second moment of one layer; the sum of each batch is added up on the host in float64."""
    tokens, width = documents * ARTICLE_TOKENS, setup.config.mlp_width
    operations = tokens * ((layer + 1) * _layer(setup) + 2.0 * width**2)
    batches = -(-tokens // (_STATISTICS_BATCH * devices))
    read = batches * devices * _stack(setup, layer + 1)
    return Work(job, operations, read, batches * 3 * _FLOAT64 * width**2)


def generation(setup: Setup, rows: int, tokens: int, job: str) -> Work:
    """Counts generated texts: each step reads all weights and the cache."""
    depth = setup.config.num_layers
    operations = rows * tokens * (depth * _layer(setup) + _head(setup))
    cache = depth * rows * tokens / 2 * setup.kv_width * setup.itemsize
    return Work(job, operations, tokens * (_stack(setup, depth) + cache))
