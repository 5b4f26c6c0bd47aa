"""The scorer of responses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsepo_jax.build.sources import open_source
from sparsepo_jax.config.schema.data import Source
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.run.files_read import scorer_files, stamp
from sparsepo_jax.scoring.scorers import Scorer


def make_scorer(config: Config, say: Callable[[str], None], *, goes_on: bool = False) -> Scorer:
    """The scorer that config.scorer asks for.

    A classifier is kept in output_dir/classifier, and trained anew where its settings or files have changed.

    Args:
        say: is given lines for the user.
        goes_on: take the classifier that is kept: what it has scored so far is to be gone on with.
    """
    from sparsepo_jax.scoring import classifier as classifiers
    from sparsepo_jax.scoring import scorers

    chosen = config.scorer
    if chosen.kind == "hf":
        return scorers.hf_scorer(
            chosen.path, label=chosen.label, batch_size=chosen.batch_size, device=chosen.device
        )
    if chosen.kind == "function":
        return scorers.function_scorer(chosen.function)
    if chosen.kind == "tests":
        return scorers.unit_test_scorer(
            time_s=chosen.time_s, memory_mb=chosen.memory_mb, workers=chosen.workers
        )
    directory = Path(chosen.path or Path(config.output_dir) / "classifier")
    if chosen.path is None and not (goes_on and directory.exists()):
        _train_unless_kept(config, directory)
    classifier, about = classifiers.load_classifier(directory)
    line = f"the classifier of {about['rows']} rows is right on {100 * about['accuracy']:.1f} % of them"
    if about["test_accuracy"] is not None:
        line += f", {100 * about['test_accuracy']:.1f} % on the test rows"
    say(line)
    return scorers.classifier_scorer(classifier)


def _train_unless_kept(config: Config, directory: Path) -> None:
    """Trains the classifier, unless the one in the directory was trained with the same settings and files."""
    from sparsepo_jax.scoring import classifier as classifiers

    trained_on = _trained_on(config)
    if not directory.exists() or classifiers.load_classifier(directory)[1].get("trained_on") != trained_on:
        _train_classifier(config, directory, trained_on)


def _trained_on(config: Config) -> dict[str, Any]:
    """What decides what the classifier learns, as JSON gives it back."""
    decides = {
        "scorer": config.scorer.model_dump(mode="json"),
        "on_bad_row": config.data.on_bad_row,
        "files": {path: stamp(Path(path)) for path in scorer_files(config)},
    }
    return json.loads(json.dumps(decides))


def _train_classifier(config: Config, directory: Path, trained_on: dict[str, Any]) -> None:
    from sparsepo_jax.data.labelled import Labelled, read_labelled
    from sparsepo_jax.scoring import classifier as classifiers

    chosen = config.scorer

    def read(sources: list[Source]) -> Labelled:
        opened = [open_source(source, "labelled") for source in sources]
        return read_labelled(opened, chosen.positive, on_bad_row=config.data.on_bad_row)

    rows = read(chosen.train)
    test_rows = read(chosen.test) if chosen.test else None
    classifier = classifiers.train_classifier(rows, max_features=chosen.max_features, l2=chosen.l2)
    about = {
        "rows": len(rows.texts),
        "accuracy": classifier.accuracy(rows),
        "test_accuracy": None if test_rows is None else classifier.accuracy(test_rows),
        "trained_on": trained_on,
    }
    classifiers.save_classifier(directory, classifier, about)
