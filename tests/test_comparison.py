"""Runs side by side: groups, intervals by hand, frontiers at the same KL, and what the page shows."""

import json
import math
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from ruamel.yaml import YAML

from helpers.report_files import Page, lines, metric_rows, pair, single, visible_words
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.main import main
from sparsepo_jax.report.compare.groups import find_groups
from sparsepo_jax.report.compare.page import write_comparison
from sparsepo_jax.report.compare.plane import HEIGHT, WIDTH, Spot, make_plane
from sparsepo_jax.report.frontier import matched, shared_kls, shared_range, value_at
from sparsepo_jax.report.intervals import t_interval, wilson
from sparsepo_jax.report.outcome import outcome
from sparsepo_jax.report.series import mean_metrics


def write_run(
    path,
    *,
    kind="dpo",
    beta=0.1,
    seed=0,
    accuracy=0.75,
    kl=2.0,
    config=None,
    pairs=(3, 11),
    first_mask=0.5,
    **after,
):
    """A run's files, without the run."""
    path.mkdir(parents=True)
    with (path / "config.yaml").open("w") as file:
        YAML(typ="safe").dump(
            {"output_dir": str(path), "seed": seed, "objective": {"kind": kind, "beta": beta}}
            | (config or {}),
            file,
        )
    summary = {
        "before": {},
        "after": {"accuracy_unmasked": accuracy, "kl": kl, "generated_kl": kl / 2} | after,
        "mask": {"sparsity_end": 0.25, "auroc_kl": None},
        "pairs": 64,
    }
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "metrics.jsonl").write_text(lines(metric_rows()))
    rows = [pair(index) for index in pairs]
    for row in rows:
        row["chosen"]["reward_mask"][0] = first_mask
    (path / "pairs.jsonl").write_text(lines(rows))
    return path


def content(directories, tmp_path, **options):
    output = tmp_path / "out.html"
    write_comparison(directories, output, **options)
    return Page(output.read_text(encoding="utf-8")), json.loads(output.with_suffix(".json").read_text())


# ---------------------------------------------------------------- intervals


def test_a_t_interval_by_hand():
    """1, 2, 3: mean 2, s 1, t(2 degrees, 0.975) = 4.3027, half width 4.3027 / sqrt(3) = 2.4841."""
    found = t_interval([1.0, 2.0, 3.0])
    assert (found.n, found.mean, found.kind) == (3, 2.0, "t")
    assert (found.low, found.high) == pytest.approx((-0.4841, 4.4841), abs=1e-4)
    assert t_interval([7.0]) == (1, 7.0, None, None, None)
    with pytest.raises(ValueError):
        t_interval([])


def test_a_wilson_interval_by_hand():
    """With z^2 = 3.8415.

    2 of 4: the centre stays 0.5, half width 1.96 sqrt(0.25/4 + 3.8415/64) / (1 + 3.8415/4) = 0.3500.
    0 of 10: (0, z^2 / (10 + z^2)).
    """
    assert wilson(0.5, 4)[2:4] == pytest.approx((0.1500, 0.8500), abs=1e-4)
    assert wilson(0.0, 10)[2:4] == pytest.approx((0.0, 3.8415 / 13.8415), abs=1e-4)
    assert wilson(1.0, 10).high == pytest.approx(1.0)


# ---------------------------------------------------------------- the same KL


def test_a_value_between_two_betas_is_linear_in_the_kl_and_there_is_none_outside():
    points = [(3.0, 0.9), (1.0, 0.5), (5.0, 0.8)]  # in the order of beta, not of KL
    assert [value_at(points, kl) for kl in (1, 1.5, 3, 4, 5)] == pytest.approx([0.5, 0.6, 0.9, 0.85, 0.8])
    assert value_at(points, 0.99) is None and value_at(points, 5.01) is None and value_at([], 1) is None
    assert value_at([(2.0, 0.4), (2.0, 0.6)], 2.0) == 0.5 and value_at([(2.0, 0.4)], 2.0) == 0.4


def test_two_methods_at_the_same_kl_by_hand():
    """At KL 2 seed 0 has a 0.7, b 0.6, and seed 1 a 0.8, b 0.5.

    Differences 0.1 and 0.3, mean 0.2, s 0.1414, half width 12.706 * 0.1 = 1.2706.
    """
    a = {0: [(1.0, 0.6), (3.0, 0.8)], 1: [(2.0, 0.8), (4.0, 1.0)], 2: [(1.0, 0.0), (9.0, 0.0)]}
    b = {1: [(1.0, 0.4), (3.0, 0.6)], 0: [(2.0, 0.6)]}
    at_2, at_3, at_8 = matched(a, b, [2.0, 3.0, 8.0])
    assert (at_2.a, at_2.b) == (
        {0: pytest.approx(0.7), 1: 0.8},
        {0: 0.6, 1: pytest.approx(0.5)},
    )  # seed 2 is not of both
    assert at_2.differences == pytest.approx({0: 0.1, 1: 0.3}) and at_2.means == pytest.approx((0.75, 0.55))
    assert (at_2.difference.n, at_2.difference.mean, at_2.difference.high) == (
        2,
        pytest.approx(0.2),
        pytest.approx(0.2 + 1.2706, abs=1e-4),
    )
    assert at_3.b[0] is None and at_3.differences == {1: pytest.approx(0.3)} and at_3.difference.low is None
    assert at_8.differences == {} and at_8.difference is None and at_8.means is None


def test_methods_are_compared_at_the_very_ends_of_what_both_reach():
    """Kills: a largest KL that is one rounding above the run that reaches it, whose seed falls out."""
    for ends in np.random.default_rng(0).uniform(0, 9, (200, 2)):
        low, high = sorted(ends.tolist())
        points = {0: [(low, 0.0), (high, 1.0)]}
        kls = shared_kls(points, points)
        assert (kls[0], kls[-1]) == (low, high) and matched(points, points, kls)[-1].difference is not None
    assert shared_kls({0: [(1.0, 0.0)]}, {0: [(2.0, 0.0)]}) == []


def test_the_range_is_what_most_seeds_reach_with_both():
    a = {0: [(1, 0), (5, 0)], 1: [(2, 0), (6, 0)], 2: [(20, 0), (30, 0)]}
    b = {0: [(0, 0), (4, 0)], 1: [(3, 0), (9, 0)], 2: [(20, 0), (25, 0)], 3: [(0, 0), (99, 0)]}
    assert shared_range(a, b) == (3, 4)
    assert (
        shared_range({0: [(1, 0)]}, {0: [(1, 0)]}) is None
        and shared_range({0: [(1, 0), (2, 0)]}, {1: [(1, 0), (2, 0)]}) is None
    )


def plane_of(methods):
    return make_plane(methods, title="t", x_label="x", name="plane0")


def test_a_frontier_is_drawn_within_its_box():
    wide = Spot("wide", t_interval([1.0, 2.0]), t_interval([0.5, 0.9]), [(1.0, 0.5), (2.0, 0.9)])
    alone = Spot("alone", t_interval([4.0]), wilson(0.8, 50), [(4.0, 0.8)])
    broken = Spot("broken", t_interval([math.nan]), t_interval([1.0]), [(math.nan, 1.0)])
    plane = plane_of({"m": [("0.1", wide), ("0.2", alone), ("0.3", broken)]})
    assert [(method.name, method.colour) for method in plane.methods] == [("m", 0)]
    root = ElementTree.fromstring(str(plane.svg))
    assert root.attrib["aria-label"] == (
        "t against x. m: wide: 0.700 at 1.500 nats. m: alone: 0.800 at 4.000 nats."
    )
    titles = [element.text for element in root.iter("title")]
    assert titles == ["wide: 0.700 at 1.500 nats", "alone: 0.800 at 4.000 nats"]
    marks = [
        next(element.iter("use")).attrib for element in root.iter("g") if element.find("title") is not None
    ]
    (x0, y0), (x1, y1) = ((float(mark["x"]), float(mark["y"])) for mark in marks)
    assert 0 < x0 < x1 < WIDTH and HEIGHT > y0 > y1 > 0  # SVG's y points down
    paths = [path.attrib["d"] for path in root.iter("path") if "var(--c0)" in path.attrib.get("style", "")]
    bars = [path for path in paths if "L" in path]
    assert len(bars) == 4  # a line, two intervals of the first and one of the second
    for path in bars:
        numbers = [float(x) for x in path.replace("M", " ").replace("L", " ").split()]
        assert all(0 <= x <= WIDTH for x in numbers[::2]) and all(0 <= y <= HEIGHT for y in numbers[1::2])
    assert {"0.1", "0.2"} <= {element.text for element in root.iter("text")}


def test_a_plane_without_spots_is_none_and_methods_keep_their_colours():
    alone = Spot("alone", t_interval([4.0]), wilson(0.8, 50), [(4.0, 0.8)])
    broken = Spot("broken", t_interval([math.nan]), t_interval([1.0]), [(math.nan, 1.0)])
    assert plane_of({"m": [("", broken)]}) is None
    (method,) = plane_of({"none": [], "m": [("", alone)]}).methods
    assert (method.name, method.colour, method.sign) == ("m", 1, "■")
    methods = plane_of({f"m{n}": [("", alone)] for n in range(20)}).methods
    assert len({(method.colour, method.sign) for method in methods}) == 20


# ---------------------------------------------------------------- groups


def labels(*directories):
    return {group.label: [run.seed for run in group.runs] for group in find_groups(directories)[0]}


def test_runs_are_grouped_by_what_differs_but_the_seed(tmp_path):
    for kind, beta in (("dpo", 0.1), ("dpo", 0.5), ("ipo", 0.3)):
        for seed in (1, 0):
            config = {
                "policy": {"path": f"sft/{seed}"},
                "data": {"cache_dir": f"{kind}{seed}"},
                "po": {"lora": None},
            }
            write_run(tmp_path / f"{kind}-{beta}-{seed}", kind=kind, beta=beta, seed=seed, config=config)
    assert labels(tmp_path) == {"dpo, beta 0.1": [0, 1], "dpo, beta 0.5": [0, 1], "ipo": [0, 1]}
    groups, _ = find_groups([tmp_path])
    assert [(group.method, group.beta) for group in groups] == [("dpo", 0.1), ("dpo", 0.5), ("ipo", 0.3)]
    assert (
        len(labels(tmp_path / "ipo-0.3-1", tmp_path / "ipo-0.3-0")) == 2
    )  # nothing says that these paths go with the seed


def test_null_against_a_section_and_a_path_that_is_not_the_seeds_are_differences(tmp_path):
    write_run(tmp_path / "a", config={"po": {"lora": None}, "policy": {"path": "x"}})
    write_run(tmp_path / "b", config={"po": {"lora": {"rank": 4}}, "policy": {"path": "x"}})
    write_run(tmp_path / "c", config={"po": {"lora": None}, "policy": {"path": "y"}})
    assert len(labels(tmp_path)) == 3
    groups, left_out = find_groups([tmp_path / "a", tmp_path / "a"])
    assert [len(group.runs) for group in groups] == [1] and "same settings and seed" in left_out[0][1]


def write_sweep(base, runs):
    """runs: (values, status, run's settings)."""
    book = []
    for values, status, settings in runs:
        name = ",".join(f"{key}={json.dumps(value)}" for key, value in values.items()).replace('"', "")
        if status == "done":
            write_run(base / name, **settings)
        book.append(
            {
                "name": name,
                "values": values,
                "status": status,
                "error": "no <b>data" if status == "failed" else None,
                "seconds": 1.0,
            }
        )
    (base / "sweep.json").write_text(json.dumps({"sweep": [], "runs": book}))
    return base


@pytest.fixture
def sweep(tmp_path):
    """dpo reaches (KL, accuracy) (1, 0.6) and (2, 0.8) with seed 0, the same + 0.02 with seed 1.

    tdpo1 reaches the same + 0.1.
    """
    runs = []
    for kind, more in (("dpo", 0.0), ("tdpo1", 0.1)):
        for beta, kl, accuracy in ((0.5, 2.0, 0.6), (0.1, 4.0, 0.8)):
            for seed in (0, 1):
                settings = {
                    "kind": kind,
                    "beta": beta,
                    "seed": seed,
                    "kl": kl,
                    "accuracy": accuracy + more + 0.02 * seed,
                    "reward": {"mean": 1.5, "words": ["x"]},
                    "first_mask": 2.0 if kind == "tdpo1" else 0.5,
                }
                runs.append(
                    ({"objective.kind": kind, "objective.beta": beta, "seed": seed}, "done", settings)
                )
    runs += [
        ({"objective.kind": "ipo", "seed": 0}, "failed", {}),
        ({"objective.kind": "ipo", "seed": 1}, "to do", {}),
    ]
    return write_sweep(tmp_path / "base", runs)


def test_a_sweep_is_grouped_by_what_it_swept_and_says_what_is_left_out(sweep, tmp_path):
    page, found = content([sweep], tmp_path)
    assert [
        (group["label"], group["method"], group["beta"], list(group["runs"])) for group in found["groups"]
    ] == [
        (f"{kind}, beta {beta}", kind, beta, ["0", "1"]) for kind in ("dpo", "tdpo1") for beta in (0.5, 0.1)
    ]
    assert found["left_out"] == [
        {"run": "objective.kind=ipo,seed=0", "why": "failed: no <b>data"},
        {"run": "objective.kind=ipo,seed=1", "why": "not finished"},
    ]
    assert "failed: no <b>data" in page.text and "b" not in {tag for tag, attrs in page.tags if attrs}


def test_a_label_says_what_tells_runs_of_an_objective_apart(tmp_path):
    masks = {
        "sparsepo": [
            {"kind": "learned", "sharing": "common"},
            {"kind": "learned", "sharing": "independent"},
            {"kind": "random"},
        ],
        "dpo": [None],
    }
    runs = []
    for kind, of in masks.items():
        for mask in of:
            objective = {"kind": kind} | ({"mask": mask} if mask else {})
            runs += [
                ({"objective": objective, "objective.beta": beta}, "done", {"kind": kind, "beta": beta})
                for beta in (0.1, 0.4)
            ]
    groups, _ = find_groups([write_sweep(tmp_path / "base", runs)])
    assert [group.label for group in groups if group.beta == 0.4] == [
        "sparsepo, mask.kind learned, sharing common, beta 0.4",
        "sparsepo, mask.kind learned, sharing independent, beta 0.4",
        "sparsepo, mask.kind random, beta 0.4",
        "dpo, beta 0.4",
    ]
    assert [group.method for group in groups if group.beta == 0.4][1:] == [
        "sparsepo, mask.kind learned, sharing independent",
        "sparsepo, mask.kind random",
        "dpo",
    ]


def test_a_mask_of_kind_given_is_told_in_its_label(tmp_path):
    for kind in ("given", "learned"):
        objective = {"kind": "sparsepo", "beta": 0.1, "mask": {"kind": kind}}
        write_run(tmp_path / kind, kind="sparsepo", config={"objective": objective})
    assert list(labels(tmp_path)) == ["mask.kind given", "mask.kind learned"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("objective.mask.learning_rate", "mask.learning_rate"),
        ("sft.steps", "sft.steps"),
        ("po.steps", "steps"),
        ("po.optimizer.learning_rate", "learning_rate"),
        ("objective.mask.sharing", "sharing"),
    ],
)
def test_a_label_is_not_read_as_another_setting_s(tmp_path, path, said):
    """Kills: the rate of the mask nets, taken for the policy's; steps of sft for po's."""
    for number in (1, 2):
        po = {"steps": 0, "optimizer": {"learning_rate": 0}}
        config = {"objective": {"kind": "sparsepo", "beta": 0.1}, "po": po}
        section = config
        *parents, last = path.split(".")
        for name in parents:
            section = section.setdefault(name, {})
        section[last] = number
        write_run(tmp_path / str(number), config=config)
    assert list(labels(tmp_path)) == [f"{said} 1", f"{said} 2"]


def test_every_number_of_the_summary_is_compared_and_differences_are_paired_by_seed(sweep, tmp_path):
    page, found = content([sweep], tmp_path, baseline="dpo")
    group = found["groups"][3]
    assert set(group["metrics"]) == {
        "after.accuracy_unmasked",
        "after.kl",
        "after.generated_kl",
        "after.reward.mean",
        "mask.sparsity_end",
    }
    assert "reward, mean" in page.text and "KL to reference" in page.text
    number = group["metrics"]["after.accuracy_unmasked"]
    assert (
        number["by_seed"] == pytest.approx({"0": 0.9, "1": 0.92})
        and number["mean"] == pytest.approx(0.91)
        and number["kind"] == "t"
    )
    assert number["high"] == pytest.approx(0.91 + 12.706 * 0.01, abs=1e-4)  # s / sqrt(2) = 0.01
    one = next(
        d
        for d in found["differences"]
        if d["group"] == "tdpo1, beta 0.5" and d["metric"] == "after.accuracy_unmasked"
    )
    assert one["by_seed"] == pytest.approx({"0": 0.1, "1": 0.1}) and one["interval"]["high"] == pytest.approx(
        0.1
    )


def test_methods_are_held_against_each_other_at_the_same_kl(sweep, tmp_path):
    _, found = content([sweep], tmp_path)
    assert found["kl"] == "after.generated_kl"
    (match,) = found["matched"]
    assert (match["method"], match["base"], match["metric"]) == ("tdpo1", "dpo", "after.accuracy_unmasked")
    assert [one["kl"] for one in match["found"]] == [1.0, 1.5, 2.0]
    assert [one["a"]["0"] for one in match["found"]] == pytest.approx([0.7, 0.8, 0.9])
    assert [one["difference"]["mean"] for one in match["found"]] == pytest.approx([0.1] * 3)


def test_one_seed_has_no_interval_but_an_accuracy_that_of_its_pairs(tmp_path):
    write_run(tmp_path / "a")
    page, found = content([tmp_path / "a"], tmp_path)
    metrics = found["groups"][0]["metrics"]
    assert metrics["after.kl"]["kind"] is None and "one seed" in page.text
    assert metrics["after.accuracy_unmasked"]["kind"] == "wilson" and metrics["after.accuracy_unmasked"][
        "low"
    ] == pytest.approx(wilson(0.75, 64).low)
    assert "†" in page.text


def test_the_interval_of_one_seed_is_that_of_its_report_and_of_the_run_that_has_the_number(tmp_path):
    """64 pairs of few prompts that tell as much as 9 do. Kills: all pairs as if they were independent; the
    pairs of the group's first run, which has none."""
    write_run(tmp_path / "0")
    (tmp_path / "0" / "summary.json").unlink()
    write_run(tmp_path / "1", seed=1)
    summary = json.loads((tmp_path / "1" / "summary.json").read_text()) | {"independent_pairs": 8.7}
    (tmp_path / "1" / "summary.json").write_text(json.dumps(summary))
    _, found = content([tmp_path / "0", tmp_path / "1"], tmp_path)
    (group,) = found["groups"]
    accuracy = group["metrics"]["after.accuracy_unmasked"]
    assert (accuracy["kind"], accuracy["n"]) == ("wilson", 9)
    assert f"95 % interval {accuracy['low']:.2f} to {accuracy['high']:.2f}" in outcome(summary)


def test_groups_on_other_held_out_pairs_are_not_said_to_have_the_most(tmp_path):
    for name, pairs in (("a", 64), ("b", 21)):
        write_run(tmp_path / name, beta=float(pairs))
        summary = json.loads((tmp_path / name / "summary.json").read_text()) | {"pairs": pairs}
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    page, _ = content([tmp_path / "a", tmp_path / "b"], tmp_path)
    assert "held-out pairs21 to 64" in page.text.replace("\n", "")
    note = "The held-out pairs may not be the same in all runs"
    assert note in page.text
    page, _ = content([tmp_path / "a"], tmp_path)
    assert "held-out pairs64" in page.text.replace("\n", "") and note not in page.text
    for name, path in (("c", "rows"), ("d", "others")):  # as many, but others
        config = {"data": {"eval": [{"path": path}]}, "objective": {"kind": "dpo", "beta": 0.1}}
        write_run(tmp_path / name, config=config)
    assert note in content([tmp_path / "c", tmp_path / "d"], tmp_path)[0].text
    for name, weight in (("e", 1.0), ("f", 2.0)):  # with which rows are trained on alone
        config = {"data": {"eval": [{"path": "rows", "weight": weight}]}, "objective": {"kind": "dpo"}}
        write_run(tmp_path / name, config=config)
    assert note not in content([tmp_path / "e", tmp_path / "f"], tmp_path)[0].text
    for name, path in (("g", "rows"), ("h", "others")):  # of which some are held out
        config = {
            "data": {"train": [{"path": path}], "holdout": {"share": 0.1}},
            "objective": {"kind": "dpo"},
        }
        write_run(tmp_path / name, config=config)
    assert note in content([tmp_path / "g", tmp_path / "h"], tmp_path)[0].text


def test_a_chosen_metric_is_drawn_and_a_wrong_one_named(sweep, tmp_path):
    page, _ = content([sweep], tmp_path, metrics=["reward.mean"])
    assert "reward, mean against KL of what it writes" in page.text
    with pytest.raises(UserError, match="no number is called reward.men; the nearest of 5 are reward.mean, "):
        content([sweep], tmp_path, metrics=["reward.men"])
    with pytest.raises(UserError, match="--baseline: expected one of dpo, beta 0.5; .* got simpo"):
        content([sweep], tmp_path, baseline="simpo")


def test_a_pair_is_shown_as_each_group_sees_it(sweep, tmp_path):
    page, _ = content([sweep], tmp_path, pairs=1)
    first = [token for token in page.tokens if token["text"] == " good"]
    assert (
        len(first) == 4 and len({token["style"] for token in first}) == 2
    )  # the same colours mean the same in all groups
    assert "reward mask 2.000" in first[3]["title"] and "reward mask 0.500" in first[0]["title"]
    assert "Pair 3" in page.text and "Pair 11" not in page.text


def test_single_responses_are_compared_by_their_name(tmp_path):
    """Kills: pairs in headings and in the meanings of numbers of responses; a mixture called by one name."""
    paths = [write_run(tmp_path / name, kind=name) for name in ("kto", "bco")]
    for path in paths:
        summary = json.loads((path / "summary.json").read_text())
        summary["after"]["margin"] = 1.0
        (path / "summary.json").write_text(json.dumps(summary | {"rows": "responses", "desirable": 0.5}))
        (path / "pairs.jsonl").write_text(lines([single(3), single(11, "rejected")]))
    write_comparison(paths, tmp_path / "out.html")
    html = (tmp_path / "out.html").read_text()
    words = visible_words(html)
    assert "pair" not in words.replace("differences are paired by seed", "").replace("paired by seed", "")
    assert "held-out responses64" in words.replace("\n", "") and "the same response, as each group" in words
    assert "response 11" in words and "desirable responses minus that of undesirable" in html
    write_comparison([*paths, write_run(tmp_path / "dpo")], tmp_path / "out.html")
    assert "over held-out pairs and responses (" in (tmp_path / "out.html").read_text()


def test_only_pairs_of_the_same_text_stand_side_by_side(tmp_path):
    write_run(tmp_path / "a", beta=0.1)
    write_run(tmp_path / "b", beta=0.2, pairs=(11, 4))
    page, _ = content([tmp_path], tmp_path)
    assert "Pair 11" in page.text and "Pair 3" not in page.text and "Pair 4" not in page.text
    other = pair(11)
    other["rejected"]["tokens"] = [" worse", ""]
    (tmp_path / "b/pairs.jsonl").write_text(lines([other]))
    assert "The same pair" not in content([tmp_path], tmp_path)[0].text


def test_the_page_holds_no_markup_of_its_data_and_no_script(sweep, tmp_path):
    page, _ = content([sweep], tmp_path)
    assert {tag for tag, _ in page.tags} & {"script", "img", "link", "iframe", "object"} == set()
    assert not [
        name for _, attrs in page.tags for name in attrs if name.startswith("on") or name in ("src", "srcset")
    ]
    assert any(token["text"] == "<script>alert(1)</script>" for token in page.tokens)
    assert any(
        "default-src 'none'" in (attrs.get("content") or "") for tag, attrs in page.tags if tag == "meta"
    )


def test_curves_are_means_over_the_steps_that_all_runs_have():
    a, b = (
        {("po", "loss"): {1: 1.0, 2: 2.0, 3: 3.0}, ("po", "x"): {1: 0.0}},
        {("po", "loss"): {2: 4.0, 3: 5.0, 9: 0.0}},
    )
    assert mean_metrics([a, b]) == {("po", "loss"): {2: 3.0, 3: 4.0}}


def test_the_command_compares_without_waiting_for_jax(sweep, tmp_path):
    program = f"""
import sys
from sparsepo_jax.main import main
code = main(["--compare", {str(sweep)!r}, "--baseline", "tdpo1", "--metric", "kl"])
assert not {{"jax", "flax", "transformers"}} & set(sys.modules)
sys.exit(code)
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert json.loads((sweep / "comparison.json").read_text())["baseline"] == "tdpo1, beta 0.5"


def test_nothing_to_compare_is_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["--compare", str(tmp_path / "empty"), str(tmp_path / "absent")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: nothing to compare (") and said.count("\n") == 1
    (tmp_path / "sweep.json").write_text("[1]")
    assert main(["--compare", str(tmp_path)]) == 1
    assert "not a sweep's book" in capsys.readouterr().err


# ---------------------------------------------------------------- lexicons, measures, tasks


WORDS = {
    "opinion": {
        "auroc_reward": 0.75,
        "auroc_random": 0.5,
        "auroc_kl": None,
        "first_pieces": {"auroc_reward": 0.625},
    }
}
MEASURES = {
    "text": {"rouge1": 0.3, "self_bleu": None, "prompts": 5, "distinct2": math.nan},
    "code": {"pass@10": 0.25, "problems": 164, "time_s": 4.0},
}
ARC = {"alias": "arc_easy", "acc,none": 0.5, "acc_stderr,none": 0.01, "acc_norm,none": 0.55}
TASKS = {"results": {"arc_easy": ARC, "gsm8k": {"exact_match,strict-match": 0.125}}}


def write_all(path, *, measures=MEASURES, tasks=TASKS, **settings):
    """A run that was evaluated by lexicons, measured, and put to tasks."""
    write_run(path, **settings)
    summary = json.loads((path / "summary.json").read_text()) | {"lexicons": WORDS}
    for name, content in (("summary.json", summary), ("measures.json", measures), ("harness.json", tasks)):
        (path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return path


OF_TASKS = {
    "harness.arc_easy.acc": 0.5,
    "harness.arc_easy.acc_norm": 0.55,
    "harness.gsm8k.exact_match,strict-match": 0.125,
}
NAMES = OF_TASKS | {
    "lexicons.opinion.auroc_reward": 0.75,
    "lexicons.opinion.auroc_random": 0.5,
    "lexicons.opinion.first_pieces.auroc_reward": 0.625,
    "measures.text.rouge1": 0.3,
    "measures.code.pass@10": 0.25,
}


def test_lexicons_measures_and_tasks_are_compared(tmp_path):
    write_all(tmp_path / "a")
    better = {"results": {"arc_easy": {"acc,none": 0.625}}}
    write_all(tmp_path / "b", beta=0.5, tasks=better)
    page, found = content([tmp_path / "a", tmp_path / "b"], tmp_path)
    metrics = found["groups"][0]["metrics"]
    assert {
        name: metrics[name]["mean"]
        for name in metrics
        if name.split(".")[0] in ("lexicons", "measures", "harness")
    } == NAMES
    difference = next(one for one in found["differences"] if one["metric"] == "harness.arc_easy.acc")
    assert difference["by_seed"] == {"0": 0.125} and difference["interval"]["mean"] == 0.125
    for said in (
        "Which words (lexicons)",
        "opinion: AUROC, reward mask",
        "opinion: AUROC, reward mask, first pieces",
        "Measures",
        "rouge1",
        "pass@10",
        "Tasks",
        "arc_easy: acc_norm",
        "gsm8k: exact_match, strict-match",
    ):
        assert said in page.text, said
    titles = " ".join(attrs.get("title") or "" for _, attrs in page.tags)
    assert "of each word its first piece only" in titles and "passes the problem's tests" in titles


@pytest.mark.parametrize("name", NAMES)
def test_they_are_drawn_against_the_kl(tmp_path, name):
    for beta in (0.1, 0.5):
        write_all(tmp_path / f"{beta}", beta=beta, kl=2 * beta)
    page, found = content([tmp_path], tmp_path, metrics=[name])
    assert "against KL of what it writes" in page.text and found["kl"] == "after.generated_kl"
    with pytest.raises(UserError, match=f"no number is called {name[:-1]}; the nearest of 12 are {name}, "):
        content([tmp_path], tmp_path, metrics=[name[:-1]])


def test_runs_with_tasks_alone_are_compared_and_have_no_place_in_the_plane(tmp_path):
    """An untrained policy beside trained ones."""
    write_all(tmp_path / "trained")
    (tmp_path / "base").mkdir()
    (tmp_path / "base/harness.json").write_text(json.dumps(TASKS))
    page, found = content([tmp_path], tmp_path, metrics=["harness.arc_easy.acc"])
    assert list(found["groups"][0]["metrics"]) == list(OF_TASKS)
    assert found["kl"] == "after.generated_kl" and "against KL of what it writes" in page.text
    page, found = content([tmp_path / "base"], tmp_path)
    assert "arc_easy: acc" in page.text and found["kl"] is None


DEEP = '{"text": ' * 600 + "1" + "}" * 600


@pytest.mark.parametrize(
    "name, broken, said",
    [
        ("harness.json", "{", "harness.json: expected JSON"),
        ("measures.json", "[1]", "measures.json: expected a JSON object"),
        ("summary.json", "1" * 5000, "summary.json: expected JSON"),
        ("harness.json", "[" * 100_000, "harness.json: expected JSON"),
        ("harness.json", '{"results": [], "n-shot": 3, "n-samples": null}', None),
        ("harness.json", '{"results": {"a": 1, "b": {"acc,none": "high", "acc,": true, ",": null}}}', None),
        ("measures.json", '{"text": 3, "code": {"pass@1": {}, "rouge1": [1], "words": "many"}}', None),
        ("measures.json", '{"code": {"pass@1": 1%s}}' % ("0" * 400), None),  # beyond the largest float
        ("measures.json", DEEP, None),
        ("summary.json", '{"after": 3, "lexicons": [1]}', None),
        (
            "summary.json",
            '{"after": {"kl": Infinity, "x": null, "y": true}, "mask": null, '
            '"lexicons": {"opinion": 1, "other": {"auroc_kl": -Infinity}}}',
            None,
        ),
        ("summary.json", '{"lexicons": ' * 600 + "NaN" + "}" * 600, None),
    ],
)
def test_files_that_are_none_of_ours_are_said_and_what_is_no_number_is_left_out(tmp_path, name, broken, said):
    write_all(tmp_path / "good")
    (write_all(tmp_path / "odd", beta=0.5) / name).write_text(broken)
    page, found = content([tmp_path], tmp_path)
    sections = {
        "summary.json": ("after", "mask", "lexicons"),
        "measures.json": ("measures",),
        "harness.json": ("harness",),
    }
    good, odd = (group["metrics"] for group in found["groups"])
    others = [metric for metric in good if metric.split(".")[0] not in sections[name]]
    assert list(odd) == ["lexicons.opinion"] * ('"opinion": 1' in broken) + others
    assert [one["run"] for one in found["left_out"]] == ["odd"] * (said is not None)
    assert said is None or (said in found["left_out"][0]["why"] and said in page.text)


def test_settings_say_where_an_sft_was_taken_from_and_make_no_group(tmp_path):
    for seed, taken_from in ((0, None), (1, "runs/first")):
        write_run(tmp_path / f"{seed}", seed=seed, config={"sft": {"steps": 3, "taken_from": taken_from}})
    assert labels(tmp_path) == {"dpo": [0, 1]}


def test_a_group_without_a_tables_numbers_is_no_row_of_dashes_there(tmp_path):
    runs = [write_run(tmp_path / kind, kind=kind) for kind in ("sparsepo", "dpo")]
    summary = json.loads((runs[1] / "summary.json").read_text())
    (runs[1] / "summary.json").write_text(json.dumps(summary | {"mask": {"sparsity_end": None}}))
    page, _ = content(runs, tmp_path)
    masks = page.text.split("\nMasks\n")[1].split("Differences")[0]
    assert "sparsepo" in masks and "dpo" not in masks.replace("sparsepo", "")
