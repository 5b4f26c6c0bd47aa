"""A classifier of texts that is trained here in seconds: TF-IDF of words and pairs of words, logistic regression (scikit-learn).

Kept without pickle, since a pickle runs code when it is read: words.json in order, numbers.safetensors, about.json with its accuracy.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import write_directory
from sparsepo_jax.data.labelled import Labelled


class Classifier(NamedTuple):
    """V words and pairs of words; a text's log-odds are its TF-IDF vector times the coefficients, plus the intercept."""

    words: list[str]
    idf_V: np.ndarray
    coefficient_V: np.ndarray
    intercept: float

    def probability(self, texts: Sequence[str]) -> np.ndarray:
        """Of the positive label, float64 [N]."""
        vectorizer = _vectorizer(vocabulary={word: n for n, word in enumerate(self.words)})
        vectorizer.idf_ = self.idf_V
        return 1 / (1 + np.exp(-(vectorizer.transform(texts) @ self.coefficient_V + self.intercept)))

    def accuracy(self, rows: Labelled) -> float:
        return float(np.mean((self.probability(rows.texts) > 0.5) == rows.positive_N))


def _vectorizer(**settings):
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise UserError(
            "scorer.kind classifier needs scikit-learn: install sparsepo_jax[reward], or choose another scorer"
        ) from error
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, **settings)


def train_classifier(rows: Labelled, *, max_features: int, l2: float) -> Classifier:
    """l2: weight of half the squared coefficients against the sum of the rows' log losses. The same rows give the same classifier. UserError: texts
    without a word."""
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


def save_classifier(directory: Path, classifier: Classifier, about: dict[str, float | None]) -> None:
    """Replaces what lies in the directory."""
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


def load_classifier(directory: Path) -> tuple[Classifier, dict[str, float | None]]:
    from safetensors.numpy import load_file

    numbers = load_file(directory / "numbers.safetensors")
    classifier = Classifier(
        json.loads((directory / "words.json").read_text()),
        numbers["idf"],
        numbers["coefficients"],
        float(numbers["intercept"][0]),
    )
    return classifier, json.loads((directory / "about.json").read_text())
