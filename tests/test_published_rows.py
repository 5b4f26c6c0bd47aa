"""Rows as published data sets have them: what is trained on is what they mean, or a line says why not."""

import gzip
import json

import pytest

from helpers.chat import BAD, CHATML, GOOD, LLAMA, USER, call, chat_tokenizer, tool
from helpers.loading import Load, texts
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.ranked import Ranking
from sparsepo_jax.data.sources import Exchanged, FileRows, GeneratedRows, rename
from sparsepo_jax.data.tokenizers import END
from sparsepo_jax.data.unpaired import are_pairs

CHAT = chat_tokenizer(CHATML, "<|im_end|>")
SYSTEM = {"role": "system", "content": "S"}
MORE = [USER, GOOD, {"role": "user", "content": "Go on"}]


@pytest.fixture
def load(tmp_path):
    return Load(tmp_path)


def written(messages):
    return CHAT.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def decoded(table, i=0):
    """(prompt, responses without what ends the turn...)."""
    prompt, *responses = texts(table, i, CHAT)
    return prompt, *(response.removesuffix("<|im_end|>\n") for response in responses)


# ---------------------------------------------------------------- a system prompt in a column of its own


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": [USER], "chosen": "Hello", "rejected": "What"}, [SYSTEM, USER]),
        ({"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, [SYSTEM, USER]),
        ({"prompt": "Hi", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, [SYSTEM, USER]),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, [SYSTEM, USER]),
        ({"messages": [USER], "chosen": GOOD, "rejected": BAD}, [SYSTEM, USER]),
        ({"instruction": "Hi", "input": "", "chosen": "Hello", "rejected": "What"}, [SYSTEM, USER]),
    ],
)
def test_a_system_prompt_is_part_of_every_prompt_of_messages(load, row, prompt):
    assert decoded(load([row | {"system": "S"}], CHAT)) == (written(prompt), "Hello", "What")
    assert load([row | {"system": " "}], CHAT).digest() == load([row], CHAT).digest()


def test_so_it_is_of_supervised_rows_and_of_prompts(load):
    row = {"system": "S", "messages": [USER, GOOD]}
    assert decoded(load([row], CHAT, kind="sft")) == (written([SYSTEM, USER]), "Hello")
    for prompt in ([USER], USER, json.dumps(USER)):
        table = load([{"system": "S", "prompt": prompt}], CHAT, kind="prompts")
        assert CHAT.decode(table.prompt(0)) == written([SYSTEM, USER])
        assert table.content(0)["prompt"] == [SYSTEM, USER], "the stage pairs writes it"


@pytest.mark.parametrize("kind", ["pairs", "sft", "prompts"])
def test_text_has_no_turn_for_it(load, kind):
    row = {"prompt": "Hi", "chosen": " yes", "rejected": " no", "completion": " yes", "system": "S"}
    with pytest.raises(
        UserError, match="rows:1: a column system beside text, .* columns: {instruction: prompt}"
    ):
        load([row], kind=kind)
    assert len(load([row | {"system": ""}], kind=kind)) == 1


def test_two_system_prompts_are_refused(load):
    row = {"system": "T", "prompt": [SYSTEM, USER], "chosen": GOOD, "rejected": BAD}
    with pytest.raises(
        UserError, match="the column system is another system prompt than that of the messages"
    ):
        load([row], CHAT)


# ---------------------------------------------------------------- where the prompt is


@pytest.mark.parametrize("name", ["problem", "post", "context", "trajectory", "question", "input", "history"])
@pytest.mark.parametrize("value", ["What is 2?", [{"from": "user", "value": "What is 2?"}]])
def test_what_answers_share_is_no_prompt_where_a_column_may_hold_it(load, name, value):
    """Step 1: of both answers would be taken for the question."""
    row = {name: value, "chosen": "Step 1: add", "rejected": "Step 1: take away"}
    with pytest.raises(
        UserError, match=f"rows:1: no prompt, but a column {name}: .*columns: {{prompt: {name}}}"
    ):
        load([row])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("conversation", 17),
        ("history", True),
        ("messages", 3),
        ("messages", ["a"]),
        ("context", 0.5),
        ("conversation", "c1f3"),
    ],
)
def test_what_is_neither_text_nor_messages_is_no_prompt(load, name, value):
    """Numbers, flags and names of a row, whatever the column is called: the rows are read without them."""
    row = {"chosen": "Is it good? Yes", "rejected": "Is it good? No"}
    if isinstance(value, list):
        row = {"chosen": [USER, GOOD], "rejected": [USER, BAD]}
    assert load([row | {name: value}], CHAT).digest() == load([row], CHAT).digest()


def test_a_prompt_that_no_column_holds_is_said(load):
    row = {"chosen": "Is it good? Yes", "rejected": "Is it good? No"}
    dialogue = {
        "chosen": "\n\nHuman: Q\n\nAssistant: a",
        "rejected": "\n\nHuman: Q\n\nAssistant: b",
        "post": "x",
    }
    load([row, dialogue])
    assert load.lines[1].startswith(
        "data: in 1 of 2 rows no column is the prompt: it is what chosen and rejected"
    )
    assert len(load.lines) == 2, "a dialogue says where its last answer begins"


def test_dialogues_that_share_no_turn_are_refused(load):
    """The user's words would be the response."""
    row = {"chosen": "\n\nHuman: A\n\nAssistant: x", "rejected": "\n\nHuman: B\n\nAssistant: x"}
    with pytest.raises(UserError, match="share no turn up to an answer of the assistant"):
        load([row])


@pytest.mark.parametrize("answers", [(GOOD, BAD), ([GOOD], [BAD]), ("Hello", "What")])
def test_messages_to_be_answered_are_the_prompt(load, answers):
    """Axolotl's chat_template.default."""
    row = {"messages": MORE, "chosen": answers[0], "rejected": answers[1]}
    assert decoded(load([row], CHAT)) == (written(MORE), "Hello", "What")
    assert load.lines == []
    assert CHAT.decode(load([{"messages": MORE}], CHAT, kind="prompts").prompt(0)) == written(MORE)


def test_a_prompt_that_stands_twice_is_said(load):
    turn = "\n\nHuman: Q\n\nAssistant:"
    rows = [{"prompt": turn, "chosen": f"{turn} a{n}", "rejected": f"{turn} b{n}"} for n in range(3)]
    load(rows)
    assert "data: in 3 of 3 rows the responses begin with the prompt once more" in load.lines[0]
    load.lines.clear()
    load([rows[0], *({"prompt": "Hello", "chosen": f"Hello{n}", "rejected": f"No{n}"} for n in range(3))])
    assert not any("once more" in line for line in load.lines), "a greeting that is answered by a greeting"


def test_steps_between_prompt_and_answers_are_not_left_out(load):
    row = {"prompt": "Q", "initial_reason_steps": "Step 1: a\nStep 2:", "chosen": " b", "rejected": " c"}
    with pytest.raises(UserError, match="a column initial_reason_steps, which stands between"):
        load([row])


# ---------------------------------------------------------------- columns, roles, ends


def test_columns_that_are_not_read_are_said_from_the_cache_too(load):
    rows = [
        {"prompt": "Q", "chosen": " a", "rejected": " b", "pair_weight": 2, "score_chosen": 1.0, "id": None},
        {
            "prompt": "Q",
            "chosen": " a",
            "rejected": " b",
            "chosen_weights": [1, 2, 1],
            "messages": [USER],
            "x": 0,
        },
    ]
    for _ in range(2):
        load(rows)
    assert load.lines == ["data: columns that are not read: messages, score_chosen, x"] * 2
    load.lines.clear()
    load([{"messages": [USER, GOOD], "tools": None, "system": "S"}], CHAT, kind="sft")
    load([{"instruction": "Hi", "input": "", "output": "Hello", "label": 1}], CHAT, kind="unpaired")
    load([{"prompt": [USER], "tests": "assert f(1) == 2"}], CHAT, kind="prompts")
    assert load.lines == ["data: 1 desirable and 0 undesirable responses"]


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        (
            "pairs",
            {"instruction": "Q", "chosen_response": "a", "rejected_response": "b"},
            "no chosen, rejected; the row has: instruction, chosen_response, rejected_response; "
            "if the data calls that otherwise, set columns: {chosen: NAME, rejected: NAME} beside its path",
        ),
        ("pairs", {"input": "Q", "accepted": "a", "rejected": "b"}, "set columns: {chosen: NAME} beside"),
        ("sft", {"query": "Q", "response": "R"}, "set columns: {prompt: NAME, completion: NAME} beside"),
        ("prompts", {"context_messages": [USER]}, "set columns: {prompt: NAME} beside"),
        (
            "unpaired",
            {"conversations": [{"from": "gpt", "value": "x"}], "kto_tag": True},
            "set columns: {label: NAME}",
        ),
        (
            "pairs",
            {f"a_long_name_of_a_column_{n}": n for n in range(40)},
            "and more; if the data calls that otherwise, set columns: {chosen: NAME, rejected: NAME} beside",
        ),
    ],
)
def test_a_missing_column_is_said_with_what_the_row_came_with_and_what_to_set(load, kind, row, message):
    with pytest.raises(UserError) as error:
        load([row], CHAT, kind=kind)
    assert message in str(error.value) and "has: conversations, kto_tag, messages" not in str(error.value)


@pytest.mark.parametrize("user", ["human", "Human", "prompter", "User", "user"])
@pytest.mark.parametrize("assistant", ["gpt", "Assistant", "model", "bot", "AI", "assistant"])
@pytest.mark.parametrize(("who", "what"), [("role", "content"), ("from", "value")])
def test_speakers_are_known_by_their_usual_names(load, user, assistant, who, what):
    def turn(name, text):
        return {who: name, what: text}

    row = {"chosen": [turn(user, "Hi"), turn(assistant, "Hello")]}
    row["rejected"] = [turn(user, "Hi"), turn(assistant, "What")]
    assert decoded(load([row], CHAT)) == (written([USER]), "Hello", "What")


@pytest.mark.parametrize("rejected", ["What", BAD, [BAD], [*MORE, BAD]])
def test_messages_may_end_with_the_chosen_answer(load, rejected):
    """As ms-swift has them. Kills: the chosen answer read as part of the prompt."""
    row = {"messages": [*MORE, GOOD], "rejected": rejected, "source": "x"}
    assert decoded(load([row], CHAT)) == (written(MORE), "Hello", "What")
    assert load.lines == ["data: columns that are not read: source"]


def test_messages_that_are_to_be_answered_still_lack_the_chosen_answer(load):
    with pytest.raises(UserError, match="no chosen; the row has: messages, rejected; "):
        load([{"messages": MORE, "rejected": BAD}], CHAT)
    with pytest.raises(UserError, match="rejected must be a list of messages, got int"):
        load([{"messages": [USER, GOOD], "rejected": 3}], CHAT)
    with pytest.raises(UserError, match="messages hold one turn: expected a prompt"):
        load([{"messages": [GOOD], "rejected": BAD}], CHAT)


def test_text_that_ends_itself_ends_once(load):
    """ChatML as text. Kills: a second EOS behind the line end; none behind an EOS within."""
    row = {"prompt": "Q", "chosen": " a<|im_end|>\n", "rejected": " b<|im_end|>\nc"}
    assert texts(load([row], CHAT), 0, CHAT)[1:] == (" a<|im_end|>\n", " b<|im_end|>\nc<|im_end|>")


# ---------------------------------------------------------------- two answers side by side

PKU = {"prompt": "Q", "response_0": " a", "response_1": " b", "safer_response_id": 0}
STEER = {"prompt": "Q", "response_1": " a", "response_2": " b"}
ARENA = {"conversation_a": [USER, GOOD], "conversation_b": [USER, BAD], "model_a": "x", "model_b": "y"}
CELLS = {"prompt": '["Q"]', "response_a": '["a"]', "response_b": '["b"]', "winner_tie": "0"}


@pytest.mark.parametrize(
    ("row", "first_is_better"),
    [
        (PKU | {"better_response_id": 0}, True),
        (PKU | {"better_response_id": 1}, False),
        (STEER | {"preference_strength": -2}, True),
        (STEER | {"preference_strength": "3"}, False),
        ({"prompt": [USER], "response1": " a", "response2": " b", "overall_preference": 1}, False),
        ({"prompt": "Q", "response_a": " a", "response_b": " b", "winner": "model_a"}, True),
        ({"prompt": "Q", "response_a": " a", "response_b": " b", "winner": "B"}, False),
        (CELLS | {"winner_model_a": "0", "winner_model_b": "1"}, False),
        (ARENA | {"winner": "model_b"}, False),
        (
            {
                "prompt": "Q",
                "human_ref_A": " a",
                "human_ref_B": " b",
                "labels": 1,
                "score_A": 2,
                "score_B": 9,
            },
            True,
        ),
        (
            {
                "prompt": "Q",
                "human_ref_A": " a",
                "human_ref_B": " b",
                "labels": 0,
                "score_A": 9,
                "score_B": 2,
            },
            False,
        ),
        ({"prompt": "Q", "answer_0": " a", "answer_1": " b", "score_0": 0.5, "score_1": -0.5}, True),
    ],
)
def test_a_comparison_is_the_pair_that_it_says(load, row, first_is_better):
    table = load([row], CHAT)
    assert len(table) == 1 and are_pairs([row])
    firsts = [text.strip()[0] in "aH" for text in decoded(table)[1:]]
    assert firsts == [first_is_better, not first_is_better]
    with pytest.raises(UserError, match="are ranked answers, and only pairs can be exchanged"):
        load([Exchanged(GeneratedRows("rows", [row]))], CHAT)


@pytest.mark.parametrize(("ours", "prompt"), [("prompt", "<s>Q"), ("instruction", [USER | {"content": "Q"}])])
def test_a_question_of_webgpt_is_its_text(load, ours, prompt):
    row = {"question": {"dataset": "x", "id": "1", "full_text": "Q"}, "answer_0": " a", "answer_1": " b"}
    row = rename(row | {"score_0": 1.0, "score_1": -1.0}, {ours: "question"})
    text = prompt if isinstance(prompt, str) else written(prompt)
    assert decoded(load([row], CHAT))[0] == text


def test_ties_and_small_differences_are_counted(load):
    rows = [STEER | {"preference_strength": strength} for strength in (0, 1, -3)]
    rows += [ARENA | {"winner": "tie (bothbad)"}, ARENA | {"winner": "model_a"}]
    table = load(rows, CHAT, ranking=Ranking(margin=1.0))
    assert len(table) == 1 and "of the pairs of ranked answers 4 are left out" in " ".join(load.lines)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            PKU | {"better_response_id": 2},
            "response_0 and response_1 is better cannot be told from better_resp",
        ),
        (ARENA | {"winner": "tiefighter"}, "cannot be told from winner: 'tiefighter'"),
        (STEER | {"preference_strength": 10**400}, "cannot be told from preference_strength: 1000"),
        (STEER | {"preference_strength": "much"}, "cannot be told from preference_strength: 'much'"),
        (STEER | {"preference_strength": float("nan")}, "cannot be told from preference_strength: nan"),
        (STEER, "no chosen, rejected; the row has: prompt, response_1, response_2; if the data calls"),
        (
            CELLS | {"winner_model_a": 1, "winner_model_b": 0, "response_a": '["a", "c"]'},
            "prompt has 1 turns",
        ),
        (
            {"history": "Q is?", "human_ref_A": " a", "human_ref_B": " b", "labels": 1},
            "no prompt, but a column history",
        ),
    ],
)
def test_a_comparison_that_cannot_be_read_is_one_line(load, row, message):
    with pytest.raises(UserError) as error:
        load([row], CHAT)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_pair_is_read_as_such_whatever_else_it_holds(load):
    row = PKU | {"better_response_id": 1, "chosen": " c", "rejected": " d"}
    assert texts(load([row]))[1:] == (f" c{END}", f" d{END}")


def test_turns_of_cells_are_a_dialogue(load):
    row = {"prompt": ["Q", "R"], "response_a": ["a", "b"], "response_b": ["a", "c"], "winner": "a"}
    prompt = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "R"},
    ]
    assert decoded(load([row], CHAT)) == (written(prompt), "b", "c")


# ---------------------------------------------------------------- what is said of messages

OF_STRINGS = CHATML.replace(
    "m.content", "(m.tool_calls[0].function.arguments | tojson if m.tool_calls else m.content)"
)


@pytest.mark.parametrize(("arguments", "count"), [('{"a": "é"}', 1), ({"a": "é"}, 0), ("{}", 1)])
def test_arguments_that_a_template_writes_in_quotes_are_said(load, arguments, count):
    tokenizer = chat_tokenizer(OF_STRINGS, "<|im_end|>")
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "", "arguments": arguments}}]}
    load([{"prompt": [USER], "chosen": [call], "rejected": [BAD]}], tokenizer)
    said = "in 1 of 1 rows the arguments of a call are text, which the chat template writes as a string in"
    assert sum(said in line for line in load.lines) == count


def test_text_beside_a_chat_template_is_said_and_the_line_makes_turns_of_it(load):
    row = {"prompt": "Hi", "chosen": "Hello", "rejected": "What"}
    said = (
        "data: in 1 of 2 rows the prompt is text: it and the answers are read as they stand, without the chat"
    )
    load([row, {"prompt": [USER], "chosen": GOOD, "rejected": BAD}], CHAT)
    assert load.lines[0].startswith(said) and len(load.lines) == 1
    renamed = rename(row, {"instruction": "prompt"})
    assert decoded(load([renamed], CHAT)) == (written([USER]), "Hello", "What")
    load([row], template="paper"), load([row]), load([{"text": "Hi"}], CHAT, kind="sft")
    assert len(load.lines) == 1, "only where the template would write messages"


def test_calls_and_tools_that_a_template_drops_are_said(load):
    called = call("add", a=1) | {"content": ""}
    said = "data: in 1 of 1 rows the chat template leaves out the tools, or a call of one, as in TRL"
    plain = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
    tooled = plain | {"tools": [tool("add")]}
    rows = (plain | {"rejected": [called]}, plain | {"prompt": [USER, called]}, tooled)
    for row in rows:
        load.lines.clear()
        load([row], CHAT)
        assert sum(line.startswith(said) for line in load.lines) == 1
    load.lines.clear()
    load([tooled | {"prompt": [SYSTEM | {"content": "You may add."}, USER]}], CHAT)
    load([rows[0] | {"tools": [tool("add")]}], chat_tokenizer(LLAMA, "<|eot|>"), template_date="2026-01-01")
    assert not any("leaves out" in line for line in load.lines)


def test_a_prompt_that_ends_with_an_answer_is_said(load):
    row = {"prompt": [USER, GOOD], "chosen": GOOD, "rejected": BAD}
    load([row], CHAT)
    load([{"prompt": [USER, GOOD]}], CHAT, kind="prompts")
    said = "data: in 1 of 1 rows the prompt ends with a message of the assistant, and the answer is another"
    assert [line.startswith(said) for line in load.lines] == [True, True]


def test_messages_as_pandas_writes_them_to_csv_are_refused(load):
    """Numpy prints a list without commas: it would be trained on as text."""
    shown = "[{'role': 'user', 'content': 'Hi'}\n {'role': 'assistant', 'content': 'Hello'}]"
    with pytest.raises(
        UserError, match="chosen is a text that shows messages and is neither JSON nor a list"
    ):
        load([{"prompt": "Hi", "chosen": shown, "rejected": shown.replace("Hello", "What")}], CHAT)
    left_over = {"prompt": "Hi", "chosen": "Hello", "rejected": "What", "messages": shown}
    assert len(load([left_over], CHAT)) == 1, "a column that nothing reads"
    code = {"prompt": "Hi", "chosen": '[{"name": "x"}\n{}]', "rejected": "no"}
    assert texts(load([code]))[1] == f"{code['chosen']}{END}"


@pytest.mark.parametrize("write", [json.dumps, str, lambda turns: f" {json.dumps(turns, indent=1)}\n"])
@pytest.mark.parametrize("form", ["lists", "messages", "sharegpt"])
def test_messages_in_cells_are_messages(load, write, form):
    """Also one message alone, as LLaMA-Factory's answers are. Kills: a cell that is trained on as text."""
    good, bad = ([GOOD], [BAD]) if form == "lists" else (GOOD, BAD)
    if form == "sharegpt":
        good, bad = ({"from": "gpt", "value": turn["content"]} for turn in (GOOD, BAD))
    prompt = [{"content": "f{x}", "role": "user"}]
    row = {"prompt": write(prompt), "chosen": write(good), "rejected": write(bad)}
    assert decoded(load([row], CHAT)) == (written(prompt), "Hello", "What")


@pytest.mark.parametrize(
    "answer",
    [
        '{"from": "Rome", "to": "Oslo"}',
        '{"from": "USD", "value": 5}',
        '{"role": "king", "content": "crown"}',
        '{"from": ["Rome"], "value": 1}',
        '[{"role": "king"}]',
        '{"a": {"role": 1}}',
    ],
)
def test_json_that_is_no_message_is_text(load, answer):
    row = {"prompt": "Q", "chosen": answer, "rejected": "no"}
    assert texts(load([row]))[1] == f"{answer}{END}"


@pytest.mark.parametrize("name", ["question", "conversation", "context"])
@pytest.mark.parametrize("value", ["Hi", [USER]])
def test_answers_of_messages_say_where_their_prompt_may_be(load, name, value):
    with pytest.raises(UserError, match=f"no prompt, but a column {name}: .*columns: {{prompt: {name}}}"):
        load([{name: value, "chosen": [GOOD], "rejected": [BAD]}], CHAT)
    with pytest.raises(UserError, match="no first messages in common; if the data calls that otherwise"):
        load([{"chosen": [GOOD], "rejected": [BAD]}], CHAT)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q", "chosen": [GOOD | {"content": 4}], "rejected": "5"}, "no content of text, but int"),
        (
            {"prompt": "Q", "chosen": [GOOD | {"content": None}], "rejected": "5"},
            "'assistant' has no content of text",
        ),
        ({"instruction": "Q", "completions": []}, "completions has no answer, and a pair needs two"),
    ],
)
def test_what_is_not_there_is_named(load, row, message):
    with pytest.raises(UserError, match=message):
        load([row], CHAT)


def test_a_null_is_named_where_a_column_is_missing(load):
    with pytest.raises(UserError, match=r"no rejected; the row has: prompt, chosen, rejected \(null\), x"):
        load([{"prompt": "Q", "chosen": " a", "rejected": None, "x": 1}])


# ---------------------------------------------------------------- files that are something else

ROW = '{"prompt": "Q", "chosen": " a", "rejected": " b"}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "only Git LFS's pointer to the file: fetch it",
        ),
        (
            "a.parquet",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "only Git LFS's pointer to the file: fetch it",
        ),
        ("a.jsonl", gzip.compress(ROW.encode(), mtime=0), "compressed by gzip: its name must end in .gz"),
        ("a.json", b"PAR1" + bytes(20), "a parquet file: its name must end in .parquet"),
        ("a.csv", b"PK\x03\x04" + bytes(20), "a zip archive"),
        ("a.csv", "prompt,chosen\n".encode("utf-16"), "text in UTF-16"),
        ("a.jsonl", b"<!doctype html><html>", "a web page in the place of the file"),
        (
            "a.json",
            json.dumps({"train": [json.loads(ROW)]}, indent=1).encode(),
            r"one object \(train\) over several",
        ),
    ],
)
def test_a_file_that_is_something_else_is_one_line_even_where_bad_rows_are_left_out(
    load, tmp_path, name, content, message
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: (this is )?{message}") as error:
        load([FileRows(str(tmp_path / name))], on_bad_row="skip")
    assert "\n" not in str(error.value)


def test_a_list_in_a_file_of_lines_is_said_to_be_one(load, tmp_path):
    for indent in (None, 1):
        (tmp_path / "a.jsonl").write_text(json.dumps([json.loads(ROW)], indent=indent))
        with pytest.raises(
            UserError, match=r"a.jsonl:1: expected a JSON object, got list: a file that is one list"
        ):
            load([FileRows(str(tmp_path / "a.jsonl"))])
    (tmp_path / "a.json").write_text(f"{ROW}\n{ROW}\n")
    assert len(load([FileRows(str(tmp_path / "a.json"))])) == 2


def test_why_a_directory_cannot_be_read_is_said(load, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.jsonl").write_text(ROW)
    (tmp_path / "d" / "b.jsonl").write_text('{"prompt": [{"role": "user", "content": "Q"}], "chosen": "a"}')
    with pytest.raises(UserError, match="`datasets` cannot read it .(?!An error occurred)"):
        load([FileRows(str(tmp_path / "d"))])
