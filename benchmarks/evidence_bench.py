"""What the runs of benchmarks/evidence.py share, and how one is made."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from evidence_methods import short_name
from evidence_tasks import Size
from evidence_together import NotDone, Programs, Rank
from which_tokens import Failed, execute

CONFIG = Path(__file__).parent.parent / "configs" / "smollm2.yaml"
Settings = dict[str, str]


def sources(path: Path, **more: Any) -> str:
    """As a setting: commas and equals signs in a path are letters."""
    return json.dumps([{"path": str(path)} | more])


class Bench(NamedTuple):
    """What all runs share. rank: of the runs that are made with this one."""

    model: str
    data: Path
    output: Path
    size: Size
    cells: int
    betas: int
    seeds: int
    reasoning: int
    problems: int
    more: tuple[str, ...]
    programs: Programs
    only_done: bool = False
    rank: Rank = ()

    def run(self, output: Path, settings: Settings) -> str | None:
        """Runs the main program unless that has been done; why there is no result, or None.

        NotDone: it may not be run, the time is up, or it failed."""
        if self.only_done and not (output / "benchmark.json").exists():
            raise NotDone(output)
        common = {"policy.path": self.model, "logging.trackers": "[]"}
        told = common | settings | dict(pair.split("=", 1) for pair in self.more)
        if (output / "benchmark.json").exists():  # needs no place
            return execute(output, told, CONFIG)
        with self.programs.place(self.rank):
            print(output.relative_to(self.output), flush=True)
            try:
                return execute(output, told, CONFIG, self.programs.call)
            except Failed as failure:
                raise self.programs.fail(str(failure)) from None

    def make(self, output: Path, settings: Settings) -> None:
        """Makes a run that others need. NotDone: there is no result."""
        if (why := self.run(output, settings)) is not None:
            raise self.programs.fail(f"{output}: {why}")


class Final(NamedTuple):
    """A run of the comparison."""

    task: str
    method: str
    rate: float
    beta: float | None
    seed: int

    def path(self, output: Path) -> Path:
        beta = "" if self.beta is None else f",beta={self.beta:g}"
        return output / self.task / short_name(self.method) / f"rate={self.rate:g}{beta},seed={self.seed}"
