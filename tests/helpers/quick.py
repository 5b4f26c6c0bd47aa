"""Which rows of a long table the quick tests take; pytest -m slow takes the others."""

from collections.abc import Container, Iterable, Mapping
from typing import Any

import pytest

# Of helpers.tiny.CONFIGS those that differ most in what they are made of: fused projections with biases and
# without, experts with plain layers between and with sinks, layers of two shapes, linear attention.
DIFFERENT = ("gpt2", "phi3", "qwen3 moe, a layer without experts", "gpt-oss", "gemma4, two shapes", "qwen3.5")


def slow_but(quick: Container[Any], rows: Iterable[Any]) -> list[Any]:
    """Each row as a parameter, or as a tuple of them."""
    return [
        pytest.param(
            *(row if isinstance(row, tuple) else (row,)), marks=() if row in quick else pytest.mark.slow
        )
        for row in rows
    ]


def named_slow_but(quick: Container[str], table: Mapping[str, Any]) -> list[Any]:
    """Each value of a table as a parameter, called by its name."""
    return [
        pytest.param(value, id=name, marks=() if name in quick else pytest.mark.slow)
        for name, value in table.items()
    ]
