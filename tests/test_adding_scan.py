"""A backward pass that adds gradients of blocks to sums: out come the sums and the usual gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.program import run
from helpers.quick import slow_but
from helpers.tiny import CONFIGS, random_batch
from helpers.tolerances import GRADIENT
from sparsepo_jax.core.tree import split_module
from sparsepo_jax.losses.token_weighted import sparsepo_loss
from sparsepo_jax.masks.source import fixed_source
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.ops.adding_scan import adding_scan
from sparsepo_jax.train import step
from sparsepo_jax.train.problem import Problem
from sparsepo_jax.train.step import make_pair_loss, make_sft_loss

TWO_SHAPES = "gemma4, two shapes"
MIXTURE = "qwen3 moe, a layer without experts"


def test_the_example_by_hand():
    """Layers multiply 5 by 2, then by 3, and each keeps what it gives. The loss counts the end 4 times.

    Its slopes are 5 * (1 + 3 * 5) = 80 and 10 * 5 = 50 in the weights, 2 * (1 + 3 * 5) = 32 in what came in.
    """

    def body(carried, weight, other):
        return carried * weight, carried * weight

    def loss(first, sums):
        last, [kept] = adding_scan([body], first, [jnp.array([2.0, 3.0])], [jnp.arange(2)], [sums])
        return 4 * last + kept.sum()

    value, (slope, sums) = jax.value_and_grad(loss, argnums=(0, 1))(5.0, jnp.array([1000.0, 2000.0]))
    assert (float(value), float(slope), sums.tolist()) == (160.0, 32.0, [1080.0, 2050.0])


@functools.cache
def models(name, remat):
    """(graph, weights of the policy, of the reference)."""
    spec = spec_from_hf(CONFIGS[name])
    graph, policy = split_module(Decoder(spec, remat=remat, rngs=nnx.Rngs(0)))
    reference = split_module(Decoder(spec, rngs=nnx.Rngs(1)))[1]
    return graph, policy, reference


@pytest.mark.parametrize(
    ("name", "sft", "settings"),
    slow_but(
        [(MIXTURE, False, {"router_aux": 0.1})],
        [
            (TWO_SHAPES, False, {}),
            (MIXTURE, False, {"router_aux": 0.1}),
            ("gpt2", False, {}),
            (TWO_SHAPES, True, {}),
            (MIXTURE, False, {"replays_routing": True}),
            ("qwen3.5", False, {}),
            ("gemma3, local and global layers", False, {}),
        ],
    ),
)
def test_sums_and_gradients_come_out_together(name, sft, settings):
    """Kills: the gradient of a layer, a stack or a router that is lost, counted twice or elsewhere added."""
    graph, policy, reference = models(name, "everything")
    source = fixed_source("ones", on="both", normalised=False)
    objective = functools.partial(sparsepo_loss, beta=0.5, l1_reward=0.0, l1_kl=0.0, shared=True)
    problem = Problem(graph, graph, source, objective, seed=0, **settings)
    loss = (make_sft_loss if sft else make_pair_loss)(problem)
    batch = random_batch(4)
    drawn = jax.random.normal(jax.random.key(0), (len(policy),))
    blocks = {path: drawn[n] + x for n, (path, x) in enumerate(policy.items()) if path.startswith("blocks.")}

    def loss_of(policy, **sums):
        base = None if sft else reference
        return loss({"policy": policy, "masks": {}}, base, batch, jnp.int32(0), **sums)[0]

    value, expected = jax.jit(jax.value_and_grad(loss_of))(policy)
    with_sums, (own, sums) = jax.jit(
        jax.value_and_grad(lambda policy, sums: loss_of(policy, sums=sums), argnums=(0, 1))
    )(policy, blocks)
    np.testing.assert_allclose(with_sums, value, rtol=1e-6)
    assert all(not np.any(own[path]) for path in blocks), "weights of blocks have no gradient of their own"
    for path, gradient in expected.items():
        ours = sums[path] - blocks[path] if path in blocks else own[path]
        scale = max(float(np.abs(gradient).max()), 1e-2)
        np.testing.assert_allclose(ours, gradient, atol=GRADIENT * scale, err_msg=path)
    assert max(float(np.abs(expected[path]).max()) for path in blocks) > 1e-2


@pytest.mark.parametrize(
    ("changes", "adds"),
    slow_but(
        [([], True)],
        [
            ([], True),
            (["po.lora={rank: 2}"], False),
            (["compute.unroll=true"], False),
            (["compute.remat=norms"], False),
        ],
    ),
)
def test_a_run_adds_where_everything_is_recomputed_in_a_loop(tmp_path, monkeypatch, changes, adds):
    """Kills: a choice that does not reach the step, or reaches one that cannot."""
    traced = []
    added_in_blocks = step._added_in_blocks
    monkeypatch.setattr(step, "_added_in_blocks", lambda *of: (traced.append(of), added_in_blocks(*of))[1])
    settings = ["compute.remat=everything", "po.accumulation=2", "po.batch_size=16", "po.steps=1"]
    own_program = "compute.head.tokens=72"  # no other test has traced it
    run(tmp_path, *settings, own_program, *changes, stages=["po"], sft=None)
    assert bool(traced) == adds
