"""Responses of several turns: which tokens are trained on, and that the others are only read."""

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.chat import (
    BAD,
    CHATML,
    GEMMA,
    GOOD,
    LLAMA,
    MISTRAL,
    NO_END,
    OPENED,
    THINKING,
    USER,
    call,
    chat_tokenizer,
    tool,
)
from helpers.configs import make_config
from helpers.loading import Load
from helpers.tiny import GPT2
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.stop import Stop
from sparsepo_jax.data.inspect import format_rows
from sparsepo_jax.eval.lexicon import mark_table
from sparsepo_jax.eval.records import pair_record
from sparsepo_jax.eval.scores import PairScore, ResponseScore
from sparsepo_jax.report.heatmap import parse_pair
from sparsepo_jax.stages.context import Run
from sparsepo_jax.stages.po import check_po

LOOK = {"role": "assistant", "content": "Look"}
MORE = {"role": "user", "content": "Go on"}
TOOL = {"role": "tool", "name": "add", "content": "7"}
CALL = call("add", a=1) | {"content": ""}
ADD = tool("add", a={"type": "integer"})
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Leaves out what an earlier turn thought, as Qwen3's does.
FORGETS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHAT = chat_tokenizer(CHATML, "<|im_end|>")
PAIR = {"prompt": [USER], "chosen": [LOOK, MORE, GOOD], "rejected": [LOOK, MORE, BAD]}


@pytest.fixture
def load(tmp_path):
    return Load(tmp_path)


def own(table, tokenizer, p=0):
    return tokenizer.decode(table.response(0, p))


# ---------------------------------------------------------------- which tokens


@pytest.mark.parametrize(
    ("template", "eos", "first", "last"),
    [
        (CHATML, "<|im_end|>", "Look<|im_end|>\n", "Hello<|im_end|>\n"),
        (LLAMA, "<|eot|>", "Look<|eot|>", "Hello<|eot|>"),
        (THINKING, "<|im_end|>", "Look<|im_end|>\n", "Hello<|im_end|>\n"),
        (OPENED, "<|im_end|>", "Look<|im_end|>\n", "Hello<|im_end|>\n"),
        (GEMMA, "<|eot|>", "Look<|eot|>\n", "Hello<|eot|>\n"),
        (MISTRAL, "</s>", " Look</s>", " Hello</s>"),
        (NO_END, "</s>", "Look\n", "Hello\n"),
        (None, "</s>", "Look", "Hello</s>"),
        (MARKED, "<|im_end|>", "Look<|im_end|>", "Hello<|im_end|>"),
    ],
)
def test_only_what_the_assistant_writes_is_the_response(load, template, eos, first, last):
    """And what the model meets is the whole dialogue, as the template writes it."""
    tokenizer = chat_tokenizer(template, eos)
    table = load([PAIR], tokenizer, train_on="assistant")
    assert own(table, tokenizer) == first + last
    assert own(table, tokenizer, 1) == first + last.replace("Hello", "What")
    alone = load([PAIR], tokenizer)
    assert own(alone, tokenizer) == (last + "\n" if template == MARKED else last)
    if template is not None:
        whole = tokenizer.apply_chat_template([USER, *PAIR["chosen"]], tokenize=False)
        for each in (table, alone):
            met = [*each.prompt(0), *each.laid(0, 0)[0]]
            assert tokenizer.decode(met) in (whole, whole.removesuffix("\n")), "without what nothing needs"
    assert "1 of 1 rows a response holds turns that are not the assistant's" in " ".join(load.lines)


def test_one_turn_is_the_same_tokens_either_way(load):
    row = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
    tables = [load([row], CHAT, train_on=train_on) for train_on in ("last", "assistant")]
    assert tables[0].digest() == tables[1].digest() and tables[0].between is None
    assert not load.lines


def test_supervised_rows_train_on_every_turn_of_the_assistant(load):
    messages = [USER, LOOK, MORE, GOOD]
    table = load([{"messages": messages}], CHAT, kind="sft", train_on="assistant")
    assert own(table, CHAT) == "Look<|im_end|>\nHello<|im_end|>\n"
    ends_with_user = load([{"messages": [*messages, MORE]}], CHAT, kind="sft", train_on="assistant")
    assert own(ends_with_user, CHAT) == own(table, CHAT)
    ids, _ = ends_with_user.laid(0, 0)
    assert CHAT.decode(ids).endswith("Hello<|im_end|>\n"), "nothing behind the last of its own tokens is read"
    with pytest.raises(UserError, match=r"must be of the assistant.*data.train_on=assistant takes"):
        load([{"messages": [*messages, MORE]}], CHAT, kind="sft")


def test_a_call_that_tools_answer_differently_is_part_of_the_responses(load):
    row = {
        "chosen": [USER, LOOK, TOOL, GOOD],
        "rejected": [USER, LOOK, TOOL | {"content": "8"}, GOOD],
    }
    table = load([row], CHAT, train_on="assistant")
    assert own(table, CHAT) == own(table, CHAT, 1) == "Look<|im_end|>\nHello<|im_end|>\n"
    assert "7" in CHAT.decode(table.laid(0, 0)[0]) and "8" in CHAT.decode(table.laid(0, 1)[0])
    assert "7" not in own(table, CHAT)


def test_a_template_that_rewrites_earlier_turns_is_one_line(load):
    tokenizer = chat_tokenizer(FORGETS, "<|im_end|>")
    with pytest.raises(
        UserError, match=r"rows:1: the chat template writes a turn of chosen differently once"
    ):
        load([PAIR], tokenizer, train_on="assistant")
    assert own(load([PAIR], tokenizer), tokenizer) == "<think></think>Hello<|im_end|>\n", "the last is exact"
    nothing = chat_tokenizer(MARKED.replace("m.role == 'assistant'", "m.role == 'tool'"), "<|im_end|>")
    with pytest.raises(UserError, match="marks nothing of chosen"):
        load([PAIR], nothing, train_on="assistant")


def their_templates():
    trl = pytest.importorskip("trl")
    return sorted((Path(trl.__file__).parent / "chat_templates").glob("*_training.jinja"))


def test_marked_tokens_are_those_of_transformers_for_every_training_template_of_trl(load):
    """Dialogues with a second question and with a call. Kills: a token left out at either end of a mark, a
    marked header taken for prompt."""
    dialogues = {
        "question": ([USER, LOOK, MORE, GOOD], None),
        "call": ([USER, CALL, TOOL, GOOD], [ADD]),
    }
    compared = 0
    for path in their_templates():
        tokenizer = chat_tokenizer(path.read_text(), "</s>")
        for messages, tools in dialogues.values():
            given = messages
            if path.stem.startswith(("idefics", "llava", "smolvlm")):
                given = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
            try:
                theirs = tokenizer.apply_chat_template(
                    given, tools=tools, return_dict=True, return_assistant_tokens_mask=True
                )
            except Exception:  # a template without tools
                continue
            row = {"messages": messages, "tools": tools}
            table = load(
                [row], tokenizer, kind="sft", train_on="assistant", max_prompt_length=8000, max_length=9000
            )
            ids, places = table.laid(0, 0)
            prompt = table.prompt(0).tolist()
            assert (prompt + ids.tolist()) == theirs["input_ids"][: len(prompt) + len(ids)], path.stem
            marked = np.flatnonzero(theirs["assistant_masks"])
            assert (places + len(prompt)).tolist() == marked.tolist(), path.stem
            compared += 1
    assert compared > 30


# ---------------------------------------------------------------- columns, cuts, what is shown


def test_weights_and_spans_count_the_response_alone(load):
    length = len("Look") + len("Hello") + 4
    row = PAIR | {"chosen_weights": [0.5] * length, "rejected_decisive": [[0, 4]], "chosen_decisive": []}
    table = load([row], CHAT, train_on="assistant")
    assert table.weights(0, 0).tolist() == [0.5] * length
    assert CHAT.decode(table.response(0, 1)[table.decisive(0, 1)]) == "Look"
    last = load([PAIR | {"rejected_decisive": [[0, 2]], "chosen_decisive": []}], CHAT)
    assert CHAT.decode(last.response(0, 1)[last.decisive(0, 1)]) == "Wh", "of the turn that is trained on"
    with pytest.raises(UserError, match=r"9 weights for a response of 13 tokens|weights for a response of"):
        load([PAIR | {"chosen_weights": [0.5] * (length + 1)}], CHAT, train_on="assistant")


def test_spans_stay_within_the_turn_that_they_count(load):
    """Kills: a search in later turns, spans past the content, spans that count what a template writes."""
    tokenizer = chat_tokenizer(GEMMA, "<|eot|>")
    spans = {"chosen_decisive": [[0, 5]], "rejected_decisive": []}
    padded = PAIR | {"chosen": [GOOD | {"content": "Hello "}, MORE | {"content": "x Hello y"}, GOOD]}
    for row, line in (
        (padded | spans, "the chat template alters the text of chosen"),
        (PAIR | {"chosen_weights": [[0, 9, 2.0]]}, "ends past the text of chosen, which has 4 characters"),
        (PAIR | spans | {"chosen": [CALL, MORE, GOOD]}, "that its spans count has no content"),
    ):
        with pytest.raises(UserError, match=line):
            load([row], tokenizer, train_on="assistant")


def test_a_turn_that_is_not_to_be_trained_on_is_refused_where_it_would_be(load):
    for mark in ({"weight": 0}, {"train": False}):
        rows = [{"messages": [USER, LOOK | mark, MORE, GOOD | {"weight": 1, "train": True}]}]
        assert own(load(rows, CHAT, kind="sft"), CHAT).startswith("Hello")
        with pytest.raises(UserError, match=f"a message of the assistant has {next(iter(mark))}: "):
            load(rows, CHAT, kind="sft", train_on="assistant")


# Ends a dialogue with EOS unless it asks on, as Phi 3's does.
ENDS = CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"


def test_the_last_turn_is_told_where_a_template_ends_dialogues(load):
    tokenizer = chat_tokenizer(ENDS, "</s>")
    assert own(load([PAIR], tokenizer), tokenizer) == "Hello<|im_end|>\n</s>"


def test_an_empty_answer_of_a_tool_and_a_dialogue_that_the_assistant_begins(load):
    thinking = chat_tokenizer(THINKING, "<|im_end|>")
    empty = {"prompt": [USER, LOOK, TOOL | {"content": ""}], "chosen": [GOOD], "rejected": [BAD]}
    assert own(load([empty], thinking), thinking) == "Hello<|im_end|>\n"
    begun = load([{"messages": [LOOK, USER, GOOD]}], CHAT, kind="sft", train_on="assistant")
    assert own(begun, CHAT) == "Hello<|im_end|>\n" and "Look" in CHAT.decode(begun.prompt(0))


def test_a_cut_counts_what_is_read_and_keeps_what_is_trained_on(load):
    whole = load([PAIR], CHAT, train_on="assistant")
    prompt, (ids, places) = whole.prompt_lengths_N[0], whole.laid(0, 0)
    inside = load([PAIR], CHAT, train_on="assistant", max_length=int(prompt + places[8]))
    assert own(inside, CHAT) == "Look<|im_end|>\nHe" and inside.response_cut_NP.all()
    assert len(inside.laid(0, 0)[0]) == places[8]
    assert any(f"set data.max_length={prompt + len(ids)}" in line for line in load.lines)
    with pytest.raises(UserError, match="chosen and rejected are the same within the first"):
        load([PAIR], CHAT, train_on="assistant", max_length=int(prompt + 10))
    with pytest.raises(UserError, match="no token of the assistant's lies within the first 10"):
        load([PAIR], CHAT, max_length=int(prompt + 10))


def test_what_is_read_is_kept_mixed_and_taken_as_what_is_trained_on(load):
    """Through the cache, beside rows without other turns, and by row."""
    row = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
    load([PAIR, row], CHAT)
    table = load([row, PAIR], CHAT).concat([load([row], CHAT), load([PAIR, row], CHAT)])
    expected = load([PAIR], CHAT)
    taken = table.take([1])
    assert taken.digest() == expected.digest()
    np.testing.assert_array_equal(taken.laid(0, 1)[0], expected.laid(0, 1)[0])
    assert table.laid(2, 0)[1].tolist() == list(range(table.response_lengths_NP[2, 0]))
    assert expected.digest() != expected.with_columns(between=None).digest()


def test_what_is_read_is_shown_apart_and_never_coloured(load):
    table = load([PAIR], CHAT)
    shown = format_rows(table, CHAT, [0])
    assert "⟨L⟩│⟨o⟩│⟨o⟩│⟨k⟩" in shown and "│H│e│l│l│o│" in shown
    scores = [
        ResponseScore(*(np.zeros(table.response_lengths_NP[0, p], np.float32) for _ in range(5)))
        for p in (0, 1)
    ]
    record = pair_record(PairScore(0, {"loss": 0.0, "margin": 0.0}, scores), table, CHAT, with_text=True)
    pair = parse_pair(record, where="here")
    assert "".join(token.text for token in pair.chosen).startswith("Hello")
    assert pair.chosen[0].before.startswith("Look") and pair.chosen[1].before == ""
    row = {"prompt_ids": record["prompt_ids"]}
    for side in ("chosen", "rejected"):
        row |= {f"{side}_ids": record[side]["token_ids"], f"{side}_before": record[side]["before_ids"]}
    assert load([row]).digest() == table.digest(), "the record says all that the model has met"
    for wrong in ([[99, [1]]], [[0, [1]], [0, [2]]], [1, 2], [[0, [-1]]]):
        with pytest.raises(UserError, match="chosen_before"):
            load([row | {"chosen_before": wrong}])
    marks = mark_table(table, CHAT, {"words": {"hello", "look"}})
    assert marks.decisive["words"].sum() == len("Hello"), "words of other turns are no response tokens"


def test_a_call_of_sharegpt_is_one_of_the_assistant(load):
    """As LLaMA-Factory's data has them, the tool's answer as an observation."""
    call = {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'}
    ask, answer = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}
    theirs = {"conversations": [ask, call, {"from": "observation", "value": "7"}, answer]}
    ours = {"messages": [USER, CALL, {"role": "tool", "content": "7"}, GOOD]}
    tokenizer = chat_tokenizer(LLAMA, "<|eot|>")
    tables = [load([row], tokenizer, kind="sft", train_on="assistant") for row in (theirs, ours)]
    assert tables[0].digest() == tables[1].digest()
    assert '"add"' in own(tables[0], tokenizer) and "7" not in own(tables[0], tokenizer)


@pytest.mark.parametrize("kind", ["tidpo", "tbpo_q", "kto"])
def test_what_reads_more_of_tokens_trains_on_rows_with_turns_between(kind, tmp_path):
    """Each finds a token in its own column; see test_token_guided. Kills: a refusal by a reason of old."""
    dialogues = [{**PAIR, "prompt": [{**USER, "content": text}]} for text in ("One", "Two")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in dialogues))
    config = make_config(
        output_dir=str(tmp_path / "run"),
        policy={"config": GPT2 | {"vocab_size": 257, "n_positions": 256}},
        tokenizer={"kind": "bytes"},
        objective={"kind": kind},
        po={"batch_size": 8},
        data={
            "train": [{"path": str(tmp_path / "rows.jsonl")}],
            "train_on": "assistant",
            "cache_dir": str(tmp_path / "cache"),
        },
    )
    run = Run(config, Stop())
    check_po(run)
    assert run.training_pairs.between is not None
