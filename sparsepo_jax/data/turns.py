"""Which characters of a response are the assistant's, where the turns of users and tools stand between them.

    response     Look it up.<|im_end|> <|im_start|>tool 7<|im_end|> <|im_start|>assistant It is 7.<|im_end|>
    train_on last                                                                        ------------------
    assistant    ---------------------                                                   ------------------

A chat template with `{% generation %}` marks says it itself. Of another one, the beginning of the dialogue up
to each turn is written by itself: where that is the beginning of the whole, the turn is what comes after it.
A template that writes earlier turns differently once others follow is refused: no seam could be exact.
"""

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

from sparsepo_jax.data.messages import Messages
from sparsepo_jax.data.rows import BadRow
from sparsepo_jax.data.values import common_prefix
from sparsepo_jax.data.writer import Writer

TrainOn = Literal["last", "assistant"]
Spans = tuple[tuple[int, int], ...]
"""(first character, character after the last) of each part of a response, in order."""


def first_answer(messages: Messages, train_on: TrainOn) -> int:
    """The number of the message with which the response of an sft row begins.

    Args:
        messages: the whole dialogue.
        train_on: "last" takes the assistant's last message, which has to be the end; "assistant" its first
            that has something before it.

    Raises:
        BadRow: the last message is not the assistant's, or none is.
    """
    roles = [message["role"] for message in messages]
    if train_on == "assistant":
        if "assistant" not in roles:
            raise BadRow("no message is of the assistant")
        return roles.index("assistant", 1 if "assistant" in roles[1:] else 0)
    if roles[-1] != "assistant":
        raise BadRow(
            f"the last of messages must be of the assistant, not of {roles[-1]!r} "
            "(data.train_on=assistant takes the turns before it)"
        )
    return len(messages) - 1


class Turns(NamedTuple):
    """A response of several turns, as a template has written it behind its prompt."""

    dialogue: Messages
    """Prompt and response."""
    begin: int
    """Number of the response's first message, the assistant's."""
    text: str
    """What the template has written for the dialogue."""
    seam: int
    """The character with which the response begins."""
    name: str
    """Of the response, for error messages."""

    def runs(self) -> list[tuple[int, int]]:
        """(first, last + 1) of the assistant's messages that follow one another."""
        runs = []
        numbers = range(self.begin, len(self.dialogue))
        for is_own, group in itertools.groupby(numbers, lambda n: self.dialogue[n]["role"] == "assistant"):
            run = list(group)
            if is_own:
                runs.append((run[0], run[-1] + 1))
        return runs


def assistant_spans(write: Writer, turns: Turns, train_on: TrainOn) -> Spans | None:
    """The parts of a response that are trained on, told by what the template writes of its first turns.

    Args:
        write: the chat template, with what the row gives it.
        turns: of the response.
        train_on: see data.train_on.

    Returns:
        Spans of characters, counted from the seam. None: all of the response.

    Raises:
        BadRow: it cannot be told exactly.
    """
    runs = turns.runs()
    if runs == [(turns.begin, len(turns.dialogue))]:
        return None
    return tuple(_span(write, turns, run) for run in (runs[-1:] if train_on == "last" else runs))


def up_to_marks(begun: str, marks: Sequence[Spans], before: str) -> str:
    """The prompt without what a template marks behind the prompt's messages: a header, in gpt-oss's.

    Args:
        begun: what all responses begin with.
        marks: of each dialogue, as `Writer.marked` gives them.
        before: what the template writes for the prompt's messages alone.
    """
    if not begun.startswith(before):
        return begun
    firsts = [first for spans in marks for first, _ in spans if first >= len(before)]
    return begun[: min(firsts, default=len(begun))]


def marked_spans(turns: Turns, marks: Spans) -> Spans:
    """The parts of a response that the template marks.

    Args:
        turns: of the response.
        marks: of its dialogue, as `Writer.marked` gives them.

    Returns:
        Spans of characters, counted from the seam.

    Raises:
        BadRow: there are none.
    """
    seam = turns.seam
    spans: list[tuple[int, int]] = []
    for first, last in ((max(first, seam) - seam, last - seam) for first, last in marks if last > seam):
        if spans and first <= spans[-1][1]:  # the next token of the same part
            spans[-1] = (spans[-1][0], max(last, spans[-1][1]))
        else:
            spans.append((first, last))
    if not spans:
        raise BadRow(f"the chat template marks nothing of {turns.name} with {{% generation %}}")
    return tuple(spans)


def refuse_left_out(turns: Turns, train_on: TrainOn) -> None:
    """Checks that no message which is trained on says itself that it is not, as OpenAI's and Axolotl's do.

    Args:
        turns: of the response.
        train_on: see data.train_on.

    Raises:
        BadRow: one has a weight other than 1, or train: false.
    """
    runs = turns.runs()
    for first, stop in runs[-1:] if train_on == "last" else runs:
        for message in turns.dialogue[first:stop]:
            for key in ("weight", "train"):
                if message.get(key, 1) not in (1, "1", "true"):
                    raise BadRow(
                        f"{turns.name}: a message of the assistant has {key}: {message[key]}, and turns are "
                        "not weighed one by one: drop the key, or take data.train_on=last where only the "
                        "last turn counts"
                    )


def first_counted(turns: Turns, train_on: TrainOn) -> int:
    """The number of the first message that is trained on.

    Args:
        turns: of the response.
        train_on: see data.train_on.
    """
    runs = turns.runs()
    return runs[-1 if train_on == "last" else 0][0]


def _span(write: Writer, turns: Turns, run: tuple[int, int]) -> tuple[int, int]:
    """Where the template has written messages run[0] to run[1] - 1, without what asks for them."""
    dialogue, text = turns.dialogue, turns.text
    (first, stop), start, end = run, turns.seam, len(text)
    if first > turns.begin:
        before = write(dialogue[:first], generate=False)
        asked = write(dialogue[:first], generate=True)
        start = len(common_prefix(asked, text))
        # Some templates end a dialogue with EOS, and not one that asks on.
        is_begun = text.startswith(before) and start >= len(before)
        _refuse_rewritten(is_begun or start == len(asked), turns.name)
    if stop < len(dialogue):
        up_to = write(dialogue[:stop], generate=False)
        end = len(up_to)
        _refuse_rewritten(text.startswith(up_to) and end > start, turns.name)
    return start - turns.seam, end - turns.seam


def _refuse_rewritten(is_sound: bool, name: str) -> None:
    if not is_sound:
        raise BadRow(
            f"the chat template writes a turn of {name} differently once others follow, so that the "
            "assistant's part cannot be told exactly: take a template with {% generation %} marks, or rows "
            "whose response is one turn"
        )
