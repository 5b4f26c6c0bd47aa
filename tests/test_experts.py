"""Mixtures of experts: bookkeeping, products and their gradients, and transformers' own experts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from helpers.parity import load_ours, make_theirs, our_logits, their_outputs
from helpers.tiny import CONFIGS, QWEN3_MOE
from helpers.tolerances import GRADIENT, PARITY_LOGITS, TOKEN
from sparsepo_jax.models.config_fields import SpecError
from sparsepo_jax.models.decoder_spec import choose_projections
from sparsepo_jax.models.experts import Mlp
from sparsepo_jax.models.mixture import Mixture
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.ops import grouped
from sparsepo_jax.ops.grouped import group_by_expert
from sparsepo_jax.ops.routing import choose_experts, shares_of

MIXTURES = {
    "more rows than a block": (Mixture(8, 2, 20), 40),
    "fewer tokens than experts": (Mixture(24, 3, 8, normalised=True), 3),
    "all experts": (Mixture(3, 3, 8), 5),
    "gpt-oss": (Mixture(5, 2, 12, normalised=True, bias=True, swiglu=(1.702, 0.7)), 9),
}
KERNELS = ("blocks", "ragged")


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


def outputs_and_gradients(kernel, name):
    mixture, stacks, x_BSD, logits_BSE = drawn(name)
    weight_BSD = jnp.sin(jnp.arange(x_BSD.size)).reshape(x_BSD.shape)
    mlp = Mlp(mixture, "silu", 0.5, kernel)

    def loss(stacks, x_BSD, logits_BSE):
        choice_BSK = choose_experts(logits_BSE, mixture.chosen)
        share_BSK = shares_of(logits_BSE, choice_BSK, normalised=mixture.normalised)
        out_BSD = mlp(stacks, (x_BSD, share_BSK, choice_BSK), 0)
        return (weight_BSD * out_BSD).sum(), out_BSD

    (_, out_BSD), gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(
        stacks, x_BSD, logits_BSE
    )
    return out_BSD, gradient


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_grouped_products_equal_every_expert_on_every_token(kernel, name):
    """Kills: a row that is dropped or counted twice, a gradient of another expert."""
    (out, gradient), (plain, derived) = (outputs_and_gradients(k, name) for k in (kernel, "dense"))
    np.testing.assert_allclose(out, plain, rtol=TOKEN, atol=TOKEN * float(jnp.abs(plain).max()))
    for ours, theirs in zip(*map(jax.tree.leaves, (gradient, derived)), strict=True):
        scale = float(jnp.abs(theirs).max())
        assert scale > 0
        np.testing.assert_allclose(ours, theirs, atol=GRADIENT * scale)


@pytest.mark.parametrize("name", MIXTURES)
def test_devices_with_a_part_of_the_experts_add_up_to_all(name):
    """Kills: a choice of another device's expert that lands on one of this device's."""
    mixture, stacks, x_BSD, logits_BSE = drawn(name)
    choice_BSK = choose_experts(logits_BSE, mixture.chosen)
    tokens = x_BSD, shares_of(logits_BSE, choice_BSK, normalised=mixture.normalised), choice_BSK
    mlp = Mlp(mixture, "silu", 0.5, "blocks")
    cut = mixture.experts // 3

    def part(begin, end):
        return mlp(jax.tree.map(lambda x: x[begin:end], stacks), tokens, begin)

    np.testing.assert_allclose(
        part(0, cut) + part(cut, mixture.experts), mlp(stacks, tokens, 0), rtol=TOKEN, atol=1e-4
    )


def test_the_documented_example_of_groups(monkeypatch):
    monkeypatch.setattr(grouped, "LEAST", 2)
    groups = group_by_expert(jnp.array([[0, 2], [2, 1], [2, 0]]), 3)
    np.testing.assert_array_equal(groups.expert_I[:4], [0, 1, 2, 2])
    np.testing.assert_array_equal(groups.choice_Y[:8], [0, 5, 3, 6, 1, 2, 4, 6])
    np.testing.assert_array_equal(groups.row_TK, [[0, 4], [5, 2], [6, 1]])
    np.testing.assert_array_equal(groups.blocks_E, [1, 1, 2])


@pytest.mark.parametrize("seed", range(20))
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


@pytest.mark.parametrize("name", ["qwen3 moe", "mixtral"])
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


def test_adapters_go_to_experts_only_if_they_are_named():
    spec = spec_from_hf(QWEN3_MOE)
    assert all(name.startswith("attention.") for name in choose_projections((".",), spec))
    assert choose_projections(("experts.down",), spec) == ("experts.down",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mlp_only_layers": [0]}, "leave layers without experts"),
        ({"decoder_sparse_step": 2}, "leave layers without experts"),
        ({"num_experts_per_tok": 7}, "7 of 6 experts"),
        ({"num_experts": None}, "num_local_experts: missing"),
    ],
)
def test_mixtures_that_cannot_run_are_refused_by_name(change, words):
    with pytest.raises(SpecError, match=words):
        spec_from_hf(QWEN3_MOE | change)
