"""What weights from finished runs are worth: the recipes of configs/weigh, as their headers have them.

    python benchmarks/weighed.py [--seeds 0 1 2] [--out runs/weighed] [--at-once 2]

On the built-in reviews a recipe trains its judges, weighs the pairs by them, and trains on what it weighed,
all from the same supervised model. The same training without weights stands beside it. Accuracy counts the
256 held-out pairs that are preferred rightly: by the objective's own reward, unmasked, and with the weights
that each answer would have had if the other one had been chosen (benchmarks/exchanged_weights.py). KL is that
to the reference, in nats a response of the data; AUROC says how well the weights find the words that decide;
zeros is the share of weights that are exactly 0. Finished runs are not repeated. The result is kept in
results/weighed-DEVICE.json, docs/results/methods.md shows it.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from exchanged_weights import accuracies
from methods import FIGURES, OF_MASKS, intervals_of
from work import save_result

from sparsepo_jax.config.load import load_config

RECIPES = Path(__file__).parent.parent / "configs" / "weigh"
# Training without weights: beside which recipe, with which objective.
WITHOUT = {"tis": "kind: dpo, beta: 0.1", "sepo": "kind: simpo, beta: 2.0, gamma: 0.0"}
NO_WEIGHTS = ", no weights"
EXCHANGED = "accuracy_exchanged"
SHOWN = (*FIGURES, *OF_MASKS, EXCHANGED)


def commands_of(recipe: Path) -> list[list[str]]:
    """The arguments of the commands in a recipe's header: judges, weights, training."""
    header = [line[1:].strip() for line in recipe.read_text().splitlines() if line.startswith("#")]
    lines = "\n".join(header).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[3:] for line in lines if line.startswith("python -m sparsepo_jax.main")]


class Chain(NamedTuple):
    """A recipe with a seed. Its runs lie in `directory`, where its commands are typed."""

    recipe: Path
    seed: int
    directory: Path

    def commands(self) -> list[list[str]]:
        """Those of the header with the seed, and the training without weights."""
        commands = [["--config", str(self.recipe), *command[2:]] for command in commands_of(self.recipe)]
        commands[-1].append("stages=[sft, po, eval, score, report]")
        if self.recipe.stem in WITHOUT:
            objective = f"objective={{{WITHOUT[self.recipe.stem]}}}"
            commands.append([*commands[-1], f"output_dir={self._without()}", objective])
        return [self._with_seed(command) for command in commands]

    def _with_seed(self, command: list[str]) -> list[str]:
        end = command.index("--sweep") if "--sweep" in command else len(command)
        return [*command[:end], f"seed={self.seed}", "evaluation.sampled_prompts=null", *command[end:]]

    def _without(self) -> str:
        return f"runs/{self.recipe.stem}/without"

    def run(self) -> None:
        """Runs what is not finished. A command that fails ends the chain; its output says why."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for number, command in enumerate(self.commands()):
            with (self.directory / f"{self.recipe.stem}-{number}.log").open("w") as log:
                program = [sys.executable, "-m", "sparsepo_jax.main", *command]
                if subprocess.run(program, cwd=self.directory, stdout=log, stderr=log).returncode:
                    print(f"{self.recipe.stem}, seed {self.seed}: failed, see {log.name}", flush=True)
                    return
        print(f"{self.recipe.stem}, seed {self.seed}: done", flush=True)

    def rows(self) -> list[dict[str, Any]]:
        """The figures of its trainings, as far as they came."""
        trained = {self.recipe.stem: f"runs/{self.recipe.stem}/final"}
        if self.recipe.stem in WITHOUT:
            kind = WITHOUT[self.recipe.stem].split(",")[0].removeprefix("kind: ")
            trained[kind + NO_WEIGHTS] = self._without()
        rows = []
        for name, place in trained.items():
            path = self.directory / place / "summary.json"
            if path.exists():
                summary = json.loads(path.read_text())
                row = {"method": name, "seed": self.seed, "held_out": summary["pairs"]}
                row |= {figure: summary["after"][figure] for figure in FIGURES}
                row |= {figure: summary["mask"].get(figure) for figure in OF_MASKS}
                rows.append(row | {EXCHANGED: self._accuracy_exchanged(name, row["accuracy"])})
        return rows

    def _accuracy_exchanged(self, name: str, accuracy: float) -> float | None:
        if name != self.recipe.stem:
            return None  # no weights
        config = load_config(self.recipe)[0]
        as_made, exchanged = accuracies(config, self.directory, self.directory / config.output_dir)
        assert abs(as_made - accuracy) < 0.01, (name, as_made, accuracy)
        return exchanged


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/weighed"))
    parser.add_argument("--at-once", type=int, default=2)
    options = parser.parse_args()
    recipes = sorted(RECIPES.glob("*.yaml"))
    out = options.out.absolute()
    chains = [Chain(recipe, seed, out / f"seed_{seed}") for seed in options.seeds for recipe in recipes]
    began_s, is_new = time.monotonic(), not out.exists()
    with ThreadPoolExecutor(options.at_once) as threads:
        list(threads.map(Chain.run, chains))
    minutes = (time.monotonic() - began_s) / 60
    rows = [row for chain in chains for row in chain.rows()]
    names = sorted({row["method"] for row in rows}, key=lambda name: (NO_WEIGHTS not in name, name))
    by_name = {name: [row for row in rows if row["method"] == name] for name in names}
    means = {name: {"seeds": len(of), **intervals_of(of, SHOWN)} for name, of in by_name.items()}
    for name, of in means.items():
        shown = (f"{figure} {x['mean']:.3f}" for figure, x in of.items() if isinstance(x, dict))
        print(f"{name:<20}{of['seeds']} seeds  {'  '.join(shown)}")
    trained = load_config(recipes[0])[0].po
    result = {
        "command": "python benchmarks/weighed.py",
        "command_minutes": minutes if is_new else None,
        "seeds": options.seeds,
        "steps": trained.steps,
        "pairs": trained.batch_size,
        "held_out": rows[0]["held_out"],
        "means": means,
        "rows": rows,
    }
    print(save_result("weighed", result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
