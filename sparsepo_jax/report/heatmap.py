"""From pairs.jsonl to tokens with colours, values and marks, which the page's template lays out."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.report.table import as_float, number

ALIKE = 1e-3  # of the largest value: differences that have no colours of their own
FAINTEST, STRONGEST = 0.10, 0.80  # opacity of the smallest non-zero value and of full colour


class Quantity(NamedTuple):
    """What tokens can be coloured by; `key` names its CSS variable."""

    key: str
    name: str
    meaning: str

    @property
    def in_text(self) -> str:
        """The name within a sentence."""
        return self.name if self.name.startswith("KL") else self.name.lower()


REWARD_MASK = Quantity(
    "u",
    "Reward mask",
    "Weight of the token's reward in the loss.",
)
KL_MASK = Quantity("m", "KL mask", "Weight of the token's KL in the loss.")
QUANTITIES = (
    REWARD_MASK,
    KL_MASK,
    Quantity(
        "r",
        "Log-ratio",
        "log policy \N{MINUS SIGN} log reference of the token, in nats: positive where training made it "
        "likelier.",
    ),
    Quantity(
        "k",
        "KL",
        "KL(reference ‖ policy) of the next-token distribution that the token was drawn from, in nats.",
    ),
)


class Shown(NamedTuple):
    """The quantities of a page, and what the two models are called whose log-probs make the log-ratio."""

    quantities: tuple[Quantity, ...]
    models: tuple[str, str]


OF_A_RUN = Shown(QUANTITIES, ("policy", "reference"))


@dataclass
class Token:
    """One response token.

    text: as it flows. label: by itself. values: by the keys of QUANTITIES. decisive: whether it decides the
    pair; None where that is unknown. before: text of other turns that stands before it.
    """

    text: str
    label: str
    id: int
    logp: float
    ref_logp: float
    values: dict[str, float]
    decisive: bool | None
    before: str = ""
    shown: Shown = OF_A_RUN

    @property
    def title(self) -> str:
        """What is shown on hover."""
        decisive = "  decisive" if self.decisive else ""
        rows = [f"{self.label}  (id {self.id}){decisive}"]
        for quantity in self.shown.quantities:
            row = f"{quantity.in_text} {number(self.values[quantity.key])}"
            if quantity.key == "r":
                first, second = self.shown.models
                row += f"  ({first} {number(self.logp)}, {second} {number(self.ref_logp)})"
            rows.append(row)
        return "\n".join(rows)

    @property
    def broken(self) -> bool:
        return not all(map(math.isfinite, self.values.values()))


@dataclass
class Pair:
    """A row of pairs.jsonl. `prompt` is None where the file does not have it.

    One of the responses is empty where the row has one response.
    """

    index: int
    origin: str
    loss: float
    margin: float
    prompt: str | None
    chosen: list[Token]
    rejected: list[Token]

    @property
    def tokens(self) -> list[Token]:
        return self.chosen + self.rejected

    @property
    def name(self) -> str:
        """Of its article: a pair, or a single response."""
        return "Pair" if self.chosen and self.rejected else "Response"


def unit_of(pairs: Sequence[Pair]) -> str:
    """What the rows are called: pairs, responses, or both."""
    return " and ".join(sorted({f"{pair.name.lower()}s" for pair in pairs})) or "pairs"


def visible(text: str) -> str:
    """Control, formatting and surrogate characters as escapes (\\x1b, \\u202e), newline and tab as they are.

    The two joiners of Persian, Indic scripts and emoji stay: without them text is not readable, and they
    cannot reorder it.
    """
    return "".join(
        _escaped(c) if unicodedata.category(c) in _UNSEEN and c not in "\n\t\u200c\u200d" else c for c in text
    )


_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def _escaped(c: str) -> str:
    return c.encode("unicode_escape").decode()


def flowing(token: str, token_id: int) -> str:
    """A token as part of a text.

    A newline shows as ↵ before it breaks the line, a token without text as its id.
    """
    return visible(token).replace("\n", "↵\n").replace("\t", "⇥\t") if token else f"⟨{token_id}⟩"


def labelled(token: str, token_id: int) -> str:
    """A token by itself, with signs for white space."""
    return flowing(token, token_id).replace("\n", "").replace("\t", "").replace(" ", "␣")


def parse_pair(row: dict, *, where: str, shown: Shown = OF_A_RUN) -> Pair:
    """A row of pairs.jsonl, or of scores.jsonl, which has no texts, so that ids are shown.

    UserError, naming `where`: the fields do not fit.
    """
    prompt = row.get("prompt_tokens")
    _check(prompt is None or _strings(prompt), where, "prompt_tokens must be a list of strings")
    _check(isinstance(row.get("index"), int), where, "index must be an integer")
    return Pair(
        index=row["index"],
        origin=origin if isinstance(origin := row.get("origin"), str) else "",
        loss=_float(row.get("loss"), where, "loss"),
        margin=_float(row.get("margin"), where, "margin"),
        prompt=None if prompt is None else visible("".join(prompt)),
        chosen=_response(row, "chosen", where, shown) if "chosen" in row or "rejected" not in row else [],
        rejected=_response(row, "rejected", where, shown) if "rejected" in row or "chosen" not in row else [],
    )


def _response(row: dict, side: str, where: str, shown: Shown) -> list[Token]:
    response = row.get(side)
    _check(isinstance(response, dict), where, f"{side} must be an object")
    ids = response.get("token_ids")
    are_ids = isinstance(ids, list) and all(isinstance(i, int) for i in ids)
    _check(are_ids, where, f"{side}.token_ids must be a list of integers")

    def column(name: str) -> list[float]:
        values = response.get(name)
        fits = isinstance(values, list) and len(values) == len(ids)
        _check(fits, where, f"{side}.{name} must be a list of {len(ids)} numbers, as many as token_ids")
        return [_float(x, where, f"{side}.{name}") for x in values]

    columns = [column(name) for name in ("logp", "ref_logp", "kl", "reward_mask", "kl_mask")]
    texts = response.get("tokens")
    fits = texts is None or (_strings(texts) and len(texts) == len(ids))
    _check(fits, where, f"{side}.tokens must be {len(ids)} strings, as many as token_ids")
    marks = response.get("decisive")
    fits = marks is None or (isinstance(marks, list) and len(marks) == len(ids))
    _check(fits, where, f"{side}.decisive must be null or {len(ids)} booleans, as many as token_ids")

    before = response.get("before", [""] * len(ids))
    fits = _strings(before) and len(before) == len(ids)
    _check(fits, where, f"{side}.before must be {len(ids)} strings, as many as token_ids")

    tokens = []
    for t, (token_id, (logp, ref_logp, kl, reward_mask, kl_mask)) in enumerate(
        zip(ids, zip(*columns, strict=True), strict=True)
    ):
        text, label = f"{token_id} ", str(token_id)
        if texts is not None:
            text = flowing(texts[t], token_id)
            if texts[t] != label + " ":  # without a tokenizer, the text of a token is its id and a space
                label = labelled(texts[t], token_id)
        values = {"u": reward_mask, "m": kl_mask, "r": logp - ref_logp, "k": kl}
        decisive = None if marks is None else bool(marks[t])
        others = visible(before[t]).replace("\n", "↵\n")
        tokens.append(Token(text, label, token_id, logp, ref_logp, values, decisive, others, shown))
    return tokens


def _check(holds: bool, where: str, message: str) -> None:
    if not holds:
        raise UserError(f"{where}: {message}; run the stage that writes it again")


def _strings(x) -> bool:
    return isinstance(x, list) and all(isinstance(item, str) for item in x)


def _float(x, where: str, name: str) -> float:
    numeric = isinstance(x, (int, float)) and not isinstance(x, bool)
    shown = f"{x!r:.40}" if isinstance(x, (str, bool)) else type(x).__name__
    _check(x is None or numeric, where, f"{name} must be numeric, not {shown}")
    return math.nan if x is None else as_float(x)


class Scale(NamedTuple):
    """How a quantity becomes colour, the same in all shown pairs.

    Opacity grows with |value| from `start` to `full`; zero has no colour. `full` is the 99th percentile of
    |value| over non-zero values, so that one outlier does not bleach all others. `start` is 0; where all
    values are above 0, as those of a mask that is not sparse, it is their 1st percentile: from 0 they would
    all look alike. It is 0, too, where the values differ by less than a thousandth.
    """

    least: float
    most: float
    start: float
    full: float

    @property
    def signed(self) -> bool:
        return self.least < 0

    def shade(self, x: float) -> float:
        """-STRONGEST..STRONGEST, the sign that of the value; 0 for exact zero and for what is not finite."""
        if x == 0 or not math.isfinite(x):
            return 0.0
        reach = self.full - self.start
        share = min(1.0, max(0.0, (abs(x) - self.start) / reach)) if reach > 0 else 1.0
        return round(math.copysign(FAINTEST + (STRONGEST - FAINTEST) * share, x), 2)


def make_scales(pairs: list[Pair]) -> dict[str, Scale]:
    """A scale for each quantity, by its key."""
    scales = {}
    for quantity in QUANTITIES:
        values = [token.values[quantity.key] for pair in pairs for token in pair.tokens]
        finite = [x for x in values if math.isfinite(x)]
        sizes = sorted(abs(x) for x in finite if x != 0)
        full = sizes[math.ceil(0.99 * len(sizes)) - 1] if sizes else 0.0
        least, most = min(finite, default=0.0), max(finite, default=0.0)
        start = sizes[math.floor(0.01 * len(sizes))] if least > 0 else 0.0
        if full - start < ALIKE * full:
            start = 0.0
        scales[quantity.key] = Scale(least, most, start, full)
    return scales


def without_masks(pairs: list[Pair]) -> bool:
    """Whether both masks are 1 on every token, as for an objective without masks; False without tokens."""
    tokens = [token for pair in pairs for token in pair.tokens]
    return bool(tokens) and all(token.values["u"] == token.values["m"] == 1 for token in tokens)


def mask_of(pairs: list[Pair]) -> Quantity:
    """The mask that figures are of: the reward's, or the KL's where the reward's is 1 on every token."""
    tokens = [token for pair in pairs for token in pair.tokens]
    only_kl = all(token.values["u"] == 1 for token in tokens) and not without_masks(pairs)
    return KL_MASK if tokens and only_kl else REWARD_MASK


def zero_share(tokens: list[Token], mask: Quantity) -> float | None:
    """Share of exact zeros of a mask; None for no tokens."""
    return sum(token.values[mask.key] == 0 for token in tokens) / len(tokens) if tokens else None


class TokenMean(NamedTuple):
    label: str
    count: int
    mean: float
    decisive: str  # "yes", "no", "3 of 5" or "-" where unknown


def top_tokens(pairs: list[Pair], mask: Quantity, *, limit: int = 20) -> list[TokenMean]:
    """The tokens of the largest mean of a mask over all responses; those of mean zero are left out."""
    by_token: dict[tuple[str, int], list[Token]] = {}
    for pair in pairs:
        for token in pair.tokens:
            by_token.setdefault((token.label, token.id), []).append(token)
    rows = []
    for (label, _), tokens in by_token.items():
        values = [x for token in tokens if math.isfinite(x := token.values[mask.key])]
        if values and sum(values) != 0:
            rows.append(TokenMean(label, len(tokens), sum(values) / len(values), _how_many_decide(tokens)))
    return sorted(rows, key=lambda row: (-row.mean, -row.count, row.label))[:limit]


def _how_many_decide(tokens: list[Token]) -> str:
    marks = [token.decisive for token in tokens]
    count = marks.count(True)
    if None in marks:
        return "-"
    if count == len(marks):
        return "yes"
    return "no" if count == 0 else f"{count} of {len(marks)}"
