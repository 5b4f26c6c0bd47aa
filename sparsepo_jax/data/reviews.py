"""Built-in preference data: short reviews from a small grammar that knows which words decide, and how well they can be foreseen.

A review is a few clauses. Some have a slot that is filled with an evaluative word ("the acting was superb .") or a neutral one ("the film was
long .", "the plot was set in rome ."); others are fillers. Reviews with positive words are preferred. The decisive tokens are the evaluative
words, nothing else.

A mask sees only what comes before a token. How likely the next word is decisive depends on the clause's noun and verb, on the adverb before
the slot, and on nothing hidden, so the grammar writes down P(decisive | prefix) of every word as it draws it: ranking by it is the best that
any function of the prefix can do, the ceiling of every mask.

    response    the   plot  was   quite  set   in   rome  .     the   acting  felt  superb  .
    decisive                                                                          x
    chance                        .41    .56                                  .68   .68           (0 elsewhere)
"""

import math
import random
from typing import Any, NamedTuple

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
_PLURALS = ["scenes", "songs", "jokes", "lines"]
# Adverbs before an evaluative and before a neutral word.
_ADVERB_SHARE = {True: 0.4, False: 0.25}
_ADVERBS = {
    "very": (0.35, 0.15),
    "truly": (0.3, 0.02),
    "quite": (0.15, 0.2),
    "rather": (0.1, 0.23),
    "mostly": (0.1, 0.4),
}

_POSITIVE = [
    "superb",
    "wonderful",
    "brilliant",
    "lovely",
    "moving",
    "charming",
    "delightful",
    "excellent",
    "graceful",
    "funny",
    "clever",
    "great",
    "gripping",
    "touching",
    "splendid",
    "warm",
    "fresh",
    "stunning",
]
_NEGATIVE = [
    "awful",
    "dull",
    "boring",
    "terrible",
    "clumsy",
    "tedious",
    "dreadful",
    "lifeless",
    "shallow",
    "poor",
    "stale",
    "annoying",
    "weak",
    "messy",
    "bland",
    "cold",
    "painful",
    "forgettable",
]
_NEUTRAL = [
    "long",
    "short",
    "old",
    "new",
    "modern",
    "loud",
    "quiet",
    "dark",
    "bright",
    "simple",
    "french",
    "american",
    "digital",
    "famous",
    "local",
    "early",
    "late",
    "slow",
]
_PHRASES = [
    phrase.split()
    for phrase in (
        "set in rome",
        "set in paris",
        "filmed in winter",
        "about a family",
        "about two friends",
        "based on letters",
    )
]
_FILLERS = [
    phrase.split()
    for phrase in (
        "we saw it on a {day} .",
        "i saw it with my {friend} .",
        "my {friend} came along .",
        "the cinema was near the {place} .",
        "it lasted about two hours .",
        "we sat close to the {place} .",
        "tickets were sold at the {place} .",
    )
]
_DAYS = ["monday", "tuesday", "friday", "saturday", "sunday"]
_FRIENDS = ["brother", "sister", "father", "mother", "neighbour"]
_PLACES = ["station", "river", "door", "market", "park"]
_OPENERS = ["overall", "also", "still", "then"]
_TITLES = [
    ["harbour", "winter", "garden", "letter", "train", "island", "mirror", "lantern"],
    ["night", "road", "summer", "bridge", "house", "sea", "clock", "forest"],
]
_GENRES = ["comedy", "drama", "thriller", "documentary"]

_SLIP = 0.05  # share of evaluative words that speak against the review's sentiment
_SECOND = 0.15  # share of adjectives that are followed by "and" and another one
_SECOND_EVALUATIVE = {True: 0.8, False: 0.15}  # after an evaluative, a neutral one
_FORMS = {"verb": 0.55, "find": 0.1, "some": 0.1, "filler": 0.25}


class Word(NamedTuple):
    text: str
    decisive: bool = False
    chance: float = 0.0
    """P(this word is decisive | all words before it)."""


def _pick(draws: random.Random, items: list[Any]) -> Any:
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
    """An optional adverb, then an evaluative word or a neutral word or phrase, with the chances that a reader of the prefix has."""
    prior = 1 / (1 + math.exp(-log_odds))
    evaluative = draws.random() < prior
    chance = prior * (1 - _ADVERB_SHARE[True])  # of the next word: it may still be an adverb
    words = []
    if draws.random() < _ADVERB_SHARE[evaluative]:
        adverb = _weighted(draws, {name: shares[0 if evaluative else 1] for name, shares in _ADVERBS.items()})
        words.append(Word(adverb, False, chance))
        of_evaluative = prior * _ADVERB_SHARE[True] * _ADVERBS[adverb][0]
        chance = of_evaluative / (of_evaluative + (1 - prior) * _ADVERB_SHARE[False] * _ADVERBS[adverb][1])
    if phrases and not evaluative and draws.random() < 0.35:
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
        named = {"{day}": _DAYS, "{friend}": _FRIENDS, "{place}": _PLACES}
        return words + [
            Word(_pick(draws, named[word]) if word in named else word) for word in _pick(draws, _FILLERS)
        ]
    if form == "some":
        words += [
            Word("it"),
            Word("had"),
            Word("some"),
            *_slot(draws, positive, -0.3, phrases=False),
            Word(_pick(draws, _PLURALS)),
        ]
    elif form == "find":
        noun = _pick(draws, list(_NOUNS))
        words += [
            Word("i"),
            Word("found"),
            Word("the"),
            Word(noun),
            *_slot(draws, positive, _NOUNS[noun] + 1.2, phrases=False),
        ]
    else:
        noun, verb = _pick(draws, list(_NOUNS)), _pick(draws, list(_VERBS))
        words += [
            Word("the"),
            Word(noun),
            Word(verb),
            *_slot(draws, positive, _NOUNS[noun] + _VERBS[verb], phrases=True),
        ]
    return words + [Word(".")]


def _review(draws: random.Random, positive: bool) -> list[Word]:
    return [word for _ in range(4 + (draws.random() < 0.5)) for word in _clause(draws, positive)]


def _prompt(draws: random.Random) -> str:
    first, second = (_pick(draws, part) for part in _TITLES)
    return f"review of {first} {second} , a {_pick(draws, _GENRES)} :"


def _as_row(name: str, words: list[Word]) -> dict[str, Any]:
    """The response as text, one space before each word, with character spans of decisive words and of chances."""
    row: dict[str, Any] = {
        name: "".join(f" {word.text}" for word in words),
        f"{name}_decisive": [],
        f"{name}_chance": [],
    }
    end = 0
    for word in words:
        start, end = end + 1, end + 1 + len(word.text)
        if word.decisive:
            row[f"{name}_decisive"].append([start, end])
        if word.chance:
            row[f"{name}_chance"].append([start, end, word.chance])
    return row


def make_review_pairs(rows: int, seed: int) -> list[dict[str, Any]]:
    """prompt, chosen (positive) and rejected (negative) as text, and R_decisive [[start, end], ...], R_chance [[start, end, p], ...] of both.

    Row n depends on (seed, n) alone.
    """
    made = []
    for n in range(rows):
        draws = random.Random(f"pair {seed} {n}")
        row = {"prompt": _prompt(draws)}
        for name, positive in (("chosen", True), ("rejected", False)):
            row |= _as_row(name, _review(draws, positive))
        made.append(row)
    return made


def make_review_texts(rows: int, seed: int) -> list[dict[str, Any]]:
    """prompt and completion, positive or negative with equal chance, for sft. Row n depends on (seed, n) alone."""
    made = []
    for n in range(rows):
        draws = random.Random(f"text {seed} {n}")
        prompt, review = _prompt(draws), _review(draws, draws.random() < 0.5)
        made.append({"prompt": prompt, "completion": "".join(f" {word.text}" for word in review)})
    return made


def make_labelled_reviews(rows: int, seed: int) -> list[dict[str, Any]]:
    """text and label (1 positive, 0 negative): the two reviews of each of so many pairs."""
    return [
        {"text": row["prompt"] + row[name], "label": label}
        for row in make_review_pairs(rows, seed)
        for name, label in (("chosen", 1), ("rejected", 0))
    ]


def preferred_share(texts: list[str]) -> float | None:
    """Of the evaluative words in these reviews, the share that speaks for what is preferred; None if there is none."""
    positive, negative = set(_POSITIVE), set(_NEGATIVE)
    words = [word for text in texts for word in text.split()]
    good, bad = sum(word in positive for word in words), sum(word in negative for word in words)
    return good / (good + bad) if good + bad else None


def reviews_vocabulary() -> list[str]:
    """All words of prompts and reviews, sorted; "." "," ":" are words."""
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
        ["review", "of", ",", "a", ":", "it", "had", "some", "i", "found", "the", "and", "."],
    ]
    return sorted({word for words in lists for word in words if not word.startswith("{")})
