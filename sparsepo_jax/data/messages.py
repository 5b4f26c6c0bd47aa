"""Dialogues as data sets hold them, brought to lists of {role, content}; tools and arguments for a template.

role, content       taken as they are; nulls are dropped (Parquet and Arrow add one for each key that
                    another dict of the same column has)
from, value         ShareGPT: observation becomes tool, and function_call, whose value is {name, arguments}
                    as JSON or a list of such, a call of the assistant
text                that shows such a list (a cell of a CSV file): read as that list

Other names of a speaker, in any case of letters, become the usual ones: human and prompter user; gpt, model,
bot and so on assistant.
"""

import ast
import contextlib
import json
import re
from typing import Any

from sparsepo_jax.data.rows import BadRow, one_line
from sparsepo_jax.data.values import check_text

Messages = list[dict[str, Any]]
# Columns of a row, and fields of a message, that hold what is no text.
_NO_TEXT = ("image", "images", "video", "videos", "audio", "audios")

# The beginning of messages as text, and the keys by one of which each is known.
_OPENS, _SPEAKER = re.compile(r"\s*(\[\s*)?\{"), re.compile(r"""['"](role|from)['"]\s*:""")
_KEYS = ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"})

# Who a speaker is, in small letters.
_PEOPLE = dict.fromkeys(("user", "human", "prompter"), "user")
_PEOPLE |= dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "ai", "bot"), "assistant")
_PEOPLE |= {"system": "system"}
_SHAREGPT = {"observation": "tool", "function_response": "tool"}
_OTHER_SPEAKERS = ("developer", "tool", "function", "function_call")


def without_nulls(value: Any) -> Any:
    """The value without keys that are null, at any depth; a null in a list stays, as in TRL.

        {"name": None, "parts": [{"a": None}, None]}    becomes    {"parts": [{}, None]}

    Args:
        value: what JSON can hold.
    """
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value


def refuse_images(holder: dict[str, Any], name: str) -> None:
    """Checks that a row or a message brings no images, videos or sound; empty columns do not count.

    Args:
        holder: the row or message.
        name: what it is, for error messages.

    Raises:
        BadRow: it does; the message says what to do.
    """
    for column in _NO_TEXT:
        if holder.get(column):
            raise BadRow(
                f"{name} has a column {column!r}, and only text is trained on: "
                "where the text is enough, drop that column"
            )


def list_in_text(value: Any) -> Any:
    """The messages, or the one, that a text shows, as JSON or as Python prints it; any other value as it is.

    Args:
        value: of a column that may hold a dialogue.
    """
    if not _may_show_messages(value):
        return value
    shown = _read_shown(value)
    turns = shown if isinstance(shown, list) else [shown]
    is_dialogue = all(isinstance(turn, dict) and any(map(turn.keys().__ge__, _KEYS)) for turn in turns)
    # An object alone may as well be an answer in JSON, of a key that is called `from` or `role`.
    is_known = is_dialogue and (isinstance(shown, list) or _is_speaker(shown.get("role", shown.get("from"))))
    return shown if is_known else value


def _is_speaker(name: Any) -> bool:
    return isinstance(name, str) and name.lower() in (*_PEOPLE, *_SHAREGPT, *_OTHER_SPEAKERS)


def _may_show_messages(value: Any) -> bool:
    return isinstance(value, str) and bool(_OPENS.match(value)) and bool(_SPEAKER.search(value))


def _read_shown(text: str) -> Any:
    """What a text shows as JSON, or as Python prints it; None if it is neither."""
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return read(text.strip())
    return None


def refuse_unreadable(value: Any, name: str) -> None:
    """Checks that a text does not show a list of messages that `list_in_text` could not read.

    Args:
        value: what the column holds.
        name: of the column, for the error message.

    Raises:
        BadRow: it does. Pandas writes the lists of a Parquet file to csv like that, without commas.
    """
    is_list = isinstance(value, str) and value.lstrip()[:1] == "[" and value.rstrip()[-1:] == "]"
    if is_list and _may_show_messages(value) and _read_shown(value) is None:
        raise BadRow(
            f"{name} is a text that shows messages and is neither JSON nor a list of Python's (pandas leaves "
            "out commas when it writes lists to csv): write the data as .jsonl or .parquet"
        )


def read_messages(value: Any, name: str, role: str = "assistant") -> Messages:
    """The messages in a column; a text or a single message counts as a list of one.

    Args:
        value: what the column holds.
        name: of the column, for error messages.
        role: who speaks where the value is plain text.

    Returns:
        {role, content} of each, never empty.

    Raises:
        BadRow: it is something else, or a content has parts that are no text.
    """
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    messages = _turns_of(value) if isinstance(value, dict) else value
    if not isinstance(messages, list) or not messages:
        kind = "an empty list" if messages == [] else type(messages).__name__
        raise BadRow(f"{name} must be a list of messages, got {kind}")
    return [_read_message(message, name) for message in messages]


def _turns_of(value: dict[str, Any]) -> list[dict[str, Any]]:
    """One message as a list, or the messages of lists side by side, as `datasets` has a Sequence of them.

    {role: [user, assistant], content: [Hi, Hello]}    becomes    [{user, Hi}, {assistant, Hello}]
    """
    columns = {key: entries for key, entries in value.items() if isinstance(entries, list)}
    lengths = {len(entries) for entries in columns.values()}
    if not ({"role", "from"} & columns.keys()) or len(lengths) != 1:
        return [value]
    return [dict(zip(columns, turn, strict=True)) for turn in zip(*columns.values(), strict=True)]


def refuse_several(values: dict[str, Any]) -> None:
    """Checks that columns which hold one response each do not hold a list of texts.

    Args:
        values: of those columns, by name.

    Raises:
        BadRow: one does; the message has the line of Python that makes a row of each text.
    """
    several = [
        name
        for name, value in values.items()
        if isinstance(value, list) and value and all(isinstance(text, str) for text in value)
    ]
    if several:
        fields = ", ".join(f"'{name}': {name}" for name in several)
        columns = ", ".join(f"row['{name}']" for name in several)
        raise BadRow(
            f"{several[0]} is a list of {len(values[several[0]])} texts, and a row holds one: "
            "write a row for each, in Python "
            f"rows = [row | {{{fields}}} for row in rows for {', '.join(several)} in zip({columns})]"
        )


def _read_message(message: Any, name: str) -> dict[str, Any]:
    message = without_nulls(message)
    if isinstance(message, dict) and "role" not in message and isinstance(message.get("from"), str):
        message = _from_sharegpt(message, name)
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRow(f"{name}: every message needs a role and content, got {str(message)[:60]!r}")
    message["role"] = _PEOPLE.get(message["role"].lower(), message["role"])
    if not isinstance(message.get("content"), str | list) and "tool_calls" not in message:
        kind = f", but {type(message['content']).__name__}" if "content" in message else ""
        if isinstance(message.get("content"), dict):
            kind += ": write it as JSON in a text"
        raise BadRow(f"{name}: a message of {message['role']!r} has no content of text{kind}")
    if isinstance(message.get("content"), list):
        _check_parts(message["content"], name)
    refuse_images(message, f"{name}: a message of {message['role']!r}")
    return message


def _from_sharegpt(turn: dict[str, Any], name: str) -> dict[str, Any]:
    """{from, value} as {role, content}; other keys stay."""
    message = {"role": _SHAREGPT.get(turn["from"], turn["from"])}
    if turn["from"] == "function_call":
        message = {"role": "assistant", "content": "", "tool_calls": _calls(turn.get("value"), name)}
    elif "value" in turn:
        message["content"] = turn["value"]
    return message | {key: value for key, value in turn.items() if key not in ("from", "value")}


def _calls(text: Any, name: str) -> list[dict[str, Any]]:
    """The calls that the text of a turn from function_call shows, as tool_calls hold them."""
    shown = _from_json(text, f"{name}: a turn from 'function_call'")
    calls = shown if isinstance(shown, list) else [shown]
    for call in calls:
        is_call = isinstance(call, dict) and isinstance(call.get("name"), str)
        if not (is_call and isinstance(call.get("arguments"), dict | str)):
            raise BadRow(
                f"{name}: a turn from 'function_call' must hold {{name, arguments}} as JSON, "
                f"got {str(call)[:60]!r}"
            )
    return [
        {"type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
        for call in calls
    ]


def _check_parts(parts: list, name: str) -> None:
    for part in parts:
        kind = type(part).__name__
        if isinstance(part, dict):
            kind = part.get("type", "text" if "text" in part else "without a type")
        if kind != "text":
            raise BadRow(
                f"{name}: a content has a part of type {kind!r}; only parts {{type: text, text: ...}} "
                "can be trained on: leave such rows out"
            )
        if not isinstance(part.get("text"), str):
            raise BadRow(f"{name}: a content has a part of type 'text' without a text")


def joined_parts(messages: Messages) -> Messages:
    """The messages with the text parts of each content joined, for templates that print a content as it is.

        content    [{type: text, text: "H"}, {type: text, text: "i"}]    becomes    "Hi"

    Args:
        messages: as `read_messages` returns them.
    """
    return [
        message | {"content": "".join(part["text"] for part in message["content"])}
        if has_parts([message])
        else message
        for message in messages
    ]


def refuse_system(row: dict[str, Any]) -> None:
    """Checks that a row of text has no system prompt in a column of its own.

    Args:
        row: the row, without nulls.

    Raises:
        BadRow: it has; the message says what to do.
    """
    if _system_of(row):
        raise BadRow(
            "a column system beside text, which has no turn for it: set columns: {instruction: prompt} "
            "(or whatever the prompt is called) beside the path of the data, so that the chat template "
            "writes both, or {unread: system} to leave it out"
        )


def with_system(row: dict[str, Any], messages: Messages) -> Messages:
    """The messages behind the system prompt of the row's column system, if there is one.

    Args:
        row: the row, without nulls.
        messages: the prompt.

    Raises:
        BadRow: the messages begin with another system prompt.
    """
    system = _system_of(row)
    if not system:
        return messages
    if messages and messages[0]["role"] in ("system", "developer"):
        if text_of(messages[0]).strip() != system.strip():
            raise BadRow("the column system is another system prompt than that of the messages")
        return messages
    return [{"role": "system", "content": system}, *messages]


def _system_of(row: dict[str, Any]) -> str:
    """The text of the column system; empty if it is blank or missing."""
    system = check_text(row.get("system", ""), "system")
    return system if system.strip() else ""


def has_parts(messages: Messages) -> bool:
    """Whether a content is a list of parts.

    Args:
        messages: as `read_messages` returns them.
    """
    return any(isinstance(message.get("content"), list) for message in messages)


def text_of(message: dict[str, Any]) -> str:
    """All text of a message's content; empty if it has none.

    Args:
        message: as `read_messages` returns it.
    """
    content = joined_parts([message])[0].get("content")
    return content if isinstance(content, str) else ""


def read_tools(row: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The schemas in the column tools.

    Args:
        row: the row; the column may be JSON in text, and so may each schema in it.

    Returns:
        None if there are none.

    Raises:
        BadRow: the column holds something else.
    """
    tools = _from_json(row.get("tools"), "tools")
    if not tools:  # templates write their section for tools even if the list of them is empty
        return None
    if not isinstance(tools, list):
        raise BadRow(f"tools must be a list, got {type(tools).__name__}")
    return [without_nulls(_from_json(tool, "tools")) for tool in tools]


def read_template_arguments(row: dict[str, Any]) -> dict[str, Any]:
    """What goes to the chat template for this row, from TRL's column chat_template_kwargs.

    Args:
        row: the row; the column may be JSON in text.

    Returns:
        Arguments that win over data.template_arguments; empty if there are none.

    Raises:
        BadRow: the column holds no mapping.
    """
    arguments = _from_json(row.get("chat_template_kwargs"), "chat_template_kwargs")
    if not arguments:
        return {}
    if not isinstance(arguments, dict):
        raise BadRow(f"chat_template_kwargs must be a mapping, got {type(arguments).__name__}")
    return without_nulls(arguments)


def _from_json(value: Any, name: str) -> Any:
    """What a text holds as JSON, None if it is blank; any other value as it is."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{name} is a text that is no JSON ({one_line(error)})") from None
