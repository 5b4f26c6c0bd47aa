"""The scorer of responses."""

from collections.abc import Callable
from pathlib import Path

from sparsepo_jax.build.sources import open_source
from sparsepo_jax.config.schema.data import Source
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.scoring.scorers import Scorer


def make_scorer(config: Config, say: Callable[[str], None]) -> Scorer:
    """The scorer that config.scorer asks for.

    A classifier is trained once and kept in output_dir/classifier.
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
    if chosen.path is None and not directory.exists():
        _train_classifier(config, directory)
    classifier, about = classifiers.load_classifier(directory)
    line = f"the classifier of {about['rows']} rows is right on {100 * about['accuracy']:.1f} % of them"
    if about["test_accuracy"] is not None:
        line += f", {100 * about['test_accuracy']:.1f} % on the test rows"
    say(line)
    return scorers.classifier_scorer(classifier)


def _train_classifier(config: Config, directory: Path) -> None:
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
    }
    classifiers.save_classifier(directory, classifier, about)
