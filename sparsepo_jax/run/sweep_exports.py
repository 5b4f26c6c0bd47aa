"""Runs of a sweep that would export over each other."""

from collections.abc import Iterator, Sequence

from sparsepo_jax.config.schema.root import Config


def export_mistakes(configs: Sequence[Config]) -> Iterator[str]:
    """Lines about a directory or a repository that several of the runs would export to."""
    for setting in ("hub", "path"):
        exports = [config.export for config in configs if "export" in config.stages]
        places = [place for export in exports if (place := getattr(export, setting)) is not None]
        if len(set(places)) < len(places):
            yield (
                f"export.{setting}: {len(places)} runs of the sweep would export to {places[0]}, each over "
                f"the one before: leave it out, or sweep export.{setting} with a place for each run"
            )
