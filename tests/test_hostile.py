"""Hostile input: whatever rows, files and configs hold, they end in one clear line or in the right result.

Texts never become markup, and nothing is executed.

10,000 generated inputs, counted:  pytest tests/test_hostile.py -m slow -s     (the default suite runs 400)
"""

import gzip
import io
import json
import math
import pickle
import sys
import tempfile
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args, get_origin

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsepo_jax.config.load import ConfigError, load_config, save_config
from sparsepo_jax.config.schema.base import Section
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.load import load_table, read_texts
from sparsepo_jax.data.sources import FileRows, open_source
from sparsepo_jax.data.tokenizers import END, load_tokenizer, make_byte_tokenizer
from sparsepo_jax.models.config_fields import SpecError
from sparsepo_jax.models.directory import read_config
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.models.weights import SafeTensors
from sparsepo_jax.report.page import write_report

ROOT = Path(__file__).parent.parent
BYTES = make_byte_tokenizer()
FUZZ = dict(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


def one_line(error: Exception) -> str:
    message = str(error)
    assert message and message.isprintable() and len(message) < 1000, message
    return message


# ---------------------------------------------------------------- rows

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
DEEP = st.sampled_from([50, 400, 100_000])
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXTS, below, max_size=3),
    max_leaves=6,
)
ROLES = st.sampled_from(["user", "assistant", "assistant", "system", "", "endoftext", "a\nb"])
MESSAGES = st.lists(st.fixed_dictionaries({"role": ROLES, "content": TEXTS}) | JUNK, max_size=3)
ANSWER = st.lists(
    st.fixed_dictionaries({"role": st.just("assistant"), "content": TEXTS}), min_size=1, max_size=2
)
TALK = st.lists(st.fixed_dictionaries({"role": ROLES, "content": TEXTS}), min_size=1, max_size=2)
IDS = st.lists(st.integers(0, 256), min_size=1, max_size=60) | st.lists(NUMBERS, max_size=3)
SPANS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), NUMBERS).map(list), max_size=3)


def column(name):
    if name.endswith("_ids"):
        return st.one_of(IDS, IDS, IDS, JUNK)
    if name.endswith(("_weights", "_decisive", "_chance")):
        return st.one_of(
            st.none(),
            st.none(),
            SPANS,
            st.lists(NUMBERS, max_size=8),
            st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=2), max_size=2),
            JUNK,
        )
    if name == "messages":
        return st.one_of(MESSAGES, st.tuples(MESSAGES, ANSWER).map(lambda both: both[0] + both[1]), JUNK)
    if name in ("chosen", "rejected", "completion"):
        return st.one_of(TEXTS, TEXTS, TEXTS, TEXTS, ANSWER, MESSAGES, JUNK)
    return st.one_of(TEXTS, TEXTS, TEXTS, TEXTS, MESSAGES, JUNK)


def row_of(always, sometimes):
    rows = st.fixed_dictionaries(
        {name: column(name) for name in always}, optional={name: column(name) for name in sometimes}
    )
    return st.tuples(rows, st.dictionaries(TEXTS, JUNK, max_size=2)).map(lambda both: both[1] | both[0])


ROWS = {
    "pairs": st.one_of(
        row_of(["prompt", "chosen", "rejected"], []),
        row_of(
            ["prompt", "chosen", "rejected"],
            ["chosen_weights", "rejected_weights", "chosen_decisive", "rejected_chance", "tools"],
        ),
        st.tuples(TEXTS, TEXTS, TEXTS).map(
            lambda t: {"chosen": f"{t[0]} {t[1]}", "rejected": f"{t[0]} {t[2]}"}
        ),
        st.tuples(TALK, ANSWER, ANSWER).map(lambda t: {"chosen": t[0] + t[1], "rejected": t[0] + t[2]}),
        st.tuples(MESSAGES, ANSWER, ANSWER).map(lambda t: {"prompt": t[0], "chosen": t[1], "rejected": t[2]}),
        row_of(["prompt_ids", "chosen_ids", "rejected_ids"], ["chosen_weights", "prompt"]),
        row_of([], ["prompt", "chosen", "rejected", "prompt_ids", "chosen_ids", "text"]),
        JUNK,
    ),
    "sft": st.one_of(
        row_of(["prompt", "completion"], ["completion_weights"]),
        row_of(["text"], ["completion_weights", "messages"]),
        row_of(["messages"], ["tools"]),
        row_of(["input_ids"], []),
        row_of(["prompt_ids", "completion_ids"], ["completion_weights"]),
        JUNK,
    ),
}
BYTES_PUT = st.sampled_from(
    [
        b"\n",
        b"\r\n",
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\x00",
        b"\xef\xbb\xbf",
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b",",
        b'"prompt": 1, ',
        b"\\ud800",
        b"1" * 5000,
    ]
)


@st.composite
def lines(draw, kind):
    """The bytes of a row: JSON, or JSON with a few bytes altered, cut off or put in, or nested too deep."""
    if draw(st.integers(0, 60)) == 0:
        deep = draw(DEEP)
        return b'{"prompt": ' + b"[" * deep + b"]" * deep + b', "chosen": "a", "rejected": "b", "text": "c"}'
    line = json.dumps(draw(ROWS[kind]), ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        at = draw(st.integers(0, len(line)))
        line = line[:at] + draw(BYTES_PUT | st.just(b"")) + line[at + draw(st.sampled_from([0, 0, 1, 7])) :]
    return line


GOOD = {"pairs": {"prompt": "Q", "chosen": " yes", "rejected": " no"}, "sft": {"text": "fine"}}


@st.composite
def jsonl_files(draw):
    kind = draw(st.sampled_from(["pairs", "pairs", "sft"]))
    content = draw(lines(kind)) + b"\n"
    if draw(st.booleans()):
        content += json.dumps(GOOD[kind]).encode() + b"\n"
    return kind, draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"])) + content


def read_line(line: bytes):
    """The object of a line, by the letter of JSON; None: there is none that everybody reads alike."""

    def only(pairs):
        if len(dict(pairs)) < len(pairs):
            raise ValueError
        return dict(pairs)

    try:
        row = json.loads(line.decode(), object_pairs_hook=only)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def rows_of(content: bytes) -> dict[int, dict | None]:
    """Line -> row, of the lines that are not empty."""
    stripped = [line.rstrip(b"\r\n") for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    return {number: read_line(line) for number, line in enumerate(stripped, 1) if line}


def meaning_of(row, kind):
    """What a usable row says: ("ids", prompt, responses), or ("text", prompt or None, [whole text, ...]).

    Written from the table in formats.py.
    """
    row = {name: value for name, value in row.items() if value is not None}
    names = ("chosen", "rejected") if kind == "pairs" else ("completion",)
    if all(f"{name}_ids" in row for name in names):
        return "ids", row["prompt_ids"], [row[f"{name}_ids"] for name in names]
    if kind == "sft" and "completion" not in row:
        if "input_ids" in row:
            return "ids", row["input_ids"][:1], [row["input_ids"][1:]]
        if "messages" in row:
            row = {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}
        else:
            return "text", None, [row["text"]]
    values = [row[name] for name in names]
    if all(isinstance(value, str) for value in [row.get("prompt", ""), *values]):
        if "prompt" not in row:
            return "text", None, values
        return "text", row["prompt"], [row["prompt"] + value for value in values]
    turns = {name: as_turns(row[name], name) for name in ("prompt", *names) if name in row}
    wholes = [in_paper_template(turns.get("prompt", []) + turns[name]) for name in names]
    start = in_paper_template(turns["prompt"]) + "\n<|assistant|>\n" if "prompt" in turns else None
    return "text", start, [whole.rstrip() if whole.rstrip().endswith(END) else whole for whole in wholes]


def as_turns(value, name):
    """A column as a list of messages."""
    if isinstance(value, dict):
        return [value]
    if isinstance(value, str):
        return [{"role": "user" if name == "prompt" else "assistant", "content": value}]
    return value


def in_paper_template(messages):
    return "\n".join(f"<|{message['role']}|>\n{message['content']}" for message in messages)


def plain(row, kind) -> bool:
    """Whether nothing can be wrong with a row, so that it must be taken."""
    names = ("prompt", "chosen", "rejected") if kind == "pairs" else ("text",)
    known = set(names) | {
        f"{name}_{what}"
        for name in ("chosen", "rejected", "completion")
        for what in ("ids", "weights", "decisive", "chance")
    }
    if not all(isinstance(row.get(name), str) for name in names) or not known.isdisjoint(
        set(row) - set(names)
    ):
        return False
    if kind == "sft" and not {"completion", "messages", "input_ids"}.isdisjoint(row):
        return False
    texts = [row[name] for name in names]
    if not all(text.isprintable() and END not in text for text in texts):
        return False
    is_short = len("".join(texts).encode()) < 30
    responses = texts[-2:]
    return is_short and all(text.strip() for text in responses) and len(set(responses)) == len(responses)


def check_row(table, i, row, kind, limits):
    """That row i holds the right text in the right response, and has lost only what is marked as cut."""
    how, prompt, wholes = meaning_of(row, kind)
    got = table.prompt(i).tolist()
    most, most_prompt = limits
    assert len(got) <= most_prompt
    for p, whole in enumerate(wholes):
        ids = table.response(i, p).tolist()
        assert ids and len(got) + len(ids) <= most
        cut, prompt_cut = bool(table.response_cut_NP[i, p]), bool(table.prompt_cut_N[i])
        assert not cut or len(got) + len(ids) == most
        if how == "ids":
            assert got == prompt[-most_prompt:] and ids == whole[: most - len(got)]
            assert cut == (len(ids) < len(whole)) and prompt_cut == (len(got) < len(prompt))
        elif not prompt_cut:
            begins = (prompt if prompt is not None else whole if kind == "pairs" else "").startswith(END)
            text, expected = BYTES.decode(got + ids), whole if begins else END + whole
            if cut:  # perhaps within a character
                assert expected.startswith(text.rstrip("\ufffd"))
            else:
                assert text == (expected if whole.endswith(END) else expected + END)
        else:
            assert len(got) == most_prompt and got[0] == BYTES.bos_token_id
            text = BYTES.decode(ids)
            assert BYTES.decode(got[1:]).strip("\ufffd") in whole
            assert (
                text.strip("\ufffd") in whole
                if cut
                else (whole if whole.endswith(END) else whole + END).endswith(text.lstrip("\ufffd"))
            )
    given = [
        row.get(f"{name}_weights")
        for name in (("chosen", "rejected") if kind == "pairs" else ("completion",))
    ]
    for p, weights in enumerate(given):
        if weights and not isinstance(weights[0], list):
            kept = table.weights(i, p)
            assert np.array_equal(kept, np.array([*map(float, weights), 1.0][: len(kept)], np.float32))


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


def fuzz_rows(examples: int, directory: Path) -> int:
    """Loads so many generated jsonl files, each both ways; returns how many ended as they should."""
    handled = 0

    @settings(max_examples=examples, **FUZZ)
    @given(jsonl_files(), st.sampled_from([(64, 24), (4000, 2000)]), st.sampled_from([None, 257]))
    def check(file, limits, vocab_size):
        nonlocal handled
        kind, content = file
        with tempfile.TemporaryDirectory(dir=directory) as place:
            path, load = Path(place) / "rows.jsonl", Loading(Path(place), kind, limits, vocab_size)
            path.write_bytes(content)
            rows, taken, bad = rows_of(content), {}, []
            try:
                table = load(path, "skip")
                taken, bad = {int(line): i for i, line in enumerate(table.line_N)}, load.listed()
            except UserError as error:
                assert one_line(error).startswith(f"{path}: no usable row")
                bad = load.listed()
            assert sorted([*taken, *bad]) == list(rows), "a row that is neither taken nor listed, or is both"
            for line, row in rows.items():
                assert row is not None or line in bad
                if line in taken:
                    check_row(table, taken[line], row, kind, limits)
                assert line in taken or row is None or not plain(row, kind), row
            try:
                strict = load(path, "error")
                assert not bad and strict.digest() == table.digest()
            except UserError as error:
                assert one_line(error).startswith(f"{path}:{min(bad)}: " if bad else f"{path}: no usable row")
        handled += 1

    check()
    return handled


# ---------------------------------------------------------------- files

ARROW = {
    "text": pyarrow.array(["a b", "a 😀", None]),
    "large text": pyarrow.array(["a x", "a y", "a z"], pyarrow.large_string()),
    "words": pyarrow.array(["a u", "a v", "a u"]).dictionary_encode(),
    "no UTF-8": pyarrow.array([b"a", b"\xff", b"\xed\xa0\x80"]).view(pyarrow.string()),
    "bytes": pyarrow.array([b"a", b"\xff", b""]),
    "null": pyarrow.nulls(3),
    "whole": pyarrow.array([1, 2, 2**63 - 1]),
    "unsigned": pyarrow.array([1, 2, 2**64 - 1], pyarrow.uint64()),
    "floats": pyarrow.array([math.nan, math.inf, -0.0]),
    "ids": pyarrow.array([[1, 2], [3], [2**31]]),
    "ids as floats": pyarrow.array([[1.0], [2.0], []]),
    "messages": pyarrow.array(
        [
            [{"role": "user", "content": "Hi"}],
            [{"role": "assistant", "content": "a"}],
            [{"role": None, "content": None}],
        ]
    ),
    "date beyond Python": pyarrow.array([2**31 - 1, 0, -(2**31)], pyarrow.int32()).view(pyarrow.date32()),
    "nanoseconds": pyarrow.array([1, 2**62, 3], pyarrow.timestamp("ns")),
    "nowhere": pyarrow.array([1, 2, 3], pyarrow.timestamp("s", tz="No/Where")),
    "durations": pyarrow.array([1, 2**62, 3], pyarrow.duration("ns")),
    "decimals": pyarrow.array([1, 2, 3]).cast(pyarrow.decimal128(30, 2)),
    "map": pyarrow.array([[("a", 1)], [], None], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
}


@st.composite
def other_files(draw):
    """(name, bytes) of a file that is torn, altered, or holds types that no row has."""
    what = draw(st.sampled_from(["jsonl.gz", "json", "parquet", "parquet", "parquet"]))
    if what == "parquet":
        names = [
            "prompt",
            "chosen",
            "rejected",
            *draw(
                st.lists(
                    st.sampled_from(["prompt_ids", "chosen_weights", "other", "chosen"]),
                    max_size=2,
                    unique=True,
                )
            ),
        ]
        columns = [
            ARROW[draw(st.sampled_from(["text", "large text", "words"] * 6 + [*ARROW]))] for _ in names
        ]
        file = io.BytesIO()
        pyarrow.parquet.write_table(
            pyarrow.Table.from_arrays(columns, names=names),
            file,
            compression=draw(st.sampled_from(["snappy", "none"])),
        )
        content = file.getvalue()
    else:
        rows = [*draw(st.lists(ROWS["pairs"], max_size=3)), GOOD["pairs"]]
        texts = [json.dumps(row) for row in rows]
        content = (
            f"[{', '.join(texts)}]".encode()
            if what == "json"
            else gzip.compress("\n".join(texts).encode(), mtime=0)
        )
    if draw(st.booleans()):
        at = draw(st.integers(0, len(content) - 1))
        content = (
            content[:at]
            + draw(st.sampled_from([b"", b"\x00", b"}"]) | st.binary(max_size=2))
            + draw(st.sampled_from([content[at + 1 :], b""]))
        )
    return f"rows.{what}", content


def arrow_row(path: Path, i: int) -> dict:
    """Row i of a parquet file, column by column."""
    table = pyarrow.parquet.read_table(path)
    return {name: table[name][i].as_py() for name in table.column_names if name != "other"}


def fuzz_files(examples: int, directory: Path) -> int:
    """Loads so many generated files of the other formats; returns how many ended as they should."""
    handled = 0

    @settings(max_examples=examples, **FUZZ)
    @given(other_files())
    def check(file):
        nonlocal handled
        name, content = file
        with tempfile.TemporaryDirectory(dir=directory) as place:
            path, load = Path(place) / name, Loading(Path(place), "pairs", (4000, 2000), None)
            path.write_bytes(content)
            try:
                table = load(path, "skip")
                if name == "rows.jsonl.gz":
                    rows = rows_of(gzip.decompress(content))
                elif name == "rows.json":
                    rows = dict(enumerate(json.loads(content), 1))
                else:
                    rows = dict.fromkeys(range(1, pyarrow.parquet.read_metadata(path).num_rows + 1))
                taken = {int(line): i for i, line in enumerate(table.line_N)}
                assert sorted([*taken, *load.listed()]) == list(rows)
                for line, i in taken.items():
                    check_row(table, i, rows[line] or arrow_row(path, line - 1), "pairs", (4000, 2000))
            except UserError as error:
                assert one_line(error).startswith(str(path))
            try:
                load(path, "error")
            except UserError as error:
                assert one_line(error).startswith(str(path))
        handled += 1

    check()
    return handled


# ---------------------------------------------------------------- configs

YAML_TRICKS = [
    "&a [*a]",
    "&a {b: *a}",
    "*a",
    "*nobody",
    "!!python/object/apply:os.mkdir [x]",
    "!!python/name:os.system ''",
    "!x 1",
    "!!int x",
    "!!float x",
    "!!bool x",
    "!!binary aGk=",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!timestamp x",
    "!!str 1",
    "<<: *a",
    "<<: [1]",
    "<<: {seed: 1}",
    "{a: 1, a: 2}",
    "{[1]: 2}",
    "? [a]",
    "1: 2",
    "~: 1",
    "true: 1",
    "\t- a",
    "a: b: c",
    "- a\n b",
    "'",
    '"',
    "|",
    ">-",
    "@",
    "`",
    "%YAML 1.1",
    "%YAML 3.0",
    "---",
    "...",
    "0o9",
    "9" * 5000,
    "1" + "0" * 400,
    "-1",
    "1e999",
    ".nan",
    "-.inf",
    "2024-01-01",
    "1:30",
    "1_000",
    "~",
    "[" * 80 + "]" * 80,
    "{a: " * 30 + "1" + "}" * 30,
    "? " * 1000,
    '"\\ud800"',
    '"\\0"',
    '"\\u2028"',
    '"a\\nb": 1',
    "a" * 5000 + ": 1",
    "&a x",
    "[x]",
    "{}",
    "''",
    "#",
    "\u0085",
    "\u2028",
    "é",
    "kind: nothing",
    "stages: [po]",
]


def all_sections(model=Section):
    """Every class of the schema."""
    for below in model.__subclasses__():
        yield below
        yield from all_sections(below)


KEYS = sorted({name for model in all_sections() for name in model.model_fields})
BASES = [path.read_text() for path in sorted((ROOT / "configs").rglob("*.yaml"))]
SMALL = [
    "stages: [report]\noutput_dir: x\n",
    "stages: [report]\noutput_dir: x\ndata: {train: [{path: a}]}\nobjective: {kind: dpo, beta: 0.2}\n",
    "stages: [report]\noutput_dir: x\npo: &a {steps: 2}\nsft: *a\n"
    "objective: {mask: {kind: learned, init: ones}}\n",
]


@st.composite
def altered_yaml(draw):
    lines = draw(st.sampled_from([*SMALL * 4, *BASES])).split("\n")
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        empty_sections = st.sampled_from(KEYS).map(lambda key: f"{key}: {{}}")
        trick = draw(st.sampled_from(YAML_TRICKS) | TEXTS | empty_sections)
        name, colon, _ = lines[at].partition(":")
        match draw(st.sampled_from(["put", "value", "value", "cut", "twice", "indent"])):
            case "put":
                lines.insert(at, " " * draw(st.integers(0, 4)) + trick)
            case "value":
                lines[at] = f"{name}: {trick}" if colon else trick
            case "cut":
                lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
            case "twice":
                lines.insert(at, lines[at])
            case "indent":
                lines[at] = draw(st.sampled_from([" ", "\t", "  - "])) + lines[at]
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    return content + draw(st.sampled_from([b""] * 8 + [b"\xff", b"\x00"]))


def parts(annotation):
    """The sections and the words that a field's annotation allows, and whether in a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return {annotation}, set(), False
    if get_origin(annotation) is not None:
        allowed = [(set(), set(get_args(annotation)), False)]
        if "Literal" not in str(get_origin(annotation)):
            allowed = [parts(below) for below in get_args(annotation)]
        return (
            set().union(*(sections for sections, _, _ in allowed)),
            set().union(*(words for _, words, _ in allowed)),
            get_origin(annotation) is list or any(in_list for _, _, in_list in allowed),
        )
    return set(), set(), False


def value_of(annotation):
    sections, words, in_list = parts(annotation)
    value = (
        st.sampled_from([1, 2, 0.5, 1e-6, True, None, "a", "x.jsonl", 2**31, -1])
        if not words
        else st.sampled_from(sorted(words))
    )
    if sections:
        value = st.sampled_from(sorted(sections, key=lambda model: model.__name__)).flatmap(mapping_of)
    return st.integers(0, 9).flatmap(
        lambda n: JUNK if n == 0 else st.lists(value, max_size=2) if in_list else value
    )


def mapping_of(model):
    """A mapping with a few of a section's fields, most of them of a fitting type."""
    fields = {name: field.annotation for name, field in model.model_fields.items()}
    kinds = {"kind": st.sampled_from(get_args(fields["kind"]))} if "kind" in fields else {}
    some = st.lists(st.sampled_from(sorted(fields)), max_size=3, unique=True)
    strange = st.integers(0, 15).flatmap(
        lambda n: (
            st.dictionaries(TEXTS | st.sampled_from(KEYS), JUNK, min_size=1, max_size=2)
            if n == 0
            else st.just({})
        )
    )
    made = some.flatmap(
        lambda names: st.fixed_dictionaries({name: value_of(fields[name]) for name in names} | kinds)
    )
    return st.tuples(made, strange).map(lambda both: both[0] | both[1])


WHOLE = st.tuples(
    mapping_of(Config), st.sampled_from([{"stages": ["report"], "output_dir": "x"}] * 5 + [{}])
).map(lambda both: both[0] | both[1])
CONFIGS = altered_yaml() | st.tuples(WHOLE, st.booleans()).map(
    lambda both: json.dumps(both[0], ensure_ascii=both[1]).encode("utf-8", "surrogatepass")
)
PATHS = (
    st.lists(st.sampled_from([*KEYS, "0", "1", "kind"]), min_size=1, max_size=4).map(".".join)
    | st.sampled_from(
        [
            "seed",
            "po.steps",
            "data.train.0.path",
            "objective.kind",
            "objective.mask.kind",
            "policy.config.a",
            "a." * 3000,
            "data.train." + "9" * 5000,
            "data.train.\u0663",
            ".",
            "",
        ]
    )
    | TEXTS
)
OVERRIDES = st.just([]) | st.lists(
    st.tuples(
        PATHS,
        st.sampled_from(["=", "=", "=", ""]),
        st.sampled_from(YAML_TRICKS) | TEXTS | JUNK.map(json.dumps),
    ).map("".join),
    max_size=2,
)


def fuzz_configs(examples: int, directory: Path) -> int:
    """Loads so many generated configs with overrides; returns how many ended as they should."""
    handled, path, saved = 0, directory / "config.yaml", directory / "saved.yaml"

    @settings(max_examples=examples, **FUZZ)
    @given(CONFIGS, OVERRIDES)
    def check(content, overrides):
        nonlocal handled
        path.write_bytes(content)
        try:
            config, notes = load_config(path, overrides)
        except ConfigError as error:
            assert error.lines and all(
                line and line.isprintable() and len(line) < 2000 for line in error.lines
            )
        else:
            assert all(note.isprintable() for note in notes)
            save_config(config, saved)
            assert load_config(saved) == (config, [])
        handled += 1

    check()
    return handled


FUZZERS = {fuzz_rows: (200, 5000), fuzz_files: (60, 1000), fuzz_configs: (140, 4000)}


@pytest.mark.filterwarnings("ignore::ruamel.yaml.error.ReusedAnchorWarning")
@pytest.mark.parametrize("fuzz", FUZZERS, ids=lambda fuzz: fuzz.__name__)
def test_generated_input_ends_in_one_clear_line_or_the_right_result(fuzz, tmp_path):
    assert fuzz(FUZZERS[fuzz][0], tmp_path) >= FUZZERS[fuzz][0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ruamel.yaml.error.ReusedAnchorWarning")
def test_ten_thousand_generated_inputs_are_handled(tmp_path):
    """pytest tests/test_hostile.py -m slow -s"""
    began, asked = time.monotonic(), sum(number for _, number in FUZZERS.values())
    handled = {
        fuzz.__name__.removeprefix("fuzz_"): fuzz(number, tmp_path) for fuzz, (_, number) in FUZZERS.items()
    }
    parts = ", ".join(f"{n} {name}" for name, n in handled.items())
    print(f"\n{sum(handled.values())} of {asked} handled: {parts}; {time.monotonic() - began:.0f} s")
    assert asked == 10_000 and sum(handled.values()) >= asked


# ---------------------------------------------------------------- what the generators hit too seldom


@pytest.fixture
def load(tmp_path):
    def load(content: bytes, kind="pairs", on_bad_row="error", limits=(4000, 2000), name="rows.jsonl"):
        (tmp_path / name).write_bytes(content)
        return Loading(tmp_path, kind, limits, None)(tmp_path / name, on_bad_row)

    return load


def test_a_text_of_a_million_characters_is_cut_and_said_to_be(load):
    row = {"prompt": "é" * 50, "chosen": " yes" * 250_000, "rejected": " no"}
    table = load(json.dumps(row).encode(), limits=(64, 24))
    check_row(table, 0, row, "pairs", (64, 24))
    assert table.prompt_cut_N[0] and table.response_cut_NP[0].tolist() == [True, False]


def test_rows_of_every_depth_are_one_line_or_a_row(load):
    """Nested lists that Python can read, it must be able to compare and show: the bound is near 1,000."""
    for depth in [10, 200, *range(900, 1000)]:
        deep = "[" * depth + "]" * depth
        talk = f'[{{"role": "user", "content": {deep}}}, {{"role": "assistant", "content": "a"}}]'
        for content in (
            f'{{"chosen": {talk}, "rejected": {talk}}}',
            f'{{"prompt": {deep}, "chosen": [{{"role": {deep}}}], "rejected": "a"}}',
        ):
            with pytest.raises(UserError) as error:
                load(content.encode())
            assert ":1: " in one_line(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            '{"prompt": "a", "chosen": "b", "rejected": "c", "chosen": "d"}',
            "the key 'chosen' stands there twice",
        ),
        ('{"prompt_ids": [1], "chosen_ids": [4294967297], "rejected_ids": [2]}', "4294967297 is no token id"),
        (
            '{"prompt": "a", "chosen": "b", "rejected": "c", "chosen_weights": [1e39]}',
            "chosen_weights must be finite numbers",
        ),
        (
            '{"prompt": "a", "chosen": "b", "rejected": "c", "chosen_weights": [[0, 2, 0.5]]}',
            "the span [0, 2] ends past the text of chosen, which has 1 characters",
        ),
        (
            '{"prompt": "a", "chosen": "b", "rejected": "c", '
            '"chosen_chance": [[0, 1, 7]], "rejected_chance": []}',
            "chosen_chance must be probabilities",
        ),
        (
            '{"prompt": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], '
            '"chosen": "b", "rejected": "c"}',
            "messages of text, but one of 'user' has list",
        ),
        ('{"a\\nb\\u001b[2J": 1}', "the row has: a\\nb\\x1b[2J"),
    ],
)
def test_what_cannot_be_taken_as_it_stands_is_refused(load, row, message):
    with pytest.raises(UserError) as error:
        load(row.encode())
    assert message in one_line(error.value)


def test_a_json_list_that_is_torn_is_refused_whole_since_nobody_knows_what_is_lost(load):
    good = json.dumps(GOOD["pairs"])
    with pytest.raises(UserError) as error:
        load(f"[{good},\n{good}".encode(), on_bad_row="skip", name="rows.json")
    assert "rows.json:2: no JSON" in one_line(error.value)


def test_a_parquet_file_gives_all_its_rows_or_one_line_whichever_byte_of_its_footer_is_altered(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"] * 50}), path)
    content = path.read_bytes()
    for at in range(len(content) - int.from_bytes(content[-8:-4], "little") - 8, len(content)):
        for bit in (1, 2):
            path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
            try:
                assert len(list(open_source(FileRows(str(path))).rows())) == 50
            except UserError as error:
                assert one_line(error).startswith(str(path))


def test_rows_of_parquet_that_python_cannot_hold_are_bad_rows(tmp_path):
    rows = pyarrow.table(
        {
            "text": pyarrow.array([b"a", b"\xff", b"b"]).view(pyarrow.string()),
            "day": pyarrow.array([0, 0, 2**31 - 1], pyarrow.int32()).view(pyarrow.date32()),
        }
    )
    pyarrow.parquet.write_table(rows, tmp_path / "rows.parquet")
    loading = Loading(tmp_path, "sft", (4000, 2000), None)
    assert loading(tmp_path / "rows.parquet", "skip").line_N.tolist() == [1] and loading.listed() == [2, 3]


def test_no_tokenizer_learns_from_half_a_surrogate_pair(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "\\ud800"}\n{"text": "good"}\n')
    source = FileRows(str(tmp_path / "rows.jsonl"))
    with pytest.raises(UserError, match=r"rows\.jsonl:1: text is no valid Unicode"):
        list(read_texts([source], on_bad_row="error"))
    assert list(read_texts([source], on_bad_row="skip")) == ["good"]


def test_a_data_set_is_known_by_its_rows_not_by_what_it_says_of_itself(tmp_path):
    import datasets

    for name, chosen in (("a", " yes"), ("b", " never")):
        datasets.Dataset.from_list([GOOD["pairs"] | {"chosen": chosen}]).save_to_disk(tmp_path / name)
    (tmp_path / "b" / "state.json").write_bytes((tmp_path / "a" / "state.json").read_bytes())
    texts = [
        BYTES.decode(Loading(tmp_path, "pairs", (4000, 2000), None)(tmp_path / name, "error").response(0, 0))
        for name in ("a", "b")
    ]
    assert texts == [f" yes{END}", f" never{END}"]


@pytest.mark.parametrize(
    "text",
    ["? " * 100_000, "a: b\n" * 100_000, "seed: " + "9" * 200_000, f"'{'k' * 200_000}': 1"],
    ids=["depth", "size", "digits", "key"],
)
def test_a_file_that_is_no_config_is_refused_in_short_lines(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "config.yaml", ["stages=[report]", "output_dir=x"])
    assert all(len(line) < 500 for line in error.value.lines)
    with pytest.raises(ConfigError):  # the same as an override
        load_config(ROOT / "configs" / "quickstart.yaml", [f"policy.config={{{text[:100_000]}}}"])


def test_a_json_config_may_write_characters_as_surrogate_pairs_but_not_as_halves(tmp_path):
    config = {"stages": ["report"], "output_dir": "😀"}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    assert load_config(tmp_path / "config.yaml")[0].output_dir == "😀"
    with pytest.raises(ConfigError, match="cannot be read as str"):
        load_config(tmp_path / "config.yaml", ['output_dir="\\ud83d"'])


# ---------------------------------------------------------------- the report

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
    from sparsepo_jax.report.heatmap import visible

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


# ---------------------------------------------------------------- no code of others

unpickled: list[str] = []
sys.addaudithook(
    lambda event, arguments: (
        unpickled.append(".".join(map(str, arguments))) if event == "pickle.find_class" else None
    )
)


class Canary:
    """Its unpickling makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def canary(tmp_path):
    """A file that exists if foreign code ran; afterwards nothing was unpickled and it is not there."""
    path = tmp_path / "canary"
    pickle.loads(pickle.dumps(Canary(path))).close()
    assert path.exists() and unpickled, "the canary does not sing"
    path.unlink()
    unpickled.clear()
    yield path
    assert not path.exists() and not unpickled


CONFIG = {"model_type": "gpt2", "vocab_size": 257, "n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 2}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "the index"])
def test_a_pickled_checkpoint_is_refused_and_not_opened(tmp_path, canary, name):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / ("pytorch_model.bin" if name == "the index" else name)).write_bytes(
        pickle.dumps({"transformer.wte.weight": Canary(canary)})
    )
    if name == "the index":
        (directory / "model.safetensors.index.json").write_text(
            '{"weight_map": {"transformer.wte.weight": "pytorch_model.bin"}}'
        )
    with pytest.raises(UserError) as error:
        SafeTensors(directory)
    assert {
        "pytorch_model.bin": "pickle",
        "model.safetensors": "not a readable safetensors file",
        "the index": "expected safetensors files",
    }[name] in one_line(error.value)


@pytest.mark.parametrize(
    "index",
    [
        "[]",
        "{",
        '{"weight_map": {"a": "../other/model.safetensors"}}',
        '{"weight_map": {"a": ["b"]}}',
        '{"weight_map": 1}',
        "[" * 100_000,
    ],
)
def test_an_index_that_leads_elsewhere_is_one_line(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError) as error:
        SafeTensors(tmp_path)
    one_line(error.value)


@pytest.mark.parametrize(
    "content", ["[]", "{", "null", "\ufeff{}", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"]
)
def test_a_model_config_that_is_no_object_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError) as error:
        read_config(tmp_path)
    one_line(error.value)


@pytest.mark.parametrize("file", ["modeling_own.py", "tokenization_own.py", "configuration_own.py"])
def test_code_beside_a_model_is_not_run_even_if_stdin_says_yes(tmp_path, canary, monkeypatch, file):
    """transformers asks "Do you wish to run the custom code?" where it is not told."""
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    directory, module = tmp_path / "model", file.removesuffix(".py")
    directory.mkdir()
    code = {
        "AutoConfig": f"{module}.Own",
        "AutoModelForCausalLM": f"{module}.Own",
        "AutoTokenizer": [f"{module}.Own", f"{module}.Own"],
    }
    (directory / file).write_text(f"open({str(canary)!r}, 'w')\nclass Own: pass\n")
    (directory / "config.json").write_text(json.dumps({**CONFIG, "model_type": "own", "auto_map": code}))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Own", "auto_map": code}))
    with pytest.raises(UserError) as error:
        load_tokenizer(str(directory))
    assert "no Hugging Face tokenizer" in one_line(error.value)
    with pytest.raises(SpecError):
        spec_from_hf(read_config(directory))
    (directory / "config.json").write_text(json.dumps({**CONFIG, "auto_map": code}))
    BYTES.save_pretrained(directory)
    content = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(content | {"auto_map": code}))
    assert load_tokenizer(str(directory)).encode("ab") == BYTES.encode("ab")


def test_a_chat_template_reaches_nothing_but_the_messages(tmp_path, canary):
    tokenizer = make_byte_tokenizer()
    tokenizer.chat_template = (
        "{{ cycler.__init__.__globals__.os.mkdir('"
        + str(canary)
        + "') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    loading = Loading(tmp_path, "pairs", (4000, 2000), None)
    loading.settings["tokenizer"] = tokenizer
    messages = [{"role": "user", "content": "Hi"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": messages, "chosen": "a", "rejected": "b"}))
    with pytest.raises(UserError) as error:
        loading(tmp_path / "rows.jsonl", "error")
    assert "the chat template refuses these messages" in one_line(error.value)


def test_pickles_in_the_cache_are_not_loaded_and_the_tokens_made_anew(tmp_path, load, canary):
    content = json.dumps(GOOD["pairs"]).encode()
    first = load(content)
    (kept,) = (tmp_path / "cache").glob("*.npz")
    with np.load(kept) as arrays:
        columns = dict(arrays)
    for put in (
        lambda: np.savez(kept, **columns | {"files": np.array([Canary(canary)], object)}),
        lambda: np.savez(kept, **columns | {"bad_rows": np.array(Canary(canary), object)}),
        lambda: kept.write_bytes(pickle.dumps(Canary(canary))),
        lambda: kept.write_bytes(
            b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
            + b" " * 60
            + b"\n"
            + pickle.dumps([Canary(canary)])
        ),
    ):
        put()
        assert load(content).digest() == first.digest()
        with np.load(kept) as arrays:
            assert arrays["prompts"].tolist() == columns["prompts"].tolist()


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.mkdir",
        "!!python/object/new:os.mkdir",
        "!!python/name:os.mkdir",
        "!<tag:yaml.org,2002:python/object/apply:os.mkdir>",
    ],
)
def test_a_config_runs_no_python(tmp_path, canary, tag):
    (tmp_path / "config.yaml").write_text(f"stages: [report]\noutput_dir: {tag} [{str(canary)!r}]\n")
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "config.yaml")
    assert "without tags" in error.value.lines[0]
    with pytest.raises(ConfigError):
        load_config(ROOT / "configs" / "quickstart.yaml", [f"output_dir={tag} [{str(canary)!r}]"])


def test_a_script_in_a_data_set_is_not_run(tmp_path, canary, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    directory = tmp_path / "own"
    directory.mkdir()
    (directory / "own.py").write_text(f"open({str(canary)!r}, 'w')\n")
    (directory / "rows.pkl").write_bytes(pickle.dumps(Canary(canary)))
    loading = Loading(tmp_path, "pairs", (4000, 2000), None)
    with pytest.raises(UserError) as error:
        loading(directory, "error")
    assert one_line(error.value).startswith(f"{directory}: `datasets` cannot read it")
    with pytest.raises(UserError, match="cannot tell its format"):
        loading(directory / "own.py", "error")


def test_a_training_state_is_read_without_pickle(tmp_path, canary):
    """Orbax keeps arrays as TensorStore files and what is about them as JSON."""
    import jax.numpy as jnp

    from sparsepo_jax.train.checkpoint import load_once, save_once

    state = {"a": jnp.arange(4.0)}
    save_once(tmp_path / "state", state)
    unpickled.clear()  # writing is ours
    for place in [tmp_path / "state", *(path for path in (tmp_path / "state").rglob("*") if path.is_dir())]:
        (place / "state.pkl").write_bytes(pickle.dumps(Canary(canary)))
    assert load_once(tmp_path / "state", state)["a"].tolist() == [0, 1, 2, 3]


# ---------------------------------------------------------------- one line


def test_what_a_message_quotes_cannot_break_or_hide_its_line(tmp_path, capsys):
    """A path with line ends, through the real program.

    Kills: a message that is more than one line of the log, or that moves the cursor.
    """
    from helpers.program import write_config
    from sparsepo_jax.main import main

    assert str(UserError("a\nb\r\x1b[2K\u2028\ud800 é")) == "a\\nb\\r\\x1b[2K\\u2028\\ud800 é"
    path = tmp_path / "no\nerror: all is well\x1b[1A.jsonl"
    path.write_text("{}\n")
    data = {"train": [{"path": str(path)}], "eval": [], "sft": []}
    assert main(["--config", str(write_config(tmp_path, stages=["inspect"], data=data))]) == 1
    output = capsys.readouterr().err
    assert (
        output.count("\n") == 1
        and output[:-1].isprintable()
        and output.startswith("error: ")
        and "no\\nerror: all is well\\x1b[1A.jsonl:1: " in output
    )
