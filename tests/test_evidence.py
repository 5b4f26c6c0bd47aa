"""benchmarks/evidence.py: how it chooses, what it calls resolved, and that it goes on where it was stopped.

No model runs here: a stub takes the place of the main program. It has the program's own reader of configs
judge the settings, and writes what a run would write."""

import argparse
import importlib.util
import json
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from sparsepo_jax.config.load import load_config

ROOT = Path(__file__).parent.parent


@pytest.fixture
def of_benchmarks(monkeypatch):
    """import_module for modules of benchmarks/."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_of_cells_that_are_alike_in_accuracy_the_nearest_within_the_limit_of_kl_is_chosen(of_benchmarks):
    """The error of 0.8 on 100 pairs is 0.04. Kills: the highest accuracy, whatever its KL."""
    methods = of_benchmarks("evidence_methods")
    cells = [
        methods.Tried(1e-5, 0.1, 0.8, 0.8),
        methods.Tried(3e-5, 0.1, 0.95, 3.0),  # too far from the reference
        methods.Tried(1e-5, 0.4, 0.77, 0.4),  # cannot be told from the first, and nearer
        methods.Tried(3e-6, 0.1, 0.75, 0.1),  # can be
        methods.Tried(3e-5, 0.4, None, None),  # failed
    ]
    assert methods.choose(cells, 100) == cells[2] and methods.choose(cells, 10_000) == cells[0]
    assert methods.choose(cells[1:2], 100) is None and methods.choose([], 100) is None


def test_every_method_tries_as_many_cells(of_benchmarks):
    methods = of_benchmarks("evidence_methods")
    for count in (1, 2, 4):
        budgets = {len(set(m.cells(count))) for m in methods.METHODS.values() if m.of is None}
        assert budgets == {count}
    names = methods.ordered(["shuffled mask", "DPO"])
    assert names.index("SparsePO, common") < names.index("shuffled mask")


def test_no_pair_is_both_learned_and_chosen_on(of_benchmarks):
    tasks = of_benchmarks("evidence_tasks")
    train = [{"prompt": f"t{n}"} for n in range(200)]
    held = [{"prompt": f"h{n}"} for n in range(30)]
    parts = tasks.parts_of(tasks.Texts(train, held, [], [], []), tasks.Size(16, 8, 20))
    names = {name: {row["prompt"] for row in rows} for name, rows in parts.items()}
    assert not names["choice_held"] & (names["train"] | names["choice_train"])
    assert not names["held"] & (names["train"] | names["choice_held"])
    assert [len(parts[name]) for name in ("train", "choice_train", "held")] == [128, 64, 20]


def test_words_that_tell_the_sides_apart(of_benchmarks):
    pairs = [{"chosen": f"please take {n}", "rejected": f"obviously take {n}"} for n in range(40)]
    assert of_benchmarks("evidence_tasks").telling_words(pairs) == ["obviously", "please"]


def test_dialogues_become_turns(of_benchmarks):
    text = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Two\n\nlines\n\nAssistant:"
    assert of_benchmarks("evidence_tasks").turns(text) == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Two\n\nlines"},
    ]


@pytest.mark.parametrize(
    "mean, intervals, expected",
    [
        (0.1, [(0.05, 0.15), (0.01, 0.2)], "resolved"),
        (0.1, [(0.05, 0.15), (-0.01, 0.2)], "unresolved"),
        (-0.1, [(-0.2, -0.05)], "resolved"),
        (0.1, [(None, None)], "unresolved"),  # one seed says nothing
        (0.01, [(-0.05, 0.15)], "less than two points"),
    ],
)
def test_what_is_called_resolved(of_benchmarks, mean, intervals, expected):
    assert of_benchmarks("evidence_figures").verdict(mean, *intervals) == expected


def test_two_points_are_of_shares_alone(of_benchmarks):
    """Kills: 0.02 of a perplexity of 107 called unresolved."""
    figures = of_benchmarks("evidence_figures")

    def runs(more):
        of = {"accuracy_unmasked": 0.8 + more, "wikitext_word_perplexity": 107.0 + more}
        return [
            {
                "seed": seed,
                "figures": {"generated_kl": kl} | of,
                "correct": [of["accuracy_unmasked"]] * 2,
                "rewards": [],
            }
            for seed, kl in [(0, 0.5), (0, 1.0)]
        ]

    rows = figures._against_baseline({"DPO": runs(0.0), "SparsePO": runs(0.03)}, "SparsePO")
    verdicts = {figure: {row["verdict"] for row in of} for figure, of in rows.items()}
    assert verdicts == {"accuracy_unmasked": {"unresolved"}, "wikitext_word_perplexity": {"not resolved"}}


def test_methods_are_held_against_each_other_where_their_runs_have_the_same_kl(of_benchmarks):
    """a goes from 0.5 to 0.9 between 0 and 2 nats, b from 0.6 to 0.7 between 0.5 and 1."""
    figures = of_benchmarks("evidence_figures")
    a = {seed: [(0.0, np.array([0.5, 0.5])), (2.0, np.array([0.9, 0.9]))] for seed in range(2)}
    b = {seed: [(0.5, np.array([0.5, 0.7])), (1.0, np.array([0.6, 0.8]))] for seed in range(2)}
    rows = figures.compared(a, b)
    assert [row["kl"] for row in rows] == [0.625, 0.75, 0.875, 1.0]
    assert [row["mean"] for row in rows] == pytest.approx([0.0] * 4)
    b[0][1] = (1.0, np.array([0.5, 0.7]))
    row = figures.difference_at(a, b, 1.0)
    assert row["mean"] == pytest.approx(0.05) and row["seeds"] == 2 and row["verdict"] == "unresolved"


def test_nothing_is_compared_beyond_a_method_s_runs(of_benchmarks):
    """Kills: a line from the policy before training, on which a run of many nats would have gained next to
    nothing where a run of one nat ends."""
    figures = of_benchmarks("evidence_figures")

    def runs(kl, right):
        return [
            {
                "seed": seed,
                "figures": {"generated_kl": kl, "accuracy_unmasked": right},
                "correct": [right] * 2,
                "rewards": [],
            }
            for seed in range(3)
        ]

    near, far = (figures.vectors(runs(*of), "accuracy_unmasked") for of in ((0.8, 0.85), (10.0, 0.88)))
    assert near.keys() == {0, 1, 2} and figures.compared(near, far) == []
    of = {"DPO": runs(10.0, 0.88), "SparsePO": runs(0.8, 0.85)}
    assert figures._against_baseline(of, "SparsePO") == {}, (
        "the page would say that nothing is better or worse"
    )
    of["DPO"] += runs(0.5, 0.8)
    of["SparsePO"] += runs(2.0, 0.9)
    [rows] = figures._against_baseline(of, "SparsePO").values()
    assert len(rows) == len(figures.SHARES)
    assert figures._against_baseline(of, "DPO") == {}


def test_sentiment_compares_objectives_between_runs_of_their_own(of_benchmarks):
    """Kills: the policy before training as a point at KL 0, from which a line leads to each first run."""
    sentiment = of_benchmarks("sentiment")

    def point(objective, seed, kl, reward):
        return {"objective": objective, "seed": seed, "kl": kl, "reward": reward, "reward_before": 0.5}

    runs = [(seed, kl, 0.6 + 0.05 * kl) for seed in (0, 1) for kl in (1.0, 3.0)]
    points = [point("DPO", *of) for of in runs]
    points += [point("MaPO", seed, kl + 1, reward + 0.1) for seed, kl, reward in runs]
    rows = sentiment.compare(points)
    assert [row["kl"] for row in rows] == [2.0, 2.5, 3.0] and {row["objective"] for row in rows} == {"MaPO"}
    assert [row["difference"] for row in rows] == pytest.approx([0.05] * 3) and rows[0]["seeds"] == 2
    assert sentiment.compare([point("DPO", 0, 1.0, 0.6), point("MaPO", 0, 2.0, 0.7)]) == []


def test_masks_agree_by_rank(of_benchmarks):
    agreement = of_benchmarks("evidence_figures").agreement
    mask, flat = np.array([0.1, 0.5, 0.9]), np.zeros(3)
    assert agreement([mask, flat], [mask**3, mask]) == pytest.approx(1.0)
    assert agreement([mask], [-mask]) == pytest.approx(-1.0) and agreement([flat], [mask]) is None


# ---------------------------------------------------------------- the command, with a stub of the program


class Program:
    """Stands for the main program: counts its runs, and stops at the run of a number."""

    def __init__(self):
        self.runs: list[Path] = []
        self.stops_at: int | None = None
        self.fails = "none"
        self.now, self.most_at_once = 0, 0

    def __call__(self, output, settings, config, call=None):
        if (output / "benchmark.json").exists():
            return None
        if len(self.runs) == self.stops_at:
            raise KeyboardInterrupt
        if self.fails in str(output):
            raise importlib.import_module("which_tokens").Failed(f"{output}: out of memory")
        self.now += 1
        self.most_at_once = max(self.now, self.most_at_once)
        try:
            return self.make(output, settings, config)
        finally:
            self.now -= 1

    def make(self, output, settings, config):
        read, *_ = load_config(config, [f"{name}={value}" for name, value in settings.items()])
        if '"given"' in settings.get("objective", ""):  # evaluation reads weights as well
            paths = [Path(source.path).name for source in (*read.data.train, *read.data.eval)]
            assert paths == ["weighed.jsonl"] * 2
        self.runs.append(output)
        output.mkdir(parents=True, exist_ok=True)
        draws = np.random.default_rng(len(self.runs))
        after = {"accuracy_unmasked": draws.random(), "kl": 1.0, "generated_kl": 1.0 + draws.random()}
        response = {"logp": [-1.0, -2.0, -3.0], "ref_logp": [-1.0, -2.0, -2.5], "token_ids": [1, 2, 3]}
        response |= {"reward_mask": draws.random(3).tolist(), "kl_mask": draws.random(3).tolist()}
        pair = {"prompt_ids": [1], "chosen": response, "rejected": response | {"logp": [-1.0, -2.0, -4.0]}}
        sample = {"prompt": "p", "before": "a word", "after": "two more words"}
        for name, content in {
            "benchmark.json": {},
            "summary.json": {"after": after, "mask": {"sparsity_end": 0.5, "deletion": None}},
            "measures.json": {"text": {"self_bleu": 0.3, "distinct2": 0.9}},
            "pairs.jsonl": pair,
            "scores.jsonl": pair,
            "samples.jsonl": sample,
            "po/weights": {},
            "export/weights": {},
        }.items():
            (output / name).parent.mkdir(exist_ok=True)
            (output / name).write_text(json.dumps(content) + "\n")
        return None


@pytest.fixture
def command(of_benchmarks, monkeypatch, tmp_path):
    """(of_task of so many seeds, the stub)."""
    evidence, figures = of_benchmarks("evidence"), of_benchmarks("evidence_figures")
    program = Program()
    names = of_benchmarks("evidence_tasks").Files._fields
    files = of_benchmarks("evidence_tasks").Files(*(tmp_path / f"{name}.jsonl" for name in names))
    monkeypatch.setattr(of_benchmarks("evidence_bench"), "execute", program)
    monkeypatch.setattr(evidence, "prepare", lambda bench, task: files)
    monkeypatch.setattr(
        evidence, "train_judge", lambda files, directory: {"test_accuracy": 0.9, "test_pairs": None}
    )
    judged = {"before": [0.2, 0.3], "after": [0.6, 0.9]}
    asked = {"pass@1": 0.0625, "cloze": 0.5}
    for module in (evidence, of_benchmarks("evidence_runs")):
        monkeypatch.setattr(
            module, "reasoning_figures", lambda run: asked if (run / "benchmark.json").exists() else {}
        )
    monkeypatch.setattr(of_benchmarks("evidence_runs"), "harness_tasks", lambda *_: ["task.yaml"])
    monkeypatch.setattr(figures, "judged", lambda samples, judge: judged)

    def run(seeds, methods=("DPO", "shuffled mask"), at_once=1, reasoning=0, **more):
        size = of_benchmarks("evidence_tasks").Size(4, 2, 1)
        programs = of_benchmarks("evidence_together").Programs(at_once)
        out = tmp_path / "out"
        bench = evidence.Bench("model", tmp_path, out, size, 2, 1, seeds, reasoning, 0, (), programs, **more)
        return evidence.of_task(bench, "polite", list(methods))

    return run, program


def test_a_stopped_command_goes_on_and_nothing_is_run_twice(command):
    run, program = command
    program.stops_at = 6
    with pytest.raises(KeyboardInterrupt):
        run(2)
    program.stops_at = None
    result = run(2)
    # Two cells of two methods; then of each seed DPO, SparsePO, its scored pairs and its shuffled mask.
    assert len(program.runs) == len(set(program.runs)) == 2 * 2 + 2 * 4
    assert run(2) == result and len(program.runs) == 12
    run(3)
    assert len(program.runs) == 12 + 4
    assert not [path for path in program.runs if (path / "po").exists() and path.parent.name == "dpo"]


def test_a_run_with_figures_can_be_asked_afterwards(command, tmp_path):
    run, program = command
    before = run(1)
    assert "cloze" not in before["methods"]["shuffled mask"]["figures"]
    done = len(program.runs)
    after = run(1, reasoning=24)
    # The model before, DPO, SparsePO and its shuffled mask, in whatever order the threads ask for a place.
    assert sorted(path.name for path in program.runs[done:]) == ["base"] + ["reasoning"] * 3
    of, was = (result["methods"]["shuffled mask"]["figures"] for result in (after, before))
    assert of["cloze"]["mean"] == 0.5 and of["pass@1"]["mean"] == 0.0625
    assert {name: of[name] for name in was} == was
    # Only the shuffled mask's weights are read by no other method.
    weights = {path.parent.parent.name for path in (tmp_path / "out" / "polite").glob("*/*/export")}
    assert weights == {"dpo", "sparsepo__common"}
    assert run(1, reasoning=24) == after and len(program.runs) == done + 4


def test_what_is_no_longer_kept_is_not_asked(command, capsys):
    run, program = command
    run(1)
    done = len(program.runs)
    shutil.rmtree(next(path for path in program.runs if path.parent.name == "shuffled_mask") / "export")
    assert "cloze" not in run(1, reasoning=24)["methods"]["shuffled mask"]["figures"]
    assert len(program.runs) == done + 3 and "weights are not kept" in capsys.readouterr().out


def test_what_is_done_so_far_is_a_result(command):
    run, program = command
    run(1, ("DPO",))
    program.stops_at = len(program.runs) + 1  # in the choice of SparsePO
    with pytest.raises(KeyboardInterrupt):
        run(1)
    result = run(3, only_done=True)
    assert len(program.runs) == program.stops_at and set(result["methods"]) == {"DPO"}
    dpo = result["methods"]["DPO"]
    assert dpo["seeds"] == 1 and dpo["figures"]["accuracy_unmasked"]["low"] is None


def test_runs_at_the_same_time_come_to_the_same(command, of_benchmarks):
    run, program = command
    methods = of_benchmarks("evidence_methods").METHODS
    together = run(2, methods, at_once=5)
    assert len(program.runs) == len(set(program.runs)) and program.most_at_once > 1
    assert run(2, methods) == together
    firsts, seconds = ([n for n, path in enumerate(program.runs) if f"seed={x}" in str(path)] for x in (0, 1))
    assert np.mean(firsts) < np.mean(seconds)


def test_a_run_that_fails_does_not_stop_the_others(command, of_benchmarks, capsys):
    run, program = command
    program.fails = "sparsepo__common/rate"
    result = run(1)
    assert set(result["methods"]) == {"DPO"}  # the shuffled mask is made of the one that failed
    assert "failed: " in capsys.readouterr().err
    program.fails = "none"
    assert set(run(1)["methods"]) == {"DPO", "SparsePO, common", "shuffled mask"}


def test_the_most_important_waits_least(of_benchmarks):
    programs = of_benchmarks("evidence_together").Programs()
    got, threads = [], []

    def take(rank):
        with programs.place(rank):
            got.append(rank)

    with programs.place(()):
        for rank in [(0, 1, 0), (0, 0, 2), (0, 0, 1)]:
            threads.append(threading.Thread(target=take, args=(rank,)))
            threads[-1].start()
            while len(programs._waiting) < len(threads):
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert got == [(0, 0, 1), (0, 0, 2), (0, 1, 0)]


def test_when_the_time_is_up_nothing_starts_and_nothing_goes_on(of_benchmarks):
    together = of_benchmarks("evidence_together")
    programs, began_s = together.Programs(2, budget_s=0.3), time.monotonic()
    with programs.place(()), pytest.raises(together.NotDone):
        programs.call([sys.executable, "-c", "import time; time.sleep(60)"])
    assert time.monotonic() - began_s < 10
    with pytest.raises(together.NotDone), programs.place(()):
        pytest.fail("a place after the time")


def test_each_of_several_runs_has_its_part_of_the_card(of_benchmarks, monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    programs = of_benchmarks("evidence_together").Programs
    ask = "import os, sys; sys.exit(os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION', 'all'))"
    said = [programs(count).call([sys.executable, "-c", ask]).stderr.strip() for count in (1, 9)]
    assert said == ["all", "0.1000"]


def test_the_command_that_is_kept_can_be_typed_elsewhere(of_benchmarks):
    options = argparse.Namespace(model="/m", data=Path("/d"), output=Path("/o"))
    words = ["/m", "/d", "--methods", "DPO", "shuffled mask", "--output", "/o", "--so-far"]
    assert of_benchmarks("evidence").command(words, options) == (
        "python benchmarks/evidence.py MODEL DATA --methods DPO 'shuffled mask' --output runs/evidence"
    )


def test_what_is_kept_of_another_task_stays(of_benchmarks, monkeypatch, tmp_path):
    evidence = of_benchmarks("evidence")
    monkeypatch.setattr(of_benchmarks("work"), "RESULTS", tmp_path)
    evidence.save("evidence", "the first", {"polite": {"settings": 1}, "tldr": {"settings": 2}})
    path = evidence.save("evidence", "the second", {"tldr": {"settings": 3}})
    of = json.loads(path.read_text())["tasks"]
    assert {task: (row["command"], row["settings"]) for task, row in of.items()} == {
        "polite": ("the first", 1),
        "tldr": ("the second", 3),
    }


def test_settings_of_every_method_are_accepted(command, of_benchmarks):
    """By the stub, which has them read as the program would."""
    run, _ = command
    result = run(2, of_benchmarks("evidence_methods").METHODS, reasoning=24)
    assert set(result["methods"]) == set(of_benchmarks("evidence_methods").METHODS)
    assert result["against"] == {}, "all of these runs have one KL"
    assert -1 <= result["methods"]["SparsePO, common"]["tokens"]["between_seeds"] <= 1
    page = page_of(result)
    assert "pass 6.2 % of the time" in page
    assert "nothing is compared at equal KL** yet" in page and "Seed by seed (2) at one rate" in page
    assert page.count("| TDPO-2 |") > 1
    less = "SparsePO, common less shuffled mask: programs, pass@1 +0.000 (+0.000 to +0.000, 2 seeds)"
    assert (
        f"* Seed by seed at beta 0.1, {less}" in page
        and "24 passages" in page
        and "one half to 20 points only" in page
    )
    row = {"kl": 1.0, "seeds": 2, "mean": 0.03, "over_seeds": [-0.1, 0.2], "verdict": "unresolved"}
    compared = result | {"against": {"TDPO-2": {"accuracy_unmasked": [row]}}}
    assert "no method is better or worse than DPO at equal KL" in page_of(compared)
    compared = result | {"against": {"TDPO-2": {"accuracy_unmasked": [row | {"seeds": 1}]}}}
    assert "at equal KL one seed alone can be compared, and nothing is resolved" in page_of(compared)
    row = row | {"over_seeds": [0.01, 0.05], "verdict": "resolved"}
    compared = result | {"against": {"TDPO-2": {"accuracy_unmasked": [row]}}}
    assert "TDPO-2 (held-out accuracy +0.030 at 1.00 nats)" in page_of(compared)


def page_of(result):
    specification = importlib.util.spec_from_file_location("results", ROOT / "docs" / "results.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    about = {"device": "cpu", "date": "2026-11-28"}
    older = about | {"date": "2026-11-27", "tasks": {}}
    typed = {"command": "python benchmarks/evidence.py", "date": "2026-11-28"}
    kept = {"cpu": about | {"tasks": {"polite": typed | result}}, "nvidia-h200": older}
    template = module.environment().get_template("evidence.md.jinja")
    return template.render(results={"evidence": json.loads(json.dumps(kept))})
