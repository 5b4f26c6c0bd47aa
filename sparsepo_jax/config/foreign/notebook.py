"""The Python of a Jupyter notebook: its code cells without the lines that are for IPython."""

import json
import re

from sparsepo_jax.config.foreign.literals import parse_quietly

_OTHER_CELL = re.compile(r"\s*%%(?!capture|time|timeit)")  # %%bash, %%writefile: another language
_COMMAND = re.compile(r"(\s*)[!%]")


def read_notebook(text: str) -> tuple[str, list[str]]:
    """(the code, a line for each cell that is no Python).

    Raises:
        ValueError: no JSON, or no notebook.
    """
    content = json.loads(text)
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, list):
        raise ValueError("no notebook: it has no cells")
    code, lines = [], []
    for number, cell in enumerate(cells, 1):
        if not isinstance(cell, dict) or cell.get("cell_type") != "code":
            continue
        source = cell.get("source", "")
        source = source if isinstance(source, str) else "".join(map(str, source))
        if _OTHER_CELL.match(source):
            continue
        source = _without_commands(source)
        try:
            parse_quietly(source)
        except (SyntaxError, ValueError):
            lines.append(f"cell {number} is no Python, and is not read")
        else:
            code.append(source)
    return "\n".join(code), lines


def _without_commands(source: str) -> str:
    """`!pip install x` and `%cd y` become `pass`, with the lines that go on after a backslash."""
    lines, goes_on = [], False
    for line in source.splitlines():
        command = _COMMAND.match(line)
        if not goes_on:
            lines.append(f"{command[1]}pass" if command else line)
        goes_on = (goes_on or command is not None) and line.endswith("\\")
    return "\n".join(lines)
