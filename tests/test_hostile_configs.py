"""Hostile configs and overrides: they end in short clear lines or in a config that is saved and read alike.

4,000 of them, counted:  pytest tests/test_hostile_configs.py -m slow -s     (140 without -m slow)
"""

import json
from pathlib import Path
from typing import get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.hostile import FUZZ, JUNK, ROOT, TEXTS
from sparsepo_jax.config.load import ConfigError, load_config, save_config
from sparsepo_jax.config.schema.base import Section
from sparsepo_jax.config.schema.root import Config

YAML_TRICKS = [
    "&a [*a]",
    "&a {b: *a}",
    "*a",
    "*nobody",
    "!!python/object/apply:os.mkdir [x]",
    "!!python/name:os.system ''",
    "!x 1",
    "!!int x",
    "!!float x",
    "!!bool x",
    "!!binary aGk=",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!timestamp x",
    "!!str 1",
    "<<: *a",
    "<<: [1]",
    "<<: {seed: 1}",
    "{a: 1, a: 2}",
    "{[1]: 2}",
    "? [a]",
    "1: 2",
    "~: 1",
    "true: 1",
    "\t- a",
    "a: b: c",
    "- a\n b",
    "'",
    '"',
    "|",
    ">-",
    "@",
    "`",
    "%YAML 1.1",
    "%YAML 3.0",
    "---",
    "...",
    "0o9",
    "9" * 5000,
    "1" + "0" * 400,
    "-1",
    "1e999",
    ".nan",
    "-.inf",
    "2024-01-01",
    "1:30",
    "1_000",
    "~",
    "[" * 80 + "]" * 80,
    "{a: " * 30 + "1" + "}" * 30,
    "? " * 1000,
    '"\\ud800"',
    '"\\0"',
    '"\\u2028"',
    '"a\\nb": 1',
    "a" * 5000 + ": 1",
    "&a x",
    "[x]",
    "{}",
    "''",
    "#",
    "\u0085",
    "\u2028",
    "é",
    "kind: nothing",
    "stages: [po]",
]


def all_sections(model=Section):
    """Every class of the schema."""
    for below in model.__subclasses__():
        yield below
        yield from all_sections(below)


KEYS = sorted({name for model in all_sections() for name in model.model_fields})
BASES = [path.read_text() for path in sorted((ROOT / "configs").rglob("*.yaml"))]
SMALL = [
    "stages: [report]\noutput_dir: x\n",
    "stages: [report]\noutput_dir: x\ndata: {train: [{path: a}]}\nobjective: {kind: dpo, beta: 0.2}\n",
    "stages: [report]\noutput_dir: x\npo: &a {steps: 2}\nsft: *a\n"
    "objective: {mask: {kind: learned, init: ones}}\n",
]


@st.composite
def altered_yaml(draw):
    lines = draw(st.sampled_from([*SMALL * 4, *BASES])).split("\n")
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        empty_sections = st.sampled_from(KEYS).map(lambda key: f"{key}: {{}}")
        trick = draw(st.sampled_from(YAML_TRICKS) | TEXTS | empty_sections)
        name, colon, _ = lines[at].partition(":")
        match draw(st.sampled_from(["put", "value", "value", "cut", "twice", "indent"])):
            case "put":
                lines.insert(at, " " * draw(st.integers(0, 4)) + trick)
            case "value":
                lines[at] = f"{name}: {trick}" if colon else trick
            case "cut":
                lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
            case "twice":
                lines.insert(at, lines[at])
            case "indent":
                lines[at] = draw(st.sampled_from([" ", "\t", "  - "])) + lines[at]
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    return content + draw(st.sampled_from([b""] * 8 + [b"\xff", b"\x00"]))


def parts(annotation):
    """The sections and the words that a field's annotation allows, and whether in a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return {annotation}, set(), False
    if get_origin(annotation) is not None:
        allowed = [(set(), set(get_args(annotation)), False)]
        if "Literal" not in str(get_origin(annotation)):
            allowed = [parts(below) for below in get_args(annotation)]
        return (
            set().union(*(sections for sections, _, _ in allowed)),
            set().union(*(words for _, words, _ in allowed)),
            get_origin(annotation) is list or any(in_list for _, _, in_list in allowed),
        )
    return set(), set(), False


def value_of(annotation):
    sections, words, in_list = parts(annotation)
    value = (
        st.sampled_from([1, 2, 0.5, 1e-6, True, None, "a", "x.jsonl", 2**31, -1])
        if not words
        else st.sampled_from(sorted(words))
    )
    if sections:
        value = st.sampled_from(sorted(sections, key=lambda model: model.__name__)).flatmap(mapping_of)
    return st.integers(0, 9).flatmap(
        lambda n: JUNK if n == 0 else st.lists(value, max_size=2) if in_list else value
    )


def mapping_of(model):
    """A mapping with a few of a section's fields, most of them of a fitting type."""
    fields = {name: field.annotation for name, field in model.model_fields.items()}
    kinds = {"kind": st.sampled_from(get_args(fields["kind"]))} if "kind" in fields else {}
    some = st.lists(st.sampled_from(sorted(fields)), max_size=3, unique=True)
    strange = st.integers(0, 15).flatmap(
        lambda n: (
            st.dictionaries(TEXTS | st.sampled_from(KEYS), JUNK, min_size=1, max_size=2)
            if n == 0
            else st.just({})
        )
    )
    made = some.flatmap(
        lambda names: st.fixed_dictionaries({name: value_of(fields[name]) for name in names} | kinds)
    )
    return st.tuples(made, strange).map(lambda both: both[0] | both[1])


WHOLE = st.tuples(
    mapping_of(Config), st.sampled_from([{"stages": ["report"], "output_dir": "x"}] * 5 + [{}])
).map(lambda both: both[0] | both[1])
CONFIGS = altered_yaml() | st.tuples(WHOLE, st.booleans()).map(
    lambda both: json.dumps(both[0], ensure_ascii=both[1]).encode("utf-8", "surrogatepass")
)
PATHS = (
    st.lists(st.sampled_from([*KEYS, "0", "1", "kind"]), min_size=1, max_size=4).map(".".join)
    | st.sampled_from(
        [
            "seed",
            "po.steps",
            "data.train.0.path",
            "objective.kind",
            "objective.mask.kind",
            "policy.config.a",
            "a." * 3000,
            "data.train." + "9" * 5000,
            "data.train.\u0663",
            ".",
            "",
        ]
    )
    | TEXTS
)
OVERRIDES = st.just([]) | st.lists(
    st.tuples(
        PATHS,
        st.sampled_from(["=", "=", "=", ""]),
        st.sampled_from(YAML_TRICKS) | TEXTS | JUNK.map(json.dumps),
    ).map("".join),
    max_size=2,
)


def fuzz_configs(examples: int, directory: Path) -> int:
    """Loads so many generated configs with overrides; returns how many ended as they should."""
    handled, path, saved = 0, directory / "config.yaml", directory / "saved.yaml"

    @settings(max_examples=examples, **FUZZ)
    @given(CONFIGS, OVERRIDES)
    def check(content, overrides):
        nonlocal handled
        path.write_bytes(content)
        try:
            config, notes = load_config(path, overrides)
        except ConfigError as error:
            assert error.lines and all(
                line and line.isprintable() and len(line) < 2000 for line in error.lines
            )
        else:
            assert all(note.isprintable() for note in notes)
            save_config(config, saved)
            assert load_config(saved) == (config, [])
        handled += 1

    check()
    return handled


@pytest.mark.filterwarnings("ignore::ruamel.yaml.error.ReusedAnchorWarning")
def test_generated_configs_end_in_clear_lines_or_are_read_again_alike(tmp_path):
    assert fuzz_configs(140, tmp_path) >= 140


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ruamel.yaml.error.ReusedAnchorWarning")
def test_thousands_of_generated_configs_are_handled(tmp_path):
    """pytest tests/test_hostile_configs.py -m slow -s"""
    handled = fuzz_configs(4000, tmp_path)
    print(f"\n{handled} configs handled")
    assert handled >= 4000


@pytest.mark.parametrize(
    "text",
    ["? " * 100_000, "a: b\n" * 100_000, "seed: " + "9" * 200_000, f"'{'k' * 200_000}': 1"],
    ids=["depth", "size", "digits", "key"],
)
def test_a_file_that_is_no_config_is_refused_in_short_lines(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "config.yaml", ["stages=[report]", "output_dir=x"])
    assert all(len(line) < 500 for line in error.value.lines)
    with pytest.raises(ConfigError):  # the same as an override
        load_config(ROOT / "configs" / "quickstart.yaml", [f"policy.config={{{text[:100_000]}}}"])


def test_a_json_config_may_write_characters_as_surrogate_pairs_but_not_as_halves(tmp_path):
    config = {"stages": ["report"], "output_dir": "😀"}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    assert load_config(tmp_path / "config.yaml")[0].output_dir == "😀"
    with pytest.raises(ConfigError, match="cannot be read as str"):
        load_config(tmp_path / "config.yaml", ['output_dir="\\ud83d"'])
