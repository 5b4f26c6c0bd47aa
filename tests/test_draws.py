"""What draws from a pair's key: each part has numbers of its own."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from helpers.configs import make_config
from helpers.tiny import NEOX, random_batch
from sparsepo_jax.build.objective import make_mask_source
from sparsepo_jax.core.draws import Draw, keys_for
from sparsepo_jax.core.types import TokenMasks, TokenStats
from sparsepo_jax.losses.token_weighted import sampo_loss
from sparsepo_jax.masks.fixed import random_mask
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.train.problem import pair_keys


def test_parts_have_other_keys():
    key_B = jax.random.split(jax.random.key(0), 3)
    data = [np.asarray(jax.random.key_data(keys_for(draw, key_B))) for draw in Draw]
    assert len({key.tobytes() for of_draw in [*data, jax.random.key_data(key_B)] for key in of_draw}) == 15


def test_sampo_keeps_tokens_of_any_random_weight():
    """4 of 12 tokens, each of weight 1/2 in the mean. Kills: those of the smallest weights (0.74)."""
    B = 200
    valid_BPT = jnp.asarray(np.broadcast_to(np.arange(12) < np.array([[12], [4]]), (B, 2, 12)))
    key_B = jax.random.split(jax.random.key(1), B)
    one_BPT, mask_BPT = jnp.ones((B, 2, 12)), random_mask(key_B, valid_BPT)
    stats = TokenStats(one_BPT, 0 * one_BPT, 0 * one_BPT, valid_BPT)
    output = sampo_loss(stats, TokenMasks(mask_BPT, mask_BPT), key_B, beta=1.0)
    for side in ("chosen", "rejected"):
        np.testing.assert_allclose(output.metrics[f"rewards/{side}"].mean(), 2.0, atol=0.15)


def test_independent_masks_are_dropped_out_apart():
    spec = spec_from_hf(NEOX)
    mask = {"kind": "learned", "net": "simple_last", "sharing": "independent", "dropout": 0.5, "init": "ones"}
    source = make_mask_source(make_config(objective={"kind": "sparsepo", "mask": mask}), spec)
    batch = random_batch(pairs=4)
    weights = source.init(nnx.Rngs(0))
    weights |= {
        path.replace("reward.", "kl."): x for path, x in weights.items() if path.startswith("reward.")
    }
    kept = {"final_norm": jnp.ones((*batch.packing.at_RM.shape, spec.width))}
    stats = TokenStats(*(jnp.zeros(batch.valid_BPT.shape) for _ in range(3)), jnp.asarray(batch.valid_BPT))
    key_B = pair_keys(0, jnp.int32(0), batch.row_B)
    masks = source.make(weights, kept, batch, stats, key_B, True)
    assert 0.2 < np.mean((masks.reward_BPT == 0)[batch.valid_BPT]) < 0.8
    assert (masks.reward_BPT != masks.kl_BPT).any()
    masks = source.make(weights, kept, batch, stats, key_B, False)
    np.testing.assert_array_equal(masks.reward_BPT, masks.kl_BPT)
