"""The processes of a run: how they find one another, and what they agree on.

Every process runs the same program on the same data. The first one, process 0, writes files and
prints; whatever depends on a clock or a signal is agreed on before it decides anything.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from pdrec_jax import interrupts
from pdrec_jax.errors import UserError, of_system, one_line

PORT = 8476
"""Of the coordinator, where nothing else says."""
_PATIENCE = 300  # seconds in which all processes must have come


def find(environ: Mapping[str, str]) -> dict[str, object] | None:
    """Says how a run's processes are to find one another, from the environment.

    In this order: ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``, whose
    place a Kubernetes job's ``JOB_COMPLETION_INDEX`` can take; a JobSet's ``JOBSET_NAME`` and
    ``REPLICATED_JOB_NAME``, whose first pod coordinates; a Slurm step of several tasks; a TPU pod
    of several hosts. The last two JAX knows how to join by itself, at the address if one is set.

    Args:
      environ: the environment.

    Returns:
      arguments of ``jax.distributed.initialize``; None for a process that is alone.

    Raises:
      UserError: a part of it is missing or no number.
    """
    address = environ.get("JAX_COORDINATOR_ADDRESS")
    if not address and {"JOBSET_NAME", "REPLICATED_JOB_NAME"} <= environ.keys():
        name = environ["JOBSET_NAME"]
        address = f"{name}-{environ['REPLICATED_JOB_NAME']}-0-0.{name}:{PORT}"
    numbered = "JAX_NUM_PROCESSES" in environ or "JAX_PROCESS_ID" in environ
    if address and numbered:
        which = "JAX_PROCESS_ID" if "JAX_PROCESS_ID" in environ else "JOB_COMPLETION_INDEX"
        return _arguments(
            address, _number(environ, "JAX_NUM_PROCESSES"), _number(environ, which), "JAX_"
        )
    step = {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"}
    if step <= environ.keys() and _number(environ, "SLURM_NTASKS") > 1:
        return _devices_of_task(environ)
    workers = [name for name in environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    if len(workers) > 1 or "MEGASCALE_COORDINATOR_ADDRESS" in environ:
        return {}
    # With a part of it every host would take itself for alone.
    if numbered and environ.get("JAX_NUM_PROCESSES") != "1":
        raise UserError(
            "environment: JAX_COORDINATOR_ADDRESS: HOST:PORT of process 0 is expected, "
            f"got {address!r}"
        )
    if environ.get("JAX_COORDINATOR_ADDRESS"):
        _number(environ, "JAX_NUM_PROCESSES")  # raises
    return None


def _devices_of_task(environ: Mapping[str, str]) -> dict[str, object]:
    """Which GPUs a Slurm task takes, where it is not the one of its number on the node, JAX's own.

    It takes all that it sees where it is alone on its node, or where Slurm has dealt them out.
    """
    visible, count = environ.get("CUDA_VISIBLE_DEVICES"), environ.get("SLURM_GPUS_ON_NODE", "0")
    gpus = len(visible.split(",")) if visible else int(count) if count.isdecimal() else 0
    # As in 2(x3); where nodes differ, as in 2(x3),1, it does not say how many this one has.
    tasks = re.fullmatch(r"(\d+)(\(x\d+\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if gpus and tasks and (int(tasks[1]) == 1 or gpus < int(tasks[1])):
        return {"local_device_ids": list(range(gpus))}
    return {}


def _number(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except (KeyError, ValueError):
        raise UserError(
            f"environment: {name}: a number is expected, got {environ.get(name)!r}"
        ) from None


def _arguments(address: str, number: int, own: int, of: str) -> dict[str, object] | None:
    if not 0 <= own < number:
        raise UserError(
            f"{of}process_id: 0 to {number - 1}, one for each process, is expected, got {own}"
        )
    if number == 1:
        return None
    if ":" not in address:
        address = f"{address}:{PORT}"
    return {
        "coordinator_address": address,
        "num_processes": number,
        "process_id": own,
        # Else JAX looks around for what is left open, and in a Slurm task finds that one GPU, that
        # of the task's number on its node, is all that it may use.
        "cluster_detection_method": "deactivate",
    }


def initialise(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the other processes of the run; does nothing where there are none.

    Must be called before JAX is used. Without arguments the environment says, see ``find``.

    Args:
      coordinator: HOST:PORT of process 0, which listens there.
      num_processes: how many there are.
      process_id: this one, from 0.

    Raises:
      UserError: some of the arguments without the others, or the others did not come in time.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given):
        if coordinator is None or num_processes is None or process_id is None:
            raise UserError("--coordinator, --num_processes, --process_id: all three are expected")
        arguments = _arguments(coordinator, num_processes, process_id, "--")
    else:
        arguments = find(os.environ)
    if arguments is None:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM away from ``interrupts``, which saves in all processes by itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with interrupts.idle("while waiting for the other processes"):
            jax.distributed.initialize(initialization_timeout=_PATIENCE, **arguments)  # type: ignore[arg-type]
    except RuntimeError as error:
        where = arguments.get("coordinator_address", "its place in the environment")
        raise UserError(
            f"process {arguments.get('process_id', '?')}: the others were not found by {where} "
            f"({' '.join(str(error).split())[:200]})"
        ) from error


@contextlib.contextmanager
def joined(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> Iterator[None]:
    """Runs a block as one of the run's processes, see ``initialise``.

    Only the first one prints to standard output. One that fails ends without the farewell that JAX
    would have all processes take together, since the others may wait for it elsewhere; they end
    when they notice.
    """
    initialise(coordinator, num_processes, process_id)
    if jax.process_count() == 1:
        yield
        return
    try:
        with contextlib.ExitStack() as stack:
            if not is_first():
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            # First contact while all are at the same place: gloo waits half a minute for a peer.
            barrier("joined")
            yield
    except UserError as error:
        _end(f"error: process {jax.process_index()}: {one_line(error)}", 2)
    except interrupts.Interrupted as error:
        if error.saved:  # with the others
            raise
        _end(
            interrupts.farewell(error, "the same command resumes the run"), interrupts.status(error)
        )
    except Exception as error:
        line = of_system(error) if isinstance(error, OSError) else None
        if line is not None:
            _end(f"error: process {jax.process_index()}: {one_line(line)}", 2)
        traceback.print_exc()
        _end("", 1)


def _end(line: str, status: int) -> None:
    if line:
        print(line, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def is_first() -> bool:
    """Whether this process writes files and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def of_first(*numbers: int) -> tuple[int, ...]:
    """Returns the integers that the first process has; each must ask."""
    if jax.process_count() == 1:
        return numbers
    from jax.experimental import multihost_utils

    found = multihost_utils.broadcast_one_to_all(np.array(numbers, np.int32))
    return tuple(int(number) for number in found)


def found_by_first(here: bool, what: str) -> bool:
    """Whether the first process finds a file; each must ask.

    So that all take the same way where a file system shows a new file late.

    Args:
      here: whether this process finds it.
      what: names it.

    Raises:
      UserError: the first process finds it, and this one does not.
    """
    (found,) = of_first(int(here))
    if found and not here:
        raise UserError(
            f"{what}: the first process finds it and this one does not, a directory that "
            "all processes share is expected"
        )
    return bool(found)


def any_of(here: bool) -> bool:
    """Whether something holds in any process; each must ask."""
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.array([here]))))
