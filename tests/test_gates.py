"""Gates: masks with a mean that is set beforehand, and exact zeros."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pydantic import ValidationError

from helpers.configs import make_config
from helpers.tiny import NEOX, random_batch
from sparsepo_jax.build.objective import make_mask_source
from sparsepo_jax.core.types import TokenStats
from sparsepo_jax.masks.gates import GATES, gate
from sparsepo_jax.models.spec import spec_from_hf

VALID_BPT = np.arange(12) < np.array([[12, 7], [1, 12], [0, 3]])[..., None]
Z_BPT = np.random.default_rng(0).normal(0, 2, VALID_BPT.shape).astype(np.float32)
KEYS_B = jax.random.split(jax.random.key(0), 3)


@functools.partial(jax.jit, static_argnames=("name", "budget", "temperature"))
def mask_of(name, z_BPT=Z_BPT, valid_BPT=VALID_BPT, *, budget=0.3, temperature=1.0, key_B=None):
    return gate(
        jnp.asarray(z_BPT), jnp.asarray(valid_BPT), name, budget=budget, temperature=temperature, key_B=key_B
    )


@pytest.mark.parametrize("budget", [0.05, 0.9])
@pytest.mark.parametrize("name", GATES)
def test_a_mask_has_its_mean_and_is_zero_outside(name, budget):
    mask_BPT = np.asarray(mask_of(name, budget=budget))
    assert (mask_BPT[~VALID_BPT] == 0).all() and (mask_BPT >= 0).all()
    counts_BP = VALID_BPT.sum(-1)
    sum_BP = {
        "sparsemax": counts_BP,
        "budget": budget * counts_BP,
        "top_k": np.ceil(budget * counts_BP),
    }
    if name in sum_BP:
        np.testing.assert_allclose(mask_BPT.sum(-1), sum_BP[name], rtol=1e-5)


@pytest.mark.parametrize(("budget", "count", "kept"), [(0.09, 300, 27), (0.15, 100, 15), (0.1, 12, 2)])
def test_a_share_of_tokens_is_counted_exactly(budget, count, kept):
    """Kills: 28 of 300 at a budget of 0.09, which is a little more than 27 in float32."""
    mask_BPT = mask_of(
        "top_k", np.arange(float(count))[None, None], np.ones((1, 1, count), bool), budget=budget
    )
    assert mask_BPT.sum() == kept


def test_sparsemax_is_the_projection_onto_the_simplex():
    """By sorting, as Martins and Astudillo have it, on the response of twelve tokens."""
    z_T = Z_BPT[0, 0].astype(np.float64) / 12
    descending_T = np.sort(z_T)[::-1]
    sums_T = np.cumsum(descending_T)
    numbers_T = np.arange(1, 13)
    kept = numbers_T[1 + numbers_T * descending_T > sums_T].max()
    expected_T = np.maximum(z_T - (sums_T[kept - 1] - 1) / kept, 0)
    got_T = mask_of("sparsemax")[0, 0]
    np.testing.assert_allclose(got_T, 12 * expected_T, atol=1e-5)
    assert 0 < (got_T == 0).mean() < 1


def test_a_budget_by_hand():
    """z = 2, 0.6, 0.4, -1 and a mean of 0.5: the shift 0 gives 1, 0.6, 0.4, 0."""
    z_BPT = np.array([[[2, 0.6, 0.4, -1]]], np.float32)
    mask_BPT = mask_of("budget", z_BPT, np.ones((1, 1, 4), bool), budget=0.5)
    np.testing.assert_allclose(mask_BPT[0, 0], [1, 0.6, 0.4, 0], atol=1e-6)


def test_top_k_keeps_the_largest_and_the_earlier_of_equal_ones():
    assert mask_of("top_k")[0, 0][np.argsort(Z_BPT[0, 0])[-4:]].tolist() == [1, 1, 1, 1]
    assert mask_of("top_k", np.zeros_like(Z_BPT))[1, 1].tolist() == [1, 1, 1, 1] + 8 * [0]


@pytest.mark.parametrize("name", GATES)
def test_numbers_count_by_their_differences_over_the_temperature(name):
    np.testing.assert_allclose(mask_of(name, 3 * Z_BPT + 5, temperature=3.0), mask_of(name), atol=1e-5)


@pytest.mark.parametrize("name", ["sparsemax", "budget"])
def test_a_lower_temperature_gives_more_zeros(name):
    wide, narrow = ((np.asarray(mask_of(name, temperature=t))[VALID_BPT] == 0).mean() for t in (10.0, 0.1))
    assert wide < 0.1 < 0.5 < narrow


def test_a_hard_concrete_mask_is_above_zero_as_often_as_asked():
    """Over draws; and a pair's draw is its own."""
    keys = [jax.vmap(jax.random.fold_in, (0, None))(KEYS_B, n) for n in range(300)]
    draws_BPT = np.stack([mask_of("hard_concrete", key_B=key_B) for key_B in keys])
    share = (draws_BPT[:, 0, 0] > 0).mean()
    np.testing.assert_allclose(share, 0.3, atol=0.02)
    assert (draws_BPT == 1).any() and ((draws_BPT > 0) & (draws_BPT < 1)).any()
    alone_BPT = mask_of("hard_concrete", Z_BPT[:1], VALID_BPT[:1], key_B=KEYS_B[:1])
    np.testing.assert_allclose(mask_of("hard_concrete", key_B=KEYS_B)[:1], alone_BPT, atol=1e-6)


@pytest.mark.parametrize("name", ["sparsemax", "budget", "hard_concrete"])
def test_gradients_are_those_of_the_values(name):
    """By central differences along one direction: the shift moves with the numbers."""
    weight_BPT, direction_BPT = np.random.default_rng(1).normal(size=(2, *Z_BPT.shape)).astype(np.float32)

    def value(step):
        return (mask_of(name, Z_BPT + step * direction_BPT, key_B=KEYS_B) * weight_BPT).sum()

    slope = jax.grad(value)(0.0)
    np.testing.assert_allclose(slope, (value(1e-2) - value(-1e-2)) / 2e-2, rtol=2e-2)
    assert abs(float(slope)) > 1e-2


def test_top_k_passes_the_gradient_of_a_sigmoid_whose_mean_stays():
    gradient_BPT = jax.grad(lambda z_BPT: mask_of("top_k", z_BPT)[0, 0, 2])(Z_BPT)
    assert (gradient_BPT[0, 0] != 0).all() and (gradient_BPT[0, 1] == 0).all()
    np.testing.assert_allclose(gradient_BPT.sum(), 0, atol=1e-6)  # moving all numbers alike moves nothing


@pytest.mark.parametrize("name", GATES)
def test_what_stands_on_padding_reaches_nothing(name):
    dirty_BPT = np.where(VALID_BPT, Z_BPT, np.nan).astype(np.float32)
    np.testing.assert_array_equal(mask_of(name, dirty_BPT, key_B=KEYS_B), mask_of(name, key_B=KEYS_B))
    gradient_BPT = jax.grad(lambda z_BPT: (mask_of(name, z_BPT, key_B=KEYS_B) ** 2).sum())(dirty_BPT)
    assert np.isfinite(gradient_BPT).all()


def test_an_unknown_gate_and_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="unknown gate 'softmax'"):
        mask_of("softmax")
    for field, value in (("budget", 1.0), ("budget", 0.0), ("temperature", 0.0)):
        with pytest.raises(ValidationError, match=field):
            make_config(objective={"kind": "sparsepo", "mask": {"kind": "learned", field: value}})


def masks_of(states_LRMD, batch, training=True, step=None, **mask):
    """What a run with this section `objective.mask` makes of a reference's states."""
    spec = spec_from_hf(NEOX)
    mask = {"kind": "learned", "net": "simple_last"} | mask
    source = make_mask_source(make_config(objective={"kind": "sparsepo", "mask": mask}), spec)
    keys_B = jax.random.split(jax.random.key(0), batch.valid_BPT.shape[0])
    zeros_BPT = jnp.zeros(batch.valid_BPT.shape)
    stats = TokenStats(zeros_BPT, zeros_BPT, zeros_BPT, batch.valid_BPT)  # which such a mask does not read
    weights = {name: 20 * x for name, x in source.init(nnx.Rngs(3)).items()}
    return np.asarray(
        source.make(weights, {"final_norm": states_LRMD[-1]}, batch, stats, keys_B, training, step)[0]
    )


def test_every_setting_of_a_gate_moves_the_mask():
    batch = jax.tree.map(jnp.asarray, random_batch(pairs=3))
    shape = (1, *batch.packing.valid_RM.shape, NEOX["hidden_size"])
    states_LRMD = jax.random.normal(jax.random.key(1), shape)
    of = functools.partial(masks_of, states_LRMD, batch)
    base = of(mixer_activation="budget")
    for changes in (
        {"mixer_activation": "sparsemax"},
        {"mixer_activation": "hard_concrete"},
        {"mixer_activation": "top_k"},
        {"budget": 0.6},
        {"temperature": 3.0},
        {"sees": "token"},
    ):
        assert (of(**({"mixer_activation": "budget"} | changes)) != base).any(), changes
    np.testing.assert_array_equal(of(mixer_activation="budget", training=False), base)
    drawn = of(mixer_activation="hard_concrete")
    assert (of(mixer_activation="hard_concrete", training=False) != drawn).any()


def test_an_annealed_gate_has_the_temperature_of_its_step():
    """3 at step 0, by the same factor at each step, 0.75 from step 4 on and where nothing is trained."""
    batch = jax.tree.map(jnp.asarray, random_batch(pairs=3))
    shape = (1, *batch.packing.valid_RM.shape, NEOX["hidden_size"])
    states_LRMD = jax.random.normal(jax.random.key(1), shape)
    of = functools.partial(masks_of, states_LRMD, batch, mixer_activation="budget")
    annealed = functools.partial(of, temperature=0.75, temperature_start=3.0, temperature_steps=4)
    for step, temperature in ((0, 3.0), (2, 1.5), (4, 0.75), (9, 0.75), (None, 0.75)):
        now = None if step is None else jnp.int32(step)
        np.testing.assert_allclose(annealed(step=now), of(temperature=temperature), atol=1e-6)


def test_half_an_annealing_is_refused_and_one_without_a_gate():
    gate = {"kind": "learned", "mixer_activation": "budget"}
    for mask, said in (
        (gate | {"temperature_start": 3.0}, "give both, or neither"),
        (gate | {"temperature_steps": 3}, "give both, or neither"),
        ({"kind": "learned", "temperature_start": 3.0, "temperature_steps": 3}, "relu has no temperature"),
    ):
        with pytest.raises(ValidationError, match=said):
            make_config(objective={"kind": "sparsepo", "mask": mask})


def test_an_annealing_that_training_does_not_end_is_refused():
    """Held-out figures would have a temperature with which nothing was trained."""
    mask = {
        "kind": "learned",
        "mixer_activation": "budget",
        "temperature_start": 3.0,
        "temperature_steps": 30,
    }
    objective = {"kind": "sparsepo", "mask": mask}
    assert make_config(objective=objective, po={"steps": 30}).po.steps == 30
    with pytest.raises(ValidationError, match="temperature_steps: 30 steps, and po ends after 29"):
        make_config(objective=objective, po={"steps": 29})


def test_a_mask_that_sees_the_token_reads_the_state_behind_it():
    """But of the last token, which has none."""
    batch = jax.tree.map(jnp.asarray, random_batch(pairs=3))
    shape = (1, *batch.packing.valid_RM.shape, NEOX["hidden_size"])
    states_LRMD = jax.random.normal(jax.random.key(1), shape)
    before, behind = (
        masks_of(states_LRMD, batch, mixer_activation="none", sees=x) for x in ("prefix", "token")
    )
    for pair, response in np.ndindex(before.shape[:2]):
        count = int(batch.valid_BPT[pair, response].sum())
        np.testing.assert_array_equal(behind[pair, response, : count - 1], before[pair, response, 1:count])
        np.testing.assert_array_equal(behind[pair, response, count - 1], before[pair, response, count - 1])


@pytest.mark.parametrize("net", ["simple_all", "simple_last"])
def test_nan_in_states_of_padding_does_not_reach_the_gradient(net):
    batch = jax.tree.map(jnp.asarray, random_batch(pairs=3, spare=3))
    valid_RM = batch.packing.valid_RM
    mask = {"kind": "learned", "net": net}
    source = make_mask_source(make_config(objective={"kind": "sparsepo", "mask": mask}), spec_from_hf(NEOX))
    zeros_BPT = jnp.zeros(batch.valid_BPT.shape)
    stats = TokenStats(zeros_BPT, zeros_BPT, zeros_BPT, batch.valid_BPT)
    shape = (NEOX["num_hidden_layers"], *valid_RM.shape, NEOX["hidden_size"])
    states_LRMD = jax.random.normal(jax.random.key(1), shape)
    spoiled_LRMD = jnp.where(valid_RM[None, ..., None], states_LRMD, jnp.nan)

    def total(weights, states_LRMD):
        kept = {"block_out": states_LRMD, "final_norm": states_LRMD[-1]}
        return source.make(weights, kept, batch, stats, None, True)[0].sum()

    assert not valid_RM.all()
    weights = source.init(nnx.Rngs(3))
    expected, got = (jax.grad(total)(weights, states) for states in (states_LRMD, spoiled_LRMD))
    for name, gradient in expected.items():
        np.testing.assert_allclose(got[name], gradient, atol=1e-6, err_msg=name)
    assert any(np.abs(gradient).max() > 0 for gradient in expected.values())
