"""Paths as people type them: ~ is the home directory, $NAME and ${NAME} are environment variables.

They are expanded here, too, since a config file never passes the shell.
"""

import os
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

_VARIABLE = re.compile(r"\$(\$|[A-Za-z_]\w*|\{[^}]*\})")


def expand_path(text: str) -> str:
    """'~/runs/$USER' -> '/home/ann/runs/ann'; $$ is a plain $.

    Raises:
        ValueError: there is no such variable or user, or no path can be written so.
    """
    if any(ord(character) < ord(" ") for character in text):
        raise ValueError(
            f"{text!r:.80} has a line end or the like, as \\n and \\r in double quotes are: put a path with "
            "backslashes into single quotes"
        )
    if "$(" in text.replace("$$", "") or "`" in text:
        raise ValueError(f"{text!r:.80} has a command of the shell, which is not run: write the path out")

    def value(match: re.Match[str]) -> str:
        name = match[1].strip("{}")
        if name == "$":
            return "$"
        if name not in os.environ:
            raise ValueError(
                f"{text!r:.80} names the environment variable {name}, which is not set: set it, or write the "
                "path out ($$ is a plain $)"
            )
        return os.environ[name]

    path = _VARIABLE.sub(value, text)
    if not text.startswith("~"):  # a ~ within a variable's value stays
        return path
    path = os.path.expanduser(path)
    if path.startswith("~"):
        raise ValueError(
            f"{text!r:.80} is in the home directory of a user who is not known here: write the path out "
            "(./~ is a directory of that name)"
        )
    return path


def _expanded(value: Any) -> Any:
    return expand_path(value) if isinstance(value, str) else value


# The type of every setting that is a path, or a path or Hub id. Its $ is doubled when it is saved, so that
# loading gives the same path.
PathText = Annotated[str, BeforeValidator(_expanded), PlainSerializer(lambda path: path.replace("$", "$$"))]
