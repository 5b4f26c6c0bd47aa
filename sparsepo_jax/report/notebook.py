"""A run's directory in a notebook: its figures as Python values, its masks as a picture under the cell."""

import functools
import html
from itertools import islice
from pathlib import Path
from typing import Any

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.report import table
from sparsepo_jax.report.files import pairs_path, read_evaluation, read_metrics, read_pairs, read_settings
from sparsepo_jax.report.heatmap import Pair
from sparsepo_jax.report.outcome import outcome
from sparsepo_jax.report.page import RESULTS, heatmap_context, make_environment
from sparsepo_jax.report.series import MetricSeries
from sparsepo_jax.report.table import summary_table

_HEIGHT_PX = 560


def load_run(directory: str | Path) -> "LoadedRun":
    """The run in a directory. UserError: there is none."""
    path = Path(directory)
    if not any((path / name).is_file() for name in RESULTS):
        raise UserError(f"{path}: expected the output_dir of a run, found none of {', '.join(RESULTS)}")
    return LoadedRun(path)


class LoadedRun:
    """What a run has left, read when it is asked for. As the last line of a cell it shows words, and the
    masks of its first pairs.

    Attributes:
        directory: its output_dir.
    """

    def __init__(self, directory: Path):
        self.directory = directory

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of its stages, as nested mappings."""
        return read_settings(self.directory)

    @functools.cached_property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json; empty before the stage eval."""
        return read_evaluation(self.directory) or {}

    @functools.cached_property
    def metrics(self) -> MetricSeries:
        """(stage, metric) -> {step: value}."""
        return read_metrics(self.directory / "metrics.jsonl")[0]

    @functools.cached_property
    def pairs(self) -> list[Pair]:
        """The pairs of pairs.jsonl (else scores.jsonl): tokens with their masks, log-ratios and KL."""
        path = pairs_path(self.directory)
        return list(read_pairs(path)) if path else []

    def masks(self, *indices: int, first: int = 3) -> "Masks":
        """A picture of pairs token by token: those with these indices, else the first so many."""
        if not indices:
            return Masks(list(islice(self.pairs, first)), None)
        by_index = {pair.index: pair for pair in self.pairs}
        if missing := [index for index in indices if index not in by_index]:
            raise UserError(f"no pair {missing[0]}; there are {', '.join(map(str, by_index))}")
        return Masks([by_index[index] for index in indices], None)

    def __repr__(self) -> str:
        text = "\n".join(filter(None, (self._words(), summary_table(self.summary))))
        return f"run in {self.directory}\n{text}".rstrip()

    def _repr_html_(self) -> str:
        return Masks(self.pairs[:3], self._words())._repr_html_()

    def _words(self) -> str | None:
        return self.summary.get("words") or outcome(self.summary)


class Masks:
    """Pairs token by token, coloured by mask, log-ratio or KL. Shown by a notebook."""

    def __init__(self, pairs: list[Pair], words: str | None):
        self._pairs, self._words = pairs, words

    def to_html(self) -> str:
        """A page of its own, without scripts."""
        template = make_environment().get_template("inline.html.jinja")
        context = heatmap_context(self._pairs)
        return template.render(pairs=self._pairs, words=self._words, table=table, **context)

    def _repr_html_(self) -> str:
        page = html.escape(self.to_html(), quote=True)
        return (
            f'<iframe srcdoc="{page}" sandbox="" title="masks of a run" '
            f'style="width:100%;height:{_HEIGHT_PX}px;border:0"></iframe>'
        )
