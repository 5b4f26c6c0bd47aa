"""What docs/reference/files.md says of the names in a run's files."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "files.md").read_text()


def explained(section: str) -> set[str]:
    """The names in the first cells of a section's tables, as the page writes them."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def metric(name: str) -> str:
    """A metric's name as the page has it: without the set that it is of, and parts of a sum by the first."""
    return re.sub(r"^loss/part_\d+$", "loss/part_1", re.sub(r"^eval(_[\w-]+)?/", "", name))


def unexplained_metrics(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """The names in rows of metrics.jsonl of which the page says nothing."""
    names = {metric(name) for row in rows for name in row}
    return names - explained("metrics.jsonl") - {"stage", "step"}
