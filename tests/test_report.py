"""The report: one page from a run's files, whatever of them is there."""

import json
import re
from html.parser import HTMLParser

import pytest

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.report.page import write_report
from sparsepo_jax.report.plots import collect, make_charts
from sparsepo_jax.report.table import summary_table


def response(tokens, decisive=None, masks=None):
    n = len(tokens)
    return {"token_ids": list(range(n)), "tokens": tokens, "decisive": decisive, "logp": [-1.0] * n, "ref_logp": [-1.25] * n, "kl": [0.0625] * n,
            "reward_mask": masks or [0.5] * n, "kl_mask": masks or [2.0] * n}


PAIR = {"index": 7, "loss": 0.4321, "margin": -1.2345, "origin": "pairs.jsonl:8", "prompt_tokens": ["Is", " it <b>?"],
        "chosen": response([" <script>alert(1)</script>", " good", "\n", "\x1b[0m"], [False, True, False, False]), "rejected": response([" bad"], [False])}
SUMMARY = {"before": {"accuracy": 0.5, "kl": 0.0}, "after": {"accuracy": 0.875, "kl": 1.5, "margin": None},
           "mask": {"sparsity_start": 0.5, "sparsity_end": 0.75, "auroc_reward": None}, "seconds": 61.0}
METRICS = [{"stage": "po", "step": step, "time_s": 0.1, "loss": 0.7 - step / 100, "mask/reward_sparsity": 0.5, "mask/kl_sparsity": 0.5} for step in (10, 20, 30)]


def write(directory, *, summary=SUMMARY, metrics=METRICS, pairs=(PAIR,), config="objective: {kind: sparsepo, beta: 0.8}\n", pairs_name="pairs.jsonl"):
    for name, content in (("summary.json", summary and json.dumps(summary)), ("config.yaml", config),
                          ("metrics.jsonl", metrics and "".join(json.dumps(row) + "\n" for row in metrics)),
                          (pairs_name, pairs and "".join(json.dumps(row) + "\n" for row in pairs))):
        if content:
            (directory / name).write_text(content)
    return directory


class Page(HTMLParser):
    """Token spans (text, classes, hover text), tags, and what the page would load."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.spans, self.loads, self._open = [], [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href") and not value.startswith("#")]
        if tag == "span" and "title" in found:
            self._open = [found["class"].split(), found["title"], found.get("style", ""), ""]

    def handle_data(self, data):
        if self._open:
            self._open[3] += data

    def handle_endtag(self, tag):
        if tag == "span" and self._open:
            self.spans.append(tuple(self._open))
            self._open = None


def page_of(directory, pairs=5):
    return Page(write_report(directory, pairs=pairs).read_text())


def test_the_page_needs_nothing_but_itself(tmp_path):
    page = page_of(write(tmp_path))
    assert page.loads == [] and "script" not in page.tags
    assert not re.search(r"url\(|@import", (tmp_path / "report.html").read_text())


def test_every_token_shows_its_text_escaped_and_its_values_on_hover(tmp_path):
    page = page_of(write(tmp_path))
    assert [text for *_, text in page.spans] == [" <script>alert(1)</script>", " good", "↵\n", "\\x1b[0m", " bad"]
    assert [("decisive" in classes) for classes, *_ in page.spans] == [False, True, False, False, False]
    title = page.spans[1][1]
    for line in ("␣good  (id 1)  decisive", "reward mask 0.500", "KL mask 2.000", "log-ratio 0.250  (policy -1.000, reference -1.250)", "KL 0.062"):
        assert line in title.splitlines()


def test_colour_grows_with_the_value_and_zero_has_none(tmp_path):
    masks = [0.0, 0.1, 1.0, 2.0]
    page = page_of(write(tmp_path, pairs=[PAIR | {"chosen": response(list("abcd"), masks=masks), "rejected": response(["e"], masks=[0.0])}]))
    shades = [float(found.group(1)) if (found := re.search(r"--u:([\d.]+);", style)) else 0.0 for _, _, style, _ in page.spans]
    assert shades[0] == shades[4] == 0.0 and 0 < shades[1] < shades[2] < shades[3]


def test_numbers_of_the_summary_and_the_pair_are_on_the_page(tmp_path):
    write_report(write(tmp_path), pairs=5)
    html = (tmp_path / "report.html").read_text()
    for shown in ("0.875", "+0.375", "1.500", "-1.234", "0.432", "pairs.jsonl:8", "negative margin", "1 min 1 s"):
        assert shown in html, shown
    assert "Is it &lt;b&gt;?" in html


def test_pairs_beyond_the_asked_are_left_out(tmp_path):
    page = page_of(write(tmp_path, pairs=[PAIR] * 3), pairs=2)
    assert len(page.spans) == 2 * 5


@pytest.mark.parametrize("missing", ["summary", "metrics", "pairs", "config"])
def test_a_missing_file_is_said_not_fatal(tmp_path, missing):
    name = {"summary": "summary.json", "metrics": "metrics.jsonl", "pairs": "pairs.jsonl", "config": "config.yaml"}[missing]
    assert name in write_report(write(tmp_path, **{missing: None}), pairs=5).read_text()


def test_without_results_there_is_no_report(tmp_path):
    with pytest.raises(UserError, match="found none; run the stage sft, po, score or eval first"):
        write_report(tmp_path, pairs=5)


def test_scores_without_text_show_ids(tmp_path):
    bare = {name: value for name, value in PAIR.items() if name not in ("origin", "prompt_tokens")}
    for side in ("chosen", "rejected"):
        bare[side] = {name: value for name, value in PAIR[side].items() if name not in ("tokens", "decisive")}
    page = page_of(write(tmp_path, pairs=[bare], pairs_name="scores.jsonl"))
    assert [text for *_, text in page.spans] == ["0 ", "1 ", "2 ", "3 ", "0 "]


def test_objectives_without_masks_are_coloured_by_log_ratio(tmp_path):
    ones = PAIR | {side: response(["a", "b"], masks=[1.0, 1.0]) for side in ("chosen", "rejected")}
    html = write_report(write(tmp_path, pairs=[ones]), pairs=5).read_text()
    assert "This objective has no masks" in html and re.search(r'id="by-r" checked', html)


def test_half_a_line_of_an_interrupted_run_is_passed_over(tmp_path):
    write(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "po", "st')
    assert "could not be read: 1." in write_report(tmp_path, pairs=5).read_text()


def test_steps_that_were_done_twice_count_once():
    """A continued run writes the steps after its checkpoint again: the later value stands."""
    metrics, unusable = collect([*METRICS, METRICS[1] | {"loss": 0.1}, {"no": "stage"}])
    assert metrics["po", "loss"] == {10: 0.6, 20: 0.1, 30: pytest.approx(0.4)} and unusable == 1
    sparsity = next(chart for chart in make_charts(metrics) if chart.title.startswith("Mask sparsity"))
    assert [line.name for line in sparsity.lines] == ["reward = KL, training"]


def test_a_broken_pair_is_named_by_line(tmp_path):
    short = PAIR | {"rejected": PAIR["rejected"] | {"kl": []}}
    with pytest.raises(UserError, match=r"pairs.jsonl line 2: rejected.kl must be a list of 1 numbers"):
        write_report(write(tmp_path, pairs=[PAIR, short]), pairs=5)


def test_the_same_files_give_the_same_page(tmp_path):
    first = write_report(write(tmp_path), pairs=5).read_bytes()
    assert write_report(tmp_path, pairs=5).read_bytes() == first


def test_the_table_shows_a_dash_for_what_is_unknown():
    rows = {re.split(r"\s{2,}", line)[0]: re.split(r"\s{2,}", line)[1:] for line in summary_table(SUMMARY).splitlines()}
    assert rows["accuracy"] == ["0.500", "0.875"] and rows["margin"] == ["-", "-"]
    assert rows["mask sparsity"] == ["0.500", "0.750"] and rows["AUROC, reward mask"] == ["-", "-"]
