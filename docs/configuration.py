"""The configuration reference, made from the JSON schema of configs.

    python docs/configuration.py [SCHEMA.json]       print the page; default: the schema of this checkout

mkdocs calls this through hooks.py, so the page is never older than the schema.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Schema = Mapping[str, Any]

INTRODUCTION = """# Configuration

Every setting, generated from `python -m sparsepo_jax.main --schema`. A config is a YAML file. On the command
line `section.field=value` replaces a value, an index picks an entry of a list
(`data.train.0.path=pairs.jsonl`), and a value is any YAML. Unknown settings are errors, and `--check` shows
all errors at once.

Point your editor at the schema to get completion and checks while you write
(`python -m sparsepo_jax.main --schema > schema.json`).

"""


def definition_of(schema: Schema, node: Schema) -> str | None:
    """The name of the definition that a node refers to; None if it describes itself."""
    reference = node.get("$ref")
    if reference is None and len(node.get("allOf", ())) == 1:
        reference = node["allOf"][0].get("$ref")
    return None if reference is None else reference.removeprefix("#/$defs/")


def alternatives(node: Schema) -> list[Schema]:
    return list(node.get("anyOf", node.get("oneOf", ())))


def references(schema: Schema, node: Schema) -> Iterator[str]:
    """The definitions that a value of this node may be."""
    if (name := definition_of(schema, node)) is not None:
        yield name
    for option in alternatives(node):
        yield from references(schema, option)
    if isinstance(node.get("items"), Mapping):
        yield from references(schema, node["items"])


def type_text(schema: Schema, node: Schema) -> str:
    """What a value may be, in a few words, with links to sections."""
    if (name := definition_of(schema, node)) is not None:
        return f"[{kind_of(schema, name) or name}](#{anchor(name)})"
    if options := alternatives(node):
        *texts, last = dict.fromkeys(type_text(schema, option) for option in options)
        return f"{', '.join(texts)} or {last}" if texts else last
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        values = (value if isinstance(value, str) else json.dumps(value) for value in node["enum"])
        return ", ".join(f"`{value}`" for value in values)
    if node.get("type") == "array":
        return f"list of {type_text(schema, node.get('items', {}))}"
    if node.get("type") == "object":
        return "mapping"
    words = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false"}
    return words.get(node.get("type", ""), node.get("type", "any value")) + bounds(node)


def bounds(node: Schema) -> str:
    """The limits of a number; that of 32 bits goes without saying."""
    limits = [
        f"{sign} {node[key]:g}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in node and node[key] != 2**31
    ]
    return f" {', '.join(limits)}" if limits else ""


def kind_of(schema: Schema, name: str) -> str | None:
    """The `kind` that tells this section from its alternatives."""
    return schema["$defs"][name].get("properties", {}).get("kind", {}).get("const")


def section_text(definition: Schema, node: Schema) -> str:
    """What a section says of itself, what its `kind` says of it, or what the setting says that holds it."""
    kind = definition.get("properties", {}).get("kind", {})
    of_kind = kind.get("description") if "const" in kind else None
    return definition.get("description") or of_kind or node.get("description", "")


def anchor(name: str) -> str:
    return name.lower()


def default_text(node: Schema, *, required: bool) -> str:
    if required:
        return "required"
    if "default" not in node:
        return ""
    value = node["default"]
    if isinstance(value, Mapping) and value:
        return f"`{{kind: {value['kind']}}}`" if "kind" in value else "see there"
    return f"`{json.dumps(value)}`"


def cell(text: str) -> str:
    """Text for a cell of a table: one line, and no bar that would end the cell, within code neither."""
    line = " ".join(text.split())
    line = re.sub(r"`([^`]*\|[^`]*)`", lambda code: f"<code>{code[1]}</code>", line)
    return line.replace("|", "&#124;")


def settings_table(schema: Schema, section: Schema) -> str:
    """A table of a section's settings, without a `kind` that tells it from its alternatives."""
    required = section.get("required", ())
    rows = [
        "| setting | value | default | |",
        "|---|---|---|---|",
    ]
    for name, node in section.get("properties", {}).items():
        if name == "kind" and "const" in node:
            continue
        cells = (
            f"`{name}`",
            type_text(schema, node),
            default_text(node, required=name in required),
            node.get("description", ""),
        )
        rows.append("| " + " | ".join(map(cell, cells)) + " |")
    return "\n".join(rows) + "\n" if len(rows) > 2 else "No settings of its own.\n"


def objective_table(schema: Schema, kind: str) -> str:
    """The settings of the objective of this kind, with links to the configuration page. Raises KeyError."""
    [name] = [
        name
        for name in references(schema, schema["properties"]["objective"])
        if kind_of(schema, name) == kind
    ] or [None]
    if name is None:
        raise KeyError(f"no objective has kind {kind!r}")
    return settings_table(schema, schema["$defs"][name]).replace("](#", "](../reference/configuration.md#")


def sections(schema: Schema, path: str, node: Schema, written: set[str]) -> Iterator[str]:
    """A section for each definition below a setting that no section before has."""
    for name in references(schema, node):
        if name in written:
            continue
        written.add(name)
        definition = schema["$defs"][name]
        kind = kind_of(schema, name)
        title = f"`{path}`" + (f", kind `{kind}`" if kind else "")
        text = section_text(definition, node)
        yield f"### {title} {{#{anchor(name)}}}\n\n{text}\n\n{settings_table(schema, definition)}\n"
        for field, below in definition.get("properties", {}).items():
            yield from sections(schema, f"{path}.{field}", below, written)


def make_page(schema: Schema) -> str:
    """The page in Markdown."""
    top = schema["properties"]
    plain = {name: node for name, node in top.items() if not any(references(schema, node))}
    parts = [INTRODUCTION, "## The run\n\n"]
    parts.append(settings_table(schema, {"properties": plain, "required": schema.get("required", ())}))
    written: set[str] = set()
    for name, node in top.items():
        if name in plain:
            continue
        description = node.get("description", "")
        single = definition_of(schema, node)
        if single is None:
            parts.append(f"\n## {name}\n\n{description}\n\n")
            parts.extend(sections(schema, name, node, written))
            continue
        written.add(single)
        definition = schema["$defs"][single]
        description = description or definition.get("description", "")
        parts.append(f"\n## {name} {{#{anchor(single)}}}\n\n{description}\n\n")
        parts.append(f"{settings_table(schema, definition)}\n")
        for field, below in definition.get("properties", {}).items():
            parts.extend(sections(schema, f"{name}.{field}", below, written))
    return "".join(parts)


def load_schema() -> Schema:
    """The schema of the package beside this file."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from sparsepo_jax.config.load import json_schema

    return json_schema()


if __name__ == "__main__":
    print(make_page(json.loads(Path(sys.argv[1]).read_text()) if len(sys.argv) > 1 else load_schema()))
