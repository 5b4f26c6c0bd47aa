"""What is token-level preference optimisation worth on a model that can speak? SmolLM2 on real preferences.

    python benchmarks/evidence.py MODEL DATA [--tasks polite harmless tldr imdb] [--methods NAME ...] \\
        [--seeds 3] [--steps 32] [--cells 4] [--betas 2] [--held 96] [--reasoning 24] [--problems 32] \\
        [--output runs/evidence] [--set NAME=VALUE ...] [--at-once 1] [--budget SECONDS] [--so-far]

MODEL: SmolLM2-135M-Instruct as a Hugging Face directory (benchmarks/smollm2_model.py makes one) or a Hub id.
DATA is the directory that holds, as each was published,

    pref_small/rasbt_instruction_preference.json.gz, rmbench_chat.json.gz, rmbench_code.json.gz
    hh_harmless/train.jsonl.gz, tldr_pairs/train.jsonl.gz      {"prompt", "chosen", "rejected"}
    imdb_reviews/{train,test}.jsonl.gz                          {"text", "label"}
    humaneval/HumanEval.jsonl.gz, mbpp/mbpp.jsonl, corpora/, lexicons/vader_lexicon.txt

For each task a judge of responses is trained on training prompts. Each method tries the same number of
(rate, beta) cells (--cells) on pairs of training prompts, for half of the steps, and is judged on
others of them (evidence_methods.choose). At its chosen rate it then trains over the seeds with --betas betas,
the chosen one first, and is measured on prompts that no run has seen. Then it is put to harness tasks
(--reasoning rows each) and writes programs (--problems), as the model does before. 0 leaves these out.

Runs that are done are not repeated, and one that was stopped goes on: give the same command again, also with
more tasks, methods or seeds. Every method's first seed comes before any second one, and its chosen beta
before any second beta; methods come in the order in which they are given. A run that fails is said, and the
others go on. --so-far: run nothing, and keep the result of what is done. The result has its tasks beside
those that were kept before. --set: a setting for all runs.

On a GPU a run is mostly start and compilation, so make some at the same time, each with its part of the
memory:

    python benchmarks/evidence.py MODEL DATA --set compute.dtype=bfloat16 --at-once 12 --budget 540

--budget: after so many seconds nothing is started any more, what still runs is ended, and the result of what
is done is kept. The same command goes on from there.

Needs the extras [measures], [reward] and [lm_eval].
"""

import argparse
import contextlib
import datetime
import json
import shlex
import signal
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from evidence_bench import Bench, Final, sources
from evidence_figures import reasoning_figures, show, task_result
from evidence_methods import METHODS, MOST_KL, Tried, choose, ordered
from evidence_runs import Asked, betas_of, finals, measured, questions, reason, run_cell, train
from evidence_tasks import (
    BATCH,
    CHOICE_HELD,
    LENGTHS,
    PAIRS,
    TASKS,
    Files,
    Size,
    Texts,
    imdb,
    texts,
    train_judge,
    write_files,
)
from evidence_together import NotDone, Programs
from task_rows import Row
from work import result_path, save_result

IMDB = {"max_prompts": 800, "samples": 4}
MOST_THREADS = 2000  # nearly all of them wait


# ---------------------------------------------------------------- what a task reads


def sample_imdb(bench: Bench) -> Path:
    """Pairs of continuations by the model itself, those that the judge of reviews puts in different
    classes."""
    output, reviews = bench.output / "imdb" / "pairs", bench.data / "imdb_reviews"
    train, test = (sources(reviews / f"{part}.jsonl.gz") for part in ("train", "test"))
    drawn = IMDB | {"max_new_tokens": LENGTHS["imdb"][1], "batch_size": 16}
    settings = {
        "stages": "[pairs]",
        "data.train": "[]",
        "data.holdout": "null",
        "data.prompts": sources(reviews / "train.jsonl.gz", columns={"prompt": "text"}),
        "data.prompt_words": "5",
        "generation": json.dumps(drawn),
        "scorer": f"{{kind: classifier, train: {train}, test: {test}}}",
        "pairs": "{rule: best_worst, threshold: 0.5}",
    }
    bench.make(output, settings)
    return output / "pairs_made.jsonl"


def prepare(bench: Bench, task: str) -> Files:
    if task in PAIRS:
        of_task: Texts = texts(task, bench.data)
    else:
        of_task = imdb(bench.data, sample_imdb(bench))
    return write_files(of_task, bench.size, bench.output / task / "data")


# ---------------------------------------------------------------- the runs of a task


class TaskRuns:
    """The runs of a task, each in a thread that waits for the runs that it reads and then for a place.

    choices, trained, finals: what a method, a run of the comparison, and its figures come to."""

    def __init__(self, bench: Bench, task: str, files: Files, judge: Path, asked: Asked):
        self.bench, self.task, self.files, self.judge, self.asked = bench, task, files, judge, asked
        self.choices: dict[str, Future[tuple[Tried | None, list[Tried]]]] = {}
        self.trained: dict[Final, Future[str | None]] = {}
        self.finals: dict[Final, Future[Row]] = {}
        self._threads = ThreadPoolExecutor(MOST_THREADS)

    def __enter__(self) -> "TaskRuns":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.bench.programs.stop()
        self._threads.shutdown()

    def start(self, methods: list[str], base: Path) -> "Future[None]":
        """Starts all of them. The base model's reasoning."""
        first = self.bench._replace(rank=(0, 0, -1))
        before = self._threads.submit(reason, first, base, self.bench.model, self.asked)
        wanted = ordered(methods)
        self._places = {name: n for n, name in enumerate(dict.fromkeys([*methods, *wanted]))}
        for name in wanted:  # after the one that it weighs by
            self.choices[name] = self._threads.submit(self._choose, name)
        return before

    def _choose(self, name: str) -> tuple[Tried | None, list[Tried]]:
        """The chosen cell of a method, None where none will do, and the cells that were tried. Starts the
        method's runs."""
        method, tried = METHODS[name], []
        cells = method.cells(self.bench.cells)
        if method.of is not None:
            chosen, _ = self.choices[method.of].result()
        elif len(cells) == 1:
            chosen = Tried(*cells[0], None, None)
        else:
            own = self.bench._replace(rank=(0, 0, self._places[name]))
            runs = [self._threads.submit(run_cell, own, self.task, name, self.files, *cell) for cell in cells]
            tried = [run.result() for run in runs]
            chosen = choose(tried, CHOICE_HELD)
        if chosen is None:
            print(f"{self.task}, {name}: nothing chosen; no cell ran to its end within {MOST_KL} nats")
            return None, tried
        betas = betas_of(method, chosen, self.bench.betas)
        for final in finals(self.bench, self.task, {name: chosen}):
            rank = (betas.index(final.beta), final.seed, self._places[name])
            own = self.bench._replace(rank=rank)
            self.trained[final] = self._threads.submit(self._train, own, final)
            self.finals[final] = self._threads.submit(self._measure, own, final)
        return chosen, tried

    def _train(self, bench: Bench, final: Final) -> str | None:
        source = METHODS[final.method].of
        if source is not None and (why := self.trained[final._replace(method=source)].result()):
            raise bench.programs.fail(f"{final.path(bench.output)}: the run that it reads is {why}")
        return train(bench, final, self.files)

    def _measure(self, bench: Bench, final: Final) -> Row:
        return measured(bench, final, self.trained[final].result(), self.judge, self.asked)


def of_task(bench: Bench, task: str, methods: list[str]) -> Row:
    """A task's result over the methods, from runs that are made where they are not done."""
    files, judge = prepare(bench, task), bench.output / task / "judge"
    about, base = train_judge(files, judge), bench.output / "base"
    chosen: dict[str, Tried | None] = {}
    tried: dict[str, list[Tried]] = {}
    figures: list[Row] = []
    with TaskRuns(bench, task, files, judge, questions(bench)) as runs:
        before = runs.start(methods, base)
        for name, choice in runs.choices.items():
            with contextlib.suppress(NotDone):
                chosen[name], tried[name] = choice.result()
        for final in finals(bench, task, {name: cell for name, cell in chosen.items() if cell is not None}):
            with contextlib.suppress(NotDone):
                figures.append(runs.finals[final].result())
        with contextlib.suppress(NotDone):
            before.result()
    asked = {"reasoning": bench.reasoning, "problems": bench.problems}
    settings = {"batch": BATCH, "cells": bench.cells, "most_kl": MOST_KL} | asked | bench.size._asdict()
    return task_result(settings, about, chosen, tried, figures, reasoning_figures(base))


def stop(*_: object) -> None:
    """Ends this program by an exception, so that the run that it waits for does not go on alone."""
    sys.exit(143)


def command(words: list[str], options: argparse.Namespace) -> str:
    """What was typed, without this machine's paths."""
    places = {options.model: "MODEL", str(options.data): "DATA", str(options.output): "runs/evidence"}
    kept = (word for word in words if word != "--so-far")
    return "python benchmarks/evidence.py " + " ".join(places.get(w) or shlex.quote(w) for w in kept)


def result_of(bench: Bench, tasks: list[str], methods: list[str]) -> dict[str, Row]:
    """Of each task that has something to read."""
    results = {}
    for task in tasks:
        try:
            results[task] = of_task(bench, task, methods)
        except NotDone as why:
            print(f"{task}: left out ({why})")
        else:
            show(task, results[task])
    return results


def save(name: str, typed: str, tasks: dict[str, Row]) -> Path:
    """Keeps what tasks came to, each with its command and date, beside the tasks that were kept before."""
    path = result_path(name)
    before = json.loads(path.read_text())["tasks"] if path.exists() else {}
    about = {"command": typed, "date": datetime.date.today().isoformat()}
    return save_result(name, {"tasks": before | {task: about | result for task, result in tasks.items()}})


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--cells", type=int, choices=(1, 2, 4), default=4)
    parser.add_argument("--betas", type=int, choices=(1, 2), default=2)
    parser.add_argument("--held", type=int, default=96)
    parser.add_argument("--reasoning", type=int, default=24)
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--output", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE")
    parser.add_argument("--at-once", type=int, default=1, metavar="N")
    parser.add_argument("--budget", type=float, metavar="SECONDS")
    parser.add_argument("--so-far", action="store_true")
    parser.add_argument("--result", default="evidence", help="name of the file in results/")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    bench = Bench(
        options.model,
        options.data,
        options.output,
        Size(options.steps, max(1, options.steps // 2), options.held),
        options.cells,
        options.betas,
        options.seeds,
        options.reasoning,
        options.problems,
        tuple(options.set),
        Programs(options.at_once, options.budget),
        options.so_far,
    )
    results = result_of(bench, options.tasks, options.methods)
    # Last, because on an accelerator this process would take the memory that the runs need.
    print(save(options.result, command(sys.argv[1:], options), results))
    if bench.programs.failed:
        print(f"failed, and tried again by the same command: {len(bench.programs.failed)} runs")
    return 1 if bench.programs.failed else 0


if __name__ == "__main__":
    sys.exit(main())
