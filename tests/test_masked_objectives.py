"""Any mask with any objective, as configs ask for it: what an objective declares is what its loss does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.configs import made_stats, make_config
from helpers.tiny import GPT2, random_batch
from sparsepo_jax.build.objective import cached_problem, make_mask_source, make_objective, make_problem
from sparsepo_jax.config.derive import mask_parameters
from sparsepo_jax.config.schema.base import members
from sparsepo_jax.config.schema.objectives import Objective
from sparsepo_jax.config.schema.root import needs_reference
from sparsepo_jax.config.schema.weighing import Weighs
from sparsepo_jax.core.types import TokenMasks, TokenStats
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.sharding.mesh import make_mesh

MASKED = {kind: section for kind, section in members(Objective).items() if isinstance(section.weighs, Weighs)}
each_kind = pytest.mark.parametrize("kind", MASKED)
STATS, MASKS = made_stats()
KEYS = jax.random.split(jax.random.key(0), len(STATS.valid_BPT))


def objective_of(kind, **settings):
    config = make_config(objective={"kind": kind, **settings})
    source = make_mask_source(config, spec_from_hf(GPT2))
    return make_objective(config, source), source


def exchanged(x_BPT):
    """With the first two tokens of chosen responses in each other's place, where there are two."""
    if x_BPT is None:
        return None
    two_B1 = STATS.valid_BPT[:, 0, :2].all(-1, keepdims=True)
    assert two_B1.any()
    return x_BPT.at[:, 0, :2].set(jnp.where(two_B1, x_BPT[:, 0, 1::-1], x_BPT[:, 0, :2]))


@each_kind
def test_a_mask_of_ones_is_the_objective_without_one(kind):
    """To the bit. Kills: a mask that is put on a KL which the objective does not have, and L1 of it."""
    plain, without = objective_of(
        kind, **({"mask": {"kind": "ones"}} if kind in ("sparsepo", "mapo") else {})
    )
    masked, source = objective_of(
        kind, mask={"kind": "ones"}, **({} if kind == "mapo" else {"l1_reward": 0.0})
    )
    batch = random_batch()
    losses = [
        loss(STATS, source.make({}, {}, batch, STATS, KEYS, True), KEYS).loss_B
        for loss, source in ((plain, without), (masked, source))
    ]
    np.testing.assert_array_equal(*losses)


@each_kind
def test_a_loss_does_with_a_mask_what_its_objective_declares(kind):
    """Sum or mean, of log-ratios or log-probs, with a KL term or without; as the table in the docs says."""
    weighs, (loss, _) = MASKED[kind].weighs, objective_of(kind)
    before_B = loss(STATS, MASKS, KEYS).loss_B

    def moves(stats=STATS, masks=MASKS):
        return not np.allclose(loss(stats, masks, KEYS).loss_B, before_B, rtol=1e-5, atol=1e-6)

    assert moves(masks=MASKS._replace(reward_BPT=MASKS.reward_BPT[:, :, ::-1] * STATS.valid_BPT))
    assert moves(masks=MASKS._replace(reward_BPT=2 * MASKS.reward_BPT)) == (weighs.over != "mean")
    assert moves(stats=STATS._replace(ref_logp_BPT=1.3 * STATS.ref_logp_BPT)) == (weighs.term == "log-ratio")
    assert moves(stats=STATS._replace(kl_BPT=2 * STATS.kl_BPT)) == weighs.kl
    assert moves(masks=MASKS._replace(kl_BPT=2 * MASKS.kl_BPT)) == weighs.kl
    if kind not in ("d2po", "ldpo", "sampo", "tidpo"):  # their own weights go by position
        stats, masks = TokenStats(*map(exchanged, STATS)), TokenMasks(*map(exchanged, MASKS))
        assert moves(stats, masks) == (weighs.over == "token")


def test_every_objective_that_sums_or_averages_over_tokens_takes_masks():
    refused = {kind for kind, section in members(Objective).items() if isinstance(section.weighs, str)}
    assert refused == set()


def test_l1_is_that_of_sparsepo():
    """With one mask for both, sparsepo counts each factor half; so does dpo, which is it without the KL."""
    mask = {"kind": "learned", "on": "reward_only"}
    for sharing in ("common", "independent"):
        settings = {"beta": 0.3, "l1_reward": 0.01, "mask": mask | {"sharing": sharing}}
        (dpo, source), (sparsepo, _) = (objective_of(kind, **settings) for kind in ("dpo", "sparsepo"))
        masks = TokenMasks(MASKS.reward_BPT, jnp.zeros_like(MASKS.kl_BPT))
        outputs = [loss(STATS, masks, KEYS) for loss in (dpo, sparsepo)]
        np.testing.assert_allclose(outputs[0].loss_B, outputs[1].loss_B, rtol=1e-6)
        share = 0.5 if sharing == "common" else 1.0
        sizes = np.abs(MASKS.reward_BPT).sum((1, 2))
        np.testing.assert_allclose(outputs[0].metrics["loss/l1"], 0.01 * share * sizes, rtol=1e-6)
        assert source.shared == (sharing == "common")


def test_without_a_kl_term_there_is_one_net_and_no_mask_of_the_kl():
    config = make_config(objective={"kind": "simpo", "mask": {"sharing": "independent"}})
    source = make_mask_source(config, spec_from_hf(GPT2))
    weights = source.init(nnx.Rngs(0))
    assert {path.split(".")[0] for path in weights} == {"reward"}
    count = sum(x.size for x in jax.tree.leaves(weights))
    assert mask_parameters(config.objective, GPT2["n_embd"], GPT2["n_layer"]) == count


@each_kind
def test_a_cached_reference_serves_masks_on_rewards_alone(kind):
    """An activation mask comes with the cache where no KL is needed; a learned one needs the reference."""
    weighs = MASKED[kind].weighs
    for on in ("both", "reward_only"):
        config = make_config(objective={"kind": kind, "mask": {"kind": "activation", "on": on}})
        assert (needs_reference(config.objective) is None) == (on == "reward_only" or not weighs.kl)
    config = make_config(objective={"kind": kind, "mask": {"kind": "learned", "on": "reward_only"}})
    assert "learned" in needs_reference(config.objective)


def test_a_cached_mask_is_put_on_the_reward_alone():
    spec, mesh = spec_from_hf(GPT2), make_mesh(1, 1, 1, devices=jax.devices()[:1])
    config = make_config(objective={"kind": "simpo", "mask": {"kind": "activation"}})
    source = cached_problem(make_problem(config, spec, spec, mesh), config).mask_source
    batch = random_batch()._replace(weights_BPT=MASKS.reward_BPT)
    masks = source.make({}, {}, batch, STATS, KEYS, True)
    np.testing.assert_array_equal(masks.reward_BPT, MASKS.reward_BPT)
    np.testing.assert_array_equal(masks.kl_BPT, 0.0)
