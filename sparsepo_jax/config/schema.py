"""Every knob of the project, in one place: the configuration a run is described by.

Pydantic models, frozen and closed (unknown keys are errors), tagged by `kind` where there is a choice. Nothing here imports JAX: `--help`,
`--check` and configuration errors must not wait for it. Descriptions are what `--schema` hands to editors.
"""

import datetime
import math
import os
import re
from typing import Annotated, Any, Literal, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from sparsepo_jax.config.paths import PathText

Positive = Annotated[int, Field(gt=0, lt=2**31)]
Natural = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]


def _finite(mapping: dict[str, Any]) -> dict[str, Any]:
    """Refuses numbers that JSON does not have, wherever they lie."""
    left: list[tuple[str, Any]] = list(mapping.items())
    while left:
        name, value = left.pop()
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}: expected a finite number, got {value}")
        left += (
            value.items()
            if isinstance(value, dict)
            else ((name, item) for item in value)
            if isinstance(value, list)
            else ()
        )
    return mapping


def _day(text: str) -> str:
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueError(f"expected a day as YYYY-MM-DD, got {text!r}") from None


Json = Annotated[dict[str, Any], AfterValidator(_finite)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def tagged(default: str, **kinds: type[Section]):
    """A union told apart by `kind`; a mapping without `kind` means `default`."""

    def kind_of(value: Any) -> Any:
        return value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", default)

    members = tuple(Annotated[model, Tag(kind)] for kind, model in kinds.items())
    return Annotated[Union[members], Discriminator(kind_of)]  # noqa: UP007 if len(members) > 1 else members[0]


# ---------------------------------------------------------------- models and tokenizers


class Policy(Section):
    path: PathText | None = None
    """A Hugging Face directory or Hub id to start from (config.json and safetensors)."""
    config: Json | None = None
    """The content of a config.json, inline: a model of this shape is made from scratch. `vocab_size` may be left out: the tokenizer's. Beside
    `path`: the shape that the checkpoint must have, so that --check knows it without the checkpoint."""
    adapter: PathText | None = None
    """A LoRA adapter as PEFT saves it (a directory or Hub id), put onto `path`. It is merged; under po.lora, without an sft before it, it is what po
    goes on training: rank, alpha, rslora and targets are then the adapter's."""


class Reference(Section):
    path: PathText | None = None
    """A Hugging Face directory or Hub id. None: the policy as it was when po began, its adapter included. Under po.lora only policy.path itself may be
    named: the base without policy.adapter."""
    adapter: PathText | None = None
    """A LoRA adapter as PEFT saves it, put onto `path`, or onto policy.path where that is None."""
    cached: bool = False
    """Compute the reference's log-probs of the training tokens (and MaPO's masks) once, keep them on disk, and train without running it. For
    objectives without a KL term and without learned masks; the KL is then not among the training metrics."""
    cache_dir: PathText | None = None
    """Where they are kept. None: sparsepo_jax in the user's cache directory."""


class AutoTokenizer(Section):
    kind: Literal["auto"] = "auto"
    """The tokenizer that lies beside `policy.path`; none if there is none (data must then be tokenised already)."""


class PretrainedTokenizer(Section):
    kind: Literal["pretrained"]
    path: PathText
    """A directory or Hub id with a Hugging Face tokenizer."""


class ByteTokenizer(Section):
    kind: Literal["bytes"]
    """One token a byte (256), and one for begin/end of text."""


class BpeTokenizer(Section):
    kind: Literal["bpe"]
    vocab_size: Annotated[int, Field(ge=258, lt=2**31)] = 8192
    """Entries, the special token included; byte-level, so no text is out of vocabulary."""
    max_rows: Positive | None = None
    """Learn from the first so many rows only (time)."""
    """Learned from the text of data.sft, or of data.train where there is no data.sft."""


class ReviewsTokenizer(Section):
    kind: Literal["reviews"]
    """One token a word of the built-in `reviews` grammar."""


Tokenizer = tagged(
    "auto",
    auto=AutoTokenizer,
    pretrained=PretrainedTokenizer,
    bytes=ByteTokenizer,
    bpe=BpeTokenizer,
    reviews=ReviewsTokenizer,
)

# ---------------------------------------------------------------- data


class FileSource(Section):
    kind: Literal["file"] = "file"
    path: PathText
    """A .jsonl, .json, .csv, .tsv (each perhaps .gz) or .parquet file, a pattern of such files (data/*.jsonl), a directory that `datasets` reads, or
    a Hub id."""
    split: str = "train"
    """The split, or parts of splits as `datasets` writes them: train[:80%], train[80%:], train[10:20], train+test. Files have one split, train."""
    subset: str | None = None
    """The configuration name of a Hub data set."""
    columns: dict[str, str] = {}
    """Our column name -> the file's, where they differ, e.g. {prompt: question}."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often an epoch sees each row: 2 is twice, 0.5 a random half, anew each epoch."""


class ReviewsSource(Section):
    kind: Literal["reviews"]
    rows: Positive = 2048
    seed: Natural = 0
    """Rows of another seed are other reviews; seed and rows fix them."""
    weight: Annotated[float, Field(gt=0)] = 1.0


Source = tagged("file", file=FileSource, reviews=ReviewsSource)


class Holdout(Section):
    share: Annotated[float, Field(gt=0, lt=1)]
    """Share of the prompts of data.train that are kept out of training and used, with data.eval, for evaluation."""
    seed: Natural = 0


class Data(Section):
    sft: list[Source] = []
    train: list[Source] = []
    eval: list[Source] = []
    prompts: list[Source] = []
    """Prompts that the stages pairs and generate answer. None for generate: those of the evaluation pairs."""
    prompt_words: Positive | None = None
    """The prompt is the first so many words of the text in data.prompts, as in the paper's IMDB data (with columns: {prompt: text}). None: all of it."""
    holdout: Holdout | None = None
    max_length: Annotated[int, Field(ge=2, lt=2**31)] | None = None
    """Longest prompt + response, tokens. None: the smaller of 2048 and the model's positions."""
    max_prompt_length: Positive | None = None
    """Longest prompt, tokens; its end is kept. None: half of max_length."""
    separator: str = ""
    """Put between prompt and response (text rows); it counts as prompt."""
    template: Literal["none", "chat", "paper"] = "none"
    """For message lists: the tokenizer's chat template, or the paper's <|user|>/<|assistant|> turns. `none` takes the one that exists."""
    template_arguments: Json = {}
    """Passed to the chat template (e.g. enable_thinking: false); a row's column chat_template_kwargs goes over it."""
    template_date: Annotated[str, AfterValidator(_day)] | None = None
    """YYYY-MM-DD, what a chat template that writes today's date is told. None: the day on which the run first reads its data, which it keeps in
    template_date.json, so that going on another day changes no token."""
    add_bos: bool | None = None
    """A BOS token before text prompts. None: if the tokenizer has one. What a chat template writes stays as it is."""
    add_eos: bool = True
    """An EOS token after text responses. What a chat template writes stays as it is."""
    on_bad_row: Literal["error", "skip"] = "error"
    cache_dir: PathText | None = None
    """Where tokenised data is kept. None: sparsepo_jax in the user's cache directory."""
    buckets: Annotated[int, Field(ge=1, le=8)] = 4
    """Batch shapes at the most: fewer compile less, more pad less."""
    strata: Positive = 4
    """A batch draws alike from so many strata of length. Pads least at the number of rows that a device has in a micro-step, or less; changes which
    rows meet in a batch."""
    inspect_rows: Positive = 4
    """Rows that the stage `inspect` shows."""


# ---------------------------------------------------------------- masks


class MaskBase(Section):
    on: Literal["both", "reward", "kl", "reward_only"] = "both"
    """Where the mask is put; the other weight is 1. reward_only: on the reward, and the KL term is left out."""
    normalise: bool = False
    """Scale each response's mask to mean 1."""


class LearnedMask(MaskBase):
    kind: Literal["learned"] = "learned"
    net: Literal["simple_all", "simple_last", "ml_all", "ml_last", "binary_all", "binary_last"] = "simple_all"
    sharing: Literal["common", "independent"] = "common"
    """One net for reward and KL, or one each."""
    layer_activation: Literal["relu", "none", "resc", "znorm"] = "relu"
    mixer_activation: Literal["relu", "none", "resc", "znorm"] = "relu"
    official: bool = False
    """Take the released settings where none are given: init official, the policy's learning rate."""
    init: Literal["official", "ones"] = "ones"
    """`ones`: bias 1 and mixer 1/L, so that masks start near 1; official: N(0, 0.02) weights, masks start at 0.03 to 0.06 or dead."""
    dropout: Rate = 0.0
    learning_rate: NonNegative | None = None
    """None: 0.3 over the policy's width, so that a step of Adam moves what the net says of a layer by 0.3 at most; if official, the policy's."""
    weight_decay: NonNegative = 0.01
    """On the mask nets' weights, not on biases and LayerNorm."""

    @model_validator(mode="before")
    @classmethod
    def _as_released(cls, given: Any) -> Any:
        return (
            {"init": "official"} | given
            if isinstance(given, dict) and given.get("official") is True
            else given
        )


class ActivationMask(MaskBase):
    kind: Literal["activation"] = "activation"
    groups: Annotated[list[Literal["mlp", "attn", "resid", "logits"]], Field(min_length=1)] = [
        "mlp",
        "attn",
        "resid",
        "logits",
    ]
    mapping: Literal["zn_rescale", "none", "sigmoid", "layernorm"] = "zn_rescale"
    official: bool = False
    """Exactly the points where the official code's hooks fire; otherwise the points that the paper names."""


class OnesMask(MaskBase):
    kind: Literal["ones"]


class RandomMask(MaskBase):
    kind: Literal["random"]
    """Uniform(0, 1), new at every step, keyed by seed, step and row."""


class PositionalMask(MaskBase):
    kind: Literal["positional"]
    decay: Annotated[float, Field(gt=0, le=1)] = 0.98
    """Weight decay**t of response token t = 1, 2, ..."""


class ConfidenceMask(MaskBase):
    kind: Literal["confidence"]
    model: Literal["reference", "policy"] = "reference"
    """Weight 1 on tokens whose probability under this model is at most the response's mean, else 0 (detached)."""


class GivenMask(MaskBase):
    kind: Literal["given"]
    """The data's columns chosen_weights and rejected_weights."""


_MASKS = dict(
    learned=LearnedMask,
    activation=ActivationMask,
    ones=OnesMask,
    random=RandomMask,
    positional=PositionalMask,
    confidence=ConfidenceMask,
    given=GivenMask,
)
Mask = tagged("learned", **_MASKS)

# ---------------------------------------------------------------- objectives (METHODS section 4; beta in 1/nat)


class ObjectiveBase(Section):
    nll_weight: NonNegative = 0.0
    """Adds this times the mean negative log-likelihood of the chosen response's tokens (RPO)."""


class SparsePO(ObjectiveBase):
    kind: Literal["sparsepo"] = "sparsepo"
    beta: Annotated[float, Field(gt=0)] = 0.8
    l1_reward: NonNegative = 0.0
    l1_kl: NonNegative = 0.0
    """With a common mask each of the two counts half, as in the official code."""
    mask: Mask = LearnedMask()


class MaPO(ObjectiveBase):
    kind: Literal["mapo"]
    beta: Annotated[float, Field(gt=0)] = 0.8
    mask: tagged("activation", **_MASKS) = ActivationMask()
    """A mapping without `kind` is an activation mask here."""


class Dpo(ObjectiveBase):
    kind: Literal["dpo"]
    beta: Annotated[float, Field(gt=0)] = 0.1


class Cdpo(ObjectiveBase):
    kind: Literal["cdpo"]
    beta: Annotated[float, Field(gt=0)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.1


class Robust(ObjectiveBase):
    kind: Literal["robust"]
    beta: Annotated[float, Field(gt=0)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.1


class Ipo(ObjectiveBase):
    kind: Literal["ipo"]
    beta: Annotated[float, Field(gt=0)] = 0.1


class Hinge(ObjectiveBase):
    kind: Literal["hinge"]
    beta: Annotated[float, Field(gt=0)] = 0.1


class SimPO(ObjectiveBase):
    kind: Literal["simpo"]
    beta: Annotated[float, Field(gt=0)] = 2.0
    gamma: NonNegative = 1.0
    """Target margin: taken off beta times the difference of mean log-probs."""


class Orpo(ObjectiveBase):
    kind: Literal["orpo"]
    odds_weight: NonNegative = 0.1
    """lambda: weight of the odds-ratio term."""


class Cpo(ObjectiveBase):
    kind: Literal["cpo"]
    beta: Annotated[float, Field(gt=0)] = 0.1
    alpha: NonNegative = 1.0
    """Weight of the chosen response's mean NLL."""


class Dpop(ObjectiveBase):
    kind: Literal["dpop"]
    beta: Annotated[float, Field(gt=0)] = 0.3
    penalty: NonNegative = 50.0
    """lambda: weight of max(0, -sum of the chosen log-ratios)."""


class Rdpo(ObjectiveBase):
    kind: Literal["rdpo"]
    beta: Annotated[float, Field(gt=0)] = 0.1
    alpha: NonNegative = 0.01
    """Per token of length difference."""


class Tdpo1(ObjectiveBase):
    kind: Literal["tdpo1"]
    beta: Annotated[float, Field(gt=0)] = 0.1


class Tdpo2(ObjectiveBase):
    kind: Literal["tdpo2"]
    beta: Annotated[float, Field(gt=0)] = 0.1
    alpha: NonNegative = 0.5


class D2po(ObjectiveBase):
    kind: Literal["d2po"]
    beta: Annotated[float, Field(gt=0)] = 0.1
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.98


class Sampo(ObjectiveBase):
    kind: Literal["sampo"]
    beta: Annotated[float, Field(gt=0)] = 0.1


class Ldpo(ObjectiveBase):
    kind: Literal["ldpo"]
    beta: Annotated[float, Field(gt=0)] = 0.1
    alpha: Share = 0.5
    """Weight of tokens past the shorter response's length."""


class Confpo(ObjectiveBase):
    kind: Literal["confpo"]
    beta: Annotated[float, Field(gt=0)] = 2.0
    gamma: NonNegative = 1.0


class Caldpo(ObjectiveBase):
    kind: Literal["caldpo"]
    beta: Annotated[float, Field(gt=0)] = 0.1


OBJECTIVES = dict(
    sparsepo=SparsePO,
    mapo=MaPO,
    dpo=Dpo,
    cdpo=Cdpo,
    robust=Robust,
    ipo=Ipo,
    hinge=Hinge,
    simpo=SimPO,
    orpo=Orpo,
    cpo=Cpo,
    dpop=Dpop,
    rdpo=Rdpo,
    tdpo1=Tdpo1,
    tdpo2=Tdpo2,
    d2po=D2po,
    sampo=Sampo,
    ldpo=Ldpo,
    confpo=Confpo,
    caldpo=Caldpo,
)
Objective = tagged("sparsepo", **OBJECTIVES)

# ---------------------------------------------------------------- training


class AdamW(Section):
    kind: Literal["adamw"] = "adamw"
    learning_rate: NonNegative = 1e-6
    b1: Rate = 0.9
    b2: Rate = 0.999
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: NonNegative = 0.0
    """Not on biases and norms."""


class Adafactor(Section):
    kind: Literal["adafactor"]
    learning_rate: NonNegative = 1e-6
    weight_decay: NonNegative = 0.0


class Lion(Section):
    kind: Literal["lion"]
    learning_rate: NonNegative = 1e-7
    b1: Rate = 0.9
    b2: Rate = 0.99
    weight_decay: NonNegative = 0.0


Optimizer = tagged("adamw", adamw=AdamW, adafactor=Adafactor, lion=Lion)


class Schedule(Section):
    kind: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_share: Rate | None = None
    """Share of all steps; excludes warmup_steps. None and None: 0.1."""
    warmup_steps: Natural | None = None
    end: Share = 0.0
    """Where cosine and linear end, as a share of the peak."""

    @model_validator(mode="after")
    def _one_warmup(self):
        if self.warmup_share is not None and self.warmup_steps is not None:
            raise ValueError("`warmup_share` and `warmup_steps` exclude each other")
        return self


class Lora(Section):
    targets: Annotated[list[str], Field(min_length=1)] = ["."]
    """Patterns (regular expressions, found anywhere) of the projections that get an adapter, among attention.query, attention.key,
    attention.value, attention.out, up, gate, down. The default fits all."""
    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Adapters count alpha / rank (rslora: alpha / sqrt(rank))."""
    dropout: Rate = 0.0
    rslora: bool = False
    base: Literal["float32", "bfloat16", "int8", "nf4"] = "float32"
    """How the frozen weights are held: bfloat16 rounds all matrices; int8 and nf4 (qwix) the projections of blocks."""

    @field_validator("targets")
    @classmethod
    def _patterns(cls, targets: list[str]) -> list[str]:
        for pattern in targets:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"no regular expression: {pattern!r} ({error})") from None
        return targets


class Training(Section):
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the data; excludes steps. None and None: 1."""
    steps: Positive | None = None
    batch_size: Positive = 64
    """Rows (sft) or pairs (po) per optimizer step, over all devices and micro-steps."""
    accumulation: Positive = 1
    """Micro-steps per optimizer step; must divide batch_size. Changes memory, not the update."""
    optimizer: Optimizer = AdamW()
    schedule: Schedule = Schedule()
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest global norm of the gradient, policy and masks together."""
    skip_nonfinite: Natural = 0
    """Leave out at most so many updates whose loss or gradient is not finite, before the stage stops with the rows' names."""
    lora: Lora | None = None
    """Train adapters instead of the weights. po: the reference is the policy without them. sft: they are merged when it ends."""

    @model_validator(mode="after")
    def _consistent(self):
        if self.epochs is not None and self.steps is not None:
            raise ValueError("`epochs` and `steps` exclude each other")
        if self.batch_size % self.accumulation:
            raise ValueError(f"accumulation ({self.accumulation}) must divide batch_size ({self.batch_size})")
        return self


class TextTraining(Training):
    taken_from: PathText | None = None
    """output_dir of another run with the same settings of stage sft and the same rows, whose finished sft this run starts from in place of training one.
    It is read where it lies, and po keeps what it began with. A sweep sets this by itself. None: trained here."""


class PairTraining(Training):
    eval_every_steps: Positive | None = None
    """Evaluate while training, every so many steps, on data.eval and the held-out part."""


class Lexicon(Section):
    path: PathText
    """A UTF-8 file, .gz or not."""
    kind: Literal["opinion", "scores", "treebank"]
    """A word a line, ; begins a comment (Hu and Liu); word TAB score (VADER, AFINN); or trees whose leaves are labelled 0 to 4 (Stanford)."""
    threshold: NonNegative = 0.0
    """A word decides if its strength is above this: 1 for opinion, |score|, |mean leaf label - 2| (0.5 leaves out treebank words that one spelling
    in many makes not quite neutral)."""


class Evaluation(Section):
    batch_size: Positive = 32
    """Pairs a batch; changes speed, not results."""
    max_pairs: Positive | None = None
    """Evaluate on the first so many pairs."""
    sampled_prompts: Positive | None = None
    """Let the policy answer the first so many distinct prompts, before and after po, one response each from the policy's own distribution
    (temperature 1, nothing cut off; of `generation` only max_new_tokens and batch_size count). None: nothing is sampled."""
    lexicons: list[Lexicon] = []
    """Word lists that say which tokens are decisive, in pairs that do not say it themselves. Lists of one kind make one lexicon."""


class Generation(Section):
    max_new_tokens: Positive = 128
    """Longest response, tokens; prompt and response must fit the model's positions."""
    temperature: NonNegative = 1.0
    """0: greedy."""
    top_k: Positive | None = None
    """Draw from the so many most probable tokens."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the fewest tokens whose probability together reaches this (nucleus)."""
    samples: Positive = 1
    """Responses to each prompt."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """A response ends before any of these strings, as it does at EOS."""
    batch_size: Positive = 32
    """Prompts a batch; changes speed, not results."""
    max_prompts: Positive | None = None
    """Answer the first so many distinct prompts."""


class ClassifierScorer(Section):
    """Probability of the positive label by TF-IDF of words and pairs of words and a logistic regression, trained here. Needs the extra [reward]."""

    kind: Literal["classifier"] = "classifier"
    train: list[Source] = []
    """Rows {"text", "label"}."""
    path: PathText | None = None
    """Instead of `train`: the directory of one that was trained before (OUTPUT_DIR/classifier)."""
    test: list[Source] = []
    """Rows on which its accuracy is measured and said."""
    positive: int | str = 1
    """The label whose probability is the score; all others are the other class."""
    max_features: Positive = 200_000
    """Words and pairs of words, the most frequent."""
    l2: Annotated[float, Field(gt=0)] = 0.1
    """Weight of the squared coefficients against the sum of the rows' losses."""

    @model_validator(mode="after")
    def _one_origin(self):
        if bool(self.train) == (self.path is not None):
            raise ValueError("give either `train` (rows to learn from) or `path` (a classifier that is kept)")
        return self


class HuggingFaceScorer(Section):
    """A sequence classifier or reward model by transformers and torch; it reads prompt + response as one text."""

    kind: Literal["hf"]
    path: PathText
    """A directory or Hub id."""
    label: int | str | None = None
    """The label whose probability is the score, by number or name. None: the model's one output as it is (reward models)."""
    batch_size: Positive = 32
    device: str = "cpu"
    """Where torch runs it."""


class FunctionScorer(Section):
    """A function of your own: f(prompts: list[str], completions: list[str], rows: list[dict]) -> list[float]; rows: the other columns of the data."""

    kind: Literal["function"]
    function: Annotated[str, Field(pattern=r"^\w+(\.\w+)*:\w+$")]
    """module:name, found as Python finds modules (the current directory first)."""


class TestsScorer(Section):
    """1 if the program of prompt, response and the row's unit tests (HumanEval's or MBPP's columns) runs through, else 0."""

    kind: Literal["tests"]
    time_s: Annotated[float, Field(gt=0)] = 4.0
    """Longest run of a program."""
    memory_mb: Positive = 1024
    workers: Positive | None = None
    """Programs at a time. None: as many as there are cores."""


Scorer = tagged(
    "classifier",
    classifier=ClassifierScorer,
    hf=HuggingFaceScorer,
    function=FunctionScorer,
    tests=TestsScorer,
)


class PairMaking(Section):
    """Which of the sampled responses become pairs. How they are sampled: generation.samples, temperature, top_p, max_new_tokens, max_prompts."""

    rule: Literal["all", "best_worst", "first_two"] = "all"
    """all: every (better, worse) of a prompt's responses; best_worst: the best and the worst; first_two: of the first two the better and the worse."""
    margin: NonNegative = 0.0
    """Pairs whose scores do not differ by more are left out."""
    threshold: float | None = None
    """The better score must lie above and the worse one not: 0.5 pairs the two classes of a classifier (or passed and failed) only."""
    max_pairs_per_prompt: Positive | None = None
    """Of more, those whose scores differ most."""


class CodeMeasure(Section):
    k: Annotated[list[Positive], Field(min_length=1)] = [1, 10, 100]
    """pass@k for these k, none above generation.samples."""
    time_s: Annotated[float, Field(gt=0)] = 4.0
    """Longest run of a program."""
    memory_mb: Annotated[int, Field(ge=64, lt=2**31)] = 1024
    """MiB of address space of a program."""
    workers: Positive | None = None
    """Programs at a time. None: one for each CPU."""


class BertScore(Section):
    model: PathText
    """A directory or Hub id. Needs the extra [bertscore]."""
    layer: Positive | None = None
    """Of its hidden states. None: what bert-score knows as best (models it does not know need it)."""


class TextMeasure(Section):
    reference: str | None = "chosen"
    """Column of the data's rows that holds the reference text. None: ROUGE and BERTScore are left out."""
    rouge: bool = True
    self_bleu: bool = True
    distinct: bool = True
    bertscore: BertScore | None = None


class Measure(Section):
    """What the stage measure says of generations.jsonl."""

    code: CodeMeasure | None = None
    """Run the tests in the data's rows (HumanEval, MBPP): pass@k. An empty mapping is all defaults."""
    text: TextMeasure | None = None
    """Compare with references and with each other. An empty mapping is all defaults."""


class Harness(Section):
    """Tasks of lm-evaluation-harness (the extra `lm_eval`)."""

    tasks: list[Annotated[PathText, Field(min_length=1)]] = []
    """Names of its tasks, groups and tags (`lm-eval ls tasks`), or paths of task files (YAML). Such a file is a program: its templates and functions
    are run."""
    include_path: PathText | None = None
    """A directory with task files that are known by their names, too."""
    num_fewshot: Natural | None = None
    """Solved examples before each question. None: as the task says; a task that says 0 keeps it."""
    limit: Positive | Annotated[float, Field(gt=0, lt=1)] | None = None
    """The first so many rows of each task; below 1: this share of them."""
    batch_size: Positive = 32
    """Contexts a batch; changes speed, not results."""
    max_length: Annotated[int, Field(ge=2, lt=2**31)] | None = None
    """Longest context + continuation, tokens; the end is kept. None: the model's positions."""
    add_bos: bool | None = None
    """A BOS token before contexts. None: if the tokenizer adds one of itself."""
    gen_kwargs: Json = {}
    """Over the tasks' generation_kwargs: until, max_gen_toks, do_sample, temperature, top_k, top_p."""
    apply_chat_template: bool = False
    """Contexts as messages, written by data.template with data.template_arguments."""
    fewshot_as_multiturn: bool = True
    """With it: each solved example is two turns of its own."""
    system_instruction: str | None = None
    bootstrap_iters: Natural = 1000
    """Resamplings behind the standard errors that have no closed form; 0: none is computed."""


class Mesh(Section):
    data: Positive | None = None
    """None (at most one axis): what the devices leave."""
    fsdp: Positive | None = 1
    tensor: Positive | None = 1
    slices: Positive | None = None
    """Groups of devices with a fast network of their own (TPU slices): `data` is cut over them first, then `fsdp`. None: as the devices say."""

    @model_validator(mode="after")
    def _one_free(self):
        free = [name for name in ("data", "fsdp", "tensor") if getattr(self, name) is None]
        if len(free) > 1:
            raise ValueError(f"only one axis may be null (free), not {' and '.join(free)}")
        return self


class Head(Section):
    """Logits exist in blocks of tokens and vocabulary; changes memory and speed, not results."""

    tokens: Positive = 512
    """Response tokens of a device at a time."""
    vocabulary: Positive = 2048
    """Entries of the vocabulary of a device at a time."""
    keep_logits: bool = False
    """Hold all logits from the forward to the backward pass instead of making them again: a third fewer products in the head, for 8 bytes a response
    token and entry of the vocabulary."""


class Compute(Section):
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of activations; weights are float32 always. auto: float32 on CPU, bfloat16 elsewhere."""
    precision: Literal["auto", "float32", "tf32"] = "auto"
    """How float32 arrays are multiplied. float32: with all their digits. tf32: as fast as the device can with about three digits
    (NVIDIA's TF32; three bfloat16 passes on TPU); CPUs multiply in float32 all the same. auto: float32 where dtype is float32; where
    dtype is bfloat16, the device's own way for the few float32 products that are left."""
    remat: bool = False
    """Recompute each block's activations in the backward pass: less memory, a third more work."""
    layout: Literal["shared", "plain"] = "shared"
    """shared: the prompt runs once a pair and both responses attend to it; plain: once for each response. The results are the same."""
    attention: Literal["auto", "blocks", "xla", "cudnn", "splash"] = "auto"
    """How rows of tokens attend. auto: blocks on CPU, splash on TPU (compiled only, never timed: Llama-3-8B's step on v5e-64 takes 4.9 GB of temporaries a
    chip, 6.0 by xla), else xla. cudnn: GPU, bfloat16, no capped scores. splash: TPU. The results are the same."""
    head: Head = Head()
    mesh: Mesh = Mesh()
    compile_cache: PathText | None = None
    """Directory of compiled programs. None: sparsepo_jax in the user's cache directory."""
    distributed: bool | None = None
    """Whether this process is one of several that make one run. None: if JAX_COORDINATOR_ADDRESS is set, in a Slurm step of several tasks, or if
    TPU_WORKER_HOSTNAMES names several. true: find the others as jax.distributed does (Cloud TPU, GKE, Slurm, MPI)."""


class Best(Section):
    metric: str = "eval/accuracy_unmasked"
    mode: Literal["max", "min"] = "max"


class Checkpoint(Section):
    every_steps: Positive | None = None
    every_minutes: Annotated[float, Field(gt=0)] | None = 10.0
    keep: Positive = 2
    """The last so many are kept (and the best)."""
    best: Best | None = None
    """Keep the best too, by a metric of the evaluation while training."""


class Wandb(Section):
    project: str
    name: str | None = None


class Logging(Section):
    every_steps: Positive = 10
    tensorboard: bool = True
    wandb: Wandb | None = None


class Report(Section):
    pairs: Positive = 12
    """Pairs shown token by token."""


class Export(Section):
    path: PathText | None = None
    """Where the Hugging Face directory goes, none that the run reads. None: output_dir/export."""
    merged: bool = True
    """With po.lora: write the whole model, too, adapters merged; else only its subdirectory adapter/ (PEFT's format), and base/, the model that the
    adapters stand on, where that is not policy.path as it is (after sft)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights in it. auto: that of the weights in policy.path; float32 from scratch."""


def _needs_reference(objective: Any) -> str | None:
    """Why log-probs of the tokens that are there do not do for an objective; None if they do."""
    mask = getattr(objective, "mask", None)
    if mask is not None and mask.kind == "learned":
        return "objective.mask.kind learned reads the reference's states"
    if objective.kind in ("tdpo1", "tdpo2") or (mask is not None and mask.on != "reward_only"):
        return f"objective {objective.kind} has a KL term" + (
            "" if mask is None else " (but with objective.mask.on=reward_only)"
        )
    return None


class Config(Section):
    stages: Annotated[
        list[
            Literal[
                "inspect",
                "sft",
                "po",
                "score",
                "eval",
                "generate",
                "pairs",
                "measure",
                "harness",
                "report",
                "export",
            ]
        ],
        Field(min_length=1),
    ]
    output_dir: PathText
    seed: Natural = 0
    policy: Policy = Policy()
    reference: Reference = Reference()
    tokenizer: Tokenizer = AutoTokenizer()
    data: Data = Data()
    objective: Objective = SparsePO()
    sft: TextTraining = TextTraining()
    po: PairTraining = PairTraining()
    evaluation: Evaluation = Evaluation()
    generation: Generation = Generation()
    pairs: PairMaking = PairMaking()
    scorer: Scorer | None = None
    """What says how good a response is: the stage pairs needs it; the mean score of the answers to evaluation.sampled_prompts is among the results."""
    measure: Measure = Measure()
    harness: Harness = Harness()
    compute: Compute = Compute()
    checkpoint: Checkpoint = Checkpoint()
    logging: Logging = Logging()
    report: Report = Report()
    export: Export = Export()

    @field_validator("output_dir")
    @classmethod
    def _can_be_made(cls, path: str) -> str:
        if "\0" in path:
            raise ValueError(f"no directory can have this name: {path!r:.60}")
        return path

    @model_validator(mode="after")
    def _stages_fit(self):
        wanted, said = self.stages, []
        order = {
            "inspect": 0,
            "sft": 1,
            "po": 2,
            "score": 3,
            "eval": 3,
            "generate": 3,
            "pairs": 3,
            "export": 3,
            "measure": 4,
            "harness": 4,
            "report": 5,
        }
        if len(set(wanted)) != len(wanted):
            said.append("stages: a stage is listed twice")
        if [order[stage] for stage in wanted] != sorted(order[stage] for stage in wanted):
            said.append(
                f"stages: the order is inspect, sft, po, then score/eval/generate/pairs/export, then measure/harness, then report; got {', '.join(wanted)}"
            )
        if self.policy == Policy() and not {
            "sft",
            "po",
            "score",
            "eval",
            "generate",
            "pairs",
            "harness",
            "export",
        }.isdisjoint(wanted):
            said.append(
                "policy: needed by these stages: set policy.path (a checkpoint) or policy.config (a shape)"
            )
        if "sft" in wanted and not self.data.sft:
            said.append("data.sft: needed by stage sft, but empty")
        if self.sft.taken_from is not None and os.path.abspath(self.sft.taken_from) == os.path.abspath(
            self.output_dir
        ):
            said.append(
                "sft.taken_from: this is the run's own output_dir; name that of another run, or leave it out"
            )
        if "po" in wanted and not self.data.train:
            said.append("data.train: needed by stage po, but empty")
        read = {"score", "eval"} if self.data.prompts else {"score", "eval", "generate"}
        if not read.isdisjoint(wanted) and not self.data.eval and not (self.data.holdout and self.data.train):
            said.append(
                "data.eval: stages score, eval and generate need this, or data.train with data.holdout"
                + ", or (generate) data.prompts" * ("generate" in read)
            )
        if "pairs" in wanted:
            said += self._pairs_lack()
        said += self._adapters_lack()
        if self.reference.cached and (why := _needs_reference(self.objective)):
            said.append(f"reference.cached: {why}, which needs the reference itself: set it to false")
        for name, is_text in (
            ("generation.stop: stop strings are", self.generation.stop),
            ("evaluation.lexicons: words are", self.evaluation.lexicons),
        ):
            if is_text and self.policy.path is None and self.tokenizer.kind == "auto":
                said.append(f"{name} text: set tokenizer, or policy.path with one beside it")
        if "measure" in wanted and self.measure == Measure():
            said.append("measure: needed by stage measure: set measure.code={} or measure.text={}")
        if (
            {"generate", "measure"} <= set(wanted)
            and self.measure.code
            and max(self.measure.code.k) > self.generation.samples
        ):
            said.append(
                f"measure.code.k: pass@{max(self.measure.code.k)} needs as many samples of each problem, but generation.samples is {self.generation.samples}"
            )
        if "harness" in wanted and not self.harness.tasks:
            said.append("harness.tasks: needed by stage harness, but empty")
        if "harness" in wanted and self.policy.path is None and self.tokenizer.kind == "auto":
            said.append("harness: tasks are text: set tokenizer, or policy.path with one beside it")
        said += self._export_overwrites() if "export" in wanted else []
        if said:
            raise ValueError("\n".join(said))  # a line each; they name their place
        return self

    def _export_overwrites(self) -> list[str]:
        """Models and tokenizers that the export would be written over."""
        chosen = self.export.path
        place = os.path.realpath(chosen or os.path.join(self.output_dir, "export"))
        written = [place, os.path.join(place, "adapter"), os.path.join(place, "base")]
        read = {
            "policy.path": self.policy.path,
            "reference.path": self.reference.path,
            "policy.adapter": self.policy.adapter,
            "reference.adapter": self.reference.adapter,
        }
        if self.tokenizer.kind == "pretrained":
            read["tokenizer.path"] = self.tokenizer.path
        what = "export.path: this" if chosen else f"export.path: none is set, and output_dir/export, {place},"
        return [
            f"{what} is {name}, or holds it, and would be written over: name another directory"
            for name, path in read.items()
            if path is not None and os.path.realpath(path) in written
        ]

    def _adapters_lack(self) -> list[str]:
        policy, reference = self.policy, self.reference
        own_base = reference.path is None or reference.path == policy.path
        after_sft = "sft" in self.stages or self.sft.taken_from is not None
        lacks = {
            "policy.adapter: it is put onto a model: set policy.path": policy.adapter is not None
            and policy.path is None,
            "reference.adapter: it is put onto a model: set reference.path or policy.path": reference.adapter
            is not None
            and not (reference.path or policy.path),
            "po.lora: the reference is the policy without its adapters: leave out reference.path, or po.lora": self.po.lora
            is not None
            and not own_base,
            "po.lora: after sft the reference is what sft leaves: leave out reference.path and reference.adapter, or po.lora": self.po.lora
            is not None
            and own_base
            and after_sft
            and (reference.path or reference.adapter) is not None,
        }
        return [line for line, lacking in lacks.items() if lacking]

    def _pairs_lack(self) -> list[str]:
        lacks = {
            "data.prompts: needed by stage pairs, but empty": not self.data.prompts,
            "scorer: needed by stage pairs: what says which response is better?": self.scorer is None,
            f"generation.samples: stage pairs compares the responses to a prompt: set 2 or more, not {self.generation.samples}": self.generation.samples
            < 2,
            "generation.temperature: 0 draws the same response each time, and stage pairs compares different ones": self.generation.temperature
            == 0,
        }
        return [line for line, lacking in lacks.items() if lacking]
