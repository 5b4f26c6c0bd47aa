"""How messages become text: by the tokenizer's chat template, as in transformers, or by the paper's."""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, Protocol

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.messages import Messages
from sparsepo_jax.data.rows import BadRow
from sparsepo_jax.data.template_text import (
    BROUGHT,
    asks_for_date,
    clock_at,
    has_marks,
    has_template,
    template_text,
)

# Arguments of apply_chat_template that do not go to the template; these would change what comes back.
_RESERVED = {
    "conversation",
    "messages",
    "tools",
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


class Render(Protocol):
    """Writes messages as text."""

    writes_ends: bool
    """Whether begin and end of text are for the template to write: then none is added."""

    def has_marks(self, tools: list | None, arguments: dict[str, Any] | None = None) -> bool:
        """Whether the template marks what the assistant has written, by `{% generation %}`.

        Args:
            tools: see `marked`.
            arguments: see there.
        """

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
        template: "none" takes the tokenizer's chat template, or that of the arguments, if there is one, else
            the paper's.
        template_arguments: go to the chat template; `chat_template` brings or names another one.
        date: YYYY-MM-DD, for a template that asks for the date. None: today.

    Raises:
        UserError: "chat", but there is no chat template; or what chat_template brings is none.

    References:
        The paper's template: Christopoulou et al., SparsePO, arXiv:2410.05102 (2024), section 4.4.
    """
    has_chat = has_template(tokenizer, template_arguments)
    if template == "chat" and not has_chat:
        raise UserError(
            "data.template is chat, but the tokenizer has no chat template: take a tokenizer that has one, "
            "or data.template=paper"
        )
    if template == "paper" and template_arguments.get(BROUGHT) is not None:
        raise UserError(
            f"data.template_arguments.{BROUGHT} brings a chat template, and data.template=paper takes none: "
            "leave one of them out"
        )
    if template == "paper" or not has_chat:
        return PaperTemplate()
    if template_arguments.get(BROUGHT) is not None:
        with _refusals_of_settings():
            template_text(tokenizer, template_arguments[BROUGHT], None)
    return ChatTemplate(tokenizer, template_arguments, date)


def reads_clock(
    tokenizer: Any | None, template: Literal["none", "chat", "paper"], template_arguments: dict[str, Any]
) -> bool:
    """Whether what messages become depends on the day.

    It does if the chat template asks for the date and takes no date_string that is set.

    Args:
        tokenizer: the one whose chat template is used, or None.
        template: as for `make_render`.
        template_arguments: go to the chat template.

    Raises:
        UserError: what chat_template brings is no template.
    """
    if template == "paper" or not has_template(tokenizer, template_arguments):
        return False
    with _refusals_of_settings():
        return asks_for_date(tokenizer, template_arguments)


@contextlib.contextmanager
def _refusals_of_settings() -> Iterator[None]:
    """A BadRow as the mistake of the setting that it stems from."""
    try:
        yield
    except BadRow as fault:
        raise UserError(f"data.template_arguments: {fault}") from None


class PaperTemplate:
    """The paper's turns; it takes messages of text alone."""

    writes_ends = False

    def has_marks(self, tools: list | None, arguments: dict[str, Any] | None = None) -> bool:
        """Whether there are marks: the paper's turns have none.

        Args:
            tools: see `Render.has_marks`.
            arguments: see there.
        """
        return False

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
        if (arguments or {}).get(BROUGHT) is not None:
            raise BadRow(
                f"chat_template_kwargs bring a {BROUGHT}, and the paper's writes messages here: "
                f"set data.template_arguments.{BROUGHT}"
            )
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
        self._only_parts: dict[str, bool] = {}  # by the template's text

    def __call__(
        self, messages: Messages, tools: list | None, generate: bool, arguments: dict[str, Any] | None = None
    ) -> str:
        arguments = arguments or {}
        return self._write(self._readable(messages, tools, arguments), tools, generate, arguments)

    def has_marks(self, tools: list | None, arguments: dict[str, Any] | None = None) -> bool:
        """Whether the template that is taken has marks.

        Args:
            tools: see `Render.has_marks`.
            arguments: see there.
        """
        return has_marks(self._text(tools, arguments or {}))

    def marked(
        self, messages: Messages, tools: list | None, arguments: dict[str, Any] | None = None
    ) -> tuple[tuple[int, int], ...]:
        """What transformers' mask of the assistant's tokens has as 1.

        Args:
            messages: see `Render.marked`.
            tools: see there.
            arguments: see there.
        """
        arguments = arguments or {}
        written = self._write(
            self._readable(messages, tools, arguments),
            tools,
            False,
            arguments,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )
        tokens = zip(written["offset_mapping"], written["assistant_masks"], strict=True)
        return tuple((first, last) for (first, last), is_marked in tokens if is_marked)

    def _text(self, tools: list | None, arguments: dict[str, Any]) -> str:
        return template_text(self._tokenizer, (self._arguments | arguments).get(BROUGHT), tools)

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
        text = self._text(tools, arguments)
        return self._tokenizer.apply_chat_template(
            messages,
            tools=tools,
            add_generation_prompt=generate,
            **({"tokenize": False} | form),
            **(settings | {BROUGHT: text if self._date is None else clock_at(text, self._date)}),
        )

    def _readable(self, messages: Messages, tools: list | None, arguments: dict[str, Any]) -> Messages:
        """The messages; for a template that drops plain text (of a multimodal model) texts are parts."""
        text = self._text(tools, arguments)
        if text not in self._only_parts:
            probe = arguments | {BROUGHT: text}
            parts = [{"type": "text", "text": _PROBE}]
            plain, in_parts = self._shows(_PROBE, tools, probe), self._shows(parts, tools, probe)
            if not plain and not in_parts:  # what this row brings may be why: the next one is asked again
                return messages
            self._only_parts[text] = not plain
        return [_in_parts(message) for message in messages] if self._only_parts[text] else messages

    def _shows(self, content: Any, tools: list | None, arguments: dict[str, Any]) -> bool:
        try:
            return _PROBE in self._write([{"role": "user", "content": content}], tools, False, arguments)
        except Exception:  # a template is a program and may raise anything
            return False


_PROBE = "text-in-a-probe"


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    """The message with a content that is text as a list of one part."""
    content = message.get("content")
    if not isinstance(content, str):
        return message
    return message | {"content": [{"type": "text", "text": content}]}
