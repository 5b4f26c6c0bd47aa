"""How a batch of pairs becomes rows that a decoder runs, and how the rows' states come back to response tokens.

Two layouts of the same mathematics. `shared`: one row a pair, `prompt | chosen | rejected`; both responses attend to the prompt and to
themselves, at the positions they would have alone, so the prompt runs once. `plain`: a row per response, `prompt | response`.
The last token of a response predicts nothing that counts, so it is not run.

    pair:    prompt x1 x2, chosen c1 c2 c3, rejected r1 r2          (T = 3)
    shared:  ids        0 x1 x2 | c1 c2 | r1 r2
             positions  0  0  1 |  2  3 |  2  3
             predicts         c1,r1  c2 c3  r2  .
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sparsepo_jax.core.types import PairBatch


class Rows(NamedTuple):
    """Decoder input: `attend_BSS[b, q, k]` says whether position q sees position k. The last three fields are static."""

    ids_BS: Int[Array, "B S"]
    positions_BS: Int[Array, "B S"]
    attend_BSS: Bool[Array, "B S S"]
    prompt_length: int
    num_responses: int
    shared: bool

    @property
    def split(self) -> tuple[int, int] | None:
        """(prompt length, responses) of rows that hold several responses."""
        return (self.prompt_length, self.num_responses) if self.shared else None

    def at_responses(self, x: Float[Array, "B S ..."]) -> Float[Array, "b P T ..."]:
        """What stands at the positions that predict each response token: pairs x P x T x whatever x carries."""
        S, P = self.prompt_length, self.num_responses
        if not self.shared:
            x = x[:, S - 1 :]
            return x.reshape(x.shape[0] // P, P, *x.shape[1:])
        rest = x[:, S:].reshape(x.shape[0], P, -1, *x.shape[2:])
        first = jnp.broadcast_to(x[:, None, S - 1 : S], (x.shape[0], P, 1, *x.shape[2:]))
        return jnp.concatenate([first, rest], axis=2)


def lay_out(batch: PairBatch, *, shared: bool) -> Rows:
    """The rows of a batch, B of them (shared) or B x P (plain)."""
    B, P, T = batch.response_BPT.shape
    prompt_BS, prompt_valid_BS = batch.prompt_BS, batch.prompt_valid_BS
    S = prompt_BS.shape[1]
    inputs_BPT, valid_BPT = batch.response_BPT[:, :, :-1], batch.valid_BPT[:, :, :-1]
    num_prompt_B = prompt_valid_BS.sum(axis=1)
    prompt_positions_BS = jnp.maximum(jnp.cumsum(prompt_valid_BS, axis=1) - 1, 0)
    positions_BPT = jnp.broadcast_to(num_prompt_B[:, None, None] + jnp.arange(T - 1), (B, P, T - 1))
    if shared:
        width = P * (T - 1)
        segments_S = jnp.concatenate([jnp.zeros(S, jnp.int32), 1 + jnp.repeat(jnp.arange(P, dtype=jnp.int32), T - 1)])
        parts = (prompt_BS, inputs_BPT), (prompt_positions_BS, positions_BPT), (prompt_valid_BS, valid_BPT)
        ids_BS, positions_BS, valid_BS = (jnp.concatenate([head, tail.reshape(B, width)], axis=1) for head, tail in parts)
    else:
        segments_S = jnp.zeros(S + T - 1, jnp.int32)
        parts = (prompt_BS, inputs_BPT), (prompt_positions_BS, positions_BPT), (prompt_valid_BS, valid_BPT)
        ids_BS, positions_BS, valid_BS = (
            jnp.concatenate([jnp.repeat(head, P, axis=0), tail.reshape(B * P, T - 1)], axis=1) for head, tail in parts
        )
    order_S = jnp.arange(segments_S.shape[0])
    sees_SS = (order_S[:, None] >= order_S[None, :]) & ((segments_S[None, :] == 0) | (segments_S[None, :] == segments_S[:, None]))
    attend_BSS = sees_SS & valid_BS[:, None, :]
    # Padding may count past the model's last position, where an embedding would read NaN.
    return Rows(jnp.where(valid_BS, ids_BS, 0), jnp.where(valid_BS, positions_BS, 0), attend_BSS, S, P, shared)
