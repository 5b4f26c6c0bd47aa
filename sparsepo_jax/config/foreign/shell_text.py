"""The words of the lines of a shell script, with the variables put in that the text itself sets.

Nothing is run. What the text does not say, as $1 or $(date), stays as it is written.
"""

import ast
import re
import shlex
from collections.abc import Mapping
from functools import partial

from sparsepo_jax.config.foreign.literals import value_of

_WORD = r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|[^\s"'#;&|()])*"""
_SET = re.compile(
    r"^([ \t]*)(?:(?:export|local|readonly|declare|typeset)\s+(?:-\w+\s+)?)?(\w+)(\+?)="
    rf"({_WORD}|\$\(\([^\n]*\)\))"
    r"[ \t]*;?[ \t]*(?:#.*)?$",
    re.MULTILINE,
)
_LIST = re.compile(r"^([ \t]*)(?:declare\s+-a\s+)?(\w+)(\+?)=\(([^()]*)\)[ \t]*(?:#.*)?$", re.MULTILINE)
_OF_LOOP = re.compile(r"^\s*(?:for|read(?:\s+-\w+)*|select)\s+(\w+)\b", re.MULTILINE)
_COUNT = re.compile(r"\$\(\(((?:[^()]|\([^()]*\))*)\)\)")
_COMMAND = re.compile(r"\$\([^()]*\)")
_WHOLE_LIST = re.compile(r"""["']?\$\{(\w+)\[[@*]\]\}["']?""")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?:(:?[-=])([^{}]*))?\})")


def read_words(text: str) -> tuple[list[list[str]], dict[str, str]]:
    """(the words of each line, the variables that are set to one value in the whole text)."""
    text = re.sub(r"\\\r?\n", " ", text)
    variables = _variables(text)
    lists = _lists(text)
    lines = []
    for line in text.splitlines():
        line = _WHOLE_LIST.sub(partial(_list_of, lists), line)
        words = _unwrapped(_split(_expand(line, variables)))
        if words:
            lines.append(words)
    return lines, variables


def _split(line: str) -> list[str]:
    """Words as the shell splits them, [] where a quotation does not end, as in prose."""
    try:
        return shlex.split(_COMMAND.sub(lambda found: found[0].replace(" ", "\\ "), line), comments=True)
    except ValueError:
        return []


def _unwrapped(words: list[str]) -> list[str]:
    """`srun bash -c "torchrun dpo.py"` and `eval "torchrun dpo.py"` with the words of the command within."""
    for n, word in enumerate(words[:-1]):
        is_shell = word == "-c" and n > 0 and words[n - 1].endswith("sh")
        is_eval = word == "eval" and not any(before.startswith("--") for before in words[:n])
        if is_shell or is_eval:
            return [*words[: n - is_shell], *_split(words[n + 1]), *words[n + 2 :]]
    return words


def _list_of(lists: Mapping[str, str], found: re.Match[str]) -> str:
    return lists.get(found[1], found[0])


def _variables(text: str) -> dict[str, str]:
    """Names with their values; one with several values, or of a loop, is not there."""
    values: dict[str, str] = {}
    unknown = set(_OF_LOOP.findall(text))
    for indent, name, more, written in _SET.findall(text):
        plain = written.startswith("'")
        value = written.strip("\"'") if plain else _expand(written.strip('"'), values)
        holds_itself = not plain and re.search(rf"\$\{{?{name}\b", written)
        value = values.get(name, "") + value if more else value
        if _is_another(values, name, value, grows=not indent and bool(more or holds_itself)):
            unknown.add(name)
    return {name: value for name, value in values.items() if name not in unknown}


def _lists(text: str) -> dict[str, str]:
    """The same of arrays, their words quoted as they are."""
    values: dict[str, str] = {}
    unknown = set()
    for indent, name, more, content in _LIST.findall(text):
        words = " ".join(_split(content.replace("\n", " \n")))
        words = f"{values.get(name, '')} {words}" if more else words
        if _is_another(values, name, words, grows=bool(more and not indent)):
            unknown.add(name)
    return {name: words for name, words in values.items() if name not in unknown}


def _is_another(values: dict[str, str], name: str, value: str, *, grows: bool) -> bool:
    """Notes a value, and says whether it is another one than before.

    grows: it goes on from the one before, in a line that is always done: one that is indented may not be.
    """
    if grows:
        values[name] = value
    return values.setdefault(name, value) != value


def _expand(text: str, variables: Mapping[str, str]) -> str:
    """$NAME, ${NAME}, ${NAME:-default} and $((8 * 2)), where the text says what they are."""
    text = _COUNT.sub(partial(_count, variables), text)
    return _VARIABLE.sub(partial(_value, variables), text)


def _value(variables: Mapping[str, str], found: re.Match[str]) -> str:
    name = found[1] or found[2]
    if name in variables and not variables[name].startswith("$"):
        return variables[name]
    return found[0] if found[4] is None else _VARIABLE.sub(partial(_value, variables), found[4])


def _count(variables: Mapping[str, str], found: re.Match[str]) -> str:
    """What $((A / (2 * B))) is, where A and B are numbers."""
    names = re.sub(r"\$\{?(\w+)\}?", r"\1", found[1])
    numbers = {name: ast.Constant(int(value)) for name, value in variables.items() if value.isdecimal()}
    try:
        counted = value_of(ast.parse(names.strip().replace("/", "//"), mode="eval").body, numbers)
    except (ValueError, SyntaxError, TypeError, RecursionError):
        return found[0]
    return str(counted)
