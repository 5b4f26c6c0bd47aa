"""A classifier of texts that is trained here in seconds: logistic regression on TF-IDF of words.

scikit-learn trains it; pairs of words count as words, too. It is saved without pickle, since a pickle runs
code when it is read: words.json in order, numbers.safetensors, and about.json with its accuracy.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import write_directory
from sparsepo_jax.data.labelled import Labelled


class Classifier(NamedTuple):
    """V words. A text's log-odds are its TF-IDF vector times the coefficients, plus the intercept."""

    words: list[str]
    idf_V: np.ndarray
    coefficient_V: np.ndarray
    intercept: float

    def probability(self, texts: Sequence[str]) -> np.ndarray:
        """The probability of the positive label for each text, float64 [N]."""
        vectorizer = _vectorizer(vocabulary={word: n for n, word in enumerate(self.words)})
        vectorizer.idf_ = self.idf_V
        return 1 / (1 + np.exp(-(vectorizer.transform(texts) @ self.coefficient_V + self.intercept)))

    def accuracy(self, rows: Labelled) -> float:
        """The share of rows on whose label side of 1/2 the probability is."""
        return float(np.mean((self.probability(rows.texts) > 0.5) == rows.positive_N))


def _vectorizer(**settings: Any) -> Any:
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise UserError(
            "scorer.kind classifier needs scikit-learn: install sparsepo_jax[reward], or choose another "
            "scorer"
        ) from error
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, **settings)


def train_classifier(rows: Labelled, *, max_features: int, l2: float) -> Classifier:
    """A classifier of these rows; the same rows give the same one.

    Args:
        rows: texts with labels and weights.
        max_features: the most frequent words and pairs of words that it reads.
        l2: weight of half the squared coefficients against the sum of the rows' log losses.

    Raises:
        UserError: the texts have no words.
    """
    vectorizer = _vectorizer(max_features=max_features)
    from sklearn.linear_model import LogisticRegression

    try:
        features = vectorizer.fit_transform(rows.texts)
    except ValueError as error:
        raise UserError(f"scorer.train: there is nothing to learn from ({error})") from error
    fitted = LogisticRegression(C=1 / l2, max_iter=1000).fit(features, rows.positive_N, rows.weight_N)
    return Classifier(
        vectorizer.get_feature_names_out().tolist(),
        vectorizer.idf_,
        fitted.coef_[0],
        float(fitted.intercept_[0]),
    )


def save_classifier(directory: Path, classifier: Classifier, about: dict[str, Any]) -> None:
    """Replaces the directory. about: what is known of the classifier, such as its accuracy, for JSON."""
    from safetensors.numpy import save_file

    def fill(unfinished: Path) -> None:
        (unfinished / "words.json").write_text(json.dumps(classifier.words))
        arrays = {
            "idf": classifier.idf_V,
            "coefficients": classifier.coefficient_V,
            "intercept": np.array([classifier.intercept]),
        }
        save_file(arrays, unfinished / "numbers.safetensors")
        (unfinished / "about.json").write_text(json.dumps(about, indent=1) + "\n")

    write_directory(directory, fill)


def load_classifier(directory: Path) -> tuple[Classifier, dict[str, Any]]:
    """(classifier, about) as save_classifier wrote them.

    Raises:
        UserError: the directory holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        numbers = load_file(directory / "numbers.safetensors")
        classifier = Classifier(
            json.loads((directory / "words.json").read_text()),
            numbers["idf"],
            numbers["coefficients"],
            float(numbers["intercept"][0]),
        )
        return classifier, json.loads((directory / "about.json").read_text())
    except (FileNotFoundError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"scorer: {directory}: expected a classifier as a run keeps it, found something else ({error}); "
            "bring the old one back, or delete the directory: scorer.train is then learnt anew"
        ) from None
