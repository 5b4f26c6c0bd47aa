"""How messages become text: by the tokenizer's chat template as transformers applies it, or by the paper's."""

import datetime
import functools
import json
from typing import Any, Literal, Protocol

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.messages import Messages, has_parts, joined_parts
from sparsepo_jax.data.rows import BadRow

# Arguments of apply_chat_template that are not the template's; these would change what comes back.
_RESERVED = {
    "conversation",
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
    "sanitize_control_tokens",
}
_CLOCK = "strftime_now"  # the function by which a template asks for the date


class Render(Protocol):
    """Writes messages as text."""

    writes_ends: bool
    """Whether begin and end of text are the template's to write: then none is added."""

    def __call__(
        self, messages: Messages, tools: list | None, generate: bool, arguments: dict[str, Any] | None = None
    ) -> str:
        """generate: whether a generation prompt follows. arguments: of this row, over data.template_arguments."""


def make_render(
    tokenizer,
    template: Literal["none", "chat", "paper"],
    template_arguments: dict[str, Any],
    date: str | None = None,
) -> Render:
    """How messages become text.

    The paper's (SparsePO, Christopoulou et al. 2024, section 4.4) for [{user, "Hi"}, {assistant, "Hello"}], EOS being added later:

        prompt      <|user|>\\nHi\\n<|assistant|>\\n
        response                                    Hello

    Args:
        tokenizer: whose chat template it is, or None.
        template: "none" takes the tokenizer's chat template if it has one, else the paper's.
        template_arguments: go to the chat template.
        date: YYYY-MM-DD, what a template that asks for the date is told. None: today.

    Raises:
        UserError: "chat", but the tokenizer has no chat template.
    """
    has_chat = tokenizer is not None and tokenizer.chat_template is not None
    if template == "chat" and not has_chat:
        raise UserError(
            "data.template is chat, but the tokenizer has no chat template: take a tokenizer that has one, or data.template=paper"
        )
    return (
        PaperTemplate()
        if template == "paper" or not has_chat
        else ChatTemplate(tokenizer, template_arguments, date)
    )


def reads_clock(
    tokenizer, template: Literal["none", "chat", "paper"], template_arguments: dict[str, Any]
) -> bool:
    """Whether what messages become depends on the day: the chat template asks for the date, and no date_string is given."""
    if (
        template == "paper"
        or tokenizer is None
        or tokenizer.chat_template is None
        or "date_string" in template_arguments
    ):
        return False
    return _CLOCK in str(tokenizer.chat_template)


class PaperTemplate:
    """The paper's turns; messages of text alone."""

    writes_ends = False

    def __call__(
        self, messages: Messages, tools: list | None, generate: bool, arguments: dict[str, Any] | None = None
    ) -> str:
        for message in messages:
            if not isinstance(message.get("content"), str):
                kind = type(message.get("content")).__name__
                raise BadRow(
                    f"the paper's template takes messages of text, but one of {message['role']!r} has {kind}: take a tokenizer with a chat template"
                )
            if message.get("tool_calls"):
                raise BadRow(
                    f"the paper's template cannot write the tool calls of a message of {message['role']!r}: take a tokenizer with a chat template"
                )
        turns = [f"<|{message['role']}|>\n{message['content']}" for message in messages]
        return "\n".join(turns + ["<|assistant|>\n"] if generate else turns)


class ChatTemplate:
    """The tokenizer's chat template."""

    writes_ends = True

    def __init__(self, tokenizer, arguments: dict[str, Any], date: str | None = None):
        self._tokenizer, self._arguments, self._date = tokenizer, arguments, date

    def __call__(
        self, messages: Messages, tools: list | None, generate: bool, arguments: dict[str, Any] | None = None
    ) -> str:
        if self._takes_only_parts:
            messages = [_in_parts(message) for message in messages]
        return self._write(messages, tools, generate, arguments or {})

    def _write(
        self, messages: Messages, tools: list | None, generate: bool, arguments: dict[str, Any]
    ) -> str:
        settings = self._arguments | arguments
        if reserved := sorted(_RESERVED.intersection(settings)):
            raise BadRow(
                f"{', '.join(reserved)}: no argument of a chat template (data.template_arguments, chat_template_kwargs)"
            )
        template = self._tokenizer.get_chat_template(settings.pop("chat_template", None), tools)
        if self._date is not None and _CLOCK in template:
            template = _clock_at(self._date) + template
        return self._tokenizer.apply_chat_template(
            messages,
            tools=tools,
            tokenize=False,
            add_generation_prompt=generate,
            chat_template=template,
            **settings,
        )

    @functools.cached_property
    def _takes_only_parts(self) -> bool:
        """Whether a text as content leaves no trace, but a list of parts does: some multimodal models' templates."""
        return not self._shows("text-in-a-probe") and self._shows(
            [{"type": "text", "text": "text-in-a-probe"}]
        )

    def _shows(self, content: Any) -> bool:
        try:
            return "text-in-a-probe" in self._write([{"role": "user", "content": content}], None, False, {})
        except Exception:  # a template is a program: it raises what it likes
            return False


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return message | {"content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


@functools.cache
def _clock_at(date: str) -> str:
    """Jinja that puts a clock which stands at midnight of this day in the place of transformers' own. Its last line break is Jinja's to drop."""
    day = datetime.datetime.strptime(date, "%Y-%m-%d")
    codes = ["-d", "-m", "-H", "-I", "-M", "-S", "-j", *"aAbBcdDeFhHIjklmMpPSTuUwWxXyY"]
    pieces = "".join(
        f"|replace({json.dumps('%' + code)}, {json.dumps(day.strftime('%' + code))})" for code in codes
    )
    return f"{{%- macro {_CLOCK}(format) -%}}{{{{ format{pieces} }}}}{{%- endmacro %}}\n"


def settle_parts(
    render: Render, dialogues: list[Messages], tools: list | None, generate: bool, arguments: dict[str, Any]
) -> list[Messages]:
    """The dialogues as they are if the template reads contents that are lists of parts; else with the parts of each content put together.

    A template that only prints a content would write the list as Python shows it. (The paper's refuses what is no text.)
    """
    if isinstance(render, PaperTemplate):
        return dialogues
    for messages in dialogues:
        if has_parts(messages) and not _reads_parts(render, messages, tools, generate, arguments):
            return [joined_parts(messages) for messages in dialogues]
    return dialogues


def _reads_parts(
    render: Render, messages: Messages, tools: list | None, generate: bool, arguments: dict[str, Any]
) -> bool:
    try:
        written = render(messages, tools, generate, arguments)
    except Exception:  # a template is a program: it raises what it likes
        return False
    try:
        joined = render(joined_parts(messages), tools, generate, arguments)
    except Exception:
        return True
    texts = [
        part["text"].strip() for message in messages if has_parts([message]) for part in message["content"]
    ]
    lost = any(text in joined and text not in written for text in texts)
    shown = any(written.count(mark) > joined.count(mark) for mark in ("'text': ", '"text": '))
    return not lost and not shown
