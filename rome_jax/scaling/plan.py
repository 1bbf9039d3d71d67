"""What fits on a device: the largest size of each job, and the flags that a user should give.

Setup, memory ─► jobs: flag, default, peak for each size ─► Plan: largest sizes ─► suggestions
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax

from rome_jax.edit.baseline_config import FTConfig, MENDConfig
from rome_jax.edit.config import Hyperparameters, MethodName, ROMEConfig
from rome_jax.edit.method import METHODS
from rome_jax.edit.spread_config import MEMITConfig
from rome_jax.evaluation.scoring import MAX_TOKENS
from rome_jax.files.memory import available_memory
from rome_jax.models import devices
from rome_jax.models.config import ModelConfig
from rome_jax.models.placement import DATA_AXIS, MODEL_AXIS, mesh_of
from rome_jax.scaling.device import platform_here
from rome_jax.scaling.memory import (
    COUNTERFACT,
    Lengths,
    Peak,
    edit_peak,
    generation_peak,
    is_counted,
    largest,
    scoring_peak,
    statistics_peak,
    trace_peak,
)
from rome_jax.scaling.setup import Platform, Setup
from rome_jax.trace.sweep import CHUNK_COLUMNS

HEADROOM = 0.9  # share of the usable memory that a plan fills; the rest is for fragmentation
DEFAULT_CHUNK = 8
# Larger sizes are hardly faster: docs/gpu.md. Matrix products of 8 requests keep a CPU busy.
_USEFUL_CHUNK = {Platform.CPU: 8, Platform.GPU: 64, Platform.TPU: 64}
_USEFUL_COLUMNS, _USEFUL_STATISTICS = 1024, 16_384
_LIMIT = 2**20  # size of a job beyond which a plan does not look
_MEMIT_CONTEXTS = 6
_RELATIVE_DEPTH = 17 / 48  # of the published layer of GPT-2 XL


@dataclasses.dataclass(frozen=True)
class Job:
    """A job whose memory grows with the size that a flag sets.

    Attributes:
      name: Name in the table.
      flag: Name of the flag.
      default: Default of the flag.
      useful: Size above which the job hardly becomes faster.
      peak: The peak for each size.
      required: Whether the suggested flags have to make it fit.
    """

    name: str
    flag: str
    default: int
    useful: int
    peak: Callable[[int], Peak]
    required: bool = True


@dataclasses.dataclass(frozen=True)
class Fit:
    """What fits of a job.

    Attributes:
      job: The job.
      largest: Largest size that fits, 0 if none does, and at most 2**20.
    """

    job: Job
    largest: int

    @property
    def suggested(self) -> int:
        """The size to give: a power of two that fits and is useful, or 0."""
        size = min(self.largest, self.job.useful)
        return 1 << (size.bit_length() - 1) if size else 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What fits in the memory of one device.

    Attributes:
      setup: The model and its devices.
      memory: Bytes that programs may use on each device.
      fits: One entry per job.
      name: Name of the model.
    """

    setup: Setup
    memory: int
    fits: tuple[Fit, ...]
    name: str = ""

    @classmethod
    def of(cls, setup: Setup, memory: int, name: str = "") -> Plan:
        """Finds the largest size of each job.

        Args:
          setup: The model and its devices.
          memory: Bytes that programs may use on each device; the plan fills 90 % of them.
          name: Name of the model; see `jobs_of`.

        Example:
          >>> from rome_jax.models.families import PRESETS
          >>> plan = Plan.of(Setup(PRESETS["gpt2-xl"]), 60 * 10**9, "gpt2-xl")
          >>> plan.fits[0].job.name, plan.fits[0].largest > 64, plan.fits[0].suggested
          ('ROME edits', True, 64)
        """
        fits = (
            Fit(job, largest(job.peak, HEADROOM * memory, _LIMIT)) for job in jobs_of(setup, name)
        )
        return cls(setup, memory, tuple(fits), name)

    @property
    def fits_required(self) -> bool:
        """Whether every required job fits at some size."""
        return all(fit.largest for fit in self.fits if fit.job.required)

    def suggest(self) -> Plan | None:
        """Finds a plan in which ROME, traces, scores, texts, and statistics fit: this one, or one with other flags.

        It tries bfloat16 weights first, and then weights that are split over several devices.

        Returns:
          The plan, or None if 64 devices are not enough.

        Example:
          >>> from rome_jax.models.families import PRESETS
          >>> better = Plan.of(Setup(PRESETS["EleutherAI/gpt-j-6B"]), 24 * 10**9).suggest()
          >>> better.setup.dtype, better.setup.model
          ('bfloat16', 1)
        """
        if self.fits_required:
            return self
        half = (
            self.setup
            if self.setup.itemsize < 4
            else dataclasses.replace(self.setup, dtype="bfloat16")
        )
        for model in (1, 2, 4, 8, 16, 32, 64):
            if model < half.model or half.config.mlp_width % model:
                continue
            plan = Plan.of(dataclasses.replace(half, model=model), self.memory, self.name)
            if plan.fits_required:
                return plan
        return None


def jobs_of(setup: Setup, name: str = "", lengths: Lengths = COUNTERFACT) -> tuple[Job, ...]:
    """Lists the jobs of a plan.

    Args:
      setup: The model and its devices.
      name: Name of the model, whose published hyperparameters say which layers are edited.
      lengths: Numbers of tokens of the requests.
    """
    chunk = _USEFUL_CHUNK[setup.platform]
    edits = {
        MethodName.ROME: lengths,
        MethodName.MEMIT: dataclasses.replace(lengths, contexts=_MEMIT_CONTEXTS),
        MethodName.FT: lengths,
        MethodName.MEND: lengths,
    }
    return (
        *(
            Job(
                f"{method} edits",
                "chunk_size",
                DEFAULT_CHUNK,
                chunk,
                functools.partial(
                    edit_peak, setup, config_of(method, setup.config, name), lengths=own
                ),
                method is MethodName.ROME,
            )
            for method, own in edits.items()
        ),
        Job(
            "trace, columns per sample",
            "chunk_columns",
            CHUNK_COLUMNS,
            _USEFUL_COLUMNS,
            functools.partial(trace_peak, setup, lengths=lengths),
        ),
        Job(
            "scoring, tokens per pass",
            "max_tokens",
            MAX_TOKENS,
            MAX_TOKENS,
            functools.partial(scoring_peak, setup, lengths=lengths),
        ),
        Job(
            "generation, tokens in the cache",
            "max_tokens",
            MAX_TOKENS,
            MAX_TOKENS,
            functools.partial(generation_peak, setup),
        ),
        Job(
            "statistics, tokens per batch",
            "batch_tokens",
            4096,
            _USEFUL_STATISTICS,
            functools.partial(statistics_peak, setup, lengths=lengths),
        ),
    )


def config_of(method: MethodName, config: ModelConfig, name: str = "") -> Hyperparameters:
    """Returns the published hyperparameters of a model, or ones that edit layers at the same relative depth.

    Args:
      method: ROME, MEMIT, FT, or MEND.
      config: Shapes of the model.
      name: Name of the model.

    Example:
      >>> from rome_jax.models.families import PRESETS
      >>> config_of(MethodName.ROME, PRESETS["gpt2-large"]).layers
      (13,)
    """
    with contextlib.suppress(ValueError):
        return METHODS[method].for_model(name)
    depth = config.num_layers
    layer = min(round(depth * _RELATIVE_DEPTH), depth - 1)
    match method:
        case MethodName.MEMIT:
            return MEMITConfig(tuple(range(max(0, layer - 4), layer + 1)))
        case MethodName.FT:
            return FTConfig((layer,))
        case MethodName.MEND:
            return MENDConfig(tuple(range(max(0, depth - 3), depth)))
    return ROMEConfig((layer,))


def chunk_size(
    config: ModelConfig,
    params: object,
    methods: Sequence[Hyperparameters],
    lengths: Lengths = COUNTERFACT,
) -> int:
    """Returns the chunk size that suits this machine's device and a loaded model.

    Args:
      config, params: The model.
      methods: Hyperparameters of the methods that edit it. The chunks of those whose memory is not counted, KN and KE,
        stay at the default of 8.
      lengths: Numbers of tokens of the requests.

    Returns:
      The largest size that fits each method, but at most the default if the memory is unknown, and at most what makes
      edits faster. At least 1.

    Example:
      >>> chunk_size(model.config, model.params, [config])
      8
    """
    leaves, platform = jax.tree.leaves(params), platform_here()
    mesh = mesh_of(params)
    axes = {} if mesh is None else mesh.shape
    split = (axes.get(DATA_AXIS, 1), axes.get(MODEL_AXIS, 1))
    setup = Setup(config, str(leaves[0].dtype), platform, *split)
    memory = devices.device_memory()
    if platform is Platform.CPU and (free := available_memory()) is not None:
        memory = free + sum(leaf.nbytes for leaf in leaves)  # the weights are loaded already
    most = _USEFUL_CHUNK[platform]
    counted = [method for method in methods if is_counted(method)]
    if memory is None:
        return min(most, DEFAULT_CHUNK)
    if len(counted) < len(methods):
        most = min(most, DEFAULT_CHUNK)
    for method in counted:
        peak = functools.partial(edit_peak, setup, method, lengths=lengths)
        most = min(most, largest(peak, HEADROOM * memory, most))
    return max(1, most)
