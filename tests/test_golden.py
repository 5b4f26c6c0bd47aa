"""Against numbers of the official code: token statistics, masks, losses, gradients.

Each comparison kills a mutant named beside it.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from helpers import golden_vectors as golden
from helpers.program import lines_of, run
from helpers.quick import slow_but
from helpers.tiny import InMemory, gathered
from helpers.tolerances import GRADIENT, TOKEN
from sparsepo_jax.core.layout import to_pairs
from sparsepo_jax.core.tree import merge_module, split_module
from sparsepo_jax.losses.token_weighted import dpo_loss, sparsepo_loss, tdpo1_loss
from sparsepo_jax.masks.activation import activation_mask, choose_points
from sparsepo_jax.masks.learned import MaskNet, NetSettings
from sparsepo_jax.masks.official_names import masks_from_tensors, masks_to_tensors
from sparsepo_jax.masks.source import activation_source, fixed_source, learned_source
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.models.weights import to_hf
from sparsepo_jax.ops.logit_blocks import HeadBlocks
from sparsepo_jax.train.forward import forward
from sparsepo_jax.train.optimizer import adamw_rule, make_optimizer
from sparsepo_jax.train.problem import Problem
from sparsepo_jax.train.step import make_pair_loss, make_update, start_state

both_families = pytest.mark.parametrize("family", golden.FAMILIES)
# Where another test shows on both that the families' states and log-probs are right.
one_family = pytest.mark.parametrize("family", slow_but(["gpt2"], golden.FAMILIES))


@functools.cache
def load(family, who):
    spec = spec_from_hf(json.loads(golden.vectors(family)[f"config/{who}"].tobytes()))
    graph, fresh = split_module(Decoder(spec, rngs=nnx.Rngs(0)))
    return spec, graph, gathered(spec, InMemory(golden.part(family, f"weights/{who}/")), fresh)


def problem_of(family, source, objective, **settings):
    _, graph, _ = load(family, "policy")
    return Problem(graph, graph, source, objective or dpo_loss, seed=0, **settings)


# As the released code makes its nets, over states of the size that the vectors have.
OFFICIAL_NET = dict(
    num_layers=2,
    width=32,
    norm_eps=1e-5,
    init="official",
    layer_activation="relu",
    mixer_activation="relu",
    dropout=0.0,
)


def learned(sharing, **changes):
    net = NetSettings("simple_all", **(OFFICIAL_NET | changes))
    return learned_source(net, sharing=sharing, on="both", normalised=False)


def official_masks(family, sharing, source):
    like = {path: x.shape for path, x in source.init(nnx.Rngs(0)).items()}
    return masks_from_tensors("simple_all", golden.part(family, f"sparse/{sharing}/mask_weights/"), like)


@functools.cache
def learned_stats_and_masks(family, sharing):
    source = learned(sharing)
    weights = load(family, "policy")[2], official_masks(family, sharing, source), load(family, "reference")[2]
    problem = problem_of(family, source, None)
    return forward(problem, *weights, golden.pair_batch(family), None, training=True)[:2]


def assert_tokens_equal(family, ours_BPT, valid_BPT, chosen, rejected):
    for n, responses in enumerate(golden.on_responses(family, chosen, rejected)):
        for p, expected in enumerate(responses):
            np.testing.assert_allclose(np.asarray(ours_BPT)[n, p][valid_BPT[n, p]], expected, atol=TOKEN)


@both_families
@pytest.mark.parametrize("shared", slow_but([True], [True, False]))
def test_token_log_probs_and_kl(family, shared):
    """Kills: KL(policy || ref) for KL(ref || policy); the state one position off."""
    v, batch = golden.vectors(family), golden.pair_batch(family, shared=shared)
    problem = problem_of(
        family,
        fixed_source("ones", on="both", normalised=False),
        None,
        head_blocks=HeadBlocks(tokens=10, vocabulary=20),
    )
    weights = load(family, "policy")[2], {}, load(family, "reference")[2]
    stats, *_ = forward(problem, *weights, batch, None, training=False)
    for ours, name, sign in (
        (stats.logp_BPT, "policy_{}_logps", 1),
        (stats.ref_logp_BPT, "reference_{}_logps", 1),
        (stats.kl_BPT, "{}_token_kl", -1),
    ):
        chosen, rejected = (sign * v["base/" + name.format(side)] for side in ("chosen", "rejected"))
        assert_tokens_equal(family, ours, batch.valid_BPT, chosen, rejected)


@one_family
@pytest.mark.parametrize("sharing", ["common", "independent"])
def test_learned_masks_from_reference_states(family, sharing):
    """Kills: masks of the policy; the last state before the final norm; reward and KL nets exchanged."""
    v, batch = golden.vectors(family), golden.pair_batch(family)
    _, masks = learned_stats_and_masks(family, sharing)
    for ours, name in ((masks.reward_BPT, "rw"), (masks.kl_BPT, "kl")):
        assert_tokens_equal(
            family,
            ours,
            batch.valid_BPT,
            v[f"sparse/{sharing}/mask/{name}_chosen"],
            v[f"sparse/{sharing}/mask/{name}_rejected"],
        )


@both_families
@pytest.mark.parametrize("sharing", ["common", "independent"])
@pytest.mark.parametrize("beta", [0.1, 0.8])
@pytest.mark.parametrize("l1", [0.0, 0.001])
def test_loss_of_each_pair(family, sharing, beta, l1):
    """Kills: the sign of the KL term; L1 not halved for a common mask."""
    stats, masks = learned_stats_and_masks(family, sharing)
    output = sparsepo_loss(stats, masks, None, beta=beta, l1_reward=l1, l1_kl=l1, shared=sharing == "common")
    prefix = f"sparse/{sharing}/beta{beta}/l1_{l1}"
    np.testing.assert_allclose(output.loss_B, golden.vectors(family)[f"{prefix}/loss_per_pair"], atol=TOKEN)
    np.testing.assert_allclose(output.loss_B.mean(), golden.vectors(family)[f"{prefix}/loss"], atol=TOKEN)


def assert_gradients_equal(family, prefix, policy_gradient, mask_gradient):
    spec = load(family, "policy")[0]
    ours = dict(to_hf(spec, {path: np.asarray(x) for path, x in policy_gradient.items()}))
    ours |= {
        name: np.asarray(x)
        for name, x in (masks_to_tensors("simple_all", mask_gradient) if mask_gradient else {}).items()
    }
    expected = golden.part(family, prefix)
    assert set(ours) <= set(expected) and len(ours) > 20
    for name, gradient in ours.items():
        scale = max(np.abs(expected[name]).max(), 1e-6)
        np.testing.assert_allclose(gradient / scale, expected[name] / scale, atol=GRADIENT, err_msg=name)


@pytest.mark.parametrize(
    ("family", "sharing", "beta"),
    [
        ("gpt2", "common", 0.8),
        pytest.param("gpt_neox", "independent", 0.1, marks=pytest.mark.slow),
        pytest.param("gpt2", "independent", 0.1, marks=pytest.mark.slow),
        pytest.param("gpt_neox", "common", 0.8, marks=pytest.mark.slow),
    ],
)
def test_gradients_of_policy_and_masks(family, sharing, beta):
    """Kills: a stopped gradient on masks or KL; a gradient through the reference."""
    source, batch, reference = learned(sharing), golden.pair_batch(family), load(family, "reference")[2]
    problem = problem_of(family, source, None)

    @jax.jit
    @jax.grad
    def gradient(weights):
        stats, masks, _ = forward(problem, *weights, reference, batch, None, training=True)
        return sparsepo_loss(
            stats, masks, None, beta=beta, l1_reward=0.001, l1_kl=0.001, shared=source.shared
        ).loss_B.mean()

    policy, masks = gradient((load(family, "policy")[2], official_masks(family, sharing, source)))
    assert_gradients_equal(family, f"sparse/{sharing}/beta{beta}/l1_0.001/grad/", policy, masks)


@one_family
def test_activation_mask_its_loss_and_gradient(family):
    """Kills: biased deviation; hooks of another point; a mask that is not detached."""
    v, batch, reference = golden.vectors(family), golden.pair_batch(family), load(family, "reference")[2]
    points = choose_points(family, ("mlp", "attn", "resid", "logits"), official=True)
    problem = problem_of(
        family, activation_source(points=points, mapping="zn_rescale", on="both", normalised=False), None
    )

    @jax.jit
    def loss(policy):
        stats, masks, _ = forward(problem, policy, {}, reference, batch, None, training=True)
        return sparsepo_loss(stats, masks, None, beta=0.8).loss_B.mean(), masks

    (value, masks), gradient = jax.value_and_grad(loss, has_aux=True)(load(family, "policy")[2])
    assert_tokens_equal(
        family, masks.reward_BPT, batch.valid_BPT, v["mapo/fp32/mask/chosen"], v["mapo/fp32/mask/rejected"]
    )
    np.testing.assert_allclose(value, v["mapo/fp32/beta0.8/loss"], atol=TOKEN)
    assert_gradients_equal(family, "mapo/fp32/beta0.8/grad/", gradient, None)


@one_family
def test_each_activation_group(family):
    v, batch = golden.vectors(family), golden.pair_batch(family)
    points = choose_points(family, ("mlp", "attn", "resid", "logits"), official=True)
    kept = {}
    source = activation_source(points=points, mapping="zn_rescale", on="both", normalised=False)

    def make(weights, found, *rest):
        kept.update(found)
        return source.make(weights, found, *rest)

    problem = problem_of(family, source._replace(make=make), None)
    forward(problem, load(family, "policy")[2], {}, load(family, "reference")[2], batch, None, training=False)
    for group in ("mlp", "attn", "resid", "logits"):
        if f"mapo/fp32/group/{group}/chosen" not in v:
            with pytest.raises(ValueError, match="never fire"):
                choose_points(family, (group,), official=True)
            continue
        means = {name: to_pairs(x, batch) for name, x in kept.items() if name in points[group]}
        mask_BPT = activation_mask(means, jnp.asarray(batch.valid_BPT), {group: points[group]}, "zn_rescale")
        assert_tokens_equal(
            family,
            mask_BPT,
            batch.valid_BPT,
            v[f"mapo/fp32/group/{group}/chosen"],
            v[f"mapo/fp32/group/{group}/rejected"],
        )


@both_families
def test_unit_masks_are_the_official_uniform_loss(family):
    batch = golden.pair_batch(family)
    problem = problem_of(family, fixed_source("ones", on="both", normalised=False), None)
    stats, masks, _ = forward(
        problem, load(family, "policy")[2], {}, load(family, "reference")[2], batch, None, training=False
    )
    for output in (sparsepo_loss(stats, masks, None, beta=0.8), tdpo1_loss(stats, masks, None, beta=0.8)):
        np.testing.assert_allclose(
            output.loss_B.mean(), golden.vectors(family)["mapo_uniform/beta0.8/loss"], atol=TOKEN
        )


@functools.cache
def reference_states(family):
    """[L, R, M, D] of the reference at the positions that predict response tokens, and the batch."""
    batch, reference = golden.pair_batch(family), load(family, "reference")[2]
    kept_states = {}
    source = learned("common")

    def make(weights, kept, *rest):
        kept_states.update(kept)
        return source.make(weights, kept, *rest)

    masks = official_masks(family, "common", source)
    forward(
        problem_of(family, source._replace(make=make), None),
        load(family, "policy")[2],
        masks,
        reference,
        batch,
        None,
        training=False,
    )
    states = jnp.concatenate([kept_states["block_out"][:-1], kept_states["final_norm"][None]])
    return states, batch


def run_net(net, tensors, states, batch, **changes):
    graph, fresh = split_module(MaskNet(NetSettings(net, **(OFFICIAL_NET | changes)), rngs=nnx.Rngs(0)))
    weights = masks_from_tensors(net, tensors, {f"common.{path}": x.shape for path, x in fresh.items()})
    again = masks_to_tensors(net, weights)
    assert again.keys() == tensors.keys() and all(
        np.array_equal(again[name], tensors[name]) for name in tensors
    )
    return merge_module(graph, {path.removeprefix("common."): x for path, x in weights.items()})(
        states, batch
    )


@one_family
@pytest.mark.parametrize("net", ["simple_last", "ml_last", "ml_all", "binary_last", "binary_all"])
def test_every_released_mask_net(family, net):
    """Kills: a LayerNorm before the `last` nets; a non-linearity inside the two-layer ones."""
    prefix = f"mask_models/{net}/"
    tensors = {f"common_mask.{name}": x for name, x in golden.part(family, prefix + "weights/").items()}
    states, batch = reference_states(family)
    v = golden.vectors(family)
    assert_tokens_equal(
        family,
        run_net(net, tensors, states, batch),
        batch.valid_BPT,
        v[prefix + "chosen"],
        v[prefix + "rejected"],
    )


@both_families
def test_every_released_mask_activation(family):
    tensors, (states, batch) = golden.part(family, "sparse/common/mask_weights/"), reference_states(family)
    v = golden.vectors(family)
    combinations = {tuple(name.split("/")[1:3]) for name in v if name.startswith("mask_activations/")}
    assert len(combinations) == 6
    for layer, mixer in combinations:
        mask = run_net(
            "simple_all",
            tensors,
            states,
            batch,
            layer_activation=layer.removeprefix("layer_"),
            mixer_activation=mixer.removeprefix("mixer_"),
        )
        prefix = f"mask_activations/{layer}/{mixer}/fp32/"
        assert_tokens_equal(family, mask, batch.valid_BPT, v[prefix + "chosen"], v[prefix + "rejected"])


@one_family
def test_five_steps_of_the_official_optimizer(family):
    """Kills: weight decay on the policy, on mask biases or LayerNorm, or missing on mask weights."""
    source, batch, reference = learned("common"), golden.pair_batch(family), load(family, "reference")[2]
    rate = optax.constant_schedule(1e-3)
    optimizer = make_optimizer(
        adamw_rule(0.9, 0.999, 1e-8),
        policy_schedule=rate,
        policy_decay=0.0,
        mask_schedule=rate,
        mask_decay=0.01,
        clip_norm=None,
    )
    weights = {"policy": load(family, "policy")[2], "masks": official_masks(family, "common", source)}
    state = start_state(weights, optimizer)
    problem = problem_of(family, source, functools.partial(sparsepo_loss, beta=0.1))
    update = jax.jit(make_update(make_pair_loss(problem), optimizer, rate))
    micro_batch = jax.tree.map(lambda x: x[None], batch)
    losses = []
    for _ in range(5):
        state, metrics, _ = update(state, reference, micro_batch)
        losses.append(metrics["loss"])
    np.testing.assert_allclose(
        losses, golden.vectors(family)["adamw/common/beta0.1/l1_0.0/loss_before_step"], atol=5 * TOKEN
    )


def test_hooks_of_the_default_include_what_the_official_code_misses():
    default, official = (choose_points("gpt2", ("mlp", "resid"), official) for official in (False, True))
    assert "mlp" in default and "mlp" not in official
    assert "attn_out" in default["resid"] and "attn_out" not in official["resid"]


def test_response_of_one_token_has_mask_one():
    valid = jnp.array([[[True, False], [True, True]]])
    mask = activation_mask(
        {"embed": jnp.array([[[3.0, 9.0], [1.0, 2.0]]])}, valid, {"resid": ("embed",)}, "zn_rescale"
    )
    np.testing.assert_allclose(mask, [[[1.0, 0.0], [0.0, 1.0]]], atol=TOKEN)


@one_family
@pytest.mark.parametrize(("sharing", "beta", "l1"), [("common", 0.8, 0.001), ("independent", 0.1, 0.0)])
def test_the_score_stage_on_an_official_checkpoint(family, sharing, beta, l1, tmp_path):
    """The program on files alone: masks beside the model's tensors, pairs as token ids.

    Kills: BOS or EOS added to ids; rows out of order.
    """
    v = golden.vectors(family)
    policy = golden.write_checkpoint(
        family, "policy", tmp_path / "policy", golden.part(family, f"sparse/{sharing}/mask_weights/")
    )
    reference = golden.write_checkpoint(family, "reference", tmp_path / "reference")
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps(dict(zip(names, row))) + "\n" for row in golden.rows(family))
    )
    output = run(
        tmp_path,
        stages=["score"],
        policy={"config": None, "path": str(policy)},
        reference={"path": str(reference)},
        tokenizer=None,
        sft=None,
        po=None,
        compute={"dtype": "float32"},
        data={"sft": [], "train": [], "eval": [{"path": str(tmp_path / "pairs.jsonl")}]},
        objective={
            "kind": "sparsepo",
            "beta": beta,
            "l1_reward": l1,
            "l1_kl": l1,
            "mask": {"kind": "learned", "sharing": sharing},
        },
    )
    found = lines_of(output / "scores.jsonl")
    np.testing.assert_allclose(
        [row["loss"] for row in found], v[f"sparse/{sharing}/beta{beta}/l1_{l1}/loss_per_pair"], atol=TOKEN
    )
    columns = {
        "logp": "base/policy_{}_logps",
        "ref_logp": "base/reference_{}_logps",
        "reward_mask": f"sparse/{sharing}/mask/rw_{{}}",
        "kl_mask": f"sparse/{sharing}/mask/kl_{{}}",
    }
    for column, name in columns.items():
        expected = golden.on_responses(family, v[name.format("chosen")], v[name.format("rejected")])
        for row, responses in zip(found, expected, strict=True):
            for side, values in zip(("chosen", "rejected"), responses):
                np.testing.assert_allclose(row[side][column], values, atol=TOKEN)
    expected = golden.on_responses(family, -v["base/chosen_token_kl"], -v["base/rejected_token_kl"])
    for row, responses in zip(found, expected, strict=True):
        np.testing.assert_allclose(row["chosen"]["kl"], responses[0], atol=TOKEN)


@one_family
def test_the_score_stage_with_official_activation_masks(family, tmp_path):
    v = golden.vectors(family)
    policy, reference = (
        golden.write_checkpoint(family, who, tmp_path / who) for who in ("policy", "reference")
    )
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps(dict(zip(names, row))) + "\n" for row in golden.rows(family))
    )
    output = run(
        tmp_path,
        stages=["score"],
        policy={"config": None, "path": str(policy)},
        reference={"path": str(reference)},
        tokenizer=None,
        sft=None,
        po=None,
        compute={"dtype": "float32"},
        data={"sft": [], "train": [], "eval": [{"path": str(tmp_path / "pairs.jsonl")}]},
        objective={"kind": "sparsepo", "beta": 0.8, "mask": {"kind": "activation", "official": True}},
    )
    found = lines_of(output / "scores.jsonl")
    np.testing.assert_allclose(
        np.mean([row["loss"] for row in found]), v["mapo/fp32/beta0.8/loss"], atol=TOKEN
    )
    expected = golden.on_responses(family, v["mapo/fp32/mask/chosen"], v["mapo/fp32/mask/rejected"])
    for row, responses in zip(found, expected, strict=True):
        np.testing.assert_allclose(row["rejected"]["reward_mask"], responses[1], atol=TOKEN)
