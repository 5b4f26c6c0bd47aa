"""The scorer of responses."""

from collections.abc import Callable
from pathlib import Path

from sparsepo_jax.build.sources import open_source
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.scoring.scorers import Scorer


def make_scorer(config: Config, say: Callable[[str], None]) -> Scorer:
    """As config.scorer says. A classifier is trained once and kept in output_dir/classifier."""
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
    kept = Path(chosen.path or Path(config.output_dir) / "classifier")
    if chosen.path is None and not kept.exists():
        from sparsepo_jax.data.labelled import read_labelled

        read = lambda sources: read_labelled(
            [open_source(source, "labelled") for source in sources],
            chosen.positive,
            on_bad_row=config.data.on_bad_row,
        )
        rows, test = read(chosen.train), read(chosen.test) if chosen.test else None
        classifier = classifiers.train_classifier(rows, max_features=chosen.max_features, l2=chosen.l2)
        about = {
            "rows": len(rows.texts),
            "accuracy": classifier.accuracy(rows),
            "test_accuracy": None if test is None else classifier.accuracy(test),
        }
        classifiers.save_classifier(kept, classifier, about)
    classifier, about = classifiers.load_classifier(kept)
    on_test = (
        "" if about["test_accuracy"] is None else f", {100 * about['test_accuracy']:.1f} % on the test rows"
    )
    say(
        f"the classifier of {about['rows']} rows is right on {100 * about['accuracy']:.1f} % of them{on_test}"
    )
    return scorers.classifier_scorer(classifier)
