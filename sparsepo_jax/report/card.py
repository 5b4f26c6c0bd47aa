"""The model card of an export, Markdown: what the model is, how to load it, and how it came about."""

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.compat import StringIO

from sparsepo_jax.report import heatmap
from sparsepo_jax.report.files import pairs_path, read_evaluation, read_pairs
from sparsepo_jax.report.outcome import outcome
from sparsepo_jax.report.sets import set_lines
from sparsepo_jax.report.table import (
    AS_IT_IS,
    MASK_ROWS,
    POLICY_ROWS,
    has_before,
    known_rows,
    number,
    percent,
)

_PAIRS = 64  # read for the tokens of the largest mask
_TOKENS = 10


class Parts(NamedTuple):
    """What an export consists of: the places of its parts, below the directory that is described.

    Attributes:
        model: of the complete model, "." for the directory itself; None: it is not there.
        adapter: of the adapters, in PEFT's format; None: there are none.
        base: of the model that the adapters stand on; None: it is `base_model`.
    """

    model: str | None = "."
    adapter: str | None = None
    base: str | None = None


class Origin(NamedTuple):
    """How a model came about.

    Attributes:
        name: the model's.
        start: what the run started from, in words.
        base_model: the same as a Hub id; None: it has none.
        datasets: Hub ids of the data.
        trained: the stages that trained it, in order.
        objective: kind of the objective; None: no preference optimisation.
        has_masks: whether masks.safetensors lies beside the weights.
        config: the run's configuration, YAML text.
        has_tokenizer: whether the tokenizer's files lie there.
        is_evaluated: whether the run's evaluation is of this model.
        rounded_to: the type that its weights were rounded to behind the evaluation; None: as evaluated.
    """

    name: str
    start: str
    base_model: str | None
    datasets: Sequence[str]
    trained: Sequence[str]
    objective: str | None
    has_masks: bool
    config: str
    has_tokenizer: bool = True
    is_evaluated: bool = True
    rounded_to: str | None = None


def make_card(origin: Origin, parts: Parts, output_dir: Path, repository: str | None = None) -> str:
    """The card. Figures come from summary.json and pairs.jsonl in `output_dir`, as far as they are there.

    repository: where it will be on the Hub; None: it is loaded from a directory.
    """
    stages = ", ".join(origin.trained) or "not trained further"
    objective = f" (objective {origin.objective})" if origin.objective else ""
    lines = [
        *_front_matter(origin, parts),
        f"# {_plain(origin.name)}",
        "",
        f"Trained with sparsepo_jax from {_plain(origin.start)}: {stages}{objective}.",
        "",
        "## How to load it",
        "",
        *_code(parts, origin, repository or "PATH"),
        "",
    ]
    if origin.has_masks:
        lines += [
            "`masks.safetensors` holds the mask nets, under the official names; transformers and vLLM do not "
            "need it.",
            "",
        ]
    if origin.is_evaluated:
        lines += _evaluation(read_evaluation(output_dir) or {}, output_dir, origin.rounded_to)
    return "\n".join([*lines, "## Configuration", "", "```yaml", origin.config.rstrip(), "```", ""])


def _front_matter(origin: Origin, parts: Parts) -> list[str]:
    """What the Hub reads: names that have characters of their own are quoted by YAML."""
    content: dict[str, Any] = {
        "library_name": "transformers" if parts.model is not None else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["sparsepo_jax", "preference-optimisation", *filter(None, [origin.objective])],
    }
    if origin.base_model is not None:
        content |= {
            "base_model": origin.base_model,
            "base_model_relation": "finetune" if parts.model is not None else "adapter",
        }
    if origin.datasets:
        content["datasets"] = list(origin.datasets)
    text = StringIO()
    YAML(typ="safe", pure=True).dump(content, text)
    return ["---", text.getvalue().rstrip(), "---", ""]


def _code(parts: Parts, origin: Origin, repository: str) -> list[str]:
    """Python that loads the model, complete or as adapters on their base, and a tokenizer that is there."""
    place = parts.model or parts.adapter or "."
    classes = "AutoModelForCausalLM" + (", AutoTokenizer" if origin.has_tokenizer else "")

    def arguments(place: str) -> str:
        return f'"{repository}"' + ("" if place == "." else f', subfolder="{place}"')

    if parts.model is not None:
        imports: list[str] = []
        loading = [f"model = AutoModelForCausalLM.from_pretrained({arguments(parts.model)})"]
    else:
        base = f'"{origin.base_model or "BASE"}"' if parts.base is None else arguments(parts.base)
        imports = ["from peft import PeftModel"]
        loading = [
            f"base = AutoModelForCausalLM.from_pretrained({base})",
            f"model = PeftModel.from_pretrained(base, {arguments(place)})",
        ]
    if origin.has_tokenizer:
        loading.append(f"tokenizer = AutoTokenizer.from_pretrained({arguments(place)})")
    return ["```python", *imports, f"from transformers import {classes}", "", *loading, "```"]


def _evaluation(summary: dict[str, Any], output_dir: Path, rounded_to: str | None) -> Iterator[str]:
    """What the stage eval has found, in words and tables; nothing where there is none."""
    rows = known_rows(summary, POLICY_ROWS + MASK_ROWS)
    if not rows:
        return
    yield from ("## Evaluation", "")
    if words := summary.get("words") or outcome(summary):
        yield from (str(words), "")
    if rounded_to is not None:
        yield from (f"Measured before the weights were rounded to {rounded_to} for this export.", "")
    trained = has_before(rows)
    yield from (f"| |{' before | after |' if trained else f' {AS_IT_IS} |'} |", "|---" * (3 + trained) + "|")
    for row in rows:
        before = [number(row.before)] * trained
        columns = (row.label, *before, number(row.after), row.meaning)
        yield f"| {' | '.join(text.replace('|', '&#124;') for text in columns)} |"
    yield ""
    if sets := set_lines(summary):
        yield from (f"| {' | '.join(sets[0])} |", "|---" * len(sets[0]) + "|")
        yield from (f"| {' | '.join(cells)} |" for cells in sets[1:])
        yield ""
    yield from _largest_masks(output_dir)


def _plain(text: str) -> str:
    """A text of which Markdown makes nothing else."""
    return re.sub(r"([\\`*\[\]<>|&])", r"\\\1", text)


def _as_code(text: str) -> str:
    """A text as code, between more backticks than it has in a row."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    room = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{room}{text}{room}{fence}"


def _largest_masks(output_dir: Path) -> Iterator[str]:
    """Tokens on which the mask is largest, in the pairs of the report; none without a mask."""
    path = pairs_path(output_dir)
    pairs = list(islice(read_pairs(path), _PAIRS)) if path else []
    if not pairs or heatmap.without_masks(pairs):
        return
    mask = heatmap.mask_of(pairs)
    shown = [
        f"{_as_code(row.label)} {number(row.mean)}" for row in heatmap.top_tokens(pairs, mask, limit=_TOKENS)
    ]
    zeros = heatmap.zero_share([token for pair in pairs for token in pair.tokens], mask)
    if shown and zeros is not None:
        plain = [text.replace("\n", " ") for text in shown]
        counted = f"{len(pairs)} {heatmap.unit_of(pairs)}"
        yield f"Of the tokens of {counted} {percent(zeros)} have a {mask.in_text} of zero."
        yield f"It is largest, in the mean, on {', '.join(plain)} (␣ is a space)."
        yield ""
