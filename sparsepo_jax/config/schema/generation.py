"""The sections `generation`, `scorer` and `pairs`: sampling answers, scoring them, and making pairs of
them."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sparsepo_jax.config.paths import PathText
from sparsepo_jax.config.schema.base import (
    ByKind,
    IsNumber,
    Megabytes,
    NonNegative,
    Number,
    Positive,
    PositiveFloat,
    Section,
)
from sparsepo_jax.config.schema.data import Texts

FUNCTION = r"^\w+(\.\w+)*:\w+$"  # the pattern of a function's name


class Generation(Section):
    max_new_tokens: Positive = 128
    """Longest response, tokens; prompt and response must fit the model's positions."""
    temperature: NonNegative = 1.0
    """0: greedy."""
    top_k: Positive | None = None
    """Draw from the so many most probable tokens. null: from all."""
    top_p: Annotated[float, Field(gt=0, le=1), IsNumber] = 1.0
    """Draw from the fewest tokens whose probability together reaches this (nucleus)."""
    samples: Positive = 1
    """Responses to each prompt."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """A response ends before any of these strings, as it does at EOS."""
    batch_size: Positive = 32
    """Prompts a batch; changes speed, not results."""
    max_prompts: Positive | None = None
    """Answer the first so many distinct prompts. null: all."""


class ClassifierScorer(Section):
    """Probability of the positive label by TF-IDF of words and pairs of words and a logistic regression,
    trained here. Needs the extra [reward]."""

    kind: Literal["classifier"] = "classifier"
    """A text classifier that is trained here in seconds."""
    train: Texts = []
    """Rows {"text", "label"} to learn from."""
    path: PathText | None = None
    """Instead of `train`: the directory of one that was trained before (OUTPUT_DIR/classifier)."""
    test: Texts = []
    """Rows {"text", "label"} on which its accuracy is measured and printed."""
    positive: int | bool | str = 1
    """The label whose probability is the score; all others are the other class. Where the numbers of a column
    have names, as in a ClassLabel of `datasets`, also such a name. true and false are labels of their own."""
    max_features: Positive = 200_000
    """Words and pairs of words, the most frequent."""
    l2: PositiveFloat = 0.1
    """Weight of the squared coefficients against the sum of the rows' losses."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if bool(self.train) == (self.path is not None):
            raise ValueError("give either `train` (rows to learn from) or `path` (a classifier that is kept)")
        return self


class HuggingFaceScorer(Section):
    """A sequence classifier or reward model by transformers and torch; it reads prompt + response as one
    text."""

    kind: Literal["hf"]
    """A sequence classifier or reward model of transformers."""
    path: PathText
    """A directory or Hub id."""
    label: int | str | None = None
    """The label whose probability is the score, by number or name. null: the model's one output as it is
    (reward models)."""
    batch_size: Positive = 32
    """Texts a batch; changes speed, not results."""
    device: str = "cpu"
    """Where torch runs it."""


class FunctionScorer(Section):
    """A function of your own: f(prompts: list[str], completions: list[str], rows: list[dict]) -> list[float];
    rows: the other columns of the data."""

    kind: Literal["function"]
    """A Python function."""
    function: Annotated[str, Field(pattern=FUNCTION)]
    """module:name, found as Python finds modules (the current directory first)."""


class TestsScorer(Section):
    """1 if the program of prompt, response and the row's unit tests (HumanEval's or MBPP's columns) runs
    through, else 0."""

    kind: Literal["tests"]
    """Unit tests in the data's rows."""
    time_s: PositiveFloat = 4.0
    """Longest run of a program."""
    memory_mb: Megabytes = 1024
    """MiB of address space of a program."""
    workers: Positive | None = None
    """Programs at a time. null: as many as there are cores."""


ScorerSettings = Annotated[
    ClassifierScorer | HuggingFaceScorer | FunctionScorer | TestsScorer, ByKind("classifier")
]


class PairMaking(Section):
    """Which of the sampled responses become pairs. How they are sampled: generation.samples, temperature,
    top_p, max_new_tokens, max_prompts."""

    rule: Literal["all", "best_worst", "best_others", "first_two"] = "all"
    """all: every (better, worse) of a prompt's responses; best_worst: the best and the worst; best_others:
    the best and each other one; first_two: of the first two the better and the worse."""
    margin: NonNegative = 0.0
    """Pairs whose scores do not differ by more are left out."""
    threshold: Number | None = None
    """The better score must lie above and the worse one not: 0.5 pairs the two classes of a classifier (or
    passed and failed) only. null: no threshold."""
    max_pairs_per_prompt: Positive | None = None
    """Of more, keep those whose scores differ most. null: keep all."""
