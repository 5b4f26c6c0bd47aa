"""What the runs of benchmarks/evidence.py come to: figures of a run, methods held against DPO, tokens.

A difference is resolved if the 95 % intervals over seeds and over prompts (where there is one) both leave out
zero. A share (an accuracy, the reward) has points: of two or more and not resolved it is called unresolved.
"""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean

import numpy as np
from evidence_methods import BASELINE, METHODS, Tried
from evidence_reasoning import FIGURES, harness_figures
from task_rows import Row, read

from sparsepo_jax.report.frontier import shared_kls, value_at
from sparsepo_jax.report.intervals import t_interval, wilson

TWO_POINTS = 0.02
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the stretch of KL that two methods share
SCALARS = {  # figure -> label
    "accuracy_unmasked": "held-out accuracy, unmasked",
    "generated_reward": "reward of what it writes",
    "generated_kl": "KL of what it writes, nats",
    "kl": "KL on the pairs, nats",
    "words": "words written",
    "self_bleu": "self-BLEU",
    "distinct2": "distinct-2",
    "sparsity": "zeros in the mask",
    "wikitext_word_perplexity": "WikiText-2, perplexity a word",
    "rmbench_chat": "RM-Bench chat, accuracy",
    "rmbench_code": "RM-Bench code, accuracy",
    "cloze": "ends of sentences, accuracy",
    "pass@1": "programs, pass@1",
}
COMPARED = ("accuracy_unmasked", "generated_reward", *FIGURES, "pass@1")
NO_SHARES = {"wikitext_word_perplexity"}  # of COMPARED: two points of it are nothing
Vectors = Mapping[
    int, Sequence[tuple[float, np.ndarray]]
]  # seed -> (KL, a value a prompt or pair) of its runs


# ---------------------------------------------------------------- one run


def reasoning_figures(directory: Path) -> dict[str, float]:
    """Of a run that was put to the harness and wrote programs; those of the two that it did."""
    figures = harness_figures(directory) if (directory / "harness.json").exists() else {}
    measures = directory / "measures.json"
    if measures.exists():
        figures |= {
            name: value for name, value in json.loads(measures.read_text())["code"].items() if "pass@" in name
        }
    return figures


def unmasked_margin(pair: Row) -> float:
    """Sum of log-ratios of the chosen response less that of the rejected one."""
    sums = [
        math.fsum(pair[side]["logp"]) - math.fsum(pair[side]["ref_logp"]) for side in ("chosen", "rejected")
    ]
    return sums[0] - sums[1]


def judged(samples: list[Row], judge: Path) -> dict[str, list[float]]:
    """The judge's probability of the better class for each answer, before and after training."""
    from sparsepo_jax.scoring.classifier import load_classifier

    classifier, _ = load_classifier(judge)
    return {
        when: [float(x) for x in classifier.probability([one[when] for one in samples])]
        for when in ("before", "after")
    }


def run_figures(run: Path, judge: Path) -> Row:
    """The figures of a finished run but those of reasoning.

    correct: 1, 0 or one half a held-out pair, unmasked. rewards, rewards_before: by prompt."""
    summary = json.loads((run / "summary.json").read_text())
    after, samples = summary["after"], read(run / "samples.jsonl")
    rewards = judged(samples, judge)
    margins = [unmasked_margin(pair) for pair in read(run / "pairs.jsonl")]
    mask = summary.get("mask") or {}
    text = json.loads((run / "measures.json").read_text())["text"]
    scalars = {name: after.get(name) for name in SCALARS} | {
        "generated_reward": fmean(rewards["after"]),
        "words": fmean(len(one["after"].split()) for one in samples),
        "sparsity": mask.get("sparsity_end"),
        "self_bleu": text.get("self_bleu"),
        "distinct2": text.get("distinct2"),
    }
    return {
        "run": str(run),
        "figures": {name: value for name, value in scalars.items() if value is not None},
        "correct": [0.5 + 0.5 * float(np.sign(margin)) for margin in margins],
        "rewards": rewards["after"],
        "rewards_before": rewards["before"],
        "words_before": fmean(len(one["before"].split()) for one in samples),
        "deletion": mask.get("deletion"),
        "lexicons": {
            name: {key: value for key, value in found["first_pieces"].items() if key.startswith("auroc")}
            for name, found in (summary.get("lexicons") or {}).items()
        },
    }


# ---------------------------------------------------------------- two methods


def verdict(mean: float, *intervals: tuple[float | None, float | None], share: bool = True) -> str:
    """intervals: over seeds, and over prompts where there is one. (None, None): one seed, nothing is
    resolved. share: whether two points count."""
    excluding = [low is not None and high is not None and (low > 0 or high < 0) for low, high in intervals]
    if all(excluding):
        return "resolved"
    if not share:
        return "not resolved"
    return "unresolved" if abs(mean) >= TWO_POINTS else "less than two points"


def difference_at(a: Vectors, b: Vectors, kl: float, share: bool = True) -> Row | None:
    """a - b at a KL, linear between each seed's nearest two runs; None if no seed of both reaches it."""
    by_seed: dict[int, np.ndarray] = {}
    for seed in sorted(a.keys() & b.keys()):
        sides = [_vector_at(points[seed], kl) for points in (a, b)]
        if sides[0] is not None and sides[1] is not None:
            by_seed[seed] = sides[0] - sides[1]
    if not by_seed:
        return None
    seeds = t_interval([float(one.mean()) for one in by_seed.values()])
    row: Row = {"kl": kl, "seeds": len(by_seed), "mean": seeds.mean, "over_seeds": [seeds.low, seeds.high]}
    intervals = [(seeds.low, seeds.high)]
    over = np.mean(list(by_seed.values()), axis=0)
    if len(over) > 1:
        prompts = t_interval(over.tolist())
        row["over_prompts"] = [prompts.low, prompts.high]
        intervals.append((prompts.low, prompts.high))
    return row | {"verdict": verdict(seeds.mean, *intervals, share=share)}


def _vector_at(points: Sequence[tuple[float, np.ndarray]], kl: float) -> np.ndarray | None:
    values = [value_at([(x, float(vector[n])) for x, vector in points], kl) for n in range(len(points[0][1]))]
    return None if None in values else np.array(values, float)


def compared(a: Vectors, b: Vectors, share: bool = True) -> list[Row]:
    """Differences at SHARES of the stretch of KL that the two share."""
    points = ({seed: [(kl, 0.0) for kl, _ in of] for seed, of in p.items()} for p in (a, b))
    rows = (difference_at(a, b, kl, share) for kl in shared_kls(*points, SHARES))
    return [row for row in rows if row is not None]


def vectors(runs: list[Row], figure: str) -> dict[int, list[tuple[float, np.ndarray]]]:
    """A figure of a method's runs by seed. The policy before training is no run: what is gained in the first
    nats is most of all, so that a line from there would lie far below what a weaker run reaches."""
    found: dict[int, list[tuple[float, np.ndarray]]] = {}
    for run in runs:
        if figure in run["figures"]:
            values = {"accuracy_unmasked": run["correct"], "generated_reward": run["rewards"]}
            value = np.array(values.get(figure, [run["figures"][figure]]))
            found.setdefault(run["seed"], []).append((run["figures"]["generated_kl"], value))
    return found


# ---------------------------------------------------------------- tokens


def masks_of(run: Path, which: str) -> list[np.ndarray]:
    """reward_mask or kl_mask of each response of the held-out pairs."""
    return [
        np.array(pair[side][which]) for pair in read(run / "pairs.jsonl") for side in ("chosen", "rejected")
    ]


def agreement(a: list[np.ndarray], b: list[np.ndarray]) -> float | None:
    """Mean over responses of the rank correlation of two masks; None if each is flat in every response."""
    from scipy.stats import rankdata

    values = []
    for one, other in zip(a, b, strict=True):
        if len(one) > 2 and np.ptp(one) > 0 and np.ptp(other) > 0:
            values.append(float(np.corrcoef(rankdata(one), rankdata(other))[0, 1]))
    return fmean(values) if values else None


def token_figures(runs: list[Row]) -> Row:
    """Of a method with a mask that was learned, from its runs at the chosen beta."""
    masks = [masks_of(Path(run["run"]), "reward_mask") for run in runs]
    between = [agreement(a, b) for a, b in combinations(masks, 2)]
    kl = [
        agreement(mask, masks_of(Path(run["run"]), "kl_mask")) for mask, run in zip(masks, runs, strict=True)
    ]
    lexicons = {
        name: {
            key: fmean(values)
            for key in of
            if None not in (values := [run["lexicons"][name][key] for run in runs])
        }
        for name, of in runs[0]["lexicons"].items()
    }
    shares = runs[0]["deletion"] or {}
    return {
        "between_seeds": _mean(between),
        "reward_and_kl": _mean(kl),
        "lexicons": lexicons,
        "deletion": {
            share: {key: fmean(run["deletion"][share][key] for run in runs) for key in of}
            for share, of in shares.items()
        },
    }


def _mean(values: Sequence[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return fmean(kept) if kept else None


# ---------------------------------------------------------------- a task


def task_result(
    settings: Row,
    judge: Row,
    chosen: Mapping[str, Tried | None],
    tried: Mapping[str, list[Tried]],
    runs: list[Row],
    base: Mapping[str, float],
) -> Row:
    """All that is kept of a task. base: the reasoning figures of the model before."""
    alive = [run for run in runs if run["why"] is None]
    of = {name: [run for run in alive if run["method"] == name] for name in METHODS}
    of = {name: found for name, found in of.items() if found}
    methods: dict[str, Row] = {}
    for name, found in of.items():
        cell = chosen[name]
        assert cell is not None
        main = [run for run in found if run["beta"] == cell.beta]
        methods[name] = {
            "rate": cell.rate,
            "beta": cell.beta,
            "tried": [one._asdict() for one in tried.get(name, [])],
            "seeds": len(main),
            "figures": {
                figure: t_interval(values)._asdict()
                for figure in SCALARS
                if (values := [run["figures"][figure] for run in main if figure in run["figures"]])
            },
            "accuracy_over_pairs": wilson(
                fmean(fmean(run["correct"]) for run in main), len(main[0]["correct"])
            )._asdict(),
            "points": [{"beta": run["beta"], "seed": run["seed"]} | run["figures"] for run in found],
        }
        if (
            METHODS[name].objective.get("mask", {}).get("kind", "learned") == "learned"
            and METHODS[name].objective["kind"] == "sparsepo"
        ):
            methods[name]["tokens"] = token_figures(main)
    return {
        "settings": settings,
        "judge": judge,
        "base": dict(base),
        "before": _before(alive),
        "methods": methods,
        "failed": [
            {key: run[key] for key in ("method", "beta", "seed", "why")} for run in runs if run["why"]
        ],
        "cells": {name: [one._asdict() for one in cells] for name, cells in tried.items() if cells},
        "not_chosen": [name for name, cell in chosen.items() if cell is None],
        "against": {name: rows for name in of if (rows := _against_baseline(of, name))},
    }


def _against_baseline(of: Mapping[str, list[Row]], name: str) -> dict[str, list[Row]]:
    """By figure, where a method and the baseline reach the same KL; {} if they do nowhere."""
    if name == BASELINE or BASELINE not in of:
        return {}
    found = {
        figure: compared(
            vectors(of[name], figure), vectors(of[BASELINE], figure), share=figure not in NO_SHARES
        )
        for figure in COMPARED
    }
    return {figure: rows for figure, rows in found.items() if rows}


def _before(runs: list[Row]) -> Row:
    if not runs:
        return {}
    by_seed = {run["seed"]: run for run in runs}.values()
    return {
        "generated_reward": t_interval([fmean(run["rewards_before"]) for run in by_seed])._asdict(),
        "words": t_interval([run["words_before"] for run in by_seed])._asdict(),
    }


def show(task: str, result: Row) -> None:
    """Prints a task's tables."""
    judge = result["judge"]
    print(
        f"\n{task}: the judge is right on {judge['test_accuracy']:.3f} of held-out responses; the model "
        f"before: {result['base']}"
    )
    for name, of in result["methods"].items():
        print(f"{name} (rate {of['rate']:g}, beta {of['beta']}, {of['seeds']} seeds)")
        for figure, interval in of["figures"].items():
            ends = (
                "one seed" if interval["low"] is None else f"{interval['low']:.3f} to {interval['high']:.3f}"
            )
            print(f"    {SCALARS[figure]:32}{interval['mean']:8.3f}  ({ends})")
    for name, figures in result["against"].items():
        for figure, rows in figures.items():
            last = rows[-1]
            print(
                f"{name} less {BASELINE} at {last['kl']:.2f} nats, {SCALARS[figure]}: {last['mean']:+.3f}, "
                f"{last['verdict']}"
            )
