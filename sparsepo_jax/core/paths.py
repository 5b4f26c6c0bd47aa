"""Dotted paths of settings (objective.beta), and paths of files that may be Hub ids."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

# Usual names of directories, by which nobody means an owner on the Hub.
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
    """Whether a text that is no path on this machine was meant as one, and not as a Hub id.

    Args:
        path: a Hub id is owner/name, or the name alone for old models.
    """
    first, slash, rest = path.partition("/")
    if path.startswith((".", "~")) or "\\" in path or first == "" or "/" in rest or (slash and not rest):
        return True
    return bool(slash) and (first.lower() in _DIRECTORIES or os.path.isdir(first)) and not _is_cached(path)


def _is_cached(hub_id: str) -> bool:
    """Whether a model or data set of the Hub has been fetched before."""
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    cache = os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")
    name = hub_id.replace("/", "--")
    return any(os.path.isdir(os.path.join(cache, f"{kind}--{name}")) for kind in ("models", "datasets"))


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """The shortest name of each path that no other path shares: objective.beta -> beta.

    Args:
        paths: dotted, all different.

    Returns:
        By path, as few of its last words as tell it from the others.
    """
    paths = list(paths)

    def is_ambiguous(tail: str, path: str) -> bool:
        return any(other != path and f".{other}".endswith(f".{tail}") for other in paths)

    names = {}
    for path in paths:
        words = path.split(".")
        tails = [".".join(words[n:]) for n in range(len(words) - 1, -1, -1)]
        names[path] = next((tail for tail in tails if not is_ambiguous(tail, path)), path)
    return names


def leaves(node: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """The values within nested mappings that are no mappings themselves: {a: {b: 1}} has a.b.

    Args:
        node: a mapping, or a value.
        above: dotted path of the node.

    Yields:
        (dotted path, value), in the order of the mappings.
    """
    # A stack instead of recursion: a file may nest mappings as deep as Python can read.
    left = [(above, node)]
    while left:
        path, value = left.pop()
        if isinstance(value, dict):
            inner = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
            left += reversed(inner)
        else:
            yield path, value
