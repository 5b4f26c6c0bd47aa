"""The section `data`: where rows come from and how they become tokens and batches."""

import datetime
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from sparsepo_jax.config.paths import PathText
from sparsepo_jax.config.schema.base import (
    ByKind,
    IsNumber,
    Json,
    Natural,
    NonNegative,
    Positive,
    PositiveFloat,
    Section,
)


def _day(text: str) -> str:
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueError(f"expected a day as YYYY-MM-DD, got {text!r}") from None


class FileSource(Section):
    kind: Literal["file"] = "file"
    """Rows of files, of a saved data set or of the Hub."""
    path: PathText
    """A .jsonl, .json, .csv, .tsv (each perhaps .gz) or .parquet file, a pattern of such files
    (data/*.jsonl), a directory that `datasets` reads, or a Hub id."""
    split: str = "train"
    """The split, or parts of splits as `datasets` writes them: train[:80%], train[80%:], train[10:20],
    train+test. Files have one split, train."""
    subset: str | None = None
    """The configuration name of a Hub data set."""
    columns: dict[str, str] = {}
    """Our column name -> the file's, where they differ, e.g. {prompt: question}."""
    weight: PositiveFloat = 1.0
    """How often an epoch of training sees each row: 2 is twice; 0.5 is a random half, drawn anew each epoch.
    Evaluation reads every row once."""
    exchanged: bool = False
    """Chosen and rejected change places, with all columns that belong to them: for a run that learns the
    opposite, as TIS-DPO's second one. For pairs only."""


class ReviewsSource(Section):
    kind: Literal["reviews"]
    """Made-up film reviews from a built-in grammar: pairs for po, texts for sft, labelled rows for a
    classifier."""
    rows: Positive = 2048
    """How many rows are made."""
    seed: Natural = 0
    """Rows of another seed are other reviews; seed and rows determine them."""
    weight: PositiveFloat = 1.0
    """How often an epoch sees each row, as for files."""
    exchanged: bool = False
    """Chosen and rejected change places, as for files."""


Source = Annotated[FileSource | ReviewsSource, ByKind("file")]

HOLDOUT = "holdout"  # the name of the held-out part of data.train, beside named evaluation sets


def _set_name(name: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", name):
        return name
    raise ValueError(f"expected a name of at most 40 letters, digits, - and _, got {name!r:.60}")


SetName = Annotated[str, AfterValidator(_set_name)]


def _form(sources: Any) -> str:
    return "named" if isinstance(sources, dict) else "list"


# A list of sources, or several such lists by name.
EvaluationSources = Annotated[
    Annotated[list[Source], Tag("list")]
    | Annotated[
        dict[SetName, Annotated[list[Source], Field(min_length=1)]], Field(min_length=1), Tag("named")
    ],
    Discriminator(_form),
]


def _not_exchanged(sources: list[Source]) -> list[Source]:
    if any(source.exchanged for source in sources):
        raise ValueError("exchanged: these rows are no pairs, and there is nothing to exchange")
    return sources


Texts = Annotated[list[Source], AfterValidator(_not_exchanged)]
"""Sources whose rows are no pairs."""


class Holdout(Section):
    share: Annotated[float, Field(gt=0, lt=1), IsNumber] | None = None
    """Share of the prompts of data.train that are kept out of training and used, with data.eval, for
    evaluation. Where data.eval has names, they are a set of their own, named holdout."""
    prompts: Positive | None = None
    """The number of these prompts, in the place of a share. Which they are follows from the seed; other
    prompts in data.train may take the place of some."""
    seed: Natural = 0
    """Another seed holds out other prompts."""

    @model_validator(mode="after")
    def _either(self) -> Self:
        if (self.share is None) == (self.prompts is None):
            raise ValueError("expected share or prompts, and null for the other")
        return self


class Ranked(Section):
    rule: Literal["all", "best_worst", "best_others"] = "best_worst"
    """Which pairs of a row's answers are taken: the best and the worst; the best and each other one; or all
    that differ."""
    margin: NonNegative = 0.0
    """Pairs whose scores do not differ by more are left out, and counted."""
    score: str | None = None
    """The column, or the field of each answer, that holds the score. null: the first of score(s),
    overall_score, rating(s), reward(s) (higher is better) and rank(s) (lower is better)."""


class Data(Section):
    sft: Texts = []
    """Texts that stage sft trains on: rows with a prompt and a response, or messages."""
    train: list[Source] = []
    """Preference pairs that stage po trains on."""
    eval: EvaluationSources = []
    """Preference pairs that the stages score and eval read: a list of sources; or several lists by name, as
    in {helpful: [{path: a.jsonl}], harmless: [{path: b.jsonl}]}, each with figures of its own."""
    prompts: Texts = []
    """Prompts that the stages pairs and generate answer. Empty, for generate: those of the evaluation
    pairs."""
    prompt_words: Positive | None = None
    """The prompt is the first so many words of the text in data.prompts, as in the paper's IMDB data (with
    columns: {prompt: text}). null: all of it."""
    ranked: Ranked = Ranked()
    """How rows with several answers and their scores become pairs (UltraFeedback's completions; responses
    with scores, or with the best first)."""
    holdout: Holdout | None = None
    """Keep part of data.train for evaluation. null: train on all of it."""
    max_length: Annotated[int, Field(ge=2, lt=2**31), IsNumber] | None = None
    """Longest prompt + response, tokens. null: the smaller of 2048 and the model's positions."""
    max_prompt_length: Positive | None = None
    """Longest prompt, tokens; its end is kept. null: half of max_length."""
    separator: str = ""
    """Put between prompt and response (text rows); it counts as prompt."""
    template: Literal["none", "chat", "paper"] = "none"
    """For message lists: the tokenizer's chat template, or the paper's <|user|>/<|assistant|> turns. `none`
    takes the one that exists."""
    template_arguments: Json = {}
    """Passed to the chat template (e.g. enable_thinking: false); chat_template names another one of the
    tokenizer's, or is its Jinja text. A row's column chat_template_kwargs overrides them."""
    template_date: Annotated[str, AfterValidator(_day)] | None = None
    """YYYY-MM-DD, the day given to a chat template that writes today's date. null: the day on which the run
    first reads its data, which it keeps in template_date.json, so that continuing on another day changes no
    token."""
    train_on: Literal["last", "assistant"] = "last"
    """Which turns of messages are the response. `last`: the assistant's last one (in pairs all that follows
    the common messages, if it is the assistant's alone). `assistant`: every turn of the assistant after the
    prompt (what `{% generation %}` marks, if the chat template has it). Turns of users and tools between
    them are read, and are no response tokens."""
    add_bos: bool | None = None
    """Begin text prompts with a BOS token. null: if the tokenizer has one. Does not apply to chat templates,
    which write their own."""
    add_eos: bool = True
    """End text responses with an EOS token. Does not apply to chat templates, which write their own."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What happens to a row that cannot be used: stop with its number and the reason, or leave it out and
    list it in output_dir/bad_rows_NAME.jsonl."""
    cache_dir: PathText | None = None
    """Where tokenised data is kept. null: sparsepo_jax in the user's cache directory."""
    buckets: Annotated[int, Field(ge=1, le=8), IsNumber] = 4
    """The most batch shapes to use: fewer compile less, more pad less."""
    strata: Positive = 4
    """Each batch takes the same share of its rows from each of so many strata of length. Padding is least at
    the number of rows that a device has in a micro-step, or below; the value changes which rows meet in a
    batch."""
    inspect_rows: Positive = 4
    """Rows that the stage `inspect` shows."""

    @property
    def set_names(self) -> list[str]:
        """The names of the evaluation sets, in order; none where `eval` has no names."""
        if not isinstance(self.eval, dict):
            return []
        return [*self.eval, HOLDOUT] if self.holdout is not None else list(self.eval)
