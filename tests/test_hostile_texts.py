"""Hostile texts in what is shown: no text of a run becomes markup, and no message breaks its line."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from helpers.hostile import one_line
from helpers.program import write_config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.main import main
from sparsepo_jax.report.heatmap import visible
from sparsepo_jax.report.page import write_report

MARKUP = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</style><style>*{display:none}</style>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    '" onmouseover="alert(1)',
    "<svg onload=alert(1)>",
    "<svg/onload=alert(1)//",
    "javascript:alert(1)",
    "<a href=javascript:alert(1)>x</a>",
    "</span></p></section></main>",
    "<!--",
    "-->",
    "<![CDATA[",
    "]]>",
    "&lt;b&gt;",
    "&#60;script&#62;",
    "&quot;",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<base href=//x>",
    "<meta http-equiv=refresh content=0>",
    "<plaintext>",
    "<textarea>",
    "<title>",
    "<template>",
    "<?php",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "--u:1;background:url(//x)",
    "expression(alert(1))",
    "\x00<b>",
    "<\x00script>",
    "\u202e<b>",
    "\ud800<b>",
    "\uff1cscript\uff1e",
    "<b\u2028>",
    "\x1b]0;x\x07",
    "`-alert(1)-`",
    "<x" + "y" * 3000 + " onclick=alert(1)>",
]


def write_run(directory: Path, texts: list[str]) -> Path:
    """A run whose every text is one of these.

    They are its tokens, prompts, origins, samples, names of metrics and stages, its summary and its config.
    """
    directory.mkdir()

    def write(name, rows):
        (directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def response(tokens):
        n = len(tokens)
        numbers = {
            name: [(t + 1) / n for t in range(n)]
            for name in ("logp", "ref_logp", "kl", "reward_mask", "kl_mask")
        }
        return {"token_ids": list(range(n)), "tokens": tokens, "decisive": [True] * n, **numbers}

    write(
        "pairs.jsonl",
        [
            {
                "index": i,
                "loss": 0.5,
                "margin": -1.0,
                "origin": text,
                "prompt_tokens": [text, text],
                "chosen": response(texts),
                "rejected": response([text]),
            }
            for i, text in enumerate(texts)
        ],
    )
    write("samples.jsonl", [{"prompt": text, "before": text, "after": text} for text in texts])
    write(
        "metrics.jsonl",
        [
            {"stage": stage, "step": step, "loss": 1.0, **dict.fromkeys(texts, 2.0)}
            for stage in ("po", texts[0])
            for step in (1, 2)
        ],
    )
    (directory / "summary.json").write_text(
        json.dumps(
            {"pairs": texts[0], "before": {"accuracy": texts[1]}, "after": texts[2], "seconds": texts[3]}
        )
    )
    shown = json.dumps(
        {
            "seed": texts[0],
            "objective": {"kind": texts[1], "beta": texts[2], "mask": {"kind": texts[3]}},
            "policy": {"path": texts[4]},
        },
        ensure_ascii=True,
    )
    (directory / "config.yaml").write_text(shown)
    return write_report(directory, pairs=len(texts))


class Parsed(HTMLParser):
    """A page: elements with the names of their attributes in order, style sheet, texts, where links lead."""

    def __init__(self, path: Path):
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self.style, self.links, self.within_style = [], "", "", set(), False
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, *(name for name, _ in attrs)))
        self.within_style = tag == "style"
        self.links |= {value for name, value in attrs if name in ("href", "src", "action", "data")}
        self.text += "".join(value or "" for name, value in attrs if name == "title")

    def handle_endtag(self, tag):
        self.elements.append(("/", tag))
        self.within_style = False

    def handle_comment(self, data):
        self.elements.append(("comment", data))

    handle_decl = handle_pi = unknown_decl = handle_comment

    def handle_data(self, data):
        if self.within_style:
            self.style += data
        else:
            self.text += data


def test_no_text_of_a_run_becomes_markup_in_its_report(tmp_path):
    page, harmless = (
        Parsed(write_run(tmp_path / "<b>run", MARKUP)),
        Parsed(write_run(tmp_path / "run", [f"word{n:02}" for n in range(len(MARKUP))])),
    )
    assert page.elements == harmless.elements, "the texts of a run change nothing but text"
    assert (
        page.style == harmless.style
        and page.links == harmless.links
        and all(link.startswith("#") for link in page.links)
    )
    for text in MARKUP:
        assert page.text.count(visible(text)) >= 5, text
    assert "<b>run" in page.text


@pytest.mark.parametrize(
    "line",
    [
        "[" * 900 + "]" * 900,
        "? " * 2000,
        '{"a": ' + "9" * 5000 + "}",
        "{}",
        "null",
        "\x00",
        '{"index": 1, "loss": {"a": 1}}',
        '{"index": 1, "loss": ' + "1" + "0" * 400 + "}",
    ],
    ids=["depth", "depth of YAML", "digits", "empty", "null", "NUL", "no number", "large"],
)
@pytest.mark.parametrize(
    "name", ["pairs.jsonl", "metrics.jsonl", "samples.jsonl", "summary.json", "config.yaml"]
)
def test_a_run_with_files_that_nobody_wrote_gives_a_page_or_one_line(tmp_path, name, line):
    write_run(tmp_path / "run", [f"word{n}" for n in range(6)])
    (tmp_path / "run" / name).write_text(line + "\n")
    try:
        assert Parsed(write_report(tmp_path / "run", 3)).elements
    except UserError as error:
        one_line(error)


def test_what_a_message_quotes_cannot_break_or_hide_its_line(tmp_path, capsys, monkeypatch):
    """A path with characters that move the cursor, through the real program.

    Kills: a message that is more than one line of the log, or that moves the cursor.
    """
    assert str(UserError("a\nb\r\x1b[2K\u2028\ud800 é")) == "a\\nb\\r\\x1b[2K\\u2028\\ud800 é"
    monkeypatch.chdir(tmp_path)  # YAML's writer would fold a longer path
    name = "no\x9b2Kerror: all is well\x9b1A.jsonl"
    (tmp_path / name).write_text("{}\n")
    data = {"train": [{"path": name}], "eval": [], "sft": []}
    assert main(["--config", str(write_config(tmp_path, stages=["inspect"], data=data))]) == 1
    output = capsys.readouterr().err
    assert (
        output.count("\n") == 1
        and output[:-1].isprintable()
        and output.startswith("error: ")
        and "no\\x9b2Kerror: all is well\\x9b1A.jsonl:1: " in output
    )
