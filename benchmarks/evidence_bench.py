"""What the runs of benchmarks/evidence.py share, and how one is made."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from evidence_methods import short_name
from evidence_tasks import Size
from which_tokens import execute

CONFIG = Path(__file__).parent.parent / "configs" / "smollm2.yaml"
Settings = dict[str, str]


def sources(path: Path, **more: Any) -> str:
    """As a setting: commas and equals signs in a path are letters."""
    return json.dumps([{"path": str(path)} | more])


class NotDone(Exception):
    """A run that is needed is not there, and none may be made."""


class Bench(NamedTuple):
    """What all runs share."""

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
    only_done: bool = False

    def run(self, output: Path, settings: Settings) -> str | None:
        """Runs the main program unless that has been done; why there is no result, or None."""
        if self.only_done and not (output / "benchmark.json").exists():
            raise NotDone(output)
        common = {"policy.path": self.model, "logging.trackers": "[]"}
        set_by_hand = dict(pair.split("=", 1) for pair in self.more)
        return execute(output, common | settings | set_by_hand, CONFIG)


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
