"""An entry of Axolotl's `datasets` as a source of ours: its path, and what its columns are called."""

from typing import Any

from sparsepo_jax.config.foreign.fields import Fields
from sparsepo_jax.config.shown import shown

# A type without its template -> our column's name: its column. What `instruction` holds becomes messages.
TYPES: dict[str, dict[str, str]] = {
    "intel": {"instruction": "question"},
    "icr": {"instruction": "input"},
    "prompt_pairs": {"instruction": "prompt"},
    "argilla": {"chosen": "chosen_response", "rejected": "rejected_response"},
    "argilla_chat": {},
    "ultra": {},
}
# The same for rows of one response with a label.
LABELLED_TYPES: dict[str, dict[str, str]] = {
    "intel": {"instruction": "question"},
    "prompt_pairs": {"instruction": "prompt"},
    "argilla": {},
    "argilla_chat": {"messages": "completion"},
    "ultra": {"instruction": "prompt"},
}


def translate_source(
    fields: Fields, entry: dict[str, Any], section: str, is_labelled: bool
) -> dict[str, Any]:
    left = {name: value for name, value in entry.items() if value is not None}
    source: dict[str, Any] = {"path": left.pop("path", None), "split": left.pop("split", "train")}
    if (subset := left.pop("name", None)) is not None:
        source["subset"] = subset
    files = left.pop("data_files", None)
    if left.pop("ds_type", None) and isinstance(files, str | list):
        files = [files] if isinstance(files, str) else files
        if len(files) != 1:
            fields.refuse("datasets: data_files: name each file in an entry of its own")
        source["path"] = files[0]
    elif files is not None:
        fields.refuse("datasets: data_files: name the file itself as path")
    _translate_turns(fields, left, section)
    columns = _columns(fields, left, section, is_labelled)
    if columns:
        source["columns"] = columns
    for name, value in left.items():
        fields.refuse(f"datasets: {name}: {shown(value)}: not translated")
    return source


def _translate_turns(fields: Fields, left: dict[str, Any], section: str) -> None:
    """Which turns of messages are trained on: in sft all of the assistant's, with what ends them."""
    roles, ending = left.pop("roles_to_train", ["assistant"]), left.pop("train_on_eos", "turn")
    if not isinstance(roles, list) or not set(roles) <= {"assistant", "gpt"} or not roles:
        fields.refuse(f"datasets: roles_to_train: {shown(roles)}: the assistant's turns alone are trained on")
    if ending != "turn":
        fields.refuse(f"datasets: train_on_eos: {shown(ending)}: each turn is trained on with its end (turn)")
    kind = left.get("type", "chat_template")
    if section == "sft" and isinstance(kind, str) and kind.startswith(("chat_template", "sharegpt")):
        fields.set("data.train_on", "assistant")


def _columns(fields: Fields, left: dict[str, Any], section: str, is_labelled: bool) -> dict[str, str]:
    """Our column names for those of an entry of datasets; takes from `left` what it has dealt with."""
    kind = left.pop("type", "chat_template")
    names = {name: left.pop(f"field_{name}", None) for name in ("messages", "chosen", "rejected")}
    mapping = left.pop("message_property_mappings", {})
    roles = left.pop("roles", {})
    keys = left.pop("message_field_role", None), left.pop("message_field_content", None)
    mapping = mapping or dict(zip(("role", "content"), keys, strict=True))
    pair = mapping.get("role") or "role", mapping.get("content") or "content"
    if pair not in (("role", "content"), ("from", "value")):
        fields.refuse(
            f"datasets: messages of {pair[0]} and {pair[1]}: expected role and content, or from and value"
        )
    for role, aliases in roles.items():
        known = {"user": {"user", "human"}, "assistant": {"assistant", "gpt", "model"}, "system": {"system"}}
        if not set(aliases) <= known.get(role, {role}):
            fields.refuse(f"datasets: roles: {', '.join(aliases)} for {role}: rename them in the file")
    if isinstance(kind, dict):
        return _own_columns(fields, kind, is_labelled)
    template, _, form = kind.partition(".")
    if template in ("chatml", "llama3") and form in ("", "default") and not is_labelled:
        form = "argilla"
    if kind in (
        "chat_template.default",
        "chat_template",
        "chat_template.argilla_chat",
        "chat_template.argilla",
    ):
        ours = "messages" if section == "sft" else "prompt"
        theirs = {
            ours: names["messages"] or "messages",
            "chosen": names["chosen"],
            "rejected": names["rejected"],
        }
        if form.startswith("argilla"):
            theirs[ours] = None
        return {name: value for name, value in theirs.items() if value not in (None, name)}
    if is_labelled and template in ("chatml", "llama3") and form in LABELLED_TYPES:
        fields.differs(f"datasets: type {kind}: the tokenizer's own chat template writes messages here")
        return LABELLED_TYPES[form]
    if kind == "orpo.chat_template":
        return {}
    if template in ("chatml", "llama3", "zephyr", "mistral") and form in TYPES:
        fields.differs(f"datasets: type {kind}: the tokenizer's own chat template writes messages here")
        if form == "argilla":
            fields.differs(
                f"datasets: type {kind}: it takes columns of several names; these are instruction, "
                "chosen_response and rejected_response: change columns if the data has others"
            )
        return TYPES[form]
    if kind in ("alpaca", "passthrough", "sharegpt"):
        return {}
    fields.refuse(
        f"datasets: type: {shown(kind)}: expected chat_template.default or one of chatml, llama3 with "
        f"{', '.join(TYPES)}"
    )
    return {}


def _own_columns(fields: Fields, kind: dict[str, Any], is_labelled: bool) -> dict[str, str]:
    """The columns of a type that the file itself describes, whose texts are taken as they are."""
    names = ("prompt", "completion", "label") if is_labelled else ("prompt", "chosen", "rejected")
    left = {key: value for key, value in kind.items() if value is not None}
    columns = {name: left.pop(f"field_{name}", name) for name in names}
    left.pop("field_system", None)  # read by a format that names it
    for key, value in left.items():
        name = key.removesuffix("_format")
        if key == name or name not in names or value != f"{{{name}}}":
            fields.refuse(f"datasets: type: {key}: {shown(value)}: write the texts into the file")
    return {name: theirs for name, theirs in columns.items() if theirs != name}
