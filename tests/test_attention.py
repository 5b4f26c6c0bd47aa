"""Every way to attend, values and gradients, against the plain formula over who sees whom, pair by pair."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.quick import slow_but
from helpers.tiny import packed, random_batch
from helpers.tolerances import BFLOAT16, TOKEN
from sparsepo_jax.ops import block_attention, dense_attention, splash_attention, triton_attention, visits
from sparsepo_jax.ops.attention import Given, attention, reach_of
from sparsepo_jax.sharding.mesh import make_mesh, make_spread

N, H = 4, 8


@pytest.fixture
def interpreted(monkeypatch):
    """The kernels of TPU and GPU, step by step on CPU; the latter in tiny blocks."""
    monkeypatch.setattr(splash_attention, "INTERPRET", True)
    monkeypatch.setattr(triton_attention, "INTERPRET", True)
    monkeypatch.setattr(visits, "OWNED", 16)
    monkeypatch.setattr(visits, "VISITED", 8)
    # Smaller blocks than those of the lists are parts of these.
    kernels = ((8, 8, 4, 2), (16, 4, 4, 2), (8, 4, 4, 2))
    monkeypatch.setattr(triton_attention, "BLOCKS", {(16, 8): kernels, (32, 8): kernels})


def plain(q, k, v, attend, scale, softcap, sink=None):
    """A sink is one more column of scores, whose weight is dropped."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("BSNH,BTNH->BNST", q, k) * scale
    scores = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(attend[:, None], scores, -1e30)
    if sink is not None:
        scores = jnp.concatenate(
            [scores, jnp.broadcast_to(sink[None, :, None, None], (*scores.shape[:3], 1))], 3
        )
    return jnp.einsum("BNST,BTNH->BSNH", jax.nn.softmax(scores, axis=-1)[..., : k.shape[1]], v)


def who_sees_whom(packing, window=None):
    """By loops, from the words of core.types.Packing."""
    packing = jax.tree.map(np.asarray, packing)
    R, S = packing.ids_RS.shape
    attend = np.zeros((R, S, S), bool)
    for r in range(R):
        for q in range(S):
            for k in range(q + 1):
                same = packing.sequence_RS[r, q] == packing.sequence_RS[r, k] >= 0
                attend[r, q, k] = same and packing.part_RS[r, k] in (0, packing.part_RS[r, q])
                if window is not None and packing.positions_RS[r, q] - packing.positions_RS[r, k] >= window:
                    attend[r, q, k] = False
    return attend


def inputs(shape, kv_heads, seed=0):
    rng = np.random.default_rng(seed)
    return [
        jnp.asarray(rng.normal(size=(*shape, heads, H)), jnp.float32) for heads in (N, kv_heads, kv_heads)
    ]


def sinks():
    """One of each size that matters: taking nearly nothing, a part, and nearly all."""
    return jnp.asarray([-4.0, 0.5, 1.5, 6.0], jnp.float32)


def value_and_gradient(function, sees, qkv):
    weights = jnp.asarray(np.random.default_rng(1).normal(size=qkv[0].shape), jnp.float32)

    def total(*qkv):
        return jnp.sum(jnp.where(sees, weights * function(*qkv), 0.0))

    return jax.tree.leaves(jax.jit(jax.value_and_grad(total, argnums=tuple(range(len(qkv)))))(*qkv))


KERNELS = ("blocks", "triton", "xla", "cudnn", "splash")


@pytest.mark.parametrize(
    ("kv_heads", "softcap", "window", "sunk"),
    slow_but(
        [(2, 0.5, "traced", False), (1, None, 3, True)],
        [
            (4, None, None, False),
            (2, 0.5, None, False),
            (1, None, 3, False),
            (2, 0.5, "traced", False),
            (2, None, None, True),
            (1, None, 3, True),
        ],
    ),
)
@pytest.mark.parametrize(
    ("kernel", "shared"),
    slow_but(
        [(kernel, True) for kernel in KERNELS],
        [*((kernel, shared) for kernel in KERNELS[:-1] for shared in (True, False)), ("splash", True)],
    ),
)
def test_rows_of_tokens_attend_as_their_pairs_say(
    monkeypatch, interpreted, kernel, kv_heads, softcap, window, sunk, shared
):
    """Kills: a response that sees the other one, or another pair; a block or chunk left out that is seen; a
    block taken as seen in full that is not; a window by column; a soft cap without slope; a sink of another
    head, one that is counted once for each block, or that gets no gradient of its own.
    """
    monkeypatch.setattr(block_attention, "BLOCK", 8)
    monkeypatch.setattr(dense_attention, "CHUNK_QUERIES", 3)
    if kernel == "cudnn" and sunk:
        pytest.skip("cudnn has no sinks")
    if kernel == "cudnn":  # what it is given, computed by XLA: there is no GPU here
        softcap = None
        theirs = jax.nn.dot_product_attention

        def by_xla(*qkv, implementation, **settings):
            return theirs(*qkv, implementation="xla", **settings)

        monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    packing = random_batch(8, 6, 7, rows=2, shared=shared, spare=3).packing
    qkv, attend = inputs(packing.ids_RS.shape, kv_heads), who_sees_whom(packing, 3 if window else None)
    sees = attend.any(-1)[..., None, None]
    window = jnp.int32(3) if window == "traced" else window
    reach = reach_of(packing, kernel)
    qkv += [sinks()] if sunk else []

    def ours(q, k, v, sink=None):
        return attention(q, k, v, reach, scale=0.3, softcap=softcap, window=window, sink_N=sink)

    def formula(q, k, v, sink=None):
        return plain(q, k, v, jnp.asarray(attend), 0.3, softcap, sink)

    expected = value_and_gradient(formula, sees, qkv)
    for a, b in zip(value_and_gradient(ours, sees, qkv), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=TOKEN, rtol=TOKEN)


@pytest.mark.parametrize(
    ("mesh_shape", "sunk"),
    slow_but([((1, 2, 2), True)], [(None, True), ((1, 2, 2), True), ((2, 2, 2), False), ((2, 1, 4), True)]),
)
@pytest.mark.parametrize("kernel", ["splash", "triton"])
def test_kernels_in_several_blocks_and_on_a_mesh(monkeypatch, interpreted, kernel, mesh_shape, sunk):
    """What a TPU or GPU would run, step by step on CPU: 3 x 3 blocks of columns, of which nothing sees some.

    Rows are cut over data x fsdp, heads over tensor; 2 key heads are cut over 2 devices, and complete on each
    of 4. Kills: a block left out that is seen; a mask that is the first row's; heads that meet others' keys
    or sinks; a sink's gradient of one device's rows or heads alone.
    """
    monkeypatch.setattr(splash_attention, "LARGEST_BLOCK", 128)
    monkeypatch.setattr(visits, "OWNED", 128)
    monkeypatch.setattr(visits, "VISITED", 64)
    kernels = ((128, 64, 4, 2), (64, 64, 4, 2), (128, 32, 4, 2))
    monkeypatch.setattr(triton_attention, "BLOCKS", {(32, 8): kernels})
    rows = 4 if mesh_shape else 1
    lengths = [(120, 90, 110), (30, 128, 129), (7, 2, 200), (200, 9, 80)][:rows]
    packing = packed(
        [([1] * prompt, [2] * chosen, [3] * rejected) for prompt, chosen, rejected in lengths], rows=rows
    ).packing
    qkv, attend = inputs(packing.ids_RS.shape, 2), who_sees_whom(packing, 100)
    sees = attend.any(-1)[..., None, None]
    spread = None
    if mesh_shape is not None:
        mesh = make_mesh(*mesh_shape, devices=jax.devices()[: math.prod(mesh_shape)])
        spread, rest = make_spread(mesh), jax.sharding.PartitionSpec(("data", "fsdp"))
        qkv = [jax.device_put(x, jax.sharding.NamedSharding(mesh, rest)) for x in qkv]

    qkv += [sinks()] if sunk else []

    def ours(q, k, v, sink=None):
        reach = reach_of(packing, kernel, spread)
        return attention(q, k, v, reach, scale=0.3, softcap=0.5, window=100, sink_N=sink)

    def formula(q, k, v, sink=None):
        return plain(q, k, v, jnp.asarray(attend), 0.3, 0.5, sink)

    expected = value_and_gradient(formula, sees, qkv)
    for a, b in zip(value_and_gradient(ours, sees, qkv), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=TOKEN, rtol=TOKEN)


@pytest.mark.parametrize("sunk", slow_but([True], [False, True]))
@pytest.mark.parametrize("kernel", ["splash", "triton"])
def test_kernels_in_bfloat16_are_as_near_as_the_plain_one(interpreted, kernel, sunk):
    """Root mean squares of the error against float32, of values and gradients.

    Kills: sums or a softmax in 16 bits.
    """
    packing = packed([([1] * 20, [2] * 30, [3] * 40)]).packing
    qkv, attend = inputs(packing.ids_RS.shape, 2), who_sees_whom(packing)
    sees = attend.any(-1)[..., None, None]
    sink = [sinks()] if sunk else []

    def formula(q, k, v, sink=None):
        return plain(q, k, v, jnp.asarray(attend), 0.3, None, sink)

    exact = value_and_gradient(formula, sees, [*qkv, *sink])
    narrow = [x.astype(jnp.bfloat16) for x in qkv]

    def errors_of(kernel):
        def ours(q, k, v, sink=None):
            return attention(q, k, v, reach_of(packing, kernel), scale=0.3, sink_N=sink)

        gradients = value_and_gradient(ours, sees, [*narrow, *sink])[1:]
        if sunk:  # four numbers are too few for a mean; each is a sum of 720 terms of both signs
            np.testing.assert_allclose(gradients[3], exact[4], atol=2**-7 * np.abs(exact[4]).max())
        return [
            float(np.sqrt(np.mean(np.square(np.asarray(a, np.float32) - b))))
            for a, b in zip(gradients[:3], exact[1:4], strict=True)
        ]

    errors = errors_of(kernel), errors_of("xla")
    assert all(ours <= BFLOAT16 * theirs for ours, theirs in zip(*errors, strict=True)), errors


@pytest.mark.parametrize("chunk", [2, 128])
@pytest.mark.parametrize(("columns", "sunk"), [(9, False), (1, True)])
def test_given_keys(monkeypatch, chunk, columns, sunk):
    """Reading with padding on the left, and one query at the end of many keys.

    Kills: a chunk that loses its last keys.
    """
    monkeypatch.setattr(dense_attention, "CHUNK_QUERIES", chunk)
    valid = np.arange(9)[None] >= np.array([[0], [3], [8]])
    attend = jnp.asarray((np.tril(np.ones((9, 9), bool)) & valid[:, None])[:, 9 - columns :])
    q, k, v = inputs((3, 9), 2)
    qkv, positions = (q[:, 9 - columns :], k, v), jnp.asarray(np.maximum(np.cumsum(valid, 1) - 1, 0))
    sees = attend.any(-1)[..., None, None]
    reach = Given(attend, positions[:, 9 - columns :], positions)
    qkv += (sinks(),) if sunk else ()

    def ours(q, k, v, sink=None):
        return attention(q, k, v, reach, scale=0.3, sink_N=sink)

    ours = value_and_gradient(ours, sees, qkv)
    expected = value_and_gradient(
        lambda q, k, v, sink=None: plain(q, k, v, attend, 0.3, None, sink), sees, qkv
    )
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=TOKEN, rtol=TOKEN)


@pytest.mark.parametrize("sink", slow_but([-100.0], [None, -100.0]))
@pytest.mark.parametrize("kernel", ["blocks", "triton", "xla", "splash"])
def test_padding_is_finite_and_has_no_gradient(interpreted, kernel, sink):
    """Kills: a query that sees nothing and so gives all of its weight to the sink, which then moves."""
    packing = random_batch(2, spare=9).packing
    q, k, v = inputs(packing.ids_RS.shape, N)
    real = (packing.sequence_RS >= 0)[..., None, None]

    sink_N = None if sink is None else jnp.full(N, sink)

    def total(q, k, v, sink_N):
        return jnp.sum(attention(q, k, v, reach_of(packing, kernel), scale=0.3, sink_N=sink_N))

    value, (*gradients, d_sink) = jax.value_and_grad(total, argnums=(0, 1, 2, 3))(q, k, v, sink_N)
    if sink_N is not None:
        np.testing.assert_allclose(d_sink, 0.0, atol=1e-30)
    assert np.isfinite(value) and not real.all()
    for gradient in gradients:
        np.testing.assert_array_equal(np.where(real, 0.0, gradient), 0.0)


def test_blocks_of_other_pairs_and_of_the_other_response_are_left_out(monkeypatch):
    """Three pairs of 4 + 4 + 4 positions in blocks of 4.

    Of 9 x 10 / 2 blocks, those of prompt-prompt, response-prompt and response-itself are seen.
    """
    monkeypatch.setattr(block_attention, "BLOCK", 4)
    packing = packed([([1] * 4, [2] * 5, [3] * 5)] * 3).packing
    seen = np.asarray(reach_of(packing, "blocks").seen_IJ)
    assert seen.shape == (9, 9) and seen.sum() == 3 * 5
    np.testing.assert_array_equal(seen[:3, :3], [[1, 0, 0], [1, 1, 0], [1, 0, 1]])


def test_lists_name_the_blocks_that_are_seen_and_how(interpreted, monkeypatch):
    """A pair of 4 + 4 + 4 positions in blocks of 4, and a block of padding.

    Each list says how many are seen in full, how many are seen at all, and where these begin.
    """
    monkeypatch.setattr(visits, "OWNED", 4)
    monkeypatch.setattr(visits, "VISITED", 4)
    packing = packed([([1] * 4, [2] * 5, [3] * 5)], spare=4).packing
    of_rows = reach_of(packing, "triton").visits
    seen = [np.asarray(x[0]) for x in (of_rows.keys_RIX, of_rows.queries_RJX)]
    seen = [[[full, some, *begins[:some]] for full, some, *begins in lists] for lists in seen]
    assert seen[0] == [[0, 1, 0], [1, 2, 0, 4], [1, 2, 0, 8], [0, 0]]
    assert seen[1] == [[2, 3, 4, 8, 0], [0, 1, 4], [0, 1, 8], [0, 0]]


@pytest.mark.parametrize("kernel", ["blocks", "triton", "xla"])
def test_nothing_of_scores_is_kept_for_the_backward_pass(monkeypatch, interpreted, kernel):
    """Kills: a gradient derived by JAX, which keeps the [S, T] weights."""
    monkeypatch.setattr(block_attention, "BLOCK", 8)
    packing = packed([([1] * 6, [2] * 6, [3] * 6)]).packing
    q, k, v = inputs(packing.ids_RS.shape, N)
    reach = reach_of(packing, kernel)
    _, pullback = jax.vjp(lambda q, k, v: attention(q, k, v, reach, scale=0.3, sink_N=sinks()), q, k, v)
    floats = [x for x in jax.tree.leaves(pullback) if jnp.issubdtype(x.dtype, jnp.floating)]
    # Queries, keys, values, the output, a logsumexp: rounded up to blocks, that is all.
    assert 0 < sum(x.size for x in floats) <= (4 * H + 1) * N * 24


def test_cudnn_refuses_sinks_by_name():
    packing = packed([([1] * 6, [2] * 6, [3] * 6)]).packing
    q, k, v = inputs(packing.ids_RS.shape, N)
    with pytest.raises(ValueError, match="cudnn has no sinks"):
        attention(q, k, v, reach_of(packing, "cudnn"), scale=0.3, sink_N=sinks())
