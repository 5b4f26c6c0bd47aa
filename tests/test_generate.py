"""Generation against transformers, and what a draw must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from helpers.parity import load_ours, make_theirs, their_greedy_tokens
from helpers.prompts import prompts, run
from helpers.quick import DIFFERENT, named_slow_but
from helpers.tiny import CONFIGS, LLAMA
from sparsepo_jax.generate.sampler import Sampling, generate, kept_logits, make_sampler
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.sharding.mesh import make_mesh, put_batch
from sparsepo_jax.sharding.rules import weight_shardings


@pytest.fixture(scope="module")
def one_device():
    return jax.make_mesh(
        (1, 1, 1),
        ("data", "fsdp", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=jax.devices()[:1],
    )


class Letters:
    """A tokenizer of one letter a token."""

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(97 + i) for i in ids)


@pytest.mark.parametrize(
    "config", named_slow_but((*DIFFERENT, "mistral", "gptj, part of the dims rotated"), CONFIGS)
)
def test_greedy_tokens_equal_transformers(config, tmp_path, one_device):
    model = make_theirs(config)
    model.save_pretrained(tmp_path)
    _, graph, weights = load_ours(tmp_path)
    expected = their_greedy_tokens(model, prompts(), 12)
    generated = run(graph, weights, one_device, Sampling(12, temperature=0.0))
    assert [response.row for response in generated] == list(range(8)) and all(
        response.finish == "length" for response in generated
    )
    np.testing.assert_array_equal(np.stack([response.ids for response in generated]), expected)


@pytest.fixture(scope="module")
def model():
    from flax import nnx

    from sparsepo_jax.core.tree import split_module

    config = LLAMA | {"initializer_range": 0.3}
    return split_module(Decoder(spec_from_hf(config), rngs=nnx.Rngs(0)))


def test_a_response_ends_with_its_first_eos(model, one_device):
    free = run(*model, one_device, Sampling(12, seed=1))
    ended = run(*model, one_device, Sampling(12, seed=1, ends=(4, 9)))
    assert any(response.finish == "eos" for response in ended) and any(
        response.finish == "length" for response in ended
    )
    for response, other in zip(free, ended, strict=True):
        hits = np.flatnonzero(np.isin(response.ids, (4, 9)))
        np.testing.assert_array_equal(other.ids, response.ids[: hits[0] + 1] if len(hits) else response.ids)
        assert other.finish == ("eos" if len(hits) else "length")


def test_stop_strings_cut_the_text_and_end_the_row(model, one_device):
    """24 tokens: the host looks at them in two portions. Rows that have stopped do not change those that
    have not."""
    free = run(*model, one_device, Sampling(24, seed=1), tokenizer=Letters())
    stop = (free[0].text[3:5], free[1].text[20:22])
    stopped = run(*model, one_device, Sampling(24, seed=1, stop=stop), tokenizer=Letters())
    assert stopped[0].finish == stopped[1].finish == "stop" and any(
        response.finish == "length" for response in stopped
    )
    for response, other in zip(free, stopped, strict=True):
        ends = [response.text.index(s) for s in stop if s in response.text]
        if ends:
            assert other.text == response.text[: min(ends)] and len(other.ids) == min(ends) + 2
        else:
            assert other.text == response.text and other.finish == "length"


def test_draws_depend_on_seed_row_and_sample_alone(model, one_device):
    three_each = run(*model, one_device, Sampling(6, seed=5, samples=3))
    assert [(response.row, response.sample) for response in three_each] == [
        (row, n) for row in range(8) for n in range(3)
    ]
    fewer = run(*model, one_device, Sampling(6, seed=5, samples=2), batch=prompts(rows=3))
    by_key = {(response.row, response.sample): response.ids for response in three_each}
    for response in fewer:
        np.testing.assert_array_equal(response.ids, by_key[response.row, response.sample])
    first = [tuple(response.ids) for response in three_each]
    assert len(set(first[:3])) == 3, "samples of a prompt differ"
    assert first != [
        tuple(response.ids) for response in run(*model, one_device, Sampling(6, seed=6, samples=3))
    ]


@pytest.mark.parametrize("axes", [pytest.param((8, 1, 1), marks=pytest.mark.slow), (2, 2, 2)])
def test_a_mesh_draws_what_one_device_draws(model, one_device, axes):
    graph, weights = model
    sampling = Sampling(6, seed=2, samples=2, top_p=0.9)
    mesh = make_mesh(*axes)
    shardings = weight_shardings({path: x.shape for path, x in weights.items()}, mesh)
    on_mesh = {path: jax.device_put(x, shardings[path]) for path, x in weights.items()}
    with jax.set_mesh(mesh):
        generated = run(graph, on_mesh, mesh, sampling)
        keys = (
            make_sampler(graph, jnp.dtype(jnp.float32), mesh, sampling)
            .begin(on_mesh, put_batch(prompts(), mesh))
            .cache.stacks["blocks"]
            .keys_LBCKH
        )
    assert keys.addressable_shards[0].data.size <= keys.size / (axes[0] * axes[1]), (
        "each device holds the cache of its own rows"
    )
    for response, other in zip(run(graph, weights, one_device, sampling), generated, strict=True):
        np.testing.assert_array_equal(response.ids, other.ids)


def test_a_prompt_length_is_compiled_once(model, one_device):
    sampler = make_sampler(model[0], jnp.dtype(jnp.float32), one_device, Sampling(4, stop=("zzz",)))
    for _ in range(3):
        list(generate(sampler, model[1], [prompts(), prompts()], Letters()))
    assert len(sampler.begin.func) == len(sampler.advance.func) == 1


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0.7, None, 1.0), (1.0, 5, 1.0), (1.0, None, 0.6), (1.5, 12, 0.8), (1.0, 99, 0.01)],
)
def test_the_distribution_is_that_of_transformers(temperature, top_k, top_p):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(0).normal(size=(6, 31)).astype(np.float32) * 2
    theirs = TemperatureLogitsWarper(temperature)(None, torch.tensor(logits))
    if top_k is not None:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(None, theirs)
    np.testing.assert_allclose(
        kept_logits(jnp.asarray(logits), temperature, top_k, top_p), theirs.numpy(), rtol=1e-6
    )


def test_sampling_follows_the_distribution(model):
    """20,000 draws from three tokens of probability 0.5, 0.3, 0.2; four standard errors."""
    from sparsepo_jax.generate.sampler import draw

    n, probability = 20_000, np.array([0.5, 0.3, 0.2])
    keys = jax.random.split(jax.random.key(0), n)
    tokens = np.asarray(draw(jnp.broadcast_to(jnp.log(probability), (n, 3)), keys, Sampling(1)))
    share = np.bincount(tokens, minlength=3) / n
    assert np.all(np.abs(share - probability) < 4 * np.sqrt(probability * (1 - probability) / n))
