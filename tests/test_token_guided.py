"""TI-DPO and TBPO-Q: their losses by hand, and what they read of a token against transformers' gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from helpers.configs import made_stats, make_config
from helpers.parity import load_ours, make_theirs
from helpers.tiny import GPT2, packed, random_batch, random_rows
from helpers.tolerances import TOKEN
from sparsepo_jax.build.masks import _fitting, stored_masks
from sparsepo_jax.build.objective import make_mask_source, make_objective, make_problem
from sparsepo_jax.build.step import make_step
from sparsepo_jax.build.weights import abstract_frozen
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.types import TokenMasks, TokenStats
from sparsepo_jax.losses.margins import tbpo_a_loss
from sparsepo_jax.losses.token_guided import importance_weights, tbpo_q_loss, tidpo_loss
from sparsepo_jax.losses.token_weighted import tdpo2_loss
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.ops.logits import LogitForm
from sparsepo_jax.sharding.mesh import make_mesh, put_batch
from sparsepo_jax.train.readings import split_baseline, token_importance
from sparsepo_jax.train.step import make_pair_loss, make_pair_scores

NAN = math.nan
VALID = jnp.array([[[True, True, False], [True, True, True]]])
# Log-ratios 0.5 -0.7 | -0.2 -0.1 0.6, KL 0.1 0.3 | 0.2 0 0.4; what stands on padding is NaN.
HAND = TokenStats(
    jnp.array([[[-0.5, -1.5, NAN], [-1.0, -2.0, -0.6]]]),
    jnp.array([[[-1.0, -0.8, NAN], [-0.8, -1.9, -1.2]]]),
    jnp.array([[[0.1, 0.3, NAN], [0.2, 0.0, 0.4]]]),
    VALID,
    importance_BPT=jnp.array([[[3.0, 1.0, NAN], [0.0, 0.0, 0.0]]]),
    baseline_BPT=jnp.array([[[1.0, 3.0, NAN], [0.0, -2.0, 7.0]]]),
)
ONES = TokenMasks(jnp.ones(VALID.shape), jnp.ones(VALID.shape))


def softplus_of_minus(margin):
    return math.log1p(math.exp(-margin))


def test_importance_and_prior_by_hand():
    """Two tokens: shares 3/4 and 1/4, a prior of 1/2 each. Three without importance: the prior alone."""
    weights = importance_weights(HAND.importance_BPT, VALID, 0.8, 4.0)
    np.testing.assert_allclose(weights[0, 0], [2 * (0.6 + 0.1), 2 * (0.2 + 0.1), 0.0], rtol=1e-6)
    side, total = math.exp(-0.5), 1 + 2 * math.exp(-0.5)
    np.testing.assert_allclose(weights[0, 1], [3 * side / total, 3 / total, 3 * side / total], rtol=1e-6)


def test_a_prior_is_as_wide_as_its_response():
    """Nine tokens over 2: a deviation of 4.5 tokens."""
    valid = jnp.ones((1, 1, 9), bool)
    prior = np.exp(-0.5 * ((np.arange(9) - 4) / 4.5) ** 2)
    weights = importance_weights(jnp.zeros(valid.shape), valid, 0.3, 2.0)
    np.testing.assert_allclose(weights[0, 0], 9 * prior / prior.sum(), rtol=1e-6)


def test_tidpo_by_hand():
    """Chosen 1.4 * 0.5 - 0.6 * 0.7 = 0.28; KL 0.4 and 0.6, not weighted."""
    side, middle = 3 * math.exp(-0.5) / (1 + 2 * math.exp(-0.5)), 3 / (1 + 2 * math.exp(-0.5))
    rejected = side * (-0.2) + middle * (-0.1) + side * 0.6
    margin = 0.5 * (0.28 - rejected - 0.5 * (0.6 - 0.4))
    settings = dict(beta=0.5, alpha=0.5, attribution=0.8, prior_width=4.0)
    output = tidpo_loss(HAND, ONES, None, **settings)
    np.testing.assert_allclose(output.metrics["margin"], margin, rtol=1e-5)
    np.testing.assert_allclose(output.loss_B, softplus_of_minus(margin), rtol=1e-6)


def test_tidpo_of_equal_importance_is_tdpo2():
    stats, masks = made_stats()
    stats = stats._replace(importance_BPT=jnp.full_like(stats.kl_BPT, 0.3))
    ours = tidpo_loss(stats, masks, None, beta=0.5, alpha=0.5, attribution=1.0, prior_width=4.0)
    np.testing.assert_allclose(
        ours.loss_B, tdpo2_loss(stats, masks, None, beta=0.5, alpha=0.5).loss_B, rtol=1e-6
    )


def test_tbpo_q_by_hand():
    """Baselines apart by 1 and 5, centred -2 and 2, within 1.5: margins 0.5 (0.7 - 1.5), 0.5 (-0.6 + 1.5)."""
    settings = dict(beta=0.5, power=1.0, scale=4.0, baseline_limit=1.5)
    output = tbpo_q_loss(HAND, ONES, None, **settings)
    risks = [math.exp(-2 * z) / 8 - math.expm1(z) / 4 for z in (-0.4, 0.45)]
    np.testing.assert_allclose(output.loss_B, sum(risks) / 2, rtol=1e-6)
    np.testing.assert_allclose(output.metrics["margin"], 0.025, atol=1e-6)
    np.testing.assert_allclose(output.metrics["rewards/margins"], 0.025, atol=1e-6)


def test_tbpo_q_without_baseline_is_tbpo_a_without_kl():
    stats, masks = made_stats()
    stats = stats._replace(kl_BPT=jnp.zeros_like(stats.kl_BPT), baseline_BPT=jnp.zeros_like(stats.kl_BPT))
    settings = dict(beta=0.5, power=0.3, scale=4.0)
    ours = tbpo_q_loss(stats, masks, None, baseline_limit=3.0, **settings)
    np.testing.assert_allclose(ours.loss_B, tbpo_a_loss(stats, masks, None, **settings).loss_B, rtol=1e-6)


@pytest.mark.parametrize("kind", ["tidpo", "tbpo_q"])
def test_gradient_equals_finite_differences_and_padding_has_none(kind):
    stats, masks = made_stats(seed=4)
    config = make_config(objective={"kind": kind, "mask": {"kind": "ones"}})
    loss = make_objective(config, make_mask_source(config, spec_from_hf(GPT2)))
    masks = TokenMasks(masks.reward_BPT + 0.1, masks.kl_BPT)
    held = (stats.logp_BPT, stats.baseline_BPT / 5)

    @jax.jit
    def total(moved):
        moved = [jnp.where(stats.valid_BPT, x, jnp.nan) for x in moved]
        return loss(stats._replace(logp_BPT=moved[0], baseline_BPT=moved[1]), masks, None).loss_B.sum()

    gradient = jax.jit(jax.grad(total))(held)
    rng = np.random.default_rng(0)
    direction = [jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in held]
    forth, back = ([x + sign * 3e-2 * d for x, d in zip(held, direction, strict=True)] for sign in (1, -1))
    slope = (total(forth) - total(back)) / 6e-2
    ours = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
    np.testing.assert_allclose(ours, slope, rtol=5e-3)
    assert all((np.asarray(g)[~np.asarray(stats.valid_BPT)] == 0).all() for g in gradient)


# ---------------------------------------------------------------- what they read, against transformers

ROWS = random_rows(3, 5, 6, 31, 0)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(theirs, our spec, structure and weights), of random weights."""
    directory = tmp_path_factory.mktemp("gpt2")
    theirs = make_theirs(GPT2)
    theirs.save_pretrained(directory)
    return theirs, *load_ours(directory)


def problem_of(kind, **settings):
    spec, mesh = spec_from_hf(GPT2), make_mesh(1, 1, 1, devices=jax.devices()[:1])
    return make_problem(make_config(objective={"kind": kind, **settings}), spec, spec, mesh)


def their_importance(theirs, prompt, response):
    """The L1 norms at the response's tokens: of all but the last, which is not run."""
    ids = torch.tensor([[*prompt, *response[:-1]]])
    embedded = theirs.get_input_embeddings()(ids).detach().requires_grad_(True)
    theirs(inputs_embeds=embedded).logits[0, -1].max().backward()
    return embedded.grad[0].abs().sum(-1)[len(prompt) :].tolist()


def test_importance_is_the_gradient_that_torch_finds(models):
    """Kills: a prompt that is shared and takes gradients of the other response; the column that predicts a
    token in place of the one where it stands."""
    theirs, _, _, weights = models
    batch = packed(ROWS, spare=2)
    ours = jax.jit(lambda weights: token_importance(problem_of("tidpo"), weights, None, batch))(weights)
    for pair, (prompt, *responses) in enumerate(ROWS):
        for p, response in enumerate(responses):
            length = int(batch.valid_BPT[pair, p].sum())
            expected = np.zeros(batch.valid_BPT.shape[-1])
            # The table closes each response with a token of its own.
            given = their_importance(theirs, prompt, list(response)[:length])
            expected[: len(given)] = given
            np.testing.assert_allclose(ours[pair, p], expected, atol=10 * TOKEN, rtol=1e-4)


def test_importance_stands_in_a_tokens_own_column_where_other_turns_lie_between(models):
    """Kills: the column that predicts the next token, which behind a gap is one of another turn."""
    theirs, _, _, weights = models
    batch = packed([([1, 2], [3, 4, 5, 6], [7, 8])], before=[0, 0, 3, 0, 2, 0])
    ours = jax.jit(lambda weights: token_importance(problem_of("tidpo"), weights, None, batch))(weights)
    chosen = their_importance(theirs, [1, 2], [3, 4, 0, 0, 0, 5, 6])
    rejected = their_importance(theirs, [1, 2], [0, 0, 7, 8])
    np.testing.assert_allclose(ours[0, 0], [*(chosen[n] for n in (0, 1, 5)), 0], atol=10 * TOKEN, rtol=1e-4)
    np.testing.assert_allclose(ours[0, 1], [rejected[2], 0, 0, 0], atol=10 * TOKEN, rtol=1e-4)


def test_the_expected_probability_is_the_sum_of_squares_that_torch_finds(models):
    """Without gradient, and 0 on padding. Kills: the entropy; a place beside the token's own."""
    theirs, _, _, weights = models
    problem, batch = problem_of("dpo", policy_weight="aligned"), packed(ROWS, spare=2)

    def scored(weights):
        given = {"policy": weights, "masks": {}}
        return make_pair_scores(problem, training=True)(given, weights, batch, jnp.int32(0))[1]

    ours_BPT = jax.jit(scored)(weights).expected_BPT
    for pair, (prompt, *responses) in enumerate(ROWS):
        for p, response in enumerate(responses):
            length = int(batch.valid_BPT[pair, p].sum())
            ids = torch.tensor([[*prompt, *list(response)[: length - 1]]])
            squares = theirs(ids).logits[0, len(prompt) - 1 :].softmax(-1).square().sum(-1)
            np.testing.assert_allclose(ours_BPT[pair, p, :length], squares.log().detach(), atol=10 * TOKEN)
    np.testing.assert_array_equal(np.where(batch.valid_BPT, 0.0, ours_BPT), 0.0)
    slope = jax.jit(jax.grad(lambda weights: scored(weights).expected_BPT.sum()))(weights)
    assert all((x == 0).all() for x in jax.tree.leaves(slope))


@pytest.mark.parametrize("form", [LogitForm(), LogitForm(0.5), LogitForm(0.5, 2.0)])
def test_a_doubled_form_gives_twice_the_logits(form):
    x = jnp.linspace(-3.0, 3.0, 7)
    np.testing.assert_allclose(form.doubled().logits(x), 2 * form.logits(x), rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "reads"),
    [
        ({"kind": "dpo"}, False),
        ({"kind": "dpo", "policy_weight": True}, False),
        ({"kind": "simpo", "policy_weight": "aligned"}, True),
        ({"kind": "mix", "parts": [{"objective": {"kind": "dpo", "policy_weight": "aligned"}}]}, True),
        ({"kind": "mix", "policy_weight": "aligned", "parts": [{"objective": {"kind": "dpo"}}]}, True),
    ],
    ids=str,
)
def test_the_alignment_is_computed_where_a_weight_reads_it(settings, reads):
    assert ("alignment" in problem_of(**settings).reads) == reads


def test_a_step_of_tbpo_q_moves_its_head_and_not_the_policy_through_it(models):
    """The baseline is w . h + b of transformers' last states; with a head that is not 0 the policy's gradient
    is that of the loss alone, whatever the states' slope in the head would be."""
    theirs, spec, _, weights = models
    problem, batch = problem_of("tbpo_q"), packed(ROWS)
    rng = np.random.default_rng(1)
    head = {
        path: jnp.asarray(rng.normal(size=x.shape), jnp.float32)
        for path, x in problem.mask_source.init(nnx.Rngs(0)).items()
    }
    assert {path: x.shape for path, x in head.items()} == {
        "baseline.weight": (spec.width,),
        "baseline.bias": (),
    }

    @jax.jit
    def both(policy, head):
        def loss(weights):
            return make_pair_loss(problem)(weights, weights_of_reference, batch, jnp.int32(0))[0]

        weights_of_reference = policy
        given = {"policy": policy, "masks": head}
        stats = make_pair_scores(problem, training=True)(given, policy, batch, jnp.int32(0))[1]
        return stats, jax.grad(loss)(given)

    stats, gradient = both(weights, head)
    for pair, (prompt, chosen, _) in enumerate(ROWS):
        length = int(batch.valid_BPT[pair, 0].sum())
        ids = torch.tensor([[*prompt, *list(chosen)[:length]]])
        states = theirs(ids, output_hidden_states=True).hidden_states[-1][0].detach().numpy()
        expected = states[len(prompt) - 1 :][:length] @ np.asarray(head["baseline.weight"])
        np.testing.assert_allclose(
            stats.baseline_BPT[pair, 0, :length], expected + float(head["baseline.bias"]), atol=1e-4
        )
    assert np.abs(gradient["masks"]["baseline.weight"]).max() > 1e-6
    np.testing.assert_allclose(gradient["masks"]["baseline.bias"], 0.0, atol=1e-6)  # it cancels


def test_a_head_is_laid_out_and_trained_beside_the_policy():
    """Kills: a weight that no rule of shardings knows."""
    spec, mesh = spec_from_hf(GPT2), make_mesh(2, 2, 2)
    config = make_config(objective={"kind": "tbpo_q", "mask": {"kind": "learned"}})
    like = make_step(config, "po", make_problem(config, spec, spec, mesh), spec, 4, mesh).like
    assert {path.split(".")[0] for path in like.weights["masks"]} == {"common", "baseline"}


@pytest.mark.parametrize("kind", ["tbpo_q", "tidpo", "sparsepo"])
def test_what_is_read_of_tokens_does_not_want_a_reference_of_the_policys_width(kind):
    """Kills: a baseline as wide as the reference, on states of the policy."""
    policy, reference = spec_from_hf(GPT2), spec_from_hf(GPT2 | {"n_embd": 24, "n_layer": 1})
    config, mesh = make_config(objective={"kind": kind}), make_mesh(None, 1, 1)
    problem = make_problem(config, policy, reference, mesh)
    step = make_step(config, "po", problem, policy, 4, mesh)
    batch = put_batch(jax.tree.map(lambda x: x[None], random_batch(rows=8, pairs=8)), mesh)
    frozen = abstract_frozen(config, "po", problem, policy, reference, mesh)
    with jax.set_mesh(mesh):
        state, _, _ = jax.eval_shape(step.program.jitted, step.numbers, step.like, frozen, batch)
    masks = state.weights["masks"]
    assert {path: x.shape for path, x in masks.items()} == {
        path: x.shape for path, x in step.like.weights["masks"].items()
    }
    assert kind != "tbpo_q" or masks["baseline.weight"].shape == (policy.width,)


# ---------------------------------------------------------------- stored


def test_a_baseline_is_stored_and_read_beside_mask_nets():
    config = make_config(objective={"kind": "tbpo_q"})
    source = make_mask_source(config, spec_from_hf(GPT2))
    like = source.init(nnx.Rngs(0))
    stored = {"baseline.weight": np.arange(like["baseline.weight"].size, dtype=np.float32)}
    read = _fitting(config, stored | {"baseline.bias": np.full(1, 2, np.float32)}, like)
    np.testing.assert_array_equal(read["baseline.weight"], stored["baseline.weight"])
    assert read["baseline.bias"] == 2 and split_baseline(read)[0] == {}
    with pytest.raises(UserError, match="expected"):
        _fitting(config, {"baseline.weight": np.zeros(3, np.float32)}, like)


def test_scores_without_a_stored_baseline_are_refused():
    config = make_config(objective={"kind": "tbpo_q"})
    source = make_mask_source(config, spec_from_hf(GPT2))
    with pytest.raises(UserError, match=r"there are no weights of a baseline, which objective tbpo_q reads"):
        stored_masks(config, source, make_mesh(1, 1, 1, devices=jax.devices()[:1]))
