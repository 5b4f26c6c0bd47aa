"""Rows that differ in a detail from those of tests/test_published_rows.py."""

import json

import pytest

from helpers.chat import BAD, CHATML, GOOD, USER, chat_tokenizer
from helpers.loading import Load, texts
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.sources import FileRows
from sparsepo_jax.data.tokenizers import load_tokenizer

CHAT = chat_tokenizer(CHATML, "<|im_end|>")


@pytest.fixture
def load(tmp_path):
    return Load(tmp_path)


def answers(table):
    """The responses without what ends the turn."""
    return tuple(text.removesuffix("<|im_end|>\n") for text in texts(table, 0, CHAT)[1:])


# ---------------------------------------------------------------- messages


@pytest.mark.parametrize("note", [{"timestamp": 1}, {"num_tokens": 3, "id": "a"}, {"hashed_ip": None}])
def test_what_a_data_set_notes_of_a_turn_does_not_make_another_prompt(load, note):
    """Kills: no prompt in rows whose chosen and rejected note the time of the same question."""
    row = {"chosen": [USER | note, GOOD], "rejected": [USER | dict.fromkeys(note, 7), BAD]}
    plain = {"chosen": [USER, GOOD], "rejected": [USER, BAD]}
    assert answers(load([row], CHAT)) == ("Hello", "What")
    assert load([row], CHAT).digest() == load([plain], CHAT).digest()
    both = load([row, plain], CHAT)
    assert both.prompt_key_N[0] == both.prompt_key_N[1], "held out together"


@pytest.mark.parametrize(
    "key", ["content", "tool_calls", "tools", "name", "metadata", "reasoning", "reasoning_content"]
)
def test_what_a_template_writes_of_a_turn_does(load, key):
    other = {"content": "Ho", "tool_calls": [{"function": {"name": "f"}}], "name": "Ann"}
    turn = USER | {key: other.get(key, "because")}
    with pytest.raises(UserError, match="chosen and rejected have no first messages in common"):
        load([{"chosen": [USER, GOOD], "rejected": [turn, BAD]}], CHAT)


@pytest.mark.parametrize(("who", "what"), [("role", "content"), ("from", "value")])
def test_turns_as_lists_side_by_side(load, who, what):
    """As `datasets` reads a Sequence of turns, also from Parquet."""

    def beside(*turns):
        return {who: [turn["role"] for turn in turns], what: [turn["content"] for turn in turns]}

    whole = {"chosen": beside(USER, GOOD), "rejected": beside(USER, BAD)}
    apart = {"prompt": beside(USER), "chosen": beside(GOOD), "rejected": beside(BAD)}
    expected = load([{"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}], CHAT).digest()
    assert [load([row], CHAT).digest() for row in (whole, apart)] == [expected, expected]
    uneven = beside(USER, GOOD) | {who: ["user"]}
    with pytest.raises(UserError, match="every message needs a role and content"):
        load([whole | {"chosen": uneven}], CHAT)


def test_dialogues_of_another_prompt_say_how_it_is_left_out(load):
    """The prompt as the template writes it, beside whole dialogues."""
    row = {"prompt": "<|im_start|>user\nHi<|im_end|>\n", "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    with pytest.raises(
        UserError, match="columns: {unread: prompt} beside the path of the data leaves this one out"
    ):
        load([row], CHAT)


def shared(turn):
    return {"from": {"user": "human", "assistant": "gpt"}[turn["role"]], "value": turn["content"]}


def test_conversations_may_end_with_the_chosen_answer(load):
    """With a column chosen, too. Kills: an answer that is read before it is trained on."""
    plain = load([{"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}], CHAT).digest()
    talk, good, bad = [shared(USER), shared(GOOD)], shared(GOOD), shared(BAD)
    for row in (
        {"conversations": talk, "rejected": bad},
        {"conversations": talk, "rejected": "What"},
        {"conversations": talk, "rejected": [shared(USER), bad]},
        {"conversations": talk, "chosen": good, "rejected": bad},
        {"conversations": talk, "chosen": "Hello", "rejected": "What"},
        {"conversations": talk[:1], "chosen": good, "rejected": bad},
    ):
        load.lines.clear()
        assert load([row], CHAT).digest() == plain and load.lines == []
    load([{"conversations": talk, "chosen": "Ho", "rejected": "What"}], CHAT)
    assert "the prompt ends with a message of the assistant" in load.lines[0]
    with pytest.raises(UserError, match="no chosen; the row has: conversations, rejected"):
        load([{"conversations": talk[:1], "rejected": bad}], CHAT)


@pytest.mark.parametrize("key", ["reasoning_content", "thinking"])
def test_reasoning_that_a_template_drops_is_said(load, key):
    row = {"prompt": [USER], "chosen": [GOOD | {key: "Let me see"}], "rejected": [BAD]}
    for _ in range(2):  # the second from the cache
        load.lines.clear()
        assert answers(load([row], CHAT)) == ("Hello", "What")
        assert ["leaves out the reasoning_content" in line for line in load.lines] == [True]
    load.lines.clear()
    writes = CHATML.replace("m.content", f"(m.{key} or '') + m.content")
    assert answers(load([row], chat_tokenizer(writes, "<|im_end|>"))) == ("Let me seeHello", "What")
    earlier = [USER, GOOD | {key: "Let me see"}, USER]  # which templates drop of old turns
    load([{"prompt": earlier, "chosen": [GOOD | {key: " "}], "rejected": [BAD]}], CHAT)
    assert load.lines == []


# ---------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("beginning", "prompt", "rest"),
    [
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", None, ""),
        ("[INST] Hi [/INST] ", "[INST] Hi [/INST]", " "),
        ("Q: Hi\nA: ", "Q: Hi\nA:", " "),
        ("Hi\n\n", None, ""),
    ],
)
def test_the_line_end_that_opens_an_answer_is_part_of_the_prompt(load, beginning, prompt, rest):
    """Kills: <|im_start|>assistant without its line end, which would be the answer's first token."""
    row = {"chosen": f"{beginning}Ant", "rejected": f"{beginning}Ape"}
    found = texts(load([row], CHAT), 0, CHAT)
    assert found == (f"<s>{prompt or beginning}", f"{rest}Ant<|im_end|>", f"{rest}Ape<|im_end|>")


def test_a_front_that_the_tokenizer_would_not_write_is_said(load, tmp_path):
    """The tokenizer has a BOS, and does not put it before text by itself."""
    CHAT.save_pretrained(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer"))
    row = {"prompt": "Hi", "chosen": " a", "rejected": " b"}
    line = "data: text prompts begin with <s> here, and with nothing where the tokenizer is left to itself"
    for _ in range(2):  # the second from the cache
        load.lines.clear()
        assert texts(load([row], tokenizer), 0, tokenizer)[0] == "<s>Hi"
        assert sum(said.startswith(line) and "add_bos=false" in said for said in load.lines) == 1
    load.lines.clear()
    assert texts(load([row], tokenizer, add_bos=False), 0, tokenizer)[0] == "Hi"
    load([{"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}], tokenizer)
    tokenizer.add_bos_token = True  # as Llama's, which writes it
    load([row], tokenizer)
    assert not any("text prompts begin" in said for said in load.lines)


# ---------------------------------------------------------------- what is said


@pytest.mark.parametrize(
    ("name", "value", "is_said"),
    [
        ("output", ["A", "B"], True),
        ("summaries", [{"text": "A", "policy": "x"}, {"text": "B", "policy": "y"}], True),
        ("tags", ["a"], False),
        ("scores", [1, 2], False),
    ],
)
def test_a_list_of_answers_is_named_where_there_are_no_pairs(load, name, value, is_said):
    with pytest.raises(UserError) as error:
        load([{"instruction": "Q", name: value}], CHAT)
    assert (f"if {name} holds several answers, {{responses: {name}}}" in str(error.value)) == is_said


def test_a_table_that_pandas_wrote_by_columns_is_said(load, tmp_path):
    rows = [{"prompt": "Q", "chosen": " a", "rejected": f" {n}"} for n in range(2)]
    by_column = {name: {str(n): row[name] for n, row in enumerate(rows)} for name in rows[0]}
    (tmp_path / "a.json").write_text(json.dumps(by_column))
    with pytest.raises(
        UserError, match=r"one object of columns \(prompt, chosen, rejected\).*orient='records'"
    ):
        load([FileRows(str(tmp_path / "a.json"))])
    (tmp_path / "b.json").write_text(json.dumps({"prompt": "Q", "chosen": " a", "rejected": " b"}))
    assert len(load([FileRows(str(tmp_path / "b.json"))])) == 1
