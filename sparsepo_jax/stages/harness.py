"""The stage harness: the policy's figures in tasks of lm-evaluation-harness, in harness.json."""

import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from sparsepo_jax.build.compute import check_batch, put_on
from sparsepo_jax.build.reading import make_score_responses
from sparsepo_jax.build.sampling import make_policy_sampler, make_sampling
from sparsepo_jax.build.tokenizer import template_date
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import write_json
from sparsepo_jax.data.batching import plan_prompts
from sparsepo_jax.data.pipeline import make_prompt_batches
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.generate.sampler import Generated, Sampler, Sampling
from sparsepo_jax.generate.sampler import generate as draw_responses
from sparsepo_jax.stages.context import Run, say
from sparsepo_jax.stages.scores import in_order
from sparsepo_jax.stages.weights import current_policy, reference_weights

# Settings of the section `harness` that lm-evaluation-harness takes under the same names.
_HARNESS_ARGUMENTS = (
    "include_path",
    "num_fewshot",
    "gen_kwargs",
    "limit",
    "bootstrap_iters",
    "apply_chat_template",
    "fewshot_as_multiturn",
    "system_instruction",
)


def harness(run: Run) -> None:
    """Runs harness.tasks. Every process does all of it."""
    began_s = time.time()
    path, settings = run.output_dir / "harness.json", run.config.harness
    if run.marks.finished("harness", path):
        say("harness: finished before")
        return
    if run.tokenizer is None:
        raise UserError(
            "stage harness: tasks are text, but there is no tokenizer beside policy.path; set tokenizer"
        )
    try:
        from sparsepo_jax.eval.harness_tasks import run_tasks
    except ModuleNotFoundError as error:
        raise UserError(
            f"stage harness: needs the extra lm_eval ({error}); pip install 'sparsepo_jax[lm_eval]'"
        ) from None
    from sparsepo_jax.report.table import harness_table

    arguments = {name: getattr(settings, name) for name in _HARNESS_ARGUMENTS}
    with jax.set_mesh(run.mesh):
        results = run_tasks(make_harness_model(run), settings.tasks, **arguments)
    run.unmark("harness")
    if jax.process_index() == 0:
        write_json(path, results | {"settings": settings.model_dump(mode="json")})
    run.mark("harness", began_s)
    tasks = ", ".join(settings.tasks)
    say(f"harness: {tasks} in {time.time() - began_s:.1f} s -> {path}\n{harness_table(results)}")


def make_harness_model(run: Run) -> Any:
    """The run's policy as lm-evaluation-harness takes it: an eval.harness.HarnessModel."""
    from sparsepo_jax.data.templates import make_render
    from sparsepo_jax.eval.harness import HarnessModel

    config, settings = run.config, run.config.harness
    length = settings.max_length or run.spec.max_positions
    if length > run.spec.max_positions:
        raise UserError(
            f"harness.max_length: {length} tokens do not fit the model's {run.spec.max_positions} positions"
            f"{run.spec.positions_note}; set it to these or less"
        )
    check_batch("harness.batch_size", settings.batch_size, 1, run.mesh)
    policy = current_policy(run)
    base = reference_weights(run) if run.problem.adapted else None
    score_batch = make_score_responses(run.problem, run.mesh)
    put = put_on(run.mesh)
    run_sampling = make_sampling(config, run.ends)

    @functools.cache
    def sampler_for(sampling: Sampling) -> Sampler:
        return make_policy_sampler(run.problem, config, run.mesh, sampling)

    def score(table: TokenTable) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for batch in in_order(run, table, settings.batch_size):
            logp_BP, greedy_BP, row_B, weight_B = map(np.asarray, score_batch(policy, base, put(batch)))
            yield from ((int(row_B[b]), logp_BP[b], greedy_BP[b]) for b in np.flatnonzero(weight_B > 0))

    def write(prompts: TokenTable, asked: Sampling) -> Iterator[Generated]:
        ends = tuple(sorted({*run_sampling.ends, *asked.ends}))
        sampling = asked._replace(seed=run_sampling.seed, ends=ends)
        # The host looks for stop strings: they need no program of their own.
        sampler = sampler_for(sampling._replace(stop=()))._replace(sampling=sampling)
        batches = make_prompt_batches(
            prompts,
            plan_prompts(
                prompts.prompt_lengths_N, batch_size=settings.batch_size, buckets=config.data.buckets
            ),
            settings.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        yield from draw_responses(sampler, run.problem.policy_weights(policy, base), batches, run.tokenizer)

    day = template_date(config, run.tokenizer)
    render = make_render(run.tokenizer, config.data.template, config.data.template_arguments, day)
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
