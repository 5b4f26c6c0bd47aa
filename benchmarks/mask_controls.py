"""Does it matter where a mask lies? Policies trained with fixed masks that have the same mean in each
response.

    python benchmarks/mask_controls.py [--variant NAME] [--controls NAME ...] [--seeds 0 1 2 3 4] \\
        [--betas BETA ...] [--out runs/which_tokens]

On the built-in reviews. For each seed the quickstart's SparsePO is trained as in benchmarks/which_tokens.py,
whose finished runs under --out are used. Its final reward mask is read off the training pairs, and the policy
is trained anew from the same start with weights given with the data (`objective.mask.kind=given`): that mask
itself, its values shuffled within each response, and masks of ones, random, positional, by confidence and of
an untrained net, all scaled to its mean in each response. Pairs, beta, steps and batches are the same; the
held-out figures are unmasked. Finished runs are not repeated. About 20 minutes in all on 2 cores. The result
is kept in results/mask_controls-reviews-DEVICE.json.

--variant: the learned mask is another of which_tokens: with a gate (masks/gates), mean 1 and no L1 term
(NAME-annealed: its temperature falls from 3 to 0.3), `mean-1` (with L1) or `sees-token`. The result is kept
in results/mask_controls-NAME-DEVICE.json, with the figures of the runs that learned the mask.

--betas: the shuffled mask is trained at these betas, too, so that it can be compared at the learned mask's
KL: of each seed, the line through its runs at the KL of the learned mask's, where that lies between theirs.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from which_tokens import ANNEALED, VARIANTS, execute, from_sft, of_seed, run
from work import save_result

from sparsepo_jax.masks.gates import GATES
from sparsepo_jax.report.intervals import t_interval

DECAY = 0.98  # of the positional mask: objective.mask.decay's default
Response = dict[str, list[float]]  # of scores.jsonl: token_ids, logp, ref_logp, reward_mask, ...


def confident(response: Response) -> np.ndarray:
    prob = np.exp(np.array(response["ref_logp"]))
    return (prob <= max(prob.mean(), prob.min())).astype(float)


# name -> weights of a response's tokens, from its record, its record by an untrained net, and a generator
CONTROLS: dict[str, Callable[[Response, Response, np.random.Generator], np.ndarray]] = {
    "the learned mask": lambda one, untrained, draws: np.array(one["reward_mask"]),
    "shuffled": lambda one, untrained, draws: draws.permutation(one["reward_mask"]),
    "ones": lambda one, untrained, draws: np.ones(len(one["logp"])),
    "random": lambda one, untrained, draws: draws.random(len(one["logp"])),
    "positional": lambda one, untrained, draws: DECAY ** np.arange(1, len(one["logp"]) + 1),
    "confidence": lambda one, untrained, draws: confident(one),
    "untrained net": lambda one, untrained, draws: np.array(untrained["reward_mask"]),
}
OTHERS = (
    "default",
    "mean-1",
    "sees-token",
    *GATES,
    *ANNEALED,
)  # variants that differ in nothing but the mask
LEARNING = "while it is learned"
# What is compared at one KL, and the KL that it is compared at: of held-out answers, or of those written.
# No margin: those of two betas have two scales.
AT_KL = {"accuracy_unmasked": "kl", "generated_preferred": "generated_kl"}
SPLITS = {
    "train": (4096, 2),
    "eval": (512, 3),
}  # rows and seed of the quickstart's reviews, as which_tokens.of_seed has them
COLUMNS = {
    "accuracy": "accuracy_unmasked",
    "margin": "margin_unmasked",
    "KL": "kl",
    "KL written": "generated_kl",
    "preferred written": "generated_preferred",
}


def scored(output: Path, settings: dict[str, str], seed: int, split: str) -> list[dict[str, Any]] | None:
    """The records of a split's pairs, token by token; None where the mask is dead."""
    rows, shift = SPLITS[split]
    if (
        execute(
            output, settings | {"data.eval": f"[{{kind: reviews, rows: {rows}, seed: {3 * seed + shift}}}]"}
        )
        is not None
    ):
        return None
    with (output / "scores.jsonl").open() as file:
        return [json.loads(line) for line in file]


def write_rows(
    path: Path, learned: list[dict], untrained: list[dict], control: str, draws: np.random.Generator
) -> None:
    """Pairs with token weights, each response's scaled to the mean of the learned mask there."""
    with path.open("w") as file:
        for one, other in zip(learned, untrained, strict=True):
            row = {"prompt_ids": one["prompt_ids"]}
            for name in ("chosen", "rejected"):
                mask, mean = (
                    CONTROLS[control](one[name], other[name], draws),
                    np.mean(one[name]["reward_mask"]),
                )
                row |= {
                    f"{name}_ids": one[name]["token_ids"],
                    f"{name}_weights": (mask * (mean / mask.mean() if mask.any() else 0.0)).tolist(),
                }
            file.write(json.dumps(row) + "\n")


def runs_of_seed(
    out: Path, seed: int, variant: str, controls: list[str], betas: list[float]
) -> list[dict[str, Any]]:
    """The figures of the run that learns the mask, and of those with the controls."""
    of = out / str(seed)
    print(f"seed {seed}", flush=True)
    if (why := run(out, seed, variant)["why"]) is not None:
        sys.exit(f"seed {seed}: {variant} is {why}")
    start = from_sft(out, seed)
    prefix = "" if variant == "default" else f"{variant}-"
    learned = (
        of_seed(seed)
        | VARIANTS[variant]
        | {
            "stages": "[score]",
            "policy.config": "null",
            "policy.path": str(of / variant / "export"),
            "reference.path": start["policy.path"],
        }
    )
    fresh = start | {
        "stages": "[po, score]",
        "po.steps": "1",
        "po.optimizer.learning_rate": "1e-12",
        "objective.mask": "{kind: learned, official: true}",
    }
    records = {
        (name, split): scored(of / f"{prefix}scores-{name}-{split}", settings, seed, split)
        for name, settings in (("learned", learned), ("untrained", fresh))
        if name == "learned" or "untrained net" in controls
        for split in SPLITS
    }
    learning = json.loads((of / variant / "summary.json").read_text())
    figures = {name: learning["after"].get(name) for name in COLUMNS.values()}
    rows = [{"seed": seed, "control": LEARNING, "zeros": learning["mask"]["sparsity_end"]} | figures]
    for number, control in enumerate(CONTROLS):
        if control not in controls:
            continue
        if control == "untrained net" and records["untrained", "train"] is None:
            print(f"  {control:<18} dead at the start")
            continue
        output, draws = (
            of / f"{prefix}given-{control.replace(' ', '_')}",
            np.random.default_rng([seed, number]),
        )
        output.mkdir(exist_ok=True)
        for split in SPLITS:
            if not (output / f"{split}.jsonl").exists():
                untrained = (
                    records.get(("untrained", split)) or records["learned", split]
                )  # only the control with an untrained net reads it, and that one is skipped if it is dead
                write_rows(output / f"{split}.jsonl", records["learned", split], untrained, control, draws)
        sources = {f"data.{split}": f"[{{path: {output / split}.jsonl}}]" for split in SPLITS}
        settings = {
            path: value
            for path, value in start.items()
            if path not in ("data.train.0.seed", "data.eval.0.seed")
        } | sources
        settings |= {"stages": "[po, eval]", "objective.mask": "{kind: given}"}
        runs = {control: (output / "run", settings)}
        for beta in betas if control == "shuffled" else ():
            runs[f"{control}, beta {beta:g}"] = (
                output / f"beta{beta:g}",
                settings | {"objective.beta": f"{beta:g}"},
            )
        for name, (directory, of_run) in runs.items():
            execute(directory, of_run)
            after = json.loads((directory / "summary.json").read_text())["after"]
            rows.append(
                {"seed": seed, "control": name} | {column: after[column] for column in COLUMNS.values()}
            )
            print(
                f"  {name:<18}" + "".join(f"{rows[-1][column]:>18.3f}" for column in COLUMNS.values()),
                flush=True,
            )
    return rows


def at_equal_kl(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The learned mask less the shuffled one at the learned one's KL, with intervals over seeds.

    Args:
        rows: of `runs_of_seed`, with the shuffled mask at several betas.

    Returns:
        By figure: `n`, `mean`, `low` and `high` over the seeds whose KL lies between those of the shuffled
            mask's runs; none where fewer than two do.
    """
    apart: dict[str, dict[str, Any]] = {}
    for figure, kl in AT_KL.items():
        differences = []
        for learned in (row for row in rows if row["control"] == "the learned mask"):
            line = sorted(
                (row[kl], row[figure])
                for row in rows
                if row["seed"] == learned["seed"] and row["control"].startswith("shuffled")
            )
            if len(line) > 1 and line[0][0] <= learned[kl] <= line[-1][0]:
                at, values = zip(*line, strict=True)
                differences.append(learned[figure] - float(np.interp(learned[kl], at, values)))
        if len(differences) > 1:
            apart[figure] = t_interval(differences)._asdict()
    return apart


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", choices=OTHERS, default="default", metavar="NAME")
    parser.add_argument("--controls", nargs="+", choices=CONTROLS, default=list(CONTROLS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--betas", type=float, nargs="+", default=[], metavar="BETA")
    parser.add_argument("--out", type=Path, default=Path("runs/which_tokens"))
    options = parser.parse_args()
    print(f"{'':<20}" + "".join(f"{name:>18}" for name in COLUMNS))
    rows = [
        row
        for seed in options.seeds
        for row in runs_of_seed(options.out, seed, options.variant, options.controls, options.betas)
    ]
    means = means_of(rows)
    print(f"means over {len(options.seeds)} seeds, 95 % intervals")
    for control, of in means.items():
        said = (
            "-" if x is None else f"{x['mean']:.3f} ({x['low']:.3f} to {x['high']:.3f})" for x in of.values()
        )
        print(f"  {control:<22}" + "".join(f"{one:>26}" for one in said))
    told = sys.argv[1:]  # but where the runs lie
    typed = [word for before, word in zip(["", *told], told, strict=False) if "--out" not in (before, word)]
    result = {
        "command": shlex.join(["python", "benchmarks/mask_controls.py", *typed]),
        "means": means,
        "rows": rows,
    }
    if options.betas:
        result["at_equal_kl"] = at_equal_kl(rows)
        for figure, x in result["at_equal_kl"].items():
            print(
                f"  {figure} at one {AT_KL[figure]}: {x['mean']:+.3f} ({x['low']:+.3f} to {x['high']:+.3f})"
            )
    named = "reviews" if options.variant == "default" else options.variant
    print(save_result(f"mask_controls-{named}", result))


def means_of(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By control, the means over seeds with their intervals; None where there are fewer than two values."""
    means: dict[str, dict[str, Any]] = {}
    for control in dict.fromkeys(row["control"] for row in rows):
        of = [row for row in rows if row["control"] == control]
        for name in COLUMNS.values():
            values = [row[name] for row in of if row[name] is not None]
            interval = t_interval(values)._asdict() if len(values) > 1 else None
            means.setdefault(control, {})[name] = interval
    return means


if __name__ == "__main__":
    main()
