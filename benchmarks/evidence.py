"""What is token-level preference optimisation worth on a model that can speak? SmolLM2 on real preferences.

    python benchmarks/evidence.py MODEL DATA [--tasks polite harmless tldr imdb] [--methods NAME ...] \\
        [--seeds 3] [--steps 32] [--cells 4] [--betas 2] [--held 96] [--reasoning 24] [--problems 32] \\
        [--output runs/evidence] [--set NAME=VALUE ...] [--so-far]

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
more tasks, methods or seeds. Every method's chosen beta comes before any second beta. --so-far: run nothing,
and keep the result of what is done. --set: a setting for all runs, as compute.dtype=bfloat16 on a GPU.
Needs the extras [measures], [reward] and [lm_eval].
"""

import argparse
import contextlib
import json
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
from evidence_bench import Bench, Final, NotDone, Settings, sources
from evidence_figures import reasoning_figures, run_figures, show, task_result
from evidence_methods import METHODS, MOST_KL, Method, Tried, as_yaml, choose, ordered
from evidence_reasoning import harness_tasks, problems
from evidence_tasks import (
    BATCH,
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
from mask_controls import write_rows
from task_rows import Row, read
from work import save_result

DONE = "evidence.json"  # in the directory of a final run: its figures
ANSWERED = 64  # held-out prompts that are answered
SAMPLES = 2  # answers to each, for self-BLEU
PROGRAMS = {"samples": 1, "temperature": 0, "max_new_tokens": 192, "batch_size": 32}  # greedy: pass@1
IMDB = {"max_prompts": 800, "samples": 4}


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
    made(bench, output, settings)
    return output / "pairs_made.jsonl"


def prepare(bench: Bench, task: str) -> Files:
    if task in PAIRS:
        of_task: Texts = texts(task, bench.data)
    else:
        of_task = imdb(bench.data, sample_imdb(bench))
    return write_files(of_task, bench.size, bench.output / task / "data")


# ---------------------------------------------------------------- runs


def settings_of(task: str, rate: float, steps: int, section: Row, train: str, held: str) -> Settings:
    length, _ = LENGTHS[task]
    return {
        "data.train": train,
        "data.holdout": "null",
        "data.eval": held,
        "data.max_length": str(length),
        "data.on_bad_row": "error",
        "objective": as_yaml(section),
        "po.steps": str(steps),
        "po.batch_size": str(BATCH),
        "po.optimizer.learning_rate": str(rate),
        "evaluation.max_pairs": "null",
    }


def choose_cell(bench: Bench, task: str, name: str, files: Files) -> tuple[Tried | None, list[Tried]]:
    """Runs the cells of a method; the chosen one, and all."""
    method, tried = METHODS[name], []
    cells = method.cells(bench.cells)
    if len(cells) == 1:
        return Tried(*cells[0], None, None), []
    for rate, beta in cells:
        final = Final(task, name, rate, beta, 0)
        output = final.path(bench.output / "choice")
        settings = settings_of(
            task,
            rate,
            bench.size.choice_steps,
            method.section(beta),
            sources(files.choice_train),
            sources(files.choice_held),
        )
        own = dict(pair.split("=", 1) for pair in method.more)
        why = bench.run(
            output, settings | own | {"stages": "[po, eval]", "evaluation.sampled_prompts": "null"}
        )
        shutil.rmtree(output / "po", ignore_errors=True)  # its weights
        after = {} if why else json.loads((output / "summary.json").read_text())["after"]
        tried.append(Tried(rate, beta, after.get("accuracy_unmasked"), after.get("kl")))
    return choose(tried), tried


def betas_of(method: Method, chosen: Tried, count: int) -> list[float | None]:
    """The chosen beta, then others of the method."""
    return [chosen.beta, *(beta for beta in method.betas if beta != chosen.beta)][:count]


def finals(bench: Bench, task: str, chosen: dict[str, Tried]) -> list[Final]:
    """The runs of the comparison in their order: all methods at their chosen beta, then at the next one.

    A method that weighs by another one's run has that one's chosen beta alone."""
    return [
        Final(task, name, cell.rate, betas[number], seed)
        for number in range(bench.betas)
        for name, cell in chosen.items()
        for betas in [betas_of(METHODS[name], cell, 1 if METHODS[name].of else bench.betas)]
        if number < len(betas)
        for seed in range(bench.seeds)
    ]


def weighed_rows(bench: Bench, final: Final, files: Files) -> tuple[str, str]:
    """(training pairs, held-out pairs) with token weights, as settings.

    They come from the finished run of METHODS[...].of with the same rate, beta and seed. Held-out pairs get
    some, too, since masked figures are taken of them; unmasked ones do not read them."""
    method, output = METHODS[final.method], final.path(bench.output)
    assert method.of is not None
    source = final._replace(method=method.of)
    scores, section = source.path(bench.output) / "all_scores", METHODS[method.of].section(final.beta)
    both = json.dumps([{"path": str(path)} for path in (files.train, files.held)])
    score = {
        "stages": "[score]",
        "policy.path": str(source.path(bench.output) / "export"),
        "reference.path": bench.model,
    }
    made(bench, scores, settings_of(final.task, final.rate, 1, section, sources(files.train), both) | score)
    if method.how == "shuffled":
        rows = output / "weighed.jsonl"
        output.mkdir(parents=True, exist_ok=True)
        if not rows.exists():
            records = read(scores / "scores.jsonl")
            write_rows(rows, records, records, "shuffled", np.random.default_rng(final.seed))
    else:
        rows = output / "weights" / "weighed.jsonl"
        weigh = json.dumps({"kind": method.how, "run": str(scores)})
        settings = {"stages": "[weigh]", "weigh": weigh, "data.train": "[]", "data.holdout": "null"}
        made(bench, rows.parent, settings)
    trained = bench.size.steps * BATCH
    return sources(rows, split=f"train[:{trained}]"), sources(rows, split=f"train[{trained}:]")


def made(bench: Bench, output: Path, settings: Settings) -> None:
    """Makes a run that others need; ends the program if there is no result."""
    if (why := bench.run(output, settings)) is not None:
        sys.exit(f"{output}: {why}")


def run_final(bench: Bench, final: Final, files: Files, judge: Path) -> dict[str, Any]:
    """The figures of a run of the comparison, which is made unless it is done."""
    method, output = METHODS[final.method], final.path(bench.output)
    train, held = sources(files.train), sources(files.held)
    if method.of:
        train, held = weighed_rows(bench, final, files)
    settings = settings_of(final.task, final.rate, bench.size.steps, method.section(final.beta), train, held)
    vader = bench.data / "lexicons" / "vader_lexicon.txt"
    settings |= dict(pair.split("=", 1) for pair in method.more) | {
        "stages": "[po, eval, generate, export, measure, report]",
        "seed": str(final.seed),
        "evaluation.sampled_prompts": str(min(ANSWERED, bench.size.held)),
        "evaluation.lexicons": json.dumps(
            [
                {"path": str(files.words), "kind": "opinion"},
                {"path": str(vader), "kind": "scores", "threshold": 1},
            ]
        ),
        "generation": f"{{samples: {SAMPLES}, max_new_tokens: {LENGTHS[final.task][1]}, batch_size: 32, "
        f"max_prompts: {min(ANSWERED, bench.size.held)}}}",
        "measure": "{text: {reference: null, rouge: false}}",
        "report.pairs": str(bench.size.held),
        "export.dtype": "bfloat16",
        "checkpoint.every_steps": "8",
    }
    why = bench.run(output, settings)  # one that was made with other settings ends the command
    if why is None:
        reason(bench, output / "reasoning", str(output / "export"))
    if (output / DONE).exists():
        return json.loads((output / DONE).read_text())
    figures: Row = final._asdict() | {"why": why} | ({} if why else run_figures(output, judge))
    (output / DONE).write_text(json.dumps(figures, indent=1) + "\n")
    tidy(output, final.method)
    return figures


def reason(bench: Bench, output: Path, policy: str) -> None:
    """Puts a policy to the harness's tasks and lets it write programs."""
    stages, settings = [], {}
    if bench.problems:
        rows = bench.output / f"problems_{bench.problems}.jsonl"
        if not rows.exists():
            rows.parent.mkdir(parents=True, exist_ok=True)
            rows.write_text("".join(json.dumps(row) + "\n" for row in problems(bench.data, bench.problems)))
        stages += ["generate", "measure"]
        settings |= {
            "data.prompts": sources(rows),
            "data.max_length": "1024",
            "generation": json.dumps(PROGRAMS),
            "measure": "{code: {k: [1]}}",
        }
    if bench.reasoning:
        tasks = harness_tasks(bench.data, bench.reasoning, bench.output / f"harness_{bench.reasoning}")
        stages += ["harness"]
        settings |= {"harness": f"{{tasks: {json.dumps(tasks)}, batch_size: 4, bootstrap_iters: 0}}"}
    if not stages:
        return
    own = {"stages": json.dumps(stages), "policy.path": policy, "data.train": "[]", "data.holdout": "null"}
    made(bench, output, settings | own)


def tidy(run: Path, method: str) -> None:
    """Removes the weights of a finished run that nothing reads any more: a gigabyte and a half."""
    is_read = any(other.of == method for other in METHODS.values())
    for name in ("po", *(() if is_read else ("export",))):
        shutil.rmtree(run / name, ignore_errors=True)


# ---------------------------------------------------------------- the command


def choices(
    bench: Bench, task: str, methods: list[str], files: Files
) -> tuple[dict[str, Tried | None], dict[str, list[Tried]]]:
    """The chosen cell of each method, None where none will do; and the cells that were tried."""
    chosen: dict[str, Tried | None] = {}
    tried: dict[str, list[Tried]] = {}
    for name in ordered(methods):
        if METHODS[name].of is not None:
            if METHODS[name].of in chosen:
                chosen[name] = chosen[METHODS[name].of]
            continue
        print(f"{task}, {name}: choosing", flush=True)
        try:
            chosen[name], tried[name] = choose_cell(bench, task, name, files)
        except NotDone:
            continue
        if chosen[name] is None:
            print(f"{task}, {name}: nothing chosen; no cell ran to its end within {MOST_KL} nats")
    return chosen, tried


def of_task(bench: Bench, task: str, methods: list[str]) -> Row:
    """A task's result over the methods, from runs that are made where they are not done."""
    files, judge = prepare(bench, task), bench.output / task / "judge"
    about, base = train_judge(files, judge), bench.output / "base"
    with contextlib.suppress(NotDone):
        reason(bench, base, bench.model)
    chosen, tried = choices(bench, task, methods, files)
    figures: list[Row] = []
    for final in finals(bench, task, {name: cell for name, cell in chosen.items() if cell is not None}):
        print(f"{task}, {final.method}, beta {final.beta}, seed {final.seed}", flush=True)
        with contextlib.suppress(NotDone):
            figures.append(run_final(bench, final, files, judge))
    settings = {"batch": BATCH, "cells": bench.cells} | bench.size._asdict()
    return task_result(settings, about, chosen, tried, figures, reasoning_figures(base))


def stop(*_: object) -> None:
    """Ends this program by an exception, so that the run that it waits for does not go on alone."""
    sys.exit(143)


def command(words: list[str], options: argparse.Namespace) -> str:
    """What was typed, without this machine's paths."""
    places = {options.model: "MODEL", str(options.data): "DATA", str(options.output): "runs/evidence"}
    kept = (word for word in words if word != "--so-far")
    return "python benchmarks/evidence.py " + " ".join(places.get(w) or shlex.quote(w) for w in kept)


def main() -> None:
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
        options.so_far,
    )
    results = {}
    for task in options.tasks:
        results[task] = of_task(bench, task, options.methods)
        show(task, results[task])
    kept = {"command": command(sys.argv[1:], options), "tasks": results}
    print(save_result(options.result, kept))


if __name__ == "__main__":
    main()
