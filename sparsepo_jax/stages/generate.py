"""The stage generate: responses of the policy to prompts, in generations.jsonl."""

import time

import jax

from sparsepo_jax.build.sampling import make_sampling
from sparsepo_jax.core.files import write_jsonl
from sparsepo_jax.stages.answers import answer, answers_record, load_prompts, make_run_sampler
from sparsepo_jax.stages.context import Run, say
from sparsepo_jax.stages.weights import current_policy, reference_weights


def generate(run: Run) -> None:
    """Answers the distinct prompts of data.prompts, else of the evaluation pairs."""
    began_s = time.time()
    path = run.output_dir / "generations.jsonl"
    if run.marks.finished("generate", path):
        say("generate: finished before")
        return
    prompts = load_prompts(run)
    sampling = make_sampling(run.config, run.ends)
    base = reference_weights(run) if run.problem.adapted else None
    sampler = make_run_sampler(run, prompts, sampling)
    responses = answer(run, prompts, sampler, current_policy(run), base)
    run.unmark("generate")
    if jax.process_index() == 0:
        by_prompt = (
            responses[row * sampling.samples : (row + 1) * sampling.samples] for row in range(len(prompts))
        )
        write_jsonl(path, (answers_record(run, prompts, row, drawn) for row, drawn in enumerate(by_prompt)))
    run.mark("generate", began_s)
    tokens = sum(len(response.ids) for response in responses)
    say(
        f"generate: {len(responses)} responses to {len(prompts)} prompts, {tokens} tokens "
        f"in {time.time() - began_s:.1f} s -> {path}"
    )
