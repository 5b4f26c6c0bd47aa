"""Words that carry sentiment, by public lists, and the tokens of a response that belong to them.

    kind       a line                            strength of a word
    opinion    good                              1; lines that begin with ; are comments
    scores     good TAB 1.9 [TAB ...]            |score|, 0 neutral
    treebank   (4 (3 good) (2 film)), one tree   |mean label of its leaves - 2|, 2 neutral

Lists of these kinds: opinion lexicon (Hu and Liu, KDD 2004); VADER (Hutto and Gilbert 2014) and AFINN (arXiv
1103.2903); Stanford sentiment treebank (Socher et al. 2013).

A word of a response is a run of ASCII letters, apostrophes within it included, in lower case; other entries
of a list match nothing.
"""

import gzip
import re
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.inspect import token_texts
from sparsepo_jax.data.table import TokenTable

_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")
_LEAF = re.compile(r"\(([0-4]) ([^\s()]+)\)")
_LINE = {"opinion": "one word", "scores": "word TAB score", "treebank": "a tree such as (3 (2 a) (3 good))"}


def load_strengths(path: str, kind: str) -> dict[str, float]:
    """The strength of each word, in lower case; 0: neutral. Several values of a word are averaged.

    Args:
        path: of the list; may end in .gz.
        kind: "opinion", "scores" or "treebank".

    Raises:
        UserError: the file cannot be read, or has a line of another kind.
    """
    values: dict[str, list[float]] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip() or (kind == "opinion" and line.startswith(";")):
            continue
        for word, value in _values(line, kind, f"{path}:{number}"):
            values.setdefault(word.lower(), []).append(value)
    return {word: abs(float(np.mean(of_word))) for word, of_word in values.items()}


def _lines(path: str) -> list[str]:
    try:
        content = Path(path).read_bytes()
        return (gzip.decompress(content) if path.endswith(".gz") else content).decode("utf-8").splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(
            f"evaluation.lexicons: {path} cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from None


def _values(line: str, kind: str, where: str) -> list[tuple[str, float]]:
    """(word, value around 0) of a line."""
    if kind == "opinion" and len(line.split()) == 1:
        return [(line.strip(), 1.0)]
    if kind == "scores":
        word, _, rest = line.partition("\t")
        try:
            return [(word.strip(), float(rest.split("\t")[0]))]
        except ValueError:
            pass
    if kind == "treebank" and (leaves := _LEAF.findall(line)):
        return [(word, int(label) - 2.0) for label, word in leaves]
    raise UserError(
        f"evaluation.lexicons: {where} is no line of kind {kind}, which is {_LINE[kind]}: {line[:60]!r}"
    )


def load_lexicons(entries: Iterable[Any]) -> dict[str, frozenset[str]]:
    """By kind: the words of all lists of that kind whose strength is above the list's threshold.

    Args:
        entries: lists, each with path, kind and threshold.

    Raises:
        UserError: as load_strengths, or a list has no word above its threshold.
    """
    lexicons: dict[str, frozenset[str]] = {}
    for entry in entries:
        strengths = load_strengths(entry.path, entry.kind)
        words = frozenset(word for word, strength in strengths.items() if strength > entry.threshold)
        if not words:
            raise UserError(
                f"evaluation.lexicons: {entry.path} has no word of a strength above {entry.threshold}; "
                "lower its threshold"
            )
        lexicons[entry.kind] = lexicons.get(entry.kind, frozenset()) | words
    return lexicons


class WordMarks(NamedTuple):
    """Flags of tokens, bool [N].

    Attributes:
        decisive: by lexicon, whether the token holds letters of one of its words.
        rest: whether the token only goes on with a word that began before it, so that the word may be known
            from what comes before.
    """

    decisive: dict[str, np.ndarray]
    rest: np.ndarray

    @property
    def union(self) -> np.ndarray:
        """Whether the token belongs to a word of any lexicon."""
        return np.any(list(self.decisive.values()), axis=0)


def mark_words(texts: Sequence[str], lexicons: Mapping[str, Collection[str]]) -> WordMarks:
    """Marks of one response, from what each of its tokens adds to the text.

    tokens      The| aw|ful|ly| bad| film|.        lexicon: awfully, bad
    decisive     0    1   1   1    1     0   0
    rest         0    0   1   1    0     0   0

    Args:
        texts: of the tokens.
        lexicons: words in lower case, by name.
    """
    ends = np.cumsum([len(text) for text in texts])
    decisive = {name: np.zeros(len(texts), bool) for name in lexicons}
    begins = np.zeros(len(texts), bool)
    holds = np.zeros(len(texts), bool)
    for word in _WORD.finditer("".join(texts)):
        first, last = np.searchsorted(ends, [word.start(), word.end() - 1], side="right")
        begins[first] = True
        holds[first : last + 1] = True
        for name, words in lexicons.items():
            if word.group().lower() in words:
                decisive[name][first : last + 1] = True
    return WordMarks(decisive, holds & ~begins)


def mark_table(
    table: TokenTable, tokenizer: Any | None, lexicons: Mapping[str, Collection[str]]
) -> WordMarks:
    """Marks of all response tokens of a table, as `responses.flat`. UserError without a tokenizer."""
    if tokenizer is None:
        raise UserError(
            "evaluation.lexicons: words are text, but there is no tokenizer to read the tokens with: set "
            "tokenizer.kind"
        )
    laid = [table.laid(*divmod(n, table.responses_per_row)) for n in range(len(table.responses))]
    marks = [(mark_words(token_texts(ids, tokenizer), lexicons), places) for ids, places in laid]
    decisive = {
        name: np.concatenate([mark.decisive[name][places] for mark, places in marks]) for name in lexicons
    }
    return WordMarks(decisive, np.concatenate([mark.rest[places] for mark, places in marks]))
