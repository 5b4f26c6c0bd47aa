"""What the stage weigh has weighed, as a page: figures, the tokens of the largest weight, and the pairs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparsepo_jax.core.files import write_text
from sparsepo_jax.report import heatmap, table
from sparsepo_jax.report.heatmap import Quantity, Shown
from sparsepo_jax.report.page import heatmap_context, make_environment

_WEIGHT = Quantity("u", "Weight", "Weight of the token's log-ratio, as it is in the file.")
OF_ONE_RUN = Shown(
    (
        _WEIGHT,
        Quantity(
            "r", "Log-ratio", "log policy \N{MINUS SIGN} log reference of the token under the run, in nats."
        ),
        Quantity("k", "KL", "KL(reference ‖ policy) of the run's next-token distributions, in nats."),
    ),
    ("policy", "reference"),
)
OF_TWO_RUNS = Shown(
    (
        _WEIGHT,
        Quantity(
            "r",
            "Contrast",
            "log positive \N{MINUS SIGN} log negative of the token under the two runs' policies, in nats.",
        ),
    ),
    ("positive", "negative"),
)


class Weighed(NamedTuple):
    """What a page shows: its heading, the figures and the file of weigh, and the first pairs as records.

    The records are those of pairs.jsonl, with the weights as both masks; of two runs logp is the positive
    one's and ref_logp the negative one's.
    """

    name: str
    file: str
    summary: dict[str, Any]
    records: Sequence[dict[str, Any]]
    two_runs: bool


def write_weights(path: Path, weighed: Weighed) -> None:
    """Writes the page: one HTML file without scripts."""
    shown = OF_TWO_RUNS if weighed.two_runs else OF_ONE_RUN
    pairs = [heatmap.parse_pair(record, where=str(path), shown=shown) for record in weighed.records]
    of_page = {"quantities": shown.quantities, "mask": _WEIGHT, "default_key": _WEIGHT.key}
    context = heatmap_context(pairs) | of_page | {"top": heatmap.top_tokens(pairs, _WEIGHT)}
    template = make_environment().get_template("weights.html.jinja")
    html = template.render(weighed=weighed, pairs=pairs, table=table, **context)
    write_text(path, html, errors="backslashreplace")
