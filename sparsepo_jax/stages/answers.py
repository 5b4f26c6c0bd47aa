"""Responses to prompts, as the stages generate, pairs and eval draw and record them."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sparsepo_jax.build.compute import check_batch
from sparsepo_jax.build.data import check_room, load_data
from sparsepo_jax.build.sampling import make_policy_sampler
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.core.types import PromptBatch
from sparsepo_jax.data.batching import PlannedPrompts, plan_prompts
from sparsepo_jax.data.pipeline import make_prompt_batches
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.generate.sampler import Generated, Sampler, Sampling, continuation
from sparsepo_jax.generate.sampler import generate as draw_responses
from sparsepo_jax.sharding.mesh import batch_sharding
from sparsepo_jax.stages.context import Run


def load_prompts(run: Run) -> TokenTable:
    """The distinct prompts of data.prompts, else of the evaluation pairs.

    Generation.max_prompts at the most.
    """
    config = run.config
    if config.data.prompts:
        table = load_data(config, "prompts", config.data.prompts, "prompts", run.tokenizer, run.spec)
    else:
        table = run.evaluation_pairs
    return table.distinct_prompts(config.generation.max_prompts)


def make_run_sampler(run: Run, prompts: TokenTable, sampling: Sampling) -> Sampler:
    """The policy's sampler.

    UserError: a batch cannot be cut over the mesh, or a response may not fit the model.
    """
    check_batch("generation.batch_size", run.config.generation.batch_size, 1, run.mesh)
    check_room("generation.max_new_tokens", sampling.max_new_tokens, prompts, run.spec)
    return make_policy_sampler(run.problem, run.config, run.mesh, sampling)


def plan_answers(run: Run, prompts: TokenTable) -> list[PlannedPrompts]:
    """The batches in which prompts are answered."""
    batch_size = run.config.generation.batch_size
    return plan_prompts(prompts.prompt_lengths_N, batch_size=batch_size, buckets=run.config.data.buckets)


def answer(
    run: Run,
    prompts: TokenTable,
    sampler: Sampler,
    policy: Weights,
    base: Weights | None,
    planned: Sequence[PlannedPrompts] | None = None,
) -> list[Generated]:
    """Responses, ordered by row of `prompts`, then by sample.

    Args:
        policy: what po trains: the weights, or their adapters.
        base: what the adapters stand on, if there are any.
        planned: only these batches of plan_answers; the caller then looks for signals. Without it all prompts
            are answered, and signals are heard between batches.
    """
    weights = run.problem.policy_weights(policy, base)
    batches = make_prompt_batches(
        prompts,
        plan_answers(run, prompts) if planned is None else planned,
        run.config.generation.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    if planned is None:
        compile_answers(run, plan_answers(run, prompts), sampler, weights)
        batches = run.until_stopped(batches)
    with jax.set_mesh(run.mesh):
        responses = draw_responses(sampler, weights, batches, run.tokenizer)
        return sorted(responses, key=lambda response: (response.row, response.sample))


def compile_answers(run: Run, planned: Sequence[PlannedPrompts], sampler: Sampler, weights: Weights) -> None:
    """Compiles what some batches of plan_answers need, side by side.

    Args:
        weights: all of the policy's; abstract arrays will do.
    """
    sharding, rows = batch_sharding(run.mesh), run.config.generation.batch_size

    def of_length(length: int) -> PromptBatch:
        def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((1, rows, *shape), dtype, sharding=sharding)

        return PromptBatch(
            array(np.int32, length), array(np.bool_, length), array(np.int32), array(np.float32)
        )

    lengths = sorted({batch.length for batch in planned})
    with jax.set_mesh(run.mesh):
        sampler.compile_ahead(weights, [of_length(length) for length in lengths])


def answers_record(run: Run, prompts: TokenTable, row: int, responses: list[Generated]) -> dict[str, Any]:
    """A prompt and its responses, as generations.jsonl holds them.

    `text` is what a response adds to the prompt's text, before any stop string; `row` holds the columns of
    the data's row that are not the prompt, or of an evaluation pair its two responses as they were read.
    """
    prompt, stop = prompts.prompt(row), tuple(run.config.generation.stop)
    samples = [
        {
            "text": continuation(prompt, response, run.tokenizer, stop),
            "token_ids": response.ids.tolist(),
            "finish": response.finish,
        }
        for response in responses
    ]
    content = prompts.content(row) or _responses_of_pair(run, prompts, row)
    return {
        "index": row,
        "origin": prompts.origin(row),
        "prompt": prompt_text(run, prompts, row),
        "samples": samples,
        "row": {name: value for name, value in content.items() if name not in ("prompt", "prompt_ids")},
    }


def _responses_of_pair(run: Run, table: TokenTable, row: int) -> dict[str, str]:
    """The texts of a pair's responses, by their columns; {} where rows are no pairs or have no text."""
    if run.tokenizer is None or table.unit != "pairs":
        return {}
    return {
        name: run.tokenizer.decode(table.response(row, p).tolist(), skip_special_tokens=True)
        for p, name in enumerate(("chosen", "rejected"))
    }


def prompt_text(run: Run, prompts: TokenTable, row: int) -> str | None:
    """The prompt's text without special tokens; None if there is no tokenizer."""
    if run.tokenizer is None:
        return None
    return run.tokenizer.decode(prompts.prompt(row).tolist(), skip_special_tokens=True)
