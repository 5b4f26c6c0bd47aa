"""How good a response is: by a classifier (trained here, or of Hugging Face), a function, or unit tests.

A scorer is a function (prompts, completions, rows) -> a number for each completion. Prompts are as the
policy read them, so that prompt + completion is the complete text; rows are the other columns of the data.
"""

import importlib
import math
import os
import sys
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
    """The scorer's numbers as floats. UserError unless there is a finite one for each completion."""
    if not completions:
        return []
    returned = scorer(prompts, completions, rows)
    try:
        scores = [float(score) for score in returned]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"scorer: expected a list of numbers, got {str(returned)[:80]!r} ({one_line(error)})"
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
    """Scores by the probability of the positive label."""

    def score(prompts: list[str], completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
        return classifier.probability(_joined(prompts, completions)).tolist()

    return score


def _joined(prompts: Sequence[str], completions: Sequence[str]) -> list[str]:
    return [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]


def hf_scorer(path: str, *, label: int | str | None, batch_size: int, device: str) -> Scorer:
    """Scores by a sequence classifier of Hugging Face, run by torch.

    Args:
        path: a directory or Hub id.
        label: number or name of the label whose probability is the score; None: the score is the only
            output of a reward model.
        batch_size: texts read at a time.
        device: of torch.

    Raises:
        UserError: torch is missing, there is no trained classifier, or it does not have the label.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "scorer.kind hf needs torch, which runs the classifier: pip install torch, or choose another "
            "scorer"
        ) from error
    model, tokenizer = _load_hf(path, device)
    config = model.config
    number = _label_number(path, config, label)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    longest = tokenizer.model_max_length
    if positions := getattr(config, "max_position_embeddings", None):
        longest = min(longest, positions)

    def scores_of(logits: Any) -> Any:
        if number is None:
            return logits[:, 0]
        if config.problem_type == "multi_label_classification":
            return torch.sigmoid(logits)[:, number]
        return torch.softmax(logits, dim=-1)[:, number]

    def score(prompts: list[str], completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
        texts = _joined(prompts, completions)
        scores: list[float] = []
        for start in range(0, len(texts), batch_size):
            some = texts[start : start + batch_size]
            inputs = tokenizer(
                some, padding=len(some) > 1, truncation=True, max_length=longest, return_tensors="pt"
            )
            with torch.inference_mode():
                scores += scores_of(model(**inputs.to(device)).logits).tolist()
        return scores

    return score


def _load_hf(path: str, device: str) -> tuple[Any, Any]:
    """(model, tokenizer). UserError: they cannot be loaded, or were not trained to classify."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            path, output_loading_info=True, trust_remote_code=False, dtype=torch.float32, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model.to(device).eval()
    except Exception as error:  # transformers and torch raise a dozen types, all with the same meaning
        raise UserError(
            f"scorer.path: {path}: no sequence classifier to be had there ({one_line(error)})"
        ) from None
    if loading["missing_keys"]:
        names = ", ".join(sorted(loading["missing_keys"])[:3])
        raise UserError(f"scorer.path: {path} is no trained sequence classifier: it has no {names}")
    return model, tokenizer


def _label_number(path: str, config: Any, label: int | str | None) -> int | None:
    """The column of the logits that a label means; None: there is but one."""
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
    """Scores by a function of the user's, named "module:function".

    UserError: it cannot be found; when it is called: whatever it raises, with the place.
    """
    module_name, function_name = name.split(":")
    if not {"", os.getcwd()} & set(sys.path):  # the command `sparsepo` is started without it
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module runs as it is imported, and may raise anything
        raise UserError(
            f"scorer.function: {name}: importing {module_name} raised {_raised(error)}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(
            f"scorer.function: {name}: the module {module.__file__ or module_name} has no function "
            f"{function_name}"
        )

    def score(prompts: list[str], completions: list[str], rows: list[dict[str, Any]]) -> Sequence[float]:
        try:
            return function(prompts, completions, rows)
        except (Exception, SystemExit) as error:
            raise UserError(f"scorer.function: {name} raised {_raised(error)}") from error

    return score


def _raised(error: BaseException) -> str:
    """An exception of the user's code, and where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {one_line(error)} ({last.filename}:{last.lineno})"


def unit_test_scorer(*, time_s: float, memory_mb: int, workers: int | None) -> Scorer:
    """Scores 1 where the program of prompt, completion and the row's tests passes, else 0.

    Args:
        time_s: wall clock that a program may take.
        memory_mb: MiB of address space that it may take.
        workers: programs at a time; None: one for each CPU.
    """
    from sparsepo_jax.sandbox.code_tests import program_of
    from sparsepo_jax.sandbox.parent import SandboxLimits, run_programs

    limits = SandboxLimits(time_s=time_s, memory_mb=memory_mb)

    def score(prompts: list[str], completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
        programs = [
            program_of(row, prompt, completion)
            for prompt, completion, row in zip(prompts, completions, rows, strict=True)
        ]
        return [float(outcome.passed) for outcome in run_programs(programs, limits, workers)]

    return score
