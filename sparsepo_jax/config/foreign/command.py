"""The arguments of a command, as in a shell script, read as a config: `trl dpo --beta 0.1 --use_peft ...`.

Nothing is run. Variables that the text sets itself are put in; others stay as they are.
"""

import itertools
import re
import shlex
import string
from collections.abc import Sequence
from typing import Any

from sparsepo_jax.config.yaml_text import NotYaml, parse

_ASSIGNMENT = re.compile(r"""^\s*(?:export\s+)?(\w+)=("[^"]*"|'[^']*'|\S*)\s*$""", re.MULTILINE)
_PROGRAM = re.compile(r"(?:^|[/_.])(dpo|sft|kto|cpo|orpo|simpo)(?:_\w+)?(?:\.py)?$")
_BETWEEN = ("|", "||", "&&", "&", ";")  # two commands of a line
_TO_A_FILE = re.compile(r"(?:\d*|&)>.*")  # > log.txt, 2>&1


class NoCommand(Exception):
    """A text that holds no command with settings, or not one alone."""


def read_command(text: str) -> tuple[dict[str, Any], str | None]:
    """(settings by name, the trainer that the program is called after, if it is) of the only command.

    Raises:
        NoCommand: says why there is none.
    """
    values = {name: value.strip("\"'") for name, value in _ASSIGNMENT.findall(text)}
    commands: list[tuple[list[str], str, list[str]]] = []
    for line in re.sub(r"\\\s*\n", " ", text).splitlines():
        try:
            words = shlex.split(string.Template(line).safe_substitute(values), comments=True)
        except ValueError:  # a quotation that does not end, as in prose
            continue
        for command in _commands(words):
            launcher, program, arguments = _split(command)
            if sum(argument.startswith("--") for argument in arguments) > 1:
                commands.append((launcher, program, arguments))
    if len(commands) != 1:
        has = "several commands: leave one"
        if not commands:
            has = "no command of TRL, LLaMA-Factory or open-instruct with settings (--name value)"
        raise NoCommand(f"it has {has}")
    launcher, program, arguments = commands[0]
    if arguments[0].endswith((".yaml", ".yml", ".json")):
        raise NoCommand(f"its command reads {arguments[0]}: give that file")
    settings = _settings(arguments)
    if "config" in settings:
        raise NoCommand(f"its command reads {settings['config']}: give that file")
    if (processes := _processes(_settings(launcher))) > 1:
        settings.setdefault("num_processes", processes)
    named = _PROGRAM.search(program)
    return settings, named[1] if named else None


def _processes(launcher: dict[str, Any]) -> int:
    """How many processes accelerate, torchrun or deepspeed starts, one a device; 1 where they do not say."""

    def number(*names: str) -> int:
        given = [launcher[name] for name in names if name in launcher]
        return given[0] if given and type(given[0]) is int else 1

    return number("num_processes", "nproc_per_node", "num_gpus") * number("nnodes", "num_nodes")


def _commands(words: Sequence[str]) -> list[list[str]]:
    """The commands of a line, each up to where its output goes."""
    commands: list[list[str]] = [[]]
    for word in words:
        if word not in _BETWEEN:
            commands[-1].append(word.removesuffix(";"))
        if word in _BETWEEN or word.endswith(";"):
            commands.append([])
    return [list(itertools.takewhile(lambda word: not _TO_A_FILE.fullmatch(word), of)) for of in commands]


def _split(words: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """What is before the program (a launcher and its arguments), the program's name, its own arguments."""
    starts = [number for number, word in enumerate(words) if word.endswith(".py")]
    starts += [
        number + 1
        for number, (before, word) in enumerate(zip(["", *words], words[:-1], strict=False))
        if word == "-m" or (word in ("trl", "llamafactory-cli") and not before.startswith("--"))
    ]
    if not starts:
        return [], "", []
    start = max(starts)
    return list(words[:start]), words[start], list(words[start + 1 :])


def _settings(arguments: Sequence[str]) -> dict[str, Any]:
    """--a 1 --b x y --c --no_d --e=2 -> {a: 1, b: [x, y], c: true, d: false, e: 2}."""
    given: dict[str, list[Any]] = {}
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            name = name.replace("-", "_")
            given[name] = [_value(value)] if equals else []
        elif name:
            given[name].append(_value(argument))
    settings: dict[str, Any] = {}
    for name, values in given.items():
        if not values and name.startswith("no_"):
            settings[name.removeprefix("no_")] = False
        else:
            settings[name] = True if not values else values[0] if len(values) == 1 else values
    return settings


def _value(text: str) -> Any:
    try:
        return parse(text)
    except NotYaml:
        return text
