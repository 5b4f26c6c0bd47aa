"""Names of arrays end in the letters of their axes, which are all in the legend of core/letters."""

import ast
import re
from pathlib import Path

import pytest

from sparsepo_jax.core.letters import LETTERS, LETTERS_OF_FILES

PACKAGE = Path(__file__).parent.parent / "sparsepo_jax"
ROOMS = ("core", "losses", "masks", "ops", "models", "train")
FILES = {
    str(path.relative_to(PACKAGE)): path
    for room in ROOMS
    for path in sorted((PACKAGE / room).glob("*.py"))
    if path.name != "__init__.py"
}
SHAPED = {"Float", "Int", "Bool", "Key", "Shaped"}


def letters_of_names(tree: ast.AST) -> dict[str, set[str]]:
    """Letter -> the names of arguments, locals, fields and attributes that end in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
    letters: dict[str, set[str]] = {}
    for name in names:
        suffix = re.fullmatch(r"[a-z][a-z0-9_]*_(?=[A-Z0-9]*[A-Z])([A-Z0-9]+)", name)
        for letter in suffix[1] if suffix else ():
            letters.setdefault(letter, set()).add(name)
    return letters


def letters_of_annotations(tree: ast.AST) -> dict[str, set[str]]:
    """Letter -> the shapes in annotations that have it."""
    letters: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if not (
            isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in SHAPED
        ):
            continue
        if isinstance(node.slice, ast.Tuple) and isinstance(node.slice.elts[-1], ast.Constant):
            shape = node.slice.elts[-1].value
            for axis in shape.replace("...", "").split():
                letters.setdefault(axis.removeprefix("*"), set()).add(shape)
    return letters


@pytest.mark.parametrize("name", FILES)
def test_every_letter_of_a_shape_is_in_the_legend(name):
    tree = ast.parse(FILES[name].read_text())
    known = {"1"} | LETTERS.keys() | LETTERS_OF_FILES.get(name, {}).keys()
    used = letters_of_names(tree), letters_of_annotations(tree)
    unknown = {letter: names for letters in used for letter, names in letters.items() if letter not in known}
    assert not unknown


@pytest.mark.parametrize("name", LETTERS_OF_FILES)
def test_a_meaning_of_a_file_is_used_there(name):
    tree = ast.parse(FILES[name].read_text())
    used = letters_of_names(tree).keys() | letters_of_annotations(tree).keys()
    strings = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    used |= {letter for text in strings if re.fullmatch("[A-Z,.]+->[A-Z.]+", text) for letter in text}
    assert LETTERS_OF_FILES[name].keys() <= used


def test_every_letter_of_the_legend_is_used():
    trees = [ast.parse(path.read_text()) for path in FILES.values()]
    used = {letter for tree in trees for letter in letters_of_names(tree) | letters_of_annotations(tree)}
    assert LETTERS.keys() <= used


def test_a_name_with_an_unknown_letter_is_seen():
    letters = letters_of_names(ast.parse("def f(x_BZ, MAX_Y):\n    y_BT1 = batch.slot_BPT\n"))
    assert letters.keys() == {"B", "Z", "T", "1", "P"}


def test_an_annotation_with_an_unknown_axis_is_seen():
    assert letters_of_annotations(ast.parse('x: Float[Array, "*L B ... rows"]')).keys() == {"L", "B", "rows"}
