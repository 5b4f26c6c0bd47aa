"""Tasks of lm-evaluation-harness: found, loaded and put to a model. Imports lm_eval, which is an extra."""

import contextlib
import importlib.metadata
import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import evaluate as metrics_of_the_hub
import numpy as np
from lm_eval.api.model import LM
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.rows import one_line

KEPT = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better")


def load_tasks(names: Sequence[str], include_path: str | None) -> dict[str, Any]:
    """Tasks with their data, {"tasks", "groups", ...}, as `evaluate` takes them.

    Args:
        names: of tasks or groups of the harness, or files of tasks.
        include_path: a directory with more tasks; None: only the harness's own.

    Raises:
        UserError: there is no such task, its data cannot be loaded, or it would run code that is neither
            the harness's nor beside the task's file.
    """
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"harness.include_path: no such directory: {include_path}")
    # As the harness's own command does, before tasks draw.
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    manager = TaskManager(include_path=include_path, include_defaults=not all(map(_stands_alone, names)))
    for name in names:
        if name not in manager.task_index and not Path(name).is_file():
            version = importlib.metadata.version("lm_eval")
            near = get_close_matches(name, manager.all_tasks, 3, 0.6)
            question = f"; did you mean {', '.join(near)}?" if near else ""
            raise UserError(
                f"harness.tasks: {name} is neither a task of lm_eval {version} nor a task file{question}"
            )
    try:
        loaded = manager.load(list(names))
    except UserError:
        raise
    except Exception as error:  # of yaml, jinja2, datasets, huggingface_hub, a task's own functions
        raise UserError(
            f"harness.tasks: {', '.join(names)}: a task or its data set cannot be had "
            f"({one_line(error)}); data sets on the Hub need a network, or a copy in the local cache and "
            "HF_HUB_OFFLINE=1"
        ) from None
    for name, task in loaded["tasks"].items():
        _refuse(name, task)
    return loaded


def _stands_alone(name: str) -> bool:
    """Whether it is a file of one task. If not, the harness looks through all its tasks, for seconds."""
    path = Path(name)
    return path.is_file() and not re.search(
        r"^(group|include)\s*:", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
    )


def _refuse(name: str, task: Any) -> None:
    """UserError: the task runs code, or shows what is not text."""
    if getattr(task, "UNSAFE_CODE", False):
        raise UserError(
            f"harness.tasks: {name} runs what the model writes, in this process; the stage measure does "
            "so in a sandbox"
        )
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"harness.tasks: {name} shows pictures or sound, and the policy reads text alone")
    if task.config.process_results is None:
        for metric, compute in task._metric_fn_list.items():
            if compute is None:
                raise UserError(
                    f"harness.tasks: {name}: the metric {metric} is no metric of lm_eval's own: it would "
                    "be code from the Hub, which is not run"
                )


@contextlib.contextmanager
def no_code_from_the_hub() -> Iterator[None]:
    """Refuses `evaluate.load`, which would download a metric's Python file and run it."""

    def refuse(name: str, *_: Any, **__: Any) -> None:
        raise UserError(
            f"harness.tasks: a task wants the metric {name} from the Hub, which is code, and is not run; "
            "leave the task out"
        )

    before = metrics_of_the_hub.load
    metrics_of_the_hub.load = refuse
    try:
        yield
    finally:
        metrics_of_the_hub.load = before


def run_tasks(
    model: LM,
    names: Sequence[str],
    *,
    include_path: str | None = None,
    num_fewshot: int | None = None,
    gen_kwargs: dict[str, Any] | None = None,
    limit: float | None = None,
    bootstrap_iters: int = 1000,
    apply_chat_template: bool = False,
    fewshot_as_multiturn: bool = True,
    system_instruction: str | None = None,
) -> dict[str, Any]:
    """The tasks' figures with standard errors, versions and numbers of rows, as JSON has them.

    They are the figures of lm_eval's simple_evaluate, its seeds included.

    Args:
        model: is asked.
        names: of tasks, see load_tasks.
        include_path: a directory with more tasks.
        num_fewshot: examples before each question; None: as the task has it. A task that allows none gets
            none.
        gen_kwargs: of generation, over those of the tasks.
        limit: rows of each task, or a share of them below 1; None: all.
        bootstrap_iters: draws for standard errors of metrics that are no means.
        apply_chat_template: whether questions are put as a chat.
        fewshot_as_multiturn: whether examples are turns of that chat.
        system_instruction: before everything; None: none.
    """
    # For standard errors lm_eval would fork, and a fork of a process that runs JAX may hang.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    with no_code_from_the_hub():
        loaded = load_tasks(names, include_path)
        for task in loaded["tasks"].values():
            if gen_kwargs and task.get_config("output_type") == "generate_until":
                task.set_config(key="generation_kwargs", value=gen_kwargs, update=True)
            of_task = task.get_config("num_fewshot")
            if of_task is None or (num_fewshot is not None and of_task != 0):
                task.set_config(key="num_fewshot", value=num_fewshot or 0)
            task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
        figures = evaluate(
            model,
            loaded,
            limit=limit,
            bootstrap_iters=bootstrap_iters,
            log_samples=False,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=fewshot_as_multiturn,
            system_instruction=system_instruction,
        )
    kept = {key: figures[key] for key in KEPT if key in figures}
    kept["lm_eval"] = importlib.metadata.version("lm_eval")
    return json.loads(json.dumps(kept, default=handle_non_serializable))
