"""Where a run may write: what lies at output_dir and export.path and does not fit there. No JAX here."""

from collections.abc import Iterator
from pathlib import Path

from sparsepo_jax.config.rounds import ROUND
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.config.yaml_text import NotYaml, parse, write
from sparsepo_jax.models.directory import ADAPTER, CONFIG
from sparsepo_jax.run.resume import LOOKING, TRAINING

# Files that a run writes at the top of output_dir, whatever is there. What it finds in stages.json,
# template_date.json and databases of trackers it keeps.
WRITTEN = (
    "config.yaml",
    "metrics.jsonl",
    "trackers.json",
    "pushed.json",
    "summary.json",
    "pairs.jsonl",
    "scores.jsonl",
    "weighed.jsonl",
    "weights.html",
    "samples.jsonl",
    "generations.jsonl",
    "measures.json",
    "measures_samples.jsonl",
    "harness.json",
    "pairs_made.jsonl",
    "scored_samples.jsonl",
    "report.html",
)
_MOST_NAMED = 3
# What an export that broke off may have left without a config.json.
_OF_EXPORTS = ("unfinished-*", "model*.safetensors*", "adapter", "base")


def place_mistakes(config: Config) -> Iterator[str]:
    """Files where directories would have to be made, and other people's files where a run's would go."""
    for name, path in (("output_dir", config.output_dir), ("export.path", config.export.path)):
        if path is None:
            continue
        place = Path(path)
        there = next(part for part in (place, *place.absolute().parents) if part.exists())
        if not there.is_dir():
            yield f"{name}: {there} is a file: take another path, or put the file away"
    output_dir = Path(config.output_dir)
    is_trained = any((output_dir / stage).is_dir() for stage in TRAINING)  # it is a run itself, with others
    if config.rounds is None and (output_dir / f"{ROUND}1").is_dir() and not is_trained:
        yield (
            f"output_dir: {config.output_dir} holds rounds, each a run of its own, and this would be another "
            f"run beside them: a round is read with --config {config.output_dir}/{ROUND}N/config.yaml, and "
            "continued with rounds; else take another output_dir"
        )
    reads_alone = not is_trained and {*TRAINING, *LOOKING}.isdisjoint(config.stages)
    if (output_dir / "sweep.json").is_file() and reads_alone:
        yield (
            f"output_dir: {config.output_dir} holds a sweep, whose runs lie in directories of their own, and "
            f"{', '.join(config.stages)} would read none of them: one is read with --config "
            f"{config.output_dir}/NAME/config.yaml, all with --sweep; else take another output_dir"
        )
    if not LOOKING.issuperset(config.stages) and config.rounds is None:
        yield from _would_be_written_over(output_dir, _brought(config))
    if "export" in config.stages:
        place = Path(config.export.path or output_dir / "export")
        if others := _other_files(place):
            more = " and others" if len(others) > _MOST_NAMED else ""
            yield (
                f"export.path: {place} holds no model, but {', '.join(others[:_MOST_NAMED])}{more}: an "
                "export would lie among them, and be pushed with them: name a new or empty directory"
            )


def _brought(config: Config) -> set[str]:
    """Files of these names that the stages read and do not write: another run's answers, to be measured."""
    return {"generations.jsonl"} if "measure" in config.stages and "generate" not in config.stages else set()


def _would_be_written_over(output_dir: Path, brought: set[str]) -> Iterator[str]:
    """Files that are named as a run's are, in a directory where no run was: data, or the config itself."""
    if (output_dir / "stages.json").is_file() or any((output_dir / stage).is_dir() for stage in TRAINING):
        return
    if _is_record(output_dir / "config.yaml"):
        return
    if names := [name for name in WRITTEN if name not in brought and (output_dir / name).is_file()]:
        more = " and more" if len(names) > _MOST_NAMED else ""
        yield (
            f"output_dir: {output_dir} holds no run, but {', '.join(names[:_MOST_NAMED])}{more}: a run would "
            "write its own over them: put them elsewhere, or take another output_dir"
        )


def _is_record(path: Path) -> bool:
    """Whether a config is as a run writes it: every setting, and nothing besides, such as comments.

    Plain YAML written by hand may be laid out in the same way, but leaves settings to their defaults.
    """
    try:
        text = path.read_text()
        content = parse(text)
        return (
            isinstance(content, dict)
            and content.keys() >= Config.model_fields.keys()
            and write(content) == text
        )
    except (OSError, UnicodeDecodeError, NotYaml):
        return False


def _other_files(place: Path) -> list[str]:
    """What lies in a directory that is no export; hidden files, as of git, do not count."""
    is_export = (place / CONFIG).exists() or (place / "adapter" / ADAPTER).exists()
    if is_export or not place.is_dir():
        return []
    return sorted(
        path.name
        for path in place.iterdir()
        if not path.name.startswith(".") and not any(path.match(pattern) for pattern in _OF_EXPORTS)
    )
