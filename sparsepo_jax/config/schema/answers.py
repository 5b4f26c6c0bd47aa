"""What reads text and columns of rows that cannot be there: stop strings, scorers, the stages measure and
harness."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sparsepo_jax.config.schema.evaluation import Measure

if TYPE_CHECKING:
    from sparsepo_jax.config.schema.root import Config

_REMEDY = "set tokenizer, or policy.path with one beside it"
_OF_PAIRS = ("chosen", "rejected")  # the columns that a prompt of an evaluation pair comes with


def answer_mistakes(config: "Config") -> Iterator[str]:
    """Lines about what the settings alone tell that the answers, or their rows, will not have."""
    stages: set[str] = set(config.stages)
    if config.policy.path is None and config.tokenizer.kind == "auto":
        yield from _text_mistakes(config, stages)
    yield from _scorer_mistakes(config, stages)
    if "measure" in stages:
        yield from _measure_mistakes(config, stages)
    if "harness" in stages and not config.harness.tasks:
        yield "harness.tasks: needed by stage harness, but empty"


def _text_mistakes(config: "Config", stages: set[str]) -> Iterator[str]:
    """What cannot be without a tokenizer."""
    if config.generation.stop:
        yield f"generation.stop: stop strings are text: {_REMEDY}"
    if config.evaluation.lexicons:
        yield f"evaluation.lexicons: words are text: {_REMEDY}"
    if config.scorer is not None and ("pairs" in stages or _scores_sampled(config, stages)):
        yield f"scorer: it reads text: {_REMEDY}"
    if {"generate", "measure"} <= stages:
        yield f"measure: it reads text, and stage generate would write token ids alone: {_REMEDY}"
    if "harness" in stages:
        yield f"harness: tasks are text: {_REMEDY}"


def _scores_sampled(config: "Config", stages: set[str]) -> bool:
    """Whether answers to prompts of the evaluation pairs are scored."""
    return "eval" in stages and config.evaluation.sampled_prompts is not None


def _scorer_mistakes(config: "Config", stages: set[str]) -> Iterator[str]:
    if config.scorer is not None and config.scorer.kind == "tests" and _scores_sampled(config, stages):
        yield (
            "scorer.kind: tests are columns of data.prompts, and evaluation.sampled_prompts answers prompts "
            "of the evaluation pairs, which come without them: leave out sampled_prompts (stage measure runs "
            "tests, too), or take another scorer"
        )


def _measure_mistakes(config: "Config", stages: set[str]) -> Iterator[str]:
    if config.measure == Measure():
        yield "measure: needed by stage measure: set measure.code={} or measure.text={}"
    if "generate" not in stages:  # another run has written what it reads, with settings of its own
        return
    code, text = config.measure.code, config.measure.text
    if code is not None and max(code.k) > config.generation.samples:
        yield (
            f"measure.code.k: pass@{max(code.k)} needs as many samples of each problem, but "
            f"generation.samples is {config.generation.samples}"
        )
    if config.data.prompts:
        return
    if code is not None:
        yield "measure.code: tests are columns of data.prompts, which is empty: name the rows that have them"
    reference = None if text is None or not (text.rouge or text.bertscore) else text.reference
    if reference is not None and reference not in _OF_PAIRS:
        yield (
            f"measure.text.reference: the prompts are those of the evaluation pairs, with {_OF_PAIRS[0]} or "
            f"{_OF_PAIRS[1]}, not {reference!r}: name one of these, set data.prompts, or set it to null"
        )
