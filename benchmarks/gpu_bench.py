"""What the jobs of benchmarks/gpu.py share: sizes, the processes that they run, what a job is."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ahead import Ahead
from shapes import MODELS, Shape, tiny
from work import Candidate, CandidateEnded

REPOSITORY = Path(__file__).parent.parent
Row = dict[str, Any]


class Size(NamedTuple):
    """How much is done. The second is the same, small enough to try the script on any machine."""

    prompt: int = 512
    response: int = 256
    pairs: tuple[int, ...] = (8, 16)
    warm: int = 2
    steps: int = 8
    rows: int = 32
    new_tokens: int = 256
    lora_pairs: int = 8
    data_pairs: int = 32


TINY = Size(24, 12, (2, 4), 1, 2, 2, 8, 2, 4)


class Bench(NamedTuple):
    """What all jobs share.

    Attributes:
        directory: for what processes write.
        environment: of processes on the device.
        log: the file of their stderr.
        data: preference pairs, or None.
        ceilings: of the device: card, matrix_rate, copy_rate; filled by the first job.
        ahead: processes that were started before their turn.
    """

    size: Size
    is_tiny: bool
    directory: Path
    environment: dict[str, str]
    log: Path
    data: Path | None
    ceilings: Row
    ahead: Ahead

    def shape(self, model: str) -> Shape:
        return tiny(MODELS[model]) if self.is_tiny else MODELS[model]

    def candidate(self, limit_s: float, script: str, *arguments: str | int) -> Candidate:
        """The process that was started ahead with these arguments, or a new one; it may run for so long."""
        candidate = self.ahead.take((script, *arguments)) or self.start(limit_s, script, *arguments)
        candidate.within(limit_s)
        return candidate

    def start(self, limit_s: float, script: str, *arguments: str | int) -> Candidate:
        with self.log.open("a") as log:
            log.write(f"== {script}\n")
            log.flush()
            return Candidate(script, *arguments, environment=self.environment, log=log, limit_s=limit_s)

    @property
    def compiled(self) -> Path:
        """Where the program keeps what it compiled."""
        return self.directory / "compiled"

    def command(self, limit_s: float, config: Path, *overrides: str) -> float:
        """Runs the program; its seconds. CandidateEnded: it fails."""
        began_s = time.perf_counter()
        fresh = f"compute.compile_cache={self.compiled}"
        command = [sys.executable, "-m", "sparsepo_jax.main", "--config", str(config), fresh, *overrides]
        with self.log.open("a") as log:
            done = subprocess.run(
                command, stdout=log, stderr=log, env=self.environment, cwd=REPOSITORY, timeout=limit_s
            )
        if done.returncode:
            raise CandidateEnded(f"exit {done.returncode}; see {self.log}")
        return time.perf_counter() - began_s


class Job(NamedTuple):
    """A process to be run: its part of the script and its name there.

    Attributes:
        expected_s: about how long its turn takes on an H200.
        ahead: script and arguments of the process to be started before its turn; None: it is not.
        compiles: whether that compiles, which others' first moments of compiling should not disturb.
        is_timed: whether a time is a result, so that it wants the machine for itself.
    """

    part: str
    name: str
    expected_s: float
    work: Callable[[Bench, float], Iterator[Row]]
    ahead: Callable[[Bench], tuple[str | int, ...]] | None = None
    compiles: bool = False
    is_timed: bool = True
