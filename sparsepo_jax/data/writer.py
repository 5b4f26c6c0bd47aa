"""A chat template together with what one row gives it: tools, arguments, contents of a kind that it reads."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sparsepo_jax.data.messages import Messages, has_parts, joined_parts
from sparsepo_jax.data.rows import BadRow, one_line
from sparsepo_jax.data.templates import PaperTemplate, Render

_UNDEFINED = re.compile(r"'(\w+)' is undefined")  # what Jinja says of a variable that a template requires


@contextlib.contextmanager
def _refusals_in_words() -> Iterator[None]:
    """What a template raises, as a BadRow: a template is a program and may raise anything."""
    try:
        yield
    except BadRow:
        raise
    except Exception as error:
        missing = _UNDEFINED.fullmatch(str(error))
        remedy = f": set data.template_arguments.{missing[1]}" if missing else ""
        raise BadRow(f"the chat template refuses these messages ({one_line(error)}){remedy}") from None


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
        return self.render.has_marks(self.tools, self.arguments)

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
