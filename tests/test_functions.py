"""Functions that can be read at once: how many lines they have, the docstring left out."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "sparsepo_jax"
LONGEST, MOST = 60, 20  # lines of any function, and of nine in ten


def lengths() -> dict[str, int]:
    """Lines of the body of each function, by `file:name`; of those with the same name the longest."""
    result: dict[str, int] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                name = f"{path.relative_to(PACKAGE)}:{node.name}"
                result[name] = max(lines, result.get(name, 0))
    return result


def test_no_function_is_longer_than_a_screen():
    too_long = {name: lines for name, lines in lengths().items() if lines > LONGEST}
    assert not too_long


def test_nine_functions_in_ten_are_short():
    lines = sorted(lengths().values())
    assert lines[int(0.9 * len(lines))] <= MOST
