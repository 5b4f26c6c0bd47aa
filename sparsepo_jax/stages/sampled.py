"""Figures of responses drawn from the policy itself, before and after po."""

from typing import Any

import jax
import numpy as np

from sparsepo_jax.build.compute import put_on
from sparsepo_jax.build.reading import make_sum_log_ratios, sum_log_ratios_ahead
from sparsepo_jax.build.sampling import make_sampling
from sparsepo_jax.build.scorer import make_scorer
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.data.reviews import preferred_share
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.generate.sampler import Generated, Sampling, continuation
from sparsepo_jax.scoring.scorers import Scorer, score_all
from sparsepo_jax.stages.answers import (
    answer,
    compile_answers,
    make_run_sampler,
    plan_answers,
    prompt_text,
)
from sparsepo_jax.stages.context import Run, say
from sparsepo_jax.stages.scores import abstract_in_order, in_order
from sparsepo_jax.stages.weights import Compared

Figures = dict[str, float | None]


def sampled_figures(
    run: Run, table: TokenTable, compared: Compared
) -> tuple[Figures, Figures, list[dict[str, Any]]]:
    """(figures before, figures after, a record a prompt) of the same draws from both policies.

    generated_kl: mean over prompts of log pi(y) - log pi_ref(y), y drawn from pi: an unbiased estimate of
    KL(pi || ref) of whole responses, nats. generated_preferred: of the evaluative words (built-in data only),
    the share that speaks for the preferred sentiment. generated_reward: mean score by config.scorer, if there
    is one; known to the first process alone.
    """
    before: Figures = dict.fromkeys(("generated_preferred", "generated_kl"))
    after = dict(before)
    if run.config.evaluation.sampled_prompts is None:
        return before, after, []
    start, now, reference = compared
    prompts, sampling = _prompts(run, table), _sampling(run)
    records = [{"index": row, "prompt": prompt_text(run, prompts, row)} for row in range(len(prompts))]
    sampler = make_run_sampler(run, prompts, sampling)
    scorer = _scorer(run)
    for when, figures, weights in (("before", before, start), ("after", after, now)):
        if weights is None:
            continue
        responses = answer(run, prompts, sampler, weights["policy"], reference)
        figures["generated_kl"] = _mean_log_ratio(
            run, prompts, responses, weights["policy"], reference, sampling.max_new_tokens
        )
        if run.config.tokenizer.kind == "reviews":
            figures["generated_preferred"] = preferred_share([response.text for response in responses])
        if scorer is not None:
            figures["generated_reward"] = _mean_score(run, scorer, prompts, records, responses)
        for record, response in zip(records, responses, strict=True):
            record[when] = response.text if response.text is not None else " ".join(map(str, response.ids))
    return before, after, records


def _prompts(run: Run, table: TokenTable) -> TokenTable:
    return table.distinct_prompts(run.config.evaluation.sampled_prompts)


def _sampling(run: Run) -> Sampling:
    """Of the policy itself, whatever config.generation does to its distribution."""
    return make_sampling(run.config, run.ends)._replace(
        temperature=1.0, top_k=None, top_p=1.0, samples=1, stop=()
    )


def compile_sampled(run: Run, table: TokenTable, policy: Weights, reference: Weights) -> None:
    """Compiles what sampled_figures needs.

    Args:
        policy: what po trains; abstract arrays will do.
        reference: the same.
    """
    if run.config.evaluation.sampled_prompts is None:
        return
    prompts, sampling = _prompts(run, table), _sampling(run)
    sampler = make_run_sampler(run, prompts, sampling)
    compile_answers(run, plan_answers(run, prompts), sampler, run.problem.policy_weights(policy, reference))
    answered = prompts.with_responses([np.zeros(1, np.int32)] * len(prompts))
    batches = abstract_in_order(run, answered, sampling.max_new_tokens)
    with jax.set_mesh(run.mesh):
        sum_log_ratios_ahead(run.problem, run.mesh, [(policy, reference, batch) for batch in batches])


def _scorer(run: Run) -> Scorer | None:
    if run.config.scorer is None or jax.process_index() != 0:
        return None
    if run.tokenizer is None:
        raise UserError(
            "scorer: it reads text, and there is no tokenizer to write it: set tokenizer, or leave out scorer"
        )
    return make_scorer(run.config, say)


def _mean_log_ratio(
    run: Run,
    prompts: TokenTable,
    responses: list[Generated],
    policy: Weights,
    reference: Weights,
    max_new_tokens: int,
) -> float:
    """Mean over responses of log pi(y) - log pi_ref(y), nats."""
    answered = prompts.with_responses([response.ids for response in responses])
    sum_log_ratios = make_sum_log_ratios(run.problem, run.mesh)
    put = put_on(run.mesh)
    with jax.set_mesh(run.mesh):
        # Room for the longest answer that there can be: one program, whatever the policy writes.
        batches = in_order(run, answered, run.config.evaluation.batch_size, max_new_tokens)
        sums = [sum_log_ratios(policy, reference, put(batch)) for batch in batches]
    return float(np.sum(sums)) / len(answered)


def _mean_score(
    run: Run, scorer: Scorer, prompts: TokenTable, records: list[dict[str, Any]], responses: list[Generated]
) -> float:
    texts = [
        continuation(prompts.prompt(response.row), response, run.tokenizer, ()) for response in responses
    ]
    prompt_texts = [record["prompt"] for record in records]
    return float(np.mean(score_all(scorer, prompt_texts, texts, [{}] * len(responses))))
