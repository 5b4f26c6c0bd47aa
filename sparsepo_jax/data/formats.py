"""What a row means: the shapes in which preference and sft data come, brought to one form.

Pairs, by the columns that are there (the first that fits):

    prompt_ids, chosen_ids, rejected_ids        token ids, taken as they are
    prompt, chosen, rejected                    text
    chosen, rejected                            whole dialogues as text; their common beginning is the prompt
    prompt, chosen, rejected                    lists of {role, content}
    prompt, chosen, rejected                    text, or a list, and whole lists of {role, content} that begin with it (UltraFeedback)
    chosen, rejected                            whole lists of {role, content}; the common messages are the prompt
    conversations, chosen, rejected             ShareGPT: lists of {from, value}
    instruction, input, chosen, rejected        Alpaca: instruction and input, a line each, are a message of the user

Sft:

    prompt_ids, completion_ids                  token ids, taken as they are
    input_ids                                   token ids; the first is the prompt
    prompt, completion                          text or message lists
    messages                                    the last assistant turn is the completion
    text                                        all of it is the completion
    conversations                               ShareGPT: the last turn of the assistant is the completion
    instruction, input, output                  Alpaca

Prompts to be answered:

    prompt_ids                                  token ids, taken as they are
    prompt                                      text, or a list of {role, content}

Further columns, where R is chosen, rejected or completion: R_weights (a number a token, or spans [[start, end, weight], ...] over the
characters of the response), R_decisive (spans [[start, end], ...]) and R_chance (spans [[start, end, probability], ...]). Weights may lack the
tokens that end the turn (EOS, or what the chat template writes behind the content): these weigh 1. With messages, `tools` and
`chat_template_kwargs` go to the chat template; with ShareGPT and Alpaca, `system` and `history` belong to the prompt. Other columns are
ignored, and a null is an absent column.
"""

import json
import os.path
from dataclasses import dataclass, replace
from typing import Any, Literal

from sparsepo_jax.data.messages import (
    Messages,
    joined_parts,
    list_in_text,
    read_messages,
    read_template_arguments,
    read_tools,
    refuse_several,
    text_of,
)
from sparsepo_jax.data.rows import BadRow, one_line
from sparsepo_jax.data.templates import Render, settle_parts

Kind = Literal["pairs", "sft", "prompts"]

LARGEST_ID, LARGEST_WEIGHT = 2**31 - 1, 3.4e38  # int32 and float32 hold them

RESPONSES: dict[str, tuple[str, ...]] = {
    "pairs": ("chosen", "rejected"),
    "sft": ("completion",),
    "prompts": (),
}


@dataclass(frozen=True)
class Annotation:
    """What a row says of a response's tokens: given weights, decisive spans, spans of P(decisive | prefix)."""

    weights: list | None = None
    decisive: list | None = None
    chance: list | None = None


@dataclass(frozen=True)
class Example:
    """A row in its one form: text (str) or token ids (list of int). `prompt` None: the response's first token, or BOS, is the prompt. No responses: a
    prompt to be answered."""

    prompt: str | list[int] | None
    responses: tuple[str, ...] | tuple[list[int], ...]
    annotations: tuple[Annotation, ...]
    templated: bool = False
    """Made from messages: the template has written all that stands between prompt and response."""
    has_ends: bool = False
    """The template has written begin and end of text, or has meant to write none."""
    content_ends: tuple[int | None, ...] = ()
    """Characters of each response up to the end of its last content; what follows ends the turn. None: not to be told."""
    unseen: str = ""
    """The end of the generation prompt, where the template does not write it once the answer is there. It is not trained on."""
    key: str | None = None
    """What tells one prompt from another; None: the prompt itself does."""
    has_other_turns: bool = False
    """A response holds turns that are not the assistant's."""

    @property
    def is_text(self) -> bool:
        return isinstance(self.responses[0] if self.responses else self.prompt, str)


def parse_row(row: dict[str, Any], kind: Kind, render: Render, eos: str | None) -> Example:
    """A row in its one form.

    Args:
        row: as it was read.
        kind: what it is read as.
        render: writes messages as text.
        eos: the EOS text, behind which white space of the paper's template is dropped, so that EOS is the end.

    Raises:
        BadRow: says what is wrong.
    """
    row = in_known_form({name: value for name, value in row.items() if value is not None}, kind)
    if kind == "prompts":
        return _prompt(row, render)
    names = RESPONSES[kind]
    annotations = tuple(_annotation(row, name) for name in names)
    if all(f"{name}_ids" in row for name in names):
        prompt = _ids(row, "prompt_ids")
        return Example(prompt, tuple(_ids(row, f"{name}_ids") for name in names), annotations)
    if kind == "sft" and "completion" not in row:
        return _one_column(row, annotations, render, eos)
    missing = [name for name in names if name not in row]
    if missing or (kind == "sft" and "prompt" not in row):
        raise BadRow(f"no {', '.join(missing or ['prompt'])}; the row has: {', '.join(row) or 'nothing'}")

    values = tuple(row[name] for name in names)
    if all(isinstance(value, str) for value in values) and isinstance(row.get("prompt", ""), str):
        return _from_texts(row, values, names, annotations)
    if any(isinstance(value, list | dict) for value in (*values, row.get("prompt"))):
        refuse_several(dict(zip(names, values)))
        turns = tuple(read_messages(value, name) for value, name in zip(values, names))
        prompt, turns = _split_off_prompt(row["prompt"], turns) if "prompt" in row else _split_messages(turns)
        return _templated(prompt, turns, names, annotations, row, render, eos)
    types = ", ".join(f"{name} is {type(row[name]).__name__}" for name in ("prompt", *names) if name in row)
    raise BadRow(f"expected text or lists of messages: {types}")


def in_known_form(row: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """ShareGPT's and Alpaca's columns as prompt, completion and messages; lists of messages that are shown as text as lists."""
    row = row | {name: list_in_text(row[name]) for name in _DIALOGUES if row.get(name) is not None}
    if "prompt" in row or any(f"{name}_ids" in row for name in ("prompt", *RESPONSES[kind])):
        return row
    if "conversations" in row and "messages" not in row:
        dialogue = _system(row) + read_messages(row["conversations"], "conversations", "user")
        return row | {"messages" if kind == "sft" and "completion" not in row else "prompt": dialogue}
    if "instruction" in row and not (kind == "sft" and {"messages", "text", "input_ids"}.intersection(row)):
        answer = (
            {"completion": [{"role": "assistant", "content": row["output"]}]}
            if kind == "sft" and isinstance(row.get("output"), str)
            else {}
        )
        return answer | row | {"prompt": _alpaca_prompt(row)}
    return row


_DIALOGUES = ("prompt", "chosen", "rejected", "completion", "messages", "conversations")


def _alpaca_prompt(row: dict[str, Any]) -> Messages:
    question = [_text(row[name], name) for name in ("instruction", "input") if name in row]
    turns = []
    for exchange in row.get("history") or []:
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise BadRow("history must be a list of [question, answer]")
        turns += [
            {"role": role, "content": _text(text, "history")}
            for role, text in zip(("user", "assistant"), exchange)
        ]
    return [*_system(row), *turns, {"role": "user", "content": "\n".join(text for text in question if text)}]


def _system(row: dict[str, Any]) -> Messages:
    return [{"role": "system", "content": _text(row["system"], "system")}] if row.get("system") else []


def _prompt(row: dict[str, Any], render: Render) -> Example:
    if "prompt_ids" in row:
        return Example(_ids(row, "prompt_ids"), (), ())
    if "prompt" not in row:
        raise BadRow(f"no prompt; the row has: {', '.join(row) or 'nothing'}")
    if isinstance(row["prompt"], str):
        return Example(_text(row["prompt"], "prompt"), (), ())
    tools, arguments = read_tools(row), read_template_arguments(row)
    (messages,) = settle_parts(render, [read_messages(row["prompt"], "prompt")], tools, True, arguments)
    text = _text(_render(render, messages, tools, True, arguments), "prompt")
    return Example(text, (), (), templated=True, has_ends=render.writes_ends, key=_key(messages, tools))


def _from_texts(
    row: dict[str, Any], values: tuple[str, ...], names: tuple[str, ...], annotations: tuple[Annotation, ...]
) -> Example:
    if "prompt" not in row and (
        question := next(
            (name for name in ("question", "query", "input") if isinstance(row.get(name), str)), None
        )
    ):
        raise BadRow(
            f"no prompt, but a column {question}: if that is the prompt, set columns: {{prompt: {question}}} beside the path of the data"
        )
    prompt, responses = (row["prompt"], values) if "prompt" in row else _split_texts(values)
    texts = tuple(map(_response, responses, names, annotations))
    return Example(
        _text(prompt, "prompt"),
        texts,
        annotations,
        has_other_turns=any("\n\nHuman:" in text for text in texts),
    )


def _one_column(row, annotations, render, eos) -> Example:
    """sft rows of one column: input_ids, messages or text."""
    if "input_ids" in row:
        ids = _ids(row, "input_ids")
        if len(ids) == 1:
            raise BadRow("input_ids has one token only: there is nothing to predict")
        return Example(ids[:1], (ids[1:],), annotations)
    if "messages" in row:
        messages = read_messages(row["messages"], "messages")
        if messages[-1]["role"] != "assistant":
            raise BadRow(f"the last of messages must be of the assistant, not of {messages[-1]['role']!r}")
        return _templated(messages[:-1], (messages[-1:],), ("messages",), annotations, row, render, eos)
    if "text" in row:
        text = _response(row["text"], "text", *annotations)
        return Example(None, (text,), annotations)
    raise BadRow(
        f"no prompt and completion, messages, text or input_ids; the row has: {', '.join(row) or 'nothing'}"
    )


def _split_texts(dialogues: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The common beginning and the rests, cut where a response may begin: after the last "\\n\\nAssistant:", else before the last space.

    chosen      \\n\\nHuman: Hi\\n\\nAssistant: Hello there         chosen      Is it good? Yes it is
    rejected    \\n\\nHuman: Hi\\n\\nAssistant: Hell no             rejected    Is it good? Yellow
    prompt      \\n\\nHuman: Hi\\n\\nAssistant:                     prompt      Is it good?
    responses                           " Hello there"          responses               " Yes it is"
                                        " Hell no"                                      " Yellow"
    """
    common = os.path.commonprefix(dialogues)
    turn = "\n\nAssistant:"
    if turn in common:
        end = common.rindex(turn) + len(turn)
    else:
        end = max((i for i, character in enumerate(common) if character.isspace()), default=0)
    if not common[:end].strip():
        raise BadRow("no prompt, and chosen and rejected have no common beginning")
    return common[:end], tuple(dialogue[end:] for dialogue in dialogues)


def _split_messages(dialogues: tuple[Messages, ...]) -> tuple[Messages, tuple[Messages, ...]]:
    """The common messages, and the rests."""
    n = _common_messages(dialogues)
    if n == 0:
        raise BadRow("no prompt, and chosen and rejected have no first messages in common")
    if all(n == len(dialogue) for dialogue in dialogues):
        raise BadRow("chosen and rejected are the same")
    return dialogues[0][:n], tuple(dialogue[n:] for dialogue in dialogues)


def _common_messages(dialogues: tuple[Messages, ...]) -> int:
    n = 0
    while all(n < len(dialogue) and dialogue[n] == dialogues[0][n] for dialogue in dialogues):
        n += 1
    return n


def _split_off_prompt(value: Any, dialogues: tuple[Messages, ...]) -> tuple[Messages, tuple[Messages, ...]]:
    """(prompt, what follows it) where the responses may be whole dialogues, which hold the prompt once more.

    prompt      Hi                                       or [{user, Hi}]
    chosen      [{user, Hi}, {assistant, Hello}]         is [{assistant, Hello}]
    rejected    [{user, Hi}, {assistant, What}]          is [{assistant, What}]
    """
    prompt = read_messages(value, "prompt", "user")
    role = next((dialogue[0]["role"] for dialogue in dialogues if dialogue[0]["role"] != "assistant"), None)
    if role is None:
        return prompt, dialogues
    common = dialogues[0][: _common_messages(dialogues)]
    while common and common[-1]["role"] == "assistant":  # the answer begins with it
        common.pop()
    if not _holds(common, prompt):
        raise BadRow(
            f"a response begins with a message of {role!r}: expected messages of the assistant, or whole dialogues that begin with the prompt"
        )
    return common, tuple(dialogue[len(common) :] for dialogue in dialogues)


def _holds(dialogue: Messages, part: Messages) -> bool:
    """Whether the texts of `part` stand in the dialogue, one after the other."""
    texts, wanted = ([text_of(message).strip() for message in messages] for messages in (dialogue, part))
    return any(texts[n : n + len(wanted)] == wanted for n in range(len(texts)))


def _templated(
    prompt: Messages, responses, names, annotations, row, render: Render, eos: str | None
) -> Example:
    """The prompt with its generation prompt, and what the template writes after it for each response, the end of the turn included."""
    for turns, name in zip(responses, names):
        _check_turns(turns, name)
    if not prompt:
        raise BadRow("no message before the response")
    tools, arguments = read_tools(row), read_template_arguments(row)
    dialogues = [prompt + turns for turns in responses]
    settled = settle_parts(render, dialogues, tools, False, arguments)
    wholes = [_render(render, dialogue, tools, False, arguments) for dialogue in settled]
    start = _render(render, settled[0][: len(prompt)], tools, True, arguments)
    begun = os.path.commonprefix([start, *wholes])
    if text_of(prompt[-1]).strip() in start[len(begun) :] and begun != start:
        raise BadRow(
            f"the chat template does not write prompt + {' or '.join(names)} as a continuation of the prompt"
        )
    texts, shifted, ends = [], [], []
    for whole, dialogue, name, annotation in zip(wholes, dialogues, names, annotations):
        if not render.writes_ends and eos and whole.rstrip().endswith(eos):
            whole = whole.rstrip()
        text = whole[len(begun) :]
        shifted.append(_on_content(annotation, text, dialogue[len(prompt) :], name))
        texts.append(_response(text, name, shifted[-1]))
        ends.append(_content_end(text, dialogue[-1]))
    return Example(
        _text(begun, "prompt"),
        tuple(texts),
        tuple(shifted),
        templated=True,
        has_ends=render.writes_ends,
        content_ends=tuple(ends),
        unseen=start[len(begun) :],
        key=_key(prompt, tools),
        has_other_turns=any(turn["role"] != "assistant" for turns in responses for turn in turns),
    )


def _check_turns(turns: Messages, name: str) -> None:
    if not turns or not any(text_of(turn).strip() or turn.get("tool_calls") for turn in turns):
        raise BadRow(f"{name} is empty")
    if turns[0]["role"] != "assistant":
        raise BadRow(f"{name} must begin with a message of the assistant, not of {turns[0]['role']!r}")


def _on_content(annotation: Annotation, text: str, turns: Messages, name: str) -> Annotation:
    """The annotation with its spans, which count the content's characters, moved to where the template has put the content."""
    spans = {
        field: values
        for field in ("weights", "decisive", "chance")
        if (values := getattr(annotation, field)) and isinstance(values[0], list)
    }
    content = text_of(turns[0])
    if not spans or text.startswith(content):
        return annotation
    at = text.find(content)
    if at < 0:
        raise BadRow(
            f"the chat template alters the text of {name}: its spans cannot be placed; leave white space at its ends out of it"
        )
    return replace(
        annotation,
        **{
            field: [[first + at, last + at, *rest] for first, last, *rest in values]
            for field, values in spans.items()
        },
    )


def _content_end(text: str, message: dict[str, Any]) -> int | None:
    content = text_of(message).rstrip()
    at = text.rfind(content) if content else -1
    return None if at < 0 else at + len(content)


def _key(prompt: Messages, tools: list | None) -> str:
    """By the messages, not by the text: a template may write the date, and the same prompt stays the same prompt."""
    return json.dumps([joined_parts(prompt), tools], default=str)


def _render(
    render: Render, messages: Messages, tools: list | None, generate: bool, arguments: dict[str, Any]
) -> str:
    try:
        return render(messages, tools, generate, arguments)
    except BadRow:
        raise
    except Exception as error:  # a template is a program that the tokenizer brings: it raises what it likes
        raise BadRow(f"the chat template refuses these messages ({one_line(error)})") from None


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{name} must be text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(f"{name} is no valid Unicode (it holds half of a surrogate pair)") from None
    return value


def _response(value: Any, name: str, annotation: Annotation) -> str:
    if not _text(value, name).strip():
        raise BadRow(f"{name} is empty")
    for spans in (annotation.weights, annotation.decisive, annotation.chance):
        past = next(
            (span[:2] for span in spans or () if isinstance(span, list) and span[1] > len(value)), None
        )
        if past is not None:
            raise BadRow(f"the span {past} ends past the text of {name}, which has {len(value)} characters")
    return value


def _ids(row: dict[str, Any], name: str) -> list[int]:
    if name not in row:
        raise BadRow(f"no {name}; the row has: {', '.join(row)}")
    ids = _list(row[name])
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise BadRow(f"{name} must be a list of whole numbers")
    outside = next((i for i in ids if not 0 <= i <= LARGEST_ID), None)
    if outside is not None:
        raise BadRow(f"{name}: {outside} is no token id (0 to {LARGEST_ID})")
    if not ids:
        raise BadRow(
            f"{name} is empty"
            + (": the first response token would have nothing before it" if name == "prompt_ids" else "")
        )
    return ids


def _annotation(row: dict[str, Any], name: str) -> Annotation:
    weights, decisive, chance = (
        _list(row.get(f"{name}_{what}")) for what in ("weights", "decisive", "chance")
    )
    if weights is not None and not (_is_numbers(weights) or _is_spans(weights, 3)):
        raise BadRow(
            f"{name}_weights must be finite numbers, one a token, or spans [[start, end, weight], ...]"
        )
    if not (decisive is None or _is_spans(decisive, 2)) or not (chance is None or _is_spans(chance, 3)):
        raise BadRow(
            f"{name}_decisive must be spans [[start, end], ...], and {name}_chance [[start, end, probability], ...]"
        )
    if chance is not None and not all(0 <= probability <= 1 for *_, probability in chance):
        raise BadRow(f"{name}_chance must be probabilities, 0 to 1")
    return Annotation(weights, decisive, chance)


def _list(value: Any) -> Any:
    """The list that a text shows (a cell of a CSV file); anything else as it is."""
    try:
        return json.loads(value) if isinstance(value, str) and value.startswith("[") else value
    except (ValueError, RecursionError):
        return value


def _is_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(v) in (int, float) and abs(v) <= LARGEST_WEIGHT for v in values
    )


def _is_spans(spans: Any, width: int) -> bool:
    return isinstance(spans, list) and all(
        _is_numbers(span) and len(span) == width and 0 <= span[0] < span[1] for span in spans
    )


def row_texts(row: dict[str, Any]) -> list[str]:
    """Every text of a row that tokenisation may meet, for training a tokenizer. BadRow if one is no Unicode."""
    texts = []
    for name in (*_DIALOGUES, "text", "system", "instruction", "input", "output"):
        value = list_in_text(row.get(name))
        for turn in value if isinstance(value, list) else [value]:
            content = turn.get("content", turn.get("value")) if isinstance(turn, dict) else turn
            parts = (
                [part.get("text") for part in content if isinstance(part, dict)]
                if isinstance(content, list)
                else [content]
            )
            texts += [_text(part, name) for part in parts if isinstance(part, str) and part]
    return texts
