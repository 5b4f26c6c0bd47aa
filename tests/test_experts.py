"""Mixtures of experts: bookkeeping, products and their gradients, and transformers' own experts."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from helpers.configs import make_config
from helpers.parity import IDS, VALID, load_ours, make_theirs, our_logits, their_outputs
from helpers.program import write_config
from helpers.quick import slow_but
from helpers.tiny import CONFIGS, GPT2, QWEN3_MOE, random_batch
from helpers.tolerances import GRADIENT, PARITY_LOGITS, SHARDED, TOKEN
from helpers.triton_modules import verified_triton_modules
from helpers.wrapped import WRAPPED
from sparsepo_jax.build.compute import choose_experts as choose_kernel
from sparsepo_jax.build.lora import make_lora
from sparsepo_jax.build.objective import make_problem
from sparsepo_jax.build.step import make_step
from sparsepo_jax.build.weights import add_adapter
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.tree import split_module
from sparsepo_jax.losses.token_weighted import sparsepo_loss
from sparsepo_jax.main import main
from sparsepo_jax.masks.source import fixed_source
from sparsepo_jax.models.adapter import Adapter
from sparsepo_jax.models.config_fields import SpecError
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.decoder_spec import choose_projections
from sparsepo_jax.models.experts import Mlp, dispatch_on
from sparsepo_jax.models.export import save_peft
from sparsepo_jax.models.lora import Lora, dequantized, hold_base, merge_adapters, split_adapters
from sparsepo_jax.models.mixture import Mixture
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.ops import grouped, grouped_kernels
from sparsepo_jax.ops.grouped import Dispatch, group_by_expert
from sparsepo_jax.ops.routing import (
    RouterSums,
    auxiliary_loss,
    choice_counts,
    choose_experts,
    probability_sums,
    router_metrics,
    shares_of,
)
from sparsepo_jax.sharding.experts import make_spread_experts
from sparsepo_jax.sharding.mesh import make_constrain, make_mesh, make_spread, put_batch
from sparsepo_jax.sharding.rules import state_shardings
from sparsepo_jax.train.problem import Problem
from sparsepo_jax.train.step import make_pair_loss

MIXTURES = {
    "more rows than a block": (Mixture(8, 2, 20), 40),
    "fewer tokens than experts": (Mixture(24, 3, 8, normalised=True), 3),
    "all experts": (Mixture(3, 3, 8), 5),
    "gpt-oss": (Mixture(5, 2, 12, normalised=True, bias=True, swiglu=(1.702, 0.7)), 9),
}
KERNELS = ("blocks", "ragged", "triton")


@functools.cache
def drawn(name):
    """(mixture, stacks of weights with adapters, states [2, S, D], router logits)."""
    mixture, S = MIXTURES[name]
    rng = np.random.default_rng(len(name))

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    stacks = {}
    for projection, (inputs, outputs) in mixture.projections(12).items():
        E = mixture.experts
        stack = {"kernel": normal(E, inputs, outputs), "a": normal(E, inputs, 2), "b": normal(E, 2, outputs)}
        if mixture.bias:
            stack["bias"] = normal(E, outputs)
        stacks[projection.removeprefix("experts.")] = stack
    return mixture, stacks, normal(2, S, 12), normal(2, S, mixture.experts)


def outputs_and_gradients(kernel, name, spread=None):
    mixture, stacks, x_BSD, logits_BSE = drawn(name)
    weight_BSD = jnp.sin(jnp.arange(x_BSD.size)).reshape(x_BSD.shape)
    mlp = Mlp(mixture, "silu", 0.5, kernel)

    def loss(stacks, x_BSD, logits_BSE):
        choice_BSK = choose_experts(logits_BSE, mixture.chosen)
        share_BSK = shares_of(logits_BSE, choice_BSK, normalised=mixture.normalised)
        tokens = (x_BSD, share_BSK, choice_BSK)
        out_BSD = mlp(stacks, tokens, 0) if spread is None else spread(mlp, stacks, tokens)
        return (weight_BSD * out_BSD).sum(), out_BSD

    (_, out_BSD), gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(
        stacks, x_BSD, logits_BSE
    )
    return out_BSD, gradient


@functools.cache
def by_every_expert(name):
    return outputs_and_gradients("dense", name)


# Each kernel on its own device, and on a mesh where each device has one expert of eight.
@pytest.mark.parametrize(
    ("kernel", "name", "mesh_shape"),
    slow_but(
        [
            ("blocks", "gpt-oss", None),
            ("ragged", "fewer tokens than experts", None),
            ("triton", "gpt-oss", None),
            ("triton", "more rows than a block", (1, 2, 4)),
        ],
        [(kernel, name, None) for kernel in KERNELS for name in MIXTURES]
        + [(kernel, "more rows than a block", (1, 2, 4)) for kernel in ("ragged", "triton")],
    ),
)
def test_grouped_products_equal_every_expert_on_every_token(kernel, name, mesh_shape, monkeypatch):
    """Kills: a row that is dropped or counted twice, a gradient or a device of another expert."""
    monkeypatch.setattr(grouped_kernels, "INTERPRET", True)
    spread = None if mesh_shape is None else make_spread_experts(make_mesh(*mesh_shape))
    (out, gradient), (plain, derived) = outputs_and_gradients(kernel, name, spread), by_every_expert(name)
    np.testing.assert_allclose(out, plain, rtol=TOKEN, atol=TOKEN * float(jnp.abs(plain).max()))
    for ours, theirs in zip(*map(jax.tree.leaves, (gradient, derived)), strict=True):
        scale = float(jnp.abs(theirs).max())
        assert scale > 0
        np.testing.assert_allclose(ours, theirs, atol=GRADIENT * scale)


@pytest.mark.parametrize("name", slow_but(["gpt-oss"], MIXTURES))
def test_devices_with_a_part_of_the_experts_add_up_to_all(name):
    """Kills: a choice of another device's expert that lands on one of this device's."""
    mixture, stacks, x_BSD, logits_BSE = drawn(name)
    choice_BSK = choose_experts(logits_BSE, mixture.chosen)
    tokens = x_BSD, shares_of(logits_BSE, choice_BSK, normalised=mixture.normalised), choice_BSK
    mlp = Mlp(mixture, "silu", 0.5, "blocks")
    cut = mixture.experts // 3

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def part(begin, end, stacks, tokens):
        return mlp(jax.tree.map(lambda x: x[begin:end], stacks), tokens, begin)

    first, last, all_of_them = (
        part(begin, end, stacks, tokens)
        for begin, end in ((0, cut), (cut, mixture.experts), (0, mixture.experts))
    )
    np.testing.assert_allclose(first + last, all_of_them, rtol=TOKEN, atol=1e-4)


def test_the_documented_example_of_groups(monkeypatch):
    monkeypatch.setattr(grouped, "LEAST", 2)
    groups = group_by_expert(jnp.array([[0, 2], [2, 1], [2, 0]]), 3)
    np.testing.assert_array_equal(groups.expert_I[:4], [0, 1, 2, 2])
    np.testing.assert_array_equal(groups.choice_Y[:8], [0, 5, 3, 6, 1, 2, 4, 6])
    np.testing.assert_array_equal(groups.row_TK, [[0, 4], [5, 2], [6, 1]])
    np.testing.assert_array_equal(groups.blocks_E, [1, 1, 2])


@pytest.mark.parametrize("seed", slow_but(range(4), range(20)))
def test_every_choice_has_a_row_in_a_block_of_its_expert(seed):
    """However unevenly tokens choose: all on one expert is the worst that the rows must hold."""
    rng = np.random.default_rng(seed)
    T, E = int(rng.integers(1, 90)), int(rng.integers(1, 20))
    K = int(rng.integers(1, E + 1))
    first, here = (0, E) if seed % 2 else (E // 3, E - E // 2)
    liked = rng.normal(size=E) * seed
    choice_TK = np.argsort(-(liked + rng.normal(size=(T, E))), axis=1)[:, :K]
    groups = group_by_expert(jnp.asarray(choice_TK), here, first)
    rows = len(groups.choice_Y)
    for token, places in enumerate(np.asarray(groups.row_TK)):
        for place, row in enumerate(places):
            expert = choice_TK[token, place] - first
            assert (row < rows) == (0 <= expert < here)
            if row < rows:
                assert groups.choice_Y[row] == token * K + place
                assert groups.expert_I[row // groups.block] == expert
                assert row // groups.block < groups.blocks_E.sum()
    assert (groups.choice_Y < T * K).sum() == ((choice_TK >= first) & (choice_TK < first + here)).sum()


def test_experts_of_gpt_oss_equal_transformers():
    """Kills: gate and up the wrong way round, a cut on one side only, a bias that is not weighted."""
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP

    config = GptOssConfig(
        hidden_size=12, intermediate_size=8, num_local_experts=5, num_experts_per_tok=2, swiglu_limit=0.5
    )
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    theirs = GptOssMLP(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x_BSD = np.random.default_rng(0).normal(size=(2, 7, 12)).astype(np.float32)
    expected = theirs(torch.tensor(x_BSD))[0].detach().numpy()
    arrays = {name: jnp.asarray(x.detach().numpy()) for name, x in theirs.named_parameters()}
    fused, bias = arrays["experts.gate_up_proj"], arrays["experts.gate_up_proj_bias"]
    stacks = {
        "gate": {"kernel": fused[..., ::2], "bias": bias[:, ::2]},
        "up": {"kernel": fused[..., 1::2], "bias": bias[:, 1::2]},
        "down": {"kernel": arrays["experts.down_proj"], "bias": arrays["experts.down_proj_bias"]},
    }
    logits_BSE = x_BSD @ arrays["router.weight"].T + arrays["router.bias"].reshape(1, 1, -1)
    choice_BSK = choose_experts(logits_BSE, 2)
    share_BSK = shares_of(logits_BSE, choice_BSK, normalised=True)
    mixture = Mixture(5, 2, 8, normalised=True, bias=True, swiglu=(config.swiglu_alpha, config.swiglu_limit))
    ours = Mlp(mixture, "silu", 0.0, "blocks")(stacks, (jnp.asarray(x_BSD), share_BSK, choice_BSK), 0)
    np.testing.assert_allclose(ours, expected, atol=PARITY_LOGITS * np.abs(expected).max())


@pytest.mark.parametrize("name", ["qwen3 moe, a layer without experts", "mixtral"])
def test_stacks_of_experts_load_as_experts_one_by_one_do(name, tmp_path):
    """transformers 5 holds stacks; it writes them if it is asked not to write what the Hub has."""
    model = make_theirs(CONFIGS[name])
    model.save_pretrained(tmp_path, save_original_format=False)
    _, graph, weights = load_ours(tmp_path)
    ids_BS, valid_BS = np.random.default_rng(1).integers(0, 31, (2, 9)), np.ones((2, 9), bool)
    expected = their_outputs(model, ids_BS, valid_BS).logits.numpy()
    np.testing.assert_allclose(our_logits(graph, weights, ids_BS, valid_BS)[0], expected, atol=PARITY_LOGITS)


def test_active_parameters_are_those_of_the_chosen_experts():
    spec = spec_from_hf(QWEN3_MOE)
    of_an_expert = 3 * 16 * 8
    assert spec.parameter_count() - spec.active_parameter_count() == 2 * (6 - 2) * of_an_expert


@pytest.mark.parametrize(
    "plain", [{"decoder_sparse_step": 3}, {"decoder_sparse_step": 2, "mlp_only_layers": [3, 9]}]
)
def test_the_layers_without_experts_are_those_of_transformers(plain):
    """And so are the weights of the model, of which `--check` tells."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = QWEN3_MOE | {"num_hidden_layers": 6} | plain
    spec = spec_from_hf(config)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    has_experts = [hasattr(layer.mlp, "experts") for layer in theirs.model.layers]
    assert [n in spec.layers_with_experts() for n in range(6)] == has_experts
    assert spec.parameter_count() == sum(x.numel() for x in theirs.parameters())


def test_a_model_whose_layers_all_lack_experts_is_a_plain_one():
    spec = spec_from_hf(QWEN3_MOE | {"mlp_only_layers": [0, 1]})
    assert spec.mixture is None and spec.kind_of_layer == () and "up" in spec.projections()


def test_adapters_go_to_experts_only_if_they_are_named():
    spec = spec_from_hf(QWEN3_MOE)
    assert all(name.startswith("attention.") for name in choose_projections((".",), spec))
    assert choose_projections(("experts.down",), spec) == ("experts.down",)
    shared = choose_projections((".",), spec_from_hf(CONFIGS["qwen3.5 moe"]))
    assert "shared.up" in shared and "experts.up" not in shared
    mixed = spec_from_hf(CONFIGS["qwen3 moe, a layer without experts"])
    assert choose_projections(("down",), mixed) == ("down",)
    with pytest.raises(SpecError, match="down' fits no projection; there are attention"):
        choose_projections(("^down",), spec)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_experts_per_tok": 7}, "7 of 6 experts"),
        ({"num_experts": None}, "num_local_experts: missing"),
    ],
)
def test_mixtures_that_cannot_run_are_refused_by_name(change, words):
    with pytest.raises(SpecError, match=words):
        spec_from_hf(QWEN3_MOE | change)


# ---------------------------------------------------------------- training


@functools.cache
def trained(plain=()):
    """(graph, weights of policy and masks, reference) of a mixture of 8 experts, but for the plain layers."""
    spec = spec_from_hf(
        QWEN3_MOE | {"num_experts": 8, "initializer_range": 0.3, "mlp_only_layers": list(plain)}
    )
    graph, policy = split_module(Decoder(spec, rngs=nnx.Rngs(0)))
    return graph, {"policy": policy, "masks": {}}, split_module(Decoder(spec, rngs=nnx.Rngs(1)))[1]


def problem_of(plain=(), **settings):
    graph = trained(plain)[0]
    source = fixed_source("ones", on="both", normalised=False)
    objective = functools.partial(sparsepo_loss, beta=0.5, l1_reward=0.0, l1_kl=0.0, shared=True)
    return Problem(graph, graph, source, objective, seed=0, **settings)


def gradient_of(problem, batch, weights, reference):
    """(loss, metrics, gradient, the compiled program)."""
    step = jax.jit(jax.value_and_grad(make_pair_loss(problem), has_aux=True))
    compiled = step.lower(weights, reference, batch, jnp.int32(0)).compile()
    (loss, (metrics, *_)), gradient = compiled(weights, reference, batch, jnp.int32(0))
    return loss, metrics, gradient["policy"], compiled


@functools.cache
def on_one_device(plain):
    """By every expert on every token, and with a prompt for each response."""
    _, weights, reference = trained(plain)
    batch = random_batch(8, shared=False, rows=8)
    problem = problem_of(plain, dispatch=Dispatch("dense"), attention="xla")
    return gradient_of(problem, batch, weights, reference)[:3]


@pytest.mark.parametrize(
    ("mesh_shape", "plain"),
    [
        ((2, 2, 2), (1,)),
        pytest.param((1, 8, 1), (), marks=pytest.mark.slow),
        pytest.param((8, 1, 1), (), marks=pytest.mark.slow),
        pytest.param((2, 4, 1), (0,), marks=pytest.mark.slow),
        pytest.param((2, 4, 1), (), marks=pytest.mark.slow),
        pytest.param((1, 1, 8), (), marks=pytest.mark.slow),
        pytest.param((1, 2, 4), (1,), marks=pytest.mark.slow),
    ],
)
def test_experts_on_a_mesh_give_what_one_device_gives_and_stay_where_they_are(mesh_shape, plain):
    """Prompts run once here. Kills: an expert that two devices count, one that travels, a lost token.

    plain: layers without experts.
    """
    _, weights, reference = trained(plain)
    mesh = make_mesh(*mesh_shape)
    dispatch = dispatch_on("cpu", make_spread_experts(mesh))
    problem = problem_of(plain, constrain=make_constrain(mesh), spread=make_spread(mesh), dispatch=dispatch)
    rows = mesh_shape[0] * mesh_shape[1]
    batch = put_batch(jax.tree.map(lambda x: x[None], random_batch(8, rows=rows, spare=3)), mesh)
    weights, reference = (jax.device_put(x, state_shardings(x, mesh)) for x in (weights, reference))
    with jax.set_mesh(mesh):
        loss, _, gradient, compiled = gradient_of(
            problem, jax.tree.map(lambda x: x[0], batch), weights, reference
        )
    expected_loss, _, expected = on_one_device(plain)
    np.testing.assert_allclose(loss, expected_loss, rtol=SHARDED)
    for path, theirs in expected.items():
        scale = float(np.abs(theirs).max())
        np.testing.assert_allclose(gradient[path], theirs, atol=SHARDED * max(scale, 1e-2), err_msg=path)
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", compiled.as_text())
    experts = {"8,16,8", "8,8,16", "1,8,16,8", "1,8,8,16", "2,8,16,8", "2,8,8,16"}
    assert not experts & set(gathered), gathered


def test_the_auxiliary_loss_is_transformers_own():
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    rng = np.random.default_rng(0)
    logits_LBSE = rng.normal(size=(3, 2, 7, 5)).astype(np.float32)
    valid_BS = jnp.arange(7)[None] < jnp.array([[7], [4]])
    expected = load_balancing_loss_func(
        tuple(torch.tensor(x.reshape(14, 5)) for x in logits_LBSE), 5, 2, torch.tensor(np.asarray(valid_BS))
    )
    sums = RouterSums(
        jnp.stack([choice_counts(choose_experts(x, 2), 5, valid_BS) for x in jnp.asarray(logits_LBSE)]),
        jnp.stack([probability_sums(x, valid_BS) for x in jnp.asarray(logits_LBSE)]),
        valid_BS.sum().astype(jnp.float32),
    )
    np.testing.assert_allclose(auxiliary_loss(sums), expected.numpy(), rtol=TOKEN)


def test_how_evenly_experts_are_used_by_hand():
    """Of four choices three, one and none: the busiest has 3/4; entropy 0.5623 of ln 3 = 1.0986."""
    sums = RouterSums(jnp.array([[3.0, 1.0, 0.0]]), jnp.array([[2.0, 1.0, 1.0]]), jnp.float32(4))
    metrics = router_metrics(sums)
    np.testing.assert_allclose(metrics["router/busiest"], 0.75)
    np.testing.assert_allclose(metrics["router/evenness"], 0.562335 / math.log(3), rtol=1e-5)


@pytest.mark.slow
def test_the_auxiliary_loss_counts_only_if_it_is_asked_for():
    _, weights, reference = trained()
    batch = random_batch(4)
    (plain, metrics, without, _), (asked, _, gradient, _) = (
        gradient_of(problem_of(router_aux=factor), batch, weights, reference) for factor in (0.0, 0.1)
    )
    np.testing.assert_allclose(asked - plain, 0.1 * metrics["router/auxiliary_loss"], rtol=1e-4)
    router = "blocks.experts.router.weight"
    assert np.abs(gradient[router] - without[router]).max() > 1e-4
    assert np.array_equal(gradient["head.embedding"], without["head.embedding"])


@pytest.mark.slow
def test_routing_is_the_policys_own_unless_it_is_replayed():
    """With the reference's routing, another router of the policy changes shares and no choices.

    Its gradient is that of the shares, and the same as without where it would choose the same by itself.
    """
    _, _, reference = trained()
    batch = random_batch(4)
    router = "blocks.experts.router.weight"
    same = {"policy": reference, "masks": {}}
    turned = {"policy": {**reference, router: -reference[router]}, "masks": {}}

    def evenness_and_gradient(replays):
        problem = problem_of(replays_routing=replays)
        compiled = gradient_of(problem, batch, same, reference)[3]
        results = [compiled(weights, reference, batch, jnp.int32(0)) for weights in (same, turned)]
        return [(metrics["router/evenness"], d["policy"][router]) for (_, (metrics, *_)), d in results]

    (own, own_gradient), (of_turned, _) = evenness_and_gradient(False)
    (replayed, gradient), (replayed_of_turned, gradient_of_turned) = evenness_and_gradient(True)
    assert replayed_of_turned == replayed == own != of_turned
    np.testing.assert_allclose(gradient, own_gradient, atol=GRADIENT * np.abs(own_gradient).max())
    assert np.abs(gradient).max() > 1e-4 and np.abs(gradient_of_turned).max() > 1e-4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reference": {"cached": True}, "objective": {"kind": "dpo"}}, "does not say which experts"),
        ({}, "expected policy and reference with the same layers and experts"),
    ],
)
def test_routing_that_cannot_be_replayed_is_refused(change, words):
    config = make_config(po={"replay_routing": True}, **change)
    spec = spec_from_hf(QWEN3_MOE)
    reference = spec if change else spec_from_hf(QWEN3_MOE | {"num_experts": 4})
    mesh = make_mesh(None, 1, 1)
    with pytest.raises(UserError, match=words):
        make_problem(config, spec, reference, mesh)
    assert make_problem(make_config(po={"replay_routing": True}), spec, spec, mesh).replays_routing


def test_a_dense_policy_has_no_auxiliary_loss():
    config, spec, mesh = (
        make_config(po={"router_aux_coefficient": 0.1}),
        spec_from_hf(GPT2),
        make_mesh(None, 1, 1),
    )
    with pytest.raises(UserError, match="gpt2 has no experts"):
        make_step(config, "po", make_problem(config, spec, spec, mesh), spec, 3, mesh)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")  # its own
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("qwen3 moe", (".", "experts")),
        ("qwen3 moe, a layer without experts", (".", "experts")),
        ("qwen3 moe, a layer without experts", ("gate", "down")),
        ("qwen3 next", ("shared",)),  # with dropout, which PEFT has not where it knows them as parameters
        ("olmoe", (".", "experts")),
        ("gpt-oss", (".", "experts")),
        pytest.param("mixtral", (".", "experts"), marks=pytest.mark.slow),
        pytest.param("qwen3_vl_moe", (".", "experts"), marks=pytest.mark.slow),
        pytest.param("qwen3 next", (".", "experts"), marks=pytest.mark.slow),
        pytest.param("qwen3_5_moe", (".", "experts"), marks=pytest.mark.slow),
        pytest.param("gpt-oss", ("experts.down",), marks=pytest.mark.slow),
        pytest.param("gpt-oss", ("experts.gate", "experts.up"), marks=pytest.mark.slow),
    ],
)
def test_peft_loads_adapters_of_experts_and_we_read_them_again(name, targets, rslora, tmp_path):
    """In the form of PEFT before transformers 5, which newer ones turn into theirs; of stacks in theirs."""
    import peft

    model = make_theirs(CONFIGS.get(name) or WRAPPED[name])
    model.save_pretrained(tmp_path / "base")
    spec, plain, base = load_ours(tmp_path / "base")
    dropout = 0.1 if targets == ("shared",) else 0.0
    lora = Lora(choose_projections(targets, spec), 2, 3.0, dropout, rslora)
    graph, weights = split_module(Decoder(spec, lora=lora, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    adapters = {
        path: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32) if path.endswith("lora_b") else x
        for path, x in split_adapters(weights)[1].items()
    }
    logits_BSV = our_logits(graph, {**base, **adapters}, IDS, VALID)[0]
    merged = merge_adapters(base, adapters, lora.scale)
    np.testing.assert_allclose(our_logits(plain, merged, IDS, VALID)[0], logits_BSV, atol=PARITY_LOGITS)
    save_peft(tmp_path / "adapter", spec, adapters, lora, {}, "# A card", str(tmp_path / "base"))
    theirs = their_outputs(peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval(), IDS, VALID)
    np.testing.assert_allclose(theirs.logits.numpy(), logits_BSV, atol=PARITY_LOGITS)
    read = Adapter(str(tmp_path / "adapter"), spec, "policy.adapter")
    assert read.lora.targets == lora.targets and read.lora.rank == 2
    again = read.weights()
    assert again.keys() == adapters.keys()
    assert all(np.array_equal(again[path], adapters[path]) for path in again)
    into_base = add_adapter({path: jnp.array(x) for path, x in base.items()}, read, make_mesh(None, 1, 1))
    for path, x in merged.items():
        np.testing.assert_allclose(into_base[path], x, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", ["qwen3 moe", pytest.param("gpt-oss", marks=pytest.mark.slow)])
def test_an_adapter_of_stacks_of_experts_that_peft_made_is_read(name, tmp_path):
    """Which names no parameter in its file. Kills: gate and up taken for down, ranks for experts."""
    import peft

    model = make_theirs(CONFIGS[name])
    model.save_pretrained(tmp_path / "base")
    spec, plain, base = load_ours(tmp_path / "base")
    stacks = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
    settings = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj"], target_parameters=stacks)
    adapted = peft.get_peft_model(model, settings).eval()
    with torch.no_grad():
        for path, x in adapted.named_parameters():
            if "lora_B" in path:
                x.normal_(0, 0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    read = Adapter(str(tmp_path / "adapter"), spec, "policy.adapter")
    assert read.lora.targets == choose_projections(("query", "experts"), spec) and read.lora.rank == 3
    merged = merge_adapters(base, read.weights(), 5 / 3)
    into_base = add_adapter({path: jnp.array(x) for path, x in base.items()}, read, make_mesh(None, 1, 1))
    for path, x in merged.items():
        np.testing.assert_allclose(into_base[path], x, atol=1e-6, err_msg=path)
    theirs = their_outputs(adapted, IDS, VALID).logits.numpy()
    np.testing.assert_allclose(our_logits(plain, merged, IDS, VALID)[0], theirs, atol=PARITY_LOGITS)


@pytest.mark.parametrize("held", ["int8", "nf4"])
def test_experts_are_held_in_fewer_bits_one_by_one(held):
    """Kills: a scale that several experts share."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 64, 8)) * 10.0 ** np.arange(3)[:, None, None], jnp.float32)
    path = "blocks.experts.up.kernel"
    back = dequantized(hold_base({path: x}, held))[path]
    error_LE = np.abs(back - x).max((2, 3)) / np.abs(x).max((2, 3))
    assert error_LE.min() > 0 and error_LE.max() < {"int8": 0.006, "nf4": 0.2}[held]


@pytest.mark.parametrize(
    ("lora", "words", "config"),
    [
        ({"targets": ["experts"], "dropout": 0.1}, "adapters of experts have none", QWEN3_MOE),
        ({"targets": ["experts.up"]}, "experts.gate and experts.up get adapters together", QWEN3_MOE),
    ],
)
def test_adapters_of_experts_that_peft_could_not_load_are_refused(lora, words, config):
    with pytest.raises(UserError, match=words):
        make_lora(make_config(po={"lora": lora}).po, "po", spec_from_hf(config))


def test_our_kernels_lower_to_triton():
    """Without a GPU. Kills: a tile that is no power of two, an operation that Triton lacks, mixed types."""
    mixture, stacks, x_BSD, logits_BSE = drawn("gpt-oss")
    mlp = Mlp(mixture, "silu", 0.5, "triton")

    def loss(stacks, x_BSD):
        choice_BSK = choose_experts(logits_BSE, mixture.chosen)
        share_BSK = shares_of(logits_BSE, choice_BSK, normalised=True)
        return mlp(stacks, (x_BSD, share_BSK, choice_BSK), 0).sum()

    for dtype in (jnp.float32, jnp.bfloat16):
        inputs = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), (stacks, x_BSD))
        with verified_triton_modules() as modules:
            text = jax.jit(jax.grad(loss)).trace(*inputs).lower(lowering_platforms=("cuda",)).as_text()
        assert len(modules) > 6 and all("scf.for" in module for module in modules)
        assert text.count("grouped_product") > 6 and "grouped_weight_gradient" in text


def test_a_kernel_of_other_devices_is_refused():
    mesh = make_mesh(None, 1, 1)
    with pytest.raises(UserError, match="triton runs on GPU, and these devices are cpu"):
        choose_kernel(make_config(compute={"experts": "triton"}), mesh)
    assert choose_kernel(make_config(compute={"experts": "dense"}), mesh) == "dense"


def test_a_mask_of_the_group_mlp_alone_is_refused():
    """Kills: a mask without any activation, which would be a division by zero."""
    config = make_config(objective={"kind": "mapo", "mask": {"kind": "activation", "groups": ["mlp"]}})
    spec = spec_from_hf(QWEN3_MOE)
    with pytest.raises(UserError, match="mlp alone is not supported for qwen3_moe"):
        make_problem(config, spec, spec, make_mesh(None, 1, 1))


def test_a_check_knows_what_experts_cannot_do(tmp_path, capsys):
    """Kills: a mistake that shows only when po begins, after sft has been trained."""
    mixture = QWEN3_MOE | {"max_position_embeddings": 64, "vocab_size": None}
    mixture = {name: value for name, value in mixture.items() if value is not None}
    lora = {"rank": 2, "targets": ["experts.up"], "dropout": 0.1}
    config = write_config(tmp_path, po={"router_aux_coefficient": 0.1, "replay_routing": True})
    assert main(["--config", str(config), "--check"]) == 2
    told = capsys.readouterr().err
    assert "po.router_aux_coefficient: gpt2 has no experts; set it to 0" in told
    assert "po.replay_routing: expected policy and reference with the same layers and experts" in told
    config = write_config(tmp_path / "mixture", policy={"config": mixture}, po={"lora": lora})
    assert main(["--config", str(config), "--check"]) == 2
    told = capsys.readouterr().err
    assert "po.lora.dropout: adapters of experts have none" in told
    assert "po.lora.targets: experts.gate and experts.up get adapters together" in told
