"""Dotted paths of settings: objective.beta."""

from collections.abc import Iterable, Iterator
from typing import Any


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Path -> as few of its last words as tell it from the others: objective.beta -> beta."""
    paths, found = list(paths), {}
    for path in paths:
        words = path.split(".")
        tails = [".".join(words[n:]) for n in range(len(words) - 1, -1, -1)]
        found[path] = next((tail for tail in tails if not any(other != path and f".{other}".endswith(f".{tail}") for other in paths)), path)
    return found


def leaves(node: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of what is no mapping within nested mappings: {a: {b: 1}} has a.b."""
    left = [(above, node)]  # no recursion: a file may hold mappings within each other as deep as Python can read
    while left:
        path, value = left.pop()
        if isinstance(value, dict):
            left += reversed([(f"{path}.{key}" if path else str(key), inner) for key, inner in value.items()])
        else:
            yield path, value
