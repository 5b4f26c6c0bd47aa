"""The comparison of runs: groups of runs that differ in their seed only, side by side; one HTML file and one JSON file made of the runs' files alone.

A sweep (a directory with sweep.json) is grouped by what it swept; other runs by what differs between the settings that they were made with
(stages.json, and config.yaml for what no stage has recorded).
"""

import difflib
import functools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import write_json, write_text
from sparsepo_jax.core.paths import leaves, short_names
from sparsepo_jax.report import frontier, heatmap, plots, table
from sparsepo_jax.report.files import (
    pairs_path,
    read_if_sound,
    read_metrics,
    read_pairs,
    read_settings,
    read_text,
)
from sparsepo_jax.report.intervals import Interval, t_interval, wilson
from sparsepo_jax.report.page import make_environment

KINDS, BETA = "objective.kind", "objective.beta"
SHARES = (
    "after.accuracy",
    "after.accuracy_unmasked",
)  # shares of independent pairs: Wilson's interval is theirs
KLS = ("after.generated_kl", "after.kl")  # the first that all runs have, but for those that have none
SECTIONS = (
    "after",
    "mask",
    "lexicons",
    "measures",
    "harness",
)  # how a number's name begins, in the order of the page
NEAREST = 3  # names that are said in place of a wrong one
FILES = ("summary.json", "metrics.jsonl", "measures.json", "harness.json")  # a run has one of them at least
PAIRS_LOOKED_AT = 64  # of a run's pairs, to find some that all groups have
# Settings that do not change what a run finds, or (the seed) that its group is made over.
_NO_DIFFERENCE = (
    "seed",
    "output_dir",
    "stages",
    "logging",
    "checkpoint",
    "export",
    "report",
    "data.cache_dir",
    "data.inspect_rows",
    "reference.cache_dir",
    "sft.taken_from",
    "compute.compile_cache",
    "compute.distributed",
)
_LONGEST_LABEL = 48

_ROWS = {
    path: (f"{row.label}{'' if path is row.after else ', before'}", row.meaning)
    for rows in vars(table).values()
    if isinstance(rows, tuple)
    for row in rows
    if isinstance(row, table.Row)
    for path in (row.before, row.after)
    if path is not None and (path is row.after or path[0] == "mask")
}
_MASKS = {
    ".".join(path) for row in table.MASK_ROWS for path in (row.before, row.after) if path is not None
}  # in a table of their own, controls are not


@dataclass
class Run:
    """settings: what its group is known by, dotted paths; config: every setting, dotted paths. numbers: see read_numbers, the finite ones. broken: files of
    them that cannot be read, and why."""

    path: Path
    config: dict[str, Any]
    seed: int
    numbers: dict[str, float]
    metrics: plots.Metrics
    pairs: int | None
    broken: list[str]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Group:
    """Runs of the same settings, by seed. method: its settings without beta."""

    label: str
    method: str
    beta: float | None
    runs: list[Run]

    def values(self, metric: str) -> dict[int, float]:
        """By seed, of the runs that have it."""
        return {run.seed: run.numbers[metric] for run in self.runs if metric in run.numbers}

    def knows(self, metrics: Sequence[str]) -> bool:
        """Whether some run has any of these numbers: a group without them is no row of their table."""
        return any(self.values(metric) for metric in metrics)

    def interval(self, metric: str) -> Interval | None:
        """Over seeds; of a single seed's accuracy over its pairs. None: no run has it."""
        values = list(self.values(metric).values())
        pairs = self.runs[0].pairs
        if len(values) == 1 and metric in SHARES and pairs and 0 <= values[0] <= 1:
            return wilson(values[0], pairs)
        return t_interval(values) if values else None


class Difference(NamedTuple):
    """A group minus the baseline, by the seeds of both. interval: None if they share none."""

    group: str
    metric: str
    by_seed: dict[int, float]
    interval: Interval | None


def write_comparison(
    directories: Sequence[Path],
    output: Path,
    *,
    metrics: Sequence[str] = (),
    baseline: str | None = None,
    pairs: int = 3,
) -> Path:
    """Writes output (.html) and the same numbers as .json beside it; returns output.

    directories: each a run, a sweep, or a directory of runs. metrics: drawn against the KL (accuracy_unmasked where none is named). baseline: a group's
    label, a method, an objective's kind or a run's name; the first group where it is None. pairs: shown token by token. UserError: there is nothing to
    compare, or no such metric or baseline.
    """
    groups, left_out = find_groups(directories)
    known = sorted({name for group in groups for run in group.runs for name in run.numbers})
    drawn = [_find_metric(name, known) for name in metrics] or [
        name for name in (SHARES[1],) if name in known
    ]
    base = _find_baseline(groups, baseline)
    moved = [
        run for group in groups for run in group.runs if not run.numbers.keys().isdisjoint(KLS)
    ]  # others (tasks alone) have no place in the plane
    kl = next((name for name in KLS if moved and all(name in run.numbers for run in moved)), None)
    columns = sorted(known, key=_place)
    differences = [
        _difference(group, base, name) for group in groups if group is not base for name in columns
    ]
    planes = [plane for name in drawn if kl is not None and (plane := _plane(groups, name, kl)) is not None]
    matches = [match for name in drawn if kl is not None for match in _matches(groups, base.method, name, kl)]
    sides = _same_pairs(groups, pairs)
    shown = [pair for row in sides for _, pair in row]
    maskless = heatmap.without_masks(shown)
    html = (
        make_environment()
        .get_template("comparison.html.jinja")
        .render(
            title=" and ".join(directory.resolve().name for directory in directories[:3])
            + (" and more" if len(directories) > 3 else ""),
            groups=groups,
            base=base,
            left_out=left_out,
            columns=columns,
            label=label_of,
            meaning=meaning_of,
            differences=differences,
            difference_of={(one.group, one.metric): one.interval for one in differences},
            main=[name for name in columns if name.startswith("after.")],
            masks=[name for name in columns if name in _MASKS],
            words=_words(columns),
            measures=[name for name in columns if name.startswith("measures.")],
            tasks=[name for name in columns if name.startswith("harness.")],
            drawn=drawn,
            kl=kl,
            planes=planes,
            matches=matches,
            most_pairs=max((run.pairs or 0 for group in groups for run in group.runs), default=0),
            charts=plots.make_overlay(
                {group.label: plots.mean_metrics([run.metrics for run in group.runs]) for group in groups}
            ),
            sides=sides,
            scales=heatmap.make_scales(shown),
            maskless=maskless,
            default_key="r" if maskless else "u",
            any_decisive=any(token.decisive for pair in shown for token in pair.tokens),
            heatmap=heatmap,
            table=table,
        )
    )
    write_text(output, html, errors="backslashreplace")
    content = _as_json(groups, base, left_out, columns, differences, matches, kl)
    write_json(output.with_suffix(".json"), content)
    return output


# ---------------------------------------------------------------- runs and groups


def find_groups(directories: Sequence[Path]) -> tuple[list[Group], list[tuple[str, str]]]:
    """The groups in the order of the runs, and (run, why) of those that are left out. UserError: nothing is left."""
    runs, left_out, swept = [], [], []
    for directory in directories:
        book = _book(directory)
        if book is not None:
            swept.append(directory)
            left_out += [
                (str(run["name"]), f"failed: {run['error']}" if run["status"] == "failed" else "not finished")
                for run in book
                if run["status"] != "done"
            ]
        found = (
            [directory / str(run["name"]) for run in book if run["status"] == "done"]
            if book is not None
            else list(_run_directories(directory))
        )
        if not found and book is None:
            left_out.append(
                (
                    str(directory),
                    f"no run: expected {', '.join(FILES[:-1])} or {FILES[-1]} in it, or in the directories in it",
                )
            )
        for path in found:
            run = _read_run(path)
            if run is None:
                left_out.append((path.name, f"no run: none of {', '.join(FILES)}"))
                continue
            runs.append(run)
            left_out += [(path.name, said) for said in run.broken]
            if swept == list(directories):  # what was swept, though some other setting may follow from it
                values = next(one["values"] for one in book if one["name"] == path.name)
                run.settings = {key: value for key, value in leaves(values) if key != "seed"}
    if not runs:
        said = "; ".join(f"{name}: {why}" for name, why in left_out[:3])
        raise UserError(
            f"nothing to compare ({said}); give the directories of runs with stages po or eval, or of a sweep"
        )
    if swept != list(directories) or len(swept) > 1:
        keys = _differing(runs)
        for run in runs:
            run.settings = {key: run.config[key] for key in keys if key in run.config} or (
                {} if run.config else {"run": run.path.name}
            )
    return _grouped(runs, left_out), left_out


def _book(directory: Path) -> list[dict] | None:
    """The runs of a sweep's book; None where there is no book."""
    text = read_text(directory / "sweep.json")
    if text is None:
        return None
    try:
        runs = json.loads(text)["runs"]
        if all(
            isinstance(run["values"], dict)
            and isinstance(run["name"], str)
            and {"status", "error"} <= run.keys()
            for run in runs
        ):
            return runs
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise UserError(
        f"{directory / 'sweep.json'}: not a sweep's book; put it away, and the runs beside it are compared by their config.yaml"
    )


def _run_directories(directory: Path) -> Iterator[Path]:
    if _is_run(directory):
        yield directory
    elif directory.is_dir():
        yield from (path for path in sorted(directory.iterdir()) if path.is_dir() and _is_run(path))


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in FILES)


def _read_run(path: Path) -> Run | None:
    if not _is_run(path):
        return None
    config = dict(_settings(read_settings(path)))
    numbers, pairs, broken = read_numbers(path)
    finite, seed = {name: x for name, x in numbers.items() if x is not None}, config.get("seed")
    return Run(
        path,
        config,
        seed if type(seed) is int else 0,
        finite,
        read_metrics(path / "metrics.jsonl")[0],
        pairs,
        broken,
    )


def read_numbers(path: Path) -> tuple[dict[str, float | None], int | None, list[str]]:
    """({name: number; None where it is null or not finite}, how many pairs were held out, files that cannot be read and why).

    Names are dotted paths: into summary.json (after.kl, mask.auroc_reward, lexicons.opinion.first_pieces.auroc_reward), into measures.json
    (measures.text.rouge1), and harness.TASK.METRIC of harness.json, with a comma and the filter where the answers were filtered.
    """
    broken: list[str] = []
    read = lambda name, stage: read_if_sound(path / name, stage=stage, broken=broken)
    summary, measures, harness = (
        read("summary.json", "eval"),
        read("measures.json", "measure"),
        read("harness.json", "harness"),
    )
    found: dict[str, Any] = {
        name: x
        for name, x in leaves({section: summary.get(section) for section in SECTIONS[:3]})
        if "." in name
    }
    found |= {f"measures.{part}.{name}": x for (part, name), x in table.measured(measures).items()}
    found |= {
        f"harness.{row.task}.{row.metric}{'' if row.filter == 'none' else f',{row.filter}'}": row.value
        for row in table.task_rows(harness)
    }
    numbers = {
        name: table.number_or_none(x)
        for name, x in found.items()
        if x is None or table.number_or_none(x) is not None
    }
    pairs = summary.get("pairs")
    return (
        {name: x if x is not None and math.isfinite(x) else None for name, x in numbers.items()},
        pairs if type(pairs) is int else None,
        broken,
    )


def _settings(config: dict) -> Iterator[tuple[str, Any]]:
    """Dotted path -> value; a mapping also has its own path (value "given"), to be told from null."""
    for path, value in leaves(config):
        words = path.split(".")
        yield from ((".".join(words[:n]), "given") for n in range(1, len(words)))
        yield path, value


def _differing(runs: list[Run]) -> list[str]:
    """The settings in which runs differ, but for those that do not count. A setting that some runs do not have (of another kind, or from before it was
    there) counts if those differ that have it. Paths that go with the seed (each seed from a policy of its own) are part of the seed."""
    found = []
    for key in dict.fromkeys(key for run in runs for key in run.config):
        if any(key == name or key.startswith(f"{name}.") for name in _NO_DIFFERENCE):
            continue
        values = {
            json.dumps(run.config[key], sort_keys=True, default=str) for run in runs if key in run.config
        }
        by_seed = {(run.seed, json.dumps(run.config.get(key), default=str)) for run in runs}
        seeds = {run.seed for run in runs}
        if len(values) > 1 and not (key.endswith(".path") and len(by_seed) == len(seeds) < len(runs)):
            found.append(key)
    return found


def _grouped(runs: list[Run], left_out: list[tuple[str, str]]) -> list[Group]:
    """Runs of the same settings. A label says only what tells a run from others of the same objective."""
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    names = short_names(keys)
    kinds = {run.config.get(KINDS) for run in runs}

    def said(run: Run, without: str | None = None) -> str:
        words = []
        for key, value in run.settings.items():
            if key == without or value == "given":
                continue
            alike = {
                json.dumps(other.settings[key], default=str)
                for other in runs
                if other.config.get(KINDS) == run.config.get(KINDS) and key in other.settings
            }
            if key == KINDS:
                words.insert(0, str(value))
            elif len(alike) > 1:
                words.append(f"{names[key]} {_word(value)}")
        kind = run.config.get(KINDS)
        if isinstance(kind, str) and kind not in words and (not words or len(kinds) > 1):
            words.insert(0, kind)
        return ", ".join(words) or "all runs"

    groups: dict[str, Group] = {}
    labels: dict[str, int] = {}
    for run in runs:
        key = json.dumps(run.settings, sort_keys=True, default=str)
        if key not in groups:
            label = said(run)
            labels[label] = labels.get(label, 0) + 1
            beta = run.settings.get(BETA, run.config.get(BETA))
            label = label if labels[label] == 1 else f"{label} ({labels[label]})"
            groups[key] = Group(
                label, said(run, BETA) if BETA in run.settings else label, table.number_or_none(beta), []
            )
        group = groups[key]
        if any(run.seed == other.seed for other in group.runs):
            left_out.append(
                (
                    str(run.path),
                    f"the same settings and seed as {next(o.path for o in group.runs if o.seed == run.seed)}",
                )
            )
        else:
            group.runs.append(run)
    for group in groups.values():
        group.runs.sort(key=lambda run: run.seed)
    return list(groups.values())


def _word(value: Any) -> str:
    text = (
        f"{value:g}"
        if isinstance(value, float) and float(f"{value:g}") == value
        else value
        if isinstance(value, str)
        else json.dumps(value, default=str)
    )
    return (
        text
        if len(text) <= _LONGEST_LABEL
        else f"{text[: _LONGEST_LABEL // 2 - 2]}...{text[-_LONGEST_LABEL // 2 + 1 :]}"
    )


def _find_baseline(groups: list[Group], name: str | None) -> Group:
    if name is None:
        return groups[0]
    for fits in (
        lambda g: g.label == name,
        lambda g: g.method == name,
        lambda g: any(run.config.get(KINDS) == name for run in g.runs),
        lambda g: any(run.path.name == name for run in g.runs),
    ):
        if found := [group for group in groups if fits(group)]:
            return found[0]
    raise UserError(f"--baseline: expected one of {'; '.join(group.label for group in groups)}; got {name}")


# ---------------------------------------------------------------- numbers


@functools.cache
def _row(name: str) -> tuple[str, str]:
    """(label, meaning): as in the tables of a run's report, else by its own name."""
    section, _, rest = name.partition(".")
    path = tuple(name.split("."))
    if path in _ROWS:
        return _ROWS[path]
    if section == "lexicons" and ("mask", path[-1]) in _ROWS:
        (label, meaning), first = _ROWS["mask", path[-1]], path[-2] == "first_pieces"
        pieces = ", of each word its first piece only" if first else ""
        return (
            f"{path[1]}: {label}{', first pieces' if first else ''}",
            f"{meaning} Decisive: words of {path[1]}{pieces}.",
        )
    if section == "measures":
        return path[-1], table.meaning_of_measure(path[-1]) or ""
    if section == "harness":
        task, _, metric = rest.rpartition(".")
        return f"{task}: {metric.replace(',', ', ')}", f"{metric} of the task {task}, in harness.json."
    return rest.replace("_", " ").replace(".", ", "), f"{name} in summary.json."


def label_of(name: str) -> str:
    return _row(name)[0]


def meaning_of(name: str) -> str:
    return _row(name)[1]


def _place(name: str) -> tuple:
    """In the order of the sections; there, lexicon by lexicon, in that of the summary's table, and what it does not know after that."""
    order, path = list(_ROWS), tuple(name.split("."))
    above, row = (path[1:-1], ("mask", path[-1])) if path[0] == "lexicons" else ((), path)
    return (SECTIONS.index(path[0]), above, order.index(row) if row in order else len(order), name)


def _words(columns: Sequence[str]) -> dict[str, list[str]]:
    """Lexicon -> what masks make of its words; controls are not among it."""
    found: dict[str, list[str]] = {}
    for name in columns:
        path = name.split(".")
        if path[0] == "lexicons" and f"mask.{path[-1]}" in _MASKS:
            found.setdefault(path[1], []).append(name)
    return found


def check_metrics(names: Sequence[str], directory: Path) -> None:
    """UserError if a --metric is none of a run's numbers. One that is null there counts: other runs may have it, as those with a mask have its AUROC."""
    numbers, _, broken = read_numbers(directory)
    if not numbers:
        raise UserError(
            broken[0]
            if broken
            else f"--metric: there are no numbers in {directory}: the stages eval, measure and harness write them"
        )
    unknown = tuple(
        f"{name}." for name, x in numbers.items() if x is None
    )  # where there is null in place of a mapping
    for name in names:
        if not any(candidate.startswith(unknown) for candidate in _candidates(name)):
            _find_metric(name, list(numbers))


def _candidates(name: str) -> tuple[str, ...]:
    return name, f"after.{name}", f"mask.{name}"


def _find_metric(name: str, known: Sequence[str]) -> str:
    for candidate in _candidates(name):
        if candidate in known:
            return candidate
    short = [one.removeprefix("after.").removeprefix("mask.") for one in known]
    nearest = difflib.get_close_matches(name, short, n=NEAREST, cutoff=0)
    raise UserError(
        f"--metric: no number is called {name}; "
        + (f"the nearest of {len(short)} are {', '.join(nearest)}" if nearest else "there are none")
    )


def _difference(group: Group, base: Group, metric: str) -> Difference:
    ours, theirs = group.values(metric), base.values(metric)
    by_seed = {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}
    return Difference(group.label, metric, by_seed, t_interval(list(by_seed.values())) if by_seed else None)


def _methods(groups: list[Group]) -> dict[str, list[Group]]:
    """Groups that differ in beta only, in its order."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.method, []).append(group)
    return {
        method: sorted(of, key=lambda group: math.inf if group.beta is None else group.beta)
        for method, of in found.items()
    }


def _plane(groups: list[Group], metric: str, kl: str) -> frontier.Plane | None:
    methods = {}
    for method, of in _methods(groups).items():
        spots = []
        for group in of:
            both = [run for run in group.runs if metric in run.numbers and kl in run.numbers]
            if both:
                seeds = [(run.numbers[kl], run.numbers[metric]) for run in both]
                short = f"{group.beta:g}" if group.beta is not None and len(of) > 1 else ""
                spots.append(
                    (
                        short,
                        frontier.Spot(
                            group.label, t_interval([x for x, _ in seeds]), group.interval(metric), seeds
                        ),
                    )
                )
        methods[method] = spots
    return frontier.draw(methods, title=label_of(metric), x_label=f"{label_of(kl)} (nats per response)")


class MethodMatch(NamedTuple):
    method: str
    base: str
    metric: str
    found: list[frontier.Matched]  # empty: there is no KL that both reach


def _matches(groups: list[Group], base: str, metric: str, kl: str) -> list[MethodMatch]:
    """Each method against the baseline's at three KLs from the lowest to the highest that most of their seeds reach."""
    points: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for method, of in _methods(groups).items():
        for run in (run for group in of for run in group.runs if metric in run.numbers and kl in run.numbers):
            points.setdefault(method, {}).setdefault(run.seed, []).append(
                (run.numbers[kl], run.numbers[metric])
            )
    found = []
    for method, ours in points.items():
        if method != base and base in points:
            ends = frontier.shared_range(ours, points[base])
            at = [] if ends is None else [ends[0], (ends[0] + ends[1]) / 2, ends[1]]
            found.append(MethodMatch(method, base, metric, frontier.matched(ours, points[base], at)))
    return found


# ---------------------------------------------------------------- pairs


def _same_pairs(groups: list[Group], limit: int) -> list[list[tuple[Group, heatmap.Pair]]]:
    """Up to `limit` evaluation pairs as each group's first seed sees them; only pairs of the same texts."""
    seen = []
    for group in groups:
        path = pairs_path(group.runs[0].path)
        if path is not None:
            seen.append((group, {pair.index: pair for pair in islice(read_pairs(path), PAIRS_LOOKED_AT)}))
    rows = []
    for index in seen[0][1] if seen else ():
        row = [(group, pairs[index]) for group, pairs in seen if index in pairs]
        if (
            len(row) == len(seen)
            and len({tuple(token.text for token in pair.tokens) for _, pair in row}) == 1
        ):
            rows.append(row)
    return rows[:limit]


def _as_json(groups, base, left_out, columns, differences, matches, kl) -> dict[str, Any]:
    """The content of comparison.json. Intervals are {n, mean, low, high, kind}; kind "t" over seeds, "wilson" over pairs, null: one seed."""
    return {
        "baseline": base.label,
        "kl": kl,
        "groups": [
            {
                "label": group.label,
                "method": group.method,
                "beta": group.beta,
                "settings": group.runs[0].settings,
                "runs": {str(run.seed): str(run.path) for run in group.runs},
                "metrics": {
                    name: interval._asdict() | {"by_seed": group.values(name)}
                    for name in columns
                    if (interval := group.interval(name)) is not None
                },
            }
            for group in groups
        ],
        "differences": [
            one._asdict() | {"interval": one.interval and one.interval._asdict()} for one in differences
        ],
        "matched": [
            one._asdict()
            | {
                "found": [
                    m._asdict() | {"difference": m.difference and m.difference._asdict()} for m in one.found
                ]
            }
            for one in matches
        ],
        "left_out": [{"run": name, "why": why} for name, why in left_out],
    }
