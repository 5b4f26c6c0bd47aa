"""Responses drawn from a policy, token by token over a cache of what was read; compiled once a prompt length.

    begin    prompts (padded on the left) are read once, the cache repeated for each sample, the first token drawn
    advance  one token more in each row, in a loop on the device, until all rows are done or a limit is reached

Rows end with an EOS token on the device. Stop strings are text, so the host looks for them, every LOOK_EVERY tokens. A draw is keyed by
(seed, row, sample, number of the token): it depends neither on the batch nor on the mesh.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from sparsepo_jax.core.tree import Weights, merge_module
from sparsepo_jax.core.types import PromptBatch
from sparsepo_jax.models.cache import Cache
from sparsepo_jax.sharding.mesh import make_constrain, put_batch, replicated

LOOK_EVERY = 16  # tokens between two looks for stop strings


class Sampling(NamedTuple):
    """temperature 0 is greedy. top_k and top_p (applied in this order, after the temperature) leave the most probable tokens: None and 1 leave
    all. samples: of each prompt. ends: token ids that end a response (EOS). stop: strings that do, special tokens among them."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    samples: int = 1
    seed: int = 0
    ends: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()


class Generated(NamedTuple):
    """ids: up to and with the token that ended it. text: without special tokens, cut before a stop string; None without a tokenizer."""

    row: int
    sample: int
    ids: np.ndarray
    text: str | None
    finish: Literal["eos", "stop", "length"]


class Drawing(NamedTuple):
    """State of a batch, R rows = prompts x samples. Column t of tokens is drawn for t < step; a row's tokens count up to length."""

    cache: Cache
    tokens_RT: Int[Array, "R T"]
    length_R: Int[Array, "R"]
    done_R: Bool[Array, "R"]
    key_R: Key[Array, "R"]
    step: Int[Array, ""]


def kept_logits(
    logits_RV: Float[Array, "R V"], temperature: float, top_k: int | None, top_p: float
) -> Float[Array, "R V"]:
    """Logits of the distribution that is drawn from, -inf outside. top_p: the fewest tokens whose probability together reaches p (nucleus,
    Holtzman et al. 2020, 1904.09751); tokens as probable as the last one kept are kept, too."""
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
    """One token a row."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_RV, axis=-1).astype(jnp.int32)
    kept_RV = kept_logits(logits_RV, sampling.temperature, sampling.top_k, sampling.top_p)
    return jax.vmap(jax.random.categorical)(key_R, kept_RV).astype(jnp.int32)


class Sampler(NamedTuple):
    """begin(weights, batch [1, B, ...]) -> Drawing; advance(weights, drawing, limit) -> Drawing, which takes the old one's place;
    rows(batch) -> (row [B], weight [B]), and seen(drawing) -> (tokens, length, done), on every host."""

    begin: Callable[[Weights, PromptBatch], Drawing]
    advance: Callable[[Weights, Drawing, int], Drawing]
    rows: Callable[[PromptBatch], tuple[Array, Array]]
    seen: Callable[[Drawing], tuple[Array, Array, Array]]
    sampling: Sampling
    mesh: Mesh


def make_sampler(graph: nnx.GraphDef, dtype: jnp.dtype, mesh: Mesh, sampling: Sampling) -> Sampler:
    """A sampler of the decoder `graph`, whose matrices are read in `dtype`, as in training. Samplers that differ in seed, temperature (but 0) and stop
    strings alone have one program."""
    drawn = sampling.temperature > 0
    begin, advance, rows, seen = _programs(
        graph, dtype, mesh, sampling._replace(seed=0, temperature=float(drawn), stop=())
    )
    temperature = sampling.temperature if drawn else 1.0
    return Sampler(
        functools.partial(begin, sampling.seed, temperature),
        functools.partial(advance, temperature),
        rows,
        seen,
        sampling,
        mesh,
    )


@functools.cache
def _programs(graph: nnx.GraphDef, dtype: jnp.dtype, mesh: Mesh, sampling: Sampling) -> tuple[Callable, ...]:
    """begin, advance, rows and seen of samplers, with seed and temperature as arguments; those of `sampling` are not read but for temperature 0."""
    constrain = make_constrain(mesh)

    def model_of(weights: Weights) -> Any:
        # Cast once, not at every token: reading the weights is what a token costs.
        large = lambda path, x: isinstance(x, jax.Array) and path.endswith((".kernel", ".embedding"))
        return merge_module(
            graph, {path: x.astype(dtype) if large(path, x) else x for path, x in weights.items()}
        )

    def next_token(model: Any, states_RD: Array, drawing: Drawing, temperature: Array) -> Drawing:
        key_R = jax.vmap(jax.random.fold_in, (0, None))(drawing.key_R, drawing.step)
        token_R = jnp.where(drawing.done_R, 0, draw(model.logits(states_RD) / temperature, key_R, sampling))
        ended_R = (
            jnp.isin(token_R, jnp.array(sampling.ends, jnp.int32))
            if sampling.ends
            else jnp.zeros_like(drawing.done_R)
        )
        return drawing._replace(
            tokens_RT=jax.lax.dynamic_update_slice(drawing.tokens_RT, token_R[:, None], (0, drawing.step)),
            length_R=drawing.length_R + ~drawing.done_R,
            done_R=drawing.done_R | ended_R,
            step=drawing.step + 1,
        )

    def begin(seed: Array, temperature: Array, weights: Weights, batch: PromptBatch) -> Drawing:
        prompt_BS, valid_BS, row_B, weight_B = (x[0] for x in batch)
        model, n = model_of(weights), sampling.samples
        states_BSD, cache = model.read(
            prompt_BS, valid_BS, prompt_BS.shape[1] + sampling.max_new_tokens - 1, constrain
        )
        fold = jax.vmap(jax.random.fold_in)
        row_R, sample_R = jnp.repeat(row_B, n), jnp.tile(jnp.arange(n), len(row_B))
        key_R = fold(jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(row_R), sample_R)
        R = len(row_R)
        empty = Drawing(
            cache.repeated(n) if n > 1 else cache,
            jnp.zeros((R, sampling.max_new_tokens), jnp.int32),
            jnp.zeros(R, jnp.int32),
            jnp.repeat(weight_B == 0, n),
            key_R,
            jnp.int32(0),
        )
        return next_token(model, jnp.repeat(states_BSD[:, -1], n, axis=0), empty, temperature)

    def advance(temperature: Array, weights: Weights, drawing: Drawing, limit: Array) -> Drawing:
        model = model_of(weights)

        def one_more(drawing: Drawing) -> Drawing:
            last_R = jax.lax.dynamic_index_in_dim(drawing.tokens_RT, drawing.step - 1, axis=1, keepdims=False)
            states_RD, cache = model.extend(last_R, drawing.cache, constrain)
            return next_token(model, states_RD, drawing._replace(cache=cache), temperature)

        return jax.lax.while_loop(lambda d: (d.step < limit) & ~d.done_R.all(), one_more, drawing)

    everywhere = {"out_shardings": replicated(mesh)}
    return (
        jax.jit(begin),
        jax.jit(advance, donate_argnums=2),
        jax.jit(lambda batch: (batch.row_B[0], batch.weight_B[0]), **everywhere),
        jax.jit(lambda d: (d.tokens_RT, d.length_R, d.done_R), **everywhere),
    )


def generate(
    sampler: Sampler, weights: Weights, batches: Iterable[PromptBatch], tokenizer: Any | None
) -> Iterator[Generated]:
    """Responses to the prompts of host batches [1, B, ...], batch by batch; of a prompt's samples in order."""
    sampling = sampler.sampling
    every = LOOK_EVERY if sampling.stop else sampling.max_new_tokens
    stop = StopStrings(sampling.stop, tokenizer)
    for batch in batches:
        on_device = put_batch(batch, sampler.mesh)
        row_B, weight_B = map(np.asarray, sampler.rows(on_device))
        drawing = sampler.begin(weights, on_device)
        stopped: dict[int, tuple[int, str]] = {}
        step = 1
        while True:
            tokens_RT, length_R, done_R = map(np.asarray, sampler.seen(drawing))
            if sampling.stop:
                for r in range(len(tokens_RT)):
                    if weight_B[r // sampling.samples] and r not in stopped:
                        found = stop_within(tokens_RT[r, : length_R[r]], stop, tokenizer)
                        if found is not None:
                            stopped[r] = found
            finished_R = done_R | np.isin(np.arange(len(done_R)), list(stopped))
            if finished_R.all() or step >= sampling.max_new_tokens:
                break
            step = min(step + every, sampling.max_new_tokens)
            sharding = drawing.done_R.sharding
            held = jax.make_array_from_callback(finished_R.shape, sharding, lambda index: finished_R[index])
            drawing = sampler.advance(weights, drawing._replace(done_R=held), step)
        for r in range(len(tokens_RT)):
            b, n = divmod(r, sampling.samples)
            if not weight_B[b]:
                continue
            if r in stopped:
                count, text = stopped[r]
                yield Generated(int(row_B[b]), n, tokens_RT[r, :count], text, "stop")
                continue
            ids = tokens_RT[r, : length_R[r]]
            text = None if tokenizer is None else tokenizer.decode(ids.tolist(), skip_special_tokens=True)
            yield Generated(int(row_B[b]), n, ids, text, "eos" if ids[-1] in sampling.ends else "length")


def continuation(
    prompt_ids: np.ndarray, one: Generated, tokenizer: Any | None, stop: tuple[str, ...]
) -> str | None:
    """What a response adds to the text of its prompt. Not the text of its tokens alone: a tokenizer may drop the space that those begin with."""
    if tokenizer is None:
        return None
    decode = functools.partial(tokenizer.decode, clean_up_tokenization_spaces=False)
    before, whole = (
        decode(ids, skip_special_tokens=True)
        for ids in (prompt_ids.tolist(), [*prompt_ids.tolist(), *one.ids.tolist()])
    )
    if not whole.startswith(before):  # the prompt's end is half of a character
        return one.text
    if one.finish != "stop":
        return whole[len(before) :]
    text = _text_of(decode, prompt_ids.tolist(), one.ids.tolist())
    return whole[len(before) :][: StopStrings(stop, tokenizer).place(text, len(one.ids))]


Text = Callable[[int, bool], str]
"""Text of the first so many tokens of a response, without special tokens or (True) with them."""


def _text_of(decode: Callable[..., str], prompt: list[int], ids: list[int]) -> Text:
    def text(count: int, special: bool) -> str:
        begin = len(decode(prompt, skip_special_tokens=not special)) if prompt else 0
        return decode([*prompt, *ids[:count]], skip_special_tokens=not special)[begin:]

    return text


class StopStrings:
    """Strings that end a response. One that holds a special token (<|im_end|>) is looked for in the text with special tokens; any other one in the text
    without them, so that "|" does not end at <|im_end|>."""

    def __init__(self, stop: tuple[str, ...], tokenizer: Any):
        special = [
            token.content
            for token in getattr(tokenizer, "added_tokens_decoder", {}).values()
            if token.special
        ]
        self._special = tuple(string for string in stop if any(token in string for token in special))
        self._plain = tuple(string for string in stop if string not in self._special)

    def within(self, text: Text, count: int) -> bool:
        """Whether one is in the text of the first `count` tokens."""
        return any(string in text(count, False) for string in self._plain) or any(
            string in text(count, True) for string in self._special
        )

    def place(self, text: Text, count: int) -> int | None:
        """Where the first one begins, in the text without special tokens; None if there is none."""
        plain, places = text(count, False), []
        places += [plain.index(string) for string in self._plain if string in plain]
        if self._special:
            written = text(count, True)
            places += [
                self._without_special(text, count, written.index(string))
                for string in self._special
                if string in written
            ]
        return min(places, default=None)

    def _without_special(self, text: Text, count: int, place: int) -> int:
        """A place in the text with special tokens as one in the text without: that of the last token which ends before it, and what is left."""
        whole = next(tokens for tokens in range(count, -1, -1) if len(text(tokens, True)) <= place)
        return len(text(whole, False)) + place - len(text(whole, True))


def stop_within(ids: np.ndarray, stop: StopStrings, tokenizer: Any) -> tuple[int, str] | None:
    """(tokens up to the one that completes the first stop string, the text before it), or None."""
    text = _text_of(tokenizer.decode, [], ids.tolist())
    if not stop.within(text, len(ids)):
        return None
    count = next(count for count in range(1, len(ids) + 1) if stop.within(text, count))
    return count, text(count, False)[: stop.place(text, count)]
