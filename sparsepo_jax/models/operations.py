"""Operations of matrix products in a training step, counted by hand. No JAX here.

An operation is a multiplication or an addition: a multiply-add is two.
"""

from typing import NamedTuple

from sparsepo_jax.models.decoder_spec import DecoderSpec


class Tokens(NamedTuple):
    """What a step works on, over all devices.

    Attributes:
        positions: tokens that run through the blocks.
        seen: pairs of a token and one that it attends to, itself included by half.
        responses: response tokens, whose logits are computed.
    """

    positions: float
    seen: float
    responses: float


class Passes(NamedTuple):
    """How often a step goes through blocks and head.

    Attributes:
        blocks: passes of the decoder over its positions, counted in forward passes. By default reference
            forward 1, policy forward 1, backward 2.
        head: products of [response tokens, D] with [D, V]. By default both models' forward, both again
            backward, and the gradients of states and head.
    """

    blocks: float = 4
    head: float = 6


def pair_tokens(pairs: int, prompt: float, response: float, responses: int = 2) -> Tokens:
    """The tokens of pairs in the shared layout, in which a prompt runs once for its responses.

    Args:
        pairs: of a step.
        prompt: length of a prompt, tokens.
        response: length of a response, tokens; the last one is not run.
        responses: of a prompt.
    """
    run = response - 1
    seen = prompt * prompt / 2 + responses * run * (prompt + run / 2)
    return Tokens(pairs * (prompt + responses * run), pairs * seen, pairs * responses * response)


def matrix_operations(spec: DecoderSpec, tokens: Tokens, passes: Passes) -> float:
    """Operations of a step. Attention counts what a token sees: half a square.

    Gated delta nets count as if token followed upon token: their memory decays, is read twice and is written.

    Args:
        spec: the decoder's.
        tokens: of the step.
        passes: through blocks and head.
    """
    blocks = 0.0
    for block, layers in spec.blocks():
        if block.delta is None:
            attention = 4 * block.num_heads * block.head_dim * tokens.seen
        else:
            attention = block.delta.operations() * tokens.positions
        blocks += layers * (2 * block.matrix_count_of_block(active=True) * tokens.positions + attention)
    return passes.blocks * blocks + passes.head * 2 * spec.vocab_size * spec.width * tokens.responses
