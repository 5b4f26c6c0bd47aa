"""`--from-trl FILE`: a config of TRL, Axolotl, LLaMA-Factory or open-instruct as one of ours, in YAML.

Every setting of the file is translated, noted as having no meaning here, or refused by name. What the other
program would take by default is written out where our default differs.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sparsepo_jax.config.foreign import axolotl, llama_factory, open_instruct, trl
from sparsepo_jax.config.foreign.command import NoCommand, read_command
from sparsepo_jax.config.foreign.fields import Fields
from sparsepo_jax.config.foreign.notebook import read_notebook
from sparsepo_jax.config.foreign.script import NoScript, read_script
from sparsepo_jax.config.load import ConfigError
from sparsepo_jax.config.mistakes import explain
from sparsepo_jax.config.programs import find_program
from sparsepo_jax.config.schema.base import members
from sparsepo_jax.config.schema.objectives import Objective
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.config.shown import shown
from sparsepo_jax.config.yaml_text import NotYaml, parse, write
from sparsepo_jax.core.errors import escaped

_PICKLES = (".bin", ".pt", ".pth", ".pkl")
_TRANSLATE: dict[str, Callable[[Fields, str, set[str]], None]] = {
    "TRL": trl.translate,
    "Axolotl": axolotl.translate,
    "LLaMA-Factory": llama_factory.translate,
    "open-instruct": open_instruct.translate,
}


def convert(path: str, trainer: str | None, devices: int | None) -> str:
    """Our YAML, with what is not quite the same and what has no meaning here in comments.

    Args:
        path: of the other program's file: YAML, JSON, a shell script, a Python script or a notebook.
        trainer: of TRL, where the file fits several; None: the file tells.
        devices: on how many the file was run; None: as it says itself, else one.

    Raises:
        ConfigError: with all that cannot be read or translated.
    """
    content, named, lines = _read(path, devices)
    trainer = trainer or named
    program = _program(content)
    if program == "TRL":
        trainer = trainer or trl.find_trainer(content)
        if trainer is None:
            raise ConfigError(
                [
                    "a config that fits several of TRL's trainers: add --trainer with one of "
                    f"{', '.join(trl.TRAINERS)}"
                ]
            )
    fields = Fields(content, program)
    own = None
    if devices is None and content.get("num_processes") is None:
        own = trl.ACCELERATE_CONFIGS.get(str(content.get("accelerate_config")))
    if own is not None:
        lines.append(f"accelerate_config: {content['accelerate_config']}: TRL's own, of {own} processes")
    processes = fields.number("num_processes", default=own or 1)
    fields.devices = devices or max(1, processes)
    fields.differences += lines
    _TRANSLATE[program](fields, trainer or "", set(members(Objective)))
    fields.end()
    if fields.refusals:
        raise ConfigError([f"{program}: {line}" for line in fields.refusals])
    try:
        Config.model_validate(fields.config)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None
    return _text(path, fields)


def _program(content: dict[str, Any]) -> str:
    """The program whose config this is. ConfigError: it is none that is translated."""
    if "stages" in content:
        raise ConfigError(["this is a config of ours already: it has `stages`"])
    program = find_program(content, Config.model_fields)
    if program in _TRANSLATE:
        return program
    known = ", ".join(_TRANSLATE)
    if program is not None:
        raise ConfigError([f"a config of {program}, which is not translated: only those of {known} are"])
    raise ConfigError([f"no config of {known}: it has {shown(list(content))}"])


def _read(path: str, devices: int | None) -> tuple[dict[str, Any], str | None, list[str]]:
    """The settings in a file, the trainer if it says so, and lines about what is not in it.

    It holds YAML, JSON, a command, a Python script or a notebook.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    if path.endswith(_PICKLES):
        raise ConfigError(
            [
                f"{path}: a pickle, which is a program, and is not read: write it as JSON where it was made "
                "(open('args.json', 'w').write(args.to_json_string()))"
            ]
        )
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        if path.endswith((".sh", ".bash", ".slurm", ".sbatch", ".md")):
            return _read_command(text, devices)
        if path.endswith(".py"):
            return read_script(text)
        if path.endswith(".ipynb"):
            code, left_out = read_notebook(text)
            settings, trainer, lines = read_script(code)
            return settings, trainer, left_out + lines
        content = json.loads(text) if path.endswith(".json") else parse(text)
        if isinstance(content, str):
            return _read_command(text, devices)
    except OSError as error:
        raise ConfigError([f"cannot read {path}: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: not UTF-8: save it as UTF-8"]) from None
    except (NoCommand, NoScript) as error:
        raise ConfigError([f"{path}: {error}"]) from None
    except (ValueError, NotYaml) as error:
        raise ConfigError([f"{path}: expected YAML or JSON ({error})"]) from None
    if content is None:
        raise ConfigError([f"{path}: the file is empty"])
    if not isinstance(content, dict):
        raise ConfigError([f"{path}: expected a mapping of settings, got {shown(content)}"])
    return content, None, []


def _read_command(text: str, devices: int | None) -> tuple[dict[str, Any], str | None, list[str]]:
    """The same of a command, whose lines are about a number of devices that nobody has said."""
    settings, trainer, about_devices = read_command(text)
    return settings, trainer, about_devices if devices is None else []


def _text(path: str, fields: Fields) -> str:
    order = {name: number for number, name in enumerate(Config.model_fields)}
    config = dict(sorted(fields.config.items(), key=lambda item: order[item[0]]))
    batch = f"for {fields.devices} device{'s' if fields.devices > 1 else ''}: --devices N changes it"
    lines = [f"From {fields.program}'s {path}; batch sizes are those of all devices together, {batch}."]
    if fields.differences:
        lines += ["", "Not quite the same here:", *(f"  {line}" for line in fields.differences)]
    if fields.notes:
        lines += ["", "Without a meaning here:", *(f"  {line}" for line in fields.notes)]
    comments = "".join(f"# {escaped(line)}".rstrip() + "\n" for line in lines)
    return comments + write(config)
