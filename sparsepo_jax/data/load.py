"""Sources to one table of tokens: read, tokenised once and kept, bad rows named or listed."""

import contextlib
import hashlib
import itertools
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.formats import RESPONSES, Kind, make_render, parse_row, row_texts
from sparsepo_jax.data.sources import BadRow, Source, open_source
from sparsepo_jax.data.table import TokenTable, ragged, table_from_arrays
from sparsepo_jax.data.tokenize import Limits, TokenRow, tokenize

VERSION = 1  # of what is kept: raise it when tokenisation changes
ROWS_AT_A_TIME = 2000
# What reading an .npz file raises that is torn, altered or none; pickled objects, which are never loaded, are a ValueError.
NOT_WHOLE = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
BadRows = list[tuple[int, str]]
"""(line, what is wrong) of each."""


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
) -> TokenTable:
    """The rows of all sources (FileRows, GeneratedRows), one after the other; lengths in tokens.

    A source is kept under cache_dir by what its tokens depend on (rows, tokenizer, truncation and format), not by where it lies or how it is
    weighed. UserError: a bad row with its file and line, unless on_bad_row is "skip": then bad rows are listed in bad_rows_path; no row at all.
    """
    limits = Limits(max_length, max_prompt_length, vocab_size)
    text_settings = dict(separator=separator, add_bos=add_bos, add_eos=add_eos)
    render = make_render(tokenizer, template, template_arguments)
    settings = [VERSION, kind, max_length, max_prompt_length, vocab_size, separator, template, template_arguments, add_bos, add_eos, _content(tokenizer)]
    directory = Path(cache_dir) if cache_dir else cache_directory("tokens")
    tables, listed, rows = [], [], 0
    for configured in sources:
        source = open_source(configured)
        kept = directory / f"{hashlib.sha256(json.dumps([source.fingerprint, *settings], sort_keys=True).encode()).hexdigest()[:32]}.npz"
        found = _read(kept)
        if found is None:
            found = _tokenize_source(source, kind, tokenizer, limits, render, text_settings)
            _write(kept, *found)
        table, bad = found
        if bad and on_bad_row != "skip":
            line, problem = bad[0]
            more = f" (and {len(bad) - 1} more bad rows)" if len(bad) > 1 else ""
            raise UserError(f"{source.name}:{line}: {problem}{more}; mend it, or leave such rows out with data.on_bad_row=skip")
        listed += [{"file": source.name, "line": line, "problem": problem} for line, problem in bad]
        rows += len(table) + len(bad)
        if len(table):
            tables.append(table.from_source(source.name, configured.weight))
    _list_bad_rows(listed, rows, bad_rows_path)
    if not tables:
        names = ", ".join(open_source(configured).name for configured in sources)
        raise UserError(f"{names}: no usable row" + (f"; all {rows} are listed in {bad_rows_path}" if listed else ""))
    return TokenTable.concat(tables)


def cache_directory(name: str) -> Path:
    """Where things of one kind are kept between runs, in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsepo_jax" / name


def _tokenize_source(source: Source, kind: Kind, tokenizer, limits: Limits, render, text_settings) -> tuple[TokenTable, BadRows]:
    eos = None if tokenizer is None else tokenizer.eos_token
    good: list[tuple[int, TokenRow]] = []
    contents: list[bytes] = []
    bad: BadRows = []
    rows = source.rows()
    while chunk := list(itertools.islice(rows, ROWS_AT_A_TIME)):
        examples, lines, read = [], [], []
        for row in chunk:
            try:
                if isinstance(row.content, BadRow):
                    raise row.content
                examples.append(parse_row(row.content, kind, render, eos))
                lines.append(row.line)
                read.append(row.content)
            except BadRow as fault:
                bad.append((row.line, str(fault)))
        for line, content, found in zip(lines, read, tokenize(examples, tokenizer, limits, **text_settings), strict=True):
            if isinstance(found, BadRow):
                bad.append((line, str(found)))
            else:
                good.append((line, found))
                if kind == "prompts":
                    contents.append(json.dumps(content, default=str).encode())
    table = _make_table(good, len(RESPONSES[kind]))
    return (table.with_columns(all_content=ragged([np.frombuffer(c, np.uint8) for c in contents], np.uint8)) if kind == "prompts" else table), sorted(bad)


def _make_table(rows: list[tuple[int, TokenRow]], P: int) -> TokenTable:
    """Rows without given weights weigh 1 where others have some; decisive and chance only if every row knows them."""
    made = [row for _, row in rows]
    responses = ragged([ids for row in made for ids in row.responses], np.int32)
    columns: dict[str, np.ndarray | None] = dict.fromkeys(("all_weights", "all_decisive", "all_chance"))
    for name, dtype in (("weights", np.float32), ("decisive", np.bool_), ("chance", np.float32)):
        values = [value for row in made for value in getattr(row, name)]
        known = [value is not None for value in values]
        if any(known) if name == "weights" else (known and all(known)):
            filled = [np.ones(length) if value is None else value for value, length in zip(values, responses.lengths)]
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
    parts = [tokenizer.backend_tokenizer.to_str(), str(tokenizer.chat_template), json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read(path: Path) -> tuple[TokenTable, BadRows] | None:
    """What was kept, or None: nothing, or a file that is no longer whole (it is made anew)."""
    try:
        with np.load(path) as arrays:
            return table_from_arrays(arrays), [(line, problem) for line, problem in json.loads(str(arrays["bad_rows"]))]
    except NOT_WHOLE:
        return None


def _write(path: Path, table: TokenTable, bad: BadRows) -> None:
    """Whole or not at all; several processes may write the same. A cache that cannot be written is no reason to stop."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            np.savez(file, bad_rows=np.array(json.dumps(bad)), **table.arrays())
        os.replace(file.name, path)
    except OSError as error:
        print(f"note: tokenised data is not kept: {path.parent} cannot be written ({error.strerror})")


def _list_bad_rows(listed: list[dict[str, Any]], rows: int, path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    if listed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in listed))
        print(f"note: {len(listed)} of {rows} rows are bad and left out; they are listed in {path}")


def read_texts(sources: Sequence[Any], *, on_bad_row: str) -> Iterator[str]:
    """All text of all rows, for a tokenizer to learn from. UserError for a row that cannot be read, unless on_bad_row is "skip"."""
    for configured in sources:
        source = open_source(configured)
        for row in source.rows():
            try:
                if isinstance(row.content, BadRow):
                    raise row.content
                yield from row_texts(row.content)
            except BadRow as fault:
                if on_bad_row != "skip":
                    raise UserError(f"{source.name}:{row.line}: {fault}; mend it, or leave such rows out with data.on_bad_row=skip") from None
