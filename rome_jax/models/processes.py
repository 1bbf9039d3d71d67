"""Several processes of one program, which find each other through `jax.distributed`.

A cluster's scheduler, or the user, starts one process per host or per device. The processes meet at the coordinator of
`jax.distributed`, learn their numbers and the name of their group, and leave it again before jax starts its backend.
From then on each is an ordinary process with its own devices: `jax.devices()` are local, no computation spans
processes, and the end of one does not end the others, as the heartbeats of `jax.distributed` would. What the processes
still tell each other goes through the folder of results; see `rome_jax.files.groups`.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from jax._src import distributed

from rome_jax.files.groups import TIMEOUT, GroupError, ProcessGroup, meeting

_JOIN_SECONDS = 300
_POLL = 0.2  # seconds between two attempts to reach process 0
_JOB = "rome_jax/job"


@contextlib.contextmanager
def join(
    root: str | Path,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = TIMEOUT,
    join_seconds: int = _JOIN_SECONDS,
) -> Iterator[ProcessGroup]:
    """Joins the processes of a job in a `with` statement. Call it before jax is first used.

    Args:
      root: Folder that all processes share; the group keeps its files in a hidden folder there.
      coordinator_address: Host and port of process 0, such as "node1:1234". This and the next two are found by
        `jax.distributed.initialize` if they are None, for instance under SLURM.
      num_processes: Number of processes.
      process_id: Number of this process, from 0.
      timeout: Seconds without a sign of life after which another process counts as lost.
      join_seconds: Seconds to wait for the other processes at the start.

    Yields:
      The group.

    Raises:
      GroupError: If the processes do not find each other, or do not share the folder.
      OSError: If the folder cannot be written to.
    """
    # Its handler of SIGTERM would replace the program's.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        if coordinator_address is not None and process_id:
            _wait_for(coordinator_address, join_seconds)
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            initialization_timeout=join_seconds,
            shutdown_timeout_seconds=join_seconds,
        )
        state = distributed.global_state
        index, count, client = state.process_id, state.num_processes, state.client
        assert client is not None
        if index == 0:
            client.key_value_set(_JOB, secrets.token_hex(8))
        job = client.blocking_key_value_get(_JOB, 1000 * join_seconds)
    except (RuntimeError, ValueError, OSError) as error:
        raise GroupError(
            f"the processes cannot find each other ({_first_line(error)}): check --coordinator_address, "
            "--num_processes and --process_id, or start the program in a job that jax detects, such as one of SLURM."
        ) from error
    with meeting(root, job, index, count, timeout=timeout, barrier=_leave) as group:
        yield group


def _wait_for(address: str, seconds: float) -> None:
    """Waits until process 0 listens. The client of `jax.distributed` aborts this process if it does not.

    Raises:
      OSError: If it does not within the given time.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=seconds):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_POLL)


def _leave() -> None:
    """Leaves `jax.distributed` once all processes are about to, so that the backend has only this process's devices."""
    jax.distributed.shutdown()
    # What is left of the job would still number the devices of the backend.
    distributed.global_state.process_id, distributed.global_state.num_processes = 0, 1


def _first_line(error: Exception) -> str:
    """Returns the first line of an error, shortened."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
