"""Several processes that share one run, on one host or many."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from eval.flags import define
from rome_jax.files import groups
from rome_jax.files.checked import Count, NonNegativeInt, check
from rome_jax.files.groups import ALONE, ProcessGroup

DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Share the run with the other processes of the job, which jax finds under SLURM, Open MPI or Kubernetes, or which "
    "the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID describe.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator_address",
    None,
    "Host and a free port of process 0, such as node1:1234, the same for all processes that share the run.",
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes",
    None,
    "Number of processes that share the run.",
    lower_bound=1,
    upper_bound=define.MOST,
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id",
    None,
    "Number of this process among those that share the run, from 0.",
    lower_bound=0,
    upper_bound=define.MOST,
)
TIMEOUT = flags.DEFINE_float(
    "process_timeout",
    groups.TIMEOUT,
    "Seconds without a sign of life after which the other processes no longer wait for a process.",
    lower_bound=1,
    upper_bound=1e6,
)
define.finite(TIMEOUT)
NAMES = (DISTRIBUTED, COORDINATOR, NUM_PROCESSES, PROCESS_ID, TIMEOUT)
_PLACE = (COORDINATOR, NUM_PROCESSES, PROCESS_ID)


@contextlib.contextmanager
def joined(root: str | Path) -> Iterator[ProcessGroup]:
    """Joins the processes that share the run in a `with` statement; only process 0 prints.

    Args:
      root: Folder that all processes share.

    Yields:
      The group; this process alone if no flag asks for several.

    Raises:
      ValueError: If flags are missing or contradict each other, or the processes do not find each other.
      OSError: If the folder cannot be written to.
    """
    if not DISTRIBUTED.value and all(flag.value is None for flag in _PLACE):
        yield ALONE
        return
    from rome_jax.models import processes

    with contextlib.ExitStack() as stack:
        group = stack.enter_context(processes.join(root, *_read(), timeout=TIMEOUT.value))
        if group.index:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        else:
            print(f"Processes   {group.count}")
        yield group


def _read() -> tuple[str | None, int | None, int | None]:
    """Returns coordinator, number of processes and number of this process; None is left to jax."""
    address, count, index = (flag.value for flag in _PLACE)
    if DISTRIBUTED.value:
        address = address or os.environ.get("JAX_COORDINATOR_ADDRESS")
        count = _variable("JAX_NUM_PROCESSES", Count) if count is None else count
        index = _variable("JAX_PROCESS_ID", NonNegativeInt) if index is None else index
    else:
        missing = [f"--{flag.name}" for flag in _PLACE if flag.value is None]
        if missing:
            raise ValueError(
                f"{' and '.join(missing)} is missing: give --coordinator_address, --num_processes and --process_id "
                "together, or --distributed in a job of SLURM."
            )
    if None not in (count, index) and index >= count:
        raise ValueError(
            f"--process_id={index}: give 0 to {count - 1}, because there are {count} processes."
        )
    if address is not None and not address.rpartition(":")[2].isdecimal():
        raise ValueError(
            f"--coordinator_address={address}: give a host and a port, such as node1:1234."
        )
    return address, count, index


def _variable(name: str, kind: object) -> int | None:
    """Reads a number from the environment; None if it is not there."""
    text = os.environ.get(name)
    return None if text is None else check(kind, text, name)
