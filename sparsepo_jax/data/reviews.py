"""Built-in preference data: short reviews from a small grammar that knows which words decide.

It also knows how well they can be foreseen. A review is a few clauses. Some have a slot that is filled with
an evaluative word ("the acting was superb .") or a neutral one ("the film was long .", "the plot was set in
rome ."); others are fillers. Reviews with positive words are preferred. The decisive tokens are the
evaluative words, nothing else.

A mask sees only what comes before a token. How likely the next word is to be decisive depends on the clause's
noun and verb, on the adverb before the slot, and on nothing hidden. So the grammar writes down
P(decisive | prefix) of every word as it draws it. No function of the prefix can rank tokens better than this
probability does: it is the ceiling of every mask.

    response    the   plot  was   quite  set   in   rome  .     the   acting  felt  superb  .
    decisive                                                                        x
    chance                        .37    .66                                        .58     (0 elsewhere)
"""

import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple


def _words(text: str) -> list[str]:
    return text.split()


# Log-odds that a slot is evaluative: noun + verb.
_NOUNS = {
    "acting": 1.6,
    "music": 1.0,
    "story": 0.6,
    "dialogue": 0.6,
    "film": 0.0,
    "plot": -0.2,
    "ending": 0.4,
    "camera": -0.8,
    "cast": -1.2,
    "opening": -1.6,
}
_VERBS = {"felt": 1.9, "seemed": 1.3, "was": 0.7, "looked": 0.1, "stayed": -1.3, "ran": -2.6}
_PLURALS = _words("scenes songs jokes lines")
_FIND_LOG_ODDS = 1.2  # in place of a verb's: "i found the NOUN ..."
_SOME_LOG_ODDS = -0.3  # in place of noun and verb: "it had some ..."
# Whether an adverb comes before the word in a slot, by whether that word is evaluative.
_ADVERB_SHARE = {True: 0.4, False: 0.25}
# Which one, if it does: share of each before an evaluative word, and before a neutral one.
_ADVERBS = {
    "very": (0.35, 0.15),
    "truly": (0.3, 0.02),
    "quite": (0.15, 0.2),
    "rather": (0.1, 0.23),
    "mostly": (0.1, 0.4),
}

_POSITIVE = _words(
    "superb wonderful brilliant lovely moving charming delightful excellent graceful funny clever great "
    "gripping touching splendid warm fresh stunning"
)
_NEGATIVE = _words(
    "awful dull boring terrible clumsy tedious dreadful lifeless shallow poor stale annoying weak messy "
    "bland cold painful forgettable"
)
_NEUTRAL = _words(
    "long short old new modern loud quiet dark bright simple french american digital famous local early "
    "late slow"
)
_PHRASES = [
    _words("set in rome"),
    _words("set in paris"),
    _words("filmed in winter"),
    _words("about a family"),
    _words("about two friends"),
    _words("based on letters"),
]
_FILLERS = [
    _words("we saw it on a {day} ."),
    _words("i saw it with my {friend} ."),
    _words("my {friend} came along ."),
    _words("the cinema was near the {place} ."),
    _words("it lasted about two hours ."),
    _words("we sat close to the {place} ."),
    _words("tickets were sold at the {place} ."),
]
_DAYS = _words("monday tuesday friday saturday sunday")
_FRIENDS = _words("brother sister father mother neighbour")
_PLACES = _words("station river door market park")
_OPENERS = _words("overall also still then")
_TITLES = [
    _words("harbour winter garden letter train island mirror lantern"),
    _words("night road summer bridge house sea clock forest"),
]
_GENRES = _words("comedy drama thriller documentary")

_SLIP = 0.05  # share of evaluative words that speak against the review's sentiment
_PHRASE_SHARE = 0.35  # of neutral slots after a verb: a phrase, not a word
_SECOND = 0.15  # share of adjectives that are followed by "and" and another one
_SECOND_EVALUATIVE = {True: 0.8, False: 0.15}  # the other one, after an evaluative or a neutral first
_FORMS = {"verb": 0.55, "find": 0.1, "some": 0.1, "filler": 0.25}


class Word(NamedTuple):
    """A word of a review."""

    text: str
    decisive: bool = False
    """Whether it is an evaluative one."""
    chance: float = 0.0
    """P(this word is decisive | all words before it)."""


def _pick(draws: random.Random, items: Sequence[Any]) -> Any:
    return items[int(draws.random() * len(items))]


def _weighted(draws: random.Random, weights: dict[str, float]) -> str:
    """A key, drawn with its weight; the weights sum to 1."""
    left = draws.random()
    for key, weight in weights.items():
        left -= weight
        if left < 0:
            return key
    return key


def _adjective(draws: random.Random, evaluative: bool, positive: bool, chance: float) -> Word:
    if not evaluative:
        return Word(_pick(draws, _NEUTRAL), False, chance)
    agrees = draws.random() >= _SLIP
    return Word(_pick(draws, _POSITIVE if positive == agrees else _NEGATIVE), True, chance)


def _slot(draws: random.Random, positive: bool, log_odds: float, *, phrases: bool) -> list[Word]:
    """Fills a slot, with the chances that a reader of the prefix has.

    That is an optional adverb, then an evaluative word, or a neutral word or (if `phrases`) phrase.
    """
    prior = 1 / (1 + math.exp(-log_odds))
    evaluative = draws.random() < prior
    chance = prior * (1 - _ADVERB_SHARE[True])  # of the next word: it may still be an adverb
    words = []
    if draws.random() < _ADVERB_SHARE[evaluative]:
        shares = {adverb: share[0 if evaluative else 1] for adverb, share in _ADVERBS.items()}
        adverb = _weighted(draws, shares)
        words.append(Word(adverb, False, chance))
        # Bayes: the adverb tells how likely the word after it is to be evaluative.
        of_evaluative = prior * _ADVERB_SHARE[True] * _ADVERBS[adverb][0]
        of_neutral = (1 - prior) * _ADVERB_SHARE[False] * _ADVERBS[adverb][1]
        chance = of_evaluative / (of_evaluative + of_neutral)
    if phrases and not evaluative and draws.random() < _PHRASE_SHARE:
        first, *rest = _pick(draws, _PHRASES)
        return [*words, Word(first, False, chance), *map(Word, rest)]
    words.append(_adjective(draws, evaluative, positive, chance))
    if draws.random() < _SECOND:
        chance = _SECOND_EVALUATIVE[evaluative]
        words += [Word("and"), _adjective(draws, draws.random() < chance, positive, chance)]
    return words


def _clause(draws: random.Random, positive: bool) -> list[Word]:
    words = [Word(_pick(draws, _OPENERS))] if draws.random() < 0.2 else []
    form = _weighted(draws, _FORMS)
    if form == "filler":
        return words + _filler(draws)
    if form == "some":
        words += map(Word, ("it", "had", "some"))
        words += _slot(draws, positive, _SOME_LOG_ODDS, phrases=False)
        words.append(Word(_pick(draws, _PLURALS)))
    elif form == "find":
        noun = _pick(draws, list(_NOUNS))
        words += map(Word, ("i", "found", "the", noun))
        words += _slot(draws, positive, _NOUNS[noun] + _FIND_LOG_ODDS, phrases=False)
    else:
        noun = _pick(draws, list(_NOUNS))
        verb = _pick(draws, list(_VERBS))
        words += map(Word, ("the", noun, verb))
        words += _slot(draws, positive, _NOUNS[noun] + _VERBS[verb], phrases=True)
    return [*words, Word(".")]


def _filler(draws: random.Random) -> list[Word]:
    """A clause without a slot."""
    choices = {"{day}": _DAYS, "{friend}": _FRIENDS, "{place}": _PLACES}
    return [Word(_pick(draws, choices[word]) if word in choices else word) for word in _pick(draws, _FILLERS)]


def _review(draws: random.Random, positive: bool) -> list[Word]:
    """Four or five clauses."""
    clauses = 4 + (draws.random() < 0.5)
    return [word for _ in range(clauses) for word in _clause(draws, positive)]


def _prompt(draws: random.Random) -> str:
    first, second = (_pick(draws, part) for part in _TITLES)
    return f"review of {first} {second} , a {_pick(draws, _GENRES)} :"


def _text_of(words: list[Word]) -> str:
    """One space before each word, the first included."""
    return "".join(f" {word.text}" for word in words)


def _as_row(name: str, words: list[Word]) -> dict[str, Any]:
    """The response as text, with character spans of decisive words and of chances."""
    decisive: list[list[int]] = []
    chances: list[list[float]] = []
    end = 0
    for word in words:
        start = end + 1
        end = start + len(word.text)
        if word.decisive:
            decisive.append([start, end])
        if word.chance:
            chances.append([start, end, word.chance])
    return {name: _text_of(words), f"{name}_decisive": decisive, f"{name}_chance": chances}


def make_review_pairs(rows: int, seed: int) -> list[dict[str, Any]]:
    """Pairs of a positive (chosen) and a negative (rejected) review of the same film.

    Args:
        rows: how many.
        seed: of the draws; row n depends on (seed, n) alone.

    Returns:
        Rows with prompt, chosen and rejected as text; R_decisive [[start, end], ...] and
        R_chance [[start, end, probability], ...] of both.
    """
    pairs = []
    for n in range(rows):
        draws = random.Random(f"pair {seed} {n}")
        row = {"prompt": _prompt(draws)}
        for name, positive in (("chosen", True), ("rejected", False)):
            row |= _as_row(name, _review(draws, positive))
        pairs.append(row)
    return pairs


def make_review_texts(rows: int, seed: int) -> list[dict[str, Any]]:
    """Reviews for sft, positive or negative with equal chance.

    Args:
        rows: how many.
        seed: of the draws; row n depends on (seed, n) alone.

    Returns:
        Rows with prompt and completion as text.
    """
    texts = []
    for n in range(rows):
        draws = random.Random(f"text {seed} {n}")
        prompt = _prompt(draws)
        positive = draws.random() < 0.5
        texts.append({"prompt": prompt, "completion": _text_of(_review(draws, positive))})
    return texts


def make_labelled_reviews(rows: int, seed: int) -> list[dict[str, Any]]:
    """Both reviews of each pair with their label, for a classifier.

    Args:
        rows: how many pairs.
        seed: as for `make_review_pairs`, whose reviews these are.

    Returns:
        Rows with text (prompt and review) and label (1 positive, 0 negative), twice as many.
    """
    return [
        {"text": row["prompt"] + row[name], "label": label}
        for row in make_review_pairs(rows, seed)
        for name, label in (("chosen", 1), ("rejected", 0))
    ]


def preferred_share(texts: list[str]) -> float | None:
    """The share of evaluative words that speak for what is preferred.

        the film was superb and warm . / a long awful plot      2 of 3

    Args:
        texts: reviews; other words are ignored.

    Returns:
        0 to 1, or None if there is no evaluative word.
    """
    words = [word for text in texts for word in text.split()]
    good = sum(word in _POSITIVE for word in words)
    bad = sum(word in _NEGATIVE for word in words)
    return good / (good + bad) if good + bad else None


def reviews_vocabulary() -> list[str]:
    """All words of prompts and reviews, sorted; "." "," ":" count as words."""
    lists = [
        _NOUNS,
        _VERBS,
        _PLURALS,
        _ADVERBS,
        _POSITIVE,
        _NEGATIVE,
        _NEUTRAL,
        *_PHRASES,
        *_FILLERS,
        _DAYS,
        _FRIENDS,
        _PLACES,
        _OPENERS,
        *_TITLES,
        _GENRES,
        _words("review of , a : it had some i found the and ."),
    ]
    return sorted({word for words in lists for word in words if not word.startswith("{")})
