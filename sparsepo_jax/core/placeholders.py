"""What lies in the place of a file that was not fetched."""

from pathlib import Path

_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGE = (b"<!doctype html", b"<html")


def first_placeholder(directory: Path) -> str | None:
    """What to do with a small file of a checkpoint directory that was not fetched; None: all may be there.

    Args:
        directory: its path. Weights are left out: there may be some that nobody reads.
    """
    for file in sorted(
        file for pattern in ("*.json", "*.model", "*.txt") for file in directory.glob(pattern)
    ):
        if (problem := placeholder_problem(file)) is not None:
            return f"{file.name}: {problem}"
    return None


def placeholder_problem(file: Path) -> str | None:
    """What to do with a file that is not the one of its name, though it is there; None: it may be.

    Args:
        file: its path.
    """
    try:
        with file.open("rb") as opened:
            begin = opened.read(len(_POINTER))
    except OSError:
        return None
    if begin == _POINTER:
        return "only Git LFS's pointer to the file: fetch it with `git lfs pull` there, or download it"
    if begin.lower().startswith(_PAGE):
        return "a web page in the place of the file (an error, or a login?): download it again"
    return None
