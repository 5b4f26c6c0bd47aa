"""Many processes as one run: how they find each other, agree to stop, and notice that one is gone."""

import itertools
import os
import re
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.stop import Stop, Terminated

# What JAX says when a process of the run does not answer any more: collectives on CPU (gloo) and GPU (NCCL), RPCs, and the coordination service, whose
# words count only beside a status that it gives for this. A runtime error about something else may hold any of these words alone.
_LOSS = re.compile(
    r"Gloo [\w -]+ failed|connection (?:closed|reset) by peer|socket closed|remote process exited|ncclRemoteError|CoordinationServiceError"
    r"|\b(?:UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED|CANCELLED): .*(?:coordination (?:service|agent)|heartbeat|barrier|/task:\d)",
    re.IGNORECASE | re.DOTALL,
)


def join_processes(distributed: bool | None) -> None:
    """Starts jax.distributed where this is one of several processes; before JAX touches a device.

    distributed: None reads the environment: JAX_COORDINATOR_ADDRESS (with JAX_NUM_PROCESSES and JAX_PROCESS_ID, unless JAX finds them out
    itself), a Slurm step of several tasks, or TPU_WORKER_HOSTNAMES of several. True leaves it all to JAX's own detection (Cloud TPU, GKE, Slurm,
    MPI). SIGTERM to any process is then told to all (see make_should_stop). UserError: the others cannot be found.
    """
    if (
        jax.distributed.is_initialized()
        or distributed is False
        or (distributed is None and not _looks_like_many(os.environ))
    ):
        return
    jax.config.update("jax_enable_preemption_service", True)
    try:
        count, number = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
        jax.distributed.initialize(num_processes=count and int(count), process_id=number and int(number))
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"compute.distributed: the processes of the run do not find each other ({' '.join(str(error).split())}); set "
            "JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID for each, or compute.distributed=false"
        ) from error


def _looks_like_many(environment) -> bool:
    several = lambda name: environment.get(name, "1").isdecimal() and int(environment.get(name, "1")) > 1
    in_slurm_step = (
        "SLURM_PROCID" in environment and several("SLURM_STEP_NUM_TASKS") and several("SLURM_NTASKS")
    )
    return (
        "JAX_COORDINATOR_ADDRESS" in environment
        or in_slurm_step
        or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    )


_questions = itertools.count(
    1
)  # JAX's service, too, is one a process; it wants numbers that only rise, whichever stage asks


def make_should_stop(stop: Stop) -> Callable[[], type[KeyboardInterrupt] | None]:
    """should_stop() -> why to stop now, or None. All processes of a run get the same answer to the same question, though only one of them may have been
    sent the signal: so all must ask equally often, as between the batches of a plan that they share."""
    if jax.process_count() == 1:
        return lambda: stop.asked
    return lambda: Terminated if multihost_utils.reached_preemption_sync_point(next(_questions)) else None


def as_the_first(x: np.ndarray) -> np.ndarray:
    """The first process's array, on all: for what only one should read off a disk that others write to."""
    return x if jax.process_count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(x))


def wait_for_all(what: str) -> None:
    """Until every process has come to `what`: the others then find what the first one wrote before."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def lost_process(error: BaseException) -> bool:
    """Whether an error of JAX's runtime, or one that it led to, says that another process of this run is gone."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, jax.errors.JaxRuntimeError) and _LOSS.search(str(seen)):
            return jax.distributed.is_initialized() and jax.process_count() > 1
        seen = seen.__cause__ or seen.__context__
    return False
