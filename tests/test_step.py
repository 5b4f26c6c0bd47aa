"""The update: the same whatever the layout, the micro-steps, the mesh and the padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from helpers.quick import slow_but
from helpers.tiny import CONFIGS, GPT2, packed, random_batch, random_rows
from helpers.tolerances import GRADIENT, SHARDED, TOKEN, UPDATE
from sparsepo_jax.core.tokens import log_ratio
from sparsepo_jax.core.tree import split_module
from sparsepo_jax.core.types import TokenMasks
from sparsepo_jax.data.packing import Shape, pack, sizes_of
from sparsepo_jax.data.ragged import ragged
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.losses.quantiles import aot_loss
from sparsepo_jax.losses.token_weighted import (
    d2po_loss,
    dpo_loss,
    ldpo_loss,
    sampo_loss,
    sparsepo_loss,
    summed_log_ratio,
    tdpo1_loss,
)
from sparsepo_jax.masks.activation import GROUPS
from sparsepo_jax.masks.learned import NetSettings
from sparsepo_jax.masks.source import activation_source, learned_source
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.ops.logit_blocks import HeadBlocks
from sparsepo_jax.sharding.mesh import make_constrain, make_mesh, make_place_head, make_spread, put_batch
from sparsepo_jax.sharding.rules import state_shardings
from sparsepo_jax.train.anchor import RUNNING, anchor_sums
from sparsepo_jax.train.forward import response_log_ratio
from sparsepo_jax.train.optimizer import (
    adafactor_rule,
    adamw_rule,
    lion_rule,
    make_optimizer,
    muon_rule,
    rmsprop_rule,
)
from sparsepo_jax.train.problem import Problem
from sparsepo_jax.train.step import make_pair_loss, make_pair_scores, make_sft_loss, make_update, start_state

NET = NetSettings(
    net="simple_all",
    num_layers=2,
    width=16,
    norm_eps=1e-5,
    init="ones",
    layer_activation="relu",
    mixer_activation="relu",
    dropout=0.0,
)


def make_source(**changes):
    of_net = {name: changes.pop(name) for name in NetSettings._fields if name in changes}
    placing = {"sharing": "common", "on": "both", "normalised": False} | changes
    return learned_source(NET._replace(**of_net), **placing)


@functools.cache
def setup():
    """(graph, policy, reference, masks) with policy and reference apart."""
    spec = spec_from_hf(GPT2 | {"initializer_range": 0.3})
    graph, policy = split_module(Decoder(spec, rngs=nnx.Rngs(0)))
    reference = split_module(Decoder(spec, rngs=nnx.Rngs(1)))[1]
    return graph, policy, reference, make_source(num_layers=spec.num_layers).init(nnx.Rngs(2))


def tiny_problem(graph, source=None, **settings):
    objective = functools.partial(sparsepo_loss, beta=0.5, l1_reward=0.01, l1_kl=0.02, shared=True)
    return Problem(
        graph,
        graph,
        source or make_source(),
        objective,
        seed=0,
        head_blocks=HeadBlocks(tokens=7, vocabulary=12),
        **settings,
    )


def loss_and_gradient(problem, batch, weights, reference):
    summed = make_pair_loss(problem)
    (loss, (metrics, *_)), gradient = jax.jit(jax.value_and_grad(summed, has_aux=True))(
        weights, reference, batch, jnp.int32(0)
    )
    return loss, metrics, gradient


def assert_same_tree(ours, expected, tolerance):
    """Relative to the largest entry of each tensor. What is zero in truth (the gradient of a key's bias) is
    rounding alone: its measure is the tree's largest entry."""
    largest = max(float(np.abs(b).max()) for b in jax.tree.leaves(expected))
    for path, (a, b) in enumerate(zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True)):
        scale = max(float(np.abs(b).max()), 1e-3, 1e-2 * largest)
        np.testing.assert_allclose(
            np.asarray(a) / scale, np.asarray(b) / scale, atol=tolerance, err_msg=str(path)
        )


def two_sources(num_layers):
    """A reward mask from activations, a KL mask from states."""
    sources = (
        activation_source(points=GROUPS, mapping="zn_rescale", on="reward", normalised=False),
        make_source(num_layers=num_layers, on="kl"),
    )

    def keep(name, x, at_RM):
        kept = tuple(source.keep(name, x, at_RM) for source in sources)
        return None if kept == (None, None) else kept

    def make(weights, kept, *rest):
        logits = {"logits": kept["logits"]}
        kept_by_source = [
            {name: x[n] for name, x in kept.items() if name != "logits" and x[n] is not None} | logits
            for n in (0, 1)
        ]
        return TokenMasks(
            sources[0].make({}, kept_by_source[0], *rest).reward_BPT,
            sources[1].make(weights, kept_by_source[1], *rest).kl_BPT,
        )

    return sources[1]._replace(keep=keep, make=make)


# Memories decay by differences of sums of logarithms, which round as the sums grow: at other places of a row
# they are others.
TOLERANCES = {"qwen3.5": GRADIENT}


@functools.cache
def family_setup(name):
    """(graph, the same with remat, weights, reference, masks made in both ways)."""
    spec = spec_from_hf(CONFIGS[name] | {"initializer_range": 0.3})

    def graph_of(remat):
        return nnx.split(nnx.eval_shape(lambda: Decoder(spec, remat=remat, rngs=nnx.Rngs(0))), nnx.Param)[0]

    policy, reference = (split_module(Decoder(spec, rngs=nnx.Rngs(seed)))[1] for seed in (0, 1))
    # As it starts, a LayerNorm's output has mean 0, and an activation mask would be made of its rounding.
    reference = {
        path: x + 0.3 * jax.random.normal(jax.random.key(n), x.shape) if "norm" in path else x
        for n, (path, x) in enumerate(reference.items())
    }
    source = two_sources(spec.num_layers)
    weights = {"policy": policy, "masks": source.init(nnx.Rngs(2))}
    return graph_of("nothing"), graph_of("everything"), weights, reference, source


@functools.cache
def row_per_response(name):
    graph, _, weights, reference, source = family_setup(name)
    return loss_and_gradient(
        tiny_problem(graph, source, attention="xla"), random_batch(shared=False, rows=4), weights, reference
    )


@pytest.mark.parametrize("remat", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", slow_but(["gpt2"], CONFIGS))
def test_prompt_once_gives_what_a_row_per_response_gives(name, remat):
    """Several pairs in a row of tokens, and a row for each response that holds nothing else, by the plain
    kernel and without remat. With masks from states and from activations. Kills: a response that sees the
    other one, or another pair; positions that go on counting over it; a window counted in columns."""
    graph, with_remat, weights, reference, source = family_setup(name)
    ours = loss_and_gradient(
        tiny_problem(with_remat if remat else graph, source), random_batch(spare=3), weights, reference
    )
    expected = row_per_response(name)
    np.testing.assert_allclose(ours[0], expected[0], atol=TOKEN)
    assert_same_tree(ours[2], expected[2], TOLERANCES.get(name, TOKEN))
    assert all(np.abs(gradient).max() > 1e-4 for path, gradient in expected[2]["masks"].items())


@pytest.mark.slow
@pytest.mark.parametrize("mesh_shape", [(8, 1, 1), (2, 2, 2), (1, 4, 2)])
@pytest.mark.parametrize(
    "name",
    [
        "gptj, part of the dims rotated",
        "llama 3",
        "gemma2, softcaps",
        "gemma3, local and global layers",
        "qwen3.5",
    ],
)
def test_prompt_once_on_a_mesh_gives_what_a_row_per_response_gives_on_one_device(name, mesh_shape):
    graph, _, weights, reference, source = family_setup(name)
    mesh = make_mesh(*mesh_shape)
    gather, scatter = make_place_head(mesh)
    problem = tiny_problem(graph, source, constrain=make_constrain(mesh), spread=make_spread(mesh))
    problem = problem._replace(
        head_blocks=HeadBlocks(tokens=7, vocabulary=12, shards=mesh_shape[2], gather=gather, scatter=scatter)
    )

    def place(tree):
        return jax.device_put(tree, state_shardings(tree, mesh))

    batch = put_batch(
        jax.tree.map(lambda x: x[None], random_batch(8, rows=mesh_shape[0] * mesh_shape[1], spare=3)), mesh
    )
    with jax.set_mesh(mesh):
        ours = loss_and_gradient(
            problem, jax.tree.map(lambda x: x[0], batch), place(weights), place(reference)
        )
    plain = tiny_problem(graph, source, attention="xla")
    expected = loss_and_gradient(plain, random_batch(8, shared=False, rows=8), weights, reference)
    np.testing.assert_allclose(ours[0], expected[0], rtol=TOKEN)
    assert_same_tree(ours[2], expected[2], TOLERANCES.get(name, TOKEN))


def test_padding_is_inert():
    """More padding, other ids in it, room for longer responses, and a filler pair change neither loss nor
    gradient."""
    graph, policy, reference, masks = setup()
    weights, batch = {"policy": policy, "masks": masks}, random_batch()
    wide = packed([*random_rows(), ([5], [6], [7])], spare=11, response_length=12)
    packing, rng = wide.packing, np.random.default_rng(9)
    gone = packing.sequence_RS == 4  # the filler's positions, as if it were not there
    padding = gone | (packing.sequence_RS < 0)
    tokens = packing.valid_RM & (np.cumsum(packing.valid_RM, axis=1) <= batch.packing.valid_RM.sum())
    wide = wide._replace(
        weight_B=np.array([1, 1, 1, 1, 0], np.float32),
        valid_BPT=wide.valid_BPT & (np.arange(5) < 4)[:, None, None],
        packing=packing._replace(
            ids_RS=np.where(padding, rng.integers(0, 31, padding.shape), packing.ids_RS).astype(np.int32),
            valid_RM=tokens,
            sequence_RS=np.where(padding, -1, packing.sequence_RS),
            label_RM=np.where(tokens, packing.label_RM, 10**6),
        ),
    )
    assert not np.array_equal(wide.packing.ids_RS, packing.ids_RS)
    problem = tiny_problem(graph)
    (loss, metrics, gradient), (wide_loss, wide_metrics, wide_gradient) = (
        loss_and_gradient(problem, b, weights, reference) for b in (batch, wide)
    )
    np.testing.assert_allclose(wide_loss, loss, atol=TOKEN)
    assert_same_tree(wide_metrics, metrics, TOKEN)
    assert_same_tree(wide_gradient, gradient, GRADIENT)


@functools.cache
def update_on(mesh_shape, micro_steps, objective=None, adds=False):
    """(mesh, optimizer, jitted update) for a number of micro-steps, so that tests share the program."""
    graph = setup()[0]
    mesh = jax.make_mesh(
        mesh_shape,
        ("data", "fsdp", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=jax.devices()[: int(np.prod(mesh_shape))],
    )
    rate = optax.constant_schedule(1e-3)
    optimizer = make_optimizer(
        adamw_rule(0.9, 0.999, 1e-2),
        policy_schedule=rate,
        policy_decay=0.0,
        mask_schedule=rate,
        mask_decay=0.01,
        clip_norm=1.0,
    )
    gather, scatter = make_place_head(mesh)
    blocks = HeadBlocks(tokens=7, vocabulary=12, shards=mesh_shape[2], gather=gather, scatter=scatter)
    problem = tiny_problem(graph, constrain=make_constrain(mesh))._replace(head_blocks=blocks)
    if objective is not None:
        problem = problem._replace(objective=objective)
    return mesh, optimizer, jax.jit(make_update(make_pair_loss(problem), optimizer, rate, adds=adds))


def run_update(mesh_shape, micro_steps, weight_B=(1.0,) * 8, steps=2, objective=None, adds=False):
    """Weights and metrics after some steps of 8 pairs on a mesh; a pair of weight 0 is filler."""
    _, policy, reference, masks = setup()
    mesh, optimizer, update = update_on(mesh_shape, micro_steps, objective, adds)
    state = start_state({"policy": policy, "masks": masks}, optimizer)
    state = jax.device_put(state, state_shardings(state, mesh))
    reference = jax.device_put(reference, state_shardings(reference, mesh))
    batch = random_batch(8, rows=micro_steps * mesh_shape[0] * mesh_shape[1])
    batch = batch._replace(weight_B=np.array(weight_B, np.float32))
    micro = jax.tree.map(lambda x: x.reshape(micro_steps, -1, *x.shape[1:]), batch)
    all_metrics = []
    with jax.set_mesh(mesh):
        for _ in range(steps):
            state, metrics, _ = update(state, reference, put_batch(micro, mesh))
            all_metrics.append(metrics)
    return jax.device_get(state.weights), jax.device_get(all_metrics)


def test_the_second_step_is_the_first_one_s_program():
    """Kills: an array that begins as a number of Python, whose weak type the first update takes away."""
    _, policy, _, masks = setup()
    state = start_state({"policy": policy, "masks": masks}, update_on((1, 1, 1), 1)[1])
    assert not any(x.weak_type for x in jax.tree.leaves(state))


@functools.cache
def one_device():
    return run_update((1, 1, 1), 1)


@pytest.mark.parametrize(
    ("mesh_shape", "micro_steps"),
    [
        pytest.param((8, 1, 1), 1, marks=pytest.mark.slow),
        ((2, 2, 2), 2),
        pytest.param((1, 1, 1), 2, marks=pytest.mark.slow),
        pytest.param((1, 1, 1), 4, marks=pytest.mark.slow),
        pytest.param((2, 2, 2), 1, marks=pytest.mark.slow),
    ],
)
def test_every_mesh_and_number_of_micro_steps_gives_the_same_update(mesh_shape, micro_steps):
    """Loss, masks' metrics, gradient norms and weights after two steps. Kills: means of means; a reference
    forward over the wrong slice."""
    weights, metrics = run_update(mesh_shape, micro_steps)
    expected_weights, expected_metrics = one_device()
    assert_same_tree(metrics, expected_metrics, SHARDED)
    assert_same_tree(weights, expected_weights, SHARDED)
    before = setup()[1]
    still = [path for path in before if np.abs(weights["policy"][path] - before[path]).max() < 1e-5]
    assert still == ["blocks.attention.key.bias"], (
        "a key's bias shifts all scores of a query alike and has no gradient; all else moves"
    )


@pytest.mark.parametrize("mesh_shape", [(1, 1, 1), pytest.param((2, 2, 2), marks=pytest.mark.slow)])
def test_a_backward_pass_that_adds_to_the_sums_gives_the_same_update(mesh_shape):
    """Kills: gradients of blocks that are lost, counted twice, or put in another layer's place."""
    weights, metrics = run_update(mesh_shape, 2, adds=True)
    expected_weights, expected_metrics = one_device()
    assert_same_tree(metrics, expected_metrics, SHARDED)
    assert_same_tree(weights, expected_weights, SHARDED)


@pytest.mark.slow
def test_quantiles_are_those_of_the_batch_on_a_mesh():
    """AOT's loss of a pair depends on the pairs beside it, which lie on other devices."""
    objective = functools.partial(aot_loss, beta=0.5, label_smoothing=0.1)
    weights, metrics = run_update((2, 2, 2), 1, objective=objective)
    expected_weights, expected_metrics = run_update((1, 1, 1), 1, objective=objective)
    assert_same_tree(metrics, expected_metrics, SHARDED)
    assert_same_tree(weights, expected_weights, SHARDED)


def test_a_profile_tells_the_parts_of_the_step_apart():
    graph, policy, reference, masks = setup()
    rate = optax.constant_schedule(1e-3)
    optimizer = make_optimizer(
        lion_rule(0.9, 0.99),
        policy_schedule=rate,
        policy_decay=0.0,
        mask_schedule=rate,
        mask_decay=0.0,
        clip_norm=1.0,
    )
    state = start_state({"policy": policy, "masks": masks}, optimizer)
    update = make_update(make_pair_loss(tiny_problem(graph)), optimizer, rate)
    batch = jax.tree.map(lambda x: x[None], random_batch())
    program = jax.jit(update).lower(state, reference, batch).as_text(debug_info=True)
    for scope in ("policy", "reference", "logprob_kl", "masks", "objective", "optimizer"):
        assert f"/{scope}/" in program or f"({scope})/" in program, scope


def given_update(rule, clip_norm):
    """(the same with optax's own clipping, update, a state to start from), of a loss that is told.

    In place of the reference's weights it takes the gradient of the sums and the loss.
    """
    rate, draw = optax.constant_schedule(1e-2), np.random.default_rng(0).normal
    make = functools.partial(
        make_optimizer, rule, policy_schedule=rate, policy_decay=0.1, mask_schedule=rate, mask_decay=0.01
    )
    optimizer, plain = (
        make(clip_norm=clip_norm),
        optax.chain(optax.clip_by_global_norm(clip_norm), make(clip_norm=None)),
    )
    shapes = {
        "policy": {"embed.embedding": (130, 140), "blocks.up.kernel": (2, 3, 4), "blocks.up.bias": (7,)},
        "masks": {"common.weight": (3, 2)},
    }
    weights = {
        group: {path: jnp.asarray(draw(size=shape), jnp.float32) for path, shape in of.items()}
        for group, of in shapes.items()
    }

    def summed(weights, reference, batch, step):
        gradient, loss = reference["gradient"], reference["loss"]
        return sum(map(jnp.vdot, jax.tree.leaves(weights), jax.tree.leaves(gradient))), (
            {"loss": loss},
            batch.weight_B.sum(),
            loss * batch.weight_B,
        )

    return (
        plain,
        jax.jit(make_update(summed, optimizer, rate), donate_argnums=0),
        start_state(weights, optimizer),
    )


@pytest.mark.parametrize("clip_norm", [1.0, 1e3])
@pytest.mark.parametrize(
    "rule",
    [
        adamw_rule(0.9, 0.999, 1e-8),
        lion_rule(0.9, 0.99),
        muon_rule(0.95, 0.9, 0.999, 1e-8),
        rmsprop_rule(0.99, 1e-8),
        adafactor_rule(),
    ],
    ids=["adamw", "lion", "muon", "rmsprop", "adafactor"],
)
def test_the_update_is_optax_s_of_the_mean_gradient(rule, clip_norm):
    """Weights, moments and norms of three steps, clipped by optax's own and not. Kills: a norm of the sums;
    updates of an Adam of our own that are not optax's."""
    batch, draw = jax.tree.map(lambda x: x[None], random_batch()), np.random.default_rng(1).normal
    plain, update, state = given_update(rule, clip_norm)
    weights, moments = jax.tree.map(jnp.copy, (state.weights, state.optimizer))
    for _ in range(3):
        mean = jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape), jnp.float32), weights)
        sums = jax.tree.map(lambda g: g * batch.weight_B.sum(), mean)
        state, metrics, _ = update(state, {"gradient": sums, "loss": jnp.float32(2.0)}, batch)
        changes, moments = plain.update(mean, moments, weights)
        weights = optax.apply_updates(weights, changes)
        norms = [optax.tree.norm(mean), optax.tree.norm(mean["masks"])]
        assert (norms[0] > clip_norm) == (clip_norm == 1.0)
        np.testing.assert_allclose([metrics["grad_norm"], metrics["grad_norm/masks"]], norms, rtol=UPDATE)
        for (path, ours), theirs in zip(
            jax.tree.leaves_with_path((state.weights, state.optimizer)),
            jax.tree.leaves((weights, moments)),
            strict=True,
        ):
            np.testing.assert_allclose(
                ours, theirs, rtol=UPDATE, atol=UPDATE, err_msg=jax.tree_util.keystr(path)
            )


@pytest.mark.parametrize("weights", [(10, 10, 10, 11), (47, 0, 0, 0), (0.5, 40.5, 0, 0)])
def test_the_mean_of_ones_is_one_to_the_bit(weights):
    """An accuracy of 0.99999994, where all pairs are right: 41 times 1/41, in float32."""
    batch = jax.tree.map(lambda x: x[None], random_batch())._replace(weight_B=jnp.float32([weights]))
    _, update, state = given_update(adamw_rule(0.9, 0.999, 1e-8), 1.0)
    told = {"gradient": jax.tree.map(jnp.ones_like, state.weights), "loss": jnp.float32(sum(weights))}
    _, metrics, _ = update(state, told, batch)
    assert float(metrics["loss"]) == 1.0


@pytest.mark.parametrize(("gradient", "loss"), [(np.nan, 1.0), (np.inf, 1.0), (1.0, np.nan)])
def test_what_is_not_finite_changes_no_bit_and_the_next_step_goes_on(gradient, loss):
    """Kills: moments that move with weights that do not; a gradient that is not looked at."""
    batch = jax.tree.map(lambda x: x[None], random_batch())
    _, update, state = given_update(adamw_rule(0.9, 0.999, 1e-8), 1.0)
    ones = jax.tree.map(jnp.ones_like, state.weights)
    bad_policy = ones["policy"] | {"blocks.up.bias": jnp.full(7, gradient).at[:6].set(1.0)}
    fine = {"gradient": ones, "loss": jnp.float32(1.0)}
    bad = {"gradient": ones | {"policy": bad_policy}, "loss": jnp.float32(loss)}
    state, *_ = update(state, fine, batch)
    before = jax.device_get(state)
    state, metrics, finite = update(state, bad, batch)
    assert (int(state.step), int(state.skipped), float(metrics["skipped"])) == (
        2,
        1,
        1.0,
    ) and finite.all() == np.isfinite(loss)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get((state.weights, state.optimizer)),
        (before.weights, before.optimizer),
    )
    state, *_ = update(state, fine, batch)
    assert (int(state.step), int(state.skipped)) == (3, 1)
    assert all(
        (a != b).any()
        for a, b in zip(jax.tree.leaves(state.weights), jax.tree.leaves(before.weights), strict=True)
    )


def with_turns_between(rows, *, shared):
    """(a batch in which every token counts, one of the same tokens in which only the own ones do), for pairs
    (prompt, chosen, rejected) of lists in which a token of another turn is negative."""
    responses = [response for _, *pair in rows for response in pair]
    plain = [(prompt, *([abs(t) for t in response] for response in pair)) for prompt, *pair in rows]
    everything = packed(plain, shared=shared, response_length=8)
    own = [np.flatnonzero(np.array(response) >= 0) for response in responses]
    table = TokenTable(
        ragged([np.array(prompt) for prompt, *_ in rows], np.int32),
        ragged([np.array(response)[at] for response, at in zip(responses, own, strict=True)], np.int32),
        np.arange(len(rows)),
        np.zeros(len(rows), bool),
        np.zeros((len(rows), 2), bool),
        np.ones(len(rows), np.float32),
        ("rows",),
        np.zeros(len(rows), np.int32),
        np.arange(len(rows)),
        between=ragged([[-t for t in response if t < 0] for response in responses], np.int32),
        all_before=np.concatenate([np.diff(at, prepend=-1) - 1 for at in own]).astype(np.int32),
    )
    packing = everything.packing
    shape = Shape(packing.ids_RS.shape[1], packing.at_RM.shape[1], packing.column_RQW.shape[2])
    sizes = sizes_of(
        table.prompt_lengths_N,
        table.response_lengths_NP,
        shared=shared,
        laid_lengths_NP=table.laid_lengths_NP,
    )
    assert sizes.positions_N.sum() == (packing.sequence_RS >= 0).sum()
    assert sizes.tokens_N.sum() == sum(map(len, own)) and sizes.longest_N.max() == shape.longest
    batch = pack(table, np.arange(len(rows)), shape, 8, rows=1, shared=shared)
    return everything, jax.tree.map(jnp.asarray, batch), own


def test_turns_of_others_are_read_and_are_no_response_tokens():
    """The numbers of a response's own tokens are those of the whole dialogue, and nothing of the others is in
    sums. Kills: a token predicted from the own token before it; positions that skip what is read."""
    rows = [([1, 2, 3], [4, -5, -6, 7], [-8, 9]), ([10, 11], [12, 13], [14, -15, 16])]
    for shared in (False, True):
        everything, batch, own = with_turns_between(rows, shared=shared)
        for name in ("ids_RS", "positions_RS", "sequence_RS", "part_RS", "column_RQW"):
            ours, theirs = (getattr(each.packing, name) for each in (batch, everything))
            np.testing.assert_array_equal(ours, theirs)
    graph, policy, reference, masks = setup()
    scores = jax.jit(make_pair_scores(tiny_problem(graph), training=False))
    weights = {"policy": policy, "masks": masks}
    metrics, ours, mask = scores(weights, reference, batch, jnp.int32(0))
    _, theirs, whole = scores(weights, reference, everything, jnp.int32(0))
    numbers = [(x, y) for x, y in zip((*ours[:3], *mask), (*theirs[:3], *whole), strict=True)]
    for n, places in enumerate(own):
        b, p = divmod(n, 2)
        assert ours.valid_BPT[b, p].sum() == len(places)
        for x_BPT, y_BPT in numbers:
            np.testing.assert_allclose(x_BPT[b, p, : len(places)], y_BPT[b, p, places], atol=TOKEN)
    np.testing.assert_allclose(metrics["logps/chosen"], ours.logp_BPT[:, 0].sum(-1), atol=TOKEN)
    assert (ours.logp_BPT[~ours.valid_BPT] == 0).all()


def test_unequal_micro_steps_weigh_by_pair():
    """Five real pairs and three fillers in two micro-steps: the mean over five pairs, not the mean of two
    means."""
    graph, policy, reference, masks = setup()
    _, (metrics, _) = run_update((1, 1, 1), 2, [1.0] * 5 + [0.0] * 3)
    scores, *_ = jax.jit(make_pair_scores(tiny_problem(graph), training=True))(
        {"policy": policy, "masks": masks}, reference, random_batch(8), jnp.int32(0)
    )
    loss_B = np.asarray(scores["loss"])
    assert abs(loss_B[:5].mean() - (loss_B[:4].mean() + loss_B[4]) / 2) > 100 * TOKEN
    np.testing.assert_allclose(metrics["loss"], loss_B[:5].mean(), atol=TOKEN)


def test_a_pair_of_weight_2_counts_as_two_pairs():
    """In the loss, the gradient and the metrics, across micro-steps and devices: the mean is over the weights
    of the global batch."""
    graph, policy, reference, masks = setup()
    weight_B = [2.0, 1.0, 0.5, 1.0, 3.0, 0.0, 1.0, 0.25]
    weights, metrics = run_update((1, 1, 1), 2, weight_B)
    sharded = run_update((2, 2, 2), 2, weight_B)
    assert_same_tree(sharded[1], metrics, SHARDED)
    assert_same_tree(sharded[0], weights, SHARDED)
    scores, *_ = jax.jit(make_pair_scores(tiny_problem(graph), training=True))(
        {"policy": policy, "masks": masks}, reference, random_batch(8), jnp.int32(0)
    )
    for name in ("loss", "rewards/margins", "kl/chosen"):
        mean = np.average(np.asarray(scores[name], np.float64), weights=weight_B)
        np.testing.assert_allclose(metrics[0][name], mean, atol=10 * TOKEN, err_msg=name)
    twice = [1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    doubled, _ = run_update((1, 1, 1), 2, [2 * weight for weight in twice])
    assert_same_tree(doubled, run_update((1, 1, 1), 2, twice)[0], UPDATE)


def test_at_step_0_the_loss_is_ln_2_exactly():
    graph, policy, _, masks = setup()
    problem = tiny_problem(graph)._replace(objective=functools.partial(sparsepo_loss, beta=0.5))
    metrics, stats, _ = make_pair_scores(problem, training=True)(
        {"policy": policy, "masks": masks}, policy, random_batch(), jnp.int32(0)
    )
    np.testing.assert_array_equal(stats.logp_BPT, stats.ref_logp_BPT)
    np.testing.assert_array_equal(metrics["loss"], np.log(np.float32(2)))


def test_sft_averages_over_the_tokens_of_the_whole_batch():
    graph, policy, *_ = setup()
    batch = random_batch(pairs=4)
    responses = packed([pair[:2] for pair in random_rows(pairs=4)])  # P = 1
    total, (_, tokens, _) = make_sft_loss(tiny_problem(graph))(
        {"policy": policy, "masks": {}}, None, responses, jnp.int32(0)
    )
    stats = make_pair_scores(tiny_problem(graph), training=False)(
        {"policy": policy, "masks": setup()[3]}, policy, batch, jnp.int32(0)
    )[1]
    assert tokens == responses.valid_BPT.sum()
    weight_B = jnp.array([2.0, 1.0, 0.5, 1.0])
    weighted, (_, counted, _) = make_sft_loss(tiny_problem(graph))(
        {"policy": policy, "masks": {}}, None, responses._replace(weight_B=weight_B), jnp.int32(0)
    )
    assert counted == (weight_B[:, None, None] * responses.valid_BPT).sum()
    np.testing.assert_allclose(weighted, -(weight_B[:, None] * stats.logp_BPT[:, 0]).sum(), atol=10 * TOKEN)
    np.testing.assert_allclose(total / tokens, -(stats.logp_BPT[:, 0].sum() / tokens), atol=TOKEN)


def test_dropout_is_on_in_training_only_and_keyed_by_step_and_row():
    graph, policy, reference, masks = setup()
    problem, weights = tiny_problem(graph, make_source(dropout=0.5)), {"policy": policy, "masks": masks}

    def reward(training, step, batch):
        return make_pair_scores(problem, training=training)(weights, reference, batch, jnp.int32(step))[
            2
        ].reward_BPT

    batch = random_batch()
    still, first, second = reward(False, 0, batch), reward(True, 0, batch), reward(True, 1, batch)
    assert (still[batch.valid_BPT] > 0).all()
    assert (first == 0).sum() > (still == 0).sum() and (first != second).any()
    turned = packed(random_rows()[::-1])._replace(row_B=batch.row_B[::-1])
    np.testing.assert_allclose(reward(True, 0, turned)[::-1], first, atol=TOKEN)


def test_an_annealed_temperature_is_trained_with_and_not_held_out():
    """5 at the first step, 0.2 from the third on. Scores without training have the last temperature."""
    graph, policy, reference, masks = setup()
    weights, batch = {"policy": policy, "masks": masks}, random_batch()
    annealed = {"temperature": 0.2, "temperature_start": 5.0, "temperature_steps": 3}
    problem = tiny_problem(graph, make_source(mixer_activation="budget", **annealed))
    training, held_out = (jax.jit(make_pair_scores(problem, training=x)) for x in (True, False))

    def loss_B(scores, step):
        return np.asarray(scores(weights, reference, batch, jnp.int32(step))[0]["loss"])

    np.testing.assert_allclose(loss_B(training, 3), loss_B(held_out, 0), atol=TOKEN)
    np.testing.assert_array_equal(loss_B(held_out, 0), loss_B(held_out, 3))
    assert np.abs(loss_B(training, 0) - loss_B(training, 3)).max() > 100 * TOKEN


def test_the_anchor_is_of_the_masks_that_are_trained_with():
    """Kills: a running mean by the last temperature, while the loss has the first."""
    graph, policy, reference, masks = setup()
    weights, batch = {"policy": policy, "masks": masks}, random_batch()
    annealed = {"temperature": 0.2, "temperature_start": 5.0, "temperature_steps": 3}
    source = make_source(mixer_activation="budget", **annealed)
    problem = tiny_problem(graph, source, reads=frozenset({RUNNING}))
    anchor = jax.jit(functools.partial(anchor_sums, problem))
    scores = jax.jit(make_pair_scores(tiny_problem(graph, source), training=True))
    totals = []
    for step in (0, 3):
        _, stats, token_masks = scores(weights, reference, batch, jnp.int32(step))
        total, rows = anchor(weights, reference, batch, jnp.int32(step))
        expected = summed_log_ratio(stats, token_masks).mean(axis=1)[batch.weight_B > 0].sum()
        np.testing.assert_allclose(total, expected, atol=10 * TOKEN)
        totals.append(float(total))
    assert abs(totals[0] - totals[1]) > 100 * TOKEN and rows == batch.weight_B.sum()


def test_an_objective_without_kl_has_no_product_for_it():
    """Kills: a KL mask of zeros, for which the reference's head is multiplied again in the backward pass."""
    graph, policy, reference, masks = setup()
    weights, batch = {"policy": policy, "masks": masks}, random_batch()

    def products(loss, **settings):
        problem = tiny_problem(graph)._replace(objective=functools.partial(loss, beta=0.5, **settings))
        gradient = jax.grad(make_pair_loss(problem), has_aux=True)
        return str(jax.make_jaxpr(gradient)(weights, reference, batch, jnp.int32(0))).count("dot_general")

    of_kl = products(tdpo1_loss)
    without = [
        products(dpo_loss),
        products(d2po_loss, gamma=0.9),
        products(ldpo_loss, alpha=0.5),
        products(sampo_loss),
    ]
    assert max(without) == min(without) < of_kl


@pytest.mark.parametrize("mixer", ["znorm", "resc", "relu"])
def test_a_response_of_one_token_has_a_finite_gradient(mixer):
    """An empty answer and its EOS. Kills: the slope of a root at 0."""
    graph, policy, reference, masks = setup()
    batch = packed([([1, 2], [3], [4, 5, 6]), ([1, 3], [7, 8], [9])])
    problem = tiny_problem(graph, make_source(mixer_activation=mixer))
    *_, gradient = loss_and_gradient(problem, batch, {"policy": policy, "masks": masks}, reference)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_masks_that_start_near_one_do():
    graph, policy, reference, _ = setup()
    means = {}
    for init in ("ones", "official"):
        source = make_source(init=init)
        weights = {"policy": policy, "masks": source.init(nnx.Rngs(2))}
        token_masks = make_pair_scores(tiny_problem(graph, source), training=False)(
            weights, reference, random_batch(), jnp.int32(0)
        )[2]
        means[init] = float(token_masks.reward_BPT[random_batch().valid_BPT].mean())
    assert 0.8 < means["ones"] < 1.2 and means["official"] < 0.1


def test_meshes_that_do_not_fit_are_refused():
    from sparsepo_jax.core.errors import UserError

    of_all = "data=3 x fsdp=1 x tensor=1 makes 3, and there are 8 device.*: set one of them to null"
    with pytest.raises(UserError, match=of_all):
        make_mesh(3, 1, 1)
    # One is null already.
    with pytest.raises(UserError, match="fsdp=16 x tensor=1 makes 16, .*: it must divide 8: set them lower"):
        make_mesh(None, 16, 1)
    assert dict(make_mesh(None, 2, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


def test_the_log_ratio_of_responses_is_the_policy_over_the_reference():
    """What generated_kl averages. Kills: its sign; a sum over padding."""
    graph, policy, reference, masks = setup()
    problem, batch = tiny_problem(graph), random_batch()
    _, stats, _ = make_pair_scores(problem, training=False)(
        {"policy": policy, "masks": masks}, reference, batch, jnp.int32(0)
    )
    expected_BP = np.asarray(log_ratio(stats)).sum(-1)
    assert np.abs(expected_BP).max() > 0.1
    np.testing.assert_allclose(response_log_ratio(problem, policy, reference, batch), expected_BP, atol=TOKEN)
