"""The arguments of a command, as in a shell script, read as a config: `trl dpo --beta 0.1 --use_peft ...`.

Nothing is run. Variables that the text sets itself are put in; others stay as they are.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

from sparsepo_jax.config.foreign.shell_text import read_words
from sparsepo_jax.config.foreign.trl import ACCELERATE_CONFIGS
from sparsepo_jax.config.shown import shown
from sparsepo_jax.config.yaml_text import NotYaml, parse

_PROGRAM = re.compile(r"(?:^|[/_.])(dpo|sft|kto|cpo|orpo|simpo)(?:_\w+)?(?:\.py)?$")
_PROGRAMS = ("trl", "llamafactory-cli", "lmf", "axolotl", "swift")  # that are started by their name
_BETWEEN = ("|", "||", "&&", "&", ";")  # two commands of a line
_VARIABLE = re.compile(r"\$\{?[A-Za-z_]\w*")
_TO_A_FILE = re.compile(r"(?:\d*|&)>.*")  # > log.txt, 2>&1


class NoCommand(Exception):
    """A text that holds no command with settings, or not one alone."""


def read_command(text: str) -> tuple[dict[str, Any], str | None, list[str]]:
    """The only command: its settings by name, the trainer it is called after, lines about its launcher.

    Raises:
        NoCommand: says why there is none.
    """
    lines, values = read_words(text)
    found = [_split(part) for words in lines for part in _commands(words) if part[:1] != ["echo"]]
    commands = [each for each in found if sum(word.startswith("--") for word in each[2]) > 1]
    # A file may be any program's; where no command has settings, it is the one that holds them.
    commands = commands or [each for each in found if _file_of(each[2])]
    if len(commands) != 1:
        has = f"several commands ({', '.join(program for _, program, _ in commands)}): leave one"
        if not commands:
            has = "no command of TRL, LLaMA-Factory or open-instruct with settings (--name value)"
        raise NoCommand(f"it has {has}")
    launcher, program, arguments = commands[0]
    first = itertools.takewhile(lambda word: not word.startswith("--"), arguments)
    if (unknown := next(filter(_VARIABLE.match, first), None)) is not None:
        raise NoCommand(f"its command begins with {unknown}, whose settings are not known: write them out")
    settings = _settings(arguments)
    if file := _file_of(arguments) or settings.get("config"):
        raise NoCommand(f"its command reads {file}: give that file")
    about_processes: list[str] = []
    own = str(settings.get("accelerate_config")) in ACCELERATE_CONFIGS  # says how many processes there are
    if "num_processes" not in settings and not own:
        settings["num_processes"], about_processes = _processes(launcher, program, values)
    named = _PROGRAM.search(program)
    return settings, named[1] if named else None, about_processes


def _file_of(arguments: Sequence[str]) -> str | None:
    """The file of settings that stands before the options: `train.py recipe.yaml --beta 0.1`."""
    first = itertools.takewhile(lambda argument: not argument.startswith("--"), arguments)
    return next((argument for argument in first if argument.endswith((".yaml", ".yml", ".json"))), None)


# Options of accelerate, torchrun and deepspeed, and variables that LLaMA-Factory reads: each number of
# processes, one a device, and the number of machines that it is for. accelerate's is that of all machines.
_LAUNCHERS = (
    (("num_processes",), ()),
    (("nproc_per_node", "num_gpus", "include", "NPROC_PER_NODE"), ("nnodes", "num_nodes", "NNODES")),
)


def _processes(launcher: Sequence[str], program: str, variables: dict[str, str]) -> tuple[int, list[str]]:
    """How many processes a launcher starts, and lines about numbers that are not in the text."""
    options = _given(launcher)
    before = {name: value for name, equals, value in (word.partition("=") for word in launcher) if equals}
    variables = variables | before
    is_llama_factory = launcher[-1:] == ["llamafactory-cli"] or program in ("llamafactory-cli", "lmf")
    if is_llama_factory:  # which alone reads these variables
        options |= {name: [value] for name, value in variables.items() if name.isupper()}
    lines: list[str] = []

    def number(names: Sequence[str]) -> int | None:
        name = next((name for name in names if options.get(name)), None)
        if name is None:
            return None
        value = str(options[name][0])  # what follows it is the program
        if name == "include" and re.fullmatch(r"[^:]*:\d+(,\d+)*", value):  # deepspeed's localhost:0,1
            return value.count(",") + 1
        if re.fullmatch(r"\d+", value) and int(value) > 0:
            return int(value)
        lines.append(f"{name}: {shown(value)}: counted as 1; say on how many devices it ran by --devices")
        return 1

    for processes, machines in _LAUNCHERS:
        if (each := number(processes)) is not None:
            return each * (number(machines) or 1), lines
    names = [word.rpartition("/")[2] for word in launcher]
    takes_all = is_llama_factory or any(name in ("accelerate", "deepspeed", "trl") for name in names)
    visible = variables.get("CUDA_VISIBLE_DEVICES", "")
    devices = visible.count(",") + 1 if re.fullmatch(r"\d+(,\d+)*", visible) else 0
    if not takes_all or "NPROC_PER_NODE" in variables:
        if devices > 1 and not names.count("torchrun"):
            lines.append(f"CUDA_VISIBLE_DEVICES: {visible}: counted as 1; --devices says another number")
        return 1, lines
    if devices:
        lines.append(f"CUDA_VISIBLE_DEVICES: {visible}: counted as {devices}; --devices says another number")
        return devices, lines
    lines.append("devices: how many it ran on is not in the text: counted as 1; say it by --devices")
    return 1, lines


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
        if word == "-m" or (word in _PROGRAMS and not before.startswith("--"))
    ]
    if not starts:
        return [], "", []
    start = max(starts)
    return list(words[:start]), words[start], list(words[start + 1 :])


def _settings(arguments: Sequence[str]) -> dict[str, Any]:
    """--a 1 --b x y --c --no_d --e=2 -> {a: 1, b: [x, y], c: true, d: false, e: 2}."""
    settings: dict[str, Any] = {}
    for name, values in _given(arguments).items():
        if not values and name.startswith("no_"):
            settings[name.removeprefix("no_")] = False
        else:
            settings[name] = True if not values else values[0] if len(values) == 1 else values
    return settings


def _given(arguments: Sequence[str]) -> dict[str, list[Any]]:
    """--a 1 --b x y --c --e=2 -> {a: [1], b: [x, y], c: [], e: [2]}."""
    given: dict[str, list[Any]] = {}
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            name = name.replace("-", "_")
            given[name] = [_value(value)] if equals else []
        elif name:
            given[name].append(_value(argument))
    return given


def _value(text: str) -> Any:
    try:
        return parse(text)
    except NotYaml:
        return text
