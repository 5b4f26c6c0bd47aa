"""How messages become text: by the tokenizer's chat template, as in transformers, or by the paper's."""

import contextlib
import datetime
import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.messages import Messages, has_parts, joined_parts
from sparsepo_jax.data.rows import BadRow, one_line

# Arguments of apply_chat_template that do not go to the template; these would change what comes back.
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
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CLOCK = "strftime_now"  # the function by which a template asks for the date


class Render(Protocol):
    """Writes messages as text."""

    writes_ends: bool
    """Whether begin and end of text are for the template to write: then none is added."""
    has_marks: bool
    """Whether the template marks what the assistant has written, by `{% generation %}`."""

    def marked(
        self, messages: Messages, tools: list | None, arguments: dict[str, Any] | None = None
    ) -> tuple[tuple[int, int], ...]:
        """(first character, character after the last) of each token that the template marks.

        Args:
            messages: from first to last.
            tools: JSON schemas of the tools that the model may call. None: there are none.
            arguments: of this row; they win over data.template_arguments.
        """

    def __call__(
        self, messages: Messages, tools: list | None, generate: bool, arguments: dict[str, Any] | None = None
    ) -> str:
        """The messages as text.

        Args:
            messages: from first to last.
            tools: JSON schemas of the tools that the model may call. None: there are none.
            generate: whether a generation prompt follows.
            arguments: of this row; they win over data.template_arguments.
        """


def make_render(
    tokenizer: Any | None,
    template: Literal["none", "chat", "paper"],
    template_arguments: dict[str, Any],
    date: str | None = None,
) -> Render:
    """How messages become text.

    The paper's template for [{user, "Hi"}, {assistant, "Hello"}], to which EOS is added later:

        prompt      <|user|>\\nHi\\n<|assistant|>\\n
        response                                    Hello

    Args:
        tokenizer: the one whose chat template is used, or None.
        template: "none" takes the tokenizer's chat template if it has one, else the paper's.
        template_arguments: go to the chat template.
        date: YYYY-MM-DD, for a template that asks for the date. None: today.

    Raises:
        UserError: "chat", but the tokenizer has no chat template.

    References:
        The paper's template: Christopoulou et al., SparsePO, arXiv:2410.05102 (2024), section 4.4.
    """
    has_chat = tokenizer is not None and tokenizer.chat_template is not None
    if template == "chat" and not has_chat:
        raise UserError(
            "data.template is chat, but the tokenizer has no chat template: take a tokenizer that has one, "
            "or data.template=paper"
        )
    if template == "paper" or not has_chat:
        return PaperTemplate()
    return ChatTemplate(tokenizer, template_arguments, date)


def reads_clock(
    tokenizer: Any | None, template: Literal["none", "chat", "paper"], template_arguments: dict[str, Any]
) -> bool:
    """Whether what messages become depends on the day.

    It does if the chat template asks for the date and no date_string is set.

    Args:
        tokenizer: the one whose chat template is used, or None.
        template: as for `make_render`.
        template_arguments: go to the chat template.
    """
    if template == "paper" or tokenizer is None or tokenizer.chat_template is None:
        return False
    return "date_string" not in template_arguments and _CLOCK in str(tokenizer.chat_template)


class PaperTemplate:
    """The paper's turns; it takes messages of text alone."""

    writes_ends = False
    has_marks = False

    def marked(
        self, messages: Messages, tools: list | None, arguments: dict[str, Any] | None = None
    ) -> tuple[tuple[int, int], ...]:
        """Nothing: the paper's turns have no marks.

        Args:
            messages: see `Render.marked`.
            tools: see there.
            arguments: see there.
        """
        return ()

    def __call__(
        self, messages: Messages, tools: list | None, generate: bool, arguments: dict[str, Any] | None = None
    ) -> str:
        for message in messages:
            _check_plain(message)
        turns = [f"<|{message['role']}|>\n{message['content']}" for message in messages]
        if generate:
            turns.append("<|assistant|>\n")
        return "\n".join(turns)


def _check_plain(message: dict[str, Any]) -> None:
    """BadRow for a message that the paper's template cannot write."""
    if not isinstance(message.get("content"), str):
        kind = type(message.get("content")).__name__
        raise BadRow(
            f"the paper's template takes messages of text, but one of {message['role']!r} has {kind}: "
            "take a tokenizer with a chat template"
        )
    if message.get("tool_calls"):
        raise BadRow(
            f"the paper's template cannot write the tool calls of a message of {message['role']!r}: "
            "take a tokenizer with a chat template"
        )


class ChatTemplate:
    """The tokenizer's chat template.

    Args:
        tokenizer: the one that has it.
        arguments: go to the template.
        date: YYYY-MM-DD, for a template that asks for the date. None: today.
    """

    writes_ends = True

    def __init__(self, tokenizer: Any, arguments: dict[str, Any], date: str | None = None):
        self._tokenizer = tokenizer
        self._arguments = arguments
        self._date = date

    def __call__(
        self, messages: Messages, tools: list | None, generate: bool, arguments: dict[str, Any] | None = None
    ) -> str:
        if self._takes_only_parts:
            messages = [_in_parts(message) for message in messages]
        return self._write(messages, tools, generate, arguments or {})

    @functools.cached_property
    def has_marks(self) -> bool:
        template = self._arguments.get("chat_template") or self._tokenizer.chat_template
        return _MARK.search(str(template)) is not None

    def marked(
        self, messages: Messages, tools: list | None, arguments: dict[str, Any] | None = None
    ) -> tuple[tuple[int, int], ...]:
        """What transformers' mask of the assistant's tokens has as 1.

        Args:
            messages: see `Render.marked`.
            tools: see there.
            arguments: see there.
        """
        if self._takes_only_parts:
            messages = [_in_parts(message) for message in messages]
        written = self._write(
            messages,
            tools,
            False,
            arguments or {},
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )
        tokens = zip(written["offset_mapping"], written["assistant_masks"], strict=True)
        return tuple((first, last) for (first, last), is_marked in tokens if is_marked)

    def _write(
        self,
        messages: Messages,
        tools: list | None,
        generate: bool,
        arguments: dict[str, Any],
        **form: Any,
    ) -> Any:
        """What apply_chat_template gives; form: its arguments beside those of the template."""
        settings = self._arguments | arguments
        if reserved := sorted(_RESERVED.intersection(settings)):
            raise BadRow(
                f"{', '.join(reserved)}: no argument of a chat template "
                "(data.template_arguments, chat_template_kwargs)"
            )
        name, known = settings.pop("chat_template", None), self._tokenizer.chat_template
        usual = {"default"} if tools is None else {"default", "tool_use"}
        if name is None and isinstance(known, dict) and usual.isdisjoint(known):
            raise BadRow(
                f"the tokenizer has {len(known)} chat templates ({', '.join(sorted(known))}) and no default: "
                "set data.template_arguments.chat_template to one of these names"
            )
        template = self._tokenizer.get_chat_template(name, tools)
        if self._date is not None and _CLOCK in template:
            template = _clock_at(self._date) + template
        return self._tokenizer.apply_chat_template(
            messages,
            tools=tools,
            add_generation_prompt=generate,
            chat_template=template,
            **({"tokenize": False} | form),
            **settings,
        )

    @functools.cached_property
    def _takes_only_parts(self) -> bool:
        """Whether it writes lists of parts but drops plain text, as those of some multimodal models do."""
        parts = [{"type": "text", "text": _PROBE}]
        return not self._shows(_PROBE) and self._shows(parts)

    def _shows(self, content: Any) -> bool:
        try:
            return _PROBE in self._write([{"role": "user", "content": content}], None, False, {})
        except Exception:  # a template is a program and may raise anything
            return False


_PROBE = "text-in-a-probe"


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    """The message with a content that is text as a list of one part."""
    content = message.get("content")
    if not isinstance(content, str):
        return message
    return message | {"content": [{"type": "text", "text": content}]}


@functools.cache
def _clock_at(date: str) -> str:
    """Jinja code that replaces transformers' clock by one that stands at midnight of this day.

    It is put before the template. Jinja drops its last line break.
    """
    day = datetime.datetime.strptime(date, "%Y-%m-%d")
    codes = ["-d", "-m", "-H", "-I", "-M", "-S", "-j", *"aAbBcdDeFhHIjklmMpPSTuUwWxXyY"]
    pieces = "".join(
        f"|replace({json.dumps('%' + code)}, {json.dumps(day.strftime('%' + code))})" for code in codes
    )
    return f"{{%- macro {_CLOCK}(format) -%}}{{{{ format{pieces} }}}}{{%- endmacro %}}\n"


@contextlib.contextmanager
def _refusals_in_words() -> Iterator[None]:
    """What a template raises, as a BadRow: a template is a program and may raise anything."""
    try:
        yield
    except BadRow:
        raise
    except Exception as error:
        raise BadRow(f"the chat template refuses these messages ({one_line(error)})") from None


@dataclass(frozen=True)
class Writer:
    """A template together with what one row gives it."""

    render: Render
    tools: list | None
    """JSON schemas. None: there are none."""
    arguments: dict[str, Any]
    """Of the row; they win over data.template_arguments."""

    @property
    def writes_ends(self) -> bool:
        """Whether begin and end of text are for the template to write."""
        return self.render.writes_ends

    def __call__(self, messages: Messages, *, generate: bool) -> str:
        """The messages as text.

        Args:
            messages: from first to last.
            generate: whether a generation prompt follows.

        Raises:
            BadRow: the template refuses them.
        """
        with _refusals_in_words():
            return self.render(messages, self.tools, generate, self.arguments)

    @property
    def has_marks(self) -> bool:
        """Whether the template marks what the assistant has written."""
        return self.render.has_marks

    def marked(self, messages: Messages) -> tuple[tuple[int, int], ...]:
        """(first character, character after the last) of each token that the template marks.

        Args:
            messages: from first to last.

        Raises:
            BadRow: the template refuses them.
        """
        with _refusals_in_words():
            return self.render.marked(messages, self.tools, self.arguments)

    def settled(self, dialogues: list[Messages], *, generate: bool) -> list[Messages]:
        """The dialogues with contents of a kind that the template can read.

        A template that only prints a content would write a list of parts as Python shows it. For such a
        template the parts of each content are joined; for one that reads parts, nothing changes. (The paper's
        refuses them later.)

        Args:
            dialogues: each a list of messages.
            generate: whether a generation prompt follows.
        """
        if isinstance(self.render, PaperTemplate):
            return dialogues
        for messages in dialogues:
            if has_parts(messages) and not self._reads_parts(messages, generate):
                return [joined_parts(messages) for messages in dialogues]
        return dialogues

    def _reads_parts(self, messages: Messages, generate: bool) -> bool:
        """Whether the template writes all text of the parts, and does not print the lists that hold them."""
        try:
            written = self(messages, generate=generate)
        except BadRow:
            return False
        try:
            joined = self(joined_parts(messages), generate=generate)
        except BadRow:
            return True
        texts = [
            part["text"].strip()
            for message in messages
            if has_parts([message])
            for part in message["content"]
        ]
        lost = any(text in joined and text not in written for text in texts)
        printed = any(written.count(mark) > joined.count(mark) for mark in ("'text': ", '"text": '))
        return not lost and not printed
