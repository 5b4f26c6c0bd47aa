"""The sections `evaluation`, `measure`, `harness` and `report`: what is measured of a policy and shown."""

from typing import Annotated, Literal

from pydantic import Field

from sparsepo_jax.config.paths import PathText
from sparsepo_jax.config.schema.base import (
    IsNumber,
    Json,
    Megabytes,
    Natural,
    NonNegative,
    Positive,
    PositiveFloat,
    Section,
)


class Lexicon(Section):
    path: PathText
    """A UTF-8 file, .gz or not."""
    kind: Literal["opinion", "scores", "treebank"]
    """opinion: a word per line, ; begins a comment (Hu and Liu); scores: word TAB score (VADER, AFINN);
    treebank: trees whose leaves are labelled 0 to 4 (Stanford)."""
    threshold: NonNegative = 0.0
    """A word decides if its strength is above this: 1 for opinion, |score|, |mean leaf label - 2| (0.5 leaves
    out treebank words that one spelling in many makes not quite neutral)."""


class Evaluation(Section):
    batch_size: Positive = 32
    """Pairs a batch; changes speed, not results (but the loss of aot and aot_unpaired, which sort the
    pairs of a batch)."""
    max_pairs: Positive | None = None
    """Evaluate on the first so many pairs (of each set). null: on all."""
    main: str | None = None
    """The set of data.eval that headlines are about, where its sets have names: the metrics eval/..., what
    stands first in summary.json and the report, answered prompts, pairs shown. null: the first of them."""
    sampled_prompts: Positive | None = None
    """Let the policy answer the first so many distinct prompts, before and after po, one response each from
    the policy's own distribution (temperature 1, nothing cut off; of `generation` only max_new_tokens and
    batch_size count). null: nothing is sampled."""
    lexicons: list[Lexicon] = []
    """Word lists that say which tokens are decisive, in pairs that do not mark them themselves. Lists of one
    kind make one lexicon."""


class CodeMeasure(Section):
    k: Annotated[list[Positive], Field(min_length=1)] = [1, 10, 100]
    """pass@k for these k, none above generation.samples."""
    time_s: PositiveFloat = 4.0
    """Longest run of a program."""
    memory_mb: Megabytes = 1024
    """MiB of address space of a program."""
    workers: Positive | None = None
    """Programs at a time. null: one for each CPU."""


class BertScore(Section):
    model: PathText
    """A directory or Hub id. Needs the extra [bertscore]."""
    layer: Positive | None = None
    """Of its hidden states. null: the one that bert-score knows as best (models it does not know need a
    value)."""


class TextMeasure(Section):
    reference: str | None = "chosen"
    """Column of the data's rows that holds the reference text; where the prompts are those of the evaluation
    pairs, chosen or rejected. null: ROUGE and BERTScore are left out."""
    rouge: bool = True
    """ROUGE-1, -2 and -L against the reference text."""
    self_bleu: bool = True
    """Self-BLEU: how alike the responses to one prompt are."""
    distinct: bool = True
    """Distinct n-grams of words over all n-grams."""
    bertscore: BertScore | None = None
    """BERTScore against the reference text. null: left out."""


class Measure(Section):
    """What the stage measure computes from generations.jsonl."""

    code: CodeMeasure | None = None
    """Run the tests in the data's rows (HumanEval, MBPP): pass@k. An empty mapping is all defaults."""
    text: TextMeasure | None = None
    """Compare with references and with each other. An empty mapping is all defaults."""


class Harness(Section):
    """Tasks of lm-evaluation-harness (the extra `lm_eval`)."""

    tasks: list[Annotated[PathText, Field(min_length=1)]] = []
    """Names of its tasks, groups and tags (`lm-eval ls tasks`), or paths of task files (YAML). Such a file is
    a program: its templates and functions are run."""
    include_path: PathText | None = None
    """A directory with task files that are known by their names, too."""
    num_fewshot: Natural | None = None
    """Solved examples before each question. null: as the task says; a task that says 0 keeps it."""
    limit: Positive | Annotated[float, Field(gt=0, lt=1), IsNumber] | None = None
    """The first so many rows of each task; below 1: this share of them. null: all."""
    batch_size: Positive = 32
    """Contexts a batch; changes speed, not results."""
    max_length: Annotated[int, Field(ge=2, lt=2**31), IsNumber] | None = None
    """Longest context + continuation, tokens; the end is kept. null: the model's positions."""
    add_bos: bool | None = None
    """A BOS token before contexts. null: if the tokenizer adds one by itself."""
    gen_kwargs: Json = {}
    """Over the tasks' generation_kwargs: until, max_gen_toks, do_sample, temperature, top_k, top_p."""
    apply_chat_template: bool = False
    """Contexts as messages, written by data.template with data.template_arguments."""
    fewshot_as_multiturn: bool = True
    """With apply_chat_template: each solved example is two turns of its own."""
    system_instruction: str | None = None
    """A system message before each context. null: none."""
    bootstrap_iters: Natural = 1000
    """Resamplings behind the standard errors that have no closed form; 0: none is computed."""


class Report(Section):
    pairs: Positive = 12
    """Pairs shown token by token."""
