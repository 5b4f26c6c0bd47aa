"""The paper's other tasks - dialogue, summaries, code - on real data, with its measures, at laptop size.

    python benchmarks/tasks.py DATA [--tasks dialogue summaries code] [--output runs/tasks] [--seeds 3] \\
        [--quick]

DATA is the directory that holds

    hh_harmless/train.jsonl.gz                 {"prompt", "chosen", "rejected"}
    tldr_pairs/train.jsonl.gz                  the same, and "chosen_reward"
    humaneval/pass_fail_pairs_train.jsonl.gz   programs that pass and fail HumanEval's tests, in the same form
    mbpp/mbpp.jsonl                             {"text", "code", "task_id", "test_list", "test_setup_code"}

For each task a small GPT-2 and its tokenizer are trained from nothing on its text (configs/tasks/*_sft.yaml),
then SparsePO and DPO from there over the same seeds (configs/tasks/*.yaml). They are measured on what no
stage has seen: pairs of held-out prompts (of a dialogue's opening, a post, a problem), and what the policy
writes before and after. The programs it writes are for MBPP's test problems (11 to 510), while its training
pairs are HumanEval's. Needs the extra [measures]; BERTScore is left out, because it needs a pretrained model.
The same command continues where it was stopped; one result a task is kept in results/.

--quick: a few steps of everything, into OUTPUT/quick, to see that it runs; no result is kept.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

from task_rows import TASKS, Row, Rows, length_rule, read, write
from work import save_result

from sparsepo_jax.eval.measures import measure_code
from sparsepo_jax.report.intervals import t_interval, wilson
from sparsepo_jax.sandbox.parent import SandboxLimits

CONFIGS = Path(__file__).parent.parent / "configs" / "tasks"
QUICK_SFT = ("sft.epochs=null", "sft.steps=3")
QUICK = (
    "po.steps=2",
    "evaluation.max_pairs=16",
    "evaluation.sampled_prompts=4",
    "generation.max_prompts=4",
    "generation.batch_size=4",
)
LABELS = {
    "accuracy": "held-out pairs, accuracy",
    "accuracy_unmasked": "the same, unmasked",
    "kl": "KL to the reference, nats a response",
    "generated_kl": "KL of what it writes",
    "zeros": "zeros in the mask",
    "words": "words written",
    "tokens": "tokens written",
    "ended": "answers that end in time",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "self_bleu": "self-BLEU",
    "distinct1": "distinct-1",
    "distinct2": "distinct-2",
    "distinct3": "distinct-3",
    "pass@1": "pass@1",
    "pass@10": "pass@10",
    "parses": "Python, and not empty",
}
POLICIES = {
    "before": "before/seed={}",
    "SparsePO": "grid/kind=sparsepo,seed={}",
    "DPO": "grid/kind=dpo,seed={}",
}
NOT_PYTHON = ("SyntaxError", "IndentationError", "TabError")


# ---------------------------------------------------------------- runs


def program(*arguments: str) -> None:
    """Runs the main program and shows its output; ends this one if it fails."""
    done = subprocess.run([sys.executable, "-m", "sparsepo_jax.main", *arguments])
    if done.returncode:
        sys.exit(done.returncode)


def run(task: str, output: Path, seeds: int, quick: bool) -> None:
    """Runs sft, then before/seed=N (what its policy writes) and grid/kind=K,seed=N; finished runs are not
    repeated."""
    program(
        "--config",
        str(CONFIGS / f"{task}_sft.yaml"),
        f"output_dir={output}/sft",
        f"data.sft.0.path={output}/data/sft.jsonl",
        *(QUICK_SFT if quick else ()),
    )
    files = {"train": "train", "eval": "held", "prompts": "prompts"}
    shared = (
        "--config",
        str(CONFIGS / f"{task}.yaml"),
        f"policy.path={output}/sft/export",
        *(f"data.{name}.0.path={output}/data/{file}.jsonl" for name, file in files.items()),
        *(QUICK if quick else ()),
    )
    seed = "seed=" + ",".join(map(str, range(seeds)))
    program(*shared, f"output_dir={output}/before", "stages=[generate, measure]", "--sweep", seed)
    program(*shared, f"output_dir={output}/grid", "--sweep", "objective.kind=sparsepo,dpo", seed)


def figures(run: Path) -> dict[str, float]:
    """The figures of a finished run that LABELS names."""
    values: dict[str, Any] = {}
    if (run / "summary.json").exists():
        summary = json.loads((run / "summary.json").read_text())
        values = summary["after"] | {"zeros": summary["mask"]["sparsity_end"]}
    measures = json.loads((run / "measures.json").read_text())
    values |= measures.get("text", {}) | measures.get("code", {})
    samples = [sample for line in read(run / "generations.jsonl") for sample in line["samples"]]
    values["words"], values["tokens"] = (
        fmean(len(of) for of in each)
        for each in ((s["text"].split() for s in samples), (s["token_ids"] for s in samples))
    )
    values["ended"] = fmean(sample["finish"] != "length" for sample in samples)
    if "code" in measures:
        whys = [line["why"].partition(":")[0] for line in read(run / "measures_samples.jsonl")]
        values["parses"] = fmean(
            sample["text"].strip() != "" and why not in NOT_PYTHON
            for sample, why in zip(samples, whys, strict=True)
        )
    return {name: values[name] for name in LABELS if values.get(name) is not None}


def ends(runs: list[Path]) -> dict[str, float]:
    """Shares of the ways in which the programs of some runs ended, most frequent first."""
    whys = Counter(
        line["why"].partition(":")[0] or "passed"
        for run in runs
        for line in read(run / "measures_samples.jsonl")
    )
    return {why: count / whys.total() for why, count in whys.most_common()}


def seconds(output: Path) -> float:
    """Seconds that all stages of all runs took, without starting the program."""
    return sum(
        mark["seconds"]
        for path in output.rglob("stages.json")
        for mark in json.loads(path.read_text()).values()
    )


def own_programs_pass(run: Path) -> float:
    """pass@1 of the problems' own programs: anything but 1 means that the tests are wrong."""
    records = [
        record | {"samples": [{"text": record["row"]["code"]}]} for record in read(run / "generations.jsonl")
    ]
    return measure_code(records, [1], SandboxLimits(), None, lambda: None)[0]["pass@1"]


# ---------------------------------------------------------------- what is said


def result_of(rows: Rows, output: Path, seeds: int) -> Row:
    """The figures of a task's finished runs, with intervals as in report.intervals."""
    runs = {name: [output / where.format(seed) for seed in range(seeds)] for name, where in POLICIES.items()}
    by_seed = {name: [figures(run) for run in of] for name, of in runs.items()}
    policies = {
        name: {
            figure: t_interval(values)._asdict() | {"by_seed": values}
            for figure in of[0]
            for values in [[one[figure] for one in of]]
        }
        for name, of in by_seed.items()
    }
    prompts = len({row["prompt"] for row in rows.held})
    result: Row = {
        "seeds": seeds,
        "seconds": round(seconds(output), 1),
        "rows": {name: len(of) for name, of in rows._asdict().items()},
        "held_prompts": prompts,
        "sft_loss": read(output / "sft" / "metrics.jsonl")[-1]["loss"],
        "length_rule": length_rule(rows),
        "policies": policies,
        # As if all pairs of a prompt were one case: they are not independent.
        "accuracy_over_prompts": {
            name: wilson(policies[name]["accuracy_unmasked"]["mean"], prompts)._asdict()
            for name in ("SparsePO", "DPO")
        },
    }
    if "pass@1" in policies["before"]:
        result |= {
            "own_programs_pass": own_programs_pass(runs["before"][0]),
            "ends": {name: ends(of) for name, of in runs.items()},
        }
    return result


def as_text(interval: Row, form: str = ".3f") -> str:
    return f"{interval['mean']:{form}}" + (
        "" if interval["low"] is None else f" ({interval['low']:{form}} to {interval['high']:{form}})"
    )


def show(task: str, result: Row) -> None:
    rows, policies, width = result["rows"], result["policies"], max(map(len, LABELS.values())) + 2
    print(
        f"\n{task}: {rows['train']} pairs to learn from, {rows['held']} of {result['held_prompts']} prompts "
        "held out; sft ended at "
        f"{result['sft_loss']:.2f} nats a token; mean (95 % interval over {result['seeds']} seeds)"
    )
    print(" " * width + "".join(f"{name:27}" for name in policies))
    for figure, label in LABELS.items():
        if any(figure in of for of in policies.values()):
            cells = [
                as_text(of[figure], ".1f" if figure in ("words", "tokens") else ".3f")
                if figure in of
                else "-"
                for of in policies.values()
            ]
            print(f"{label:{width}}" + "".join(f"{cell:27}" for cell in cells))
    others = ", ".join(
        f"{name} {as_text(interval)}" for name, interval in result["accuracy_over_prompts"].items()
    )
    print(
        f"unmasked accuracy, had the held-out prompts been others (Wilson): {others}; by length alone: "
        f"{result['length_rule']:.3f}"
    )
    if "ends" in result:
        print(
            f"the problems' own programs: pass@1 {result['own_programs_pass']:.3f}; how the policy's ended "
            f"(shares): {result['ends']}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--output", type=Path, default=Path("runs/tasks"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    for task in options.tasks:
        rows, output = TASKS[task](options.data), options.output / ("quick" if options.quick else "") / task
        write(rows, output / "data")
        run(task, output, options.seeds, options.quick)
        result = result_of(rows, output, options.seeds)
        show(task, result)
        print(output / "grid" / "comparison.html")
        if not options.quick:
            print(save_result(f"tasks-{task}", result))


if __name__ == "__main__":
    main()
