"""Decoders whose layers differ in shape: scans over the repeating order give what layer after layer gives."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.parity import IDS as NUMPY_IDS
from helpers.parity import VALID, our_logits
from helpers.quick import slow_but
from helpers.tiny import GEMMA3, InMemory, gathered, random_batch
from helpers.tolerances import GRADIENT, TOKEN
from sparsepo_jax.core.tree import merge_module, split_module
from sparsepo_jax.models.adapter import Adapter
from sparsepo_jax.models.block import Block
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.decoder_spec import BlockShape, choose_projections
from sparsepo_jax.models.export import save_peft
from sparsepo_jax.models.layer_scan import Stacks
from sparsepo_jax.models.layers import Hooks, LayerFactory
from sparsepo_jax.models.lora import Lora, dequantized, hold_base, split_adapters
from sparsepo_jax.models.rotary import LayerTurns, rotary_frequencies
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.models.stacks import scans_of
from sparsepo_jax.models.weights import to_hf
from sparsepo_jax.ops.attention import Given, reach_of
from sparsepo_jax.sharding.mesh import make_mesh
from sparsepo_jax.sharding.rules import weight_shardings

ORDER = (1, 1, 0, 1, 1, 0, 1)  # two repetitions and a remainder


def two_shapes():
    """Gemma 3, whose layers that see everything have other heads and a wider MLP; no such model exists."""
    spec = spec_from_hf(GEMMA3)
    everywhere, local = spec.kinds
    rotation = replace(everywhere.rotation, dim=12)
    shape = BlockShape(num_kv_heads=1, head_dim=12, mlp_width=40)
    kinds = (replace(everywhere, rotation=rotation, shape=shape), local)
    return replace(spec, num_layers=len(ORDER), kinds=kinds, kind_of_layer=ORDER)


SPEC = two_shapes()
IDS = jnp.asarray(NUMPY_IDS)
POSITIONS = jnp.broadcast_to(jnp.arange(IDS.shape[1]), IDS.shape)
REACH = Given(jnp.tril(jnp.ones((len(IDS), IDS.shape[1], IDS.shape[1]), bool)), POSITIONS, POSITIONS)
LORA = Lora(("attention.query", "attention.value", "down"), rank=2, alpha=3.0, dropout=0.5)


@functools.cache
def model(lora=None, **settings):
    graph, weights = split_module(Decoder(SPEC, lora=lora, rngs=nnx.Rngs(0), **settings))
    return graph, {
        path: x + 0.1 * jax.random.normal(jax.random.key(n), x.shape)
        for n, (path, x) in enumerate(weights.items())
    }


def layer_after_layer(weights, reach, ids_BS, positions_BS, lora=None, drop=None):
    """Final states without a scan and without stacks: each block alone, with the weights of its layer."""
    decoder = merge_module(model(lora)[0], weights)
    x_BSD = decoder.embed(ids_BS) * jnp.asarray(SPEC.embed_scale, jnp.float32)
    for layer, kind in enumerate(SPEC.kind_of_layer):
        block, own = split_module(Block(LayerFactory(SPEC.of_layer(layer), jnp.float32, lora, nnx.Rngs(0))))
        for path in own:
            stack, place = SPEC.place(f"blocks.{path}", layer)
            own[path] = weights[stack][place]
        hooks = Hooks(
            keep=lambda name, x: None,
            remember=lambda k, v: (k, v),
            drop=functools.partial(drop, layer) if drop else lambda name, x: x,
            reach=reach,
            window=SPEC.kinds[kind].window,
        )
        turns = LayerTurns(jnp.asarray(rotary_frequencies(SPEC.kinds[kind].rotation)))
        x_BSD = merge_module(block, own)(x_BSD, positions_BS, turns, hooks)
    return decoder.final_norm(x_BSD)


def test_the_order_is_run_in_as_few_blocks_as_it_repeats():
    def layers(order):
        return [[list(stack.layers) for stack in scan] for scan in scans_of(order)]

    assert layers(ORDER) == [[[0, 3], [1, 4], [2, 5]], [[6]]]
    assert layers((0, 0, 1, 1, 1)) == [[[0, 1]], [[2, 3, 4]]]
    gemma = scans_of((1, 1, 1, 1, 1, 0) * 10)
    assert [len(scan) for scan in gemma] == [6] and {len(stack.layers) for stack in gemma[0]} == {10}
    rng = np.random.default_rng(0)
    for _ in range(50):
        order = tuple(map(int, rng.integers(0, 3, rng.integers(1, 40))))
        run = [
            stack.layers[n] for scan in scans_of(order) for n in range(len(scan[0].layers)) for stack in scan
        ]
        assert run == list(range(len(order)))
        assert all(order[layer] == s.kind for scan in scans_of(order) for s in scan for layer in s.layers)


def test_weights_have_the_shapes_of_their_layers():
    _, weights = model()
    assert weights["blocks.layers_0.attention.key.kernel"].shape == (2, 16, 2 * 8)
    assert weights["blocks.layers_2.attention.key.kernel"].shape == (2, 16, 1 * 12)
    assert weights["blocks.layers_6.up.kernel"].shape == (1, 16, 24)
    assert SPEC.parameter_count() == sum(x.size for x in weights.values())
    matrices = sum(x.size for path, x in weights.items() if path.endswith((".kernel", ".embedding")))
    assert SPEC.matrix_count() == matrices
    adapters = split_adapters(model(LORA)[1])[1]
    assert SPEC.adapter_parameter_count(LORA.targets, LORA.rank) == sum(x.size for x in adapters.values())


@pytest.mark.parametrize(
    "settings",
    slow_but(
        [{"packed": True}],
        [{}, {"remat": "norms"}, {"remat": "everything"}, {"unroll": True}, {"packed": True}],
    ),
)
def test_scans_give_what_layer_after_layer_gives(settings):
    """Values and gradients. Kills: layers out of order, a kind's rotation or window at another kind's."""
    settings = dict(settings)
    unroll, packed = settings.pop("unroll", False), settings.pop("packed", False)
    ids, positions, reach = IDS, POSITIONS, REACH
    if packed:
        packing = random_batch(rows=2).packing
        ids, positions, reach = packing.ids_RS, packing.positions_RS, reach_of(packing, "blocks")
    graph, weights = model(**settings)

    def scanned(weights):
        return jnp.sum(merge_module(graph, weights)(ids, positions, reach, unroll=unroll)[0] ** 2)

    def alone(weights):
        return jnp.sum(layer_after_layer(weights, reach, ids, positions) ** 2)

    value, gradient = jax.jit(jax.value_and_grad(scanned))(weights)
    expected_value, expected = jax.jit(jax.value_and_grad(alone))(weights)
    np.testing.assert_allclose(value, expected_value, rtol=TOKEN)
    for path in weights:
        scale = np.abs(expected[path]).max()
        assert scale > 0, path
        np.testing.assert_allclose(gradient[path], expected[path], atol=GRADIENT * scale, err_msg=path)


@pytest.mark.slow
def test_dropout_draws_other_numbers_in_each_layer():
    """At the place of the layer's number and the projection's, as with equal layers."""
    graph, weights = model(LORA)
    keys = jax.random.split(jax.random.key(7), IDS.shape)
    states, _ = merge_module(graph, weights)(IDS, POSITIONS, REACH, dropout_key_BS=keys)
    dropout = merge_module(graph, weights)._dropout

    def drop(layer, name, x):
        return dropout(jnp.asarray(layer), keys)(name, x)

    expected = layer_after_layer(weights, REACH, IDS, POSITIONS, LORA, drop)
    np.testing.assert_allclose(states, expected, atol=TOKEN)


def test_a_cache_goes_on_where_the_prompt_ended():
    """Token after token after a padded prompt gives the states of the whole sequence at once."""
    graph, weights = model()
    decoder = merge_module(graph, weights)
    valid = VALID.copy()
    valid[1, :3] = False
    positions = jnp.asarray(np.maximum(np.cumsum(valid, axis=1) - 1, 0))
    attend = jnp.asarray(np.tril(np.ones((9, 9), bool)) & valid[:, None])
    whole, _ = decoder(IDS, positions, Given(attend, positions, positions))
    states, cache = decoder.read(IDS[:, :6], jnp.asarray(valid[:, :6]), 9)
    np.testing.assert_allclose(states[:, -1], whole[:, 5], atol=TOKEN)
    cache = cache.repeated(2)
    for column in (6, 7, 8):
        states, cache = decoder.extend(jnp.repeat(IDS[:, column], 2), cache)
        np.testing.assert_allclose(states, np.repeat(whole[:, column], 2, axis=0), atol=2 * TOKEN)


def test_tensors_of_layers_come_back_bit_for_bit():
    _, weights = model()
    tensors = dict(to_hf(SPEC, weights))
    assert tensors["model.layers.5.self_attn.k_proj.weight"].shape == (12, 16)
    np.testing.assert_array_equal(
        tensors["model.layers.4.mlp.up_proj.weight"], weights["blocks.layers_1.up.kernel"][1].T
    )
    again = gathered(SPEC, InMemory(tensors), weights)
    assert all(np.array_equal(again[path], weights[path]) for path in weights)


def test_adapters_come_back_from_peft_s_form(tmp_path):
    _, adapters = split_adapters(model(LORA)[1])
    save_peft(tmp_path, SPEC, {path: np.asarray(x) for path, x in adapters.items()}, LORA, {}, "card", None)
    adapter = Adapter(str(tmp_path), SPEC, "policy.adapter")
    assert adapter.lora.targets == LORA.targets
    again = adapter.weights()
    assert again.keys() == adapters.keys()
    assert all(np.array_equal(again[path], adapters[path]) for path in adapters)
    parts = {(part.path, part.place) for part, _ in adapter.merge_parts()}
    assert len(parts) == 3 * len(ORDER) and ("blocks.layers_2.down.kernel", 1) in parts


@pytest.mark.slow
def test_kept_activations_are_in_the_order_of_the_layers():
    graph, weights = model()
    decoder = merge_module(graph, weights)
    _, kept = decoder(IDS, POSITIONS, REACH, tap=lambda name, x: x.mean(axis=-1))
    _, states = decoder(IDS, POSITIONS, REACH, tap=lambda name, x: x if name == "block_out" else None)
    assert kept["q"].shape == (len(ORDER), *IDS.shape)
    np.testing.assert_allclose(kept["block_out"], states["block_out"].mean(axis=-1), atol=TOKEN)
    np.testing.assert_allclose(decoder.final_norm(states["block_out"][-1]), kept_final(decoder), atol=TOKEN)
    for layer in range(len(ORDER) - 1):  # what a block writes, the next one reads
        normed = block_norm(decoder, layer + 1)(states["block_out"][layer])
        np.testing.assert_allclose(kept["attn_norm"][layer + 1], normed.mean(axis=-1), atol=TOKEN)
    with pytest.raises(ValueError, match="the activation .* differs in size between layers"):
        decoder(IDS, POSITIONS, REACH, tap=lambda name, x: x)


def kept_final(decoder):
    return decoder(IDS, POSITIONS, REACH)[0]


def block_norm(decoder, layer):
    """The input norm of a layer's attention."""
    path, place = SPEC.place("blocks.attn_norm.scale", layer)
    norm = LayerFactory(SPEC, jnp.float32, None, nnx.Rngs(0)).norm()
    norm.scale = nnx.Param(split_module(decoder)[1][path][place])
    return norm


@pytest.mark.parametrize("held", slow_but(["nf4"], ["int8", "nf4"]))
def test_a_base_in_fewer_bits_computes_as_its_numbers_do(held):
    graph, weights = model()
    small = hold_base(weights, held)
    assert sum(not isinstance(x, jax.Array) for x in small.values()) == 4 * 7, "all projections of all stacks"
    numbers = {path: dequantized(x) for path, x in small.items()}
    np.testing.assert_allclose(
        our_logits(graph, small, IDS, VALID)[0], our_logits(graph, numbers, IDS, VALID)[0], atol=TOKEN
    )


def test_every_weight_has_a_sharding():
    graph, weights = model(LORA)
    mesh = make_mesh(2, 2, 2)
    shardings = weight_shardings({path: x.shape for path, x in weights.items()}, mesh)
    assert not shardings["blocks.layers_2.down.kernel"].is_fully_replicated
    on_mesh = {path: jax.device_put(x, shardings[path]) for path, x in weights.items()}
    np.testing.assert_allclose(
        our_logits(graph, on_mesh, IDS, VALID)[0], our_logits(graph, weights, IDS, VALID)[0], atol=TOKEN
    )


def test_equal_layers_lie_in_one_stack():
    """Their weight paths are what they were, whatever windows and rotations they have."""
    spec = spec_from_hf(GEMMA3)
    decoder = Decoder(spec, rngs=nnx.Rngs(0))
    assert not isinstance(decoder.blocks, Stacks)
    assert split_module(decoder)[1]["blocks.up.kernel"].shape == (3, 16, 24)
    assert spec.place("blocks.up.kernel", 2) == ("blocks.up.kernel", 2)


def test_a_pattern_chooses_in_all_shapes():
    assert choose_projections(("query", "down"), SPEC) == ("attention.query", "down")
