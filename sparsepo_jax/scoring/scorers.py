"""What says how good a response is: a classifier trained here, one of Hugging Face, a function of the user's, or unit tests.

Each is f(prompts, completions, rows) -> a number for each. prompts: as the policy read them, so that prompt + completion is the whole text; rows: the
other columns of the data.
"""

import importlib
import math
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.rows import one_line
from sparsepo_jax.scoring.classifier import Classifier

Scorer = Callable[[list[str], list[str], list[dict[str, Any]]], Sequence[float]]


def score_all(
    scorer: Scorer, prompts: list[str], completions: list[str], rows: list[dict[str, Any]]
) -> list[float]:
    """UserError unless there is a finite number for each completion."""
    if not completions:
        return []
    found = scorer(prompts, completions, rows)
    try:
        scores = [float(score) for score in found]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"scorer: expected a list of numbers, got {str(found)[:80]!r} ({one_line(error)})"
        ) from None
    if len(scores) != len(completions):
        raise UserError(
            f"scorer: expected a score for each of {len(completions)} completions, got {len(scores)}"
        )
    bad = next((n for n, score in enumerate(scores) if not math.isfinite(score)), None)
    if bad is not None:
        raise UserError(
            f"scorer: expected finite scores, got {scores[bad]} for the completion {completions[bad][:60]!r}"
        )
    return scores


def classifier_scorer(classifier: Classifier) -> Scorer:
    """The probability of the positive label."""
    return lambda prompts, completions, rows: classifier.probability(
        [p + c for p, c in zip(prompts, completions, strict=True)]
    ).tolist()


def hf_scorer(path: str, *, label: int | str | None, batch_size: int, device: str) -> Scorer:
    """The probability of a label, or (label None) the one output of a reward model. UserError: torch is missing; no trained classifier there; a label
    that it does not have."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "scorer.kind hf needs torch, which runs the classifier: pip install torch, or choose another scorer"
        ) from error
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            path, output_loading_info=True, trust_remote_code=False, dtype=torch.float32, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model.to(device).eval()
    except Exception as error:  # transformers and torch raise a dozen types; all mean that it cannot be had
        raise UserError(
            f"scorer.path: {path}: no sequence classifier to be had there ({one_line(error)})"
        ) from None
    if loading["missing_keys"]:
        names = ", ".join(sorted(loading["missing_keys"])[:3])
        raise UserError(f"scorer.path: {path} is no trained sequence classifier: it has no {names}")
    number = _label_number(path, model.config, label)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    longest = min(
        tokenizer.model_max_length,
        getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length,
    )
    squash = (
        torch.sigmoid
        if model.config.problem_type == "multi_label_classification"
        else lambda x: torch.softmax(x, dim=-1)
    )

    def score(prompts: list[str], completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(completions), batch_size):
            texts = [
                p + c
                for p, c in zip(prompts[start : start + batch_size], completions[start : start + batch_size])
            ]
            read = tokenizer(
                texts, padding=len(texts) > 1, truncation=True, max_length=longest, return_tensors="pt"
            ).to(device)
            with torch.inference_mode():
                logits = model(**read).logits
            found += (logits[:, 0] if number is None else squash(logits)[:, number]).tolist()
        return found

    return score


def _label_number(path: str, config: Any, label: int | str | None) -> int | None:
    names = {int(number): str(name) for number, name in config.id2label.items()}
    shown = ", ".join(f"{number} ({name})" for number, name in list(names.items())[:12])
    if len(names) == 1:
        if label is not None:
            raise UserError(f"scorer.label: {path} has one output, which is the score: leave the label out")
        return None
    if label is None:
        raise UserError(
            f"scorer.label: {path} has the labels {shown}: choose the one whose probability is the score"
        )
    number = next((n for n, name in names.items() if label in (n, name)), None)
    if number is None:
        raise UserError(f"scorer.label: {path} has no label {label!r}, only {shown}")
    return number


def function_scorer(name: str) -> Scorer:
    """module:function. UserError: it cannot be found, or whatever it raises, with the place."""
    module_name, function_name = name.split(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module runs as it is imported, and may raise anything
        raise UserError(
            f"scorer.function: {name}: importing {module_name} raised {_raised(error)}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(
            f"scorer.function: {name}: the module {module.__file__ or module_name} has no function {function_name}"
        )

    def score(prompts: list[str], completions: list[str], rows: list[dict[str, Any]]) -> Sequence[float]:
        try:
            return function(prompts, completions, rows)
        except Exception as error:
            raise UserError(f"scorer.function: {name} raised {_raised(error)}") from error

    return score


def _raised(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {one_line(error)} ({last.filename}:{last.lineno})"


def unit_test_scorer(*, time_s: float, memory_mb: int, workers: int | None) -> Scorer:
    """1 where the program of prompt, completion and the row's tests passes, else 0."""
    from sparsepo_jax.sandbox.code_tests import program_of
    from sparsepo_jax.sandbox.parent import Limits, run_programs

    limits = Limits(time_s=time_s, memory_mb=memory_mb)

    def score(prompts: list[str], completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
        programs = [
            program_of(row, prompt, completion)
            for prompt, completion, row in zip(prompts, completions, rows, strict=True)
        ]
        return [float(outcome.passed) for outcome in run_programs(programs, limits, workers)]

    return score
