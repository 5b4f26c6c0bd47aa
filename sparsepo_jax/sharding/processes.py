"""Many processes as one run: how they find each other, agree to stop, and notice that one is gone."""

import itertools
import os
import re
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.stop import Stop, Terminated

# What JAX says when a process of the run no longer answers: collectives on CPU (gloo) and GPU (NCCL), RPCs,
# and the coordination service. The words of the latter count only beside a status that it gives for this
# case, because a runtime error about something else may hold any of them alone.
_LOSS = re.compile(
    r"Gloo [\w -]+ failed|connection (?:closed|reset) by peer|socket closed|remote process exited"
    r"|ncclRemoteError|CoordinationServiceError"
    r"|\b(?:UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED|CANCELLED): "
    r".*(?:coordination (?:service|agent)|heartbeat|barrier|/task:\d)",
    re.IGNORECASE | re.DOTALL,
)


def join_processes(distributed: bool | None) -> None:
    """Starts jax.distributed where this is one of several processes.

    It must be called before JAX touches a device. SIGTERM to any process is then told to all; see
    make_should_stop.

    Args:
        distributed: None reads the environment: JAX_COORDINATOR_ADDRESS (with JAX_NUM_PROCESSES and
            JAX_PROCESS_ID, unless JAX can tell them itself), a Slurm step of several tasks, or several
            TPU_WORKER_HOSTNAMES. True leaves it all to JAX's own detection (Cloud TPU, GKE, Slurm, MPI).
            False: this process is alone.

    Raises:
        UserError: the processes do not find each other.
    """
    if distributed is None:
        distributed = _looks_like_many(os.environ)
    if jax.distributed.is_initialized() or not distributed:
        return
    jax.config.update("jax_enable_preemption_service", True)
    try:
        count = os.environ.get("JAX_NUM_PROCESSES")
        number = os.environ.get("JAX_PROCESS_ID")
        jax.distributed.initialize(num_processes=count and int(count), process_id=number and int(number))
    except (ValueError, RuntimeError) as error:
        raise UserError(
            "compute.distributed: the processes of the run do not find each other "
            f"({' '.join(str(error).split())}); set JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID for each, or compute.distributed=false"
        ) from error


def _looks_like_many(environment: Mapping[str, str]) -> bool:
    def several(name: str) -> bool:
        count = environment.get(name, "1")
        return count.isdecimal() and int(count) > 1

    in_slurm_step = (
        "SLURM_PROCID" in environment and several("SLURM_STEP_NUM_TASKS") and several("SLURM_NTASKS")
    )
    return (
        "JAX_COORDINATOR_ADDRESS" in environment
        or in_slurm_step
        or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    )


# One for the process, as JAX's service is, which wants numbers that only rise, whichever stage asks.
_questions = itertools.count(1)


def make_should_stop(stop: Stop) -> Callable[[], type[KeyboardInterrupt] | None]:
    """should_stop() -> why to stop now, or None.

    All processes of a run get the same answer to the same question, although only one of them may have been
    sent the signal. So all must ask equally often, as they do between the batches of a plan that they share.

    Args:
        stop: what the signals of this process set.
    """
    if jax.process_count() == 1:
        return lambda: stop.asked
    return lambda: Terminated if multihost_utils.reached_preemption_sync_point(next(_questions)) else None


def as_the_first(x: np.ndarray) -> np.ndarray:
    """The first process's array, in all processes.

    It is for what only one process should read off a disk that others write to.

    Args:
        x: of the same shape in every process.
    """
    return x if jax.process_count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(x))


def wait_for_all(what: str) -> None:
    """Waits until every process has come to this place.

    The others then find what the first one wrote before.

    Args:
        what: name of the place, the same in every process.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def lost_process(error: BaseException) -> bool:
    """Whether an error says that another process of this run is gone.

    Args:
        error: of JAX's runtime, or one that it led to.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, jax.errors.JaxRuntimeError) and _LOSS.search(str(seen)):
            return jax.distributed.is_initialized() and jax.process_count() > 1
        seen = seen.__cause__ or seen.__context__
    return False
