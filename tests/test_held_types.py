"""Weights, moments and reference held in bfloat16: on average nothing is lost, and every draw is keyed."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from optax import contrib

from helpers.configs import make_config
from helpers.interrupt import Interrupted, stop_before
from helpers.program import lines_of, run, weights_of, write_config
from helpers.quick import slow_but
from helpers.tiny import GPT2, LLAMA, random_batch
from helpers.tolerances import UPDATE
from sparsepo_jax.build.optimizer import make_optimizer
from sparsepo_jax.core.tree import split_module
from sparsepo_jax.losses.token_weighted import sparsepo_loss
from sparsepo_jax.main import main
from sparsepo_jax.masks.source import fixed_source
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.lora import hold_base
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.ops.logit_blocks import HeadBlocks
from sparsepo_jax.run.resume import Marks
from sparsepo_jax.sharding.mesh import make_mesh
from sparsepo_jax.train.optimizer import adamw_rule
from sparsepo_jax.train.optimizer import make_optimizer as make_group_optimizer
from sparsepo_jax.train.problem import Problem
from sparsepo_jax.train.rounding import apply_updates, round_at_random, rounding_words
from sparsepo_jax.train.step import make_pair_scores, start_state

BF16 = jnp.dtype(jnp.bfloat16)


# ---------------------------------------------------------------- rounding


def test_rounding_gives_a_neighbour_and_is_exact_on_average():
    """1 + d between 1 and 1 + 1/128: up with probability 128 d. Kills: rounding to the nearest; a wrong
    chance; negative numbers that move the other way."""
    x = jnp.repeat(jnp.array([1 + 0.3 / 128, -(1 + 0.3 / 128), 1e-3, 3e-30]), 40_000).reshape(4, -1)
    drawn = round_at_random(x, rounding_words(0, 0), "a").astype(jnp.float32)
    assert set(np.unique(drawn[0])) == {1.0, 1 + 1 / 128} and set(np.unique(drawn[1])) == {-1.0, -1 - 1 / 128}
    deviation = 0.5 / 128 / 40_000**0.5  # of a mean, at most
    np.testing.assert_allclose(drawn.mean(axis=1) / np.asarray(x[:, 0]), 1, atol=5 * deviation)
    halves = np.asarray(drawn[0] > 1)
    np.testing.assert_allclose(halves[::2].mean(), halves[1::2].mean(), atol=0.02)


def test_what_bfloat16_has_and_what_is_not_finite_stays():
    exact = jnp.array([0.0, -0.0, 1.0, -2.5, 2.0**99, jnp.inf, -jnp.inf])
    drawn = round_at_random(exact, rounding_words(1, 2), "a")
    np.testing.assert_array_equal(drawn.astype(jnp.float32), exact)
    assert jnp.isnan(round_at_random(jnp.array([jnp.nan]), rounding_words(1, 2), "a")).all()


def test_draws_are_keyed_by_seed_step_and_path_and_alike_on_every_mesh():
    x = jax.random.normal(jax.random.key(0), (4, 16, 8))
    draw = jax.jit(round_at_random, static_argnums=2)
    first = np.asarray(draw(x, rounding_words(0, 0), "a"))
    for words, path in (
        (rounding_words(1, 0), "a"),
        (rounding_words(0, 1), "a"),
        (rounding_words(0, 0), "b"),
    ):
        assert 0.1 < (np.asarray(draw(x, words, path)) != first).mean() < 0.6
    mesh = make_mesh(1, 4, 2)
    cut = jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor")))
    np.testing.assert_array_equal(np.asarray(draw(cut, rounding_words(0, 0), "a")), first)


def test_updates_below_half_a_digit_add_up():
    """1,000 updates of 1e-4 on weights of 1, whose last digit is 1/128. Rounded to the nearest they stay at
    1."""
    weights, path = {"blocks.up.kernel": jnp.ones((2, 50, 50), BF16)}, "blocks.up.kernel"
    change = {path: jnp.full((2, 50, 50), 1e-4)}

    def step(n, weights):
        return apply_updates(weights, change, rounding_words(0, n))

    trained = jax.jit(lambda weights: jax.lax.fori_loop(0, 1000, step, weights))(weights)[path]
    assert trained.dtype == BF16
    np.testing.assert_allclose(trained.astype(jnp.float32).mean(), 1.1, atol=0.005)


# ---------------------------------------------------------------- moments

SHAPES = {"embed.embedding": (12, 20), "blocks.up.kernel": (3, 20, 30), "blocks.up.bias": (3, 30)}


def group_weights(masks=True):
    draw = np.random.default_rng(0).normal
    weights = {"policy": {path: jnp.asarray(draw(size=shape), jnp.float32) for path, shape in SHAPES.items()}}
    return weights | {"masks": {"common.weight": jnp.ones((2, 3))} if masks else {}}


def steps_of(settings, count=40, weights=None):
    """(weights, optimizer's state) after some steps on gradients that keep their size by element."""
    config = make_config(po={"optimizer": {"learning_rate": 0.01, **settings}, "clip_norm": None})
    optimizer, _ = make_optimizer(config, config.po, count, 16)
    weights = weights or group_weights()
    size = jax.tree.map(lambda x: jnp.exp(x), weights)

    @jax.jit
    def step(n, carried):
        weights, state = carried
        key = jax.random.fold_in(jax.random.key(3), n)
        gradient = jax.tree.map(lambda x: x * (0.3 + jax.random.normal(key, x.shape)), size)
        words = rounding_words(0, n)
        change, state = optimizer.update(gradient, state, weights, words=words)
        return apply_updates(weights, change, words), state

    carried = weights, optimizer.init(weights)
    for n in range(count):
        carried = step(n, carried)
    return carried


@pytest.mark.parametrize("kind", slow_but(["adamw", "muon"], ["adamw", "lion", "muon", "rmsprop"]))
def test_moments_in_bfloat16_move_weights_as_float32_ones_do(kind):
    """And only those of matrices are held so. Kills: masks, norms or biases in bfloat16; arithmetic in it."""
    (plain, _), (held, state) = steps_of({"kind": kind}), steps_of({"kind": kind, "moments": "bfloat16"})
    of_path = {jax.tree_util.keystr(path): x.dtype for path, x in jax.tree.leaves_with_path(state)}
    narrow = {path for path, dtype in of_path.items() if dtype == BF16}
    assert narrow and narrow == {path for path in of_path if path.endswith((".kernel']", ".embedding']"))}
    for path, x in plain["policy"].items():
        moved = np.asarray(x - group_weights()["policy"][path])
        apart = np.asarray(held["policy"][path]) - np.asarray(x)
        assert np.abs(moved).mean() > 0.01
        assert np.abs(apart).mean() < 0.06 * np.abs(moved).mean(), (path, np.abs(apart).mean())
        assert path != "blocks.up.bias" or not apart.any()


def test_a_mean_square_in_bfloat16_falls_as_it_should():
    """After one large gradient and 1,000 of zero at b2 = 0.999 it is 0.37 of what it was. Kills: rounding to
    the nearest, which leaves it where it was."""
    rate = optax.constant_schedule(0.0)
    optimizer = make_group_optimizer(
        adamw_rule(0.9, 0.999, 1e-8, "bfloat16"),
        policy_schedule=rate,
        policy_decay=0.0,
        mask_schedule=rate,
        mask_decay=0.0,
        clip_norm=None,
    )
    weights = {"policy": {"embed.embedding": jnp.ones((40, 50))}, "masks": {}}

    def step(n, state):
        gradient = jax.tree.map(lambda x: jnp.where(n == 0, x, 0.0), weights)
        return optimizer.update(gradient, state, weights, words=rounding_words(0, n))[1]

    state = jax.jit(lambda state: jax.lax.fori_loop(0, 1001, step, state))(optimizer.init(weights))
    (square,) = (x for path, x in jax.tree.leaves_with_path(state) if ".nu" in jax.tree_util.keystr(path))
    assert square.dtype == BF16
    np.testing.assert_allclose(square.astype(jnp.float32).mean(), 1e-3 * 0.999**1000, rtol=0.02)


def test_moments_in_bfloat16_without_words_are_refused():
    config = make_config(po={"optimizer": {"moments": "bfloat16"}})
    optimizer, _ = make_optimizer(config, config.po, 10, 16)
    weights = group_weights()
    with pytest.raises(ValueError, match="need the step's words"):
        optimizer.update(weights, optimizer.init(weights), weights)


# ---------------------------------------------------------------- Muon and RMSProp


def test_muon_takes_each_layer_for_a_matrix_and_adam_what_is_none():
    """Against optax.contrib.muon on single layers, and optax.adamw. Kills: a stack that is one matrix; biases
    or embeddings in Muon's hands; weight decay that the learning rate does not scale."""
    settings = {"kind": "muon", "weight_decay": 0.1}
    (weights, _), first = steps_of(settings, 3), group_weights()
    constant = make_config(po={"schedule": {"kind": "cosine"}, "optimizer": {"learning_rate": 0.01}})
    _, rate = make_optimizer(constant, constant.po, 3, 16)
    layers = {str(n): first["policy"]["blocks.up.kernel"][n] for n in range(3)}
    muon = contrib.muon(rate, weight_decay=0.1, consistent_rms=0.2)
    adam = optax.adamw(rate, weight_decay=0.1)
    table = first["policy"]["embed.embedding"]
    carried = (layers, muon.init(layers)), (table, adam.init(table))
    for n in range(3):
        key = jax.random.fold_in(jax.random.key(3), n)

        def gradient(path, key=key):
            size = jnp.exp(first["policy"][path])
            return size * (0.3 + jax.random.normal(key, size.shape))

        (layers, muon_state), (table, adam_state) = carried
        of_layers = {str(m): g for m, g in enumerate(gradient("blocks.up.kernel"))}
        change, muon_state = muon.update(of_layers, muon_state, layers)
        table_change, adam_state = adam.update(gradient("embed.embedding"), adam_state, table)
        carried = (optax.apply_updates(layers, change), muon_state), (table + table_change, adam_state)
    (layers, _), (table, _) = carried
    for n in range(3):
        np.testing.assert_allclose(weights["policy"]["blocks.up.kernel"][n], layers[str(n)], atol=1e-5)
    np.testing.assert_allclose(weights["policy"]["embed.embedding"], table, atol=UPDATE)
    step = np.asarray(weights["policy"]["blocks.up.kernel"] - first["policy"]["blocks.up.kernel"])
    assert 0.1 * 0.01 < np.sqrt((step**2).mean()) < 3 * 0.4 * 0.01  # as large as Adam's


def test_rmsprop_is_pytorch_s():
    torch = pytest.importorskip("torch")
    first = group_weights(masks=False)
    (weights, _) = steps_of({"kind": "rmsprop"}, 4, first)
    theirs = {path: torch.tensor(np.asarray(x)) for path, x in first["policy"].items()}
    optimizer = torch.optim.RMSprop(theirs.values(), lr=1.0, alpha=0.99, eps=1e-8)
    _, rate = make_optimizer(
        *(lambda config: (config, config.po))(make_config(po={"optimizer": {"learning_rate": 0.01}})), 4, 16
    )
    for n in range(4):
        key = jax.random.fold_in(jax.random.key(3), n)
        for path, x in first["policy"].items():
            gradient = jnp.exp(x) * (0.3 + jax.random.normal(key, x.shape))
            theirs[path].grad = torch.tensor(np.asarray(gradient))
        optimizer.param_groups[0]["lr"] = float(rate(n))
        optimizer.step()
    for path, x in theirs.items():
        np.testing.assert_allclose(weights["policy"][path], x.numpy(), atol=1e-5, err_msg=path)


# ---------------------------------------------------------------- weights and reference


def first_scores(policy_held, reference_held, dtype):
    """Log-probs of policy and reference that begin as one, however each is held."""
    spec = spec_from_hf(LLAMA | {"initializer_range": 0.3})
    graph, weights = split_module(nnx.eval_shape(lambda: Decoder(spec, dtype=dtype, rngs=nnx.Rngs(0))))
    weights = split_module(Decoder(spec, rngs=nnx.Rngs(0)))[1]
    policy = hold_base(weights, policy_held)
    problem = Problem(
        graph,
        graph,
        fixed_source("ones", on="both", normalised=False),
        functools.partial(sparsepo_loss, beta=0.5),
        seed=0,
        head_blocks=HeadBlocks(tokens=7, vocabulary=12),
    )
    scores = jax.jit(make_pair_scores(problem, training=True))
    return scores(
        {"policy": policy, "masks": {}}, hold_base(policy, reference_held), random_batch(), jnp.int32(0)
    )


@pytest.mark.parametrize(
    ("policy", "reference", "dtype"),
    [
        ("float32", "bfloat16", BF16),  # what auto takes on a GPU
        ("bfloat16", "bfloat16", BF16),
        ("bfloat16", "bfloat16", jnp.float32),
        ("bfloat16", "float32", jnp.float32),
    ],
)
def test_at_step_0_the_loss_is_that_of_policy_and_reference_alike(policy, reference, dtype):
    metrics, stats, _ = first_scores(policy, reference, dtype)
    np.testing.assert_array_equal(stats.logp_BPT, stats.ref_logp_BPT)
    np.testing.assert_array_equal(metrics["loss"], np.log(np.float32(2)))


HELD = {
    "compute": {"weights": "bfloat16"},
    "po": {"steps": 5, "batch_size": 8, "optimizer": {"learning_rate": 1e-3, "moments": "bfloat16"}},
    "sft": {"steps": 3, "batch_size": 8, "optimizer": {"learning_rate": 3e-3, "moments": "bfloat16"}},
    "checkpoint": {"every_steps": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_an_interrupted_run_continues_bit_for_bit(tmp_path, monkeypatch, kind):
    """Weights and moments in bfloat16. Kills: draws that a count since the start keys; moments that come back
    in another type."""
    po = {
        "steps": 5,
        "batch_size": 16,
        "accumulation": 2,
        "optimizer": {**HELD["po"]["optimizer"], "kind": kind},
    }
    changes = HELD | {"stages": ["po"], "po": po}
    undisturbed = run(tmp_path / "whole", **changes)
    config = write_config(tmp_path / "parts", **changes)
    with monkeypatch.context() as patched:
        stop_before(patched, 3)
        with pytest.raises(Interrupted):
            main(["--config", str(config)])
    assert main(["--config", str(config)]) == 0
    expected, resumed = weights_of(undisturbed / "po"), weights_of(tmp_path / "parts" / "run" / "po")
    narrow = {path for path, x in expected.items() if x.dtype == BF16}
    assert narrow == {path for path in expected if path.endswith((".kernel", ".embedding"))} != set()
    assert expected.keys() == resumed.keys()
    for path in expected:
        np.testing.assert_array_equal(resumed[path], expected[path], err_msg=path)


@pytest.mark.slow
def test_a_run_in_bfloat16_trains_and_exports_what_it_trained(tmp_path, capsys):
    """All stages; the export scores as the trained policy does, and another run starts from it. Kills: a
    stage that reads the weights in another type than they were kept in."""
    from sparsepo_jax.models.stored_tensors import SafeTensors, find_checkpoint

    stages = ["sft", "po", "score", "eval", "export"]
    output = run(tmp_path, stages=stages, export={"dtype": "bfloat16"}, **HELD)
    printed = capsys.readouterr().out
    assert "step 1: loss 0.6931 is that of policy = reference" in printed
    assert SafeTensors(find_checkpoint(str(output / "export"))).dtype() == "bfloat16"
    trained = weights_of(output / "po")
    start = weights_of(output / "sft")
    moved = np.abs(trained["policy/embed.embedding"].astype(np.float32) - start["policy/embed.embedding"])
    assert moved.max() > 0
    again = run(
        tmp_path / "again",
        stages=["score"],
        policy={"path": str(output / "export"), "config": None},
        tokenizer={"kind": "auto"},
        compute={"weights": "bfloat16"},
    )
    for ours, theirs in zip(lines_of(again / "scores.jsonl"), lines_of(output / "scores.jsonl"), strict=True):
        # Norms and biases were rounded by the export.
        np.testing.assert_allclose(ours["chosen"]["logp"], theirs["chosen"]["logp"], atol=0.02)


@pytest.mark.slow
def test_adapters_on_a_policy_in_bfloat16_are_float32_and_merge_into_it(tmp_path):
    lora = {"lora": {"rank": 2}}
    changes = HELD | {"sft": HELD["sft"] | lora, "po": HELD["po"] | lora}
    output = run(tmp_path, stages=["sft", "po", "export"], **changes)
    adapters, start = weights_of(output / "po"), weights_of(output / "sft")
    assert {x.dtype for path, x in adapters.items() if ".lora." in path} == {np.dtype(np.float32)}
    assert start["policy/embed.embedding"].dtype == BF16 and (output / "export/adapter").exists()


def test_a_reference_that_would_be_rounded_away_from_the_policy_is_refused(tmp_path, capsys):
    config = write_config(tmp_path, stages=["po"], reference={"dtype": "bfloat16"})
    assert main(["--config", str(config)]) == 1
    error = capsys.readouterr().err
    assert "reference.dtype: bfloat16 would round" in error and "take auto, or also" in error


@pytest.mark.slow
def test_a_run_of_before_these_settings_goes_on_and_another_type_is_refused(tmp_path, capsys):
    """Its marks name none of them. Kills: a default that counts as a change."""
    output = run(tmp_path, stages=["po"])
    path = output / "stages.json"
    marks = json.loads(path.read_text())
    assert "weights" not in json.dumps(marks) and "moments" not in json.dumps(marks)
    config = make_config(output_dir=str(output), stages=["po"], compute={"weights": "bfloat16"})
    assert Marks(config).depends("po")["compute"] == {"weights": "bfloat16"}
    capsys.readouterr()
    assert main(["--config", str(write_config(tmp_path, stages=["po"])), "compute.weights=bfloat16"]) == 1
    assert "other settings: compute.weights;" in capsys.readouterr().err


def test_start_state_has_float32_moments_of_bfloat16_weights():
    config = make_config()
    optimizer, _ = make_optimizer(config, config.po, 3, 16)
    weights = {
        "policy": hold_base(split_module(Decoder(spec_from_hf(GPT2), rngs=nnx.Rngs(0)))[1], "bfloat16")
    }
    state = start_state(weights | {"masks": {}}, optimizer)
    assert BF16 in {x.dtype for x in jax.tree.leaves(state.weights)}
    assert BF16 not in {x.dtype for x in jax.tree.leaves(state.optimizer)}


# ---------------------------------------------------------------- the host's memory


@pytest.mark.slow
def test_what_lies_on_the_host_trains_the_same_and_continues_bit_for_bit(tmp_path, monkeypatch):
    """The same as without it but for rounding: another program. Kills: moments that stay where they were; a
    reference that is read in another order of layers."""
    from sparsepo_jax.core.host_memory import is_on_host
    from sparsepo_jax.train import loop

    changes = {"stages": ["po"], "po": HELD["po"], "checkpoint": {"every_steps": 2}}
    plain = run(tmp_path / "plain", **changes)
    on_host = changes | {"compute": {"offload": "both"}}
    uninterrupted = weights_of(run(tmp_path / "uninterrupted", **on_host) / "po")
    config = write_config(tmp_path / "host", **on_host)
    places = []
    run_training = loop.run_training

    def looked_at(work, state, **rest):
        places.append((state.optimizer, work.reference))
        return run_training(work, state, **rest)

    monkeypatch.setattr(loop, "run_training", looked_at)
    with monkeypatch.context() as patched:
        stop_before(patched, 3)
        with pytest.raises(Interrupted):
            main(["--config", str(config)])
    assert main(["--config", str(config)]) == 0
    for path, x in weights_of(tmp_path / "host/run/po").items():
        np.testing.assert_array_equal(x, uninterrupted[path], err_msg=path)
    for path, x in weights_of(plain / "po").items():
        np.testing.assert_allclose(uninterrupted[path], x, rtol=1e-4, atol=1e-6, err_msg=path)
    assert places
    for optimizer, reference in places:
        moments = [x for x in jax.tree.leaves(optimizer) if x.dtype == BF16]
        assert moments and all(map(is_on_host, moments))
        assert {path for path, x in reference.items() if is_on_host(x)} == {
            path for path in reference if path.startswith("blocks.") and path.endswith(".kernel")
        }


def test_devices_that_do_not_reach_the_host_s_memory_are_refused(monkeypatch):
    from types import SimpleNamespace

    from sparsepo_jax.aot.compile import compile_step
    from sparsepo_jax.aot.topology import find_topology
    from sparsepo_jax.build.compute import check_offload
    from sparsepo_jax.core.errors import UserError

    device = SimpleNamespace(
        device_kind="Some card", addressable_memories=lambda: [SimpleNamespace(kind="device")]
    )
    mesh = SimpleNamespace(devices=np.array([device]))
    check_offload(make_config(), mesh)
    with pytest.raises(UserError, match="optimizer needs devices .* Some card has device: take nothing"):
        check_offload(make_config(compute={"offload": "optimizer"}), mesh)
    with pytest.raises(UserError, match="not here: compile with compute.offload=nothing"):
        compile_step(make_config(compute={"offload": "optimizer"}), find_topology("v5e-4"))
    with pytest.raises(ValueError, match="compute.offload: both does not go with po.lora"):
        make_config(compute={"offload": "both"}, po={"lora": {}})
