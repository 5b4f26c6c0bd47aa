"""A run in several processes on this machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from helpers.xla_flags import xla_flags


def run_together(
    config: Path,
    count: int,
    devices: int,
    *overrides: str,
    at_batch: dict[int, str] | None = None,
    timeout_s: float = 240,
) -> list[tuple[int, str]]:
    """(exit status, output) of each of `count` processes of one run, with `devices` devices each.

    at_batch: what a process does to itself, by its number; see one_of_many.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = []
    for number in range(count):
        variables = {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(number),
            "XLA_FLAGS": xla_flags(devices),
        }
        if at_batch and number in at_batch:
            variables["AT_BATCH"] = at_batch[number]
        command = [
            sys.executable,
            str(Path(__file__).parent / "one_of_many.py"),
            str(config.parent / f"rows_{number}.jsonl"),
            "--config",
            str(config),
            *overrides,
        ]
        output = (config.parent / f"said_{number}.txt").open("w+")
        environment = os.environ | variables
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        running.append((process, output))
    ended = []
    try:
        for process, output in running:
            status = process.wait(timeout_s)
            output.seek(0)
            ended.append((status, output.read()))
    finally:
        for process, output in running:
            process.kill()
            output.close()
    return ended
