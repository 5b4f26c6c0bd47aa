"""The columns of a row that nothing reads."""

from typing import Any

from sparsepo_jax.data.example import RowKind

# Columns that every form reads, and those that are the prompt where there is no column of that name.
_READ = {"prompt", "system", "tools", "chat_template_kwargs", "pair_weight", "label", "ids_vocabulary"}
_READ |= {f"{name}_ids" for name in ("prompt", "input")} | {"chosen", "rejected", "completion"}
_READ |= {
    f"{name}_{what}"
    for name in ("chosen", "rejected", "completion")
    for what in ("ids", "weights", "decisive", "chance", "before")
}
_READ_AS_PROMPT = {"messages", "conversations", "instruction", "input", "history"}


def unread_columns(row: dict[str, Any], kind: RowKind) -> tuple[str, ...]:
    """The names of the columns in which a row holds something that nothing reads.

    Args:
        row: as it was read.
        kind: what it is read as. Rows of prompts go on to the scorer as they are, with all their columns.
    """
    if kind == "prompts":
        return ()
    read = _READ
    if row.get("prompt") is None:
        read = read | _READ_AS_PROMPT
    if kind in ("sft", "unpaired"):
        read = read | {"messages", "text", "output"}
    return tuple(name for name, value in row.items() if value is not None and name not in read and name)
