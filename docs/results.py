"""Writes the pages of results, and the blocks of figures in README.md, from benchmarks/results/*.json.

    python docs/results.py            write them
    python docs/results.py --check    write nothing; exit with 1 and name the files that differ from the JSON

A page results/NAME.md comes from templates/NAME.md.jinja. A block of README.md, between the marks
`<!-- NAME: ... -->` and `<!-- end of NAME -->`, comes from templates/readme_NAME.md.jinja. Templates read the
JSON files by name, as `results.which_tokens_reviews.means`; a name that is not there is an error.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from sparsepo_jax.report.intervals import t_interval

DOCS = Path(__file__).parent
REPOSITORY = DOCS.parent
TEMPLATES = DOCS / "templates"
NOTE = "<!-- Made by docs/results.py from benchmarks/results/*.json and docs/templates/{}: edit those. -->\n"


def load_results(directory: Path = REPOSITORY / "benchmarks" / "results") -> dict[str, Any]:
    """The content of every JSON file, by its name without the device and with _ for -.

    What was measured on several cards or devices, gpu-CARD.json and evidence-DEVICE.json, is a mapping of
    them, `gpu` or `evidence`; mask_controls-NAME.json are `masks`, by the variant's name."""
    contents = {path.stem: json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))}
    by_device: dict[str, Any] = {"gpu": {}, "evidence": {}}
    for name in list(contents):
        kind, _, device = name.partition("-")
        if kind in by_device:
            by_device[kind][device] = contents.pop(name)
    controls = [name for name in contents if name.startswith("mask_controls-") and "-reviews-" not in name]
    masks = {
        name.removeprefix("mask_controls-").removesuffix("-cpu"): contents.pop(name) for name in controls
    }
    named = {name.removesuffix("-cpu").replace("-", "_"): content for name, content in contents.items()}
    return named | by_device | {"masks": masks}


# ---------------------------------------------------------------- what templates call


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals; - for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}"


def percent(share: float | None, digits: int = 0) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def gib(size: float, digits: int = 1) -> str:
    """Bytes as GiB."""
    return f"{size / 2**30:.{digits}f}"


def interval(figure: Mapping[str, Any], digits: int = 3) -> str:
    """`mean (low to high)` of a mean and its 95 % interval."""
    if figure["low"] is None:
        return number(figure["mean"], digits)
    mean, low, high = (number(figure[name], digits) for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def spread(figure: Mapping[str, float], digits: int = 3) -> str:
    """`mean (least to largest)` over seeds."""
    mean, least, largest = (number(figure[name], digits) for name in ("mean", "least", "largest"))
    return f"{mean} ({least} to {largest})"


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean; None if any value is None."""
    listed = list(values)
    return None if None in listed else statistics.fmean(x for x in listed if x is not None)


def pick(rows: Iterable[Any], *keys: str) -> list[Any]:
    """row[key][key]... of each row."""
    values = list(rows)
    for key in keys:
        values = [value[key] for value in values]
    return values


def rows_where(rows: Iterable[Mapping[str, Any]], **wanted: Any) -> list[Mapping[str, Any]]:
    """The rows that have these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def environment() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    functions = (
        number,
        signed,
        percent,
        gib,
        interval,
        spread,
        mean_of,
        pick,
        rows_where,
        paired,
        less,
        seed_by_seed,
        compared_methods,
    )
    templates.globals |= {function.__name__: function for function in functions}
    return templates


def paired(rows: Iterable[Mapping[str, Any]], figure: str, first: str, second: str) -> dict[str, Any]:
    """What a figure is under one control more than under another, over the seeds that have both."""
    rows = list(rows)
    return less(rows_where(rows, control=first), rows_where(rows, control=second), figure)


def less(
    rows: Iterable[Mapping[str, Any]], others: Iterable[Mapping[str, Any]], figure: str
) -> dict[str, Any]:
    """What a figure is in rows more than in others, over the seeds in which both have it."""
    of, of_others = (
        {row["seed"]: row[figure] for row in group if row.get(figure) is not None} for group in (rows, others)
    )
    return t_interval([of[seed] - of_others[seed] for seed in of if seed in of_others])._asdict()


def seed_by_seed(
    first: Mapping[str, Any], second: Mapping[str, Any], figure: str, beta: float
) -> dict[str, Any] | None:
    """What a figure is with one method more than with another, over seeds, at one rate and beta.

    None: they have other rates, or no seed of that beta with that figure in common.
    """
    if first["rate"] != second["rate"]:
        return None
    of_first, of_second = (
        {
            point["seed"]: point[figure]
            for point in method["points"]
            if point["beta"] == beta and figure in point
        }
        for method in (first, second)
    )
    differences = [of_first[seed] - of_second[seed] for seed in of_first.keys() & of_second.keys()]
    return t_interval(differences)._asdict() if differences else None


def compared_methods(methods: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each method against DPO, and the learned mask against the same weights on other tokens."""
    pairs = [(name, "DPO") for name in methods if name != "DPO"] + [("SparsePO, common", "shuffled mask")]
    return [pair for pair in pairs if all(name in methods for name in pair)]


# ---------------------------------------------------------------- files


def render_all(results: Mapping[str, Any] | None = None) -> dict[Path, str]:
    """Every file that holds figures, with the text it should have."""
    templates, values = environment(), {"results": load_results() if results is None else results}
    files: dict[Path, str] = {}
    readme = REPOSITORY / "README.md"
    text = readme.read_text()
    for template in sorted(TEMPLATES.glob("*.md.jinja")):
        rendered = templates.get_template(template.name).render(values)
        name = template.name.removesuffix(".md.jinja")
        if name.startswith("readme_"):
            text = replace_block(text, name.removeprefix("readme_"), rendered)
        else:
            files[DOCS / "results" / f"{name}.md"] = NOTE.format(template.name) + rendered
    return files | {readme: text}


def replace_block(text: str, name: str, content: str) -> str:
    """The text with other content between the two marks of a block. Raises ValueError if there is no such
    block."""
    pattern = rf"(<!-- {name}: [^\n]* -->\n).*?(<!-- end of {name} -->)"
    replaced, count = re.subn(pattern, lambda match: match[1] + content + match[2], text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"README.md: expected one block <!-- {name}: ... -->, found {count}")
    return replaced


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = []
    for path, text in render_all().items():
        if path.exists() and path.read_text() == text:
            continue
        stale.append(path)
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    for path in stale:
        print(f"{path.relative_to(REPOSITORY)}: {'differs from the JSON' if options.check else 'written'}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
