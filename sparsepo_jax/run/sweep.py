"""Many runs of one config that differ in a few values: `--sweep objective.beta=0.1,0.4 seed=0,1,2`. One process, one run after the other.

A run lies in BASE/NAME (BASE: the config's output_dir, NAME: its swept values) and is a run like any other: its finished stages are not repeated, and
what was broken off continues. Runs whose stage sft would train the same train it once. BASE/sweep.json says how each ended.
"""

import gc
import hashlib
import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparsepo_jax.config.load import ConfigError, load_config, parse_overrides
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import write_json
from sparsepo_jax.core.paths import short_names
from sparsepo_jax.run.resume import Marks

DONE, FAILED, TO_DO = "done", "failed", "to do"
WRONG_COMMAND = 2  # exit status, as main.py's
LONGEST_VALUE, LONGEST_NAME = 40, 160  # characters in a directory's name
_OPEN, _CLOSE = "[{", "]}"


class Axis(NamedTuple):
    """A swept setting: its dotted path, its values as they were written, and as YAML reads them."""

    path: str
    texts: list[str]
    values: list[Any]


class Planned(NamedTuple):
    """A run of the grid: where it lies under BASE, its swept values by path, its config."""

    name: str
    values: dict[str, Any]
    config: Config


# ---------------------------------------------------------------- the grid


def split_values(text: str) -> list[str]:
    """'0.1,{a: 1, b: 2},"x,y"' -> ['0.1', '{a: 1, b: 2}', '"x,y"']: at commas outside of brackets and quotes. ValueError: one is not closed.

    As in YAML, a quote counts where a value can begin, and within brackets after a colon: `it's` is a word.
    """
    found, depth, quote, begins, piece, at = [], 0, "", True, "", 0
    while at < len(text):
        c = text[at]
        if quote:
            if c == "\\" and quote == '"':
                piece, at = piece + c, at + 1
                c = text[at : at + 1]
            elif c == quote == text[at + 1 : at + 2] == "'":  # '' within '...' is one '
                piece, at = piece + c, at + 1
            elif c == quote:
                quote = ""
        elif c in "'\"" and begins:
            quote = c
        elif c == "," and depth == 0:
            found.append(piece.strip())
            piece, at, begins = "", at + 1, True
            continue
        elif c in _OPEN and (depth or begins):
            depth += 1
        elif c in _CLOSE and depth:
            depth -= 1
        if not c.isspace():
            begins = not quote and (c in _OPEN or (depth > 0 and c in ",:"))
        piece, at = piece + c, at + 1
    if depth or quote:
        raise ValueError(f"{quote or 'a bracket'} is not closed")
    return [*found, piece.strip()]


def parse_axes(texts: Sequence[str]) -> list[Axis]:
    """The axes of `--sweep KEY=V1,V2 ...`. Raises ConfigError with all mistakes."""
    axes, mistakes = [], []
    for text in texts:
        path, equals, right = text.partition("=")
        if not equals or not path:
            mistakes.append(f"--sweep {text[:60]}: expected section.field=value,value,...")
            continue
        try:
            pieces = split_values(right)
        except ValueError as error:
            mistakes.append(f"--sweep {path}: {error}")
            continue
        if path == "output_dir":
            mistakes.append(
                "--sweep output_dir: every run of a sweep gets a directory of its own; other values of the config go before --sweep"
            )
        elif "" in pieces:
            mistakes.append(
                f"--sweep {path}: an empty value; write null if that is meant, and '' for empty text"
            )
        elif path in {axis.path for axis in axes}:
            mistakes.append(f"--sweep {path}: given twice")
        else:
            values = []
            for piece in pieces:
                read, wrong = parse_overrides([f"{path}={piece}"])
                mistakes += [f"--sweep {line}" for line in wrong]
                values += read.values()
            names = [_value_name(value) for value in values]
            mistakes += [
                f"--sweep {path}: {pieces[n]} is there twice"
                for n, name in enumerate(names)
                if name in names[:n]
            ]
            axes.append(Axis(path, pieces, values))
    if mistakes:
        raise ConfigError(mistakes)
    return axes


def run_name(values: dict[str, Any]) -> str:
    """'beta=0.1,seed=2': fit for any file system, the same for the same values whatever else the grid holds, and another for others."""
    name = ",".join(
        f"{re.sub(r'[^A-Za-z0-9_.-]', '-', short)}={_value_name(values[path])}"
        for path, short in short_names(list(values)).items()
    )
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}~{_digest(values)}"


def _value_name(value: Any) -> str:
    """A value in letters that every file system takes. Where that loses something, or is long, a digest tells it from others."""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    if not isinstance(value, (str, dict, list)):
        return json.dumps(value)
    whole = (
        isinstance(value, str)
        and re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", value)
        and value not in ("true", "false", "null")
    )
    text = (
        value
        if isinstance(value, str)
        else re.sub(r'["\s{}\[\]]', "", json.dumps(value)).replace(",", "+").replace(":", "-")
    )
    if whole and len(text) <= LONGEST_VALUE:
        return text
    text = re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).strip("-.")
    return f"{text[: LONGEST_VALUE - 9]}~{_digest(value)}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def plan_sweep(
    path: str, overrides: Sequence[str], axes: Sequence[Axis]
) -> tuple[Path, list[Planned], list[str]]:
    """(BASE, the runs of the grid, notes). Nothing runs before every config is sound: ConfigError with all mistakes and the runs they are of."""
    planned, notes, mistakes = [], {}, {}
    base, count = None, 0
    for chosen in itertools.product(*(range(len(axis.values)) for axis in axes)):
        count += 1
        values = {axis.path: axis.values[n] for axis, n in zip(axes, chosen, strict=True)}
        swept, name = (
            [f"{axis.path}={axis.texts[n]}" for axis, n in zip(axes, chosen, strict=True)],
            run_name(values),
        )
        try:
            config, said = load_config(path, [*overrides, *swept])
        except ConfigError as error:
            for line in error.lines:
                mistakes.setdefault(line, []).append(name)
            continue
        base = Path(config.output_dir)
        notes |= dict.fromkeys(said)
        planned.append(Planned(name, values, config.model_copy(update={"output_dir": str(base / name)})))
    if mistakes:
        raise ConfigError(_name_runs(mistakes, count))
    return base, planned, list(notes)


def _name_runs(mistakes: dict[str, list[str]], of: int) -> list[str]:
    """A mistake of all runs stands alone, another with up to three of its runs."""
    return [
        line
        if len(names) == of
        else f"{' and '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {line}"
        for line, names in mistakes.items()
    ]


# ---------------------------------------------------------------- one sft for many runs


class SharedSft:
    """Which run's sft the others start from: of the runs whose sft depends on the same settings (marks.py knows them) the first that finishes it.

    A run that has begun one of its own goes on with it, and as long as none is finished (the first one failed) the next run trains.
    """

    def __init__(self, planned: Sequence[Planned]):
        self._lies_in: dict[str, str] = {}
        for run in planned:
            self.look_at(run.config)

    def look_at(self, config: Config) -> None:
        """Notes the run's sft, if it is finished."""
        if (directory := finished_sft(config)) is not None:
            self.expect(config, directory)

    def expect(self, config: Config, directory: str) -> None:
        """From here on the runs of this run's kind find their sft there, unless they have found one before."""
        self._lies_in.setdefault(self._kind(config), directory)

    def source(self, config: Config) -> str | None:
        """The directory of the run whose sft this one starts from; None: it has no stage sft, trains or has trained one of its own."""
        if "sft" not in config.stages or config.sft.taken_from is not None:
            return config.sft.taken_from
        found = finished_sft(config)
        if found is None and not Marks(config).begun("sft"):
            found = self._lies_in.get(self._kind(config))
        return None if found == config.output_dir else found

    @staticmethod
    def _kind(config: Config) -> str:
        return json.dumps(Marks(config).depends("sft"), sort_keys=True)


def finished_sft(config: Config) -> str | None:
    """Where the sft lies that a run has trained or taken; None: it has none that is whole, or one of other settings."""
    try:
        there = Marks(config).trained_sft()
    except UserError:  # the run itself will say it
        return None
    return None if there is None else str(there.directory)


def with_sft_of(config: Config, directory: str | None) -> Config:
    return (
        config
        if directory is None
        else config.model_copy(update={"sft": config.sft.model_copy(update={"taken_from": directory})})
    )


# ---------------------------------------------------------------- the book of a sweep


class Book:
    """BASE/sweep.json: {"sweep": [paths], "runs": [{name, values, status, error, seconds}]}. Runs of an earlier, other grid stay in it while their
    directory does. Written by one process."""

    def __init__(self, base: Path, planned: Sequence[Planned]):
        self.path = base / "sweep.json"
        self._noted: set[str] = set()
        earlier = self._read()
        grid = {run.name: run.values for run in planned}
        fresh = {"status": TO_DO, "error": None, "seconds": 0.0}
        self.runs: dict[str, dict] = {
            name: {"name": name, "values": values}
            | {key: earlier.get(name, {}).get(key, fresh[key]) for key in fresh}
            for name, values in grid.items()
        }
        self.runs |= {
            name: run for name, run in earlier.items() if name not in grid and (base / name).is_dir()
        }
        self._paths = list(dict.fromkeys(path for run in planned for path in run.values))

    def _read(self) -> dict[str, dict]:
        try:
            return {run["name"]: run for run in json.loads(self.path.read_text())["runs"]}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                [
                    f"{self.path}: not a sweep's book ({error}); put it away, the runs beside it are found again"
                ]
            ) from None

    def note(self, name: str, status: str, error: str | None, seconds: float) -> None:
        run = self.runs[name]
        if run["status"] != DONE:  # to look once more at what is finished takes no time of the run's
            run["seconds"] = round(run["seconds"] + seconds, 1)
        run |= {"status": status, "error": error}
        self._noted.add(name)
        self.write()

    def write(self) -> None:
        """What another sweep in the same directory has noted meanwhile stays."""
        self.runs |= {
            name: run
            for name, run in self._read().items()
            if name not in self._noted and (self.path.parent / name).is_dir()
        }
        write_json(self.path, {"sweep": self._paths, "runs": list(self.runs.values())})


def grid_text(base: Path, planned: Sequence[Planned]) -> str:
    """What --check prints of a sweep."""
    book, shared = Book(base, planned), SharedSft(planned)
    width = max(len(run.name) for run in planned)
    lines = [f"{len(planned)} runs, one after the other, in {base}:"]
    for run in planned:
        said = ""
        if "sft" in run.config.stages:
            source = shared.source(run.config)
            if source is not None:
                said = f"sft of {Path(source).name if Path(source).parent == base else source}"
            else:
                said = "trains sft" if finished_sft(run.config) is None else "has trained sft"
                shared.expect(run.config, run.config.output_dir)
        lines.append(
            f"  {run.name:<{width}}  {book.runs[run.name]['status']:<{len(FAILED)}}  {said}".rstrip()
        )
    return "\n".join(lines)


# ---------------------------------------------------------------- running it


def run_sweep(
    base: Path,
    planned: Sequence[Planned],
    attempt: Callable[[Config], tuple[int, str | None]],
    lacks: Callable[[Path], str | None] | None = None,
) -> int:
    """Runs what is to do and returns the exit status: 0, 1 if a run failed (the others are done all the same), that of a run which was told to stop, or
    2 if the first run that is done lacks something.

    attempt: runs a config and returns its exit status and what went wrong. Of several processes one cannot go on without the others, so
    there a failure ends the sweep. lacks: what is asked for and not to be found in the directory of a run that is done.
    """
    book, shared, failed = Book(base, planned), SharedSft(planned), []
    for number, run in enumerate(planned, start=1):
        began_s = time.time()
        print(f"---- run {number} of {len(planned)}: {run.name}", flush=True)
        status, said = attempt(with_sft_of(run.config, shared.source(run.config)))
        shared.look_at(run.config)
        if said:
            print(said, file=sys.stderr, flush=True)
        index, count = _processes()
        if index == 0:
            outcome = DONE if status == 0 else FAILED if status == 1 else TO_DO
            book.note(
                run.name,
                outcome,
                said.strip().splitlines()[-1].removeprefix("error: ") if said and outcome == FAILED else None,
                time.time() - began_s,
            )
        if status not in (0, 1) or (status and count > 1):
            print(
                f"the sweep stopped in run {number} of {len(planned)}; the same command continues it",
                file=sys.stderr,
            )
            return status
        failed += [run.name] * (status == 1)
        if lacks is not None and status == 0:
            missing, lacks = lacks(Path(run.config.output_dir)) if index == 0 else None, None
            if missing:
                print(
                    f"error: {missing}; run {number} of {len(planned)} is done, and the same command with another name goes on",
                    file=sys.stderr,
                )
            if _first_says(bool(missing)):
                return WRONG_COMMAND
        gc.collect()  # what a run held in cycles would stay in device memory beside the next one's
    if failed:
        print(
            f"{len(failed)} of {len(planned)} runs failed:",
            *(f"  {name}: {book.runs[name]['error']}" for name in failed),
            sep="\n",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _first_says(here: bool) -> bool:
    """What the first process says, in all of them."""
    if _processes()[1] == 1:
        return here
    import numpy as np

    from sparsepo_jax.sharding.processes import as_the_first

    return bool(as_the_first(np.array(here)))


def is_first_process() -> bool:
    return _processes()[0] == 0


def _processes() -> tuple[int, int]:
    """(this process's number, how many there are)."""
    jax = sys.modules.get("jax")
    return (jax.process_index(), jax.process_count()) if jax is not None else (0, 1)
