"""Share of our SparsePO step that each part takes: attention, projections, MLP, head, mask net, optimizer.

    python benchmarks/shares.py [PROMPT+RESPONSE ...] [--vocab V] [--rounds N]

Default: 64+192 256+64, 16384, 5 rounds. Four pairs a step, GPT-2 shape of 6 layers and width 384, float32 on
CPU. Each part is our own code, run alone at the step's shapes as often as the step runs it: in each layer
forward (reference), and forward and backward (policy). The parts and the full step take turns. What the step
takes beyond the sum of its parts is the rest: norms, embedding, copies. A part alone may find more in the
caches than it does in the step, and is not fused with its neighbours, so read the shares to a few percent,
and a small or negative rest as nothing.
"""

import functools
import statistics
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from shapes import gpt2
from work import PAIRS, OurStep, in_turn, random_batch, save_result, step_parser

from sparsepo_jax.core.tree import merge_module, split_module
from sparsepo_jax.models.block import Block
from sparsepo_jax.models.layers import LayerFactory
from sparsepo_jax.ops.activations import activated
from sparsepo_jax.ops.attention import Packed, attention, reach_of
from sparsepo_jax.ops.logprob_kl import logprob_kl


def forward_and_backward(function: Callable, arguments: tuple, fixed: tuple = ()) -> Callable[[], None]:
    """Computes function(*arguments, *fixed) and its gradient in the arguments, from a cotangent of ones."""

    @jax.jit
    def both(arguments, fixed):
        value, pull = jax.vjp(lambda *arguments: function(*arguments, *fixed), *arguments)
        return value, pull(jax.tree.map(jnp.ones_like, value))

    return lambda: jax.block_until_ready(both(arguments, fixed))


def in_each_layer(layers: int, function: Callable, arguments: tuple, fixed: tuple = ()) -> Callable[[], None]:
    """Runs a block's part as the step does: forward (reference), then forward and backward (policy), layer by
    layer."""
    forward, policy = jax.jit(function), forward_and_backward(function, arguments, fixed)

    def run() -> None:
        for _ in range(layers):
            jax.block_until_ready(forward(*arguments, *fixed))
        for _ in range(layers):
            policy()

    return run


def parts_of(step: OurStep) -> dict[str, Callable[[], None]]:
    spec, problem, batch = step.spec, step.problem, jax.tree.map(lambda x: x[0], step.batch)
    packing, (R, S), M, L, D = (
        batch.packing,
        batch.packing.ids_RS.shape,
        batch.packing.at_RM.shape[1],
        spec.num_layers,
        spec.width,
    )

    def draw(number: int, *shape: int) -> jax.Array:
        return jax.random.normal(jax.random.key(number), shape)

    x_RSD, queries = draw(0, R, S, D), (R, S, spec.num_heads, spec.head_dim)
    keys = (R, S, spec.num_kv_heads, spec.head_dim)
    graph, weights = split_module(Block(LayerFactory(spec, jnp.float32, None, nnx.Rngs(0))))
    projections = {path: x for path, x in weights.items() if path.startswith("attention.")}
    mlp = {path: x for path, x in weights.items() if path.startswith(("up.", "down."))}

    def project(part_weights, x_RSD):
        block = merge_module(graph, weights | part_weights).attention
        return block.query(x_RSD), block.key(x_RSD), block.value(x_RSD), block.out(x_RSD)

    def feed(part_weights, x_RSD):
        block = merge_module(graph, weights | part_weights)
        return block.down(activated(spec.activation, block.up(x_RSD)))

    # Which blocks are seen is computed once a step, outside of attention; it counts as part of the rest.
    seen = jax.jit(lambda packing: reach_of(packing, problem.attention)[:3])(packing)

    def attend(q, k, v, *seen):
        return attention(q, k, v, Packed(*seen, problem.attention), scale=spec.head_dim**-0.5)

    head_VD, *reference = (
        draw(1, spec.vocab_size, D) * 0.02,
        draw(2, R, M, D),
        draw(3, spec.vocab_size, D) * 0.02,
    )
    head = functools.partial(logprob_kl, blocks=problem.head_blocks)
    kept = {"block_out": draw(4, L, R, M, D), "final_norm": draw(5, R, M, D)}
    key_B = jax.random.split(jax.random.key(0), len(batch.row_B))

    def mask(weights, kept, batch, key_B):
        return problem.mask_source.make(weights, kept, batch, None, key_B, True)

    trained = jax.tree.map(jnp.copy, step.state.weights)  # the step gives its own away

    def optimize(gradient, state, weights):
        updates, state = step.optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state

    optimize = jax.jit(optimize, donate_argnums=(1, 2))
    gradient, held = (
        jax.tree.map(lambda x: jnp.full_like(x, 1e-3), trained),
        [jax.tree.map(jnp.copy, (trained, step.state.optimizer))],
    )

    def update() -> None:
        weights, state = held.pop()
        held.append(jax.block_until_ready(optimize(gradient, state, weights)))

    return {
        "attention": in_each_layer(L, attend, (draw(6, *queries), draw(7, *keys), draw(8, *keys)), seen),
        "attention's projections": in_each_layer(L, project, (projections, x_RSD)),
        "MLP": in_each_layer(L, feed, (mlp, x_RSD)),
        "head": forward_and_backward(
            head, (draw(9, R, M, D), head_VD), (*reference, packing.label_RM, packing.valid_RM)
        ),
        "mask net": forward_and_backward(mask, (trained["masks"],), (kept, batch, key_B)),
        "optimizer": update,
    }


def main() -> int:
    parser = step_parser(__doc__)
    parser.add_argument("--vocab", type=int, default=16384)
    options = parser.parse_args()
    rows = []
    for lengths in options.lengths:
        step = OurStep(gpt2(options.vocab, sum(lengths)), random_batch(PAIRS, *lengths, options.vocab))
        # warm 2: the optimizer's results have the mesh's sharding, for which it compiles a second time.
        times_s = in_turn({"whole step": step} | parts_of(step), options.rounds, warm=2)
        medians_s = {name: statistics.median(times) for name, times in times_s.items()}
        whole_s = medians_s["whole step"]
        medians_s["norms, embedding, copies"] = 2 * whole_s - sum(medians_s.values())
        print(f"{lengths} tokens, vocabulary {options.vocab}")
        for name, seconds in medians_s.items():
            spread = f" ({min(times_s[name]):.3f} to {max(times_s[name]):.3f})" if name in times_s else ""
            rows.append(
                {
                    "lengths": str(lengths),
                    "vocab": options.vocab,
                    "part": name,
                    "median_s": seconds,
                    "share": seconds / whole_s,
                }
            )
            print(f"  {name:<26}{100 * seconds / whole_s:6.1f} %  {seconds:7.3f} s{spread}", flush=True)
    print(save_result("shares", {"rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
