"""Public functions of the inner rooms say what their arguments are, in Google's style."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sparsepo_jax"
ROOMS = ("core", "data", "losses", "masks", "models", "ops", "sharding", "train")
FILES = [
    path for room in ROOMS for path in sorted((PACKAGE / room).glob("*.py")) if path.name != "__init__.py"
]
# What every objective takes, described once at the top of its module.
OF_EVERY_OBJECTIVE = {"losses": {"stats", "masks", "key_B"}}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_functions(tree: ast.Module) -> Iterator[tuple[Function, str]]:
    """(function, its docstring) of a module and its classes; a class may describe its constructor."""
    for node in tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node, ast.get_docstring(node) or ""
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, Function) and (
                    inner.name == "__init__" or not inner.name.startswith("_")
                ):
                    of_class = ast.get_docstring(node) or "" if inner.name == "__init__" else ""
                    yield inner, of_class + "\n\n" + (ast.get_docstring(inner) or "")


def arguments_of(function: Function) -> set[str]:
    a = function.args
    every = [
        *a.posonlyargs,
        *a.args,
        *a.kwonlyargs,
        *([a.vararg] if a.vararg else []),
        *([a.kwarg] if a.kwarg else []),
    ]
    return {argument.arg for argument in every} - {"self", "cls"}


def described_in(docstring: str) -> set[str]:
    """The names of the entries of the section Args."""
    section = re.search(r"^Args:\n((?:(?: +.*)?\n?)*)", docstring, re.MULTILINE)
    return set(re.findall(r"^ {4}\*{0,2}(\w+): \S", section[1], re.MULTILINE)) if section else set()


def faults_of(path: Path) -> list[str]:
    faults = []
    for function, docstring in public_functions(ast.parse(path.read_text())):
        arguments, described = arguments_of(function), described_in(docstring)
        where = f"{path.relative_to(PACKAGE)}:{function.lineno} {function.name}"
        if arguments and not docstring.strip():
            faults.append(f"{where} has no docstring")
            continue
        left_out = arguments - described - OF_EVERY_OBJECTIVE.get(path.parent.name, set())
        faults += [f"{where} does not describe {name}" for name in sorted(left_out)]
        faults += [
            f"{where} describes {name}, which it does not take" for name in sorted(described - arguments)
        ]
    return faults


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_public_functions_describe_their_arguments(path):
    assert not faults_of(path)


EXAMPLE = '''
def good(a, *, b=1):
    """Line.

    Args:
        a: first.
        b: second,
            on two lines.
    """

def bad(a, b):
    """Line.

    Args:
        a: first.
        c: third.
    """

def bare(a): pass

def _private(a): pass

class Described:
    """Line.

    Args:
        a: first.
    """
    def __init__(self, a): pass
'''


def test_what_is_missing_or_left_over_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    path = tmp_path / "example.py"
    path.write_text(EXAMPLE)
    assert faults_of(path) == [
        "example.py:11 bad does not describe b",
        "example.py:11 bad describes c, which it does not take",
        "example.py:19 bare has no docstring",
    ]
