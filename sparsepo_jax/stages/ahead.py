"""Programs of the stage eval, compiled in the background while po trains.

Compiling takes a processor that training leaves idle: on an accelerator, and on CPU where steps are small.
What is not done when eval begins is waited for there. The tilings that XLA times on a GPU meanwhile may not
be the fastest: eval is short, and its programs are not those of a step.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from sparsepo_jax.build.weights import abstract_frozen
from sparsepo_jax.core.program import count_as_compiling
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.stages.context import Run, say
from sparsepo_jax.stages.sampled import compile_sampled
from sparsepo_jax.stages.scores import compile_scores


def compile_eval_meanwhile(run: Run, weights: dict[str, Any]) -> None:
    """Begins to compile what the stage eval will need, if it follows in this run.

    Args:
        weights: {"policy", "masks"} that po trains, abstract.
    """
    table = run.evaluation_pairs
    if "eval" not in run.config.stages or table is None:
        return
    _ = run.ends, run.problem  # made here: making them may print
    reference = abstract_frozen(run.config, "po", run.problem, run.spec, run.reference_spec, run.mesh)
    executor = ThreadPoolExecutor(1)
    run.meanwhile = executor.submit(_compile, run, weights, reference)
    count_as_compiling(run.meanwhile)
    executor.shutdown(wait=False)


def _compile(run: Run, weights: dict[str, Any], reference: Weights) -> str:
    """What there is to say of it."""
    began_s = time.perf_counter()
    table = run.evaluation_pairs
    waits = [compile_scores(run, pairs, weights, reference) for pairs in (table, *run.other_sets.values())]
    compile_sampled(run, table, weights["policy"], reference)
    for wait in waits:
        wait()
    return f"programs compiled in {time.perf_counter() - began_s:.1f} s, while po trained"


def wait_for_programs(run: Run) -> None:
    """Waits for what compile_eval_meanwhile has begun, and says how it went."""
    if run.meanwhile is None:
        return
    try:
        say(f"eval: {run.meanwhile.result()}")
    except jax.errors.JaxRuntimeError as error:  # such as too little memory beside training
        reason = " ".join(str(error).split())[:200]
        say(f"note: eval: compiling while po trained failed, and is done now ({reason})")
    run.meanwhile = None
