"""Tables of rows for tests: loaded with settings that fit small rows, and read back as text."""

from pathlib import Path
from typing import Any

from sparsepo_jax.data.load import load_table
from sparsepo_jax.data.sources import GeneratedRows
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.data.tokenizers import make_byte_tokenizer

BYTES = make_byte_tokenizer()


class Load:
    """load(rows or sources, tokenizer, **settings) -> TokenTable.

    The cache and the list of bad rows are in `directory`. What is said of the rows is collected in `lines`.
    """

    def __init__(self, directory: Path, **settings: Any):
        self.lines: list[str] = []
        self.bad_rows_path = directory / "bad.jsonl"
        self._settings = {
            "kind": "pairs",
            "vocab_size": None,
            "max_length": 2000,
            "max_prompt_length": 1000,
            "separator": "",
            "template": "none",
            "template_arguments": {},
            "add_bos": None,
            "add_eos": True,
            "on_bad_row": "error",
            "bad_rows_path": self.bad_rows_path,
            "cache_dir": str(directory / "cache"),
            "say": self.lines.append,
        } | settings

    def __call__(self, sources: list, tokenizer: Any | None = BYTES, **settings: Any) -> TokenTable:
        if isinstance(sources[0], dict):
            sources = [GeneratedRows("rows", sources, 1.0)]
        return load_table(sources, tokenizer=tokenizer, **(self._settings | settings))


def texts(table: TokenTable, i: int = 0, tokenizer: Any = BYTES) -> tuple[str, ...]:
    """(prompt, responses...) of row i, decoded with begin and end of text."""
    responses = [table.response(i, p) for p in range(table.responses_per_row)]
    return tuple(tokenizer.decode(ids) for ids in (table.prompt(i), *responses))
