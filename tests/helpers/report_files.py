"""The files that a run leaves for its report, and the page as a browser reads it."""

import json
import re
from html.parser import HTMLParser

CHOSEN = [" good", "<script>alert(1)</script>", "\n", "\x1b[31m\u202e", '\'" onmouseover="x']


REJECTED = [" bad", ""]


def response(tokens, decisive, *, first_mask=0.5):
    n = len(tokens)
    return {
        "token_ids": list(range(7, 7 + n)),
        "logp": [-1.0] * n,
        "ref_logp": [-1.5 + t for t in range(n)],
        "kl": [0.1234] * n,
        "reward_mask": [first_mask] + [0.0] * (n - 1),
        "kl_mask": [0.3125] * n,
        "tokens": tokens,
        "decisive": decisive,
    }


def pair(index=3, **changes):
    return {
        "index": index,
        "loss": 0.456,
        "margin": 1.789,
        "origin": "<b>reviews",
        "prompt_tokens": ["Say", " <i>why</i>"],
        "chosen": response(CHOSEN, [True] + [False] * 4),
        "rejected": response(REJECTED, [False, False]),
    } | changes


def single(index=3, side="chosen"):
    """A response by itself, as rows with a label are scored: desirable under chosen, else under rejected."""
    row = pair(index)
    return {name: x for name, x in row.items() if name not in ("chosen", "rejected") or name == side}


def visible_words(html):
    """What a reader sees or hears of a page, in lower case, without the names of our files."""
    labels = " ".join(re.findall(r'aria-label="([^"]*)"', html))
    text = re.sub(r"<style>.*?</style>|<[^>]*>", "", html, flags=re.DOTALL)
    return f"{text} {labels}".lower().replace("pairs.jsonl", "")


def metric_rows():
    rows = [{"stage": "sft", "step": step, "time_s": 0.1, "loss": 3.0 / step} for step in range(1, 6)]
    for step in range(1, 6):
        rows.append(
            {
                "stage": "po",
                "step": step,
                "time_s": 0.2,
                "loss": 0.7,
                "rewards/margins": 0.1 * step,
                "margin_unmasked": 0.05 * step,
                "rewards/accuracies": 0.5,
                "accuracy_unmasked": 0.5,
                "kl/chosen": 0.1,
                "kl/rejected": 0.2,
                "mask/reward_sparsity": 0.4,
                "mask/kl_sparsity": 0.4,
                "mask/reward_mean": 0.3,
                "mask/kl_mean": 0.3,
            }
        )
    return [*rows, {"stage": "po", "step": 5, "time_s": 0.3, "eval/rewards/margins": 0.625}]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


class Page(HTMLParser):
    """The page as a browser takes it apart: tags, and the text and attributes of the tokens."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tokens, self.inputs, self.inside = [], [], [], False
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == "span" and (attrs.get("class") or "").split()[:1] == ["t"]:
            self.tokens.append(attrs | {"text": ""})
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "span"

    def handle_data(self, data):
        self.text += data
        if self.inside:
            self.tokens[-1]["text"] += data
