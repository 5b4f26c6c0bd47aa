"""The stage eval: how the policy scores the evaluation pairs, before and after po, in summary.json."""

import functools
import time
from typing import Any

import jax
import numpy as np

from sparsepo_jax.build.compute import machine_facts
from sparsepo_jax.config.derive import main_set, masked_terms, shown_mask
from sparsepo_jax.core.files import write_json, write_jsonl
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.eval.auroc import auroc, precision
from sparsepo_jax.eval.lexicon import WordMarks, load_lexicons, mark_table
from sparsepo_jax.eval.scores import PairScore, headline, independent_pairs, mask_sparsity
from sparsepo_jax.eval.which_tokens import FIGURES, deletion, token_figures
from sparsepo_jax.report.evidence import read_facts
from sparsepo_jax.report.outcome import outcome
from sparsepo_jax.run.resume import TRAINING
from sparsepo_jax.stages.ahead import wait_for_programs
from sparsepo_jax.stages.context import Run, say
from sparsepo_jax.stages.reference import describe_reference
from sparsepo_jax.stages.report import say_summary
from sparsepo_jax.stages.sampled import sampled_figures
from sparsepo_jax.stages.score import write_pairs
from sparsepo_jax.stages.scores import score_table
from sparsepo_jax.stages.weights import Compared, adapted, current_weights, reference_weights, start_weights


def evaluate(run: Run) -> None:
    """Writes summary.json, pairs.jsonl (for the report) and, where prompts are answered, samples.jsonl."""
    began_s = time.time()
    summary_path, pairs_path = run.output_dir / "summary.json", run.output_dir / "pairs.jsonl"
    samples_path = run.output_dir / "samples.jsonl"
    if run.marks.finished("eval", summary_path, pairs_path):
        say("eval: finished before")
        return
    wait_for_programs(run)
    start = start_weights(run)
    reference = reference_weights(run, start)
    if start is not None:
        start = adapted(run, start)
    compared = Compared(start, current_weights(run), reference)
    table, figures, after = _evaluate_set(run, run.evaluation_pairs, compared)
    others = {name: _evaluate_set(run, other, compared)[1] for name, other in run.other_sets.items()}
    sampled_before, sampled_after, samples = sampled_figures(run, table, compared)
    summary = figures | {
        "before": figures["before"] | sampled_before,
        "after": figures["after"] | sampled_after,
        "machine": machine_facts(run.config, run.mesh),
        "first_step_s": _first_steps(run),
        "reference": describe_reference(run, reference),
    }
    if names := run.config.data.set_names:
        main = main_set(run.config)
        of_sets = others | {main: figures}
        summary |= {"main": main, "sets": {name: _with_words(of_sets[name]) for name in names}}
    summary["seconds"] = round(time.time() - run.started_s + _earlier_seconds(run), 1)
    summary["words"] = outcome(summary)
    run.unmark("eval")
    if jax.process_index() == 0:
        write_json(summary_path, summary)
        if samples:
            write_jsonl(samples_path, samples)
        else:
            samples_path.unlink(missing_ok=True)
    shown = np.linspace(0, len(after) - 1, min(run.config.report.pairs, len(after))).astype(int)
    write_pairs(run, pairs_path, table, [after[n] for n in shown])
    run.mark("eval", began_s)
    pairs = [len(table), *map(len, run.other_sets.values())]
    sets = f" in {len(pairs)} sets" if len(pairs) > 1 else ""
    units = {x.unit for x in (table, *run.other_sets.values())}
    unit = units.pop() if len(units) == 1 else "pairs and responses"
    say(f"eval: {sum(pairs)} {unit}{sets} in {time.time() - began_s:.1f} s")
    if "report" not in run.config.stages:
        say_summary(run)


def _evaluate_set(
    run: Run, table: TokenTable, compared: Compared
) -> tuple[TokenTable, dict[str, Any], list[PairScore]]:
    """(the pairs with what lexicons say of them, their figures before and after, their scores after)."""
    table, marks = _mark_words(run, table)
    start, reference = compared.start, compared.reference
    before = None if start is None else score_table(run, table, start, reference)
    after = score_table(run, table, compared.now, reference)
    figures = {
        "before": headline(before) if before else dict.fromkeys(headline(after)),
        "after": headline(after),
        "mask": mask_summary(run, table, before, after),
        "pairs": len(table),
        **_of_labels(table),
        "independent_pairs": round(independent_pairs(after, table.prompt_key_N), 1),
    }
    if shown_mask(run.config.objective) == "kl":
        figures["masked"] = "kl"
    if marks is not None:
        figures["lexicons"] = _lexicon_summary(run, marks, before, after)
    return table, figures, after


def _of_labels(table: TokenTable) -> dict[str, Any]:
    """Of rows of one response: that they are no pairs, and which share of them is desirable."""
    if table.label_N is None:
        return {}
    return {"rows": "responses", "desirable": round(float(table.label_N.mean()), 4)}


def _with_words(figures: dict[str, Any]) -> dict[str, Any]:
    return figures | {"words": outcome(figures)}


def _first_steps(run: Run) -> dict[str, float]:
    """Seconds that the first step of each training stage took to come, as far as they are known."""
    facts = {stage: read_facts(run.output_dir, stage) for stage in TRAINING}
    return {
        stage: of_stage["first_step_s"] for stage, of_stage in facts.items() if "first_step_s" in of_stage
    }


def _earlier_seconds(run: Run) -> float:
    """Time that stages took in earlier runs of this directory; an evaluation that is done again apart."""
    finished = run.marks.all()
    before = [
        mark["seconds"]
        for stage, mark in finished.items()
        if stage != "eval" and mark["finished"] < run.started_s
    ]
    return run.earlier_s + sum(before)


def _mark_words(run: Run, table: TokenTable) -> tuple[TokenTable, WordMarks | None]:
    """The pairs, and what evaluation.lexicons say of their tokens.

    If the pairs do not say themselves which tokens are decisive, the words of the lexicons are.
    """
    if not run.config.evaluation.lexicons:
        return table, None
    marks = mark_table(table, run.tokenizer, load_lexicons(run.config.evaluation.lexicons))
    return table if table.has_decisive else table.with_columns(all_decisive=marks.union), marks


def mask_summary(
    run: Run, table: TokenTable, before: list[PairScore] | None, after: list[PairScore]
) -> dict[str, Any]:
    """What the masks are like; null where unknown.

    How sparse they are, how well they and other rankings find the decisive tokens, and what the preference
    loses without the tokens of largest mask.
    """
    summary: dict[str, Any] = dict.fromkeys(
        (*FIGURES, "auroc_ceiling", "precision_ceiling", "sparsity_start", "sparsity_end", "deletion")
    )
    mask = shown_mask(run.config.objective)
    if mask is not None:
        summary["sparsity_start"] = mask_sparsity(before, mask) if before else None
        summary["sparsity_end"] = mask_sparsity(after, mask)
    if mask is not None and table.responses_per_row == 2:
        with_kl = masked_terms(run.config.objective) != "reward_only"
        summary["deletion"] = deletion(after, beta=run.problem.beta, with_kl=with_kl, ranking=mask)
    if table.has_decisive:
        decisive_N = table.all_decisive
        summary |= token_figures(after, before, decisive_N, mask=mask)
        # The grammar's chances are those of whole words, which are the tokens of the built-in reviews alone.
        if table.has_chance and run.config.tokenizer.kind == "reviews":
            summary["auroc_ceiling"] = auroc(table.all_chance, decisive_N)
            summary["precision_ceiling"] = precision(table.all_chance, decisive_N)
    return summary


def _lexicon_summary(
    run: Run, marks: WordMarks, before: list[PairScore] | None, after: list[PairScore]
) -> dict[str, Any]:
    """token_figures by lexicon: of all tokens, and of the first tokens of words (`first_pieces`).

    The rest of a word follows from its beginning, which stands in its context.
    """
    figures = functools.partial(token_figures, after, before, mask=shown_mask(run.config.objective))
    return {
        name: figures(decisive_N) | {"first_pieces": figures(decisive_N, kept_N=~marks.rest)}
        for name, decisive_N in marks.decisive.items()
    }
