"""What a row means: the shapes in which preference and sft data come, brought to one form.

Pairs, by the columns that are there (the first that fits):

    prompt_ids, chosen_ids, rejected_ids        token ids, taken as they are
    prompt, chosen, rejected                    text
    chosen, rejected                            whole dialogues as text; their common beginning is the prompt
    prompt, chosen, rejected                    lists of {role, content}
    chosen, rejected                            whole lists of {role, content}; the common messages are the prompt

Sft:

    prompt_ids, completion_ids                  token ids, taken as they are
    input_ids                                   token ids; the first is the prompt
    prompt, completion                          text or message lists
    messages                                    the last assistant turn is the completion
    text                                        all of it is the completion

Prompts to be answered:

    prompt_ids                                  token ids, taken as they are
    prompt                                      text, or a list of {role, content}

Further columns, where R is chosen, rejected or completion: R_weights (a number a token, or spans [[start, end, weight], ...] over the
characters of the response), R_decisive (spans [[start, end], ...]) and R_chance (spans [[start, end, probability], ...]). With messages,
`tools` goes to the chat template. Other columns are ignored, and a null is an absent column.
"""

import os.path
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.sources import BadRow, one_line

Kind = Literal["pairs", "sft", "prompts"]
Messages = list[dict[str, Any]]
Render = Callable[[Messages, list | None, bool], str]
"""(messages, tools, whether a generation prompt follows) -> text."""

LARGEST_ID, LARGEST_WEIGHT = 2**31 - 1, 3.4e38  # int32 and float32 hold them

RESPONSES: dict[str, tuple[str, ...]] = {"pairs": ("chosen", "rejected"), "sft": ("completion",), "prompts": ()}


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

    @property
    def is_text(self) -> bool:
        return isinstance(self.responses[0] if self.responses else self.prompt, str)


def make_render(tokenizer, template: Literal["none", "chat", "paper"], template_arguments: dict[str, Any]) -> Render:
    """How messages become text. "none" takes the tokenizer's chat template if it has one, else the paper's. UserError if "chat" has none.

    The paper's (SparsePO, Christopoulou et al. 2024, section 4.4) for [{user, "Hi"}, {assistant, "Hello"}], EOS being added later:

        prompt      <|user|>\\nHi\\n<|assistant|>\\n
        response                                    Hello
    """
    has_chat = tokenizer is not None and tokenizer.chat_template is not None
    if template == "chat" and not has_chat:
        raise UserError("data.template is chat, but the tokenizer has no chat template: take a tokenizer that has one, or data.template=paper")
    if template == "paper" or not has_chat:
        return _paper_text

    def chat_text(messages: Messages, tools: list | None, generate: bool) -> str:
        return tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=generate, **template_arguments
        )

    return chat_text


def _paper_text(messages: Messages, tools: list | None, generate: bool) -> str:
    for message in messages:
        if not isinstance(message.get("content"), str):
            kind = type(message.get("content")).__name__
            raise BadRow(f"the paper's template takes messages of text, but one of {message['role']!r} has {kind}: take a tokenizer with a chat template")
    turns = [f"<|{message['role']}|>\n{message['content']}" for message in messages]
    return "\n".join(turns + ["<|assistant|>\n"] if generate else turns)


def parse_row(row: dict[str, Any], kind: Kind, render: Render, eos: str | None) -> Example:
    """BadRow says what is wrong. `eos`: the EOS text, behind which a template's white space is dropped, so that EOS is the end."""
    row = {name: value for name, value in row.items() if value is not None}
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
        prompt, responses = (row["prompt"], values) if "prompt" in row else _split_texts(values)
        return Example(_text(prompt, "prompt"), tuple(map(_response, responses, names, annotations)), annotations)
    if any(isinstance(value, list) for value in (*values, row.get("prompt"))):
        turns = tuple(_messages(value, name) for value, name in zip(values, names))
        prompt, turns = (_messages(row["prompt"], "prompt", "user"), turns) if "prompt" in row else _split_messages(turns)
        return _templated(prompt, turns, names, annotations, row, render, eos)
    types = ", ".join(f"{name} is {type(row[name]).__name__}" for name in ("prompt", *names) if name in row)
    raise BadRow(f"expected text or lists of messages: {types}")


def _prompt(row, render) -> Example:
    if "prompt_ids" in row:
        return Example(_ids(row, "prompt_ids"), (), ())
    if "prompt" not in row:
        raise BadRow(f"no prompt; the row has: {', '.join(row) or 'nothing'}")
    if isinstance(row["prompt"], str):
        return Example(_text(row["prompt"], "prompt"), (), ())
    return Example(_text(_render(render, _messages(row["prompt"], "prompt"), _tools(row), True), "prompt"), (), (), templated=True)


def _one_column(row, annotations, render, eos) -> Example:
    """sft rows of one column: input_ids, messages or text."""
    if "input_ids" in row:
        ids = _ids(row, "input_ids")
        if len(ids) == 1:
            raise BadRow("input_ids has one token only: there is nothing to predict")
        return Example(ids[:1], (ids[1:],), annotations)
    if "messages" in row:
        messages = _messages(row["messages"], "messages")
        if messages[-1]["role"] != "assistant":
            raise BadRow(f"the last of messages must be of the assistant, not of {messages[-1]['role']!r}")
        return _templated(messages[:-1], (messages[-1:],), ("messages",), annotations, row, render, eos)
    if "text" in row:
        return Example(None, (_response(row["text"], "text", *annotations),), annotations)
    raise BadRow(f"no prompt and completion, messages, text or input_ids; the row has: {', '.join(row) or 'nothing'}")


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
    n = 0
    while all(n < len(dialogue) and dialogue[n] == dialogues[0][n] for dialogue in dialogues):
        n += 1
    if n == 0:
        raise BadRow("no prompt, and chosen and rejected have no first messages in common")
    return dialogues[0][:n], tuple(dialogue[n:] for dialogue in dialogues)


def _templated(prompt: Messages, responses, names, annotations, row, render: Render, eos: str | None) -> Example:
    """The prompt with its generation prompt, and what the template writes after it for each response, its end-of-turn text included."""
    tools = _tools(row)
    for turns, name in zip(responses, names):
        if not turns or not any(str(turn.get("content") or "").strip() or turn.get("tool_calls") for turn in turns):
            raise BadRow(f"{name} is empty")
        if turns[0]["role"] != "assistant":
            raise BadRow(f"{name} must begin with a message of the assistant, not of {turns[0]['role']!r}")
    if not prompt:
        raise BadRow("no message before the response")
    start = _render(render, prompt, tools, True)
    wholes = [_render(render, prompt + turns, tools, False) for turns in responses]
    texts = []
    for whole, name, annotation in zip(wholes, names, annotations):
        if not whole.startswith(start):
            raise BadRow(f"the chat template does not write prompt + {name} as a continuation of the prompt with its generation prompt")
        if eos and whole.rstrip().endswith(eos):
            whole = whole.rstrip()
        texts.append(_response(whole[len(start) :], name, annotation))
    return Example(_text(start, "prompt"), tuple(texts), annotations, templated=True)


def _tools(row: dict[str, Any]) -> list | None:
    tools = row.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise BadRow(f"tools must be a list, got {type(tools).__name__}")
    return tools


def _render(render: Render, messages: Messages, tools: list | None, generate: bool) -> str:
    try:
        return render(messages, tools, generate)
    except BadRow:
        raise
    except Exception as error:  # a template is a program that the tokenizer brings: it raises what it likes
        raise BadRow(f"the chat template refuses these messages ({one_line(error)})") from None


def _messages(value: Any, name: str, role: str = "assistant") -> Messages:
    """A list of messages; a text or a single message counts as a list of one."""
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list) or not messages:
        raise BadRow(f"{name} must be a list of messages, got {'an empty list' if messages == [] else type(messages).__name__}")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRow(f"{name}: every message needs a role and content, got {str(message)[:60]!r}")
        if not isinstance(message.get("content"), str | list) and "tool_calls" not in message:
            raise BadRow(f"{name}: a message of {message['role']!r} has no content")
    return [{key: v for key, v in message.items() if v is not None} for message in messages]


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
        past = next((span[:2] for span in spans or () if isinstance(span, list) and span[1] > len(value)), None)
        if past is not None:
            raise BadRow(f"the span {past} ends past the text of {name}, which has {len(value)} characters")
    return value


def _ids(row: dict[str, Any], name: str) -> list[int]:
    if name not in row:
        raise BadRow(f"no {name}; the row has: {', '.join(row)}")
    ids = row[name]
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise BadRow(f"{name} must be a list of whole numbers")
    outside = next((i for i in ids if not 0 <= i <= LARGEST_ID), None)
    if outside is not None:
        raise BadRow(f"{name}: {outside} is no token id (0 to {LARGEST_ID})")
    if not ids:
        raise BadRow(f"{name} is empty" + (": the first response token would have nothing before it" if name == "prompt_ids" else ""))
    return ids


def _annotation(row: dict[str, Any], name: str) -> Annotation:
    weights = row.get(f"{name}_weights")
    if weights is not None and not (_is_numbers(weights) or _is_spans(weights, 3)):
        raise BadRow(f"{name}_weights must be finite numbers, one a token, or spans [[start, end, weight], ...]")
    decisive, chance = row.get(f"{name}_decisive"), row.get(f"{name}_chance")
    if not (decisive is None or _is_spans(decisive, 2)) or not (chance is None or _is_spans(chance, 3)):
        raise BadRow(f"{name}_decisive must be spans [[start, end], ...], and {name}_chance [[start, end, probability], ...]")
    if chance is not None and not all(0 <= probability <= 1 for *_, probability in chance):
        raise BadRow(f"{name}_chance must be probabilities, 0 to 1")
    return Annotation(weights, decisive, chance)


def _is_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) in (int, float) and abs(v) <= LARGEST_WEIGHT for v in values)


def _is_spans(spans: Any, width: int) -> bool:
    return isinstance(spans, list) and all(_is_numbers(span) and len(span) == width and 0 <= span[0] < span[1] for span in spans)


def row_texts(row: dict[str, Any]) -> list[str]:
    """Every text of a row that tokenisation may meet, for training a tokenizer. BadRow if one is no Unicode."""
    texts = []
    for name in ("prompt", "chosen", "rejected", "completion", "messages", "text"):
        value = row.get(name)
        turns = value if isinstance(value, list) else [value]
        contents = [turn.get("content") if isinstance(turn, dict) else turn for turn in turns]
        texts += [_text(content, name) for content in contents if isinstance(content, str) and content]
    return texts
