"""Rounds: the configs of the runs that one config with `rounds` stands for.

    start          sft and its export, where the policy must be trained or made first
    round_1_pairs  the policy answers prompts, its answers are scored and paired
    round_1        po on these pairs, its export, and whatever else is asked for
    round_2_pairs  the same with the policy that round_1 has left, and so on

Each is a run like any other, so that an interrupted one continues where it was.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sparsepo_jax.config.schema.root import Config, Stage

BEFORE: tuple[Stage, ...] = ("sft",)  # done once
ROUND = "round_"  # and its number: the directory of a round's training
MAKING: tuple[Stage, ...] = ("pairs",)  # done in each round, in a run of its own


class RoundPart(NamedTuple):
    """A run of the chain. round: from 1; None: what comes before."""

    name: str
    round: int | None
    config: Config


def parts_of(config: Config) -> list[RoundPart]:
    """The runs in order. Each takes from those before it only what they have left in their directories."""
    return list(_parts(config))


def _parts(config: Config) -> Iterator[RoundPart]:
    rounds = config.rounds or 0
    policy: dict[str, Any] = config.policy.model_dump()
    tokenizer: dict[str, Any] = config.tokenizer.model_dump()
    if "sft" in config.stages or config.policy.path is None or config.policy.adapter is not None:
        stages = [*(stage for stage in BEFORE if stage in config.stages), "export"]
        start = _with(config, "start", {"stages": stages, "export": _handed_on()})
        yield RoundPart("start", None, start)
        policy, tokenizer = _left(start, tokenizer)
    first = policy["path"]
    for number in range(1, rounds + 1):
        seed = config.seed + number - 1  # other draws in each round
        starts = {"policy": policy, "tokenizer": tokenizer, "sft": {}, "seed": seed}
        making = _with(config, f"{ROUND}{number}_pairs", starts | {"stages": [*MAKING], "reference": {}})
        yield RoundPart(f"{ROUND}{number}_pairs", number, making)
        made = {"path": str(Path(making.output_dir) / "pairs_made.jsonl")}
        changes = starts | {
            "stages": _training_stages(config, is_last=number == rounds),
            "data": config.data.model_dump() | {"train": [made], "sft": []},
        }
        if config.round_reference == "first":
            changes["reference"] = config.reference.model_dump() | {"path": config.reference.path or first}
        if number < rounds:
            changes["export"] = _handed_on()
        training = _with(config, f"{ROUND}{number}", changes)
        yield RoundPart(f"{ROUND}{number}", number, training)
        policy, tokenizer = _left(training, tokenizer)


def _with(config: Config, name: str, changes: dict[str, Any]) -> Config:
    directory = str(Path(config.output_dir) / name)
    return Config.model_validate(config.model_dump() | {"rounds": None, "output_dir": directory} | changes)


def _handed_on() -> dict[str, Any]:
    """The export that the next round starts from: with all digits, and nowhere else."""
    return {"dtype": "float32"}


def _training_stages(config: Config, *, is_last: bool) -> list[Stage]:
    """po and what follows it; the export is needed by the round that comes next."""
    once = (*BEFORE, *MAKING, "po", "export")
    after: list[Stage] = [stage for stage in config.stages if stage not in once]
    exports: list[Stage] = ["export"] if not is_last or "export" in config.stages else []
    return ["po", *exports, *after]


def _left(config: Config, tokenizer: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(policy, tokenizer) of a run that has exported its policy. A BPE is not learned again of other text."""
    path = str(Path(config.output_dir) / "export")
    if tokenizer["kind"] == "bpe":
        tokenizer = {"kind": "pretrained", "path": path}
    return {"path": path}, tokenizer
