"""Which tokens the masks find, and which recipe finds them best: AUROC against the ceiling, deletion,
sparsity.

    python benchmarks/which_tokens.py [--seeds 0 1 2 3 4] [--variants NAME ...] [--out runs/which_tokens] \\
        [--result which_tokens-reviews]

On the built-in reviews. Each seed has its own reviews and its own small model, trained once (sft). The
variants start from it: the quickstart's settings (`default`), the official ones, each departure from them
alone, all of them, and other betas. Finished runs under --out are not repeated, so the same command continues
after an interruption. Prints how much is left; about 30 minutes in all on 2 cores. The result is kept in
results/which_tokens-reviews-DEVICE.json (--result: another name).

A variant whose mask is dead at the start, which the program refuses, is counted as dead and left out of the
means. Exits with 1 if the mean AUROC of `default` is more than 0.02 below the ceiling.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from work import save_result

from sparsepo_jax.masks.gates import GATES

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
MASK = "objective.mask."
OFFICIAL = {
    MASK + "official": "true",
    MASK + "init": "official",
    MASK + "learning_rate": "null",
    MASK + "normalise": "false",
}
OWN = {
    "rate": {MASK + "learning_rate": "5e-3"},
    "ones": {MASK + "init": "ones"},
    "normalised": {MASK + "normalise": "true"},
}
NO_L1 = {"objective.l1_reward": "0", "objective.l1_kl": "0"}
VARIANTS: dict[str, dict[str, str]] = {
    "default": {},
    "official": OFFICIAL,
    "rate": OFFICIAL | OWN["rate"],
    "ones": OFFICIAL | OWN["ones"],
    "normalised": OFFICIAL | OWN["normalised"],
    "rate+ones": OFFICIAL | OWN["rate"] | OWN["ones"],
    "rate+normalised": OFFICIAL | OWN["rate"] | OWN["normalised"],
    "rate+ones+normalised": OFFICIAL | OWN["rate"] | OWN["ones"] | OWN["normalised"],
    "beta0.1": {"objective.beta": "0.1"},
    "beta0.4": {"objective.beta": "0.4"},
    "mean-1": OWN["normalised"],
    "sees-token": {MASK + "sees": "token"},
    **{name: {MASK + "mixer_activation": name} | OWN["normalised"] | NO_L1 for name in GATES},
}
ANNEALED = {  # over all steps of the quickstart, from dense to sparse
    f"{name}-annealed": VARIANTS[name]
    | {MASK + "temperature_start": "3", MASK + "temperature": "0.3", MASK + "temperature_steps": "400"}
    for name in GATES
}
VARIANTS |= ANNEALED
# "rate+ones" has the quickstart's settings, as "default".
NOT_BY_DEFAULT = ("rate+ones", "mean-1", "sees-token", *GATES, *ANNEALED)
DEAD = "the reward mask starts at zero on every token"
EXPECTED_S = {"sft": 45.0, "po": 25.0}  # until some run has been timed


class Failed(SystemExit):
    """A run of the program that ended with an error."""


def call_program(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def execute(
    output: Path,
    settings: dict[str, str],
    config: Path = CONFIG,
    call: Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"] = call_program,
) -> str | None:
    """Runs the program by `call` on a config into `output`, unless a finished run with these settings is
    there.

    Returns:
        Why there is no result, or None if there is one."""
    told, done = [f"{name}={value}" for name, value in settings.items()], output / "benchmark.json"
    if done.exists():
        record = json.loads(done.read_text())
        if record["settings"] != told:
            sys.exit(f"{output} was made with other settings; remove it, or take another --out")
        return record["why"]
    output.mkdir(parents=True, exist_ok=True)
    began_s = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "sparsepo_jax.main",
        "--config",
        str(config),
        f"output_dir={output}",
        *told,
    ]
    ended = call(command)
    if ended.returncode and DEAD not in ended.stderr:
        said = [line for line in ended.stderr.splitlines() if line.strip()]
        raise Failed(f"{output}: {said[-1] if said else 'no message'}")
    why = "dead at the start" if ended.returncode else None
    done.write_text(
        json.dumps({"settings": told, "why": why, "wall_s": round(time.perf_counter() - began_s, 1)}) + "\n"
    )
    return why


def of_seed(seed: int) -> dict[str, str]:
    return {
        "seed": str(seed),
        "data.sft.0.seed": str(3 * seed + 1),
        "data.train.0.seed": str(3 * seed + 2),
        "data.eval.0.seed": str(3 * seed + 3),
    }


def from_sft(out: Path, seed: int) -> dict[str, str]:
    """Settings of a run that starts from the seed's model; trains that model first if it is not there."""
    base = out / str(seed) / "sft"
    execute(base, of_seed(seed) | {"stages": "[sft, export]"})
    return of_seed(seed) | {"policy.config": "null", "policy.path": str(base / "export")}


def run(out: Path, seed: int, name: str) -> dict[str, Any]:
    """The figures of one variant from one seed's model; {"why": ...} where there are none."""
    output = out / str(seed) / name
    settings = from_sft(out, seed) | {"stages": "[po, eval, export]", "evaluation.sampled_prompts": "null"}
    why = execute(output, settings | VARIANTS[name])
    figures: dict[str, Any] = {
        "seed": seed,
        "variant": name,
        "why": why,
        "wall_s": json.loads((output / "benchmark.json").read_text())["wall_s"],
    }
    if why is not None:
        return figures
    summary = json.loads((output / "summary.json").read_text())
    mask = summary["mask"]
    return (
        figures
        | mask
        | {"below_ceiling": mask["auroc_ceiling"] - mask["auroc_reward"]}
        | {name: summary["after"][name] for name in ("accuracy_unmasked", "margin_unmasked", "kl")}
    )


def left_s(out: Path, seeds: list[int], names: list[str]) -> float:
    """Estimated seconds for the runs that are left, from those that are done."""
    wall_s: dict[str, list[float]] = {"sft": [], "po": []}
    left = {"sft": 0, "po": 0}
    for seed in seeds:
        for name in ("sft", *names):
            done, kind = out / str(seed) / name / "benchmark.json", "sft" if name == "sft" else "po"
            if done.exists():
                wall_s[kind].append(json.loads(done.read_text())["wall_s"])
            else:
                left[kind] += 1
    return sum(
        left[kind] * (statistics.median(wall_s[kind]) if wall_s[kind] else EXPECTED_S[kind]) for kind in left
    )


COLUMNS = {  # heading -> figure of a row
    "AUROC": lambda row: row["auroc_reward"],
    "below ceiling": lambda row: row["below_ceiling"],
    "untrained": lambda row: row["auroc_untrained"],
    "|log-ratio|": lambda row: row["auroc_logratio"],
    "shuffled": lambda row: row["auroc_shuffled"],
    "position": lambda row: row["auroc_position"],
    "random": lambda row: row["auroc_random"],
    "confidence": lambda row: row["auroc_confidence"],
    "zeros at 0": lambda row: row["sparsity_start"],
    "zeros at end": lambda row: row["sparsity_end"],
    "accuracy": lambda row: row["accuracy_unmasked"],
    "KL": lambda row: row["kl"],
    "without top 10 %": lambda row: row["deletion"]["0.1"]["accuracy_top"],
    "without any 10 %": lambda row: row["deletion"]["0.1"]["accuracy_random"],
}


def means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Heading -> mean, least and largest over the seeds."""
    values = {heading: [figure(row) for row in rows] for heading, figure in COLUMNS.items()}
    return {
        heading: {"mean": statistics.mean(figures), "least": min(figures), "largest": max(figures)}
        for heading, figures in values.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=[name for name in VARIANTS if name not in NOT_BY_DEFAULT],
    )
    parser.add_argument("--out", type=Path, default=Path("runs/which_tokens"))
    parser.add_argument("--result", default="which_tokens-reviews")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        for name in options.variants:
            print(
                f"about {left_s(options.out, options.seeds, options.variants) / 60:.0f} min left; seed "
                f"{seed}, {name}: ",
                end="",
                flush=True,
            )
            rows.append(run(options.out, seed, name))
            row = rows[-1]
            print(
                row["why"]
                or f"AUROC {row['auroc_reward']:.3f}, ceiling {row['auroc_ceiling']:.3f}, "
                f"{row['wall_s']:.0f} s",
                flush=True,
            )
    alive = {
        name: [row for row in rows if row["variant"] == name and row["why"] is None]
        for name in options.variants
    }
    table = {
        name: {"seeds": len(living), "dead": sum(row["variant"] == name for row in rows) - len(living)}
        | means(living)
        for name, living in alive.items()
        if living
    }
    print(
        f"{'means over seeds':<22}{'AUROC (least to largest)':>25}"
        + "".join(f"{heading:>18}" for heading in list(COLUMNS)[1:])
    )
    for name, figures in table.items():
        first, *others = (figures[heading] for heading in COLUMNS)
        print(
            f"{name:<22}"
            + f"{first['mean']:.3f} ({first['least']:.3f} to {first['largest']:.3f})".rjust(25)
            + "".join(f"{c['mean']:>18.3f}" for c in others)
        )
    for name in options.variants:
        dead = sum(row["variant"] == name and row["why"] is not None for row in rows)
        if dead:
            print(f"{name}: dead at the start in {dead} of {len(options.seeds)} seeds")
    # Last, because on an accelerator this process would take the memory that the runs need.
    print(
        save_result(
            options.result,
            {
                "command": " ".join(["python benchmarks/which_tokens.py", *sys.argv[1:]]),
                "means": table,
                "rows": rows,
                "variants": {name: VARIANTS[name] for name in options.variants},
            },
        )
    )
    return 0 if "default" not in table or table["default"]["below ceiling"]["mean"] <= 0.02 else 1


if __name__ == "__main__":
    sys.exit(main())
