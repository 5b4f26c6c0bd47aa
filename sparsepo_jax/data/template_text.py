"""The text of the chat template that writes a row: one of those that a tokenizer has, or another one.

A tokenizer may have several, by name (Command R: default, tool_use, rag). Of these transformers takes
tool_use where there are tools, else default; `chat_template` among the template's arguments names another
one, or is itself the text of one.
"""

import datetime
import functools
import json
import re
from typing import Any

from sparsepo_jax.data.rows import BadRow

BROUGHT = "chat_template"  # the argument
_JINJA = re.compile(r"\{[{%]")
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CLOCK = "strftime_now"  # the function by which a template asks for the date
_DATE = "date_string"  # the argument that Llama's templates take in its place


def has_template(tokenizer: Any | None, arguments: dict[str, Any]) -> bool:
    """Whether there is a chat template.

    Args:
        tokenizer: of Hugging Face. None: there is none, nor anything that could read what a template writes.
        arguments: of the template.
    """
    if tokenizer is None:
        return False
    return tokenizer.chat_template is not None or arguments.get(BROUGHT) is not None


def template_text(tokenizer: Any, name: str | None, tools: list | None) -> str:
    """The text of the template.

    Args:
        tokenizer: the one that is asked for it.
        name: of one of the tokenizer's, or the text of another one. None: transformers' choice.
        tools: JSON schemas of the tools that the model may call. None: there are none.

    Raises:
        BadRow: the name is neither a name nor a text, or no name is given and the tokenizer has no default.
    """
    known = tokenizer.chat_template
    names = sorted(known) if isinstance(known, dict) else []
    if name is None:
        if isinstance(known, dict) and _choices(tools).isdisjoint(known):
            raise BadRow(
                f"the tokenizer has {len(known)} chat templates ({', '.join(names)}) and no default: "
                f"set data.template_arguments.{BROUGHT} to one of these names"
            )
        return tokenizer.get_chat_template(None, tools)
    if name in names:
        return known[name]
    if not isinstance(name, str) or not _JINJA.search(name):
        others = f", nor one of the tokenizer's ({', '.join(names)})" if names else ""
        raise BadRow(
            f"{BROUGHT}: {str(name)[:60]!r} is no text of a chat template in Jinja{others}; a file of one is "
            "read where it lies beside the tokenizer as chat_template.jinja"
        )
    return name


def _choices(tools: list | None) -> set[str]:
    """The names of the templates that transformers may take by itself."""
    return {"default"} if tools is None else {"default", "tool_use"}


def has_marks(text: str) -> bool:
    """Whether a template marks what the assistant has written, by `{% generation %}`.

    Args:
        text: of the template.
    """
    return _MARK.search(text) is not None


def asks_for_date(tokenizer: Any, arguments: dict[str, Any]) -> bool:
    """Whether what a template writes depends on the day.

    Args:
        tokenizer: the one that has the template.
        arguments: of the template.

    Raises:
        BadRow: see `template_text`.
    """
    brought, known = arguments.get(BROUGHT), tokenizer.chat_template
    if brought is None and isinstance(known, dict):
        texts = [known[name] for name in _choices([]) if name in known]
    else:
        texts = [template_text(tokenizer, brought, None)]
    return any(_CLOCK in text and not (_DATE in arguments and _DATE in text) for text in texts)


def clock_at(text: str, date: str) -> str:
    """The template with a clock that stands at midnight of this day.

    Args:
        text: of the template.
        date: YYYY-MM-DD.
    """
    return _clock(date) + text if _CLOCK in text else text


@functools.cache
def _clock(date: str) -> str:
    """Jinja code that replaces transformers' clock.

    It is put before the template. Jinja drops its last line break.
    """
    day = datetime.datetime.strptime(date, "%Y-%m-%d")
    codes = ["-d", "-m", "-H", "-I", "-M", "-S", "-j", *"aAbBcdDeFhHIjklmMpPSTuUwWxXyY"]
    pieces = "".join(
        f"|replace({json.dumps('%' + code)}, {json.dumps(day.strftime('%' + code))})" for code in codes
    )
    return f"{{%- macro {_CLOCK}(format) -%}}{{{{ format{pieces} }}}}{{%- endmacro %}}\n"
