"""Which objective buys sentiment at the least KL? The paper's IMDB experiment at a size for a laptop.

    python benchmarks/sentiment.py DATA [--output runs/sentiment] [--seeds 3] [--objectives NAME ...] \\
        [--epochs 3] [--result sentiment]

DATA is the directory that holds imdb_reviews/{train,test}.jsonl.gz (rows {"text", "label"}) and the word
lists that judge the masks, lexicons/opinion_{positive,negative}.txt (Hu and Liu) and sst_trees/train.txt.gz
(Stanford). Trains a small GPT-2 and its tokenizer on the reviews and a classifier on their labels, samples
continuations of their first words, pairs those that the classifier puts in different classes, and trains
every objective on the pairs, for each beta and seed. Reward: mean probability of the positive class over
continuations of held-out prompts. KL: of what the policy writes there, by sampling, nats a response. The same
command continues where it was stopped.

The control with a mask of ones is TDPO-1: unit masks make the token-weighted objective exactly that
(tests/test_losses.py).
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from work import save_result

from sparsepo_jax.masks.gates import GATES
from sparsepo_jax.report.frontier import matched, shared_kls
from sparsepo_jax.run.sweep import parse_axes

CONFIGS = Path(__file__).parent.parent / "configs" / "sentiment"
LEARNED, BETAS = "kind: learned, init: ones, learning_rate: 3e-3", (0.1, 0.4, 0.8)
OBJECTIVES: dict[str, tuple[str, tuple[float | None, ...]]] = {  # name -> settings, betas (None: it has none)
    "DPO": ("kind: dpo", BETAS),
    "TDPO-1 (mask of ones)": ("kind: tdpo1", BETAS),
    "TDPO-2": ("kind: tdpo2", BETAS),
    "MaPO": ("kind: mapo", BETAS),
    "SparsePO, common mask": ("kind: sparsepo, mask: {sharing: common, " + LEARNED + "}", BETAS),
    "SparsePO, common mask, L1 1e-3": (
        "kind: sparsepo, l1_reward: 1e-3, l1_kl: 1e-3, mask: {sharing: common, " + LEARNED + "}",
        BETAS,
    ),
    "SparsePO, common mask, L1 2e-3": (
        "kind: sparsepo, l1_reward: 2e-3, l1_kl: 2e-3, mask: {sharing: common, " + LEARNED + "}",
        BETAS,
    ),
    **{
        f"SparsePO, common mask, {gate}": (
            "kind: sparsepo, "
            f"mask: {{sharing: common, {LEARNED}, mixer_activation: {gate}, normalise: true}}",
            BETAS,
        )
        for gate in GATES
    },
    "SparsePO, independent masks": ("kind: sparsepo, mask: {sharing: independent, " + LEARNED + "}", BETAS),
    "random mask": ("kind: sparsepo, mask: {kind: random}", BETAS),
    "SimPO": ("kind: simpo, gamma: 1.0", (1.0, 2.0, 4.0)),  # of mean log-probs
    "DPOP": ("kind: dpop", BETAS),
    "SFT on the chosen": ("kind: orpo, odds_weight: 0", (None,)),
}
CORE = (
    "DPO",
    "TDPO-1 (mask of ones)",
    "MaPO",
    "SparsePO, common mask",
    "SparsePO, independent masks",
    "random mask",
)  # by default
BASELINE = "DPO"
WORDS = (
    "auroc_reward",
    "auroc_kl",
    "auroc_logratio",
    "auroc_untrained",
    "auroc_positional",
    "auroc_confidence",
    "auroc_random",
)


def program(*arguments: str) -> None:
    """Runs the main program and shows its output; ends this one if it fails."""
    done = subprocess.run([sys.executable, "-m", "sparsepo_jax.main", *arguments])
    if done.returncode:
        sys.exit(done.returncode)


def spec(objective: str, beta: float | None) -> str:
    settings, _ = OBJECTIVES[objective]
    return f"{{{settings}}}" if beta is None else f"{{{settings}, beta: {beta}}}"


def run_all(data: Path, output: Path, objectives: list[str], seeds: int, epochs: int) -> None:
    """Runs every stage; finished ones are not repeated."""
    train, test = (data / "imdb_reviews" / f"{split}.jsonl.gz" for split in ("train", "test"))
    program(
        "--config",
        str(CONFIGS / "sft.yaml"),
        f"output_dir={output}/sft",
        f"data.sft.0.path={train}",
        f"sft.epochs={epochs}",
    )
    program(
        "--config",
        str(CONFIGS / "pairs.yaml"),
        f"output_dir={output}/pairs",
        f"policy.path={output}/sft/export",
        f"data.prompts.0.path={train}",
        f"scorer.train.0.path={train}",
        f"scorer.test.0.path={test}",
    )
    lexicons = [
        f"{{path: {data}/lexicons/opinion_{side}.txt, kind: opinion}}" for side in ("positive", "negative")
    ]
    lexicons.append(f"{{path: {data}/sst_trees/train.txt.gz, kind: treebank, threshold: 0.5}}")
    program(
        "--config",
        str(CONFIGS / "po.yaml"),
        f"evaluation.lexicons=[{', '.join(lexicons)}]",
        f"output_dir={output}/grid",
        f"policy.path={output}/sft/export",
        f"data.train.0.path={output}/pairs/pairs_made.jsonl",
        f"scorer.path={output}/pairs/classifier",
        "--metric",
        "generated_reward",
        "--sweep",
        "objective=" + ",".join(spec(name, beta) for name in objectives for beta in OBJECTIVES[name][1]),
        "seed=" + ",".join(map(str, range(seeds))),
    )


def read_points(grid: Path) -> list[dict]:
    """One point for each finished run."""
    names = [(name, beta) for name, (_, betas) in OBJECTIVES.items() for beta in betas]
    (read,) = parse_axes(["objective=" + ",".join(spec(*one) for one in names)])
    known = {json.dumps(value, sort_keys=True): one for value, one in zip(read.values, names, strict=True)}
    runs = json.loads((grid / "sweep.json").read_text())["runs"]
    points = []
    for run in runs:
        if run["status"] != "done":
            print(f"left out, {run['status']}: {run['name']}", file=sys.stderr)
            continue
        summary, values = json.loads((grid / run["name"] / "summary.json").read_text()), run["values"]
        after, (objective, beta) = summary["after"], known[json.dumps(values["objective"], sort_keys=True)]
        points.append(
            {
                "objective": objective,
                "beta": beta,
                "seed": values["seed"],
                "kl": after["generated_kl"],
                "reward": after["generated_reward"],
                "reward_before": summary["before"]["generated_reward"],
                "accuracy_unmasked": after["accuracy_unmasked"],
                "sparsity_start": summary["mask"]["sparsity_start"],
                "sparsity": summary["mask"]["sparsity_end"],
                "deletion": summary["mask"]["deletion"],
                "seconds": run["seconds"],
                "words": {
                    lexicon: {
                        which: {key: of[key] for key in WORDS}
                        for which, of in (("all", found), ("first pieces", found["first_pieces"]))
                    }
                    for lexicon, found in summary["lexicons"].items()
                },
            }
        )
    return points


def made_before(output: Path) -> dict[str, float]:
    """What the grid started from."""
    losses = [json.loads(line)["loss"] for line in (output / "sft" / "metrics.jsonl").open()][-20:]
    with (output / "pairs" / "pairs_made.jsonl").open() as file:
        return {"sft_loss": statistics.fmean(losses), "pairs": sum(1 for _ in file)}


def frontier(points: list[dict], objective: str) -> dict[int, list[tuple[float, float]]]:
    """By seed: (KL, reward) for each beta.

    The policy before training, at KL 0, is no point of it: reward rises within the first tenths of a nat, and
    a straight line from there to the first run would put a method far below what it reaches.
    """
    of_seed: dict[int, list[tuple[float, float]]] = {}
    for point in points:
        if point["objective"] == objective:
            of_seed.setdefault(point["seed"], []).append((point["kl"], point["reward"]))
    return of_seed


def compare(points: list[dict]) -> list[dict]:
    """Each objective against the baseline at KLs that both reach with the most seeds.

    As --compare does it: between two betas along a straight line. One without betas is left out.
    """
    rows = []
    base = frontier(points, BASELINE)
    for objective in OBJECTIVES:
        ours = frontier(points, objective)
        kls = [] if objective == BASELINE else shared_kls(ours, base)
        for one in matched(ours, base, kls):
            if one.difference is not None:
                rows.append(
                    {
                        "objective": objective,
                        "kl": one.kl,
                        "seeds": one.difference.n,
                        "difference": one.difference.mean,
                        "low": one.difference.low,
                        "high": one.difference.high,
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/sentiment"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="of supervised training before the pairs")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(CORE), metavar="NAME")
    parser.add_argument("--result", default="sentiment", help="name of the file in results/")
    options = parser.parse_args()
    run_all(options.data, options.output, options.objectives, options.seeds, options.epochs)
    points = read_points(options.output / "grid")

    trained = [name for name in OBJECTIVES if any(point["objective"] == name for point in points)]
    print(
        f"\n{'':30} beta      KL  reward  (before)  accuracy, unmasked   zeros   mean of {options.seeds} "
        "seeds"
    )
    for objective in trained:
        for beta in OBJECTIVES[objective][1]:
            of = [point for point in points if (point["objective"], point["beta"]) == (objective, beta)]
            mean = {
                key: statistics.fmean(point[key] or 0.0 for point in of)
                for key in ("kl", "reward", "reward_before", "accuracy_unmasked", "sparsity")
            }
            print(
                f"{objective:30} {beta or '-':>4} {mean['kl']:7.2f} {mean['reward']:7.3f} "
                f"{mean['reward_before']:9.3f} {mean['accuracy_unmasked']:19.3f} "
                f"{mean['sparsity']:7.3f}"
            )
    rows = compare(points)
    print(f"\nreward less that of {BASELINE} at the same KL, 95 % interval over seeds")
    for row in rows:
        interval = "one seed" if row["low"] is None else f"{row['low']:+.3f} to {row['high']:+.3f}"
        print(f"{row['objective']:30} at {row['kl']:6.2f} nats {row['difference']:+.3f} ({interval})")
    print(
        "\nAUROC for the words of a lexicon (first pieces of words), mean over betas and seeds\n"
        + f"{'':41}"
        + " ".join(f"{key[6:]:>10}" for key in WORDS)
    )
    for objective in trained:
        for lexicon in points[0]["words"]:
            of = [
                point["words"][lexicon]["first pieces"] for point in points if point["objective"] == objective
            ]
            mean = [
                None if any(row[key] is None for row in of) else statistics.fmean(row[key] for row in of)
                for key in WORDS
            ]
            print(
                f"{objective:30} {lexicon:10}"
                + " ".join(f"{'-' if x is None else format(x, '.3f'):>10}" for x in mean)
            )
    print(
        "\naccuracy, unmasked, when each response loses a share of its tokens: those of the largest mask, "
        "those of the smallest, any; mean over betas and seeds"
    )
    for objective in trained:
        of = [
            point["deletion"]
            for point in points
            if point["objective"] == objective and point["deletion"] is not None
        ]
        for share in of[0] if of else ():
            three = (
                statistics.fmean(one[share][f"accuracy_{rule}"] for one in of)
                for rule in ("top", "bottom", "random")
            )
            print(f"{objective:30} {share:>5}" + "".join(f"{x:9.3f}" for x in three))
    kept = {
        "seeds": options.seeds,
        "epochs": options.epochs,
        "made": made_before(options.output),
        "objectives": {name: OBJECTIVES[name][0] for name in options.objectives},
        "points": points,
        "matched": rows,
    }
    print(save_result(options.result, kept))
    print(options.output / "grid" / "comparison.html")


if __name__ == "__main__":
    main()
