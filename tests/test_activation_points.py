"""Where activation masks are taken, family by family: the README's table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.quick import DIFFERENT, slow_but
from helpers.tiny import CONFIGS
from sparsepo_jax.masks.activation import GROUPS, activation_mask, choose_points, map_means
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.ops.attention import Given

EVERY = {name for names in GROUPS.values() for name in names} - {
    "logits"
}  # logits are made from the final states, in every family
ROTATED = {"q_rotated", "k_rotated"}
MIXTURES = [name for name, config in CONFIGS.items() if config.get("num_experts_per_tok")]
MISSING = {  # family -> points that it does not have; the others have all
    "gpt2": ROTATED,
    "gpt2, own head": ROTATED,
    "bigcode, one key/value head": ROTATED,
    "bigcode, all heads": ROTATED,
    "gptj, part of the dims rotated": {"attn_resid", "mlp_norm"},
    "neox": {"attn_resid"},
    "neox, tied": {"attn_resid"},
    "olmo2": {"attn_norm", "mlp_norm"},
    "olmo3, windows, yarn without them": {"attn_norm", "mlp_norm"},
    "exaone4, no positions without a window": {"attn_norm", "mlp_norm"},
    "cohere, norms of queries and keys": {"attn_resid", "mlp_norm"},
    "stablelm, parallel": {"attn_resid", "mlp_norm"},
    "cohere2, no positions without a window": {"attn_resid", "mlp_norm"},
    **{key: {"mlp_act"} for key in MIXTURES if "without experts" not in key},
}


@pytest.mark.parametrize("name", slow_but(DIFFERENT, CONFIGS))
def test_points_of_every_family(name):
    spec, fired = spec_from_hf(CONFIGS[name]), set()

    def tap(point, x):
        fired.add(point)
        assert x.ndim == 3, "heads are merged"

    ids = jnp.zeros((1, 3), jnp.int32)
    jax.eval_shape(
        lambda: Decoder(spec, rngs=nnx.Rngs(0))(
            ids, ids, Given(jnp.ones((1, 3, 3), bool), ids, ids), tap=tap
        )[0]
    )
    of_routers = {"router_logits", "router_choice"} if name in MIXTURES else set()
    assert fired == EVERY - MISSING.get(name, set()) | of_routers


def test_the_official_points_of_gptj():
    """Heads are taken after the projection; the last block's output twice, in place of the final norm.

    A mask is the mean of its groups' means.
    """
    rng, valid_BPT = (
        np.random.default_rng(0),
        np.array([[[True, True, True, False], [True, True, True, True]]]),
    )
    layers = {name for names in GROUPS.values() for name in names} - {
        "embed",
        "final_norm",
        "logits",
        "attn_resid",
        "mlp_norm",
    }
    means = {
        name: jnp.asarray(rng.normal(size=((2,) if name in layers else ()) + (1, 2, 4)), jnp.float32)
        for name in layers | {"embed", "final_norm", "logits"}
    }
    every = ("mlp", "attn", "resid", "logits")
    valid_BPT = jnp.asarray(valid_BPT)
    mask_BPT = activation_mask(means, valid_BPT, choose_points("gptj", every, True), "zn_rescale")

    def of(*arrays):
        together = jnp.concatenate([x.reshape(-1, 1, 2, 4) for x in arrays])
        return map_means(together, valid_BPT, "zn_rescale").mean(axis=0)

    m = means
    groups = [
        of(m["mlp_act"]),
        of(m["q"], m["k"], m["v"], m["q_rotated"], m["k_rotated"], m["attn_out"]),
        of(m["embed"], m["attn_norm"], m["attn_out"], m["mlp_out"], m["block_out"], m["block_out"][1]),
        of(m["logits"]),
    ]
    np.testing.assert_allclose(mask_BPT, np.where(valid_BPT, sum(groups) / 4, 0), rtol=1e-6)
    assert (
        mask_BPT != activation_mask(means, valid_BPT, choose_points("gptj", every, False), "zn_rescale")
    ).any()


def test_families_that_the_official_code_does_not_have_are_refused():
    with pytest.raises(
        ValueError,
        match="hook points of llama are not reproduced, only those of gpt2, gpt_bigcode, gpt_neox, gptj",
    ):
        choose_points("llama", ("attn",), True)
