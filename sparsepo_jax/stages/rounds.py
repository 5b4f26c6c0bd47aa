"""What rounds came to, side by side: rounds.json and a table at the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from sparsepo_jax.config.rounds import ROUND, RoundPart
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.files import write_json
from sparsepo_jax.report.files import evaluation_if_sound, read_if_sound
from sparsepo_jax.report.table import number, value
from sparsepo_jax.stages.context import say

_REFERENCES = {
    "previous": "the policy that a round began with: they do not add up over rounds",
    "first": "one reference in all rounds",
}
_COLUMNS = ("round", "pairs made", "score of answers", "accuracy", "KL")


def say_rounds(config: Config, parts: Sequence[RoundPart]) -> None:
    """Writes rounds.json, in the first process, and says it as a table."""
    if jax.process_index() != 0:
        return
    rounds = [_figures(config, number) for number in range(1, max(part.round or 0 for part in parts) + 1)]
    write_json(Path(config.output_dir) / "rounds.json", rounds)
    lines = [_COLUMNS, *(_cells(figures) for figures in rounds)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(_COLUMNS))]
    for line in lines:
        say("  ".join(f"{text:>{width}}" for text, width in zip(line, widths, strict=True)))
    evaluated = [figures for figures in rounds if value(figures, ("after", "kl")) is not None]
    if len(evaluated) > 1:
        say(f"accuracy and KL are against {_REFERENCES[config.round_reference]}")


def _figures(config: Config, number_of_round: int) -> dict[str, Any]:
    directory = Path(config.output_dir) / f"{ROUND}{number_of_round}"
    made_path = directory.with_name(f"{directory.name}_pairs") / "pairs" / "summary.json"
    made = read_if_sound(made_path, stage="pairs", broken=[])
    summary = evaluation_if_sound(directory, [])
    return {
        "round": number_of_round,
        "made": made,
        "after": summary.get("after"),
        "words": summary.get("words"),
    }


def _cells(figures: dict[str, Any]) -> tuple[str, ...]:
    made = value(figures, ("made", "pairs"))
    numbers = (("made", "mean_score"), ("after", "accuracy_unmasked"), ("after", "kl"))
    return (
        str(figures["round"]),
        "-" if made is None else f"{made:.0f}",
        *(number(value(figures, path)) for path in numbers),
    )
