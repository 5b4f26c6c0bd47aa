"""What is said of texts: closeness to a reference (ROUGE, BERTScore) and variety (self-BLEU, distinct-n). All in [0, 1]; words are what white space
separates. The packages that count are imported when they are needed: `pip install 'sparsepo_jax[measures]'`, and `[bertscore]`."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from sparsepo_jax.core.errors import UserError

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def _need(module: str, extra: str, what: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f"{what} needs a package that is not here ({error}): pip install 'sparsepo_jax[{extra}]', or switch it off"
        ) from None


def rouge(texts: Sequence[str], references: Sequence[str]) -> list[dict[str, float]]:
    """F1 of ROUGE-1, -2, -L and -Lsum (lines are sentences) of each text, by Google's package, words not stemmed (Lin 2004, W04-1013)."""
    scorer = _need("rouge_score.rouge_scorer", "measures", "ROUGE").RougeScorer(ROUGE)
    return [
        {name: score.fmeasure for name, score in scorer.score(reference, text).items()}
        for text, reference in zip(texts, references, strict=True)
    ]


def self_bleu(groups: Sequence[Sequence[str]]) -> float | None:
    """How alike the answers to one prompt are: mean BLEU-4 of each against the others as references (Zhu et al. 2018, 1802.01886), over prompts with two
    answers or more; None without any. 1: all the same. sacrebleu's sentence BLEU: 13a tokens, smoothed, n-grams no longer than the text."""
    bleu = _need("sacrebleu", "measures", "self-BLEU")
    percents = [
        bleu.sentence_bleu(text, [*group[:n], *group[n + 1 :]]).score
        for group in groups
        if len(group) > 1
        for n, text in enumerate(group)
    ]
    return min(1.0, sum(percents) / len(percents) / 100) if percents else None


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Distinct n-grams of words over all n-grams of all texts (Li et al. 2016, 1510.03055, who divide by the number of words: the same for n = 1);
    None without any. Falls with the amount of text: compare equal numbers of samples."""
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def bertscore(texts: Sequence[str], references: Sequence[str], model: str, layer: int | None) -> list[float]:
    """F1 of each text's token embeddings matched to its reference's (Zhang et al. 2020, 1904.09675), not rescaled. model: a directory or Hub id; layer: of
    its hidden states, None where the package knows the best."""
    package = _need("bert_score", "bertscore", "BERTScore")
    if layer is None and model not in package.utils.model2layers:
        raise UserError(
            f"measure.text.bertscore: the best layer of {model} is not known to bert-score: set measure.text.bertscore.layer"
        )
    scores = [0.0] * len(texts)  # of empty texts: nothing matches, and the package cannot read them
    full = [n for n in range(len(texts)) if texts[n].strip() and references[n].strip()]
    try:
        found = (
            package.score(
                [texts[n] for n in full], [references[n] for n in full], model_type=model, num_layers=layer
            )[2].tolist()
            if full
            else []
        )
    except OverflowError:
        raise UserError(
            f"measure.text.bertscore.model: the tokenizer of {model} names no longest input: set model_max_length in its "
            "tokenizer_config.json"
        ) from None
    except (OSError, AssertionError) as error:  # an assertion: no such layer
        raise UserError(
            f"measure.text.bertscore.model: cannot load {model} ({' '.join(str(error).split())[:200]})"
        ) from None
    for n, score in zip(full, found, strict=True):
        scores[n] = score
    return scores
