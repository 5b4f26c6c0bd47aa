"""The stage weigh: the data set of finished runs' scores, with a weight for each token.

    weighed.jsonl         a row a pair: token ids as the runs had them, weights, the digest of the vocabulary
                          that the ids are of, their text for people, and where the pair came from
    weights.html          what it weighs: figures, the tokens of the largest weight, pairs token by token
    weigh/summary.json    the figures

The rows hold token ids, so that weights and tokens are the same whatever the template, the truncation or the
tokenizer's seams; a run with another tokenizer refuses them.
"""

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sparsepo_jax.build.weighing import WeightsOf, as_written, make_weigh
from sparsepo_jax.config.schema.models import Policy
from sparsepo_jax.config.schema.token_weights import TgdpoWeights, TwoRuns
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import write_json, write_jsonl
from sparsepo_jax.data.inspect import token_texts
from sparsepo_jax.data.tokenizers import vocabulary_digest
from sparsepo_jax.eval.auroc import auroc
from sparsepo_jax.eval.measures import Record
from sparsepo_jax.report.table import percent
from sparsepo_jax.run.files_read import scores_path
from sparsepo_jax.run.resume import Marks
from sparsepo_jax.sharding.processes import as_the_first
from sparsepo_jax.stages.context import Run, say

SIDES = ("chosen", "rejected")
COLUMNS = ("logp", "ref_logp", "kl", "reward_mask", "kl_mask")


def weigh(run: Run) -> None:
    """Writes weighed.jsonl, weights.html and weigh/summary.json; see above."""
    began_s = time.time()
    path, page_path = run.output_dir / "weighed.jsonl", run.output_dir / "weights.html"
    if run.marks.finished("weigh", path, page_path):
        say("weigh: finished before")
        return
    names = ("positive", "negative") if isinstance(run.config.weigh, TwoRuns) else ("run",)
    paths = [_find_scores(run, f"weigh.{name}", getattr(run.config.weigh, name)) for name in names]
    vocabulary, settings = _common_vocabulary(run, paths), _with_beta(run, paths)
    run.unmark("weigh")
    refusal: Exception | None = None
    if jax.process_index() == 0:
        try:
            summary = _write(run, paths, Weighing(run, vocabulary, settings), path, page_path)
            say(f"weigh: {_in_words(summary)}, in {time.time() - began_s:.1f} s -> {path}, {page_path}")
        except Exception as error:  # whatever it is, the other processes must hear of it
            refusal = error
    if as_the_first(np.array(refusal is not None)):  # the others wait here until the rows are there
        raise refusal or UserError("the first process of this run says why nothing was weighed")
    run.mark("weigh", began_s)


def _write(run: Run, paths: list[Path], writer: "Weighing", path: Path, page_path: Path) -> Record:
    """Writes all, and gives the figures."""
    write_jsonl(path, writer.rows(_together(paths)))
    summary = writer.summary() | {
        "cut_responses": max(_facts_of(each).get("cut_responses", 0) for each in paths)
    }
    write_json(run.output_dir / "weigh" / "summary.json", summary)
    _write_page(run, page_path, summary, writer.shown)
    return summary


# ---------------------------------------------------------------- the runs whose scores are read


def _find_scores(run: Run, where: str, asked: str) -> Path:
    """The scores of a run. UserError: it has none, or they are of another training than it has finished."""
    path = scores_path(asked)
    remedy = f"run the stage score there, with the pairs to be weighed as data.eval ({where})"
    if not path.is_file():
        raise UserError(f"{path}: expected the scores of a finished run, found none; {remedy}")
    marks = Marks(run.config, str(path.parent)).all()
    if "score" not in marks:
        raise UserError(f"{path.parent}: its stage score is not finished; {remedy}")
    if marks["score"]["depends"].get("trained") != {
        stage: marks[stage]["finished"] for stage in ("sft", "po") if stage in marks
    }:
        raise UserError(f"{path}: the run was trained again since these scores; {remedy}")
    return path


def _common_vocabulary(run: Run, paths: list[Path]) -> str | None:
    """The digest of the vocabulary that all token ids are of; None: they came without a tokenizer."""
    digests = [_vocabulary_of(path) for path in paths]
    if len(set(digests)) > 1:
        raise UserError(
            f"weigh: {paths[0]} and {paths[1]} have token ids of different vocabularies: "
            "both runs need the same tokenizer"
        )
    ours = vocabulary_digest(run.tokenizer)
    if None not in (ours, digests[0]) and ours != digests[0]:
        raise UserError(
            f"tokenizer: another vocabulary (digest {ours}) than that of {paths[0]} ({digests[0]}): take the "
            "tokenizer of that run"
        )
    return digests[0]


def _facts_of(path: Path) -> Record:
    facts = path.parent / "score" / "facts.json"
    try:
        content = json.loads(facts.read_text())
        content["vocabulary"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{facts}: it should say of which vocabulary the token ids of {path.name} are; "
            "run the stage score there again"
        ) from None
    return content


def _vocabulary_of(path: Path) -> str | None:
    content = _facts_of(path)
    if content.get("other_turns"):  # of a version that did not write them
        raise UserError(
            f"{path}: it does not say what users and tools say between the tokens of responses; run the "
            "stage score there again"
        )
    return content["vocabulary"]


def _with_beta(run: Run, paths: list[Path]) -> Any:
    """The section weigh, with the beta that the run was trained with where it leaves it to that run."""
    settings = run.config.weigh
    if not isinstance(settings, TgdpoWeights) or settings.beta is not None:
        return settings
    directory = str(paths[0].parent)
    trained = Marks(run.config, directory).all()["score"]["depends"].get("objective") or {}
    if trained.get("beta") is None:
        raise UserError(f"weigh.beta: the objective of {directory} has no beta: set weigh.beta")
    return settings.model_copy(update={"beta": trained["beta"]})


def _together(paths: list[Path]) -> Iterator[list[Record]]:
    """The records of one pair, by each run. UserError: they are not of the same pairs."""
    files = [_records(path) for path in paths]
    for number, records in enumerate(itertools.zip_longest(*files), 1):
        if None in records or any(_ids(record) != _ids(records[0]) for record in records):
            raise UserError(
                f"{paths[1]}:{number}: another pair than in {paths[0]}:{number}: score the same pairs in the "
                "same order with both runs (data.eval, data.max_length, not exchanged)"
            )
        yield list(records)


def _ids(record: Record) -> tuple[list[Any], ...]:
    """All that the model has read, turns of others included."""
    sides = [record[side] for side in SIDES]
    return record["prompt_ids"], *((side["token_ids"], side.get("before_ids")) for side in sides)


def _records(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                _ids(record)
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{path}:{number}: no scored pair; run the stage score again, on pairs, not on "
                    "single responses with a label"
                ) from None
            for side in SIDES:
                _check_columns(record[side], f"{path}:{number}: {side}")
            yield record


def _check_columns(response: Record, where: str) -> None:
    for name in COLUMNS:
        values = response.get(name)
        if not isinstance(values, list) or len(values) != len(response["token_ids"]):
            raise UserError(f"{where}.{name} must have a number a token; run the stage score again")
        if not np.isfinite(np.array(values, np.float64)).all():
            raise UserError(
                f"{where}.{name} holds a number that is not finite: such tokens cannot be weighed"
            )


# ---------------------------------------------------------------- rows and figures


class Weighing:
    """Makes the rows, and keeps what the figures and the page need."""

    def __init__(self, run: Run, vocabulary: str | None, settings: Any):
        self._settings, self._tokenizer = settings, run.tokenizer
        self._ends = _ends(run)
        self._weights_of: WeightsOf = make_weigh(settings)
        self._vocabulary = vocabulary
        self._most_shown = run.config.report.pairs
        self._all: dict[str, list[np.ndarray]] = {side: [] for side in SIDES}
        self._decisive: dict[str, list[np.ndarray | None]] = {side: [] for side in SIDES}
        self.shown: list[Record] = []

    def rows(self, pairs: Iterator[list[Record]]) -> Iterator[Record]:
        """A row a pair."""
        for records in pairs:
            weights = {side: self._weigh(records, side) for side in SIDES}
            yield self._row(records[0], weights)
            if len(self.shown) < self._most_shown:
                self.shown.append(self._as_shown(records, weights))

    def _weigh(self, records: list[Record], side: str) -> list[float]:
        scores = [{name: np.array(record[side][name]) for name in COLUMNS} for record in records]
        response = records[0][side]
        is_end = self._ends_turn(response)
        if isinstance(self._settings, TwoRuns):  # those tokens last, whichever turn they end
            order = np.argsort(is_end, kind="stable")
            scores = [{name: values[order] for name, values in of_run.items()} for of_run in scores]
            weighed = self._weights_of(scores, int(is_end.sum()), side == "chosen")[np.argsort(order)]
        else:
            weighed = self._weights_of(scores, int(is_end.sum()), side == "chosen")
        weights = as_written(weighed)
        marks = response.get("decisive")
        self._all[side].append(np.array(weights, np.float32))
        self._decisive[side].append(None if marks is None else np.array(marks, bool))
        return weights

    def _ends_turn(self, response: Record) -> np.ndarray:
        """Which tokens only end a turn, bool [T]: turns part where others say something between them."""
        is_end = np.zeros(len(response["token_ids"]), bool)
        parts = [place for place, _ in response.get("before_ids", []) if place > 0]
        for turn in np.split(np.arange(len(is_end)), parts):
            ending = self._ending([response["token_ids"][n] for n in turn])
            is_end[turn[len(turn) - ending :]] = True
        return is_end

    def _ending(self, ids: list[int]) -> int:
        """How many last tokens only end the response: the last end token, and what is blank behind it."""
        last = next((n for n in range(len(ids) - 1, -1, -1) if ids[n] in self._ends), None)
        if last is None:
            return 0
        behind = ids[last + 1 :]
        is_blank = not behind or (self._tokenizer is not None and not self._tokenizer.decode(behind).strip())
        return len(ids) - last if is_blank else 0

    def _row(self, record: Record, weights: dict[str, list[float]]) -> Record:
        row: Record = {}
        if self._tokenizer is not None:
            row["prompt"] = self._tokenizer.decode(record["prompt_ids"])
            row |= {side: self._tokenizer.decode(record[side]["token_ids"]) for side in SIDES}
        row["prompt_ids"] = record["prompt_ids"]
        row |= {f"{side}_ids": record[side]["token_ids"] for side in SIDES}
        row |= {
            f"{side}_before": record[side]["before_ids"] for side in SIDES if "before_ids" in record[side]
        }
        row |= {f"{side}_weights": weights[side] for side in SIDES}
        if all(record[side].get("decisive") is not None for side in SIDES):
            row |= {f"{side}_decisive": record[side]["decisive"] for side in SIDES}
        if "pair_weight" in record:
            row["pair_weight"] = record["pair_weight"]
        if self._vocabulary is not None:
            row["ids_vocabulary"] = self._vocabulary
        return row | {"origin": record.get("origin", "")}

    def _as_shown(self, records: list[Record], weights: dict[str, list[float]]) -> Record:
        """A record of pairs.jsonl, with the weights as masks."""
        first, last = records[0], records[-1]
        shown = first | {"prompt_tokens": token_texts(first["prompt_ids"], self._tokenizer)}
        for side in SIDES:
            shown[side] = first[side] | {
                "reward_mask": weights[side],
                "kl_mask": weights[side],
                "tokens": token_texts(first[side]["token_ids"], self._tokenizer),
            }
            if len(records) == 2:
                shown[side]["ref_logp"] = last[side]["logp"]
        return shown

    def summary(self) -> Record:
        """The figures. UserError: nothing was weighed."""
        if not self._all["chosen"]:
            raise UserError("weigh: the scores hold no pair")
        return {
            "kind": self._settings.kind,
            "settings": self._settings.model_dump(mode="json", exclude={"kind"}),
            "pairs": len(self._all["chosen"]),
            **{side: _figures(np.concatenate(self._all[side])) for side in SIDES},
            "auroc_decisive": self._auroc(),
        }

    def _auroc(self) -> float | None:
        """How well the weights find the decisive tokens; None where these are not known."""
        marks = [mark for side in SIDES for mark in self._decisive[side]]
        if any(mark is None for mark in marks):
            return None
        weights = [weights for side in SIDES for weights in self._all[side]]
        return auroc(np.concatenate(weights), np.concatenate([mark for mark in marks if mark is not None]))


def _ends(run: Run) -> frozenset[int]:
    """Ids of the tokens that end a response; without a model those of the tokenizer."""
    if run.config.policy != Policy():
        return frozenset(run.ends)
    return frozenset({getattr(run.tokenizer, "eos_token_id", None)} - {None})


def _figures(weight_N: np.ndarray) -> Record:
    return {
        "tokens": len(weight_N),
        "mean": float(weight_N.mean(dtype=np.float64)),
        "least": float(weight_N.min()),
        "most": float(weight_N.max()),
        "zeros": float(np.mean(weight_N == 0)),
    }


def _in_words(summary: Record) -> str:
    parts = [f"{summary['kind']}, {summary['pairs']} pairs"]
    for side in SIDES:
        figures = summary[side]
        parts.append(
            f"{side} {figures['least']:.3g} to {figures['most']:.3g} (mean {figures['mean']:.3f}, "
            f"{percent(figures['zeros'])} zeros)"
        )
    if summary["auroc_decisive"] is not None:
        parts.append(f"decisive tokens at AUROC {summary['auroc_decisive']:.3f}")
    if summary["cut_responses"]:
        parts.append(
            f"{summary['cut_responses']} responses were cut at data.max_length when they were scored, and "
            "stay cut"
        )
    return ", ".join(parts)


def _write_page(run: Run, path: Path, summary: Record, shown: list[Record]) -> None:
    from sparsepo_jax.report.weights import Weighed, write_weights

    two_runs = isinstance(run.config.weigh, TwoRuns)
    write_weights(path, Weighed(f"{summary['kind']} weights", "weighed.jsonl", summary, shown, two_runs))
