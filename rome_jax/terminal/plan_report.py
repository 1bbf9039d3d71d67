"""What `eval.plan` prints: what fits on a device, the flags to give, and the estimated seconds of each job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rome_jax.edit.config import MethodName
from rome_jax.scaling.memory import merging_peak
from rome_jax.scaling.plan import HEADROOM, Plan, config_of
from rome_jax.scaling.setup import Platform, Setup
from rome_jax.scaling.sizes import shown_bytes
from rome_jax.scaling.work import Machine, jobs

_DEVICES = (1, 8)


def plan_lines(plan: Plan, memory: int) -> Iterator[str]:
    """Yields the lines of a plan.

    Args:
      plan: The plan.
      memory: Bytes of the device, of which jax may use `plan.memory`.

    Example:
      >>> from rome_jax.models.families import PRESETS
      >>> lines = plan_lines(Plan.of(Setup(PRESETS["gpt2-xl"]), 60 * 10**9, "gpt2-xl"), 80 * 10**9)
      >>> for _ in range(4):
      ...     print(next(lines))
      Model       gpt2-xl: 1,557,611,200 parameters, float32, 6.23 GB of weights per device
      Device      80.00 GB, of which jax uses 60.00 GB and this plan 54.00 GB
      Statistics  163.8 MB per layer in float32; on the host 655.4 MB per layer while it edits
      Merging     8.24 GB with the copy of the changed leaf
    """
    setup = plan.setup
    yield (
        f"Model       {plan.name}: {setup.num_parameters:,} parameters, {setup.dtype}, "
        f"{shown_bytes(setup.weights)} of weights per device"
    )
    yield (
        f"Device      {shown_bytes(memory)}, of which jax uses {shown_bytes(plan.memory)} and this plan "
        f"{shown_bytes(HEADROOM * plan.memory)}"
    )
    yield (
        f"Statistics  {shown_bytes(setup.moment)} per layer in float32; on the host {shown_bytes(setup.host_moment)} "
        "per layer while it edits"
    )
    yield f"Merging     {shown_bytes(merging_peak(setup).total)} with the copy of the changed leaf"
    yield ""
    rows = [("job", "flag", "default", "peak", "largest", "peak")]
    for fit in plan.fits:
        job, most = fit.job, fit.largest
        at_most = shown_bytes(job.peak(most).total) if most else f"{shown_bytes(job.peak(1).total)}"
        rows.append(
            (
                job.name,
                f"--{job.flag}",
                f"{job.default:,}",
                shown_bytes(job.peak(job.default).total),
                f"{most:,}" if most else "none fits",
                at_most,
            )
        )
    yield from _aligned(rows)
    yield ""
    yield from _suggestions(plan)


def _suggestions(plan: Plan) -> Iterator[str]:
    """Yields the flags that make everything fit, with the sizes that make it fast."""
    best = plan.suggest()
    if best is None:
        yield "Suggested   none: the model does not fit 64 devices of this size."
        return
    flags = []
    if best.setup.dtype != plan.setup.dtype:
        flags.append(f"--dtype={best.setup.dtype}")
    if best.setup.model * best.setup.data > 1:
        flags.append(f"--mesh=data:{best.setup.data},model:{best.setup.model}")
    sizes: dict[str, int] = {}
    for fit in best.fits:
        sizes[fit.job.flag] = min(sizes.get(fit.job.flag, fit.suggested), fit.suggested)
    edits = best.fits[0]
    sizes[edits.job.flag] = edits.suggested  # other methods have a row of their own
    flags += [f"--{name}={size}" for name, size in sizes.items()]
    yield f"Suggested   {' '.join(flags)}"
    if best is not plan and not plan.fits_required:
        yield "            Without these flags, some jobs do not fit."
    if plan.setup.platform is Platform.GPU:
        yield "            XLA_CLIENT_MEM_FRACTION=0.95 in the environment gives jax more of a GPU's memory."


def seconds_lines(name: str, setup: Setup) -> Iterator[str]:
    """Yields a Markdown table of the work and the estimated seconds of the usual jobs.

    Args:
      name: Name of the model.
      setup: The model, on one device.

    Example:
      >>> from rome_jax.models.families import PRESETS
      >>> list(seconds_lines("gpt2-xl", Setup(PRESETS["gpt2-xl"])))[2]
      '| load | 0 | 6.23 GB | 3.1 | 3.1 |'
    """
    layer = config_of(MethodName.ROME, setup.config, name).layers[-1]
    machines = [Machine(devices=count) for count in _DEVICES]
    found = [jobs(setup, layer, devices=machine.devices) for machine in machines]
    head = [f"s on {machine.devices} {machine.name}" for machine in machines]
    yield _row([f"{name}, {setup.dtype}", "TFLOP", "bytes of device memory", *head])
    yield _row(["---"] * (3 + len(head)))
    for works in zip(*found, strict=True):
        times = [
            _two_digits(work.seconds(machine, setup.dtype))
            for work, machine in zip(works, machines, strict=True)
        ]
        first = works[0]
        yield _row(
            [first.job, _two_digits(first.operations / 1e12), shown_bytes(first.read), *times]
        )


def _two_digits(number: float) -> str:
    """Returns a number with two significant digits, without an exponent."""
    return f"{float(f'{number:.2g}'):,.10g}"


def _row(cells: Sequence[str]) -> str:
    """Returns a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yields the rows of a table in columns: names on the left, numbers on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
