"""Every family against transformers on a tiny random model: the table in docs/results/parity.md.

    python benchmarks/parity.py          needs the test extra; some minutes on 2 cores
    python benchmarks/parity.py gemma    only the rows that have this in their names; the others stay, with
                                         the day on which they were made, if transformers was the same then

Largest absolute difference, in float32, of the states of all layers, of the logits of batches padded on the
right and on the left, of a model that was exported and read back by transformers, and of the
log-probabilities that the stage score gives for a few rows of text; whether 12 greedy tokens are the same;
and, in bfloat16, our error against float32 over transformers' own (root mean squares, of mixtures of experts
the median over tokens: 1 is as good). Stops with status 1 at one that is out of tolerance. The result is
kept in results/parity-DEVICE.json.
"""

import contextlib
import datetime
import io
import json
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import jax
import numpy as np
import torch
from flax import nnx
from work import save_result

import conftest  # noqa: F401  (sets the devices up before JAX starts)
from helpers.parity import (
    bfloat16_errors,
    load_ours,
    make_theirs,
    our_logits,
    our_states,
    their_greedy_tokens,
    their_outputs,
)
from helpers.prompts import prompts, run
from helpers.score_parity import largest_difference, scored, write_checkpoint
from helpers.tiny import CONFIGS
from helpers.tolerances import BFLOAT16, PARITY_LOGITS, SCORED
from helpers.wrapped import WRAPPED
from sparsepo_jax.core.tree import split_module
from sparsepo_jax.generate.sampler import Sampling
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.export import save_hf

IDS = np.random.default_rng(0).integers(0, 31, (4, 12))
LENGTHS = np.array([12, 7, 9, 3])


def largest(ours, theirs, valid_BS) -> float:
    return float(np.abs(np.asarray(ours)[valid_BS] - theirs.numpy()[valid_BS]).max())


def row(config: dict) -> dict[str, float | bool]:
    """The figures of one family, by column."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model = make_theirs(config)
        model.save_pretrained(directory / "model")
        spec, graph, weights = load_ours(directory / "model")
        ours, theirs = bfloat16_errors(config, directory / "rounded")
        return {
            **forward_differences(model, graph, weights),
            "export": export_difference(model, spec, graph, config, directory),
            "scored": scored_difference(config, directory / "scored"),
            "greedy_same": greedy_is_same(model, graph, weights),
            "bfloat16_ratio": ours / theirs,
        }


def forward_differences(model, graph, weights) -> dict[str, float]:
    states, logits = 0.0, []
    for valid_BS in (np.arange(12) < LENGTHS[:, None], np.arange(12)[::-1] < LENGTHS[:, None]):
        theirs = their_outputs(model, IDS, valid_BS)
        ours, kept = our_logits(graph, weights, IDS, valid_BS)
        logits.append(largest(ours, theirs.logits, valid_BS))
        pairs = zip(our_states(kept), theirs.hidden_states, strict=True)
        states = max(states, *(largest(a, b, valid_BS) for a, b in pairs))
    return {"states": states, "right_pad": logits[0], "left_pad": logits[1]}


def export_difference(model, spec, graph, config: dict, directory: Path) -> float:
    """Of new random weights that we write and transformers reads, in what was the model of a wrapper."""
    fresh = {path: np.asarray(x) for path, x in split_module(Decoder(spec, rngs=nnx.Rngs(3)))[1].items()}
    source = None if spec.wrapping is None else directory / "model"
    save_hf(directory / "out", spec, config, fresh, {}, "", source=source)
    exported = type(model).from_pretrained(directory / "out").eval()
    everything = np.ones_like(IDS, bool)
    theirs = their_outputs(exported, IDS, everything).logits
    return largest(our_logits(graph, fresh, IDS, everything)[0], theirs, everything)


def scored_difference(config: dict, directory: Path) -> float:
    """Of the log-probabilities in scores.jsonl; the run's own lines are not shown."""
    model = write_checkpoint(config, directory / "model")
    with contextlib.redirect_stdout(io.StringIO()):
        records = scored(directory, directory / "model")
    return largest_difference(model, directory / "model", records)


def greedy_is_same(model, graph, weights) -> bool:
    mesh = jax.make_mesh(
        (1, 1, 1),
        ("data", "fsdp", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=jax.devices()[:1],
    )
    expected = their_greedy_tokens(model, prompts(), 12)
    ours = run(graph, weights, mesh, Sampling(12, temperature=0.0))
    return np.array_equal(expected, np.stack([answer.ids for answer in ours]))


COLUMNS = ("states", "right_pad", "left_pad", "export", "scored", "greedy_same", "bfloat16_ratio")


def kept_rows() -> dict[str, dict]:
    """The rows of the last result; {} if there is none, or if it was made with another transformers."""
    for path in (Path(__file__).parent / "results").glob("parity-*.json"):
        result = json.loads(path.read_text())
        if result["transformers"] == version("transformers"):
            return result["rows"]
    return {}


def chosen(names: Iterable[str], parts: list[str]) -> list[str]:
    """The names that hold one of the parts; without parts, all of them.

    Raises:
        SystemExit: one of the parts is in no name.
    """
    names = list(names)
    for part in parts:
        if not any(part in name for name in names):
            sys.exit(f"no family has {part!r} in its name; there are {'; '.join(names)}")
    return [name for name in names if not parts or any(part in name for part in parts)]


def is_sound(figures: dict) -> bool:
    return (
        max(figures[name] for name in COLUMNS[:4]) <= PARITY_LOGITS
        and figures["scored"] <= SCORED
        and figures["greedy_same"]
        and figures["bfloat16_ratio"] <= BFLOAT16
    )


def main() -> int:
    configs = CONFIGS | WRAPPED
    wanted = chosen(configs, sys.argv[1:])
    print("| " + " | ".join(("family", *COLUMNS)) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    versions = {"torch": torch.__version__, "transformers": version("transformers")}
    for name in wanted:
        figures = row(configs[name])
        *differences, same, ratio = figures.values()
        cells = [name, *(f"{x:.0e}" for x in differences), "same" if same else "DIFFERENT", f"{ratio:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)
        if not is_sound(figures):
            print("OUT OF TOLERANCE")
            return 1
        kept = kept_rows() | {name: {"date": datetime.date.today().isoformat(), **figures}}
        rows = {other: kept[other] for other in configs if other in kept}
        path = save_result("parity", versions | {"rows": rows})
    print(f"all within tolerance: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
