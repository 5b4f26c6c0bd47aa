"""Rows of published data, splits and their parts, patterns, separated values, and remarks on what is cut."""

import gzip
import itertools
import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from helpers.chat import BAD, CHATML, GOOD, USER, chat_tokenizer
from helpers.loading import Load, texts
from sparsepo_jax.build.tokenizer import template_date
from sparsepo_jax.config.load import ConfigError
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.labelled import read_labelled
from sparsepo_jax.data.sources import FileRows, open_sources
from sparsepo_jax.data.splits import SplitError, split_ranges
from sparsepo_jax.data.tokenizers import END
from sparsepo_jax.run.check import make_plan_text
from sparsepo_jax.run.resume import Marks

CHAT = chat_tokenizer(CHATML, "<|im_end|>")


@pytest.fixture
def load(tmp_path):
    """load(rows or sources, tokenizer, **settings) -> TokenTable; what is said is in load.lines."""
    return Load(tmp_path)


def pair(n):
    return {"prompt": f"Q{n}?", "chosen": f" yes {n}", "rejected": f" no {n}"}


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize("rows", [0, 1, 7, 99, 100, 1234])
def test_parts_of_splits_are_those_of_datasets(rows):
    bounds = ["", "-5", "3", "0", "33%", "-20%", "150", "50%", "12%", "1_0", "100%"]
    specs = [
        f"train[{first}:{last}]{rounding}"
        for first, last in itertools.product(bounds, bounds)
        for rounding in ("", "(closest)", "(pct1_dropremainder)")
    ]
    compared = 0
    for spec in [*specs, "train", "train+test", "train[:10%] + test[-1:]+train"]:
        try:
            theirs = datasets.ReadInstruction.from_spec(spec).to_absolute({"train": rows, "test": 3})
        except (ValueError, AssertionError):
            continue
        expected = [
            row for part in theirs for row in ((part.splitname, n) for n in range(part.from_, part.to))
        ]
        assert [
            (name, n)
            for name, start, stop in split_ranges(spec, {"train": rows, "test": 3})
            for n in range(start, stop)
        ] == expected, spec
        compared += 1
    assert compared > 100


@pytest.mark.parametrize(
    "spec", ["train[:80", "train[:80%]x", "", "train[1:2:3]", "train[:150%]", "tr ain", "train[a:b]"]
)
def test_a_split_that_cannot_be_read_is_one_line(spec):
    with pytest.raises(SplitError):
        split_ranges(spec, {"train": 10})


SAVED = ["jsonl", "jsonl.gz", "json", "csv", "csv.gz", "tsv", "parquet", "dataset", "dict"]


def write(kind, directory, rows, name="rows"):
    """A file or directory of this kind that holds the rows."""
    path = directory / (name if kind in ("dataset", "dict") else f"{name}.{kind}")
    data = datasets.Dataset.from_list(rows)
    if kind == "dataset":
        data.save_to_disk(path)
    elif kind == "dict":
        datasets.DatasetDict({"train": data, "test": datasets.Dataset.from_list(rows[:1])}).save_to_disk(path)
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        mark = "\t" if kind == "tsv" else ","
        lines = (
            [json.dumps(row) for row in rows]
            if "json" in kind
            else [mark.join(cells) for cells in [rows[0], *(row.values() for row in rows)]]
        )
        content = "".join(f"{line}\n" for line in lines).encode()
        path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    return str(path)


def planned_pairs(path, split="train"):
    """How many pairs --check counts."""
    sources = [{"path": path, "split": split}]
    model = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 64}
    text = make_plan_text(
        Config.model_validate(
            dict(
                stages=["po"],
                output_dir="x",
                policy={"config": model},
                tokenizer={"kind": "bytes"},
                data={"train": sources},
            )
        )
    )
    return next(line for line in text.split("\n") if line.startswith("po ")).split()[1]


@pytest.mark.parametrize("kind", SAVED)
def test_a_part_of_a_split_is_honoured_everywhere_and_counted_alike(load, tmp_path, kind):
    path, rows = write(kind, tmp_path, [pair(n) for n in range(10)]), {}
    for split in ("train", "train[:80%]", "train[80%:]", "train[2:4]", "train[-1:]+train[:1]"):
        table = load([FileRows(path, split=split)])
        rows[split] = [texts(table, i)[0] for i in range(len(table))]
        assert planned_pairs(path, split) == str(len(table))
    assert rows["train[:80%]"] + rows["train[80%:]"] == rows["train"] and len(rows["train[80%:]"]) == 2
    assert rows["train[2:4]"] == [f"{END}Q2?", f"{END}Q3?"] and rows["train[-1:]+train[:1]"] == [
        f"{END}Q9?",
        f"{END}Q0?",
    ]
    assert load([FileRows(path, split="train[2:4]")]).line_N.tolist() in (
        [3, 4],
        [4, 5],
    )  # below the names of columns


@pytest.mark.parametrize("kind", SAVED)
def test_a_split_that_is_not_there_is_refused_everywhere(load, tmp_path, kind):
    path = write(kind, tmp_path, [pair(0), pair(1)])
    with pytest.raises(UserError, match="no split 'validation'"):
        load([FileRows(path, split="validation[:1]")])
    with pytest.raises(ConfigError, match="no split 'validation'"):
        planned_pairs(path, "validation[:1]")


def test_a_saved_dataset_answers_to_its_own_split_and_to_train(load, tmp_path):
    datasets.Dataset.from_list([pair(0)], split="test").save_to_disk(tmp_path / "saved")
    for split in ("test", "train"):
        assert (
            len(load([FileRows(str(tmp_path / "saved"), split=split)])) == 1
            and planned_pairs(str(tmp_path / "saved"), split) == "1"
        )


# ---------------------------------------------------------------- patterns, separated values


def test_a_pattern_is_its_files_in_order_and_a_part_counts_over_all(load, tmp_path):
    for name, numbers in (("b", (2, 3, 4)), ("a", (0, 1))):
        write("jsonl", tmp_path, [pair(n) for n in numbers], name)
    pattern = str(tmp_path / "*.jsonl")
    table = load([FileRows(pattern, weight=2.0)])
    assert [texts(table, i)[0] for i in range(5)] == [f"{END}Q{n}?" for n in range(5)] and planned_pairs(
        pattern
    ) == "5"
    assert [table.origin(i) for i in (1, 2)] == [
        f"{tmp_path / 'a.jsonl'}:2",
        f"{tmp_path / 'b.jsonl'}:1",
    ] and set(table.row_weight_N) == {2.0}
    part = load([FileRows(pattern, split="train[1:3]")])
    assert [texts(part, i)[0] for i in range(2)] == [f"{END}Q1?", f"{END}Q2?"] and planned_pairs(
        pattern, "train[1:3]"
    ) == "2"


def test_a_pattern_of_nothing_is_one_line(load, tmp_path):
    pattern = str(tmp_path / "*.jsonl")
    with pytest.raises(UserError, match=r"\*.jsonl: no file matches this pattern"):
        load([FileRows(pattern)])
    with pytest.raises(ConfigError, match=r"data.train.0.path: .*\*.jsonl: no file matches this pattern"):
        planned_pairs(pattern)


def test_separated_values_hold_commas_quotes_line_ends_and_lists(load, tmp_path):
    (tmp_path / "a.csv").write_bytes(
        b"\xef\xbb\xbfprompt,chosen,rejected,chosen_weights\r\n"
        b'"Is it, ""so""?\nReally?", yes, no,"[1, 2, 3, 4]"\r\n'
        b'"[{""role"": ""user"", ""content"": ""Hi""}]",Hello,What,\r\n'
    )
    table = load([FileRows(str(tmp_path / "a.csv"))])
    assert texts(table) == (f'{END}Is it, "so"?\nReally?', f" yes{END}", f" no{END}") and table.weights(
        0, 0
    ).tolist() == [1, 2, 3, 4, 1]
    assert texts(table, 1) == (f"{END}<|user|>\nHi\n<|assistant|>\n", f"Hello{END}", f"What{END}")
    assert table.line_N.tolist() == [2, 4] and planned_pairs(str(tmp_path / "a.csv")) == "2"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"prompt,chosen,rejected\na,b,c\na,b\n", "a.csv:3: 2 cells, but the first line names 3 columns"),
        (b"prompt,chosen,rejected\na,b,c\na,\xff,c\n", "a.csv:3: invalid UTF-8"),
        (b'prompt,chosen,rejected\na,b,"c\n', "a.csv:2: no separated values"),
        (b"prompt,chosen,prompt\na,b,c\n", "a.csv:1: two columns have one name"),
        (
            b"prompt;chosen;rejected\na;b;c\n",
            "a.csv:2: no chosen, rejected; the row has: prompt;chosen;rejected",
        ),
        (b"", "a.csv: no usable row"),
    ],
)
def test_bad_separated_values_are_one_line(load, tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError) as error:
        load([FileRows(str(tmp_path / "a.csv"))])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_cell_may_be_longer_than_python_reads_by_itself(load, tmp_path):
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\n" + "x" * 200_000 + ",b,c\n")
    assert load([FileRows(str(tmp_path / "a.csv"))]).prompt_cut_N.tolist() == [True]


@pytest.mark.parametrize(
    ("stage", "settings", "file"),
    [
        ("eval", {"data": {"eval": [{"path": "*.jsonl"}]}}, "b.jsonl"),
        ("eval", {"tokenizer": {"kind": "pretrained", "path": "words"}}, "words/tokenizer.json"),
        ("export", {"tokenizer": {"kind": "pretrained", "path": "words"}}, "words/tokenizer.json"),
        ("eval", {"scorer": {"kind": "classifier", "path": "judge"}}, "judge/words.json"),
        ("eval", {"scorer": {"kind": "classifier", "train": [{"path": "labels.csv"}]}}, "labels.csv"),
        ("eval", {"scorer": {"kind": "hf", "path": "reward"}}, "reward/config.json"),
        ("eval", {"scorer": {"kind": "function", "function": "my.scores:f"}}, "my/scores.py"),
        ("eval", {"scorer": {"kind": "function", "function": "my:f"}}, "my/__init__.py"),
        ("measure", {"measure": {"text": {"bertscore": {"model": "bert"}}}}, "bert/config.json"),
    ],
)
def test_a_stage_that_reads_is_done_again_when_a_file_has_changed(
    tmp_path, monkeypatch, stage, settings, file
):
    monkeypatch.chdir(tmp_path)
    data = {"eval": [{"path": "a.jsonl"}]}
    config = Config.model_validate(
        {"stages": [stage], "output_dir": "run", "policy": {"path": "m"}, "data": data} | settings
    )
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_text("{}")
    marks = Marks(config)
    marks.mark(stage, 1.0)
    assert marks.finished(stage)
    Path(file).write_text("{} ")
    if "*" in json.dumps(settings):
        Path("c.jsonl").write_text("{}")
    assert not marks.finished(stage)


def test_a_file_that_another_version_did_not_note_is_no_change(tmp_path):
    """Kills: hours of evaluation anew, because a newer version looks at other files."""
    paths = {"policy": {"path": "m"}, "data": {"eval": [{"path": str(tmp_path / "a.jsonl")}]}}
    config = Config.model_validate({"stages": ["eval"], "output_dir": str(tmp_path / "run")} | paths)
    (tmp_path / "a.jsonl").write_text("{}")
    marks = Marks(config)
    marks.mark("eval", 1.0)
    stages = tmp_path / "run" / "stages.json"
    kept = json.loads(stages.read_text())
    noted = kept["eval"]["depends"]["files"]
    for files in (noted | {"train.jsonl": []}, {"m": noted["m"]}):
        kept["eval"]["depends"]["files"] = files
        stages.write_text(json.dumps(kept))
        assert marks.finished("eval")


def test_labels_of_separated_values_are_numbers_or_words(tmp_path):
    write("csv", tmp_path, [{"text": "good", "label": "1"}, {"text": "bad", "label": "0"}])
    assert read_labelled(
        [FileRows(str(tmp_path / "rows.csv"))], 1, on_bad_row="error"
    ).positive_N.tolist() == [True, False]


# ---------------------------------------------------------------- forms of published data

SYSTEM = {"role": "system", "content": "S"}
HUMAN = {"from": "human", "value": "Hi"}
GPT = {"from": "gpt", "value": "Hello"}
OTHER = {"from": "gpt", "value": "What"}
MORE = [USER, GOOD, {"role": "user", "content": "Go on"}]
FORMS = {
    "messages": ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, [USER]),
    "text and whole dialogues": ({"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER]),
    "text and whole dialogues with a system message": (
        {"prompt": "Hi", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
        [SYSTEM, USER],
    ),
    "text and long dialogues": ({"prompt": "Hi", "chosen": [*MORE, GOOD], "rejected": [*MORE, BAD]}, MORE),
    "messages and whole dialogues": (
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        [USER],
    ),
    "whole dialogues": ({"chosen": [*MORE, GOOD], "rejected": [*MORE, BAD]}, MORE),
    "text and messages": ({"prompt": "Hi", "chosen": [GOOD], "rejected": [BAD]}, [USER]),
    "sharegpt": ({"conversations": [HUMAN], "chosen": GPT, "rejected": OTHER}, [USER]),
    "sharegpt with a system prompt": (
        {"conversations": [HUMAN], "chosen": GPT, "rejected": OTHER, "system": "S"},
        [SYSTEM, USER],
    ),
    "sharegpt, lists": (
        {"conversations": [{"from": "system", "value": "S"}, HUMAN], "chosen": [GPT], "rejected": [OTHER]},
        [SYSTEM, USER],
    ),
    "sharegpt, whole": ({"chosen": [HUMAN, GPT], "rejected": [HUMAN, OTHER]}, [USER]),
    "alpaca": (
        {"instruction": "Hi", "input": "", "output": "Hello", "chosen": "Hello", "rejected": "What"},
        [USER],
    ),
    "alpaca with an input": (
        {"instruction": "Say", "input": "Hi", "chosen": "Hello", "rejected": "What"},
        [{"role": "user", "content": "Say\nHi"}],
    ),
    "alpaca with history": (
        {
            "instruction": "Go on",
            "history": [["Hi", "Hello"]],
            "system": "S",
            "chosen": "Hello",
            "rejected": "What",
        },
        [SYSTEM, *MORE],
    ),
    "as text": ({"prompt": json.dumps([USER]), "chosen": json.dumps([GOOD]), "rejected": str([BAD])}, [USER]),
    "nulls": (
        {
            "prompt": [USER | {"name": None}],
            "chosen": [GOOD | {"tool_calls": None}],
            "rejected": [BAD],
            "tools": None,
            "messages": None,
        },
        [USER],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_pair_is_the_same_tokens(load, form):
    row, prompt = FORMS[form]
    table = load([row], tokenizer=CHAT)

    def write(messages, **settings):
        return CHAT.apply_chat_template(messages, tokenize=False, **settings)

    assert CHAT.decode(table.prompt(0)) == write(prompt, add_generation_prompt=True)
    assert [CHAT.decode(table.prompt(0)) + CHAT.decode(table.response(0, p)) for p in (0, 1)] == [
        write([*prompt, answer]) for answer in (GOOD, BAD)
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [SYSTEM, *MORE, GOOD]},
        {
            "conversations": [
                {"from": "system", "value": "S"},
                HUMAN,
                GPT,
                {"from": "human", "value": "Go on"},
                GPT,
            ]
        },
        {"conversations": [HUMAN, GPT, {"from": "human", "value": "Go on"}, GPT], "system": "S"},
        {"instruction": "Go on", "history": [["Hi", "Hello"]], "system": "S", "output": "Hello"},
        {"prompt": [SYSTEM, *MORE], "completion": [GOOD]},
        {"prompt": "Go on", "completion": [SYSTEM, *MORE, GOOD]},
    ],
)
def test_every_form_for_sft_is_the_same_tokens(load, row):
    table = load([row], tokenizer=CHAT, kind="sft")
    assert CHAT.decode(table.response(0, 0)) == "Hello<|im_end|>\n", "the last turn alone"
    assert CHAT.decode(table.prompt(0)) == CHAT.apply_chat_template(
        [SYSTEM, *MORE], tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize(
    "row",
    [{"prompt": [USER]}, {"conversations": [HUMAN], "prompt": None}, {"instruction": "Hi", "input": ""}],
)
def test_every_form_of_a_prompt_is_the_same_tokens_and_keeps_the_prompt(load, row):
    table = load([row], tokenizer=CHAT, kind="prompts")
    assert CHAT.decode(table.prompt(0)) == CHAT.apply_chat_template(
        [USER], tokenize=False, add_generation_prompt=True
    )
    assert table.content(0)["prompt"] == [USER], "the stage pairs writes it"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "Bye", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            "a response begins with a message of 'user'",
        ),
        (
            {"prompt": "Hi", "chosen": ["Hello", "Hey"], "rejected": ["What", "No"]},
            "chosen is a list of 2 texts, and a row holds one: write a row for each, in Python "
            "rows = [row | {'chosen': chosen, 'rejected': rejected} for row in rows "
            "for chosen, rejected in zip(row['chosen'], row['rejected'])]",
        ),
        (
            {"question": "Hi", "chosen": "Hello you", "rejected": "Hello me"},
            "no prompt, but a column question: if that is the prompt, set columns: {prompt: question}",
        ),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "chosen and rejected are the same"),
        (
            {"conversations": [{"from": "function_call", "value": "{}"}], "chosen": GPT, "rejected": OTHER},
            "conversations: a turn from 'function_call' must hold {name, arguments} as JSON, got '{}'",
        ),
        (
            {"conversations": [], "chosen": GPT, "rejected": OTHER},
            "conversations must be a list of messages, got an empty list",
        ),
        (
            {"prompt": [], "chosen": "a", "rejected": "b"},
            "prompt must be a list of messages, got an empty list",
        ),
        (
            {"prompt": "Hi", "chosen": [GOOD], "rejected": []},
            "rejected must be a list of messages, got an empty list",
        ),
    ],
)
def test_what_cannot_be_told_is_one_line(load, row, message):
    with pytest.raises(UserError) as error:
        load([row], tokenizer=CHAT)
    assert str(error.value).startswith(f"rows:1: {message}") and "\n" not in str(error.value)


def test_an_empty_prompt_is_begin_of_text(load):
    assert texts(load([{"prompt": "", "chosen": "a", "rejected": "b"}])) == (END, f"a{END}", f"b{END}")


def test_lines_as_windows_writes_them_and_commas_behind_rows(load, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(pair(n)).encode() for n in range(2)) + b"\r\n\r\n"
    )
    assert len(load([FileRows(str(tmp_path / "a.jsonl"))])) == 2
    (tmp_path / "b.jsonl").write_text(json.dumps(pair(0)) + ",\n")
    with pytest.raises(UserError, match="b.jsonl:1: no JSON"):
        load([FileRows(str(tmp_path / "b.jsonl"))])


def test_columns_are_renamed_in_every_file_of_a_pattern(tmp_path):
    for name in "ab":
        write("csv", tmp_path, [{"question": "Q", "chosen": "a", "rejected": "b"}], name)
    opened = open_sources(FileRows(str(tmp_path / "*.csv"), columns={"prompt": "question"}))
    assert [row.content["prompt"] for source in opened for row in source.rows()] == ["Q", "Q"]


# ---------------------------------------------------------------- what is said


def test_what_is_cut_is_counted_and_what_to_set_keeps_it(load):
    rows = [
        {"prompt": "p" * 30, "chosen": "c" * 50, "rejected": "r" * 40},
        {"prompt": "p", "chosen": "c", "rejected": "r" * 70},
    ]
    load(rows, max_length=40, max_prompt_length=20)
    assert [line.split(";")[0] for line in load.lines] == [
        "data: 3 of 4 responses lose their end, EOS included, at data.max_length=40, "
        "so that the policy hardly learns to end",
        "data: 1 of 2 prompts lose their beginning at data.max_prompt_length=20",
    ]
    remedy = "to keep them whole, set data.max_length=82 data.max_prompt_length=31"
    assert all(line.endswith(remedy) for line in load.lines)
    load.lines.clear()
    uncut = load(rows, max_length=82, max_prompt_length=31)
    assert not load.lines and not uncut.response_cut_NP.any() and not uncut.prompt_cut_N.any()
    load(rows, max_length=40, max_prompt_length=20, positions=64)
    assert "the longest row has 82 tokens, the model 64 positions: set data.max_length=64" in load.lines[0]
    load.lines.clear()
    load(rows, max_length=64, max_prompt_length=20, positions=64)  # all that there is: a prompt can get more
    assert all("raise data.max_prompt_length" in line for line in load.lines)
    assert not [line for line in load.lines if "set data.max_length" in line] and load.lines


OTHER_TURNS = "a response holds turns that are not the assistant's; they are trained on like its own"


def test_what_is_said_is_said_again_from_the_cache(load):
    rows = [
        {"prompt": [USER], "chosen": [GOOD, USER, GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    ]
    for _ in range(2):
        load(rows, tokenizer=CHAT, max_length=60, train_on="assistant")
    assert load.lines[:2] == load.lines[2:] and len(load.lines) == 4
    assert load.lines[0].startswith(
        "data: in 1 of 2 rows a response holds turns that are not the assistant's"
    )
    assert "lose their end" in load.lines[1]


def test_turns_of_the_user_inside_a_text_are_said(load):
    chosen = "\n\nHuman: Hi\n\nAssistant: Yes\n\nHuman: So?\n\nAssistant: A"
    load([{"chosen": chosen, "rejected": "\n\nHuman: Hi\n\nAssistant: No"}])
    assert load.lines == [f"data: in 1 of 1 rows {OTHER_TURNS}"]


# ---------------------------------------------------------------- the day of a run


def test_a_run_keeps_the_day_that_its_template_was_told(tmp_path):
    tokenizer = chat_tokenizer("{{ strftime_now('%Y') }}" + CHATML)
    config = Config.model_validate(
        dict(
            stages=["po"],
            output_dir=str(tmp_path / "run"),
            policy={"path": "m"},
            data={"train": [{"path": "x.jsonl"}]},
        )
    )
    day = template_date(config, tokenizer)
    kept = tmp_path / "run" / "template_date.json"
    assert json.loads(kept.read_text()) == {"template_date": day}
    kept.write_text('{"template_date": "2020-02-29"}')
    assert template_date(config, tokenizer) == "2020-02-29", "going on another day"
    assert template_date(config, CHAT) is None, "a template that does not ask"
    chosen = config.model_copy(
        update={"data": config.data.model_copy(update={"template_date": "2019-01-01"})}
    )
    assert template_date(chosen, tokenizer) == "2019-01-01"
    kept.write_text("{}")
    with pytest.raises(UserError, match="template_date.json: expected the day"):
        template_date(config, tokenizer)


def test_a_day_that_is_none_is_refused():
    with pytest.raises(ValueError, match="expected a day as YYYY-MM-DD, got '27.11.2026'"):
        Config.model_validate(
            dict(
                stages=["po"],
                output_dir="x",
                policy={"path": "m"},
                data={"train": [{"path": "x.jsonl"}], "template_date": "27.11.2026"},
            )
        )
