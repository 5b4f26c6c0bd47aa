"""Is reasoning kept or lost? Tasks of lm-evaluation-harness made of local data, and programs to write.

All of them run without a network. The harness's tasks are log-likelihoods: perplexity of WikiText-2, the
right one of two answers of RM-Bench (chat and code), and the right end of a sentence of a story among four.
"""

import json
import random
import re
from pathlib import Path
from typing import Any

from evidence_tasks import opened
from ruamel.yaml import YAML
from task_rows import Row, read

WORDS_A_PASSAGE = 150
CHOICES = 4
FIGURES = {  # in the result -> task, metric of the harness
    "wikitext_word_perplexity": ("ours_wikitext2", "word_perplexity,none"),
    "rmbench_chat": ("ours_rmbench_chat", "acc,none"),
    "rmbench_code": ("ours_rmbench_code", "acc,none"),
    "cloze": ("ours_cloze", "acc,none"),
}


def passages(data: Path, rows: int) -> list[Row]:
    """Of WikiText-2's test part, evenly spread."""
    words = re.sub(r"\s+", " ", opened(data / "corpora" / "wikitext2_test.txt.gz")).split(" ")
    starts = [n * (len(words) - WORDS_A_PASSAGE) // rows for n in range(rows)]
    return [{"page": " ".join(words[start : start + WORDS_A_PASSAGE])} for start in starts]


def two_answers(data: Path, part: str, rows: int) -> list[Row]:
    """RM-Bench: the concise right answer and the concise wrong one. The shortest prompts first."""
    pairs = json.loads(opened(data / "pref_small" / f"rmbench_{part}.json.gz"))
    pairs.sort(key=lambda pair: len(pair["prompt"] + pair["chosen"][0] + pair["rejected"][0]))
    return [
        {
            "question": f"{pair['prompt']}\n\n",
            "choices": [pair["chosen"][0], pair["rejected"][0]],
            "answer": 0,
        }
        for pair in pairs[:rows]
    ]


def cloze(data: Path, rows: int) -> list[Row]:
    """The last four words of a sentence of a story, against those of three other sentences."""
    text = re.sub(r"\s+", " ", opened(data / "corpora" / "tinystories_sample.txt"))
    sentences = [one for one in re.split(r"(?<=[.!?]) ", text) if 12 <= len(one.split()) <= 30]
    draws = random.Random(0)
    asked = sentences[:: max(1, len(sentences) // rows)][:rows]
    made = []
    for sentence in asked:
        others = draws.sample([one for one in sentences if one != sentence], CHOICES - 1)
        ends = [" " + " ".join(one.split()[-4:]) for one in (sentence, *others)]
        made.append({"question": " ".join(sentence.split()[:-4]), "choices": ends, "answer": 0})
    return made


def _task(name: str, rows: list[Row], directory: Path, own: dict[str, Any]) -> str:
    """Writes a task's rows and its file; files of the same content are left alone."""
    file = directory / f"{name}.jsonl"
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(file.resolve())},
            "cache_dir": str((directory / "cache").resolve()),
        },
        "test_split": "test",
        "metadata": {"version": 1.0},
    } | own
    directory.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
    path = directory / f"{name}.yaml"
    with path.open("w") as opened_file:
        YAML(typ="safe").dump(task, opened_file)
    return str(path)


def harness_tasks(data: Path, rows: int, directory: Path) -> list[str]:
    """Files of tasks with so many rows each."""
    rolling = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{page}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }
    choice = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    return [
        _task("ours_wikitext2", passages(data, rows), directory, rolling),
        _task("ours_rmbench_chat", two_answers(data, "chat", rows), directory, choice),
        _task("ours_rmbench_code", two_answers(data, "code", rows), directory, choice),
        _task("ours_cloze", cloze(data, rows), directory, choice),
    ]


def problems(data: Path, count: int) -> list[Row]:
    """Problems whose answers are run: HumanEval's and MBPP's (11 to 510) in turn, the shortest prompts first.

    The shortest, because a model of 135 M parameters solves hardly any of the others."""
    asked = "Write a Python function. Answer with all of its code, imports included.\n\n"
    humaneval = [
        {
            "prompt": [{"role": "user", "content": f"{asked}Complete:\n\n{row['prompt']}"}],
            "test": row["test"],
            "entry_point": row["entry_point"],
            "task_id": row["task_id"],
        }
        for row in read(data / "humaneval" / "HumanEval.jsonl.gz")
    ]
    mbpp = [
        {
            "prompt": [
                {"role": "user", "content": f"{asked}{row['text']} It must pass:\n{row['test_list'][0]}"}
            ],
            "test_list": row["test_list"],
            "test_setup_code": row["test_setup_code"],
            "task_id": f"MBPP/{row['task_id']}",
        }
        for row in read(data / "mbpp" / "mbpp.jsonl")
        if 11 <= row["task_id"] <= 510
    ]
    sides = [
        sorted(rows, key=lambda row: len(row["prompt"][0]["content"]))[: count - count // 2]
        for rows in (humaneval, mbpp)
    ]
    return [row for pair in zip(*sides, strict=True) for row in pair][:count]


def harness_figures(run: Path) -> dict[str, float]:
    """The figures of a run's harness.json that FIGURES names."""
    results = json.loads((run / "harness.json").read_text())["results"]
    return {name: results[task][metric] for name, (task, metric) in FIGURES.items()}
