"""Hostile rows and files of data: they end in one clear line or in the right row.

5,000 rows and 1,000 files, counted:  pytest tests/test_hostile_rows.py -m slow -s     (260 without -m slow)
"""

import gzip
import io
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.hostile import BYTES, FUZZ, GOOD, JUNK, NUMBERS, TEXTS, Loading, one_line
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.load import read_texts
from sparsepo_jax.data.sources import FileRows, open_source
from sparsepo_jax.data.tokenizers import END

# ---------------------------------------------------------------- rows

DEEP = st.sampled_from([50, 400, 100_000])
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


FUZZERS = {fuzz_rows: (200, 5000), fuzz_files: (60, 1000)}


@pytest.mark.parametrize("fuzz", FUZZERS, ids=lambda fuzz: fuzz.__name__)
def test_generated_input_ends_in_one_clear_line_or_the_right_rows(fuzz, tmp_path):
    assert fuzz(FUZZERS[fuzz][0], tmp_path) >= FUZZERS[fuzz][0]


@pytest.mark.slow
@pytest.mark.parametrize("fuzz", FUZZERS, ids=lambda fuzz: fuzz.__name__)
def test_thousands_of_generated_inputs_are_handled(fuzz, tmp_path):
    """pytest tests/test_hostile_rows.py -m slow -s"""
    handled = fuzz(FUZZERS[fuzz][1], tmp_path)
    print(f"\n{handled} {fuzz.__name__.removeprefix('fuzz_')} handled")
    assert handled >= FUZZERS[fuzz][1]


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
