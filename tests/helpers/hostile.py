"""What the tests of hostile input share: strange values, and what a message about them must look like."""

import json
import math
from pathlib import Path

from hypothesis import HealthCheck
from hypothesis import strategies as st

from sparsepo_jax.data.load import load_table
from sparsepo_jax.data.sources import FileRows
from sparsepo_jax.data.tokenizers import END, make_byte_tokenizer

ROOT = Path(__file__).parent.parent.parent
BYTES = make_byte_tokenizer()
FUZZ = dict(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
GOOD = {"pairs": {"prompt": "Q", "chosen": " yes", "rejected": " no"}, "sft": {"text": "fine"}}


def one_line(error: Exception) -> str:
    message = str(error)
    assert message and message.isprintable() and len(message) < 1000, message
    return message


TEXTS = (
    st.sampled_from(
        [
            "",
            " ",
            "\n",
            "\x00",
            "\x85",
            "a\u2028b",
            "\ufeff",
            "\ud800",
            "x\udfff",
            END,
            f"{END} x",
            f"x{END}\n ",
            "<|endof",
            "text|>",
            "NaN",
            "7",
            "null",
            "é",
            "😀",
            "e\u0301",
            "\r\n",
            "\x1b[31m",
            "\u202e",
            "{{ 7 * 7 }}",
            "{% for %}",
            "<script>alert(1)</script>",
            "<|assistant|>\n",
            "\n\nAssistant:",
            "Is it good?",
            "yes " * 30,
            "né" * 60,
        ]
    )
    | st.text(max_size=12)
    | st.text(st.characters(exclude_categories=()), max_size=6)
)
NUMBERS = (
    st.sampled_from(
        [0, 1, -1, 256, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e39, 1e308, math.nan, math.inf, True]
    )
    | st.integers(0, 300)
    | st.floats()
)
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXTS, below, max_size=3),
    max_leaves=6,
)


class Loading:
    """load(path, on_bad_row) with the settings of one example, in a directory of its own."""

    def __init__(self, directory: Path, kind: str, limits: tuple[int, int], vocab_size: int | None):
        self.listed_at, self.kind = directory / "bad.jsonl", kind
        self.settings = dict(
            kind=kind,
            tokenizer=BYTES,
            vocab_size=vocab_size,
            max_length=limits[0],
            max_prompt_length=limits[1],
            separator="",
            template="none",
            template_arguments={},
            add_bos=None,
            add_eos=True,
            bad_rows_path=self.listed_at,
            cache_dir=str(directory / "cache"),
        )

    def __call__(self, path: Path, on_bad_row: str):
        return load_table([FileRows(str(path))], on_bad_row=on_bad_row, **self.settings)

    def listed(self) -> list[int]:
        rows = (
            [json.loads(line) for line in self.listed_at.read_text().splitlines()]
            if self.listed_at.exists()
            else []
        )
        assert all(row["problem"] and row["problem"].isprintable() for row in rows)
        return [row["line"] for row in rows]
