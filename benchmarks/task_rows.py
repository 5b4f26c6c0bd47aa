"""The rows of benchmarks/tasks.py: dialogue, summaries and code, from the real data that it names."""

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

HELD_OUT = 5  # one prompt of so many
PAIRS_A_POST = {"train": 4, "held": 2}  # of 17 in the mean, so that no post outweighs others by much
COMPLETIONS_A_PROBLEM = 8  # that sft reads
Row = dict[str, Any]


class Rows(NamedTuple):
    """The rows of a task.

    sft: supervised texts, of training prompts only. train, held: pairs. prompts: what the policy answers."""

    sft: list[Row]
    train: list[Row]
    held: list[Row]
    prompts: list[Row]


def read(path: Path) -> list[Row]:
    with (
        gzip.open(path, "rt", encoding="utf-8")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8") as file
    ):
        return [json.loads(line) for line in file]


def split(rows: list[Row], key: Callable[[Row], str]) -> tuple[list[Row], list[Row]]:
    """Splits rows into (training, held out); all rows with the same key go to the same side."""
    held = [int(hashlib.sha256(key(row).encode()).hexdigest(), 16) % HELD_OUT == 0 for row in rows]
    return [row for row, out in zip(rows, held, strict=True) if not out], [
        row for row, out in zip(rows, held, strict=True) if out
    ]


def thinned(rows: list[Row], most: int) -> list[Row]:
    """At most `most` rows of each prompt, spread evenly over those it has."""
    of_prompt: dict[str, list[Row]] = {}
    for row in rows:
        of_prompt.setdefault(row["prompt"], []).append(row)
    return [
        of[n * len(of) // min(most, len(of))] for of in of_prompt.values() for n in range(min(most, len(of)))
    ]


def lesson(row: Row) -> Row:
    """A supervised row whose answer alone is learned."""
    return {"prompt": row["prompt"], "completion": row["chosen"]}


def dialogue(data: Path) -> Rows:
    """Supervised training reads each dialogue twice: all of it, and its last answer after the prompt that po
    will see."""
    train, held = split(
        read(data / "hh_harmless" / "train.jsonl.gz"),
        lambda row: row["prompt"].partition("\n\nAssistant:")[0],
    )
    return Rows(
        [one for row in train for one in ({"text": row["prompt"] + row["chosen"]}, lesson(row))],
        train,
        held,
        held,
    )


def summaries(data: Path) -> Rows:
    """Supervised training reads each post and its two best rated summaries; a held-out post's best is its
    reference."""
    pairs = read(data / "tldr_pairs" / "train.jsonl.gz")
    best: dict[str, list[Row]] = {}  # by post, from the best on, each summary once
    for row in sorted(pairs, key=lambda row: -row["chosen_reward"]):
        of = best.setdefault(row["prompt"], [])
        if all(row["chosen"] != other["chosen"] for other in of):
            of.append(row)
    train, held = split(pairs, lambda row: row["prompt"])

    def posts(rows: list[Row]) -> list[str]:
        return list(dict.fromkeys(row["prompt"] for row in rows))

    sft = [
        one
        for post in posts(train)
        for one in ({"text": post + best[post][0]["chosen"]}, *map(lesson, best[post][:2]))
    ]
    return Rows(
        sft,
        thinned(train, PAIRS_A_POST["train"]),
        thinned(held, PAIRS_A_POST["held"]),
        [best[post][0] for post in posts(held)],
    )


def code(data: Path) -> Rows:
    """Supervised training reads MBPP's training problems, and completions that pass HumanEval's (not its
    problems)."""
    problems = [
        {
            "prompt": f'"""\n{row["text"]}\n{row["test_list"][0]}\n"""\n',
            **row,
            "code": row["code"].replace("\r\n", "\n").strip() + "\n",
        }
        for row in read(data / "mbpp" / "mbpp.jsonl")
    ]
    asked = [row for row in problems if 11 <= row["task_id"] <= 510]
    known = {
        row[name] for row in asked for name in ("text", "code")
    }  # three training problems are test problems, too
    learned = [row for row in problems if row["task_id"] > 510 and not known & {row["text"], row["code"]}]
    train, held = split(
        read(data / "humaneval" / "pass_fail_pairs_train.jsonl.gz"), lambda row: row["prompt"]
    )
    sft = [{"text": row["prompt"] + row["code"]} for row in learned] + [
        lesson(row) for row in thinned(train, COMPLETIONS_A_PROBLEM)
    ]
    return Rows(
        sft, train, held, [{name: value for name, value in row.items() if name != "text"} for row in asked]
    )


TASKS = {"dialogue": dialogue, "summaries": summaries, "code": code}


def write(rows: Rows, directory: Path) -> None:
    """Writes the rows, but leaves files with the same content alone: a new time stamp would repeat the stages
    that read them."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, of in rows._asdict().items():
        path, text = directory / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in of)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def length_rule(rows: Rows) -> float:
    """Held-out accuracy of a policy that has learned lengths alone.

    It prefers the longer answer, or the shorter, whichever holds for the training pairs; in words, a tie
    counts one half."""

    def longer(pairs: list[Row]) -> float:
        lengths = [(len(row["chosen"].split()), len(row["rejected"].split())) for row in pairs]
        return fmean((chosen > rejected) + 0.5 * (chosen == rejected) for chosen, rejected in lengths)

    return longer(rows.held) if longer(rows.train) >= 0.5 else 1 - longer(rows.held)
