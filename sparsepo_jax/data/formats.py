"""What a row means: the shapes in which preference and sft data come, brought to one form.

Pairs, by the columns that are there (the first that fits):

    prompt_ids, chosen_ids, rejected_ids        token ids, taken as they are
    prompt, chosen, rejected                    text
    chosen, rejected                            whole dialogues as text; their common beginning is the prompt
    prompt, chosen, rejected                    lists of {role, content}
    prompt, chosen, rejected                    text, or a list, and whole lists of {role, content} that begin
                                                with it (UltraFeedback)
    chosen, rejected                            whole lists of {role, content} that begin with the prompt
    conversations, chosen, rejected             ShareGPT: lists of {from, value}
    messages, chosen, rejected                  messages to be answered (Axolotl)
    messages, rejected                          the last turn of messages, or conversations, is chosen
    instruction, input, chosen, rejected        Alpaca: instruction and input, a line each, are the prompt
    prompt, responses, scores                   several answers, which become pairs: see ranked.py
    prompt, response_0, response_1, ...         two answers and which is better: see comparisons.py

Sft:

    prompt_ids, completion_ids                  token ids, taken as they are
    input_ids                                   token ids; the first is the prompt
    prompt, completion                          text or message lists
    messages                                    the last assistant turn is the completion (all of them with
                                                data.train_on=assistant)
    text                                        all of it is the completion
    conversations                               ShareGPT: the last turn of the assistant is the completion
    instruction, input, output                  Alpaca

Single responses with a label (unpaired.py): as sft, with a column label; or pairs, whose two responses become
two rows.

Prompts to be answered:

    prompt_ids                                  token ids, taken as they are
    prompt                                      text, or a list of {role, content}
    messages                                    whose last is not the assistant's

Further columns, where R is chosen, rejected or completion: R_weights (a number a token, or spans
[[start, end, weight], ...] over the characters of the response), R_decisive (spans [[start, end], ...], or
true and false, one a token), R_chance (spans [[start, end, probability], ...]) and, beside token ids,
ids_vocabulary (a digest of the vocabulary they are of, which the tokenizer must have). Weights may leave out
the tokens that end the turn (EOS, or what the chat template writes behind the content): these weigh 1.
pair_weight (a number >= 0) says how much the row counts in the loss. Beside token ids, R_before
([[token of the response, [ids]], ...]) holds the ids of other turns that stand before a token and are only
read. With messages, `tools` and
`chat_template_kwargs` go to the chat template, and `system` belongs to the prompt; so does `history` with
Alpaca. Rows with images, videos or sound (parts of a content, or columns of these names) are refused. Other
columns are not read, and a null counts as an absent column.
"""

from dataclasses import replace
from typing import Any

from sparsepo_jax.data.annotations import Annotation, read_annotation
from sparsepo_jax.data.dialogues import (
    answers_from_messages,
    check_answers,
    check_response,
    prompt_from_messages,
    split_messages,
    split_off_prompt,
)
from sparsepo_jax.data.example import RESPONSES, Example, RowKind
from sparsepo_jax.data.messages import (
    Messages,
    list_in_text,
    read_messages,
    read_template_arguments,
    read_tools,
    refuse_images,
    refuse_several,
    refuse_system,
    refuse_unreadable,
    text_of,
    with_system,
)
from sparsepo_jax.data.rows import BadRow
from sparsepo_jax.data.templates import Render
from sparsepo_jax.data.texts import from_texts, refuse_prompt_elsewhere
from sparsepo_jax.data.turns import TrainOn, first_answer
from sparsepo_jax.data.values import (
    check_text,
    columns_of,
    elsewhere,
    elsewhere_or_listed,
    read_before,
    read_ids,
    read_pair_weight,
)
from sparsepo_jax.data.writer import Writer

DIALOGUES = ("prompt", "chosen", "rejected", "completion", "messages", "conversations")


def parse_row(
    row: dict[str, Any], kind: RowKind, render: Render, eos: str | None, train_on: TrainOn = "last"
) -> Example:
    """A row in its one form.

    Args:
        row: as it was read.
        kind: what it is read as.
        render: writes messages as text.
        eos: text of EOS. White space that the paper's template has put behind it is dropped, so that EOS is
            the end.
        train_on: which turns of messages are the response, see data.train_on.

    Raises:
        BadRow: says what is wrong.
    """
    (example,) = _parsed(row, kind, render, eos, train_on, apart=False)
    return example


def parse_apart(
    row: dict[str, Any], render: Render, eos: str | None, train_on: TrainOn = "last"
) -> list[Example]:
    """The responses of a pair of messages by themselves, each with the whole prompt that it has alone.

    Args:
        row: as it was read.
        render: writes messages as text.
        eos: text of EOS, see `parse_row`.
        train_on: which turns of messages are the response, see data.train_on.

    Returns:
        Two examples of one response; or one of two, since those of text and of token ids share their prompt.

    Raises:
        BadRow: says what is wrong.
    """
    return _parsed(row, "pairs", render, eos, train_on, apart=True)


def _parsed(
    row: dict[str, Any], kind: RowKind, render: Render, eos: str | None, train_on: TrainOn, *, apart: bool
) -> list[Example]:
    has = columns_of({name if value is not None else f"{name} (null)": 0 for name, value in row.items()})
    row = in_known_form(without_absent(row), kind)
    refuse_images(row, "the row")
    if kind == "prompts":
        return [_from_prompt(row, render, has)]
    answered = _from_answered(row, kind, render, eos, train_on, has, apart)
    weight = read_pair_weight(row)
    return [replace(example, pair_weight=weight) for example in answered]


def _from_answered(
    row: dict[str, Any],
    kind: RowKind,
    render: Render,
    eos: str | None,
    train_on: TrainOn,
    has: str,
    apart: bool,
) -> list[Example]:
    """A pair or an sft row, whose columns have their known names; `has` names those that it came with."""
    names = RESPONSES[kind]
    annotations = tuple(read_annotation(row, name) for name in names)
    if all(f"{name}_ids" in row for name in names):
        prompt = read_ids(row, "prompt_ids")
        responses = tuple(read_ids(row, f"{name}_ids") for name in names)
        before = tuple(
            read_before(row, f"{name}_before", len(ids)) for name, ids in zip(names, responses, strict=True)
        )
        vocabulary = row.get("ids_vocabulary")
        if vocabulary is not None:
            vocabulary = check_text(vocabulary, "ids_vocabulary")
        example = Example(
            prompt,
            responses,
            annotations,
            before=before,
            has_context_turns=any(before),
            ids_vocabulary=vocabulary,
        )
        return [example]
    if kind == "sft" and "completion" not in row:
        return [_from_one_column(row, annotations, render, eos, train_on, has)]
    missing = [name for name in names if name not in row]
    if kind == "pairs" and missing and "label" in row:
        raise BadRow(
            f"no {', '.join(missing)}: a response with a label, which objective.kind=kto, bco and "
            "apo_zero_unpaired train on; all others need pairs"
        )
    if kind == "sft" and not missing and "prompt" not in row:
        missing = ["prompt"]
    if missing:
        raise BadRow(f"no {', '.join(missing)}; the row has: {has}; {elsewhere_or_listed(row, missing)}")

    values = tuple(row[name] for name in names)
    if all(isinstance(value, str) for value in (*values, row.get("prompt", ""))):
        return [from_texts(row, names, annotations)]
    if any(isinstance(value, list | dict) for value in (*values, row.get("prompt"))):
        return _from_dialogues(row, names, annotations, render, eos, train_on, apart)
    types = ", ".join(f"{name} is {type(row[name]).__name__}" for name in ("prompt", *names) if name in row)
    raise BadRow(f"expected text or lists of messages: {types}")


def without_absent(row: dict[str, Any]) -> dict[str, Any]:
    """The row without nulls: Parquet, Arrow and CSV have one in every row that lacks a column of another.

    Args:
        row: as it was read.
    """
    return {name: value for name, value in row.items() if value is not None}


def in_known_form(row: dict[str, Any], kind: RowKind) -> dict[str, Any]:
    """The row with columns that the rest of this file knows.

    ShareGPT's and Alpaca's columns become prompt, completion and messages; lists of messages that came as
    text (a cell of a CSV file) become lists.

    Args:
        row: the row, without nulls.
        kind: what it is read as.

    Raises:
        BadRow: a dialogue holds something else than messages.
    """
    row = row | {name: list_in_text(row[name]) for name in DIALOGUES if name in row}
    names = ("prompt", *RESPONSES[kind])
    if any(f"{name}_ids" in row for name in names):
        return row
    for name in names if all(name in row for name in names) else DIALOGUES:  # those that are read
        refuse_unreadable(row.get(name), name)
    row = _in_our_columns(row, kind)
    if kind == "prompts" and isinstance(row.get("prompt"), list | dict):
        return row | {"prompt": with_system(row, read_messages(row["prompt"], "prompt"))}
    return row


def _in_our_columns(row: dict[str, Any], kind: RowKind) -> dict[str, Any]:
    """The row with a column prompt, or messages, in place of ShareGPT's and Alpaca's columns."""
    if "prompt" in row:
        return row
    if kind != "sft" and "messages" in row and _asks(row["messages"]):
        return row | {"prompt": row["messages"]}
    name = next((name for name in ("messages", "conversations") if name in row), None)
    lacks_chosen = kind == "pairs" and "rejected" in row and "chosen" not in row
    if lacks_chosen and name is not None and not (name == "conversations" and _asks(row[name])):
        return row | _chosen_last(row, name)
    if name == "conversations":
        dialogue = read_messages(row["conversations"], "conversations", "user")
        if kind == "prompts" and dialogue[-1]["role"] == "assistant":
            raise _answered("conversations")
        if kind == "pairs" and len(dialogue) > 1 and _is_answer(dialogue[-1], row.get("chosen")):
            dialogue.pop()
        holds_answer = kind == "sft" and "completion" not in row
        return row | {"messages" if holds_answer else "prompt": dialogue}
    if "instruction" in row and not (kind == "sft" and {"messages", "text", "input_ids"}.intersection(row)):
        completed = {"prompt": _alpaca_prompt(row)}
        if kind == "sft" and "completion" not in row and isinstance(row.get("output"), str):
            completed["completion"] = [{"role": "assistant", "content": row["output"]}]
        return row | completed
    return row


def _is_answer(turn: dict[str, Any], chosen: Any) -> bool:
    """Whether the last turn of a dialogue is the chosen answer, which stands in a column of its own, too."""
    if turn["role"] != "assistant" or not isinstance(chosen, str | dict | list) or not chosen:
        return False
    answer = read_messages(chosen, "chosen")
    return len(answer) == 1 and text_of(answer[0]).strip() == text_of(turn).strip()


def _chosen_last(row: dict[str, Any], name: str) -> dict[str, Any]:
    """The columns of a row whose messages end with the chosen answer, and whose other answer is rejected."""
    *asked, answer = read_messages(row[name], name)
    if not asked:
        raise BadRow(f"{name} hold one turn: expected a prompt before the chosen answer")
    if read_messages(row["rejected"], "rejected")[0]["role"] == "assistant":
        return {"prompt": asked, "chosen": [answer]}
    return {"chosen": [*asked, answer]}


def _asks(messages: Any) -> bool:
    """Whether these are messages to be answered: the last is not the assistant's."""
    turns = messages if isinstance(messages, list) else [messages]
    is_dialogue = bool(turns) and all(isinstance(turn, dict) for turn in turns)
    return is_dialogue and read_messages(messages, "messages")[-1]["role"] != "assistant"


def _alpaca_prompt(row: dict[str, Any]) -> Messages:
    question = [check_text(row[name], name) for name in ("instruction", "input") if name in row]
    turns = []
    for exchange in row.get("history") or []:
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise BadRow("history must be a list of [question, answer]")
        for role, text in zip(("user", "assistant"), exchange, strict=True):
            turns.append({"role": role, "content": check_text(text, "history")})
    content = "\n".join(text for text in question if text)
    return [*turns, {"role": "user", "content": content}]


def _from_prompt(row: dict[str, Any], render: Render, has: str) -> Example:
    if "prompt_ids" in row:
        return Example(read_ids(row, "prompt_ids"), (), ())
    if "prompt" not in row:
        if "messages" in row:
            raise _answered("messages")
        raise BadRow(f"no prompt; the row has: {has}; {elsewhere('prompt')}")
    if isinstance(row["prompt"], str):
        refuse_system(row)
        return Example(check_text(row["prompt"], "prompt"), (), ())
    write = _writer(row, render)
    return prompt_from_messages(read_messages(row["prompt"], "prompt"), write)


def _answered(name: str) -> BadRow:
    """Why a dialogue with its last answer is no prompt to be answered."""
    return BadRow(f"{name} end with a turn of the assistant: of a prompt to be answered leave that turn out")


def _writer(row: dict[str, Any], render: Render) -> Writer:
    """The template with what this row gives it."""
    arguments = read_template_arguments(row)
    tools = read_tools({"tools": arguments.pop("tools")} if "tools" in arguments else row)
    return Writer(render, tools, arguments)


def _from_dialogues(
    row: dict[str, Any],
    names: tuple[str, ...],
    annotations: tuple[Annotation, ...],
    render: Render,
    eos: str | None,
    train_on: TrainOn,
    apart: bool,
) -> list[Example]:
    """Prompt and responses of which at least one is a list of messages."""
    refuse_several({name: row[name] for name in names})
    turns = tuple(read_messages(row[name], name) for name in names)
    if "prompt" in row:
        prompt, responses = split_off_prompt(row["prompt"], turns)
    else:
        if all(dialogue[0]["role"] == "assistant" for dialogue in turns):
            refuse_prompt_elsewhere(row)
        prompt, responses = split_messages(turns)
    prompt = with_system(row, prompt)
    check_answers(prompt, responses, names)
    write, count = _writer(row, render), 1 if apart else len(names)
    return [
        answers_from_messages(
            prompt,
            responses[first : first + count],
            names[first : first + count],
            annotations[first : first + count],
            write,
            eos,
            train_on,
        )
        for first in range(0, len(names), count)
    ]


def _from_one_column(
    row: dict[str, Any],
    annotations: tuple[Annotation, ...],
    render: Render,
    eos: str | None,
    train_on: TrainOn,
    has: str,
) -> Example:
    """Sft rows of one column: input_ids, messages or text."""
    if "input_ids" in row:
        ids = read_ids(row, "input_ids")
        if len(ids) == 1:
            raise BadRow("input_ids has one token only: there is nothing to predict")
        return Example(ids[:1], (ids[1:],), annotations)
    if "messages" in row:
        messages = with_system(row, read_messages(row["messages"], "messages"))
        begin = first_answer(messages, train_on)
        prompt, answers, names = messages[:begin], (messages[begin:],), ("messages",)
        check_answers(prompt, answers, names)
        return answers_from_messages(prompt, answers, names, annotations, _writer(row, render), eos, train_on)
    if "text" in row:
        (annotation,) = annotations
        return Example(None, (check_response(row["text"], "text", annotation),), annotations)
    raise BadRow(
        f"no prompt and completion, messages, text or input_ids; the row has: {has}; "
        f"{elsewhere('prompt', 'completion')}"
    )
