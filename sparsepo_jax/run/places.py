"""Where a run may write: what lies at output_dir and export.path and does not fit there. No JAX here."""

from collections.abc import Iterator
from pathlib import Path

from sparsepo_jax.config.rounds import ROUND
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.models.directory import ADAPTER, CONFIG
from sparsepo_jax.run.resume import LOOKING, TRAINING

_MOST_NAMED = 3
# What an export that broke off may have left without a config.json.
_OF_EXPORTS = ("unfinished-*", "model*.safetensors*", "adapter", "base")


def place_mistakes(config: Config) -> Iterator[str]:
    """Files where directories would have to be made, and other people's files where an export would go."""
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
    if "export" in config.stages:
        place = Path(config.export.path or output_dir / "export")
        if others := _other_files(place):
            more = " and others" if len(others) > _MOST_NAMED else ""
            yield (
                f"export.path: {place} holds no model, but {', '.join(others[:_MOST_NAMED])}{more}: an "
                "export would lie among them, and be pushed with them: name a new or empty directory"
            )


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
