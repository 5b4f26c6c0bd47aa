"""States on a disk that hold other arrays than are wanted, as another version of the program writes them."""

from collections.abc import Callable
from typing import Any

import jax

_MOST_NAMED = 2


def other_arrays(stored: Callable[[], Any], like: Any) -> str | None:
    """Which arrays a state on a disk has too few or too many; None: none, or its own list is damaged.

    Args:
        stored: gives the tree of what is on the disk, as Orbax knows it without reading arrays.
        like: the wanted state, or its abstract form.
    """
    try:
        has = _names(stored())
    except Exception:  # Orbax raises many kinds
        return None
    if not has:
        return None
    wanted = _names(like)
    parts = [("lacks", wanted - has), ("has", has - wanted)]
    return ", and ".join(f"{verb} {_listed(names)}" for verb, names in parts if names) or None


def _names(tree: Any) -> set[str]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves}


def _listed(names: set[str]) -> str:
    """The shortest names, which are those of weights: an optimizer's numbers are called after them."""
    shown = sorted(names, key=lambda name: (len(name), name))[:_MOST_NAMED]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")
