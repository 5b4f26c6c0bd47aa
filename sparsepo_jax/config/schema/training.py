"""The sections `sft`, `po`, `checkpoint` and `logging`: how weights are trained and what is kept of it."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from sparsepo_jax.config.paths import PathText
from sparsepo_jax.config.schema.base import (
    ByKind,
    Natural,
    NonNegative,
    Positive,
    PositiveFloat,
    Rate,
    Section,
    Share,
)

LearningRate = Annotated[float, Field(ge=0, description="Learning rate at the peak of the schedule.")]
WeightDecay = Annotated[
    float,
    Field(ge=0, description="Decoupled weight decay, times the learning rate; not on biases and norms."),
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
    learning_rate: LearningRate = 1e-6
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
    learning_rate: LearningRate = 1e-6
    weight_decay: WeightDecay = 0.0


class Lion(Section):
    kind: Literal["lion"]
    """Steps by the sign of a running mean: half of AdamW's memory."""
    learning_rate: LearningRate = 1e-7
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
    learning_rate: LearningRate = 1e-6
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
    learning_rate: LearningRate = 5e-7
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
    """Share of all steps; excludes warmup_steps. None and None: 0.1."""
    warmup_steps: Natural | None = None
    """Steps of the warm-up; excludes warmup_share."""
    end: Share = 0.0
    """Where cosine and linear end, as a share of the peak."""

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup_share is not None and self.warmup_steps is not None:
            raise ValueError("`warmup_share` and `warmup_steps` exclude each other")
        return self


class LoraSettings(Section):
    targets: Annotated[list[str], Field(min_length=1)] = ["."]
    """Patterns (regular expressions, found anywhere) of the projections that get an adapter, among
    attention.query, attention.key, attention.value, attention.out, up, gate, down. The default fits all of
    these. In a mixture of experts, experts.up, experts.gate and experts.down stand for the last three; they
    get adapters only where a pattern has the word `experts`, without dropout."""
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
    """Passes over the data; excludes steps. None and None: 1."""
    steps: Positive | None = None
    """Optimizer steps; excludes epochs."""
    batch_size: Positive = 64
    """Rows (sft) or pairs (po) per optimizer step, over all devices and micro-steps."""
    accumulation: Positive = 1
    """Micro-steps per optimizer step; must divide batch_size. Changes memory, not the update."""
    optimizer: Optimizer = AdamW()
    """The rule that turns gradients into updates."""
    schedule: Schedule = Schedule()
    """The learning rate over the steps of the stage."""
    clip_norm: PositiveFloat | None = 1.0
    """Largest global norm of the gradient, policy and masks together. None: no limit."""
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
            raise ValueError("`epochs` and `steps` exclude each other")
        if self.batch_size % self.accumulation:
            raise ValueError(f"accumulation ({self.accumulation}) must divide batch_size ({self.batch_size})")
        return self


class TextTraining(Training):
    taken_from: PathText | None = None
    """output_dir of another run with the same settings of stage sft and the same rows: this run starts from
    its finished sft instead of training one. It is read where it lies, and po keeps what it began with. A
    sweep sets this by itself. None: sft is trained here."""


class PairTraining(Training):
    eval_every_steps: Positive | None = None
    """Evaluate while training, every so many steps, on data.eval and the held-out part. None: not while
    training."""
    replay_routing: bool = False
    """Send the policy's tokens to the experts that the reference chose, in a mixture of experts. false: both
    choose by themselves. Held-out pairs are scored in the same way; what the policy writes, the harness and
    the export let the policy choose."""


class Best(Section):
    metric: str = "eval/accuracy_unmasked"
    """The metric's name in metrics.jsonl."""
    mode: Literal["max", "min"] = "max"
    """Whether a larger or a smaller value is better."""


class Checkpoint(Section):
    every_steps: Positive | None = None
    """Keep a checkpoint every so many steps. None: by time only."""
    every_minutes: PositiveFloat | None = 10.0
    """Keep a checkpoint every so many minutes. None: by steps only. Several processes, whose clocks differ,
    keep them by every_steps alone."""
    keep: Positive = 2
    """The last so many are kept (and the best)."""
    best: Best | None = None
    """Keep the best too, by a metric of the evaluation while training."""


class Wandb(Section):
    project: str
    """The project that the run is listed under."""
    name: str | None = None
    """The run's name there. None: a name by Weights & Biases."""


class Logging(Section):
    every_steps: Positive = 10
    """Write a line of metrics every so many steps."""
    tensorboard: bool = True
    """Write TensorBoard's files too."""
    wandb: Wandb | None = None
    """Send metrics to Weights & Biases (the extra `wandb`). None: nothing is sent."""
