"""The tasks of benchmarks/evidence.py: their rows, split by prompt, the judge's rows and the word lists."""

import gzip
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from smollm2 import message_pairs
from task_rows import Row, read, split, summaries
from task_rows import write as write_rows

BATCH = 8  # pairs a step
CHOICE_HELD = 48  # pairs of training prompts on which a method's rate and beta are chosen
WORD = re.compile(r"[a-z']+")


class Texts(NamedTuple):
    """A task before it is cut to the size of a run.

    train, held: pairs, of different prompts. judge, judge_test: {"text", "label"}, what the judge learns from
    (training prompts only) and is tested on (held-out prompts only). words: those
    that make a difference between chosen and rejected in the training pairs."""

    train: list[Row]
    held: list[Row]
    judge: list[Row]
    judge_test: list[Row]
    words: list[str]


class Size(NamedTuple):
    """steps: of a final run. choice_steps: of a run that chooses. held: pairs evaluated."""

    steps: int
    choice_steps: int
    held: int


# ---------------------------------------------------------------- rows


def first_turn(row: Row) -> str:
    return next(turn["content"] for turn in row["prompt"] if turn["role"] == "user")


def polite(data: Path) -> tuple[list[Row], list[Row]]:
    """Polite against impolite answers to instructions (rasbt)."""
    return split(
        message_pairs(str(data / "pref_small" / "rasbt_instruction_preference.json.gz")),
        lambda row: json.dumps(row["prompt"]),
    )


def turns(prompt: str) -> list[Row]:
    """A dialogue of HH as messages: "\\n\\nHuman: Hi\\n\\nAssistant:" is one of the user, "Hi"."""
    parts = re.split(r"\n\n(Human|Assistant):", prompt.removesuffix("\n\nAssistant:"))[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": text.strip()}
        for who, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def answered(row: Row, prompt: list[Row]) -> Row:
    answers = {name: [{"role": "assistant", "content": row[name].strip()}] for name in ("chosen", "rejected")}
    return {"prompt": prompt} | answers


def harmless(data: Path) -> tuple[list[Row], list[Row]]:
    """HH harmless, split by a dialogue's opening. Dialogues with an empty turn are left out."""
    rows = [answered(row, turns(row["prompt"])) for row in read(data / "hh_harmless" / "train.jsonl.gz")]
    kept = [
        row
        for row in rows
        if all(turn["content"] for turn in [*row["prompt"], *row["chosen"], *row["rejected"]])
    ]
    return split(kept, first_turn)


def tldr(data: Path) -> tuple[list[Row], list[Row]]:
    """Reddit posts and summaries that people rated, one pair a post."""
    request = "Summarise this post in one or two sentences.\n\n"
    parts = summaries(data)
    sides = []
    for rows in (parts.train, parts.held):
        by_post = {row["prompt"]: row for row in rows}
        sides.append(
            [
                answered(row, [{"role": "user", "content": request + post.removesuffix("\n\nTL;DR:")}])
                for post, row in by_post.items()
            ]
        )
    return sides[0], sides[1]


PAIRS: dict[str, Callable[[Path], tuple[list[Row], list[Row]]]] = {
    "polite": polite,
    "harmless": harmless,
    "tldr": tldr,
}
TASKS = (*PAIRS, "imdb")
LENGTHS = {  # longest prompt + response, longest answer written, tokens
    "polite": (256, 48),
    "harmless": (320, 96),
    "tldr": (512, 64),
    "imdb": (96, 40),
}


def imdb(data: Path, made: Path) -> Texts:
    """Continuations that the model itself has sampled, paired by the judge (see evidence.sample_imdb)."""
    train, held = split(read(made), lambda row: row["prompt"])
    judge, judge_test = (
        [
            {"text": row["text"], "label": row["label"]}
            for row in read(data / "imdb_reviews" / f"{part}.jsonl.gz")
        ]
        for part in ("train", "test")
    )
    return Texts(train, held, judge, judge_test, telling_words(train))


def texts(task: str, data: Path) -> Texts:
    """A task's texts. The judge reads responses alone."""
    train, held = PAIRS[task](data)
    judge, judge_test = (
        [
            {"text": content(row[side]), "label": label}
            for row in rows
            for side, label in (("chosen", 1), ("rejected", 0))
        ]
        for rows in (train, held)
    )
    return Texts(train, held, judge, judge_test, telling_words(train))


# ---------------------------------------------------------------- words


def content(response: Any) -> str:
    return response if isinstance(response, str) else response[0]["content"]


def telling_words(pairs: list[Row], least_z: float = 3.0, prior: float = 0.5) -> list[str]:
    """Words that the chosen or the rejected responses have far more often than the other side.

    By the log-odds with a flat prior over their standard error (Monroe et al. 2008, "Fightin' Words"),
    counting a word once a response."""
    sides = [
        Counter(word for pair in pairs for word in set(WORD.findall(content(pair[side]).lower())))
        for side in ("chosen", "rejected")
    ]
    found = []
    for word in sorted(set(sides[0]) | set(sides[1])):
        counts = [side[word] + prior for side in sides]
        others = [len(pairs) - side[word] + prior for side in sides]
        odds = math.log(counts[0] / others[0]) - math.log(counts[1] / others[1])
        error = math.sqrt(sum(1 / count for count in counts))
        if abs(odds) / error >= least_z:
            found.append(word)
    return found


# ---------------------------------------------------------------- files


class Files(NamedTuple):
    """What the runs of a task read. choice_train, choice_held: of training prompts alone."""

    train: Path
    held: Path
    choice_train: Path
    choice_held: Path
    judge: Path
    judge_test: Path
    words: Path


def parts_of(task: Texts, size: Size) -> dict[str, list[Row]]:
    """The rows of each file. Pairs on which a choice is made are never trained on, and held-out ones are not
    chosen on."""
    choice_held, rest = task.train[:CHOICE_HELD], task.train[CHOICE_HELD:]
    return {
        "train": rest[: size.steps * BATCH],
        "held": task.held[: size.held],
        "choice_train": rest[: size.choice_steps * BATCH],
        "choice_held": choice_held,
        "judge": task.judge,
        "judge_test": task.judge_test,
    }


def write_files(task: Texts, size: Size, directory: Path) -> Files:
    """Writes a task's files; those with the same content are left alone."""
    rows = parts_of(task, size)
    for name, least in (("train", size.steps * BATCH), ("held", size.held)):
        if len(rows[name]) < least:
            raise SystemExit(
                f"{directory.name}: {len(rows[name])} rows to {name}, {least} are needed; lower the size"
            )
    kept = NamedTuple("Kept", [(name, list) for name in rows])(**rows)
    write_rows(kept, directory)
    words = directory / "words.txt"
    listed = "".join(f"{word}\n" for word in task.words)
    if not words.exists() or words.read_text() != listed:
        words.write_text(listed)
    return Files(**{name: directory / f"{name}.jsonl" for name in rows}, words=words)


def opened(path: Path) -> str:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open() as file:
        return file.read()


# ---------------------------------------------------------------- the judge


def train_judge(files: Files, directory: Path) -> dict[str, Any]:
    """Trains the judge unless it is there; what is known of it."""
    from sparsepo_jax.data.labelled import Labelled
    from sparsepo_jax.scoring.classifier import load_classifier, save_classifier, train_classifier

    def labelled(path: Path) -> Labelled:
        rows = read(path)
        labels = np.array([row["label"] == 1 for row in rows])
        return Labelled([row["text"] for row in rows], labels, np.ones(len(rows)))

    if not directory.exists():
        rows, test = labelled(files.judge), labelled(files.judge_test)
        judge = train_classifier(rows, max_features=200_000, l2=1.0)
        rewards, is_better = judge.probability(test.texts), test.positive_N
        are_pairs = is_better[::2].all() and not is_better[1::2].any()  # chosen, rejected, chosen, ...
        about = {
            "rows": len(rows.texts),
            "accuracy": judge.accuracy(rows),
            "test_accuracy": judge.accuracy(test),
            "test_pairs": float(np.mean(rewards[::2] > rewards[1::2])) if are_pairs else None,
        }
        save_classifier(directory, judge, about)
    return load_classifier(directory)[1]
