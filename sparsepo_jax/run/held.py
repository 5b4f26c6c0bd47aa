"""How many numbers a stage trains and holds, and their bytes by type. No JAX here."""

from typing import NamedTuple

from sparsepo_jax.config.schema.training import Training
from sparsepo_jax.models.decoder_spec import DecoderSpec, choose_projections

BYTES = {"float32": 4, "bfloat16": 2}


class HeldNumbers(NamedTuple):
    """How many numbers a stage trains or holds, by how they may be held.

    Attributes:
        blocks: of the matrices of blocks, or of adapters.
        head: of a head of its own.
        tables: of the embeddings.
        vectors: of norms, biases and mask nets, which are float32 always.
    """

    blocks: int
    head: int
    tables: int
    vectors: int

    def bytes(self, held: str) -> int:
        """Args: held: the type of matrices."""
        return BYTES[held] * (self.blocks + self.head + self.tables) + 4 * self.vectors


def numbers_of(spec: DecoderSpec) -> HeldNumbers:
    """All numbers of a model."""
    blocks, matrices = spec.block_matrix_count(), spec.matrix_count()
    head = 0 if spec.tied_head else spec.vocab_size * spec.width
    return HeldNumbers(blocks, head, matrices - blocks - head, spec.parameter_count() - matrices)


def trained_numbers(training: Training, spec: DecoderSpec, masks: int) -> HeldNumbers:
    """What a stage trains. Args: masks: parameters of the mask nets."""
    if training.lora is None:
        numbers = numbers_of(spec)
        return numbers._replace(vectors=numbers.vectors + masks)
    projections = choose_projections(tuple(training.lora.targets), spec)
    return HeldNumbers(spec.adapter_parameter_count(projections, training.lora.rank), 0, 0, masks)


def moment_bytes(training: Training, trained: HeldNumbers, spec: DecoderSpec) -> int:
    """Bytes of the optimizer's state, over all devices. Args: spec: whose matrices Adafactor factors."""
    optimizer = training.optimizer
    match optimizer.kind:
        case "adamw":  # mean and mean square
            return 2 * trained.bytes(optimizer.moments)
        case "lion" | "rmsprop":
            return trained.bytes(optimizer.moments)
        case "muon":  # one mean of the matrices of blocks, Adam's two of all else
            return trained.bytes(optimizer.moments) + trained._replace(blocks=0).bytes(optimizer.moments)
    # Adafactor has a row and a column for each matrix, in optax for those of at least 128 rows and columns.
    count = sum(trained)
    return 4 * (count if spec.width < 128 else 2 * count // spec.width)


def gradient_bytes(trained: HeldNumbers, weights: str, activations: str) -> int:
    """Bytes of a gradient before it is summed: matrices that products read have the type of the activations,
    embeddings that of the weights."""
    return trained._replace(tables=0).bytes(activations) + BYTES[weights] * trained.tables


def base_bytes(base: str, numbers: HeldNumbers) -> int:
    """Bytes of a frozen base of adapters. int8 and nf4: of blocks' matrices, without their small scales."""
    if base in BYTES:
        return numbers.bytes(base)
    return numbers._replace(blocks=0).bytes("float32") + numbers.blocks // {"int8": 1, "nf4": 2}[base]
