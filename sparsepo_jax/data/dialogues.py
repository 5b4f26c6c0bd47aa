"""Rows that are dialogues: split into prompt and responses, and written as text by the chat template."""

import json
from typing import Any

from sparsepo_jax.data.annotations import Annotation, refuse_past_end, shifted_to
from sparsepo_jax.data.example import Example
from sparsepo_jax.data.messages import Messages, joined_parts, read_messages, text_of
from sparsepo_jax.data.rows import BadRow
from sparsepo_jax.data.turns import (
    Spans,
    TrainOn,
    Turns,
    assistant_spans,
    first_counted,
    marked_spans,
    refuse_left_out,
    up_to_marks,
)
from sparsepo_jax.data.values import check_text, common_prefix, elsewhere
from sparsepo_jax.data.writer import Writer

# Keys of a message that published chat templates write. Others are notes of a data set.
_SAID = {
    *("role", "content", "name", "recipient", "channel", "metadata"),
    *("reasoning", "reasoning_content", "thinking", "thoughts", "prefix"),
    *("tool_calls", "tool_call_id", "tool_plan", "tool_responses", "tool_results"),
    *("tools", "function", "functions", "function_call", "function_calls", "documents", "citations"),
    *("image", "images", "audio", "audios", "video", "videos"),
}


def split_messages(dialogues: tuple[Messages, ...]) -> tuple[Messages, tuple[Messages, ...]]:
    """Splits whole dialogues into the messages that they begin with in common, and the rest of each.

        chosen      user: Hi, assistant: Hello          prompt      user: Hi
        rejected    user: Hi, assistant: What           responses   assistant: Hello / assistant: What

    Args:
        dialogues: one for each response.

    Returns:
        (prompt, responses)

    Raises:
        BadRow: they have no first message in common, or are all the same.
    """
    n = _count_common(dialogues)
    if n == 0:
        raise BadRow(
            f"no prompt, and chosen and rejected have no first messages in common; {elsewhere('prompt')}"
        )
    if all(n == len(dialogue) for dialogue in dialogues):
        raise BadRow("chosen and rejected are the same")
    # Where a tool answers the same call differently, the call is part of the responses.
    answers = [k for k in range(1, n + 1) if all(_is_answer(dialogue, k) for dialogue in dialogues)]
    n = max(answers, default=n)
    return dialogues[0][:n], tuple(dialogue[n:] for dialogue in dialogues)


def split_off_prompt(value: Any, dialogues: tuple[Messages, ...]) -> tuple[Messages, tuple[Messages, ...]]:
    """Takes the prompt off responses that may be whole dialogues, which begin with the prompt once more.

        prompt      Hi                                       or [{user, Hi}]
        chosen      [{user, Hi}, {assistant, Hello}]         becomes [{assistant, Hello}]
        rejected    [{user, Hi}, {assistant, What}]          becomes [{assistant, What}]

    Args:
        value: of the column prompt: text, a message or a list of messages.
        dialogues: one for each response.

    Returns:
        (prompt, responses). Where the responses are whole dialogues, the prompt is all that they have in
        common before the answer: a system message, for example, that the column prompt leaves out.

    Raises:
        BadRow: a response is neither an answer nor a dialogue that holds the prompt.
    """
    prompt = read_messages(value, "prompt", "user")
    first_roles = (dialogue[0]["role"] for dialogue in dialogues)
    other_role = next((role for role in first_roles if role != "assistant"), None)
    if other_role is None:
        return prompt, dialogues
    common = dialogues[0][: _count_common(dialogues)]
    while common and common[-1]["role"] == "assistant":  # both answers begin with it
        common.pop()
    if not _holds(common, prompt):
        raise BadRow(
            f"a response begins with a message of {other_role!r}: expected messages of the assistant, "
            "or whole dialogues that begin with the prompt (if they hold another one, columns: "
            "{unread: prompt} beside the path of the data leaves this one out)"
        )
    return common, tuple(dialogue[len(common) :] for dialogue in dialogues)


def _count_common(dialogues: tuple[Messages, ...]) -> int:
    """How many messages all dialogues begin with."""
    n = 0
    while all(n < len(dialogue) and _said(dialogue[n]) == _said(dialogues[0][n]) for dialogue in dialogues):
        n += 1
    return n


def _said(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what data sets note of it: times, numbers of tokens, ids."""
    return {key: value for key, value in message.items() if key in _SAID}


def _is_answer(dialogue: Messages, n: int) -> bool:
    """Whether message n is there, and the assistant's."""
    return n < len(dialogue) and dialogue[n]["role"] == "assistant"


def _holds(dialogue: Messages, part: Messages) -> bool:
    """Whether the texts of `part` stand in the dialogue, one directly after the other."""
    texts = [text_of(message).strip() for message in dialogue]
    wanted = [text_of(message).strip() for message in part]
    return any(texts[n : n + len(wanted)] == wanted for n in range(len(texts)))


def prompt_from_messages(messages: Messages, write: Writer) -> Example:
    """A prompt to be answered, with the generation prompt behind it.

    Args:
        messages: that are to be answered.
        write: the chat template, with what the row gives it.

    Raises:
        BadRow: the template refuses them.
    """
    (settled,) = write.settled([messages], generate=True)
    text = check_text(write(settled, generate=True), "prompt")
    key = _prompt_key(messages, write.tools)
    answered = messages[-1]["role"] == "assistant"
    return Example(
        text, (), (), templated=True, has_ends=write.writes_ends, key=key, prompt_is_answered=answered
    )


def check_answers(prompt: Messages, responses: tuple[Messages, ...], names: tuple[str, ...]) -> None:
    """Checks that there is a prompt and that every response is an answer to it.

    Args:
        prompt: messages before the answer.
        responses: messages of each answer.
        names: of the responses, for error messages.

    Raises:
        BadRow: a response is empty or does not begin with the assistant, or there is no prompt.
    """
    for turns, name in zip(responses, names, strict=True):
        if not any(text_of(turn).strip() or turn.get("tool_calls") for turn in turns):
            raise BadRow(f"{name} is empty")
        if turns[0]["role"] != "assistant":
            raise BadRow(f"{name} must begin with a message of the assistant, not of {turns[0]['role']!r}")
    if not prompt:
        raise BadRow("no message before the response")


def answers_from_messages(
    prompt: Messages,
    responses: tuple[Messages, ...],
    names: tuple[str, ...],
    annotations: tuple[Annotation, ...],
    write: Writer,
    eos: str | None,
    train_on: TrainOn,
) -> Example:
    """The prompt with its generation prompt, and what the template writes behind it for each response.

        ChatML      prompt      <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n
                    response                                                        Hello<|im_end|>\\n

    Args:
        prompt: messages before the answer; with the responses, as `check_answers` has passed them.
        responses: messages of each answer, the assistant's first.
        names: of the responses, for error messages.
        annotations: of the responses; spans count the characters of the content of the first message that is
            trained on.
        write: the chat template, with what the row gives it.
        eos: text of EOS. White space that the paper's template has put behind it is dropped, so that EOS is
            the end.
        train_on: see data.train_on.

    Raises:
        BadRow: the template refuses the messages, or does not write the answer as a continuation of the
            prompt; or the assistant's part of several turns cannot be told.
    """
    dialogues = write.settled([prompt + turns for turns in responses], generate=False)
    written = [write(dialogue, generate=False) for dialogue in dialogues]
    asked = write(dialogues[0][: len(prompt)], generate=True)
    begun = common_prefix(asked, *written)
    unseen = asked[len(begun) :]
    _refuse_rewritten(prompt, asked, begun, written, names)
    marks: list[Spans] | None = None
    if train_on == "assistant" and write.has_marks:
        marks = [write.marked(dialogue) for dialogue in dialogues]
        begun = up_to_marks(begun, marks, write(dialogues[0][: len(prompt)], generate=False))
        unseen = unseen and asked[len(begun) :]
    texts, shifted, content_ends, parts = [], [], [], []
    for n, (full_text, dialogue, name) in enumerate(zip(written, dialogues, names, strict=True)):
        if not write.writes_ends and eos and full_text.rstrip().endswith(eos):
            full_text = full_text.rstrip()
        text = full_text[len(begun) :]
        turns = Turns(dialogue, len(prompt), full_text, len(begun), name)
        refuse_left_out(turns, train_on)
        spans = assistant_spans(write, turns, train_on) if marks is None else marked_spans(turns, marks[n])
        if not text.strip():
            raise BadRow(f"the chat template writes nothing of {name}{_of_calls(responses[n])}")
        content = text_of(dialogue[first_counted(turns, train_on)])
        shifted.append(shifted_to(annotations[n], text, content, name, spans[0] if spans else None))
        texts.append(check_response(text, name, shifted[-1]))
        ends_here = dialogue[-1]["role"] == "assistant"
        content_ends.append(_content_end(text, dialogue[-1]) if ends_here else None)
        parts.append(spans)
    return Example(
        check_text(begun, "prompt"),
        tuple(texts),
        tuple(shifted),
        templated=True,
        has_ends=write.writes_ends,
        content_ends=tuple(content_ends),
        unseen=unseen,
        key=_prompt_key(prompt, write.tools),
        spans=tuple(parts),
        has_context_turns=any(turn["role"] != "assistant" for turns in responses for turn in turns),
        prompt_is_answered=prompt[-1]["role"] == "assistant",
        quotes_arguments=any(map(_quotes_arguments, dialogues, written)),
        drops_tools=any(_drops_tools(write.tools, *each) for each in zip(dialogues, written, strict=True)),
        drops_thoughts=any(map(_drops_thoughts, responses, written)),
    )


def _refuse_rewritten(
    prompt: Messages, asked: str, begun: str, written: list[str], names: tuple[str, ...]
) -> None:
    """BadRow where a template writes the prompt anew once an answer follows.

    Args:
        prompt: the messages.
        asked: what the template writes for them, with the generation prompt.
        begun: what this and all answered dialogues begin with.
        written: the answered dialogues.
        names: of the answers.
    """
    asks = text_of(prompt[-1]).strip()
    is_asked = any(form in begun for form in (asks, *_in_json(asks)))
    is_answered = not is_asked and all(asks in text[len(begun) :] for text in written)
    if not asks or not (is_answered or asks in asked[len(begun) :]):
        return
    system = text_of(prompt[0]).strip() if prompt[0]["role"] in ("system", "developer") else ""
    if system in asked and not any(system in text for text in written):
        cause = (
            "it leaves out the system prompt once an answer follows (Mistral's of 2024 do): begin the first "
            "message of the user with it"
        )
    else:
        cause = (
            "it writes the messages before an answer differently once that follows: leave out of them what "
            "it drops (reasoning of earlier turns, say)"
        )
    raise BadRow(
        f"the chat template does not write prompt + {' or '.join(names)} as a continuation of the prompt; "
        f"{cause}, or take another template (data.template_arguments.chat_template)"
    )


def _in_json(text: str) -> tuple[str, str]:
    """As templates write texts that quote them."""
    return json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]


def _of_calls(turns: Messages) -> str:
    """What to say where a template has dropped an answer that calls tools."""
    if not any(turn.get("tool_calls") for turn in turns):
        return ""
    return ": it knows no calls of tools; take a tokenizer whose template does"


def _functions(entries: list | None) -> list[dict[str, Any]]:
    """What calls, or schemas, say of their functions; they may be these functions themselves."""
    functions = [entry.get("function", entry) for entry in entries or [] if isinstance(entry, dict)]
    return [function for function in functions if isinstance(function, dict)]


def _calls(dialogue: Messages) -> list[dict[str, Any]]:
    return [function for message in dialogue for function in _functions(message.get("tool_calls"))]


def _drops_tools(tools: list | None, dialogue: Messages, text: str) -> bool:
    """Whether a template leaves out all schemas of tools that it is given, or a call."""
    schemas, calls = (
        [function["name"] for function in functions if isinstance(function.get("name"), str)]
        for functions in (_functions(tools), _calls(dialogue))
    )
    has_no_schema = bool(schemas) and not any(name in text for name in schemas)
    return has_no_schema or any(name not in text for name in calls)


def _quotes_arguments(dialogue: Messages, text: str) -> bool:
    """Whether what a template has written holds the arguments of a call as a JSON string."""
    arguments = [function.get("arguments") for function in _calls(dialogue)]
    return any(json.dumps(each, ensure_ascii=False) in text for each in arguments if isinstance(each, str))


def _content_end(text: str, message: dict[str, Any]) -> int | None:
    """Where the content of a message ends in what the template has written; None if it was altered."""
    content = text_of(message).rstrip()
    start = text.rfind(content) if content else -1
    return None if start < 0 else start + len(content)


def _drops_thoughts(turns: Messages, text: str) -> bool:
    """Whether the template leaves out what the last turn of an answer holds beside its content."""
    thoughts = [turns[-1].get(key) for key in ("reasoning_content", "reasoning", "thinking")]
    return any(isinstance(thought, str) and thought.strip() not in text for thought in thoughts)


def _prompt_key(prompt: Messages, tools: list | None) -> str:
    """By the messages, not by the text: a template that writes the date would change it every day."""
    return json.dumps([[_said(message) for message in joined_parts(prompt)], tools], default=str)


def check_response(value: Any, name: str, annotation: Annotation) -> str:
    """The text of a response, if it is not empty and holds all spans of its annotation.

    Args:
        value: what the row holds, or what a template has written.
        name: of the response, for error messages.
        annotation: of the response; spans count the characters of the text.

    Raises:
        BadRow: it is no text, holds white space alone, or ends before a span does.
    """
    if not check_text(value, name).strip():
        raise BadRow(f"{name} is empty")
    refuse_past_end(annotation, value, name)
    return value
