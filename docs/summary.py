"""The table of the numbers in summary.json, in docs/reference/files.md, made from the rows of the report.

    python docs/summary.py             write it
    python docs/summary.py --check     only say whether it is as it should be; 1 if not

A test runs the second.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

import configuration
import models

from sparsepo_jax.report.table import CONTROL_ROWS, MASK_ROWS, POLICY_ROWS

PAGE = Path(__file__).parent / "reference" / "files.md"


def summary_table() -> str:
    rows = ["| number | in the report | |", "|---|---|---|"]
    for row in (*POLICY_ROWS, *MASK_ROWS, *CONTROL_ROWS):
        names = " and ".join(f"`{'.'.join(path)}`" for path in (row.before, row.after) if path is not None)
        meaning = row.meaning
        if row.of_responses is not None:
            meaning += f" Of single responses: {row.of_responses[0].lower()}{row.of_responses[1:]}"
        rows.append(f"| {names} | {configuration.cell(row.label)} | {configuration.cell(meaning)} |")
    return "\n".join(rows)


BLOCKS = {"summary": summary_table}

if __name__ == "__main__":
    sys.exit(models.main(PAGE, BLOCKS))
