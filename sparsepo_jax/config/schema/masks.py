"""The section `objective.mask`: what weighs each token of a response."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sparsepo_jax.config.schema.base import (
    ByKind,
    IsNumber,
    LearningRate,
    NonNegative,
    Positive,
    PositiveFloat,
    Rate,
    Section,
)

GATES = ("sparsemax", "budget", "hard_concrete", "top_k")


class MaskBase(Section):
    on: Literal["both", "reward", "kl", "reward_only"] = "both"
    """Where the mask is put; the other weight is 1. reward_only: on the reward, and the KL term is left
    out."""
    normalise: bool = False
    """Scale each response's mask to mean 1."""


class LearnedMask(MaskBase):
    kind: Literal["learned"] = "learned"
    """SparsePO: small nets read the reference's states and are trained with the policy."""
    net: Literal["simple_all", "simple_last", "ml_all", "ml_last", "binary_all", "binary_last"] = "simple_all"
    """The net (simple: one linear map; ml: two, without a non-linearity between them; binary: the sign of the
    ReLU, which never learns, a control) and the states it reads: all, each layer's through a net of its own
    and then mixed, or the last layer's."""
    sharing: Literal["common", "independent"] = "common"
    """One net for reward and KL, or one each."""
    layer_activation: Literal["relu", "none", "resc", "znorm"] = "relu"
    """Applied to the net's output for each layer (nets that read all layers). resc: min-max over the
    response; znorm: z-score, then min-max."""
    mixer_activation: Literal[
        "relu", "none", "resc", "znorm", "sparsemax", "budget", "hard_concrete", "top_k"
    ] = "relu"
    """Applied to the mix of layers, or to the output of a net that reads the last layer. The last four are
    gates, whose mask has a mean that is set beforehand: sparsemax has mean 1, the others have budget."""
    budget: Annotated[float, Field(gt=0, lt=1), IsNumber] = 0.3
    """The mean of a gate's mask over a response; of hard_concrete and top_k, the share of tokens above 0."""
    temperature: PositiveFloat = 1.0
    """A gate's numbers are divided by it: smaller ones give more zeros."""
    temperature_start: PositiveFloat | None = None
    """A gate's temperature at the first step. It goes to `temperature` by the same factor at each step; it is
    there after temperature_steps, and wherever nothing is trained. null: it is `temperature` throughout."""
    temperature_steps: Positive | None = None
    """Steps of training from temperature_start to temperature."""
    sees: Literal["prefix", "token"] = "prefix"
    """What the mask of a token may depend on: the tokens before it, or the token itself as well (but of a
    response's last token, behind which the reference has no state)."""
    official: bool = False
    """Take the released settings where none are given: init official, the policy's learning rate."""
    init: Literal["official", "ones"] = "ones"
    """ones: bias 1 and mixer 1/L, so that masks start near 1; official: N(0, 0.02) weights, so that masks
    start at 0.03 to 0.06 or dead."""
    dropout: Rate = 0.0
    """Share of the values that are dropped after each of the two activations while training."""
    learning_rate: LearningRate | None = None
    """null: 0.3 over the policy's width, so that a step of Adam moves the net's output for a layer by 0.3 at
    most; if official, the policy's."""
    weight_decay: NonNegative = 0.01
    """On the mask nets' weights, not on biases and LayerNorm."""

    @model_validator(mode="after")
    def _annealed_gate(self) -> "LearnedMask":
        if (self.temperature_start is None) != (self.temperature_steps is None):
            raise ValueError("temperature_start and temperature_steps: give both, or neither")
        if self.temperature_start is not None and self.mixer_activation not in GATES:
            raise ValueError(
                f"temperature_start: mixer_activation {self.mixer_activation} has no temperature; take one "
                f"of {', '.join(GATES)}, or leave it out"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _as_released(cls, section: Any) -> Any:
        if isinstance(section, dict) and section.get("official") is True:
            return {"init": "official"} | section
        return section


class ActivationMask(MaskBase):
    kind: Literal["activation"] = "activation"
    """MaPO: read off the reference's activations, without training."""
    groups: Annotated[list[Literal["mlp", "attn", "resid", "logits"]], Field(min_length=1)] = [
        "mlp",
        "attn",
        "resid",
        "logits",
    ]
    """The activations that count: those of MLPs, of attention, of the residual stream, and the logits."""
    mapping: Literal["zn_rescale", "none", "sigmoid", "layernorm"] = "zn_rescale"
    """How the mean activations of a response's tokens become weights. zn_rescale: z-score, then min-max."""
    official: bool = False
    """Exactly the points where the official code's hooks fire; otherwise the points that the paper names."""


class OnesMask(MaskBase):
    kind: Literal["ones"]
    """Weight 1 on every token: TDPO-1."""


class RandomMask(MaskBase):
    kind: Literal["random"]
    """Uniform(0, 1), new at every step, keyed by seed, step and row."""


class PositionalMask(MaskBase):
    kind: Literal["positional"]
    """Weights that fall with the position in the response."""
    decay: Annotated[float, Field(gt=0, le=1), IsNumber] = 0.98
    """Weight decay**t of response token t = 1, 2, ..."""


class ConfidenceMask(MaskBase):
    kind: Literal["confidence"]
    """Weight 1 on the tokens that a model finds improbable, else 0."""
    model: Literal["reference", "policy"] = "reference"
    """Weight 1 on tokens whose probability under this model is at most the response's mean, else 0
    (detached)."""


class GivenMask(MaskBase):
    kind: Literal["given"]
    """The data's columns chosen_weights and rejected_weights."""


AnyMask = LearnedMask | ActivationMask | OnesMask | RandomMask | PositionalMask | ConfidenceMask | GivenMask
Mask = Annotated[AnyMask, ByKind("learned")]
MaskOfMaPO = Annotated[AnyMask, ByKind("activation")]
