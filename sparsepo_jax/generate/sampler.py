"""Responses drawn from a policy, token by token over a cache; compiled once for each prompt length.

    begin    reads the prompts (padded on the left) once, repeats the cache for each sample, draws the first
    token advance  draws one token more in each row, in a loop on the device, until all rows are done or a
    limit is reached

The device ends rows at an EOS token. Stop strings are text, so that the host looks for them, every
LOOK_EVERY tokens. A draw is keyed by (seed, row, sample, number of the token): it depends neither on the
batch nor on the mesh.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from sparsepo_jax.core.program import Program, has_four_bits
from sparsepo_jax.core.tree import Weights, merge_module
from sparsepo_jax.core.types import PromptBatch
from sparsepo_jax.generate.stop_strings import StopStrings, stop_within, text_of
from sparsepo_jax.models.cache import Cache
from sparsepo_jax.models.experts import ExpertKernel, dispatch_on
from sparsepo_jax.sharding.experts import make_spread_experts
from sparsepo_jax.sharding.mesh import make_constrain, platform_of, put_batch, replicated

LOOK_EVERY = 16  # tokens between two looks for stop strings


class Sampling(NamedTuple):
    """How responses are drawn.

    Attributes:
        max_new_tokens: the longest response, its end included.
        temperature: logits are divided by it; 0: the most probable token is taken (greedy).
        top_k: only so many most probable tokens are drawn from, after the temperature; None: from all.
        top_p: only the most probable tokens of so much probability together, after top_k; 1: all.
        samples: responses to each prompt.
        seed: of all draws.
        ends: token ids that end a response (EOS).
        stop: strings that do, special tokens among them.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    samples: int = 1
    seed: int = 0
    ends: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()


class Generated(NamedTuple):
    """A response.

    Attributes:
        row: of the prompt, in the data.
        sample: its number among the prompt's samples.
        ids: tokens up to and with the one that ended it.
        text: without special tokens, cut before a stop string; None without a tokenizer.
        finish: what ended it.
    """

    row: int
    sample: int
    ids: np.ndarray
    text: str | None
    finish: Literal["eos", "stop", "length"]


class Drawing(NamedTuple):
    """State of a batch of R = prompts x samples rows.

    Column t of tokens is drawn for t < step; a row's tokens count up to its length.
    """

    cache: Cache
    tokens_RT: Int[Array, "R T"]
    length_R: Int[Array, "R"]
    done_R: Bool[Array, "R"]
    key_R: Key[Array, "R"]
    step: Int[Array, ""]


def kept_logits(
    logits_RV: Float[Array, "R V"], temperature: float, top_k: int | None, top_p: float
) -> Float[Array, "R V"]:
    """Logits of the distribution that is drawn from, -inf for tokens that are left out.

    Args:
        logits_RV: of the model.
        temperature: > 0.
        top_k: so many tokens stay; None: all.
        top_p: the fewest tokens whose probability together reaches it stay (nucleus: Holtzman et al. 2020,
            1904.09751). Tokens as probable as the last one that stays stay, too.
    """
    logits_RV = logits_RV / temperature
    if top_k is not None and top_k < logits_RV.shape[-1]:
        least_R1 = jax.lax.top_k(logits_RV, top_k)[0][:, -1:]
        logits_RV = jnp.where(logits_RV >= least_R1, logits_RV, -jnp.inf)
    if top_p < 1.0:
        sorted_RV = -jnp.sort(-logits_RV, axis=-1)
        probability_RV = jax.nn.softmax(sorted_RV, axis=-1)
        before_RV = jnp.cumsum(probability_RV, axis=-1) - probability_RV
        least_R1 = jnp.where(before_RV < top_p, sorted_RV, jnp.inf).min(axis=-1, keepdims=True)
        logits_RV = jnp.where(logits_RV >= least_R1, logits_RV, -jnp.inf)
    return logits_RV


def draw(logits_RV: Float[Array, "R V"], key_R: Key[Array, "R"], sampling: Sampling) -> Int[Array, "R"]:
    """One token for each row, int32."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_RV, axis=-1).astype(jnp.int32)
    kept_RV = kept_logits(logits_RV, sampling.temperature, sampling.top_k, sampling.top_p)
    return jax.vmap(jax.random.categorical)(key_R, kept_RV).astype(jnp.int32)


class Sampler(NamedTuple):
    """The programs that draw.

    Attributes:
        begin: `begin(weights, batch [1, B, ...])` gives a Drawing with one token a row.
        advance: `advance(weights, drawing, limit)` goes on up to `limit` tokens a row, in the drawing's
            memory.
        rows: `rows(batch)` gives (row [B], weight [B]) on every host.
        seen: `seen(drawing)` gives (tokens, length, done) on every host.
        sampling: how they draw.
        mesh: where they run.
    """

    begin: Callable[[Weights, PromptBatch], Drawing]
    advance: Callable[[Weights, Drawing, int], Drawing]
    rows: Callable[[PromptBatch], tuple[Array, Array]]
    seen: Callable[[Drawing], tuple[Array, Array, Array]]
    sampling: Sampling
    mesh: Mesh

    def compile_ahead(self, weights: Weights, batches: Sequence[PromptBatch]) -> None:
        """Compiles what some batches will need, side by side. Call it where the mesh is set.

        Args:
            weights: of the decoder, by path; abstract arrays will do.
            batches: one of each shape, [1, B, ...], abstract arrays with shardings.
        """
        if has_four_bits(weights):
            return
        (begin, *numbers), (advance, temperature) = (_bound(x) for x in (self.begin, self.advance))
        calls = [(*numbers, weights, batch) for batch in batches]
        begin.compile_ahead(calls)()
        limit = self.sampling.max_new_tokens
        if limit == 1:
            return
        advance.compile_ahead(
            [(temperature, weights, begin.abstract_result(*call), limit) for call in calls]
        )()


def _bound(partial: Any) -> tuple[Any, ...]:
    """A program and the first arguments that it is called with."""
    return partial.func, *partial.args


def make_sampler(
    graph: nnx.GraphDef,
    dtype: jnp.dtype,
    mesh: Mesh,
    sampling: Sampling,
    experts: ExpertKernel = "auto",
) -> Sampler:
    """A sampler of a decoder.

    Samplers that differ in seed, stop strings and temperatures other than 0 alone share their programs.

    Args:
        graph: the decoder's structure.
        dtype: matrices are cast to it, as in training.
        mesh: where it runs.
        sampling: how it draws.
        experts: what computes the products of experts, see models/experts.dispatch_on.
    """
    is_greedy = sampling.temperature == 0
    compiled_for = sampling._replace(seed=0, temperature=0.0 if is_greedy else 1.0, stop=())
    begin, advance, rows, seen = _programs(graph, dtype, mesh, compiled_for, experts)
    temperature = 1.0 if is_greedy else sampling.temperature
    return Sampler(
        functools.partial(begin, sampling.seed, temperature),
        functools.partial(advance, temperature),
        rows,
        seen,
        sampling,
        mesh,
    )


@functools.cache
def _programs(
    graph: nnx.GraphDef,
    dtype: jnp.dtype,
    mesh: Mesh,
    sampling: Sampling,
    experts: ExpertKernel,
) -> tuple[Callable, ...]:
    """begin, advance, rows and seen of samplers, with seed and temperature as arguments.

    Of the seed and temperature of `sampling` only counts whether the temperature is 0.
    """
    constrain = make_constrain(mesh)
    dispatch = dispatch_on(platform_of(mesh), make_spread_experts(mesh), experts)

    def cast(path: str, x: Any) -> Any:
        is_matrix = isinstance(x, jax.Array) and path.endswith((".kernel", ".embedding"))
        return x.astype(dtype) if is_matrix else x

    def model_of(weights: Weights) -> Any:
        # Cast once, not at every token: reading the weights is what a token costs.
        return merge_module(graph, {path: cast(path, x) for path, x in weights.items()})

    def begin(seed: Array, temperature: Array, weights: Weights, batch: PromptBatch) -> Drawing:
        prompt_BS, valid_BS, row_B, weight_B = (x[0] for x in batch)
        model, n = model_of(weights), sampling.samples
        room = prompt_BS.shape[1] + sampling.max_new_tokens - 1
        states_BSD, cache = model.read(prompt_BS, valid_BS, room, constrain, dispatch)
        R = len(row_B) * n
        empty = Drawing(
            cache.repeated(n) if n > 1 else cache,
            jnp.zeros((R, sampling.max_new_tokens), jnp.int32),
            jnp.zeros(R, jnp.int32),
            jnp.repeat(weight_B == 0, n),
            _keys(seed, row_B, n),
            jnp.int32(0),
        )
        last_states_RD = jnp.repeat(states_BSD[:, -1], n, axis=0)
        return _next_token(model, last_states_RD, empty, temperature, sampling)

    def advance(temperature: Array, weights: Weights, drawing: Drawing, limit: Array) -> Drawing:
        model = model_of(weights)

        def one_more(drawing: Drawing) -> Drawing:
            last_R = jax.lax.dynamic_index_in_dim(drawing.tokens_RT, drawing.step - 1, axis=1, keepdims=False)
            states_RD, cache = model.extend(last_R, drawing.cache, constrain, dispatch)
            return _next_token(model, states_RD, drawing._replace(cache=cache), temperature, sampling)

        return jax.lax.while_loop(lambda d: (d.step < limit) & ~d.done_R.all(), one_more, drawing)

    everywhere = {"out_shardings": replicated(mesh)}
    return (
        Program(jax.jit(begin)),
        Program(jax.jit(advance, donate_argnums=2)),
        jax.jit(lambda batch: (batch.row_B[0], batch.weight_B[0]), **everywhere),
        jax.jit(lambda d: (d.tokens_RT, d.length_R, d.done_R), **everywhere),
    )


def _keys(seed: Array, row_B: Array, samples: int) -> Key[Array, "R"]:
    """A key for each sample of each prompt."""
    row_R = jnp.repeat(row_B, samples)
    sample_R = jnp.tile(jnp.arange(samples), len(row_B))
    row_key_R = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(row_R)
    return jax.vmap(jax.random.fold_in)(row_key_R, sample_R)


def _next_token(
    model: Any, states_RD: Array, drawing: Drawing, temperature: Array, sampling: Sampling
) -> Drawing:
    """Draws one token for each row from the final states of the last ones."""
    key_R = jax.vmap(jax.random.fold_in, (0, None))(drawing.key_R, drawing.step)
    token_R = jnp.where(drawing.done_R, 0, draw(model.logits(states_RD) / temperature, key_R, sampling))
    ended_R = jnp.zeros_like(drawing.done_R)
    if sampling.ends:
        ended_R = jnp.isin(token_R, jnp.array(sampling.ends, jnp.int32))
    return drawing._replace(
        tokens_RT=jax.lax.dynamic_update_slice(drawing.tokens_RT, token_R[:, None], (0, drawing.step)),
        length_R=drawing.length_R + ~drawing.done_R,
        done_R=drawing.done_R | ended_R,
        step=drawing.step + 1,
    )


def generate(
    sampler: Sampler, weights: Weights, batches: Iterable[PromptBatch], tokenizer: Any | None
) -> Iterator[Generated]:
    """Responses, batch by batch; those to one prompt in order.

    Args:
        sampler: draws them.
        weights: of the decoder, by path.
        batches: prompts of this host, [1, B, ...].
        tokenizer: makes text of tokens; None: there is none, and nothing stops at a string.
    """
    sampling = sampler.sampling
    every = LOOK_EVERY if sampling.stop else sampling.max_new_tokens
    stop = StopStrings(sampling.stop, tokenizer)
    for batch in batches:
        on_device = put_batch(batch, sampler.mesh)
        row_B, weight_B = map(np.asarray, sampler.rows(on_device))
        drawing = sampler.begin(weights, on_device)
        counts_R = np.repeat(weight_B > 0, sampling.samples)
        stopped: dict[int, tuple[int, str]] = {}
        step = 1
        while True:
            tokens_RT, length_R, done_R = map(np.asarray, sampler.seen(drawing))
            if sampling.stop:
                for r in np.flatnonzero(counts_R):
                    if r not in stopped and (
                        end := stop_within(tokens_RT[r, : length_R[r]], stop, tokenizer)
                    ):
                        stopped[r] = end
            finished_R = done_R | np.isin(np.arange(len(done_R)), list(stopped))
            if finished_R.all() or step >= sampling.max_new_tokens:
                break
            step = min(step + every, sampling.max_new_tokens)
            drawing = sampler.advance(weights, _with_done(drawing, finished_R), step)
        for r in np.flatnonzero(counts_R):
            b, sample = divmod(int(r), sampling.samples)
            yield _finished(
                int(row_B[b]), sample, tokens_RT[r, : length_R[r]], stopped.get(r), sampling, tokenizer
            )


def _with_done(drawing: Drawing, finished_R: np.ndarray) -> Drawing:
    """A drawing that leaves the finished rows alone."""
    sharding = drawing.done_R.sharding
    done_R = jax.make_array_from_callback(finished_R.shape, sharding, lambda index: finished_R[index])
    return drawing._replace(done_R=done_R)


def _finished(
    row: int,
    sample: int,
    ids: np.ndarray,
    stopped: tuple[int, str] | None,
    sampling: Sampling,
    tokenizer: Any | None,
) -> Generated:
    """stopped: (tokens, text) up to a stop string."""
    if stopped is not None:
        count, text = stopped
        return Generated(row, sample, ids[:count], text, "stop")
    text = None if tokenizer is None else tokenizer.decode(ids.tolist(), skip_special_tokens=True)
    return Generated(row, sample, ids, text, "eos" if ids[-1] in sampling.ends else "length")


def continuation(
    prompt_ids: np.ndarray, response: Generated, tokenizer: Any | None, stop: tuple[str, ...]
) -> str | None:
    """What a response adds to the text of its prompt, None without a tokenizer.

    Not the text of its tokens alone: a tokenizer may drop the space that those begin with.

    Args:
        prompt_ids: the prompt's tokens.
        response: to that prompt.
        tokenizer: of both.
        stop: the strings that end a response.
    """
    if tokenizer is None:
        return None
    decode = functools.partial(tokenizer.decode, clean_up_tokenization_spaces=False)
    prompt, ids = prompt_ids.tolist(), response.ids.tolist()
    prompt_text = decode(prompt, skip_special_tokens=True)
    full_text = decode([*prompt, *ids], skip_special_tokens=True)
    if not full_text.startswith(prompt_text):  # the prompt ends within a character
        return response.text
    added = full_text[len(prompt_text) :]
    if response.finish != "stop":
        return added
    return added[: StopStrings(stop, tokenizer).place(text_of(decode, prompt, ids), len(ids))]
