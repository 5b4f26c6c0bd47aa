"""The sections `sft`, `po`, `checkpoint` and `logging`: how weights are trained and what is kept of it."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sparsepo_jax.config.paths import PathText
from sparsepo_jax.config.schema.base import (
    ByKind,
    LearningRate,
    Natural,
    NonNegative,
    Positive,
    PositiveFloat,
    Rate,
    Section,
    Share,
)
from sparsepo_jax.config.shown import shown

PeakRate = Annotated[LearningRate, Field(description="Learning rate at the peak of the schedule.")]
WeightDecay = Annotated[
    NonNegative,
    Field(description="Decoupled weight decay, times the learning rate; not on biases and norms."),
]
Moments = Annotated[
    Literal["float32", "bfloat16"],
    Field(
        description="Type in which the running means of matrices are held between steps. bfloat16: half the "
        "memory, rounded at random, by seed and step, so that small changes are not lost."
    ),
]


class AdamW(Section):
    kind: Literal["adamw"] = "adamw"
    """Adam with decoupled weight decay."""
    learning_rate: PeakRate = 1e-6
    b1: Rate = 0.9
    """Decay of the gradients' running mean."""
    b2: Rate = 0.999
    """Decay of the squared gradients' running mean."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the mean square."""
    weight_decay: WeightDecay = 0.0
    moments: Moments = "float32"


class Adafactor(Section):
    kind: Literal["adafactor"]
    """Keeps a row and a column of squares for each matrix: little memory."""
    learning_rate: PeakRate = 1e-6
    weight_decay: WeightDecay = 0.0


class Lion(Section):
    kind: Literal["lion"]
    """Steps by the sign of a running mean: half of AdamW's memory."""
    learning_rate: PeakRate = 1e-7
    b1: Rate = 0.9
    """Weight of the running mean in the step's direction."""
    b2: Rate = 0.99
    """Decay of the running mean."""
    weight_decay: WeightDecay = 0.0
    moments: Moments = "float32"


class Muon(Section):
    kind: Literal["muon"]
    """Steps by orthogonal matrices made of a running mean, for matrices of blocks; embeddings, head, norms
    and biases are trained by Adam. Its steps are as large as Adam's, so that AdamW's learning rates fit."""
    learning_rate: PeakRate = 1e-6
    beta: Rate = 0.95
    """Decay of the matrices' running mean."""
    b1: Rate = 0.9
    """Decay of Adam's running mean."""
    b2: Rate = 0.999
    """Decay of Adam's squared gradients' running mean."""
    eps: PositiveFloat = 1e-8
    """Added to the root of Adam's mean square."""
    weight_decay: WeightDecay = 0.0
    moments: Moments = "float32"


class RmsProp(Section):
    kind: Literal["rmsprop"]
    """Divides gradients by the root of their running mean square, as PyTorch's RMSprop, which DPO's own code
    trains with: half of AdamW's memory."""
    learning_rate: PeakRate = 5e-7
    b2: Rate = 0.99
    """Decay of the squared gradients' running mean (PyTorch's alpha)."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the mean square."""
    weight_decay: WeightDecay = 0.0
    moments: Moments = "float32"


Optimizer = Annotated[AdamW | Adafactor | Lion | Muon | RmsProp, ByKind("adamw")]


class Schedule(Section):
    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up."""
    warmup_share: Rate | None = None
    """Share of all steps; excludes warmup_steps. null and null: 0.1."""
    warmup_steps: Natural | None = None
    """Steps of the warm-up; excludes warmup_share."""
    end: Share = 0.0
    """Where cosine and linear end, as a share of the peak."""

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup_share is not None and self.warmup_steps is not None:
            raise ValueError("`warmup_share` and `warmup_steps` exclude each other: set one of them to null")
        return self


class LoraSettings(Section):
    targets: Annotated[list[str], Field(min_length=1)] = ["."]
    """Patterns (regular expressions, found anywhere) of the projections that get an adapter, among
    attention.query, attention.key, attention.value, attention.out, up, gate, down. The default fits all of
    these. In a mixture of experts, experts.up, experts.gate and experts.down stand for the last three; they
    get adapters only where a pattern has the word `experts`, without dropout. An expert that all tokens are
    sent to has shared.up, shared.gate, shared.down and shared.share."""
    rank: Positive = 16
    """Rank of each adapter."""
    alpha: PositiveFloat = 32.0
    """Adapters count alpha / rank (rslora: alpha / sqrt(rank))."""
    dropout: Rate = 0.0
    """Share of an adapter's inputs that are dropped while training."""
    rslora: bool = False
    """Scale by the root of the rank instead of the rank."""
    base: Literal["float32", "bfloat16", "int8", "nf4"] = "float32"
    """How the frozen weights are held: bfloat16 rounds all matrices; int8 and nf4 (the extra `quant`) the
    projections of blocks."""

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
    epochs: PositiveFloat | None = None
    """Passes over the data; excludes steps. null and null: 1."""
    steps: Positive | None = None
    """Optimizer steps; excludes epochs."""
    batch_size: Positive = 64
    """Rows (sft) or pairs (po) per optimizer step, over all devices and micro-steps."""
    accumulation: Positive = 1
    """Micro-steps per optimizer step; must divide batch_size. Changes memory, not the update, but for what is
    of a micro-step: objectives aot and aot_unpaired, which sort its pairs, and router_aux_coefficient."""
    optimizer: Optimizer = AdamW()
    """The rule that turns gradients into updates."""
    schedule: Schedule = Schedule()
    """The learning rate over the steps of the stage."""
    clip_norm: PositiveFloat | None = 1.0
    """Largest global norm of the gradient, policy and masks together. null: no limit."""
    skip_nonfinite: Natural = 0
    """Leave out at most so many updates whose loss or gradient is not finite, before the stage stops with the
    rows' names."""
    lora: LoraSettings | None = None
    """Train adapters instead of the weights. po: the reference is the policy without them. sft: they are
    merged when it ends."""
    router_aux_coefficient: NonNegative = 0.0
    """Factor of the routers' auxiliary loss, which asks a mixture of experts to use all experts alike. It is
    taken over the tokens of a micro-step, and added to the objective. 0: none, whatever config.json says."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("`epochs` and `steps` exclude each other: set one of them to null")
        if self.batch_size % self.accumulation:
            raise ValueError(f"accumulation ({self.accumulation}) must divide batch_size ({self.batch_size})")
        return self


class TextTraining(Training):
    taken_from: PathText | None = None
    """output_dir of another run with the same settings of stage sft and the same rows: this run starts from
    its finished sft instead of training one. It is read where it lies, and po keeps what it began with. A
    sweep sets this by itself. null: sft is trained here."""


class EarlyStopping(Section):
    """Ends po when its evaluations (po.eval_every_steps) have not got better for long."""

    metric: str = "eval/accuracy_unmasked"
    """The metric's name in metrics.jsonl: eval/... of the main evaluation set, eval_NAME/... of another."""
    mode: Literal["max", "min"] = "max"
    """Whether a larger or a smaller value is better."""
    patience: Positive = 3
    """Stop after so many evaluations in a row without an improvement."""
    min_delta: NonNegative = 0.0
    """What counts as an improvement: more than this, from the last improvement on."""


class PairTraining(Training):
    eval_every_steps: Positive | None = None
    """Evaluate while training, every so many steps, on data.eval and the held-out part. null: not while
    training."""
    early_stopping: EarlyStopping | None = None
    """Stop before the last step when evaluations have not got better for long. The schedule of the learning
    rate is that of all steps. null: all steps are done."""
    keep: Literal["last", "best"] = "last"
    """Which weights po leaves for all later stages, export among them: those of its last step, or of the best
    evaluated one, by early_stopping.metric or, without that, by checkpoint.best."""
    replay_routing: bool = False
    """Send the policy's tokens to the experts that the reference chose, in a mixture of experts. false: both
    choose by themselves. Held-out pairs are scored in the same way; what the policy writes, the harness and
    the export let the policy choose."""


class BestSettings(Section):
    metric: str = "eval/accuracy_unmasked"
    """The metric's name in metrics.jsonl."""
    mode: Literal["max", "min"] = "max"
    """Whether a larger or a smaller value is better."""


class Checkpoint(Section):
    every_steps: Positive | None = None
    """Keep a checkpoint every so many steps. null: by time only."""
    every_minutes: PositiveFloat | None = 10.0
    """Keep a checkpoint every so many minutes. null: by steps only. Several processes, whose clocks differ,
    keep them by every_steps alone."""
    keep: Positive = 2
    """The last so many are kept (and the best)."""
    best: BestSettings | None = None
    """Keep the best too, by a metric of the evaluation while training."""


class Logging(Section):
    every_steps: Positive = 10
    """Write a line of metrics every so many steps."""
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = ["tensorboard"]
    """What shows metrics as curves, besides metrics.jsonl and the report: any of TensorBoard (event files),
    Weights & Biases, MLflow and Trackio. The last three need the extra of their name, and are set up by their
    own environment variables. A continued run goes on in its entry."""
    project: str = "sparsepo_jax"
    """What the run is listed under, by trackers other than TensorBoard."""
    name: str | None = None
    """What trackers call the run. null: the last part of output_dir."""

    @model_validator(mode="before")
    @classmethod
    def _as_it_was(cls, value: Any) -> Any:
        """Earlier versions had `tensorboard` (true or false) and `wandb` (project and name)."""
        if not isinstance(value, dict) or value.keys().isdisjoint({"tensorboard", "wandb"}):
            return value
        settings = dict(value)
        board, wandb = settings.pop("tensorboard", True), settings.pop("wandb", None)
        if "trackers" in settings:
            raise ValueError("`trackers` says all: leave out `tensorboard` and `wandb`")
        if not isinstance(board, bool):
            raise ValueError(f"tensorboard is now an entry of `trackers`; got {shown(board)}")
        if wandb is not None and not (isinstance(wandb, dict) and wandb.keys() <= {"project", "name"}):
            raise ValueError("wandb is now an entry of `trackers`, with `project` and `name` beside it")
        settings["trackers"] = ["tensorboard"] * board + ["wandb"] * (wandb is not None)
        given = {key: text for key, text in (wandb or {}).items() if text is not None}
        return settings | given

    @field_validator("trackers")
    @classmethod
    def _once(cls, trackers: list[str]) -> list[str]:
        if len(set(trackers)) != len(trackers):
            raise ValueError("a tracker is listed twice")
        return trackers
