"""The stages that read what training left: score, eval, generate, harness. Each takes the run (stages.Run) and writes under its output directory."""

import functools
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sparsepo_jax import build, programs
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import write_json, write_jsonl
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.data.batching import PlannedPrompts, plan_prompts
from sparsepo_jax.data.pipeline import make_prompt_batches
from sparsepo_jax.data.reviews import preferred_share
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.eval import scores as scoring
from sparsepo_jax.eval.auroc import auroc, precision
from sparsepo_jax.eval.lexicon import WordMarks, load_lexicons, mark_table
from sparsepo_jax.eval.records import pair_record
from sparsepo_jax.eval.which_tokens import FIGURES, deletion, token_figures
from sparsepo_jax.generate.sampler import Generated, Sampler, Sampling, continuation
from sparsepo_jax.generate.sampler import generate as generate_all
from sparsepo_jax.report.outcome import outcome
from sparsepo_jax.scoring.scorers import score_all


def score(run) -> None:
    """Every evaluation pair, token by token, in scores.jsonl."""
    began_s, path = time.time(), run.output_dir / "scores.jsonl"
    if run.marks.finished("score", path):
        run.say("score: finished before")
        return
    table = run.pairs[1]
    scores = run.scores(table, run.current_weights(), run.reference_weights())
    run.unmark("score")
    write_pairs(run, path, table, scores)
    run.mark("score", began_s)
    run.say(
        f"score: {len(scores)} pairs, mean loss {np.mean([score.metrics['loss'] for score in scores]):.4f} -> {path}"
    )


def write_pairs(
    run, path: Path, table: TokenTable, scores: list[scoring.PairScore], *, with_text: bool = False
) -> None:
    tokenizer = run.tokenizer if with_text else None
    write_lines(path, (pair_record(score, table, tokenizer, with_text=with_text) for score in scores))


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line, by the first process."""
    if jax.process_index() != 0:
        return
    write_jsonl(path, records)


def evaluate(run) -> None:
    """summary.json, pairs.jsonl (for the report) and, where prompts are answered, samples.jsonl."""
    began_s, summary_path, pairs_path = (
        time.time(),
        run.output_dir / "summary.json",
        run.output_dir / "pairs.jsonl",
    )
    if run.marks.finished("eval", summary_path, pairs_path):
        run.say("eval: finished before")
        return
    (table, marks), start = _word_marks(run, run.pairs[1]), run.start_weights()
    reference = run.reference_weights(start)
    start = None if start is None else run.adapted(start)
    before = None if start is None else run.scores(table, start, reference)
    now = run.current_weights()
    after = run.scores(table, now, reference)
    (written_before, written_after), written = _sampled(run, table, start, now, reference)
    summary = {
        "before": (scoring.headline(before) if before else dict.fromkeys(scoring.headline(after)))
        | written_before,
        "after": scoring.headline(after) | written_after,
        "mask": mask_summary(run, table, before, after),
        "pairs": len(table),
        "independent_pairs": round(scoring.independent_pairs(after, table.prompt_key_N), 1),
        "machine": build.machine_facts(run.config, run.mesh),
        "reference": run.reference_record(reference),
    }
    if marks is not None:
        summary["lexicons"] = lexicon_summary(run, marks, before, after)
    earlier_s = sum(
        mark["seconds"] for stage, mark in run.marks.all().items() if stage not in run.config.stages
    )
    summary["seconds"] = round(time.time() - run.started_s + earlier_s, 1)
    summary["words"] = outcome(summary)
    run.unmark("eval")
    if jax.process_index() == 0:
        write_json(summary_path, summary)
    if written:
        write_lines(run.output_dir / "samples.jsonl", written)
    elif jax.process_index() == 0:
        (run.output_dir / "samples.jsonl").unlink(missing_ok=True)
    chosen = np.linspace(0, len(after) - 1, min(run.config.report.pairs, len(after))).astype(int)
    write_pairs(run, pairs_path, table, [after[n] for n in chosen], with_text=True)
    run.mark("eval", began_s)
    run.say(f"eval: {len(table)} pairs in {time.time() - began_s:.1f} s")
    if "report" not in run.config.stages:
        run.say_summary()


def _word_marks(run, table: TokenTable) -> tuple[TokenTable, WordMarks | None]:
    """What evaluation.lexicons say of the pairs' tokens, and the pairs with it, if they do not say themselves which tokens are decisive."""
    if not run.config.evaluation.lexicons:
        return table, None
    marks = mark_table(table, run.tokenizer, load_lexicons(run.config.evaluation.lexicons))
    return table if table.has_decisive else table.with_columns(all_decisive=marks.union), marks


def mask_summary(run, table: TokenTable, before: list | None, after: list) -> dict[str, Any]:
    """How sparse the masks are, how well they and others find the decisive tokens, and what the preference loses without their largest; null where
    unknown."""
    found: dict[str, Any] = dict.fromkeys(
        (*FIGURES, "auroc_ceiling", "precision_ceiling", "sparsity_start", "sparsity_end", "deletion")
    )
    mask = build.mask_config(run.config)
    if mask is not None:
        found["sparsity_start"] = scoring.mask_sparsity(before) if before else None
        found["sparsity_end"] = scoring.mask_sparsity(after)
        ranking = "kl" if mask.on == "kl" else "reward"
        found["deletion"] = deletion(
            after, beta=run.problem.beta, with_kl=mask.on != "reward_only", ranking=ranking
        )
    if table.has_decisive:
        decisive_N = table.all_decisive
        found |= token_figures(after, before, decisive_N, masked=mask is not None)
        if (
            table.has_chance and run.config.tokenizer.kind == "reviews"
        ):  # the grammar's chances are those of whole words
            found["auroc_ceiling"] = auroc(table.all_chance, decisive_N)
            found["precision_ceiling"] = precision(table.all_chance, decisive_N)
    return found


def lexicon_summary(run, marks: WordMarks, before: list | None, after: list) -> dict[str, Any]:
    """token_figures by each lexicon: of all tokens, and of those that are not the rest of a word (`first_pieces`), whose context does not hold the
    word's beginning."""
    find = functools.partial(token_figures, after, before, masked=build.mask_config(run.config) is not None)
    return {
        name: find(decisive_N) | {"first_pieces": find(decisive_N, kept_N=~marks.rest)}
        for name, decisive_N in marks.decisive.items()
    }


# ---------------------------------------------------------------- what the policy writes


def generate(run) -> None:
    """generations.jsonl: responses to the distinct prompts of data.prompts, else of the evaluation pairs."""
    began_s, path = time.time(), run.output_dir / "generations.jsonl"
    if run.marks.finished("generate", path):
        run.say("generate: finished before")
        return
    prompts = prompts_of(run)
    sampling = build.make_sampling(run.config, run.ends)
    base = run.reference_weights() if run.problem.adapted else None
    found = answer(run, prompts, make_sampler_for(run, prompts, sampling), run.current_policy(), base)
    run.unmark("generate")
    write_lines(
        path,
        (
            answers_record(run, prompts, row, found[row * sampling.samples :][: sampling.samples])
            for row in range(len(prompts))
        ),
    )
    run.mark("generate", began_s)
    seconds, tokens = time.time() - began_s, sum(len(one.ids) for one in found)
    run.say(
        f"generate: {len(found)} responses to {len(prompts)} prompts, {tokens} tokens in {seconds:.1f} s -> {path}"
    )


def prompts_of(run) -> TokenTable:
    """The distinct prompts of data.prompts, else of the evaluation pairs; generation.max_prompts at the most."""
    if run.config.data.prompts:
        table = build.load_data(
            run.config, "prompts", run.config.data.prompts, "prompts", run.tokenizer, run.spec
        )
    else:
        table = run.pairs[1]
    return table.distinct_prompts(run.config.generation.max_prompts)


def answers_record(run, prompts: TokenTable, row: int, found: list[Generated]) -> dict[str, Any]:
    """A prompt and its answers as generations.jsonl holds them. text: what the answer adds to the prompt's text, before any stop string. row: the
    columns of the data's row that are not the prompt."""
    sampling_stop = tuple(run.config.generation.stop)
    samples = [
        {
            "text": continuation(prompts.prompt(row), one, run.tokenizer, sampling_stop),
            "token_ids": one.ids.tolist(),
            "finish": one.finish,
        }
        for one in found
    ]
    others = {
        name: value for name, value in prompts.content(row).items() if name not in ("prompt", "prompt_ids")
    }
    return {
        "index": row,
        "origin": prompts.origin(row),
        "prompt": prompt_text(run, prompts, row),
        "samples": samples,
        "row": others,
    }


def make_sampler_for(run, prompts: TokenTable, sampling: Sampling) -> Sampler:
    build.check_batch("generation.batch_size", run.config.generation.batch_size, 1, run.mesh)
    build.check_room("generation.max_new_tokens", sampling.max_new_tokens, prompts, run.spec)
    return programs.make_policy_sampler(run.problem, run.config, run.mesh, sampling)


def plan_answers(run, prompts: TokenTable) -> list[PlannedPrompts]:
    return plan_prompts(
        prompts.prompt_lengths_N, batch_size=run.config.generation.batch_size, buckets=run.config.data.buckets
    )


def answer(
    run,
    prompts: TokenTable,
    sampler: Sampler,
    policy: Weights,
    base: Weights | None,
    planned: Sequence[PlannedPrompts] | None = None,
) -> list[Generated]:
    """By row, then sample. policy: what po trains; base: what its adapters, if it has any, stand on. planned: these batches of plan_answers only, and
    signals are the caller's matter; without it they are heard between batches."""
    weights, size = run.problem.policy_weights(policy, base), run.config.generation.batch_size
    batches = make_prompt_batches(
        prompts,
        plan_answers(run, prompts) if planned is None else planned,
        size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    batches = run.heeding(batches) if planned is None else batches
    with jax.set_mesh(run.mesh):
        return sorted(
            generate_all(sampler, weights, batches, run.tokenizer), key=lambda one: (one.row, one.sample)
        )


def prompt_text(run, prompts: TokenTable, row: int) -> str | None:
    return (
        None
        if run.tokenizer is None
        else run.tokenizer.decode(prompts.prompt(row).tolist(), skip_special_tokens=True)
    )


def _sampled(
    run, table: TokenTable, start: dict[str, Weights] | None, now: dict[str, Weights], reference: Weights
) -> tuple[list[dict], list[dict]]:
    """([figures before, figures after], a record a prompt) of responses drawn from the policy itself. The same draws before and after.

    generated_kl: mean over prompts of log pi(y) - log pi_ref(y), y drawn from pi: an unbiased estimate of KL(pi || ref) of whole
    responses, nats. generated_preferred: of the evaluative words (built-in data only), the share that speaks for the preferred sentiment.
    generated_reward: mean score by config.scorer, if there is one; known to the first process alone.
    """
    figures: list[dict] = [dict.fromkeys(("generated_preferred", "generated_kl")) for _ in range(2)]
    if run.config.evaluation.sampled_prompts is None:
        return figures, []
    prompts = table.distinct_prompts(run.config.evaluation.sampled_prompts)
    plain = build.make_sampling(run.config, run.ends)._replace(
        temperature=1.0, top_k=None, top_p=1.0, samples=1, stop=()
    )
    records = [{"index": row, "prompt": prompt_text(run, prompts, row)} for row in range(len(prompts))]
    put, sampler = build.put_on(run.mesh), make_sampler_for(run, prompts, plain)
    scorer = None
    if run.config.scorer is not None and jax.process_index() == 0:
        if run.tokenizer is None:
            raise UserError(
                "scorer: it reads text, and there is no tokenizer to write it: set tokenizer, or leave out scorer"
            )
        scorer = build.make_scorer(run.config, run.say)
    for when, figure, weights in zip(("before", "after"), figures, (start, now), strict=True):
        if weights is None:
            continue
        found = answer(run, prompts, sampler, weights["policy"], reference)
        answered = prompts.with_responses([one.ids for one in found])
        with jax.set_mesh(run.mesh):
            # Room for the longest answer that there can be: one program, whatever the policy writes.
            batches = run.in_order(answered, run.config.evaluation.batch_size, plain.max_new_tokens)
            sums = [run.sum_log_ratios(weights["policy"], reference, put(batch)) for batch in batches]
        figure["generated_kl"] = float(np.sum(sums)) / len(answered)
        texts = [one.text for one in found]
        if run.config.tokenizer.kind == "reviews":
            figure["generated_preferred"] = preferred_share(texts)
        if scorer is not None:
            added = [continuation(prompts.prompt(one.row), one, run.tokenizer, ()) for one in found]
            figure["generated_reward"] = float(
                np.mean(score_all(scorer, [record["prompt"] for record in records], added, [{}] * len(found)))
            )
        for record, one in zip(records, found, strict=True):
            record[when] = one.text if one.text is not None else " ".join(map(str, one.ids))
    return figures, records


# ---------------------------------------------------------------- tasks of lm-evaluation-harness


def harness(run) -> None:
    """harness.json: the policy's figures in tasks of lm-evaluation-harness. Every process does the whole of it."""
    began_s, path, settings = time.time(), run.output_dir / "harness.json", run.config.harness
    if run.marks.finished("harness", path):
        run.say("harness: finished before")
        return
    if run.tokenizer is None:
        raise UserError(
            "stage harness: tasks are text, but there is no tokenizer beside policy.path; set tokenizer"
        )
    try:
        from sparsepo_jax.eval.harness_tasks import run_tasks
    except ModuleNotFoundError as error:
        raise UserError(
            f"stage harness: needs the extra lm_eval ({error}); pip install -e '.[lm_eval]'"
        ) from None
    from sparsepo_jax.report.table import harness_table

    given = {
        name: getattr(settings, name)
        for name in (
            "include_path",
            "num_fewshot",
            "gen_kwargs",
            "limit",
            "bootstrap_iters",
            "apply_chat_template",
            "fewshot_as_multiturn",
            "system_instruction",
        )
    }
    with jax.set_mesh(run.mesh):
        found = run_tasks(_harness_model(run), settings.tasks, **given)
    run.unmark("harness")
    if jax.process_index() == 0:
        write_json(path, found | {"settings": settings.model_dump(mode="json")})
    run.mark("harness", began_s)
    run.say(
        f"harness: {', '.join(settings.tasks)} in {time.time() - began_s:.1f} s -> {path}\n{harness_table(found)}"
    )


def _harness_model(run):
    """The run's policy as the harness takes it."""
    from sparsepo_jax.data.templates import make_render
    from sparsepo_jax.eval.harness import HarnessModel

    config, settings, put = run.config, run.config.harness, build.put_on(run.mesh)
    length = settings.max_length or run.spec.max_positions
    if length > run.spec.max_positions:
        raise UserError(
            f"harness.max_length: {length} tokens do not fit the model's {run.spec.max_positions} positions; set it to these or less"
        )
    build.check_batch("harness.batch_size", settings.batch_size, 1, run.mesh)
    policy = run.current_policy()
    base = run.reference_weights() if run.problem.adapted else None
    score_batch, own = (
        programs.make_score_responses(run.problem, run.mesh),
        build.make_sampling(config, run.ends),
    )
    sampler_of = functools.cache(
        lambda sampling: programs.make_policy_sampler(run.problem, config, run.mesh, sampling)
    )

    def score(table: TokenTable) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for batch in run.in_order(table, settings.batch_size):
            logp_BP, greedy_BP, row_B, weight_B = map(np.asarray, score_batch(policy, base, put(batch)))
            yield from ((int(row_B[b]), logp_BP[b], greedy_BP[b]) for b in np.flatnonzero(weight_B > 0))

    def write(prompts: TokenTable, asked: Sampling) -> Iterator[Generated]:
        sampling = asked._replace(seed=own.seed, ends=tuple(sorted({*own.ends, *asked.ends})))
        # Stop strings are looked for by the host: they make no other program.
        sampler = sampler_of(sampling._replace(stop=()))._replace(sampling=sampling)
        planned = plan_prompts(
            prompts.prompt_lengths_N, batch_size=settings.batch_size, buckets=config.data.buckets
        )
        batches = make_prompt_batches(
            prompts,
            planned,
            settings.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        yield from generate_all(sampler, run.problem.policy_weights(policy, base), batches, run.tokenizer)

    render = make_render(
        run.tokenizer,
        config.data.template,
        config.data.template_arguments,
        build.template_date(config, run.tokenizer),
    )
    return HarnessModel(
        run.tokenizer,
        score,
        write,
        render,
        max_length=length,
        vocab_size=run.spec.vocab_size,
        add_bos=settings.add_bos,
        quiet=jax.process_index() != 0,
    )
