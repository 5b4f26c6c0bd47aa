"""The table of all methods: every objective of the schema, and masks of every kind, on the built-in reviews.

    python benchmarks/methods.py [--seeds 0 1 2] [--methods NAME ...] [--out runs/methods] [--at-once 2] \\
        [--so-far]

A sweep over methods and seeds, from the quickstart's small model, which is trained once a seed; --at-once
sweeps share the methods between them, since a run by itself leaves much of a second core idle. Each
method has the settings that its section has by default, and so its own beta: the table shows what one
gets, not which method is best at equal KL (benchmarks/sentiment.py does that on IMDB). Accuracy counts the
512 held-out pairs that are preferred rightly, by the objective's own reward and unmasked; KL is that to the
reference, in nats a response of the data; AUROC says how well token weights find the words that decide;
zeros is the share of weights that are exactly 0. Finished runs are not repeated; --so-far runs nothing and
keeps what is done. The result is kept in results/methods-DEVICE.json, docs/results/methods.md shows it.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from which_tokens import CONFIG
from work import save_result

from sparsepo_jax.config.schema.base import members
from sparsepo_jax.config.schema.masks import Mask
from sparsepo_jax.config.schema.objectives import Objective
from sparsepo_jax.report.intervals import t_interval
from sparsepo_jax.run.sweep import parse_axes

# What a section cannot have by default.
NEEDED = {"mix": "parts: [{objective: {kind: dpo}}, {weight: 0.1, objective: {kind: dpo_norm}}]"}
LEARNED = "kind: learned, sharing: common, learning_rate: 5e-3"
# Masks besides the objectives: SparsePO's objective with each, and gates in place of L1.
MASKS = {
    f"sparsepo, {kind} mask": f"kind: sparsepo, mask: {{kind: {kind}}}"
    for kind in members(Mask)
    if kind not in ("learned", "given")  # the reviews come without weights
}
GATES = {
    f"sparsepo, {gate}": f"kind: sparsepo, mask: {{{LEARNED}, mixer_activation: {gate}, normalise: true}}"
    for gate in ("sparsemax", "budget", "hard_concrete", "top_k")
}
QUICKSTART = {
    "sparsepo, L1 1e-3": f"kind: sparsepo, l1_reward: 1e-3, l1_kl: 1e-3, mask: {{{LEARNED}}}",
    "sparsepo, released start": "kind: sparsepo, mask: {kind: learned, official: true}",
    "sparsepo, independent masks": f"kind: sparsepo, mask: {{{LEARNED.replace('common', 'independent')}}}",
    "sparsepo, sees the token": f"kind: sparsepo, mask: {{{LEARNED}, sees: token}}",
}
WEIGHTED = {"dpo, WPO's weights": "kind: dpo, policy_weight: aligned"}
METHODS: dict[str, str] = (
    {kind: f"kind: {kind}" + (f", {NEEDED[kind]}" if kind in NEEDED else "") for kind in members(Objective)}
    | WEIGHTED
    | QUICKSTART
    | GATES
    | MASKS
)
STEPS, PAIRS = 200, 16
SETTINGS = ["stages=[sft, po, eval]", f"po.steps={STEPS}", f"po.batch_size={PAIRS}"]
SETTINGS.append("evaluation.sampled_prompts=null")  # sampling takes as long as training here
FIGURES = ("accuracy", "accuracy_unmasked", "margin_unmasked", "kl")
OF_MASKS = ("auroc_reward", "auroc_logratio", "sparsity_end")


def axis(methods: list[str]) -> str:
    """The methods' settings as --sweep has them."""
    return ",".join(f"{{{METHODS[name]}}}" for name in methods)


def sweep(grid: Path, seeds: list[int], methods: list[str], at_once: int) -> None:
    """Trains what is not there yet. A run that is refused does not end the others; its line says why.

    The first method goes alone: it trains the supervised models that the others start from. At the end one
    process looks at all of them, since of two that note at the same time one note may be lost.
    """
    parts = [part for n in range(at_once) if (part := methods[1:][n::at_once])]
    for together in ([methods[:1]], parts, [methods]):
        sweeps = [subprocess.Popen(command(grid, seeds, part)) for part in together]
        try:
            ended = {one.wait() for one in sweeps}
        finally:
            for one in sweeps:
                one.terminate()
        if not ended <= {0, 1}:
            sys.exit("a sweep did not come to its end; the same command continues it")


def command(grid: Path, seeds: list[int], methods: list[str]) -> list[str]:
    """One sweep's."""
    over = ["objective=" + axis(methods), "seed=" + ",".join(map(str, seeds))]
    program = [sys.executable, "-m", "sparsepo_jax.main", "--config", str(CONFIG), f"output_dir={grid}"]
    return [*program, *SETTINGS, "--sweep", *over]


def figures_of(grid: Path, methods: list[str]) -> list[dict[str, Any]]:
    """One row for each run; those without a result say why."""
    (read,) = parse_axes(["objective=" + axis(methods)])
    names = {
        json.dumps(value, sort_keys=True): name for value, name in zip(read.values, methods, strict=True)
    }
    rows = []
    for run in json.loads((grid / "sweep.json").read_text())["runs"]:
        values = run["values"]
        name = names.get(json.dumps(values["objective"], sort_keys=True))
        if name is None:  # of an earlier command with other methods
            continue
        why = None if run["status"] == "done" else run["error"] or "not run"
        row = {"method": name, "seed": values["seed"], "why": why, "seconds": run["seconds"]}
        if why is None:
            summary = json.loads((grid / run["name"] / "summary.json").read_text())
            row |= {figure: summary["after"][figure] for figure in FIGURES}
            row |= {figure: summary["mask"][figure] for figure in OF_MASKS}
            row |= {"ceiling": summary["mask"]["auroc_ceiling"], "held_out": summary["pairs"]}
        rows.append(row)
    return rows


def means_of(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By method, its settings and figures, and why runs have none."""
    means: dict[str, dict[str, Any]] = {}
    for name in (name for name in METHODS if any(row["method"] == name for row in rows)):
        done = [row for row in rows if row["method"] == name and row["why"] is None]
        why = list(dict.fromkeys(row["why"] for row in rows if row["method"] == name and row["why"]))
        means[name] = {"settings": METHODS[name], "seeds": len(done), "why": why, **intervals_of(done)}
    return means


def intervals_of(
    rows: list[dict[str, Any]], figures: tuple[str, ...] = (*FIGURES, *OF_MASKS)
) -> dict[str, Any]:
    """Each figure's mean over seeds with its 95 % interval; None where it has no meaning."""
    values = {name: [row[name] for row in rows if row[name] is not None] for name in figures}
    return {name: t_interval(of)._asdict() if of else None for name, of in values.items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--so-far", action="store_true")
    options = parser.parse_args()
    if options.at_once < 1:
        parser.error("--at-once: expected 1 or more")
    is_new, began_s = not options.out.exists(), time.monotonic()
    if not options.so_far:
        sweep(options.out, options.seeds, options.methods, options.at_once)
    command_minutes = (time.monotonic() - began_s) / 60
    rows = figures_of(options.out, options.methods)
    means = means_of(rows)
    for name, of in means.items():
        shown = (f"{figure} {x['mean']:.3f}" for figure, x in of.items() if isinstance(x, dict))
        print(f"{name:<32}{of['seeds']} seeds  {'  '.join(shown)}")
    told = sys.argv[1:]  # but where the runs lie
    typed = [word for before, word in zip(["", *told], told, strict=False) if "--out" not in (before, word)]
    result = {
        "command": " ".join(["python benchmarks/methods.py", *typed]),
        "minutes": sum(row["seconds"] for row in rows) / 60,
        "command_minutes": command_minutes if is_new and not options.so_far else None,  # all runs are its own
        "seeds": options.seeds,
        "steps": STEPS,
        "pairs": PAIRS,
        "held_out": next(row["held_out"] for row in rows if "held_out" in row),
        "ceiling": next(row["ceiling"] for row in rows if "ceiling" in row),
        "means": means,
        "rows": rows,
    }
    print(save_result("methods", result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
