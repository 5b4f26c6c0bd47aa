"""Bytes of a device that a training step takes, estimated by hand from shapes. No JAX here.

`--check`, the run and `--aot` all use this estimate, to choose what is left to `auto` and to say what fits.
Arrays count that are as large as weights, or grow with the tokens; what XLA needs beside them is in ROOM.
"""

import math
from typing import NamedTuple

from sparsepo_jax.config.derive import mask_parameters
from sparsepo_jax.config.schema.compute import RematChoice
from sparsepo_jax.config.schema.masks import LearnedMask
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.config.schema.training import Training
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.run.held import base_bytes, gradient_bytes, moment_bytes, numbers_of, trained_numbers

ROOM = 0.92  # share of a device's memory that an estimate may take
FLOAT = 4  # bytes of a float32
LARGEST = 4  # a model's largest stack of matrices is about this part of it
TOKENS_OF_CHUNK = 64  # that a gated delta net takes at a time, see ops/gated_delta
ARRAYS_OF_CHUNK = 20  # of a number for each two tokens of a chunk; measured on CPU, 4 layers of 1,024 tokens
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


class HeldBytes(NamedTuple):
    """Bytes that a stage holds through all of a step, or at its end, whatever its batches.

    Attributes:
        state: weights that are trained, and the optimizer's state.
        frozen: weights of the reference, or of the base of adapters.
        copies: of the policy's matrices in the type of the activations.
        sums: of gradients over micro-steps.
        gradient: of a micro-step.
    """

    state: int
    frozen: int
    copies: int
    sums: int
    gradient: int


class Need(NamedTuple):
    """Bytes that a step takes.

    Attributes:
        held: through all of it: state, frozen weights, copies and sums, see Held.
        kept: activations from the forward to the backward pass.
        tables: gradients of embeddings and head.
        head: logits and what comes of them, before the backward pass of the blocks begins.
        blocks: gradients of the blocks and what one of them computes with, after the head's.
    """

    held: int
    kept: int
    tables: int
    head: int
    blocks: int

    @property
    def total(self) -> int:
        """The most that is there at a time: head and blocks follow one another."""
        return self.held + self.kept + self.tables + max(self.head, self.blocks)


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


def held_by(setting: Setting) -> HeldBytes:
    """What the stage holds, per device."""
    config, training = setting.config, setting.training
    trained = trained_numbers(training, setting.policy, _mask_count(setting))
    activations = "float32" if setting.itemsize == FLOAT else "bfloat16"
    weights = "float32" if training.lora is not None else config.compute.weights  # adapters are float32
    copied = 0 if training.lora is not None or weights == activations else trained.blocks + trained.head
    moments = moment_bytes(training, trained, setting.policy)
    if config.compute.offload in ("optimizer", "both"):  # of one weight after another, two at a time
        moments = 2 * moments // LARGEST
    sizes = (
        trained.bytes(weights) + moments,
        _frozen(setting, activations),
        setting.itemsize * copied,
        FLOAT * sum(trained) if training.accumulation > 1 else 0,
        gradient_bytes(trained, weights, activations),
    )
    return HeldBytes(*(math.ceil(size / setting.shards) for size in sizes))


def _mask_count(setting: Setting) -> int:
    """Weights of the mask nets."""
    if setting.stage != "po" or not isinstance(setting.config.objective.mask, LearnedMask):
        return 0
    read = setting.reference or setting.policy
    return mask_parameters(setting.config.objective, read.width, read.num_layers)


def _frozen(setting: Setting, activations: str) -> int:
    """Bytes of what the step reads beside its state, over all devices."""
    lora, config = setting.training.lora, setting.config
    if lora is not None:
        return base_bytes(lora.base, numbers_of(setting.policy))
    if setting.reference is None:
        return 0
    numbers, held = numbers_of(setting.reference), config.reference.dtype
    if config.compute.offload in ("reference", "both"):  # one layer after another, two at a time
        numbers = numbers._replace(blocks=2 * numbers.blocks // setting.reference.num_layers)
    if held == "auto":
        held = "bfloat16" if config.compute.weights == "bfloat16" else activations
    return numbers.bytes(held)


def kept_by_layers(spec: DecoderSpec, remat: RematChoice, *, chunks: float = 1.0, tensor: int = 1) -> int:
    """Numbers that a device keeps of each position for the backward pass, in all layers.

    Args:
        spec: the decoder's shape.
        remat: what is computed again.
        chunks: see kept_features.
        tensor: see kept_features.
    """
    blocks = spec.blocks()
    return sum(layers * kept_features(block, remat, chunks=chunks, tensor=tensor) for block, layers in blocks)


def kept_features(spec: DecoderSpec, remat: RematChoice, *, chunks: float = 1.0, tensor: int = 1) -> int:
    """Numbers that a device keeps of each position for the backward pass, in a layer.

    Args:
        spec: the decoder's shape; all layers are of one kind.
        remat: what is computed again.
        chunks: how often the kernel keeps keys and values (xla: once for each chunk of queries that sees
            them).
        tensor: parts into which heads and MLP are cut. The residual stream, and norms of it, are whole.
    """
    whole, cut = _whole_and_cut(spec, remat, chunks)
    return whole + math.ceil(cut / tensor)


def _whole_and_cut(spec: DecoderSpec, remat: RematChoice, chunks: float) -> tuple[int, int]:
    """The numbers of a layer as wide as the model, and those of heads and MLP."""
    D, F, inside = spec.width, spec.mlp_width * (2 if spec.gated_mlp else 1), spec.mlp_width
    if spec.mixture is not None:  # a row for each choice, and one that all tokens have
        inside = spec.mixture.chosen * spec.mixture.width + spec.mixture.shared
        F = 2 * inside
    stream = D if spec.parallel_residual else 2 * D  # the block's input, and what the MLP reads
    if remat == "everything":
        return D, 0
    products, attention = _kept_by_mixer(spec, remat, chunks)
    if remat == "all_but_products":
        return stream, products + F
    if remat == "norms":
        return stream, attention + F
    normed = D if spec.shared_norm else 2 * D
    rows = 0 if spec.mixture is None else spec.mixture.chosen * D
    return stream + normed + rows, attention + F + inside


def _kept_by_mixer(spec: DecoderSpec, remat: RematChoice, chunks: float) -> tuple[int, int]:
    """Numbers of each position: the products that attention or a gated delta net begins with, and all that it
    keeps where more than these is kept."""
    delta = spec.delta
    if delta is not None:
        # The memory's output is kept, and the gated one as the next product reads it.
        products, read = delta.convolved + delta.values + 2 * delta.value_heads, 2 * delta.values
        if remat == "norms":
            return products, products + read
        # The convolution's sums in float32, what the activation function made of them, and the norm's output.
        return products, products + read + 3 * delta.convolved + delta.values
    queries, keys = spec.num_heads * spec.head_dim, 2 * spec.num_kv_heads * spec.head_dim
    gates = queries if spec.gated_attention else 0
    # The attention kernel's inputs and output, and the output as the next product reads it.
    return queries + keys + gates, (3 * queries + 2 * gates) + round(chunks * keys)


def needed_by(
    setting: Setting,
    load: Load,
    remat: RematChoice,
    attention: str,
    head_block: tuple[int, int],
    *,
    unroll: bool = False,
) -> Need:
    """What a step takes, per device.

    Args:
        setting: the models and how they are cut.
        load: what a device runs at a time.
        remat: what the backward pass computes again.
        attention: the kernel.
        head_block: tokens and entries of the vocabulary in a block of logits.
        unroll: whether layers are written out.
    """
    policy, held = setting.policy, held_by(setting)
    kept = kept_by_layers(policy, remat, chunks=_chunks(load, attention), tensor=setting.tensor)
    return Need(
        held.state + held.frozen + held.copies + held.sums,
        kept * load.positions * setting.itemsize,
        held.gradient - _block_gradients(setting),
        head_bytes(setting, load, head_block),
        block_bytes(setting, load, attention, adds=adds_by_layer(remat, unroll=unroll)),
    )


def block_bytes(setting: Setting, load: Load, attention: str, *, adds: bool = False) -> int:
    """Bytes of the backward pass of blocks, per device: their gradients, and one block's own arrays.

    Args:
        setting: the models and how they are cut.
        load: what a device runs at a time.
        attention: the kernel.
        adds: see adds_by_layer; it does where there are several micro-steps.
    """
    policy = setting.policy
    chunks = _chunks(load, attention)

    def working_of(block: DecoderSpec) -> int:
        features = kept_features(block, "nothing", chunks=chunks, tensor=setting.tensor)
        of_heads = 0
        if block.delta is not None:  # decays, products of keys, their inverse, scores, and their gradients
            of_heads = ARRAYS_OF_CHUNK * FLOAT * block.delta.value_heads * TOKENS_OF_CHUNK
        elif attention == "xla":
            of_heads = 3 * FLOAT * block.num_heads * min(load.longest, 2 * CHUNK)  # scores
        return features * setting.itemsize + math.ceil(of_heads / setting.tensor)

    working = max(working_of(block) for block, _ in policy.blocks())
    gradients = _block_gradients(setting)
    if adds and setting.training.accumulation > 1:
        gradients //= policy.num_layers
    return gradients + working * load.positions


def adds_by_layer(remat: RematChoice, *, unroll: bool) -> bool:
    """Whether the backward pass adds each layer's gradient to its sum; see train/step.make_update.

    It computes each block again from its input, and loops over layers.

    Args:
        remat: what it computes again by choice.
        unroll: whether layers are written out by choice.
    """
    return remat == "everything" and not unroll


def _block_gradients(setting: Setting) -> int:
    if setting.training.lora is not None:
        return 0
    return setting.itemsize * setting.policy.block_matrix_count() // setting.shards


def _chunks(load: Load, attention: str) -> float:
    """How often the kernel keeps keys and values; see kept_features."""
    return (max(1, load.longest // CHUNK) + 1) / 2 if attention == "xla" else 1.0


def head_bytes(setting: Setting, load: Load, head_block: tuple[int, int]) -> int:
    """Bytes before the blocks' backward pass, per device: logits, states, copies of the head's parts.

    Args:
        setting: the models and how they are cut.
        load: what a device runs at a time.
        head_block: tokens and entries of the vocabulary in a block of logits.
    """
    most = most_of_head(setting, load)
    logits = min(head_block[0], most[0]) * min(head_block[1], most[1])
    block = logits * logit_bytes(setting)
    if setting.shards > setting.tensor and head_block[1] >= most[1]:
        block = max(block + _gathered_head_bytes(setting), _head_gradient_bytes(setting, logits))
    if setting.config.compute.head.keep_logits:
        block += math.prod(most) * FLOAT * sides(setting)
    bytes_of_number = setting.itemsize * sides(setting) + FLOAT  # of each model, and of the policy's gradient
    states = load.tokens * setting.policy.width * bytes_of_number
    parts = min(head_block[1], most[1]) * setting.policy.width * (bytes_of_number + FLOAT)
    parts = parts if head_block[1] < most[1] else 0
    return block + states + parts + _reference_head_bytes(setting) + _read_by_masks(setting, load)


def _gathered_head_bytes(setting: Setting) -> int:
    """One model's head, held in parts and gathered for its product; that of the other comes before it."""
    return setting.itemsize * setting.policy.vocab_size * setting.policy.width // setting.tensor


def _head_gradient_bytes(setting: Setting, logits: int) -> int:
    """The policy's gathered head and its gradient before that is cut, float32, beside that of logits."""
    if setting.training.lora is not None:
        return 0
    whole = setting.policy.vocab_size * setting.policy.width // setting.tensor
    return _gathered_head_bytes(setting) + FLOAT * whole + setting.itemsize * logits


def _read_by_masks(setting: Setting, load: Load) -> int:
    """The reference's states in all layers, which mask nets read: as layers leave them, and gathered."""
    mask = setting.config.objective.mask
    if setting.stage != "po" or not isinstance(mask, LearnedMask) or not mask.net.endswith("all"):
        return 0
    read = setting.reference or setting.policy
    return 2 * read.num_layers * load.tokens * read.width * setting.itemsize


def _reference_head_bytes(setting: Setting) -> int:
    """A copy of the reference's head for products, if it is held in another type than activations have."""
    if setting.reference is None or setting.config.reference.dtype != "float32" or setting.itemsize == FLOAT:
        return 0
    return setting.itemsize * setting.reference.vocab_size * setting.reference.width // setting.tensor


def most_of_head(setting: Setting, load: Load) -> tuple[int, int]:
    """Tokens and entries of the vocabulary that a device has logits of."""
    return load.tokens, math.ceil(setting.policy.vocab_size / setting.tensor)


def sides(setting: Setting) -> int:
    """Models that have logits: the policy, and the reference if it runs."""
    return 1 if setting.reference is None else 2


def logit_bytes(setting: Setting) -> int:
    """Bytes that a block needs of each logit of the policy: float32 of each model, and their gradient."""
    return FLOAT * sides(setting) + setting.itemsize
