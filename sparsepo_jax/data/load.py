"""Sources to one table of tokens: read, tokenised once and kept, bad rows named or listed."""

import contextlib
import datetime
import hashlib
import itertools
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import write_jsonl, written_atomically
from sparsepo_jax.data.formats import RESPONSES, Example, Kind, in_known_form, parse_row, row_texts
from sparsepo_jax.data.rows import BadRow, Row
from sparsepo_jax.data.sources import Source, open_sources, source_name
from sparsepo_jax.data.table import TokenTable, ragged, table_from_arrays
from sparsepo_jax.data.templates import Render, make_render, reads_clock
from sparsepo_jax.data.tokenize import Limits, TokenRow, tokenize

VERSION = 2  # of what is kept: raise it when tokenisation changes
ROWS_AT_A_TIME = 2000
# What reading an .npz file raises that is torn, altered or none; pickled objects, which are never loaded, are a ValueError.
NOT_WHOLE = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
BadRows = list[tuple[int, str]]
"""(line, what is wrong) of each."""


class Counts(NamedTuple):
    """What is to be said of the rows of a source beside its table."""

    templated: int = 0
    """Rows that a chat template has written."""
    prompt_cut_short: int = 0
    """Rows whose generation prompt the template writes otherwise once the answer is there."""
    other_turns: int = 0
    """Rows with turns inside a response that are not the assistant's."""
    longest_prompt: int = 0
    """Tokens, before the cut."""
    longest_row: int = 0
    """Tokens of a prompt and the longest of its responses, before the cut."""

    def with_row(self, example: Example, row: TokenRow) -> "Counts":
        return Counts(
            self.templated + example.has_ends,
            self.prompt_cut_short + bool(example.unseen),
            self.other_turns + example.has_other_turns,
            max(self.longest_prompt, row.prompt_length),
            max(self.longest_row, row.prompt_length + row.response_length),
        )

    def with_counts(self, other: "Counts") -> "Counts":
        sums = (mine + theirs for mine, theirs in zip(self[:3], other[:3]))
        return Counts(
            *sums, max(self.longest_prompt, other.longest_prompt), max(self.longest_row, other.longest_row)
        )


class Tokenised(NamedTuple):
    """A source, tokenised: what the cache keeps."""

    table: TokenTable
    bad: BadRows
    counts: Counts


def load_table(
    sources: Sequence[Any],
    *,
    kind: Kind,
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
    bad_rows_path: Path,
    cache_dir: str | None,
    template_date: str | None = None,
    positions: int | None = None,
    name: str = "data",
    say: Callable[[str], None] = print,
) -> TokenTable:
    """The rows of all sources, one after the other; lengths in tokens.

    A source is kept under cache_dir by what its tokens depend on (rows, tokenizer, truncation and format), not by where it lies or how it is
    weighed. What a user should know of the rows (what is cut, what is left out) is said in a line each.

    Args:
        sources: FileRows, GeneratedRows or FirstWords.
        template_date: YYYY-MM-DD, what a chat template that asks for the date is told. None: today.
        positions: what the model can hold, tokens, for what is said. None: not known.
        name: of the setting that names the sources, for what is said.
        say: takes the lines.

    Raises:
        UserError: a bad row with its file and line, unless on_bad_row is "skip": then bad rows are listed in bad_rows_path; no row at all.
    """
    limits = Limits(max_length, max_prompt_length, vocab_size)
    text_settings = dict(separator=separator, add_bos=add_bos, add_eos=add_eos)
    date = None
    if reads_clock(tokenizer, template, template_arguments):
        date = template_date or datetime.date.today().isoformat()
    render = make_render(tokenizer, template, template_arguments, date)
    settings = [
        VERSION,
        kind,
        max_length,
        max_prompt_length,
        vocab_size,
        separator,
        template,
        template_arguments,
        add_bos,
        add_eos,
        _content(tokenizer),
    ]
    settings += [date] if date is not None else []
    directory = Path(cache_dir) if cache_dir else cache_directory("tokens")
    tables, listed, rows, counts = [], [], 0, Counts()
    for configured in sources:
        for source in open_sources(configured):
            kept = (
                directory
                / f"{hashlib.sha256(json.dumps([source.fingerprint, *settings], sort_keys=True).encode()).hexdigest()[:32]}.npz"
            )
            tokenised = _read(kept)
            if tokenised is None:
                tokenised = _tokenize_source(source, kind, tokenizer, limits, render, text_settings)
                _write(kept, tokenised)
            table, bad, more = tokenised
            if bad and on_bad_row != "skip":
                raise _refusal(source.name, bad)
            listed += [{"file": source.name, "line": line, "problem": problem} for line, problem in bad]
            rows, counts = rows + len(table) + len(bad), counts.with_counts(more)
            if len(table):
                tables.append(table.from_source(source.name, configured.weight))
    _list_bad_rows(listed, rows, bad_rows_path)
    if not tables:
        names = ", ".join(source_name(configured) for configured in sources)
        raise UserError(
            f"{names}: no usable row" + (f"; all {rows} are listed in {bad_rows_path}" if listed else "")
        )
    whole = TokenTable.concat(tables)
    for line in [*_remarks(counts, len(whole), date), *_cuts(whole, counts, limits, positions)]:
        say(f"{name}: {line}")
    return whole


def _refusal(name: str, bad: BadRows) -> UserError:
    line, problem = bad[0]
    more = f" (and {len(bad) - 1} more bad rows)" if len(bad) > 1 else ""
    return UserError(
        f"{name}:{line}: {problem}{more}; mend it, or leave such rows out with data.on_bad_row=skip"
    )


def _remarks(counts: Counts, rows: int, date: str | None) -> list[str]:
    """What is worth knowing of the rows, a line each."""
    lines = []
    if date is not None and counts.templated:
        lines.append(
            f"the chat template writes the date: {date} in this run, whenever it goes on (data.template_date)"
        )
    if counts.prompt_cut_short:
        lines.append(
            f"in {counts.prompt_cut_short} of {rows} rows the chat template does not write the end of its generation prompt once the answer is "
            "there: it is left out, as in TRL, and the policy will be asked with it; data.template_arguments may switch it off "
            "(enable_thinking: false)"
        )
    if counts.other_turns:
        lines.append(
            f"in {counts.other_turns} of {rows} rows a response holds turns that are not the assistant's; they are trained on like its own"
        )
    return lines


def _cuts(table: TokenTable, counts: Counts, limits: Limits, positions: int | None) -> list[str]:
    """What was cut off, and what to set to keep it."""
    responses, prompts = int(table.response_cut_NP.sum()), int(table.prompt_cut_N.sum())
    remedy = f"to keep them whole, set data.max_length={counts.longest_row}"
    if prompts:
        remedy += f" data.max_prompt_length={counts.longest_prompt}"
    if positions is not None and counts.longest_row > positions:
        remedy = f"the longest row has {counts.longest_row} tokens, the model {positions} positions: raise data.max_length, or leave long rows out"
    lines = []
    if responses:
        share = responses / table.response_cut_NP.size
        learnt = ", so that the policy hardly learns to end" if share > 0.5 else ""
        lines.append(
            f"{responses} of {table.response_cut_NP.size} responses lose their end, EOS included, at data.max_length={limits.max_length}"
            f"{learnt}; {remedy}"
        )
    if prompts:
        lines.append(
            f"{prompts} of {len(table)} prompts lose their beginning at data.max_prompt_length={limits.max_prompt_length}; {remedy}"
        )
    return lines


def cache_directory(name: str) -> Path:
    """Where things of one kind are kept between runs, in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsepo_jax" / name


def _tokenize_source(
    source: Source, kind: Kind, tokenizer, limits: Limits, render: Render, text_settings
) -> Tokenised:
    eos = None if tokenizer is None else tokenizer.eos_token
    good: list[tuple[int, TokenRow]] = []
    contents: list[bytes] = []
    bad: BadRows = []
    counts = Counts()
    rows = source.rows()
    while chunk := list(itertools.islice(rows, ROWS_AT_A_TIME)):
        read = [(row, _parsed(row, kind, render, eos)) for row in chunk]
        bad += [(row.line, str(example)) for row, example in read if isinstance(example, BadRow)]
        read = [(row, example) for row, example in read if not isinstance(example, BadRow)]
        tokenised = tokenize([example for _, example in read], tokenizer, limits, **text_settings)
        for (row, example), tokens in zip(read, tokenised, strict=True):
            if isinstance(tokens, BadRow):
                bad.append((row.line, str(tokens)))
                continue
            good.append((row.line, tokens))
            counts = counts.with_row(example, tokens)
            if kind == "prompts":
                contents.append(json.dumps(_with_prompt(row.content), default=str).encode())
    table = _make_table(good, len(RESPONSES[kind]))
    if kind == "prompts":
        table = table.with_columns(
            all_content=ragged([np.frombuffer(content, np.uint8) for content in contents], np.uint8)
        )
    return Tokenised(table, sorted(bad), counts)


def _with_prompt(content: dict[str, Any]) -> dict[str, Any]:
    """The row as it was read, and its prompt where that lies in other columns (ShareGPT, Alpaca)."""
    prompt = in_known_form(
        {name: value for name, value in content.items() if value is not None}, "prompts"
    ).get("prompt")
    return content if prompt is None or content.get("prompt") is not None else content | {"prompt": prompt}


def _parsed(row: Row, kind: Kind, render: Render, eos: str | None) -> Example | BadRow:
    if isinstance(row.content, BadRow):
        return row.content
    try:
        return parse_row(row.content, kind, render, eos)
    except BadRow as fault:
        return fault
    except RecursionError:
        return BadRow("a value is nested too deeply")


def _make_table(rows: list[tuple[int, TokenRow]], P: int) -> TokenTable:
    """Rows without given weights weigh 1 where others have some; decisive and chance only if every row knows them."""
    made = [row for _, row in rows]
    responses = ragged([ids for row in made for ids in row.responses], np.int32)
    columns: dict[str, np.ndarray | None] = dict.fromkeys(("all_weights", "all_decisive", "all_chance"))
    for name, dtype in (("weights", np.float32), ("decisive", np.bool_), ("chance", np.float32)):
        values = [value for row in made for value in getattr(row, name)]
        known = [value is not None for value in values]
        if any(known) if name == "weights" else (known and all(known)):
            filled = [
                np.ones(length) if value is None else value
                for value, length in zip(values, responses.lengths)
            ]
            columns[f"all_{name}"] = ragged(filled, dtype).flat
    return TokenTable(
        prompts=ragged([row.prompt for row in made], np.int32),
        responses=responses,
        prompt_key_N=np.array([row.prompt_key for row in made], np.uint64),
        prompt_cut_N=np.array([row.prompt_cut for row in made], bool),
        response_cut_NP=np.array([row.responses_cut for row in made], bool).reshape(len(made), P),
        row_weight_N=np.ones(len(made), np.float32),
        files=("",),
        file_N=np.zeros(len(made), np.int32),
        line_N=np.array([line for line, _ in rows], np.int64),
        **columns,
    )


def _content(tokenizer: Any | None) -> str | None:
    """A hash of all that makes a tokenizer what it is."""
    if tokenizer is None:
        return None
    parts = [
        tokenizer.backend_tokenizer.to_str(),
        str(tokenizer.chat_template),
        json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read(path: Path) -> Tokenised | None:
    """What was kept, or None: nothing, or a file that is no longer whole (it is made anew)."""
    try:
        with np.load(path) as arrays:
            bad = [(line, problem) for line, problem in json.loads(str(arrays["bad_rows"]))]
            return Tokenised(table_from_arrays(arrays), bad, Counts(*json.loads(str(arrays["counts"]))))
    except NOT_WHOLE:
        return None


def _write(path: Path, tokenised: Tokenised) -> None:
    """Whole or not at all; several processes may write the same. A cache that cannot be written is no reason to stop."""
    beside = {
        name: np.array(json.dumps(getattr(tokenised, field)))
        for name, field in (("bad_rows", "bad"), ("counts", "counts"))
    }
    try:
        with written_atomically(path) as file:
            np.savez(file, **beside, **tokenised.table.arrays())
    except OSError as error:
        print(f"note: tokenised data is not kept: {path.parent} cannot be written ({error.strerror})")


def _list_bad_rows(listed: list[dict[str, Any]], rows: int, path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    if listed:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, listed)
        print(f"note: {len(listed)} of {rows} rows are bad and left out; they are listed in {path}")


def read_texts(sources: Sequence[Any], *, on_bad_row: str) -> Iterator[str]:
    """All text of all rows, for a tokenizer to learn from. UserError for a row that cannot be read, unless on_bad_row is "skip"."""
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
