"""Bytes of a device that a training step takes, estimated by hand from shapes. No JAX here.

`--check`, the run and `--aot` all use this estimate, to choose what is left to `auto` and to say what fits.
Arrays count that are as large as weights, or grow with the tokens; what XLA needs beside them is in ROOM.
"""

import math
from typing import NamedTuple

from sparsepo_jax.config.derive import mask_of, mask_parameters
from sparsepo_jax.config.schema.compute import Remat
from sparsepo_jax.config.schema.masks import LearnedMask
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.config.schema.training import Training
from sparsepo_jax.models.decoder_spec import DecoderSpec, choose_projections

ROOM = 0.92  # share of a device's memory that an estimate may take
FLOAT = 4  # bytes of a float32
CHUNK = 128  # queries that the kernel xla takes at a time at least, see ops/dense_attention


class Load(NamedTuple):
    """What a device runs at a time: its rows of tokens of a micro-step.

    Attributes:
        positions: tokens that run through the blocks.
        tokens: response tokens, which have logits.
        longest: positions of the longest sequence.
    """

    positions: int
    tokens: int
    longest: int


class Held(NamedTuple):
    """Bytes that a stage holds through all of a step, whatever its batches.

    Attributes:
        state: weights that are trained, and the optimizer's state.
        frozen: weights of the reference, or of the base of adapters.
        gradient: of the trained weights; twice where micro-steps add up.
        copies: of matrices in the type of the activations.
    """

    state: int
    frozen: int
    gradient: int
    copies: int


class Need(NamedTuple):
    """Bytes that a step takes.

    Attributes:
        held: whatever the batch, see Held.
        kept: activations from the forward to the backward pass.
        working: what a block of the decoder computes with.
        head: logits and what comes of them.
    """

    held: int
    kept: int
    working: int
    head: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


class Setting(NamedTuple):
    """A stage's models on one kind of device.

    Attributes:
        policy: shape of the policy.
        reference: shape of the reference; None: no reference runs (sft, cached log-probs).
        itemsize: bytes of an activation.
        shards: parts into which weights are cut (fsdp x tensor).
        tensor: parts into which heads, MLP and vocabulary are cut.
    """

    config: Config
    stage: str
    policy: DecoderSpec
    reference: DecoderSpec | None
    itemsize: int
    shards: int = 1
    tensor: int = 1

    @property
    def training(self) -> Training:
        """The settings of the stage."""
        return getattr(self.config, self.stage)


def held_by(setting: Setting) -> Held:
    """What the stage holds, per device."""
    training, policy = setting.training, setting.policy
    trained = trained_parameters(setting)
    accumulates = 2 if training.accumulation > 1 else 1
    frozen, frozen_matrices = _frozen(setting)
    copied = 0 if setting.itemsize == FLOAT else frozen_matrices
    if setting.itemsize < FLOAT and training.lora is None:
        copied += policy.parameter_count()
    return Held(
        *(
            math.ceil(size / setting.shards)
            for size in (
                FLOAT * trained + moment_bytes(training, trained, policy),
                frozen,
                accumulates * FLOAT * trained,
                setting.itemsize * copied,
            )
        )
    )


def trained_parameters(setting: Setting) -> int:
    """Weights that the stage trains, masks included."""
    training, policy = setting.training, setting.policy
    trained = policy.parameter_count()
    if training.lora is not None:
        projections = choose_projections(tuple(training.lora.targets), policy)
        trained = policy.adapter_parameter_count(projections, training.lora.rank)
    if setting.stage == "po" and isinstance(mask_of(setting.config.objective), LearnedMask):
        read = setting.reference or policy
        trained += mask_parameters(setting.config.objective, read.width, read.num_layers)
    return trained


def moment_bytes(training: Training, trained: int, policy: DecoderSpec) -> int:
    """Bytes of the optimizer's state, over all devices.

    Args:
        trained: parameters.
        policy: whose matrices Adafactor factors.
    """
    match training.optimizer.kind:
        case "adamw":  # mean and mean square
            return 2 * FLOAT * trained
        case "lion":
            return FLOAT * trained
    # Adafactor has a row and a column for each matrix, in optax for those of at least 128 rows and columns.
    return FLOAT * (trained if policy.width < 128 else 2 * trained // policy.width)


def _frozen(setting: Setting) -> tuple[int, int]:
    """(bytes of what the step reads beside its state, numbers of it that are cast before they are used)."""
    lora = setting.training.lora
    if lora is None:
        count = 0 if setting.reference is None else setting.reference.parameter_count()
        return FLOAT * count, count
    count = setting.policy.parameter_count()
    if lora.base == "float32":
        return FLOAT * count, count
    if lora.base == "bfloat16":
        return 2 * count, 0
    matrices = setting.policy.num_layers * sum(
        inputs * outputs for inputs, outputs in setting.policy.projections().values()
    )
    of_matrices = matrices if lora.base == "int8" else matrices // 2
    return FLOAT * (count - matrices) + of_matrices, 0


def kept_features(spec: DecoderSpec, remat: Remat, *, chunks: float = 1.0) -> int:
    """Numbers that a layer keeps of each position for the backward pass.

    Args:
        spec: the decoder's shape.
        remat: what is computed again.
        chunks: how often the kernel keeps keys and values (xla: once for each chunk of queries that sees
            them).
    """
    D, F = spec.width, spec.mlp_width * (2 if spec.gated_mlp else 1)
    queries, keys = spec.num_heads * spec.head_dim, 2 * spec.num_kv_heads * spec.head_dim
    stream = D if spec.parallel_residual else 2 * D  # the block's input, and what the MLP reads
    if remat == "everything":
        return D
    if remat == "all_but_products":
        return stream + queries + keys + F
    # The attention kernel's inputs and output, and the output as the next product reads it.
    attention = 3 * queries + round(chunks * keys)
    if remat == "norms":
        return stream + attention + F
    normed = D if spec.shared_norm else 2 * D
    return stream + attention + F + normed + spec.mlp_width


def needed_by(
    setting: Setting, load: Load, remat: Remat, attention: str, head_block: tuple[int, int]
) -> Need:
    """What a step takes, per device.

    Args:
        setting: the models and how they are cut.
        load: what a device runs at a time.
        remat: what the backward pass computes again.
        attention: the kernel.
        head_block: tokens and entries of the vocabulary in a block of logits.
    """
    policy = setting.policy
    chunks = (max(1, load.longest // CHUNK) + 1) / 2 if attention == "xla" else 1.0
    kept = kept_features(policy, remat, chunks=chunks) * policy.num_layers
    # A block's own arrays, those of its backward pass beside them.
    working = 2 * kept_features(policy, "nothing", chunks=chunks)
    scores = 0
    if attention == "xla":
        scores = 3 * FLOAT * policy.num_heads * load.positions * min(load.longest, CHUNK * 2)
    return Need(
        sum(held_by(setting)),
        _cut(setting, policy, kept * load.positions * setting.itemsize),
        _cut(setting, policy, working * load.positions * setting.itemsize + scores),
        head_bytes(setting, load, head_block),
    )


def head_bytes(setting: Setting, load: Load, head_block: tuple[int, int]) -> int:
    """Bytes of the head of a step, per device: blocks of logits, states, and the head's gradient.

    Args:
        setting: the models and how they are cut.
        load: what a device runs at a time.
        head_block: tokens and entries of the vocabulary in a block of logits.
    """
    most = most_of_head(setting, load)
    block = min(head_block[0], most[0]) * min(head_block[1], most[1]) * logit_bytes(setting)
    if setting.config.compute.head.keep_logits:
        block += math.prod(most) * FLOAT * sides(setting)
    states = load.tokens * setting.policy.width * (setting.itemsize * sides(setting) + FLOAT)
    return block + states


def most_of_head(setting: Setting, load: Load) -> tuple[int, int]:
    """Tokens and entries of the vocabulary that a device has logits of."""
    return load.tokens, math.ceil(setting.policy.vocab_size / setting.tensor)


def sides(setting: Setting) -> int:
    """Models that have logits: the policy, and the reference if it runs."""
    return 1 if setting.reference is None else 2


def logit_bytes(setting: Setting) -> int:
    """Bytes that a block needs of each logit of the policy: float32 of each model, and as much again for what
    comes of them."""
    return 2 * FLOAT * sides(setting)


def _cut(setting: Setting, spec: DecoderSpec, size: int) -> int:
    """A part of the size: heads and MLP are cut over `tensor`, the residual stream is not."""
    share = spec.width / max(kept_features(spec, "nothing"), 1)
    return math.ceil(size * (share + (1 - share) / setting.tensor))
