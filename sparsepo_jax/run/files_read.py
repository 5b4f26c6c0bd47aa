"""The files that a stage reads which leaves no weights: when one has changed, the stage is done again."""

import glob
import os
from pathlib import Path
from typing import Any

from sparsepo_jax.config.derive import evaluation_sources, is_unpaired
from sparsepo_jax.config.schema.generation import ClassifierScorer, FunctionScorer
from sparsepo_jax.config.schema.root import Config


def files_read(config: Config, stage: str) -> list[str]:
    """Files and directories that a stage reads which is not continued.

    Args:
        stage: its name.
    """
    if stage == "measure":
        bert_score = config.measure.text and config.measure.text.bertscore
        models = [bert_score.model] if bert_score else []
        return [str(Path(config.output_dir, "generations.jsonl")), *models]
    if stage == "weigh":
        return [] if config.weigh is None else [str(scores_path(run)) for run in config.weigh.runs]
    paths = [config.policy.path, config.policy.adapter, config.reference.path, config.reference.adapter]
    sources: list[Any] = [config.tokenizer]
    if stage in ("score", "eval", "generate"):
        sources += evaluation_sources(config.data)
        if config.data.holdout is not None or is_unpaired(config.objective):
            sources += config.data.train
    if stage == "generate":
        sources += config.data.prompts
    if stage == "eval":
        sources += config.evaluation.lexicons
        paths += scorer_files(config)
    paths += [getattr(source, "path", None) for source in sources]
    if stage == "harness":
        paths += [*config.harness.tasks, config.harness.include_path]
    return [path for path in paths if path is not None]


def scorer_files(config: Config) -> list[str]:
    """Files and directories that the scorer is made of; a function's, where it lies in this directory."""
    scorer = config.scorer
    if isinstance(scorer, FunctionScorer):
        module = scorer.function.split(":")[0].replace(".", "/")
        return [file for file in (f"{module}.py", f"{module}/__init__.py") if os.path.exists(file)]
    sources: list[Any] = [scorer]
    if isinstance(scorer, ClassifierScorer):
        sources += [*scorer.train, *scorer.test]
    return [path for source in sources if (path := getattr(source, "path", None)) is not None]


def scores_path(run: str) -> Path:
    """The scores of a run: its file scores.jsonl, or one that is named itself."""
    path = Path(run)
    return path if path.suffix == ".jsonl" else path / "scores.jsonl"


def stamp(path: Path) -> list:
    """Name, size and time of a file, or of the files of a directory or pattern; [] where there is none.

    Args:
        path: of any of them; it may be no path here at all, such as a Hub id.
    """
    if path.is_dir():
        files = sorted(path.iterdir())
    elif path.exists():
        files = [path]
    else:
        files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]
