"""Many runs of one config that differ in a few values: `--sweep objective.beta=0.1,0.4 seed=0,1,2`.

One run after the other in one process. A run is kept in BASE/NAME (BASE: the config's output_dir, NAME: its
swept values) and is a run like any other: its finished stages are not repeated, and an interrupted one
continues. Runs whose stage sft would train the same weights train it once. BASE/sweep.json: how each ended.
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

from sparsepo_jax.config.load import ConfigError, load_config
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.config.shown import cut, shown
from sparsepo_jax.config.yaml_text import NotYaml, parse
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import write_json
from sparsepo_jax.core.paths import short_names
from sparsepo_jax.run.free_programs import free_programs
from sparsepo_jax.run.resume import Marks
from sparsepo_jax.run.sweep_exports import export_mistakes

DONE, FAILED, TO_DO = "done", "failed", "to do"
WRONG_COMMAND = 2  # exit status, as main.py's
LONGEST_VALUE, LONGEST_NAME = 40, 160  # characters in a directory's name


class Axis(NamedTuple):
    """A swept setting: its dotted path and its values."""

    path: str
    values: list[Any]


class Planned(NamedTuple):
    """A run of the grid: its directory's name under BASE, its swept values by path, its config."""

    name: str
    values: dict[str, Any]
    config: Config


# ---------------------------------------------------------------- the grid


def parse_axes(texts: Sequence[str]) -> list[Axis]:
    """The axes of `--sweep KEY=V1,V2 ...`: what stands behind the = is a YAML list without its brackets.

    Raises:
        ConfigError: with all mistakes.
    """
    axes: list[Axis] = []
    mistakes: list[str] = []
    for text in texts:
        path, equals, values_text = text.partition("=")
        if not equals or not all(path.split(".")):
            mistakes.append(f"--sweep {cut(text)}: expected section.field=value,value,...")
        elif path == "output_dir":
            mistakes.append(
                "--sweep output_dir: every run of a sweep gets a directory of its own; other values of the "
                "config go before --sweep"
            )
        elif path in {axis.path for axis in axes}:
            mistakes.append(f"--sweep {path}: given twice")
        else:
            try:
                axes.append(Axis(path, parse(f"[{values_text}]")))
            except NotYaml as error:
                mistakes.append(
                    f"--sweep {path}: {shown(values_text)} is no list of YAML values ({error.problem})"
                )
                continue
            mistakes += [f"--sweep {path}: {problem}" for problem in _value_problems(axes[-1].values)]
    if mistakes:
        raise ConfigError(mistakes)
    return axes


def _value_problems(values: list[Any]) -> list[str]:
    if not values:
        return ["no value; write null if that is meant, and '' for empty text"]
    names = [_value_name(value) for value in values]
    repeated = [value for n, value in enumerate(values) if names[n] in names[:n]]
    return [f"{shown(value)} is there twice" for value in repeated]


def run_name(values: dict[str, Any]) -> str:
    """'beta=0.1,seed=2': fit for any file system.

    Equal values have the same name whatever else the grid holds, and other values another.
    """
    keys = {path: re.sub(r"[^A-Za-z0-9_.-]", "-", name) for path, name in short_names(list(values)).items()}
    name = ",".join(f"{key}={_value_name(values[path])}" for path, key in keys.items())
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}~{_digest(values)}"


def _value_name(value: Any) -> str:
    """A value in letters that every file system takes; with a digest where that loses something, or is
    long."""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    if not isinstance(value, (str, dict, list)):
        return json.dumps(value)
    if isinstance(value, str):
        text = value
        is_word = re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", value) is not None
        if is_word and value not in ("true", "false", "null") and len(value) <= LONGEST_VALUE:
            return value
    else:
        text = re.sub(r'["\s{}\[\]]', "", json.dumps(value)).replace(",", "+").replace(":", "-")
    text = re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).strip("-.")
    return f"{text[: LONGEST_VALUE - 9]}~{_digest(value)}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def plan_sweep(
    path: str, overrides: Sequence[str], axes: Sequence[Axis]
) -> tuple[Path, list[Planned], list[str]]:
    """(BASE, the runs of the grid, notes). Every config is checked before anything runs.

    Args:
        path: of the config.
        overrides: of all runs, as `load_config` takes them.
        axes: the settings that differ.

    Raises:
        ConfigError: with all mistakes, and the runs that have them.
    """
    planned: list[Planned] = []
    notes: list[str] = []
    mistakes: dict[str, list[str]] = {}  # line -> names of runs
    base = Path()
    grid = [
        {axis.path: value for axis, value in zip(axes, values, strict=True)}
        for values in itertools.product(*(axis.values for axis in axes))
    ]
    for values in grid:
        name = run_name(values)
        try:
            config, new_notes = load_config(path, overrides, values)
        except ConfigError as error:
            for line in error.lines:
                mistakes.setdefault(line, []).append(name)
            continue
        base = Path(config.output_dir)
        notes += new_notes
        planned.append(Planned(name, values, config.model_copy(update={"output_dir": str(base / name)})))
    for line in export_mistakes([run.config for run in planned]):
        mistakes[line] = [run.name for run in planned]
    if mistakes:
        raise ConfigError([_with_runs(line, names, len(grid)) for line, names in mistakes.items()])
    return base, planned, list(dict.fromkeys(notes))


def _with_runs(line: str, names: list[str], count: int) -> str:
    """A mistake of all `count` runs stands alone, another with up to three of its runs."""
    if len(names) == count:
        return line
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{' and '.join(names[:3])}{more}: {line}"


# ---------------------------------------------------------------- one sft for many runs


class SharedSft:
    """Which run's sft the others start from.

    Of the runs whose sft depends on the same settings (run/resume.py knows them) it is the first that
    finishes it. A run that has begun one of its own goes on with it, and as long as none is finished (the
    first one failed) the next run trains.
    """

    def __init__(self, planned: Sequence[Planned]):
        self._directories: dict[str, str] = {}  # settings -> the run that has the sft
        for run in planned:
            self.look_at(run.config)

    def look_at(self, config: Config) -> None:
        """Notes the run's sft, if it is finished."""
        directory = finished_sft(config)
        if directory is not None:
            self.expect(config, directory)

    def expect(self, config: Config, directory: str) -> None:
        """From here on runs with these settings of sft find it there, unless one was known before."""
        self._directories.setdefault(self._settings(config), directory)

    def source(self, config: Config) -> str | None:
        """The directory of the run whose sft this one starts from; None: it has no stage sft, or one of its
        own."""
        if "sft" not in config.stages or config.sft.taken_from is not None or config.rounds is not None:
            return config.sft.taken_from
        directory = finished_sft(config)
        if directory is None and not Marks(config).begun("sft"):
            directory = self._directories.get(self._settings(config))
        return None if directory == config.output_dir else directory

    @staticmethod
    def _settings(config: Config) -> str:
        return json.dumps(Marks(config).depends("sft"), sort_keys=True)


def finished_sft(config: Config) -> str | None:
    """The directory of the sft that a run has trained or taken; None: it is not finished, or of other
    settings."""
    try:
        marks = Marks(config).trained_sft()
    except UserError:  # the run itself will report it
        return None
    return None if marks is None else str(marks.directory)


def with_sft_of(config: Config, directory: str | None) -> Config:
    """The config that takes its sft from another run's directory; None: as it is."""
    if directory is None:
        return config
    sft = config.sft.model_copy(update={"taken_from": directory})
    return config.model_copy(update={"sft": sft})


# ---------------------------------------------------------------- the book of a sweep


class Book:
    """BASE/sweep.json: {"sweep": [paths], "runs": [{name, values, status, error, seconds}]}.

    Runs of an earlier, other grid stay in it while their directory exists. Written by one process.
    """

    def __init__(self, base: Path, planned: Sequence[Planned]):
        self.path = base / "sweep.json"
        self._noted: set[str] = set()
        earlier = self._read()
        fresh = {"status": TO_DO, "error": None, "seconds": 0.0}
        self.runs: dict[str, dict[str, Any]] = {}
        for run in planned:
            known = earlier.get(run.name, {})
            state = {key: known.get(key, value) for key, value in fresh.items()}
            self.runs[run.name] = {"name": run.name, "values": run.values} | state
        for name, run_before in earlier.items():
            if name not in self.runs and (base / name).is_dir():
                self.runs[name] = run_before
        self._paths = list(dict.fromkeys(path for run in planned for path in run.values))

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            return {run["name"]: run for run in json.loads(self.path.read_text())["runs"]}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                [
                    f"{self.path}: not a sweep's book ({error}); put it away, the runs beside it "
                    "are found again"
                ]
            ) from None

    def note(self, name: str, status: str, error: str | None, seconds: float) -> None:
        """Records how a run ended."""
        run = self.runs[name]
        if run["status"] != DONE:  # looking once more at what is finished takes none of the run's time
            run["seconds"] = round(run["seconds"] + seconds, 1)
        run |= {"status": status, "error": error}
        self._noted.add(name)
        self.write()

    def write(self) -> None:
        """Keeps what another sweep in the same directory has noted meanwhile."""
        for name, run in self._read().items():
            if name not in self._noted and (self.path.parent / name).is_dir():
                self.runs[name] = run
        write_json(self.path, {"sweep": self._paths, "runs": list(self.runs.values())})


def grid_text(base: Path, planned: Sequence[Planned]) -> str:
    """What --check prints of a sweep."""
    book, shared = Book(base, planned), SharedSft(planned)
    width = max(len(run.name) for run in planned)
    lines = [f"{len(planned)} runs, one after the other, in {base}:"]
    for run in planned:
        status = book.runs[run.name]["status"]
        lines.append(
            f"  {run.name:<{width}}  {status:<{len(FAILED)}}  {_sft_text(base, run.config, shared)}".rstrip()
        )
    return "\n".join(lines)


def _sft_text(base: Path, config: Config, shared: SharedSft) -> str:
    """Where a run's sft comes from; empty where it has none."""
    if "sft" not in config.stages:
        return ""
    source = shared.source(config)
    if source is not None:
        return f"sft of {Path(source).name if Path(source).parent == base else source}"
    shared.expect(config, config.output_dir)
    return "trains sft" if finished_sft(config) is None else "has trained sft"


# ---------------------------------------------------------------- running it


def run_sweep(
    base: Path,
    planned: Sequence[Planned],
    attempt: Callable[[Config], tuple[int, str | None]],
    lacks: Callable[[Path], str | None] | None = None,
) -> int:
    """Runs what is to do and returns the exit status.

    Args:
        base: BASE.
        planned: the runs of the grid.
        attempt: runs a config and returns its exit status and, in one line, what went wrong. Of several
            processes one cannot go on without the others, so there a failure ends the sweep.
        lacks: what was asked for (--metric) and is missing in the directory of a finished run; called once,
            for the first run that is done.

    Returns:
        0; 1 if a run failed (the others are done all the same); that of a run which was told to stop; or 2
        if the first run that is done lacks something.
    """
    book, shared = Book(base, planned), SharedSft(planned)
    failed: list[str] = []
    for number, run in enumerate(planned, start=1):
        began_s = time.time()
        print(f"---- run {number} of {len(planned)}: {run.name}", flush=True)
        status, error = attempt(with_sft_of(run.config, shared.source(run.config)))
        shared.look_at(run.config)
        if error:
            print(error, file=sys.stderr, flush=True)
        index, count = _processes()
        if index == 0:
            _note(book, run.name, status, error, time.time() - began_s)
        if status not in (0, 1) or (status and count > 1):
            print(
                f"the sweep stopped in run {number} of {len(planned)}; the same command continues it",
                file=sys.stderr,
            )
            return status
        if status == 1:
            failed.append(run.name)
        elif lacks is not None:
            missing = lacks(Path(run.config.output_dir)) if index == 0 else None
            lacks = None
            if missing:
                print(
                    f"error: {missing}; run {number} of {len(planned)} is done, and the same command with "
                    "another name goes on",
                    file=sys.stderr,
                )
            if _first_says(bool(missing)):
                return WRONG_COMMAND
        gc.collect()  # what a run held in cycles would stay in device memory beside the next one's
        free_programs()
    if not failed:
        return 0
    lines = [f"  {name}: {book.runs[name]['error']}" for name in failed]
    print(f"{len(failed)} of {len(planned)} runs failed:", *lines, sep="\n", file=sys.stderr)
    return 1


def _note(book: Book, name: str, status: int, error: str | None, seconds: float) -> None:
    """Records a run by its exit status and its message, of which the book keeps the last line."""
    outcome = {0: DONE, 1: FAILED}.get(status, TO_DO)
    reason = None
    if error and outcome == FAILED:
        reason = error.strip().splitlines()[-1].removeprefix("error: ")
    book.note(name, outcome, reason, seconds)


def _first_says(here: bool) -> bool:
    """The first process's answer, in all of them."""
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
