"""What each run of benchmarks/evidence.py is: its settings, what it reads, what comes of it."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from evidence_bench import Bench, Final, Settings, sources
from evidence_figures import reasoning_figures, run_figures
from evidence_methods import METHODS, Method, Tried, as_yaml
from evidence_reasoning import harness_tasks, problems
from evidence_tasks import BATCH, LENGTHS, Files
from evidence_together import NotDone
from mask_controls import write_rows
from task_rows import Row, read

DONE = "evidence.json"  # in the directory of a final run: its figures
ANSWERED = 64  # held-out prompts that are answered
SAMPLES = 2  # answers to each, for self-BLEU
PROGRAMS = {"samples": 1, "temperature": 0, "max_new_tokens": 192, "batch_size": 32}  # greedy: pass@1


class Asked(NamedTuple):
    """What a policy is asked that may have lost its reasoning."""

    stages: list[str]
    settings: Settings


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


def run_cell(bench: Bench, task: str, name: str, files: Files, rate: float, beta: float | None) -> Tried:
    """One cell of a method's choice."""
    method = METHODS[name]
    output = Final(task, name, rate, beta, 0).path(bench.output / "choice")
    settings = settings_of(
        task,
        rate,
        bench.size.choice_steps,
        method.section(beta),
        sources(files.choice_train),
        sources(files.choice_held),
    )
    own = dict(pair.split("=", 1) for pair in method.more)
    own |= {"stages": "[po, eval]", "evaluation.sampled_prompts": "null"}
    why = bench.run(output, settings | own)
    shutil.rmtree(output / "po", ignore_errors=True)  # its weights
    after = {} if why else json.loads((output / "summary.json").read_text())["after"]
    return Tried(rate, beta, after.get("accuracy_unmasked"), after.get("kl"))


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
    bench.make(scores, settings_of(final.task, final.rate, 1, section, sources(files.train), both) | score)
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
        bench.make(rows.parent, settings)
    trained = bench.size.steps * BATCH
    return sources(rows, split=f"train[:{trained}]"), sources(rows, split=f"train[{trained}:]")


def train(bench: Bench, final: Final, files: Files) -> str | None:
    """The run of the comparison itself; why it has no result, or None."""
    method = METHODS[final.method]
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
    return bench.run(final.path(bench.output), settings)  # one made with other settings ends the command


def measured(bench: Bench, final: Final, why: str | None, judge: Path, asked: Asked) -> Row:
    """The figures of a run that has been trained, with those of reasoning where it was asked.

    Questions may be asked of a run that has its figures already, as long as its weights are kept."""
    output = final.path(bench.output)
    reasoning, done = output / "reasoning", output / DONE
    is_whole = why is not None
    if why is None and ((output / "export").exists() or (reasoning / "benchmark.json").exists()):
        with contextlib.suppress(NotDone):
            reason(bench, reasoning, str(output / "export"), asked)
            is_whole = True
    elif why is None and asked.stages:
        print(f"{output}: its weights are not kept any more: nothing can be asked of it", flush=True)
    if done.exists():
        figures: Row = json.loads(done.read_text())
    else:
        figures = final._asdict() | {"why": why} | ({} if why else run_figures(output, judge))
        done.write_text(json.dumps(figures, indent=1) + "\n")
    if is_whole:
        tidy(output, final.method, bool(asked.stages))
    return figures if why else figures | {"figures": figures["figures"] | reasoning_figures(reasoning)}


def questions(bench: Bench) -> Asked:
    """Writes the harness's tasks and the programming problems."""
    stages: list[str] = []
    settings: Settings = {}
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
    return Asked(stages, settings)


def reason(bench: Bench, output: Path, policy: str, asked: Asked) -> None:
    """Puts a policy to the harness's tasks and lets it write programs."""
    if asked.stages:
        own = {"policy.path": policy, "data.train": "[]", "data.holdout": "null"}
        bench.make(output, asked.settings | {"stages": json.dumps(asked.stages)} | own)


def tidy(run: Path, method: str, is_asked: bool) -> None:
    """Removes the weights of a finished run that nothing reads any more: a gigabyte and a half.

    is_asked: it has answered; else another command may ask it."""
    is_read = not is_asked or any(other.of == method for other in METHODS.values())
    for name in ("po", *(() if is_read else ("export",))):
        shutil.rmtree(run / name, ignore_errors=True)
