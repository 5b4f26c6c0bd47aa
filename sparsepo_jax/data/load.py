"""From configured sources to one table of tokens: read, tokenised once and kept, bad rows named or listed."""

import contextlib
import dataclasses
import datetime
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import write_jsonl
from sparsepo_jax.data.cache import cache_directory, cache_path, keep, read_kept, tokenizer_digest
from sparsepo_jax.data.example import RowKind
from sparsepo_jax.data.ranked import RANKING, Ranking
from sparsepo_jax.data.remarks import (
    column_remarks,
    cut_remarks,
    front_remarks,
    ranked_remarks,
    template_remarks,
)
from sparsepo_jax.data.row_source import RowSource
from sparsepo_jax.data.row_texts import row_texts
from sparsepo_jax.data.rows import BadRow
from sparsepo_jax.data.sources import open_sources, source_name
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.data.templates import make_render, reads_clock
from sparsepo_jax.data.tokenised import BadRows, Counts, Reading, Tokenised, tokenize_source
from sparsepo_jax.data.tokenize import LengthLimits
from sparsepo_jax.data.turns import TrainOn
from sparsepo_jax.data.unpaired import label_remarks


def load_table(
    sources: Sequence[Any],
    *,
    kind: RowKind,
    tokenizer: Any | None,
    vocab_size: int | None,
    max_length: int,
    max_prompt_length: int,
    separator: str,
    template: str,
    template_arguments: dict[str, Any],
    add_bos: bool | None,
    add_eos: bool,
    on_bad_row: str,
    bad_rows_path: Path | None,
    cache_dir: str | None,
    train_on: TrainOn = "last",
    ranking: Ranking = RANKING,
    template_date: str | None = None,
    positions: int | None = None,
    image_tokens: tuple[int, ...] = (),
    name: str = "data",
    say: Callable[[str], None] = print,
) -> TokenTable:
    """The rows of all sources, one after the other.

    A tokenised source is kept in a cache by what its tokens depend on (rows, tokenizer, truncation and
    format), not by where it lies or how it is weighted. `say` gets a line for each thing that a user should
    know of the rows: what is cut, what is left out.

    Args:
        sources: FileRows, GeneratedRows or FirstWords.
        kind: what rows are read as.
        tokenizer: a fast one of Hugging Face. None: the rows are token ids.
        vocab_size: of the model; larger ids are refused. None: not known.
        max_length: of prompt + response, tokens; the response's start is kept.
        max_prompt_length: tokens; the prompt's end is kept, and BOS.
        separator: put between prompt and response of text rows; it counts as prompt.
        template: "none", "chat" or "paper", see `make_render`.
        template_arguments: go to the chat template.
        add_bos: whether text prompts get a BOS. None: if the tokenizer has one.
        add_eos: whether text responses get an EOS.
        on_bad_row: "error", or "skip" to leave bad rows out.
        bad_rows_path: where skipped rows are listed, one JSON object a line. None: they are only counted.
        cache_dir: of tokenised sources. None: one in the user's cache directory.
        train_on: which turns of messages are the response, see data.train_on.
        ranking: how rows with several answers become pairs.
        template_date: YYYY-MM-DD, for a chat template that asks for the date. None: today.
        positions: tokens that the model can hold, for the lines about cuts. None: not known.
        image_tokens: ids that stand for a part of an image or of sound; they are refused.
        name: of the setting that holds the sources, at the front of each line.
        say: takes the lines.

    Raises:
        UserError: a bad row, by file and line, unless on_bad_row is "skip"; or no usable row at all.
    """
    limits = LengthLimits(max_length, max_prompt_length, vocab_size, image_tokens)
    text_settings = {"separator": separator, "add_bos": add_bos, "add_eos": add_eos}
    date = None
    if reads_clock(tokenizer, template, template_arguments):
        date = template_date or datetime.date.today().isoformat()
    render = make_render(tokenizer, template, template_arguments, date)
    # What tokens depend on besides the rows; the order is part of the cache's keys.
    settings = [
        *(kind, max_length, max_prompt_length, vocab_size, separator, template, template_arguments),
        *(add_bos, add_eos, tokenizer_digest(tokenizer), train_on, dataclasses.astuple(ranking)),
    ]
    if date is not None:
        settings.append(date)
    if image_tokens:
        settings.append(image_tokens)
    directory = Path(cache_dir) if cache_dir else cache_directory("tokens")

    def tokens_of(source: RowSource) -> Tokenised:
        path = cache_path(directory, source.fingerprint, settings)
        tokenised = read_kept(path)
        if tokenised is None:
            reading = Reading(kind, render, train_on, ranking)
            tokenised = tokenize_source(source, reading, tokenizer, limits, text_settings)
            keep(path, tokenised)
        return tokenised

    tables, listed, counts = _read_all(sources, tokens_of, on_bad_row)
    _list_bad_rows(listed, sum(map(len, tables)) + len(listed), bad_rows_path)
    if not tables:
        raise _no_row(sources, listed, bad_rows_path, ranked_remarks(counts, ranking))
    joined = TokenTable.concat(tables)
    remarks = column_remarks(counts, len(joined))
    remarks += template_remarks(counts, len(joined), render.writes_ends, date, train_on)
    remarks += front_remarks(tokenizer, counts, add_bos)
    remarks += ranked_remarks(counts, ranking)
    remarks += label_remarks(joined, counts.split_pairs)
    remarks += cut_remarks(joined, counts, limits, positions)
    for line in remarks:
        say(f"{name}: {line}")
    return joined


def _read_all(
    sources: Sequence[Any], tokens_of: Callable[[RowSource], Tokenised], on_bad_row: str
) -> tuple[list[TokenTable], list[dict[str, Any]], Counts]:
    """(a table for each source that has rows, the bad rows as they are listed, counts of all rows)."""
    tables, listed, counts = [], [], Counts()
    for configured in sources:
        for source in open_sources(configured):
            table, bad, source_counts = tokens_of(source)
            if bad and on_bad_row != "skip":
                raise _refusal(source.name, bad)
            listed += [{"file": source.name, "line": line, "problem": problem} for line, problem in bad]
            counts = counts.with_counts(source_counts)
            if len(table):
                tables.append(table.from_source(source.name, configured.weight))
    return tables, listed, counts


def _refusal(name: str, bad: BadRows) -> UserError:
    """The error for the first of the bad rows of a source."""
    line, problem = bad[0]
    more = f" (and {len(bad) - 1} more bad rows)" if len(bad) > 1 else ""
    return UserError(
        f"{name}:{line}: {problem}{more}; mend it, or leave such rows out with data.on_bad_row=skip"
    )


def _no_row(
    sources: Sequence[Any], listed: list[dict[str, Any]], path: Path | None, remarks: list[str]
) -> UserError:
    """The error for sources of which no row is left."""
    names = ", ".join(source_name(configured) for configured in sources)
    if not listed:
        return UserError(": ".join([f"{names}: no usable row", *remarks]))
    if path is None:
        return UserError(f"{names}: no usable row; {_first_of(listed)}")
    return UserError(f"{names}: no usable row; all {len(listed)} are listed in {path}")


def _first_of(listed: list[dict[str, Any]]) -> str:
    row = listed[0]
    return f"the first is {row['file']}:{row['line']}: {row['problem']}"


def _list_bad_rows(listed: list[dict[str, Any]], rows: int, path: Path | None) -> None:
    """Writes the rows that are left out in place of an older list, and says how many they are.

    path None: nothing is written, and the first of them is said instead.
    """
    where = None
    if path is not None:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        if listed:
            write_jsonl(path, listed)
        where = f"they are listed in {path}"
    if listed:
        print(f"note: {len(listed)} of {rows} rows are bad and left out; {where or _first_of(listed)}")


def read_texts(sources: Sequence[Any], *, on_bad_row: str) -> Iterator[str]:
    """All text of all rows, for a tokenizer to learn from.

    Args:
        sources: FileRows, GeneratedRows or FirstWords.
        on_bad_row: "error", or "skip" to leave out rows that cannot be read.

    Raises:
        UserError: a row that cannot be read, by file and line, unless on_bad_row is "skip".
    """
    for configured in sources:
        for source in open_sources(configured):
            for row in source.rows():
                try:
                    if isinstance(row.content, BadRow):
                        raise row.content
                    yield from row_texts(row.content)
                except BadRow as fault:
                    if on_bad_row != "skip":
                        raise _refusal(source.name, [(row.line, str(fault))]) from None
