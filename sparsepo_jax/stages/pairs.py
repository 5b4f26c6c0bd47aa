"""The stage pairs.

The policy answers prompts, a scorer judges the answers, and better and worse ones become pairs.

    pairs/                    settings and rows that the stage began with; summary.json
    scored_samples.jsonl      a line a prompt: its samples with their scores, as generations.jsonl has them
    pairs_made.jsonl          prompt, chosen, rejected, their rewards, origin: what data.train reads

Prompts are answered in batches, and each batch is kept when it is scored: an interrupted run goes on with the
next batch. What is drawn depends on seed, prompt and sample alone, so the result is that of an uninterrupted
run. (The pairs of the paper's IMDB and MBPP data, arXiv:2410.05102 section 4, were made in this way.)
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sparsepo_jax.build.sampling import make_sampling
from sparsepo_jax.build.scorer import make_scorer
from sparsepo_jax.config.schema.generation import PairMaking
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import write_json, write_jsonl
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.data.preferences import choose_pairs
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.eval.measures import Record
from sparsepo_jax.generate.sampler import Generated
from sparsepo_jax.scoring.scorers import Scorer, score_all
from sparsepo_jax.sharding.processes import as_the_first
from sparsepo_jax.stages.answers import (
    answer,
    answers_record,
    compile_answers,
    load_prompts,
    make_run_sampler,
    plan_answers,
)
from sparsepo_jax.stages.context import Run, say
from sparsepo_jax.stages.weights import current_policy, reference_weights
from sparsepo_jax.train.reference_cache import sha256_of_weights


def make_pairs(run: Run) -> None:
    """Writes pairs_made.jsonl and scored_samples.jsonl; see above."""
    began_s = time.time()
    made_path, scored_path = run.output_dir / "pairs_made.jsonl", run.output_dir / "scored_samples.jsonl"
    if run.marks.finished("pairs", made_path, scored_path):
        say("pairs: finished before")
        return
    run.check_begun("pairs")
    if run.tokenizer is None:
        raise UserError(
            "stage pairs: scorers read text, and there is no tokenizer to write it: set tokenizer"
        )
    prompts, policy = load_prompts(run), current_policy(run)
    digests = prompts.file_digests() | {"policy": sha256_of_weights(policy)}
    run.marks.check_data("pairs", digests)
    records = _read_scored(scored_path) if run.marks.begun("pairs") else {}
    is_first = jax.process_index() == 0
    if is_first:
        scorer = make_scorer(run.config, say, goes_on=bool(records))
        if not records:
            scored_path.unlink(missing_ok=True)
    for responses in _answer_batches(run, prompts, policy, done=set(records)):
        if is_first:
            scored = _score(run, prompts, responses, scorer)
            if not run.marks.begun("pairs"):
                run.begin("pairs", digests)
            with scored_path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in scored.values())
            records |= scored
    if is_first:
        records = dict(sorted(records.items()))
        write_jsonl(scored_path, records.values())
        pairs = {row: list(_pairs_of(record, run.config.pairs, prompts)) for row, record in records.items()}
        write_jsonl(made_path, (pair for pairs_of_row in pairs.values() for pair in pairs_of_row))
        summary = _summarise(records, pairs)
        write_json(run.output_dir / "pairs" / "summary.json", summary)
        say(f"pairs: {_describe(summary)}, in {time.time() - began_s:.1f} s -> {made_path}")
        if not summary["pairs"]:
            say(
                "note: there is nothing to train on: no two answers to a prompt differ enough in score; "
                f"look at {scored_path}, raise generation.samples or generation.temperature, or take "
                "another scorer"
            )
    run.mark("pairs", began_s)


def _read_scored(path: Path) -> dict[int, Record]:
    """What an interrupted run has scored, by row of the prompts.

    The first process cuts off the first line that is not complete, which a crash may leave, and what follows.
    """
    content = path.read_bytes() if path.exists() else b""
    records, size = {}, 0
    for line in content.splitlines(keepends=True):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            record = None
        if not isinstance(record, dict) or "index" not in record:
            break
        records[record["index"]] = record
        size += len(line)
    if size < len(content) and jax.process_index() == 0:
        with path.open("r+b") as file:
            file.truncate(size)
    return records


def _answer_batches(
    run: Run, prompts: TokenTable, policy: Weights, done: set[int]
) -> Iterator[dict[int, list[Generated]]]:
    """The samples of prompts that are not done, by row, batch by batch.

    Signals are heard between two batches, by all processes at the same one.
    """
    from tqdm import tqdm

    sampler = make_run_sampler(run, prompts, make_sampling(run.config, run.ends))
    base = reference_weights(run) if run.problem.adapted else None
    should_stop = run.should_stop
    is_left_N = as_the_first(~np.isin(np.arange(len(prompts)), list(done)))
    # Complete batches, done rows included: the same programs as in the first run.
    planned = [batch for batch in plan_answers(run, prompts) if is_left_N[batch.rows].any()]
    compile_answers(run, planned, sampler, run.problem.policy_weights(policy, base))
    done_before = int(len(prompts) - is_left_N.sum())
    if done_before:
        say(f"pairs: continues after {done_before} of {len(prompts)} prompts")
    bar = tqdm(
        total=len(prompts),
        initial=done_before,
        desc="pairs",
        unit="prompt",
        dynamic_ncols=True,
        disable=jax.process_index() != 0,
        mininterval=0.5,
    )
    with bar, run.stop.later():
        for number, batch in enumerate(planned, 1):
            responses: dict[int, list[Generated]] = {}
            for response in answer(run, prompts, sampler, policy, base, [batch]):
                if is_left_N[response.row]:
                    responses.setdefault(response.row, []).append(response)
            yield responses
            bar.update(len(responses))
            if number < len(planned) and (asked := should_stop()) is not None:
                tqdm.write(f"pairs: stopped after {bar.n} of {len(prompts)} prompts", file=sys.stderr)
                raise asked


def _score(
    run: Run, prompts: TokenTable, responses: dict[int, list[Generated]], scorer: Scorer
) -> dict[int, Record]:
    """A record a prompt, its samples with `score`: null where the text is empty.

    Equal texts are scored once.
    """
    records = {row: answers_record(run, prompts, row, samples) for row, samples in responses.items()}
    prompt_texts = {row: _prompt_text(run, prompts, record) for row, record in records.items()}
    for row, record in records.items():
        # The prompt's last space may be in the first token of the response.
        if prompt_texts[row].endswith(" ") and not record["prompt"].endswith(" "):
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
        [prompt_texts[row] for row, _ in texts],
        [text for _, text in texts],
        [records[row]["row"] for row, _ in texts],
    )
    score_of = dict(zip(texts, scores, strict=True))
    for row, record in records.items():
        for sample in record["samples"]:
            sample["score"] = score_of.get((row, sample["text"]))
    return records


def _prompt_text(run: Run, prompts: TokenTable, record: Record) -> str:
    """All of the prompt's text: what the scorer reads before the response."""
    content = prompts.content(record["index"])
    if isinstance(content.get("prompt"), str) and "prompt_ids" not in content:
        return content["prompt"] + run.config.data.separator
    return record["prompt"]


def _distinct(record: Record) -> list[dict[str, Any]]:
    """The samples of a prompt that are not empty, the first of each text."""
    distinct: dict[str, dict[str, Any]] = {}
    for sample in record["samples"]:
        if sample["score"] is not None:
            distinct.setdefault(sample["text"], sample)
    return list(distinct.values())


def _pairs_of(record: Record, making: PairMaking, prompts: TokenTable) -> Iterator[Record]:
    """The pairs of a prompt, as rows that data.train reads."""
    samples, content = _distinct(record), prompts.content(record["index"])
    pairs = choose_pairs(
        [sample["score"] for sample in samples],
        making.rule,
        margin=making.margin,
        threshold=making.threshold,
        limit=making.max_pairs_per_prompt,
    )
    has_ids = content.get("prompt_ids") is not None
    for better, worse in ((samples[a], samples[b]) for a, b in pairs):
        pair = {
            "prompt": record["prompt"] if has_ids else content["prompt"],
            "chosen": better["text"],
            "rejected": worse["text"],
        }
        if has_ids:
            pair["prompt_ids"] = content["prompt_ids"]
            pair["chosen_ids"] = better["token_ids"]
            pair["rejected_ids"] = worse["token_ids"]
        for name in ("tools", "chat_template_kwargs"):  # the chat template reads them
            if content.get(name) is not None:
                pair[name] = content[name]
        pair["chosen_reward"] = better["score"]
        pair["rejected_reward"] = worse["score"]
        pair["origin"] = record["origin"]
        yield pair


def _summarise(records: dict[int, Record], pairs: dict[int, list[Record]]) -> dict[str, Any]:
    samples = [sample for record in records.values() for sample in record["samples"]]
    scores = [sample["score"] for sample in samples if sample["score"] is not None]
    return {
        "prompts": len(records),
        "samples": len(samples),
        "empty": len(samples) - len(scores),
        "repeated": len(scores) - sum(len(_distinct(record)) for record in records.values()),
        "pairs": sum(map(len, pairs.values())),
        "prompts_with_a_pair": sum(map(bool, pairs.values())),
        "mean_score": float(np.mean(scores)) if scores else None,
    }


def _describe(summary: dict[str, Any]) -> str:
    mean = "none" if summary["mean_score"] is None else f"{summary['mean_score']:.4f}"
    share = 100 * summary["prompts_with_a_pair"] / summary["prompts"]
    return (
        f"{summary['prompts']} prompts, {summary['samples']} samples ({summary['empty']} empty and "
        f"{summary['repeated']} repeated left out), {summary['pairs']} pairs, {share:.0f} % of the prompts "
        "with a "
        f"pair, mean score {mean}"
    )
