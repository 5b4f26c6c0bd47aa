"""The built-in reviews: decisive words known, their chances exact, position alone of little help."""

import math
import random

import numpy as np
import pytest

from sparsepo_jax.data import reviews
from sparsepo_jax.data.reviews import (
    make_review_pairs,
    make_review_texts,
    preferred_share,
    reviews_vocabulary,
)
from sparsepo_jax.eval.auroc import auroc, position_auroc

DECIDING = set(reviews._POSITIVE) | set(reviews._NEGATIVE)


def words_of(row, name):
    """(word, decisive, chance) of a response, read back from text and spans."""
    text, decisive = row[name], {tuple(span) for span in row[f"{name}_decisive"]}
    chances = {(start, end): chance for start, end, chance in row[f"{name}_chance"]}
    words = []
    end = 0
    for word in text.split():
        start, end = end + 1, end + 1 + len(word)
        assert text[start:end] == word and text[start - 1] == " "
        words.append((word, (start, end) in decisive, chances.pop((start, end), 0.0)))
    assert not chances and len(decisive) == sum(flag for _, flag, _ in words)
    return words


@pytest.fixture(scope="module")
def responses():
    return [words_of(row, name) for row in make_review_pairs(2000, 0) for name in ("chosen", "rejected")]


@pytest.fixture(scope="module")
def tokens(responses):
    """(decisive, chance, position) of every response token, the closing end of text included."""
    rows = [
        (flag, chance, n)
        for words in responses
        for n, (_, flag, chance) in enumerate([*words, ("", False, 0.0)])
    ]
    return tuple(np.array(column) for column in zip(*rows))


def test_rows_depend_on_seed_and_number_alone():
    for make in (make_review_pairs, make_review_texts):
        assert make(5, 3) == make(9, 3)[:5]
        assert make(5, 3) != make(5, 4)
    assert all(row["chosen"] != row["rejected"] for row in make_review_pairs(500, 1))


def test_the_vocabulary_is_just_what_is_used():
    rows = [*make_review_pairs(400, 0), *make_review_texts(400, 0)]
    used = {
        word
        for row in rows
        for name in ("prompt", "chosen", "rejected", "completion")
        for word in row.get(name, "").split()
    }
    assert used == set(reviews_vocabulary()) and 100 <= len(used) <= 200


def test_decisive_words_are_the_evaluative_ones_and_tell_the_side(responses):
    for words in responses:
        assert all(flag == (word in DECIDING) for word, flag, _ in words)
    agree = [
        (word in reviews._POSITIVE) == (number % 2 == 0)
        for number, words in enumerate(responses)
        for word, flag, _ in words
        if flag
    ]
    assert 0.93 < np.mean(agree) < 0.97


def test_chances_are_those_that_occur(tokens):
    """In every band of predicted chance, the share of decisive words is that chance, to four standard errors.

    Kills: an adverb's likelihood the wrong way round; the adverb forgotten before the slot.
    """
    decisive, chance, _ = tokens
    assert not decisive[chance == 0].any()
    for low in np.arange(0, 1, 0.1):
        band = (chance > low) & (chance <= low + 0.1)
        if band.sum() > 100:
            error = math.sqrt(chance[band].mean() * (1 - chance[band].mean()) / band.sum())
            assert abs(decisive[band].mean() - chance[band].mean()) < 4 * error, low


def test_a_chance_is_a_function_of_what_comes_before(responses):
    known = {}
    for words in responses:
        start = 0
        for n, (word, _, chance) in enumerate(words):
            before = tuple(w for w, *_ in words[start:n])  # clauses are drawn one by one
            assert known.setdefault(before, chance) == pytest.approx(chance), before
            start = n + 1 if word == "." else start


def test_the_ceiling_is_high_and_position_alone_is_not(tokens):
    decisive, chance, position = tokens
    assert 0.94 < auroc(chance, decisive) < 0.985
    assert position_auroc(position, decisive) < 0.75
    assert 0.05 < decisive.mean() < 0.12


def test_reviews_vary_in_length_and_texts_for_sft_in_sentiment(responses):
    lengths = [len(words) for words in responses]
    assert min(lengths) >= 20 and max(lengths) <= 45 and np.std(lengths) > 3
    sides = [
        sum((w in reviews._POSITIVE) - (w in reviews._NEGATIVE) for w in row["completion"].split())
        for row in make_review_texts(400, 0)
    ]
    assert 0.3 < np.mean(np.array(sides) > 0) < 0.6 and 0.3 < np.mean(np.array(sides) < 0) < 0.6


def test_an_adverb_shifts_the_chance_as_bayes_says():
    """Log-odds 0, "truly": P(evaluative | truly) = .5 x .4 x .3 / (.5 x .4 x .3 + .5 x .25 x .02) = .96."""
    chances = {
        words[0].text: words[1].chance
        for n in range(300)
        if len(words := reviews._slot(random.Random(n), True, 0.0, phrases=False)) > 1
        and words[0].text in reviews._ADVERBS
    }
    assert chances["truly"] == pytest.approx(0.06 / 0.0625)
    assert chances["mostly"] == pytest.approx(0.02 / 0.07)


def test_preferred_share_counts_evaluative_words_only():
    """superb, warm / awful: 2 of 3; "long" and "unheard" say nothing."""
    assert preferred_share(["the film was superb and warm .", "a long awful unheard plot"]) == 2 / 3
    assert preferred_share(["it ran long ."]) is None
