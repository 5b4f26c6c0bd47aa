"""The report is one page that loads nothing, shows what the files hold, and lets no token become markup."""

import json
import math
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from helpers.report_files import (
    CHOSEN,
    REJECTED,
    Page,
    lines,
    metric_rows,
    pair,
    response,
    single,
    visible_words,
)
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.report.card import _largest_masks
from sparsepo_jax.report.charts import HEIGHT, WIDTH, make_charts, make_overlay, step_ticks
from sparsepo_jax.report.drawing import drawing_style, round_ticks, tick_labels
from sparsepo_jax.report.files import evaluation_if_sound, outdated, read_evaluation
from sparsepo_jax.report.heatmap import FAINTEST, QUANTITIES, STRONGEST, make_scales, parse_pair
from sparsepo_jax.report.page import write_report
from sparsepo_jax.report.run_table import run_rows
from sparsepo_jax.report.series import MAX_POINTS, collect, thin
from sparsepo_jax.report.table import POLICY_ROWS, number, percent, summary_table

POLICY = {"accuracy": 0.5, "accuracy_unmasked": 0.5, "margin": 0.0, "margin_unmasked": 0.0, "kl": 0.0}
SUMMARY = {
    "before": POLICY,
    "after": {
        "accuracy": 0.875,
        "accuracy_unmasked": 0.75,
        "margin": 3.25,
        "margin_unmasked": 1.5,
        "kl": 2.125,
    },
    "mask": {
        "auroc_reward": 0.91,
        "auroc_kl": 0.92,
        "auroc_ceiling": 0.97,
        "auroc_position": 0.61,
        "auroc_untrained": 0.52,
        "sparsity_start": 0.45,
        "sparsity_end": 0.77,
    },
    "pairs": 64,
    "seconds": 130.0,
}


def without_text(row):
    sides = {
        side: {k: v for k, v in row[side].items() if k not in ("tokens", "decisive")}
        for side in ("chosen", "rejected")
    }
    return {k: row[k] for k in ("index", "loss", "margin")} | sides


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 3\nobjective: {kind: sparsepo, beta: 0.8}\n# <u>\n")
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "metrics.jsonl").write_text(lines(metric_rows()))
    (tmp_path / "pairs.jsonl").write_text(lines([pair(3), pair(11)]))
    return tmp_path


def page_of(output_dir, pairs=8):
    path = write_report(output_dir, pairs)
    assert path == output_dir / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_what_the_policy_wrote_is_shown_as_text(run_dir):
    assert "What the policy writes" not in page_of(run_dir).text
    (run_dir / "samples.jsonl").write_text(
        lines(
            [
                {"index": 0, "prompt": "Say", "before": "<b>dull", "after": "superb\u202e"},
                {"index": 1, "prompt": "Hm"},
            ]
        )
        + '{"in'
    )
    page = page_of(run_dir)
    assert {"href": "#samples"} in [attrs for tag, attrs in page.tags if tag == "a"]
    assert "What the policy writes" in page.text and "<b>dull" in page.text and "superb\\u202e" in page.text
    assert "b" not in {tag for tag, attrs in page.tags if tag == "b" and attrs}
    (run_dir / "samples.jsonl").write_text(lines([{"index": 0, "prompt": "Say", "after": "superb"}]))
    assert (
        '<th class="left">before</th>' not in write_report(run_dir, 8).read_text()
    )  # untrained: no column of dashes


def test_page_loads_nothing_and_holds_no_script(run_dir):
    page = page_of(run_dir)
    assert not [
        tag for tag, _ in page.tags if tag in ("script", "link", "img", "iframe", "object", "embed", "base")
    ]
    for _, attrs in page.tags:
        assert not [name for name in attrs if name == "src" or name.startswith("on")]
        assert attrs.get("href", "#").startswith("#")
    text = (run_dir / "report.html").read_text()
    assert not re.search(r"https?://|url\(|@import", text)
    assert "default-src 'none'" in text


def test_tokens_are_text_and_what_cannot_be_seen_is_shown(run_dir):
    page = page_of(run_dir, pairs=1)
    texts = [token["text"] for token in page.tokens]
    assert texts == [
        " good",
        "<script>alert(1)</script>",
        "↵\n",
        "\\x1b[31m\\u202e",
        '\'" onmouseover="x',
        " bad",
        "⟨8⟩",
    ]
    assert "<i>why</i>" in page.text and "<b>reviews" in page.text and "# <u>" in page.text
    assert not {"i", "u"} & {tag for tag, _ in page.tags}


def test_every_pair_shows_its_values(run_dir):
    page = page_of(run_dir)
    assert len(page.tokens) == 2 * (len(CHOSEN) + len(REJECTED))
    assert "Pair 3" in page.text and "Pair 11" in page.text
    assert "1.789" in page.text and "0.456" in page.text
    title = page.tokens[0]["title"]
    assert "reward mask 0.500" in title and "KL mask 0.312" in title and "KL 0.123" in title
    assert "log-ratio 0.500" in title and "policy -1.000" in title and "reference -1.500" in title


def test_only_as_many_pairs_as_asked_for(run_dir):
    page = page_of(run_dir, pairs=1)
    assert "Pair 3" in page.text and "Pair 11" not in page.text


def test_decisive_tokens_are_marked(run_dir):
    page = page_of(run_dir, pairs=1)
    assert ["decisive" in token["class"].split() for token in page.tokens] == [True] + [False] * 6
    assert "decisive" in page.tokens[0]["title"] and "decisive" not in page.tokens[1]["title"]
    assert "underlined" in page.text


def test_unknown_decisive_tokens_are_not_spoken_of(run_dir):
    row = pair(chosen=response(CHOSEN, None), rejected=response(REJECTED, None))
    (run_dir / "pairs.jsonl").write_text(lines([row]))
    page = page_of(run_dir)
    assert "underlined" not in page.text and not any("decisive" in token["class"] for token in page.tokens)


def test_colour_is_that_of_the_value(run_dir):
    first, second, *_ = page_of(run_dir, pairs=1).tokens
    assert re.search(r"--u:0\.\d", first["style"])
    assert "--u" not in second["style"]  # a mask of exact zero has no colour
    ratios = [re.search(r"--r:(-?)0\.\d", token["style"]).group(1) for token in (first, second)]
    assert ratios == ["", "-"]


def test_each_quantity_can_be_chosen_and_the_reward_mask_is_first(run_dir):
    inputs = {attrs["id"]: "checked" in attrs for tag, attrs in page_of(run_dir).tags if tag == "input"}
    assert inputs == {f"by-{quantity.key}": quantity.name == "Reward mask" for quantity in QUANTITIES}


def test_an_outlier_does_not_bleach_the_rest():
    side = response(["x"] * 200, None) | {"kl": [0.1] * 199 + [1000.0]}
    scale = make_scales([parse_pair(pair(chosen=side), where="")])["k"]
    assert scale.full < 1 and scale.shade(1000.0) == scale.shade(scale.full)


def test_a_mask_without_zeros_is_coloured_from_its_least_value():
    """Kills: a mask between 0.9 and 1.1 that is one blue."""

    def scale_of(*mask):
        side = response(["x"] * len(mask), None) | {"reward_mask": list(mask)}
        return make_scales([parse_pair(pair(chosen=side, rejected=side), where="")])["u"]

    scale = scale_of(0.9, 1.0, 1.1)
    assert [scale.shade(x) for x in (0.9, 1.0, 1.1)] == [FAINTEST, 0.45, STRONGEST] and scale.start == 0.9
    scale = scale_of(0.0, 1.0, 1.1)
    assert scale.start == 0 and scale.shade(0.0) == 0 and scale.shade(1.0) > 0.7
    assert scale_of(2.0, 2.0).shade(2.0) == STRONGEST
    assert scale_of(0.9999999, 1.0).shade(0.9999999) == STRONGEST, "rounding is no difference"


def test_objective_without_masks_says_so_and_shows_log_ratios(run_dir):
    ones = {"reward_mask": [1.0] * 2, "kl_mask": [1.0] * 2}
    row = pair(chosen=response([" a", " b"], None) | ones, rejected=response([" c", " d"], None) | ones)
    (run_dir / "pairs.jsonl").write_text(lines([row]))
    page = page_of(run_dir)
    assert "as for objectives without masks" in page.text and ", 0 % zeros" not in page.text
    assert [attrs["id"] for tag, attrs in page.tags if tag == "input" and "checked" in attrs] == ["by-r"]


def test_where_the_kl_alone_is_masked_its_mask_is_shown(run_dir):
    """Kills: the reward mask, 1 on every token, in the colours, the zeros and the largest tokens."""

    def side(tokens, kl_mask):
        return response(tokens, None) | {"reward_mask": [1.0] * len(tokens), "kl_mask": kl_mask}

    sides = {"chosen": side([" a", " b"], [0.0, 2.0]), "rejected": side([" c", " d"], [0.0, 0.0])}
    (run_dir / "pairs.jsonl").write_text(lines([pair(3, **sides), pair(11, **sides)]))
    page = page_of(run_dir)
    assert [attrs["id"] for tag, attrs in page.tags if tag == "input" and "checked" in attrs] == ["by-m"]
    assert "Tokens of the largest KL mask" in page.text and "Mean KL mask by token" in page.text
    assert "75 % zeros in the KL mask" in " ".join(page.text.split()) and "reward mask by" not in page.text
    (said,) = [line for line in _largest_masks(run_dir) if "of zero" in line]
    assert said == "Of the tokens of 2 pairs 75 % have a KL mask of zero."
    (largest,) = [line for line in _largest_masks(run_dir) if "largest" in line]
    assert largest == "It is largest, in the mean, on `\u2423b` 2.000 (␣ is a space)."


def test_the_id_of_a_token_is_its_name_where_there_is_no_tokenizer(run_dir):
    """Kills: the space behind an id, taken for one of the token's own."""
    row = pair(chosen=response(["7 ", "8 "], None) | {"token_ids": [7, 88]})
    shown = parse_pair(row, where="here").chosen
    assert [token.label for token in shown] == ["7", "8␣"]


def test_few_zeros_are_not_none_and_nearly_all_not_all():
    shares = (None, 0.0, 0.004, 0.0099, 0.0251, 0.9949, 0.996, 1.0)
    assert [percent(x) for x in shares] == ["-", "0 %", "<1 %", "<1 %", "3 %", "99 %", ">99 %", "100 %"]


def test_zero_has_no_sign():
    assert [number(-0.0), number(0.0, sign=True), number(-4e-4)] == ["0.000", "+0.000", "-4.00e-04"]


def test_a_response_of_one_token_is_called_so(run_dir):
    row = pair(chosen=response([" a"], None) | {"reward_mask": [0.0], "kl_mask": [1.0]})
    (run_dir / "pairs.jsonl").write_text(lines([row]))
    words = " ".join(page_of(run_dir).text.split())
    assert "Chosen 1 token, 100 % zeros" in words


def test_headline_curves_and_configuration_are_there(run_dir):
    page = page_of(run_dir)
    for said in (
        "0.875",
        "+0.375",
        "3.250",
        "2.125",
        "0.910",
        "0.450",
        "0.770",
        "2 min 10 s",
        "64 held-out pairs",
    ):
        assert said in page.text, said
    charts = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg" and "aria-label" in attrs]
    for start in (
        "Fine-tuning loss",
        "Preference loss",
        "Margin",
        "Accuracy",
        "KL to the reference",
        "Mask sparsity",
    ):
        assert any(chart.startswith(start) for chart in charts), start
    assert "masked, evaluation: min 0.625" in "".join(
        charts
    ) and "unmasked, training: min 0.050, max 0.250" in "".join(charts)
    assert "objective: {kind: sparsepo, beta: 0.8}" in page.text


@pytest.mark.parametrize(
    "missing, said",
    [
        ("config.yaml", "There is no config.yaml"),
        ("summary.json", "There is no summary.json"),
        ("metrics.jsonl", "There is nothing to draw"),
        ("pairs.jsonl", "There is nothing to show"),
    ],
)
def test_a_missing_file_is_said_and_the_rest_is_shown(run_dir, missing, said):
    assert said not in page_of(run_dir).text
    (run_dir / missing).unlink()
    page = page_of(run_dir)
    assert said in page.text
    assert ("Pair 3" in page.text) == (missing != "pairs.jsonl")
    assert ("3.250" in page.text) == (missing != "summary.json")


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "pairs.jsonl", "scores.jsonl"])
def test_one_result_file_is_enough(tmp_path, name):
    content = {
        "summary.json": json.dumps(SUMMARY),
        "metrics.jsonl": lines(metric_rows()),
        "pairs.jsonl": lines([pair()]),
        "scores.jsonl": lines([without_text(pair())]),
    }[name]
    (tmp_path / name).write_text(content)
    assert page_of(tmp_path).text


def test_nothing_to_report_is_one_clear_line(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    for empty in (tmp_path, tmp_path / "absent"):
        with pytest.raises(
            UserError, match="expected summary.json, metrics.jsonl, .* found none; run the stage"
        ) as error:
            write_report(empty, 8)
        assert "\n" not in str(error.value)


def test_scores_without_text_show_ids(run_dir):
    (run_dir / "pairs.jsonl").rename(run_dir / "scores.jsonl")
    (run_dir / "scores.jsonl").write_text(lines([without_text(pair(3))]))
    page = page_of(run_dir)
    assert [token["text"] for token in page.tokens] == [f"{i} " for i in (7, 8, 9, 10, 11, 7, 8)]
    assert "reward mask 0.500" in page.tokens[0]["title"] and "From scores.jsonl" in page.text
    assert "Prompt of pair" not in (run_dir / "report.html").read_text()


def test_pairs_are_preferred_to_scores(run_dir):
    (run_dir / "scores.jsonl").write_text(lines([without_text(pair(99))]))
    page = page_of(run_dir)
    assert "Pair 3" in page.text and "Pair 99" not in page.text


def test_made_again_the_page_is_the_same(run_dir):
    first = write_report(run_dir, 8).read_bytes()
    assert write_report(run_dir, 8).read_bytes() == first


@pytest.mark.parametrize(
    ("evaluated", "says"),
    [
        ({"eval": {"depends": {"trained": {"po": 2.0}}, "finished": 3.0}}, None),
        ({"eval": {"depends": {"trained": {"po": 1.0}}, "finished": 3.0}}, "is not of the weights that lie"),
        ({}, "does not say that its evaluation was finished"),  # broken off; its weights may be these
        ({"eval": {"depends": {}, "finished": 3.0}}, None),  # not known
    ],
)
def test_an_evaluation_of_other_weights_is_not_shown(run_dir, evaluated, says):
    """Kills: the figures of a policy that lies there no more, beside the curves of the new one."""
    is_outdated = says is not None
    assert outdated(run_dir) is None, "nothing is known of its training"
    accuracy = page_of(run_dir).text.count("accuracy")
    (run_dir / "stages.json").write_text(json.dumps({"po": {"depends": {}, "finished": 2.0}} | evaluated))
    page = page_of(run_dir).text
    assert ("run the stage eval again" in page) == is_outdated
    assert (page.count("accuracy") < accuracy) == is_outdated
    assert (read_evaluation(run_dir) is None) == is_outdated and (says or "") in (outdated(run_dir) or "")
    broken = []
    assert bool(evaluation_if_sound(run_dir, broken)) != is_outdated and bool(broken) == is_outdated


def test_half_a_line_is_passed_over_and_counted(run_dir):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "po", "st')
    with (run_dir / "pairs.jsonl").open("a") as file:
        file.write('{"index": 12, "lo')
    page = page_of(run_dir)
    assert "could not be read: 1." in page.text and "Pair 11" in page.text


@pytest.mark.parametrize(
    "change, said",
    [
        ({"chosen": {"token_ids": [1]}}, "chosen.logp must be a list of 1 numbers"),
        ({"chosen": response([" a"], [True]) | {"kl": [0.1, 0.2]}}, "chosen.kl must be a list of 1 numbers"),
        ({"rejected": response([" a"], [True, False])}, "rejected.decisive must be null or 1 booleans"),
        ({"rejected": None}, "rejected must be an object"),
        ({"margin": "large"}, "margin must be numeric"),
    ],
)
def test_a_pair_that_does_not_fit_is_named(run_dir, change, said):
    (run_dir / "pairs.jsonl").write_text(lines([pair(), pair(**change)]))
    with pytest.raises(UserError, match=f"pairs.jsonl line 2: {said}"):
        write_report(run_dir, 8)


@pytest.mark.parametrize("content", ['{"before": ', "[1, 2]"])
def test_summary_that_is_no_object_is_named(run_dir, content):
    (run_dir / "summary.json").write_text(content)
    with pytest.raises(UserError, match="summary.json: expected .*JSON.* run the stage eval again"):
        write_report(run_dir, 8)


def test_values_that_are_no_numbers_break_nothing(run_dir):
    row = pair(loss=None, chosen=response([" a", " b"], None) | {"kl": [float("nan"), float("inf")]})
    (run_dir / "pairs.jsonl").write_text(lines([row]))
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "po", "step": 6, "loss": null}\n')
    page = page_of(run_dir)
    assert ["broken" in token["class"].split() for token in page.tokens] == [True, True, False, False]
    assert re.search(r"not a finite number at 1 of 6 steps,\s+first at 6", page.text)


def test_a_resumed_run_draws_each_step_once_and_in_order():
    rows = [{"stage": "po", "step": step, "loss": loss} for step, loss in ((2, 1.0), (1, 4.0), (2, 3.0))]
    metrics, unusable = collect([*rows, {"step": 1}])
    assert list(metrics["po", "loss"].items()) == [(1, 4.0), (2, 3.0)] and unusable == 1


@pytest.mark.parametrize("start", ["", "eval/", "eval_hard/"])
def test_a_batch_without_desirable_responses_is_no_fault(start):
    """Kills: the reward of none of them, shown in red as a number that is not finite."""
    names = ("kl/chosen", "kl/rejected", "rewards/margins", "margin_unmasked", "loss")
    none = dict.fromkeys((start + name for name in names), None)
    shares = [{f"{start}share/chosen": x, f"{start}share/rejected": 1 - x} for x in (0.0, 0.5)]
    rows = [{"stage": "po", "step": step} | share | none for step, share in enumerate(shares)]
    metrics, _ = collect(rows)
    steps = {name: list(metrics.get(("po", start + name), {})) for name in names}
    assert steps == {name: [0, 1] if name in ("loss", "kl/rejected") else [1] for name in names}


def test_long_curves_are_thinned_and_keep_their_extremes():
    series = {step: 0.0 for step in range(10_000)} | {4321: 9.0, 7777: -9.0}
    kept = thin(series)
    assert len(kept) <= MAX_POINTS + 2 and (4321, 9.0) in kept and (7777, -9.0) in kept


def numbers_in(path):
    return [float(x) for x in re.findall(r"-?[\d.]+", path)]


def elements(chart):
    """The drawing as a browser takes it apart."""
    return ElementTree.fromstring(str(chart.svg)).iter()


def test_a_curve_is_drawn_within_its_box_and_its_values_are_shown_under_the_pointer():
    series = {step: 0.0 for step in range(10_000)} | {4321: 9.0, 7777: -9.0}
    (chart,) = make_charts({("po", "loss"): series})
    root = next(elements(chart))
    assert root.attrib["viewBox"] == f"0 0 {WIDTH} {HEIGHT}"
    curves = [x.attrib["d"] for x in elements(chart) if "stroke: var(--c0)" in x.attrib.get("style", "")]
    assert len(curves) == 1 and all(0 <= x <= WIDTH for x in numbers_in(curves[0]))
    titles = [x.text for x in elements(chart) if x.tag == "title"]
    assert len(titles) <= 150 and "steps 4288 to 4354\ntraining: 0.000" in titles
    texts = {x.text for x in elements(chart) if x.tag == "text"}
    assert {"\N{MINUS SIGN}10", "10", "0", "8000", "step"} <= texts  # text stays text


def test_charts_of_single_responses_speak_of_these():
    """Kills: chosen and rejected where there are no pairs."""
    names = ("rewards/margins", "kl/chosen", "kl/rejected")
    of_pairs = {("po", name): {1: 0.5, 2: float(n)} for n, name in enumerate(names)}
    of_responses = of_pairs | {("po", "share/chosen"): {1: 0.5}}

    def said(charts):
        return " ".join(f"{chart.title} {[line.name for line in chart.lines]}" for chart in charts)

    for charts in (make_charts(of_responses), make_overlay({"kto": of_responses, "none": {}})):
        assert "desirable over undesirable" in said(charts)
        assert "chosen" not in said(charts) and "rejected" not in said(charts)
    for charts in (make_charts(of_pairs), make_overlay({"dpo": of_pairs, "kto": of_responses})):
        assert "desirable" not in said(charts) and "chosen over rejected" in said(charts)


def test_charts_of_an_objective_without_masks_do_not_speak_of_masked_figures():
    """Kills: SimPO's own reward, called masked."""
    plain = {("po", name): {1: 0.5, 2: n} for n, name in enumerate(("rewards/margins", "margin_unmasked"))}
    masked = plain | {("po", "mask/reward_mean"): {1: 0.9, 2: 0.8}}
    for metrics, names in (
        (plain, ["by the objective's reward, training", "by the plain log-ratio, training"]),
        (masked, ["masked, training", "unmasked, training"]),
    ):
        assert [line.name for line in make_charts(metrics)[0].lines] == names
    titles = [chart.title for chart in make_overlay({"a": plain, "b": masked})]
    assert titles[:2] == [f"Margin, chosen over rejected: {name}" for name in ("masked", "unmasked")]


def test_a_value_without_neighbours_is_a_dot():
    """Of which no line would be seen; an evaluation has a dot at each value."""

    def dots(metric, values):
        (chart,) = make_charts({("po", metric): dict(enumerate(values))})
        return [x for x in elements(chart) if x.tag == "use" and "stroke: var(--c0)" in x.attrib["style"]]

    assert len(dots("loss", [1.0, 2.0, math.nan, 3.0, math.inf, 4.0, 5.0])) == 1
    assert len(dots("loss", [1.0])) == 1 and len(dots("loss", [1.0, 2.0])) == 0
    assert len(dots("eval/loss", [1.0, 2.0])) == 2


def test_a_page_has_each_id_once_and_refers_to_ids_that_it_has(run_dir):
    page = page_of(run_dir)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    assert {attrs["href"][1:] for _, attrs in page.tags if "href" in attrs} <= set(ids)


def test_drawings_take_their_colours_from_the_page(run_dir):
    svg = re.findall(r"<svg.*?</svg>", write_report(run_dir, 8).read_text(), re.DOTALL)
    assert svg and not any(re.search(r"#[0-9a-f]{6}|font|<style", drawing) for drawing in svg)


def test_ticks_are_round_and_hold_all_values():
    with drawing_style():
        for values, ticks in (
            ([0.13, 0.97], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            ([], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            ([0.0, 0.0], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            ([-3.0, 11.0], [-5.0, 0.0, 5.0, 10.0, 15.0]),
        ):
            assert round_ticks(values) == pytest.approx(ticks)
        for values in ([5.0], [1e99, -1e99], [1e-20, 3e-20], [123456.78, 123456.79]):
            ticks = round_ticks(values)
            room = 1e-9 * max(map(abs, values))
            assert ticks[0] - room <= min(values) <= max(values) <= ticks[-1] + room
            assert len(set(tick_labels(ticks))) == len(ticks)
        assert tick_labels(step_ticks(0, 0)) == ["0"]
        assert step_ticks(7, 7) == [7] and step_ticks(1, 3) == [1, 2, 3]
        assert step_ticks(10, 600) == [200, 400, 600]


def test_summary_table_leaves_out_what_is_unknown():
    """Neither a row nor a column of dashes."""
    text = summary_table(SUMMARY | {"mask": dict.fromkeys(SUMMARY["mask"])})
    rows = {line.rsplit(maxsplit=2)[0]: line.split()[-2:] for line in text.splitlines()[1:]}
    assert rows["accuracy"] == ["0.500", "0.875"] and rows["KL to reference"] == ["0.000", "2.125"]
    assert (
        list(rows) == ["accuracy", "accuracy, unmasked", "margin", "margin, unmasked", "KL to reference"]
        and "-" not in text
    )
    assert len({len(line) for line in text.splitlines()}) == 1
    text = summary_table({"before": dict.fromkeys(POLICY), "after": SUMMARY["after"], "mask": None})
    assert text.splitlines()[0].strip() == "as it is" and text.splitlines()[1].split() == [
        "accuracy",
        "0.875",
    ]
    assert len({len(line) for line in text.splitlines()}) == 1
    assert summary_table({}) == "" == summary_table({"before": POLICY | dict.fromkeys(POLICY)})


def test_the_page_leaves_out_what_is_unknown(run_dir):
    """A user's own data: nobody knows which tokens are decisive, and nothing was sampled."""
    (run_dir / "summary.json").write_text(
        json.dumps(SUMMARY | {"mask": dict.fromkeys(SUMMARY["mask"]) | {"sparsity_end": 0.25}})
    )
    (run_dir / "pairs.jsonl").write_text(
        lines([pair(chosen=response(CHOSEN, None), rejected=response(REJECTED, None))])
    )
    page = page_of(run_dir)
    for absent in ("AUROC", "Controls", "preferred words", "of what it writes", "decisive token"):
        assert absent not in page.text, absent
    assert "0.250" in page.text and "evaluation.lexicons" in page.text
    (run_dir / "summary.json").write_text(json.dumps(SUMMARY | {"before": dict.fromkeys(POLICY), "mask": {}}))
    write_report(run_dir, 8)
    html = (run_dir / "report.html").read_text()
    assert "<th>as it is</th>" in html and "<th>change</th>" not in html


def test_words_and_the_doctors_lines_are_at_the_top(run_dir):
    page = page_of(run_dir)
    assert page.text.index("Learnt: 0.75 of the 64 held-out pairs") < page.text.index("margin, unmasked")
    assert "What looks wrong" not in page.text
    (run_dir / "po").mkdir()
    facts = {
        "steps": 5,
        "data": {"rows": 1234567, "responses": 2469134, "response_tokens": 12.5, "responses_cut": 30000},
        "machine": {"devices": "8 x <b>TPU", "products": "bfloat16, sums in float32"},
        "limits": {"max_length": 99},
    }
    (run_dir / "po" / "facts.json").write_text(json.dumps(facts))
    page = page_of(run_dir)
    assert page.text.index("30000 of 2469134 responses are cut") < page.text.index("margin, unmasked")
    for said in ("1,234,567", "12.5", "8 x <b>TPU", "bfloat16, sums in float32", "99"):
        assert said in page.text, said


def test_the_model_of_a_stage_is_the_one_that_it_began_with(tmp_path):
    """Kills: random weights as what po trained after sft, and a base as what was evaluated after po."""
    facts = {"machine": {"devices": "1 x cpu"}, "parameters": 10, "trained_parameters": 4}
    (tmp_path / "summary.json").write_text(json.dumps({"machine": facts["machine"]}))
    config = {"policy": {"path": "org/base"}, "sft": {"taken_from": "runs/other"}}

    def models():
        return {row.label: list(row.values.values()) for row in run_rows(tmp_path, config, {})}

    assert models()["model"] == ["the sft of runs/other"]
    for stage in ("po", "sft"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "facts.json").write_text(json.dumps(facts))
        begin = ["the sft of runs/other"] if stage == "po" else ["org/base", "as sft left it"]
        assert models()["model"] == [*begin, "as po left it"]
    assert models()["trained in their place, of adapters"] == ["4", "4", ""]


def test_a_stage_that_is_not_finished_says_how_far_it_came(tmp_path):
    """Kills: 18 steps of which nine were done."""
    (tmp_path / "po").mkdir()
    facts = {"machine": {"devices": "1 x cpu"}, "steps": 18}
    (tmp_path / "po" / "facts.json").write_text(json.dumps(facts))
    metrics = {("po", "loss"): {8: 0.5}, ("po", "eval/loss"): {9: 0.5}, ("sft", "loss"): {30: 1.0}}
    for marks, done in (({}, ["9, not finished"]), ({"po": {}}, None)):
        (tmp_path / "stages.json").write_text(json.dumps(marks))
        rows = {row.label: list(row.values.values()) for row in run_rows(tmp_path, {}, metrics)}
        assert rows["steps"] == ["18"] and rows.get("steps done") == done


def test_of_single_responses_no_pair_is_spoken_of(run_dir):
    """Kills: headings, notes and meanings of pairs where rows are responses with a label."""
    assert "64 held-out pairs" in visible_words(write_report(run_dir, 8).read_text())
    (run_dir / "summary.json").write_text(json.dumps(SUMMARY | {"rows": "responses", "desirable": 0.5}))
    (run_dir / "pairs.jsonl").write_text(lines([single(3), single(11, "rejected")]))
    words = visible_words(write_report(run_dir, 8).read_text())
    assert "pair" not in words
    for said in (
        "on\n64 held-out responses",
        "over the 2 responses below; ␣",
        "responses, token by token",
        "response 11",
        "prompt of response 3",
        "desirable ones above it and undesirable",
        "mean reward of desirable responses minus",
    ):
        assert said in words, said


def test_what_lexicons_would_tell_is_said_only_of_a_mask_that_nothing_judges(run_dir):
    """Kills: a run without masks that speaks of how well its mask finds tokens."""
    zeros, found = {"sparsity_end": 0.8}, {"auroc_reward": 0.9}
    for mask, said in (({}, False), (zeros, True), (zeros | found, False), ({"auroc_logratio": 0.9}, False)):
        (run_dir / "summary.json").write_text(json.dumps(SUMMARY | {"mask": mask}))
        assert ("evaluation.lexicons" in write_report(run_dir, 8).read_text()) == said, mask


def test_unmasked_figures_are_called_what_they_are():
    """For SimPO or IPO they are another reward's than the masked ones, not the same with weights of 1."""
    meanings = {row.label: row.meaning for row in POLICY_ROWS}
    for label in ("accuracy, unmasked", "margin, unmasked"):
        assert "plain log-ratio to the reference" in meanings[label]
    for label in ("accuracy", "margin"):
        assert "as the objective computes it" in meanings[label]


def test_summary_table_shows_the_mask_before_and_after():
    rows = {line.rsplit(maxsplit=2)[0]: line.split()[-2:] for line in summary_table(SUMMARY).splitlines()[1:]}
    assert rows["mask sparsity"] == ["0.450", "0.770"] and rows["AUROC, reward mask"] == ["0.520", "0.910"]
    assert rows["AUROC, KL mask"] == ["-", "0.920"] and rows["AUROC, ceiling"] == ["-", "0.970"]
    assert rows["AUROC, position alone"] == ["-", "0.610"]


def test_controls_are_on_the_page_and_not_in_the_printed_table(run_dir):
    """A number three names deep; half a summary, from before there were controls, has no such rows."""
    left = {"0.1": {"accuracy_top": 0.7125, "accuracy_random": 0.9375}}
    (run_dir / "summary.json").write_text(
        json.dumps(SUMMARY | {"mask": SUMMARY["mask"] | {"auroc_shuffled": 0.5375, "deletion": left}})
    )
    text = " ".join(page_of(run_dir).text.split())
    assert "0.537" in text and text.index("without any tenth") < text.index("0.938") < text.index(
        "without the top tenth"
    ) < text.index("0.713")
    assert "tenth" not in summary_table(SUMMARY)
    (run_dir / "summary.json").write_text(json.dumps(SUMMARY | {"mask": {"deletion": None}}))
    assert "without the top tenth" not in page_of(run_dir).text


def test_report_does_not_import_jax():
    code = "import sys, sparsepo_jax.report.page; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
