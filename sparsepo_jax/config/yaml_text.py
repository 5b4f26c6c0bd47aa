"""YAML 1.2 text to plain values and back, by ruamel.yaml's safe loader: nothing in a text is executed."""

import io
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import Node, ScalarNode

from sparsepo_jax.config.shown import shown


class NotYaml(Exception):
    """A text that cannot be read. line: where (from 1), if it is known."""

    def __init__(self, line: int | None, problem: str):
        super().__init__(problem if line is None else f"line {line}: {problem}")
        self.problem = problem


class _Constructor(SafeConstructor):
    """Text, numbers, booleans, null, lists and mappings. YAML 1.2 has no dates: 2024-01-01 is a string."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError):  # from Python's constructors, as of !!int x
            kind = str(node.tag).rpartition(":")[2]
            raise _refusal(node, f"{shown(node.value)} cannot be read as {kind}") from None

    def text(self, node: ScalarNode) -> str:
        # JSON writes a character beyond the 65,536th as two escapes, the halves of a surrogate pair.
        return self.construct_yaml_str(node).encode("utf-16", "surrogatepass").decode("utf-16")

    def refuse(self, node: Node) -> Any:
        kinds = "text, numbers, true, false, null, lists and mappings"
        raise _refusal(node, f"{node.tag}: only {kinds}, without tags")


for _name in ("str", "timestamp"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_name}", _Constructor.text)
for _name in ("binary", "omap", "pairs", "set"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_name}", _Constructor.refuse)
_Constructor.add_constructor(None, _Constructor.refuse)  # any other tag


# What ruamel.yaml says -> what is meant.
_PLAINLY = (
    (r'found duplicate key "(.*?)" with value .*', r"the key \1 is there twice"),
    (r"found character '\\t' that cannot start any token", "a tab: indent with spaces"),
    (r"found character '(.)' that cannot start any token", r"no text begins with \1: quote it"),
    (r"found unhashable key", "a list or mapping as a key: quote a text that begins with [ or {"),
    (r"but found another document", "a second document begins here (---): expected one"),
)


def _refusal(node: Node, problem: str) -> ConstructorError:
    return ConstructorError(None, None, problem, node.start_mark)


def _yaml() -> YAML:
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    return yaml


def parse(text: str) -> Any:
    """The value that a text stands for. Raises NotYaml."""
    try:
        return _yaml().load(text)
    except RecursionError:
        raise NotYaml(None, "lists and mappings lie too deep within each other") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = " ".join((getattr(error, "problem", None) or str(error)).split())
        for theirs, plainly in _PLAINLY:
            problem = re.sub(f"^{theirs}$", plainly, problem)
        raise NotYaml(mark.line + 1 if mark else None, problem[:300]) from None


def write(value: Any) -> str:
    """A value as YAML, in blocks."""
    yaml, text = _yaml(), io.StringIO()
    # Line ends beyond ASCII (U+0085, U+2028) would be written as they are, and read as spaces.
    yaml.allow_unicode = False
    yaml.dump(value, text)
    return text.getvalue()
