"""Measures of texts, all in [0, 1]: ROUGE and BERTScore (against a reference), self-BLEU and distinct-n.

Words are what white space separates. The packages that compute them are imported when they are needed:
`pip install 'sparsepo_jax[measures]'`, and `[bertscore]`.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from sparsepo_jax.core.errors import UserError

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def _need(module: str, extra: str, what: str) -> Any:
    """An optional package. UserError: it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f"{what} needs a package that is not here ({error}): pip install 'sparsepo_jax[{extra}]', or "
            "switch it off"
        ) from None


def rouge(texts: Sequence[str], references: Sequence[str]) -> list[dict[str, float]]:
    """F1 of ROUGE-1, -2, -L and -Lsum (lines are sentences) of each text, words not stemmed.

    By Google's package (Lin 2004, W04-1013).
    """
    scorer = _need("rouge_score.rouge_scorer", "measures", "ROUGE").RougeScorer(ROUGE)
    return [
        {name: score.fmeasure for name, score in scorer.score(reference, text).items()}
        for text, reference in zip(texts, references, strict=True)
    ]


def self_bleu(groups: Sequence[Sequence[str]]) -> float | None:
    """How alike the answers to one prompt are; 1: all the same.

    Mean BLEU-4 of each answer against the others as references (Zhu et al. 2018, 1802.01886), over prompts
    with two answers or more; None if there are none. It is sacrebleu's sentence BLEU: 13a tokens, smoothed,
    n-grams no longer than the text.

    Args:
        groups: the answers to each prompt.
    """
    bleu = _need("sacrebleu", "measures", "self-BLEU")
    percents = [
        bleu.sentence_bleu(text, [*group[:n], *group[n + 1 :]]).score
        for group in groups
        if len(group) > 1
        for n, text in enumerate(group)
    ]
    return min(1.0, sum(percents) / len(percents) / 100) if percents else None


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Distinct n-grams of words over all n-grams of all texts; None if there are none.

    Li et al. 2016, 1510.03055, divide by the number of words, which is the same for n = 1. It falls with
    the amount of text: compare equal numbers of samples.
    """
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def bertscore(texts: Sequence[str], references: Sequence[str], model: str, layer: int | None) -> list[float]:
    """BERTScore: F1 of each text's token embeddings matched to its reference's, not rescaled.

    Zhang et al. 2020, 1904.09675.

    Args:
        texts: what is measured. Empty ones have 0.
        references: one for each text.
        model: a directory or Hub id.
        layer: of its hidden states; None: the one that the package knows to be the best.

    Raises:
        UserError: the model cannot be loaded, or its best layer is not known.
    """
    package = _need("bert_score", "bertscore", "BERTScore")
    if layer is None and model not in package.utils.model2layers:
        raise UserError(
            f"measure.text.bertscore: the best layer of {model} is not known to bert-score: set "
            "measure.text.bertscore.layer"
        )
    # The package cannot read empty texts, with which nothing matches.
    scores = [0.0] * len(texts)
    full = [n for n in range(len(texts)) if texts[n].strip() and references[n].strip()]
    if not full:
        return scores
    full_texts, full_references = [texts[n] for n in full], [references[n] for n in full]
    try:
        *_, f1_N = package.score(full_texts, full_references, model_type=model, num_layers=layer)
    except OverflowError:
        raise UserError(
            f"measure.text.bertscore.model: the tokenizer of {model} names no longest input: set "
            "model_max_length in its tokenizer_config.json"
        ) from None
    except (OSError, AssertionError) as error:  # an assertion: no such layer
        raise UserError(
            f"measure.text.bertscore.model: cannot load {model} ({' '.join(str(error).split())[:200]})"
        ) from None
    for n, score in zip(full, f1_N.tolist(), strict=True):
        scores[n] = score
    return scores
