"""Dotted paths of settings (objective.beta), and paths of files that could be Hub ids."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

# Nobody means an owner on the Hub by these.
_DIRECTORIES = {
    "run",
    "runs",
    "model",
    "models",
    "data",
    "dataset",
    "datasets",
    "out",
    "output",
    "outputs",
    "result",
    "results",
    "ckpt",
    "ckpts",
    "checkpoint",
    "checkpoints",
    "export",
    "exports",
    "experiments",
    "log",
    "logs",
    "tmp",
    "config",
    "configs",
    "weights",
    "artifacts",
    "saved_models",
}


def is_mistyped_path(path: str) -> bool:
    """Whether a text, which is no path here, was meant as one, and not as a Hub id (owner/name, or of old models name)."""
    first, slash, rest = path.partition("/")
    if path.startswith((".", "~")) or "\\" in path or first == "" or "/" in rest or (slash and not rest):
        return True
    return bool(slash) and (first.lower() in _DIRECTORIES or os.path.isdir(first)) and not _is_cached(path)


def _is_cached(hub_id: str) -> bool:
    """Whether a model or data set of the Hub has been fetched before."""
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    cache, name = os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"), hub_id.replace("/", "--")
    return any(os.path.isdir(os.path.join(cache, f"{kind}--{name}")) for kind in ("models", "datasets"))


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Path -> as few of its last words as tell it from the others: objective.beta -> beta."""
    paths, found = list(paths), {}
    for path in paths:
        words = path.split(".")
        tails = [".".join(words[n:]) for n in range(len(words) - 1, -1, -1)]
        found[path] = next(
            (
                tail
                for tail in tails
                if not any(other != path and f".{other}".endswith(f".{tail}") for other in paths)
            ),
            path,
        )
    return found


def leaves(node: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of what is no mapping within nested mappings: {a: {b: 1}} has a.b."""
    left = [
        (above, node)
    ]  # no recursion: a file may hold mappings within each other as deep as Python can read
    while left:
        path, value = left.pop()
        if isinstance(value, dict):
            left += reversed([(f"{path}.{key}" if path else str(key), inner) for key, inner in value.items()])
        else:
            yield path, value
