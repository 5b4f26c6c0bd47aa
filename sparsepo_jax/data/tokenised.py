"""A source, tokenised: its rows as a table, the bad ones by line, and counts of what a user should know."""

import itertools
import json
from typing import Any, NamedTuple

import numpy as np

from sparsepo_jax.data.example import RESPONSES, Example, RowKind
from sparsepo_jax.data.formats import in_known_form, parse_row, without_absent
from sparsepo_jax.data.ragged import ragged
from sparsepo_jax.data.ranked import Ranking, Ties, with_pairs
from sparsepo_jax.data.row_source import RowSource
from sparsepo_jax.data.rows import BadRow, Row
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.data.templates import Render
from sparsepo_jax.data.tokenize import LengthLimits, TokenRow, tokenize
from sparsepo_jax.data.turns import TrainOn
from sparsepo_jax.data.unpaired import parse_unpaired
from sparsepo_jax.data.unread import unread_columns

ROWS_AT_A_TIME = 2000  # are tokenised together
BadRows = list[tuple[int, str]]
"""(line, what is wrong) of each."""


class Counts(NamedTuple):
    """What a user should know of the rows of a source, beside its table."""

    templated: int = 0
    """Rows that a chat template has written."""
    plain: int = 0
    """Rows whose prompt is text that no template has written."""
    prompt_cut_short: int = 0
    """Rows for which the template drops the end of the generation prompt once the answer is there."""
    other_turns: int = 0
    """Rows with turns inside a response that are not the assistant's, and are trained on."""
    context_turns: int = 0
    """Rows with such turns that are only read."""
    ties: int = 0
    """Pairs of ranked answers that were left out."""
    best_first: int = 0
    """Rows of ranked answers without scores, whose order is taken for their rank."""
    longest_prompt: int = 0
    """Tokens, before the cut."""
    longest_row: int = 0
    """Tokens of a prompt and the longest of its responses, before the cut."""
    split_pairs: int = 0
    """Pairs that became two rows of one response each."""
    shared_prompts: int = 0
    """Pairs without a column prompt whose prompt is the text that both responses begin with."""
    repeated_prompts: int = 0
    """Rows whose responses, as text, begin with the prompt once more."""
    answered_prompts: int = 0
    """Rows whose prompt ends with a message of the assistant."""
    quoted_arguments: int = 0
    """Rows in which the template writes the arguments of a call, which came as text, in quotes."""
    dropped_tools: int = 0
    """Rows whose schemas of tools, or a call, the template does not write."""
    dropped_thoughts: int = 0
    """Rows of which the template does not write the reasoning that an answer's message holds."""
    unread: tuple[str, ...] = ()
    """Columns that are not read, in the order of the alphabet."""

    def with_row(self, example: Example, row: TokenRow) -> "Counts":
        """The counts with a row more.

        Args:
            example: the row in its one form.
            row: the same row, tokenised.
        """
        length = row.prompt_length + row.response_length
        more = Counts(
            templated=int(example.has_ends),
            plain=int(isinstance(example.prompt, str) and not example.templated),
            prompt_cut_short=int(bool(example.unseen)),
            other_turns=int(example.has_other_turns),
            context_turns=int(example.has_context_turns),
            longest_prompt=row.prompt_length,
            longest_row=length,
            shared_prompts=int(example.has_shared_prompt),
            repeated_prompts=int(example.repeats_prompt),
            answered_prompts=int(example.prompt_is_answered),
            quoted_arguments=int(example.quotes_arguments),
            dropped_tools=int(example.drops_tools),
            dropped_thoughts=int(example.drops_thoughts),
        )
        return self.with_counts(more)

    def with_counts(self, other: "Counts") -> "Counts":
        """The counts of both.

        Args:
            other: of other rows.
        """
        pairs = zip(self._fields[:-1], self[:-1], other[:-1], strict=True)
        numbers = (max(a, b) if name.startswith("longest") else a + b for name, a, b in pairs)
        return Counts(*numbers, unread=tuple(sorted({*self.unread, *other.unread})))


class Tokenised(NamedTuple):
    """A source, tokenised: what the cache keeps."""

    table: TokenTable
    bad: BadRows
    counts: Counts


class Reading(NamedTuple):
    """How rows are read.

    Attributes:
        kind: what they are read as.
        render: writes messages as text.
        train_on: which turns of messages are the response, see data.train_on.
        ranking: how rows with several answers become pairs.
    """

    kind: RowKind
    render: Render
    train_on: TrainOn
    ranking: Ranking


def tokenize_source(
    source: RowSource,
    reading: Reading,
    tokenizer: Any | None,
    limits: LengthLimits,
    text_settings: dict[str, Any],
) -> Tokenised:
    """Reads and tokenises all rows of a source.

    Args:
        source: where they come from.
        reading: how they are read.
        tokenizer: a fast one of Hugging Face. None: the rows are token ids.
        limits: what a row may be at the most.
        text_settings: separator, add_bos and add_eos, see `tokenize`.

    Raises:
        UserError: the source cannot be read, or the tokenizer lacks a token asked for.
    """
    eos = None if tokenizer is None else tokenizer.eos_token
    good: list[tuple[int, TokenRow]] = []
    contents: list[bytes] = []
    bad: BadRows = []
    counts = Counts()
    rows, ties, kind = source.rows(), Ties(), reading.kind
    if kind in ("pairs", "unpaired"):
        rows = with_pairs(source.rows, reading.ranking, ties)
    while chunk := list(itertools.islice(rows, ROWS_AT_A_TIME)):
        parsed: list[tuple[Row, Example]] = []
        for row in chunk:
            examples = _parsed(row, reading, eos)
            if isinstance(examples, BadRow):
                bad.append((row.line, str(examples)))
            else:
                parsed += [(row, example) for example in examples]
                more = Counts(split_pairs=len(examples) - 1, unread=unread_columns(row.content, kind))
                counts = counts.with_counts(more)
        tokenised = tokenize([example for _, example in parsed], tokenizer, limits, **text_settings)
        for (row, example), tokens in zip(parsed, tokenised, strict=True):
            if isinstance(tokens, BadRow):
                bad.append((row.line, str(tokens)))
                continue
            good.append((row.line, tokens))
            counts = counts.with_row(example, tokens)
            if kind == "prompts":
                contents.append(json.dumps(_with_prompt(row.content), default=str).encode())
    table = _make_table(good, len(RESPONSES[kind]))
    if kind == "prompts":
        arrays = [np.frombuffer(content, np.uint8) for content in contents]
        table = table.with_columns(all_content=ragged(arrays, np.uint8))
    return Tokenised(table, sorted(bad), counts._replace(ties=ties.count, best_first=ties.best_first))


def _parsed(row: Row, reading: Reading, eos: str | None) -> list[Example] | BadRow:
    """A row in its one form; a pair that is read as unpaired rows gives two."""
    if isinstance(row.content, BadRow):
        return row.content
    try:
        if reading.kind == "unpaired":
            return parse_unpaired(row.content, reading.render, eos, reading.train_on)
        return [parse_row(row.content, reading.kind, reading.render, eos, reading.train_on)]
    except BadRow as fault:
        return fault
    except RecursionError:
        return BadRow("a value is nested too deeply")


def _with_prompt(content: dict[str, Any]) -> dict[str, Any]:
    """The row as it was read, with its prompt in the column prompt, a system prompt of its own included."""
    prompt = in_known_form(without_absent(content), "prompts").get("prompt")
    if prompt is None:
        return content
    return content | {"prompt": prompt}


def _make_table(rows: list[tuple[int, TokenRow]], responses_per_row: int) -> TokenTable:
    """The rows as a table of a source without a name.

    Rows without given weights weigh 1 if others have some; decisive and chance only if every row has them.
    """
    tokens = [row for _, row in rows]
    weighs = any(row.pair_weight is not None for row in tokens)
    pair_weights = [1.0 if row.pair_weight is None else row.pair_weight for row in tokens]
    labels = [row.label for row in tokens] or [None]
    responses = ragged([ids for row in tokens for ids in row.responses], np.int32)
    cut = np.array([row.responses_cut for row in tokens], bool)
    columns: dict[str, Any] = {}
    if any(before is not None for row in tokens for before in row.before):
        between = [
            before or [[]] * len(ids)
            for row in tokens
            for before, ids in zip(row.before, row.responses, strict=True)
        ]
        columns["between"] = ragged([list(itertools.chain(*before)) for before in between], np.int32)
        columns["all_before"] = np.array([len(ids) for before in between for ids in before], np.int32)
    for name, dtype in (("weights", np.float32), ("decisive", np.bool_), ("chance", np.float32)):
        values = [value for row in tokens for value in getattr(row, name)]
        columns[f"all_{name}"] = _joined(values, responses.lengths, dtype, partly=name == "weights")
    return TokenTable(
        prompts=ragged([row.prompt for row in tokens], np.int32),
        responses=responses,
        prompt_key_N=np.array([row.prompt_key for row in tokens], np.uint64),
        prompt_cut_N=np.array([row.prompt_cut for row in tokens], bool),
        response_cut_NP=cut.reshape(len(tokens), responses_per_row),
        row_weight_N=np.ones(len(tokens), np.float32),
        pair_weight_N=np.array(pair_weights, np.float32) if weighs else None,
        label_N=None if any(label is None for label in labels) else np.array(labels, bool),
        files=("",),
        file_N=np.zeros(len(tokens), np.int32),
        line_N=np.array([line for line, _ in rows], np.int64),
        **columns,
    )


def _joined(
    values: list[list | None], lengths: np.ndarray, dtype: type, *, partly: bool
) -> np.ndarray | None:
    """The values of all responses in one array; None if they are not known.

    partly: they may be missing for some responses, which have 1 instead; else for none.
    """
    known = [value is not None for value in values]
    if not any(known) or not (partly or all(known)):
        return None
    filled = [
        np.ones(length) if value is None else value for value, length in zip(values, lengths, strict=True)
    ]
    return ragged(filled, dtype).flat
