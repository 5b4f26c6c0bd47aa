"""Paths as people type them: ~ is the home directory, $NAME and ${NAME} are environment variables, whichever
way the text came past the shell."""

import os
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

_VARIABLE = re.compile(r"\$(\$|[A-Za-z_]\w*|\{[^}]*\})")


def expand_path(text: str) -> str:
    """'~/runs/$USER' -> '/home/ann/runs/ann'; $$ is a plain $. ValueError: there is no such variable or
    user."""

    def value(match: re.Match) -> str:
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
    if text.startswith("~"):  # and not where a variable's value does
        path = os.path.expanduser(path)
    if text.startswith("~") and path.startswith("~"):
        raise ValueError(
            f"{text!r:.80} is in the home directory of a user who is not known here: write the path out "
            "(./~ is a directory of that name)"
        )
    return path


def _expanded(value: Any) -> Any:
    return expand_path(value) if isinstance(value, str) else value


# Every setting that is a path, or a path or Hub id, has this type. It is written so that it is read again as
# it is.
PathText = Annotated[str, BeforeValidator(_expanded), PlainSerializer(lambda path: path.replace("$", "$$"))]
