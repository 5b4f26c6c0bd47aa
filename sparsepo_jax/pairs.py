"""The stage pairs: the policy answers prompts, a scorer says how good each answer is, and the better and worse ones become preference pairs.

    pairs/                    settings and rows that the stage began with; summary.json
    scored_samples.jsonl      a line a prompt: its samples with their scores, as generations.jsonl has them
    pairs_made.jsonl          prompt, chosen, rejected, chosen_reward, rejected_reward, origin: what data.train reads

Prompts are answered batch by batch, and each batch is kept when it is scored: a run that was interrupted goes on with the next. What is drawn depends on
seed, prompt and sample alone, so it leaves what an uninterrupted one does. (The pairs of the paper's IMDB and MBPP data, 2410.05102 section 4, came about so.)
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sparsepo_jax import build
from sparsepo_jax.config.schema.generation import PairMaking
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import write_json, write_jsonl
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.evaluation import (
    answer,
    answers_record,
    make_sampler_for,
    plan_answers,
    prompts_of,
)
from sparsepo_jax.generate.sampler import Generated
from sparsepo_jax.scoring.preferences import choose_pairs
from sparsepo_jax.scoring.scorers import Scorer, score_all
from sparsepo_jax.sharding.processes import as_the_first
from sparsepo_jax.train.reference_cache import weights_digest

Record = dict[str, Any]


def make_pairs(run) -> None:
    """pairs_made.jsonl and scored_samples.jsonl, see above."""
    began_s, made_path, scored_path = (
        time.time(),
        run.output_dir / "pairs_made.jsonl",
        run.output_dir / "scored_samples.jsonl",
    )
    if run.marks.finished("pairs", made_path, scored_path):
        run.say("pairs: finished before")
        return
    run.marks.check("pairs")
    if run.tokenizer is None:
        raise UserError(
            "stage pairs: scorers read text, and there is no tokenizer to write it: set tokenizer"
        )
    prompts, policy = prompts_of(run), run.current_policy()
    digests = prompts.file_digests() | {"policy": weights_digest(policy)}
    run.marks.check_data("pairs", digests)
    records = _kept(scored_path) if run.marks.begun("pairs") else {}
    first = jax.process_index() == 0
    if first:
        scorer = build.make_scorer(run.config, run.say)
        if not records:
            scored_path.unlink(missing_ok=True)
    for drawn in _answered(run, prompts, policy, set(records)):
        if first:
            fresh = _scored(run, prompts, drawn, scorer)
            run.keep_config()
            if not run.marks.begun("pairs"):
                run.marks.begin("pairs", digests)
            with scored_path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in fresh.values())
            records |= fresh
    if first:
        records = dict(sorted(records.items()))
        write_jsonl(scored_path, records.values())
        made = {row: list(_pairs_of(record, run.config.pairs, prompts)) for row, record in records.items()}
        write_jsonl(made_path, (pair for pairs in made.values() for pair in pairs))
        summary = _summary(records, made)
        write_json(run.output_dir / "pairs" / "summary.json", summary)
        run.say(_said(summary, time.time() - began_s, made_path))
    run.mark("pairs", began_s)


def _kept(path: Path) -> dict[int, Record]:
    """What an interrupted run has scored, by row of the prompts. Half a line, which a crash leaves, is cut off, by the first process."""
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content) and jax.process_index() == 0:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return {record["index"]: record for record in map(json.loads, whole.splitlines())}


def _answered(run, prompts: TokenTable, policy: Any, done: set[int]) -> Iterator[dict[int, list[Generated]]]:
    """The samples of prompts that are not done, by row, batch by batch. Signals are heard between two batches, by all processes at the same one."""
    from tqdm import tqdm

    sampler = make_sampler_for(run, prompts, build.make_sampling(run.config, run.ends))
    base, should_stop = run.reference_weights() if run.problem.adapted else None, run.should_stop
    left_N = as_the_first(~np.isin(np.arange(len(prompts)), list(done)))
    planned = [
        batch for batch in plan_answers(run, prompts) if left_N[batch.rows].any()
    ]  # whole batches: the same programs as at the first time
    if not left_N.all():
        run.say(f"pairs: continues after {len(prompts) - left_N.sum()} of {len(prompts)} prompts")
    bar = tqdm(
        total=len(prompts),
        initial=int(len(prompts) - left_N.sum()),
        desc="pairs",
        unit="prompt",
        dynamic_ncols=True,
        disable=jax.process_index() != 0,
        mininterval=0.5,
    )
    with bar, run.stop.later():
        for number, batch in enumerate(planned, 1):
            drawn: dict[int, list[Generated]] = {}
            for one in answer(run, prompts, sampler, policy, base, [batch]):
                if left_N[one.row]:
                    drawn.setdefault(one.row, []).append(one)
            yield drawn
            bar.update(len(drawn))
            if number < len(planned) and (asked := should_stop()) is not None:
                tqdm.write(f"pairs: stopped after {bar.n} of {len(prompts)} prompts", file=sys.stderr)
                raise asked


def _scored(run, prompts: TokenTable, drawn: dict[int, list[Generated]], scorer: Scorer) -> dict[int, Record]:
    """A record a prompt, its samples with `score`: null where the text is empty. Equal texts are scored once."""
    records = {row: answers_record(run, prompts, row, found) for row, found in drawn.items()}
    given = {row: _given(run, prompts.content(row), record) for row, record in records.items()}
    for row, record in records.items():
        if given[row].endswith(" ") and not record["prompt"].endswith(
            " "
        ):  # the first token of a response holds the prompt's last space
            for sample in record["samples"]:
                sample["text"] = sample["text"].removeprefix(" ")
    texts = list(
        dict.fromkeys(
            (row, sample["text"])
            for row, record in records.items()
            for sample in record["samples"]
            if sample["text"].strip()
        )
    )
    scores = score_all(
        scorer,
        [given[row] for row, _ in texts],
        [text for _, text in texts],
        [records[row]["row"] for row, _ in texts],
    )
    by_text = dict(zip(texts, scores, strict=True))
    for row, record in records.items():
        for sample in record["samples"]:
            sample["score"] = by_text.get((row, sample["text"]))
    return records


def _given(run, content: dict[str, Any], record: Record) -> str:
    """The prompt as text, whole: what the scorer reads before the response."""
    if isinstance(content.get("prompt"), str) and "prompt_ids" not in content:
        return content["prompt"] + run.config.data.separator
    return record["prompt"]


def _distinct(record: Record) -> list[dict[str, Any]]:
    """The samples of a prompt that are not empty, the first of each text."""
    return list(
        {
            sample["text"]: sample for sample in reversed(record["samples"]) if sample["score"] is not None
        }.values()
    )[::-1]


def _pairs_of(record: Record, making: PairMaking, prompts: TokenTable) -> Iterator[Record]:
    samples, content = _distinct(record), prompts.content(record["index"])
    scores = [sample["score"] for sample in samples]
    chosen = choose_pairs(
        scores,
        making.rule,
        margin=making.margin,
        threshold=making.threshold,
        limit=making.max_pairs_per_prompt,
    )
    is_ids = content.get("prompt_ids") is not None
    for better, worse in ((samples[a], samples[b]) for a, b in chosen):
        pair = {
            "prompt": record["prompt"] if is_ids else content["prompt"],
            "chosen": better["text"],
            "rejected": worse["text"],
        }
        if is_ids:
            pair |= {
                "prompt_ids": content["prompt_ids"],
                "chosen_ids": better["token_ids"],
                "rejected_ids": worse["token_ids"],
            }
        for name in ("tools", "chat_template_kwargs"):  # the chat template reads them
            if content.get(name) is not None:
                pair[name] = content[name]
        yield pair | {
            "chosen_reward": better["score"],
            "rejected_reward": worse["score"],
            "origin": record["origin"],
        }


def _summary(records: dict[int, Record], made: dict[int, list[Record]]) -> dict[str, Any]:
    samples = [sample for record in records.values() for sample in record["samples"]]
    scores = [sample["score"] for sample in samples if sample["score"] is not None]
    return {
        "prompts": len(records),
        "samples": len(samples),
        "empty": len(samples) - len(scores),
        "repeated": len(scores) - sum(len(_distinct(record)) for record in records.values()),
        "pairs": sum(map(len, made.values())),
        "prompts_with_a_pair": sum(map(bool, made.values())),
        "mean_score": float(np.mean(scores)) if scores else None,
    }


def _said(summary: dict[str, Any], seconds: float, path: Path) -> str:
    mean = "none" if summary["mean_score"] is None else f"{summary['mean_score']:.4f}"
    return (
        f"pairs: {summary['prompts']} prompts, {summary['samples']} samples ({summary['empty']} empty and {summary['repeated']} repeated left out), "
        f"{summary['pairs']} pairs, {100 * summary['prompts_with_a_pair'] / summary['prompts']:.0f} % of the prompts with a pair, mean score {mean}, "
        f"in {seconds:.1f} s -> {path}"
    )
